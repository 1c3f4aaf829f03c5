"""Epoch after epoch, as `Sequential.fit` goes through them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .. import _backends
from .._warnings import warn
from ..callbacks import Callback
from ..kernels.interrupts import interrupts_held
from ..kernels.spec import Batches, PassResult
from . import progress
from ._intake import Data
from .batching import epoch_order
from .history import History

if TYPE_CHECKING:
    from .sequential import Sequential

DIVERGED = "the training diverged in epoch"
REMEDIES = "a smaller learning rate may help, clip_norm, or features scaled to about -1 .. 1"
EVALUATION_BATCH = 1024


class Plan(NamedTuple):
    """A checked call of `fit`."""

    data: Data
    rows: np.ndarray  # int64, the rows of `data` to train on
    validation: Data | None
    epochs: range  # their numbers, from 1
    batch_size: int
    shuffle: bool
    callbacks: Sequence[Callback]
    verbose: int | str
    accumulate: int


def compiling(backend: str, listener: Callable[[str], None]) -> AbstractContextManager[None]:
    """While open, `listener(kernel's name)` hears of compilations, on a backend that compiles."""
    open_ = getattr(_backends.get(backend), "compiling", None)
    return nullcontext() if open_ is None else open_(listener)


def run(model: Sequential, plan: Plan) -> History:
    """Train by the plan. Whatever happens, parameters, states, and the counts of steps and epochs fit each other, but
    where a device is lost before it has given back what it had.
    """
    history = History()
    for _ in run_epochs(model, plan, watched=bool(plan.callbacks), history=history):
        pass
    return history


def run_epochs(
    model: Sequential, plan: Plan, watched: bool = True, history: History | None = None
) -> Iterator[Mapping[str, float]]:
    """`run`, an epoch whenever the next figures are asked for: for several models in turn. The last time ends it.

    watched: whether anybody may look at the model between epochs; if not, weights may stay where the backend works.
    history: an empty one, which gets the figures; made if left out. It is the model's while this runs.
    """
    with _training(model, plan, History() if history is None else history) as ours:
        yield from _epochs(model, plan, watched, ours)


@contextmanager
def _training(model: Sequential, plan: Plan, history: History) -> Iterator[History]:
    """While open, `history` and `stop_training` are this training's; then again those of one that is around it."""
    with model._use.alone("fit", trains=True), ExitStack() as stack:
        for callback in plan.callbacks:
            stack.enter_context(callback.used())
        trainings, before = model._use.trainings, (model.history, model.stop_training)
        model.history, model.stop_training = history, False
        trainings.append(history)
        try:
            yield history
        finally:
            trainings.remove(history)
            if trainings:
                model.history, model.stop_training = before


def _epochs(model: Sequential, plan: Plan, watched: bool, history: History) -> Iterator[Mapping[str, float]]:
    network = model.network()
    warned = False
    try:
        for callback in plan.callbacks:
            callback.on_train_begin(model)
        with nullcontext() if watched else _holding(network):
            for epoch in plan.epochs:
                for callback in plan.callbacks:
                    callback.on_epoch_begin(model, epoch)
                logs, losses = _epoch(model, network, plan, epoch)
                with interrupts_held():  # all of an epoch or nothing
                    history.append(epoch, logs, losses)
                for callback in plan.callbacks:
                    callback.on_epoch_end(model, epoch, logs)
                if not warned and not math.isfinite(logs["loss"]):
                    warned = True
                    warn(f"{DIVERGED} {epoch}, where the loss is {logs['loss']:g}: {REMEDIES}")
                yield logs
                if model.stop_training:
                    break
        for callback in plan.callbacks:
            callback.on_train_end(model)
    except KeyboardInterrupt:
        with interrupts_held():
            for callback in plan.callbacks:
                callback.on_interrupt(model)
        raise


def _holding(network: Any) -> AbstractContextManager[None]:
    held: AbstractContextManager[None] = getattr(network, "holding", nullcontext)()
    return held


def _epoch(model: Sequential, network: Any, plan: Plan, epoch: int) -> tuple[dict[str, float], np.ndarray]:
    """Figures, and the losses of all steps."""
    with _bar(plan, epoch) as bar, compiling(model.backend, bar.compiling):
        order = epoch_order(plan.rows, model.seed, model.epochs_done, plan.shuffle)
        batches = Batches(*plan.data, order, min(plan.batch_size, len(order)), plan.accumulate)
        totals = train_epoch(model, network, batches, bar.advance)
        model.epochs_done += 1
        logs = _figures(batches, totals)
        if plan.validation is not None:
            scores = network.evaluate(*plan.validation, EVALUATION_BATCH)
            logs |= {f"val_{name}": value for name, value in figures(scores).items()}
        logs |= {"seconds": totals.seconds, "samples_per_second": len(order) / max(totals.seconds, 1e-9)}
        bar.finish(logs)
    return logs, totals.losses


def train_epoch(
    model: Sequential, network: Any, batches: Batches, advance: Callable[[int, float], None] | None = None
) -> PassResult:
    """Train on all batches in one call of the backend; the steps are counted even if it is interrupted."""
    optimizer = model.optimizer
    assert optimizer is not None
    with optimizer._step_lock:
        steps = optimizer.next_steps(batches.steps)
        network.steps_done = 0
        try:
            return network.train(batches, steps, model.seed, advance)
        finally:
            optimizer.advance(network.steps_done)


def figures(totals: PassResult) -> dict[str, float]:
    """The mean loss and the metrics of an evaluation."""
    return {"loss": float(totals.losses[0]), **totals.metrics}


def figure_names(metrics: Sequence[str], validation: bool) -> list[str]:
    """The names that the figures of an epoch will have."""
    names = ["loss", *metrics]
    return names + [f"val_{name}" for name in names] * validation + ["seconds", "samples_per_second"]


def _figures(batches: Batches, totals: PassResult) -> dict[str, float]:
    """The mean loss over the rows of an epoch, and its metrics: the last step may have fewer and then counts less."""
    sizes = np.full(batches.steps, batches.batch_size * batches.accumulate)
    sizes[-1] = len(batches.order) - sizes[:-1].sum()
    return {"loss": float(np.average(totals.losses, weights=sizes)), **totals.metrics}


@contextmanager
def _bar(plan: Plan, epoch: int) -> Iterator[progress.Bar | progress.Silent]:
    bar = progress.bar(plan.verbose, epoch, plan.epochs[-1], len(plan.rows), plan.batch_size * plan.accumulate)
    try:
        yield bar
    finally:
        bar.close()
