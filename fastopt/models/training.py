"""Training, epoch after epoch: the options of `Sequential.fit`, and the loop that it runs."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np

from .. import _backends
from .._exclusive import Exclusive
from .._metrics import Function, function_values
from .._validation import check_count, check_flag, check_name, check_number, describe
from .._warnings import warn
from ..callbacks import Callback, Trainable
from ..kernels.interrupts import interrupts_held
from ..kernels.spec import Batches, Constraint, EpochHooks, EpochResults, ParamSettings, PassResult, Shuffle
from ._averages import Averages, work_after
from ._intake import Data
from ._parts import train_in_parts
from ._row_weights import check_class_weight
from ._targets import TargetScale, unscaled
from .history import History
from .progress import Bar, wants_bar

DIVERGED = "the training diverged in epoch"
REMEDIES = "a smaller learning rate may help, clip_norm, or features scaled to about -1 .. 1"
EVALUATION_BATCH = 1024
# The most steps of a call of several epochs: each takes 100 bytes of scalars, rates and losses, and 1 us to write them.
STEPS_OF_A_CALL = 1 << 15
LAST = "lr", "seconds", "samples_per_second"  # figures that stand behind all others
NAN = ("raise", "skip")


class Model(Trainable, Protocol):
    """The part of a model that its training asks for."""

    seed: int
    epochs_done: int
    history: History | None
    metric_functions: dict[str, Function]
    target_scale: TargetScale | None
    _use: Exclusive
    _holder: tuple[Any, int] | None
    _averages: Averages | None
    _parameters: list[np.ndarray]

    @property
    def backend(self) -> str:
        """The name of the backend."""

    @property
    def param_settings(self) -> tuple[ParamSettings, ...]:
        """Settings of each parameter beside the optimizer's."""

    def _constraints(self) -> list[Constraint | None]:
        """The constraint of each parameter."""

    def _bring_back(self) -> None:
        """Update weights, states and averages from the device that holds them."""


@dataclass(frozen=True)
class FitOptions:
    """Options of `fit`, with its names and defaults; TypeError or ValueError for an impossible one."""

    epochs: int = 1
    batch_size: int = 32
    validation_split: float = 0.0
    validation_data: Any = None
    shuffle: bool = True
    callbacks: Sequence[Callback] = ()
    verbose: int | str = "auto"
    initial_epoch: int = 0
    nan: str = "raise"
    accumulate: int = 1
    standardize_targets: bool = False
    sample_weight: Any = None
    class_weight: Any = None

    def __post_init__(self) -> None:
        check_count("initial_epoch", self.initial_epoch, least=0)
        check_count("epochs", self.epochs)
        if self.initial_epoch > self.epochs:
            raise ValueError(f"initial_epoch must be at most epochs={self.epochs}; got {self.initial_epoch}")
        check_count("batch_size", self.batch_size)
        check_count("accumulate", self.accumulate)
        check_number("validation_split", self.validation_split, 0.0, 1.0)
        check_flag("shuffle", self.shuffle)
        check_verbose(self.verbose)
        check_callbacks(self.callbacks)
        check_flag("standardize_targets", self.standardize_targets)
        check_name("nan", self.nan, NAN)
        if self.class_weight is not None:
            check_class_weight(self.class_weight)
        if self.validation_data is not None:
            if self.validation_split:
                raise ValueError("give validation_split or validation_data, not both")
            if not isinstance(self.validation_data, tuple | list) or len(self.validation_data) not in (2, 3):
                raise TypeError(
                    "validation_data must be a tuple (x, y) or (x, y, sample_weight); got"
                    f" {describe(self.validation_data)}"
                )

    @property
    def epoch_numbers(self) -> range:
        """Numbers of the epochs to run, from 1."""
        return range(int(self.initial_epoch) + 1, int(self.epochs) + 1)

    @property
    def shows_bar(self) -> bool:
        """True if there is to be a progress bar."""
        return bool(self.verbose) and wants_bar(self.verbose)


def check_callbacks(callbacks: Any) -> None:
    """Raise TypeError for anything but a sequence of callbacks."""
    if isinstance(callbacks, str) or not isinstance(callbacks, Sequence):
        raise TypeError(f"callbacks must be a list of Callback; got {describe(callbacks)}")
    for callback in callbacks:
        if not isinstance(callback, Callback):
            raise TypeError(f"every callback must be a Callback; got {describe(callback)}")


def check_verbose(verbose: Any) -> None:
    """Raise unless `verbose` is "auto", 0 or 1."""
    if not isinstance(verbose, int | str):
        raise TypeError(f'verbose must be "auto", 0 or 1; got {verbose!r}')
    if verbose not in ("auto", 0, 1):
        raise ValueError(f'verbose must be "auto", 0 or 1; got {verbose!r}')


class Plan(NamedTuple):
    """A checked call of `fit`."""

    network: Any  # of the backend, over the model's weights
    data: Data
    rows: np.ndarray  # int64, the rows of `data` to train on
    validation: Data | None
    options: FitOptions
    evaluator: Any = None  # the network to validate with: over the averages of the weights, where there are any


def compiling(backend: str, listener: Callable[[str], None]) -> AbstractContextManager[None]:
    """While open, `listener(kernel's name)` hears of compilations, on a backend that compiles."""
    open_ = getattr(_backends.get(backend), "compiling", None)
    return nullcontext() if open_ is None else open_(listener)


def run(model: Model, plan: Plan) -> History:
    """Train by the plan, and return the figures.

    State stays consistent after an error or an interrupt: parameters, states, and counts of steps and epochs fit each
    other. Only losing the GPU can break it.
    """
    history, options = History(), plan.options
    watched = any(callback.reads_weights for callback in options.callbacks)
    with _training(model, options.callbacks, history):
        if options.callbacks or options.shows_bar or plan.validation is not None:
            for _ in _epochs(model, plan, history, watched):
                pass
        else:
            _all_epochs(model, plan, history)
    return history


def run_epochs(model: Model, plan: Plan) -> Iterator[Mapping[str, float]]:
    """Iterate over the epochs of a training: each is trained when its figures are requested. So models can alternate.

    The training ends when there are no more figures. It is that of `fit`, but weights may be looked at between epochs.
    """
    history = History()
    with model._use.exclusive("fit", trains=True), _training(model, plan.options.callbacks, history):
        yield from _epochs(model, plan, history, watched=True)


@contextmanager
def _training(model: Model, callbacks: Sequence[Callback], history: History) -> Iterator[None]:
    """While open, `history` and `stop_training` are this training's; then again those of one that is around it."""
    with ExitStack() as stack:
        for callback in callbacks:
            stack.enter_context(callback.used())
        trainings, before = model._use.trainings, (model.history, model.stop_training)
        model.history, model.stop_training = history, False
        trainings.append(history)
        try:
            yield
        finally:
            trainings.remove(history)
            if trainings:
                model.history, model.stop_training = before


def _epochs(model: Model, plan: Plan, history: History, watched: bool) -> Iterator[Mapping[str, float]]:
    """Train epoch by epoch; watched: somebody may look at the weights between epochs, so they are brought back.

    If not, methods of the model that read or change them bring them back.
    """
    callbacks, epochs, warned = plan.options.callbacks, plan.options.epoch_numbers, False
    show_epoch = _bar_of(model.backend, plan) if plan.options.shows_bar else _no_bar
    try:
        for callback in callbacks:
            callback.on_train_begin(model)
        with nullcontext() if watched else _holding(model, plan.network):
            for epoch in epochs:
                for callback in callbacks:
                    callback.on_epoch_begin(model, epoch)
                with show_epoch(epoch) as bar:
                    logs, losses = _epoch(model, plan, bar)
                with interrupts_held():  # all of an epoch or nothing
                    history.append(epoch, logs, losses)
                for callback in callbacks:
                    callback.on_epoch_end(model, epoch, logs)
                if not warned and not math.isfinite(logs["loss"]):
                    warned = True
                    _warn_diverged(epoch, logs["loss"])
                yield logs
                if model.stop_training:
                    break
        for callback in callbacks:
            callback.on_train_end(model)
    except KeyboardInterrupt:
        with interrupts_held():
            for callback in callbacks:
                callback.on_interrupt(model)
        raise


def _all_epochs(model: Model, plan: Plan, history: History) -> None:
    """Train all epochs in one call of the backend, with the bits of `_epochs`; nobody asks for figures between them.

    There are further calls after so many steps, and after an epoch that diverged, which is told at once.
    """
    numbers, warned = plan.options.epoch_numbers, False

    def finished(results: EpochResults) -> None:
        model.epochs_done += len(results.losses)
        history.extend(numbers[len(history)], _figures(batches, results), results.losses)

    def stop() -> bool:
        return model.stop_training

    with _holding(model, plan.network):
        while len(history) < len(numbers) and not model.stop_training:
            batches = _batches(model, plan)
            most = max(1, STEPS_OF_A_CALL // batches.steps)
            batches = batches._replace(epochs=min(most, len(numbers) - len(history)))
            train_epochs(model, plan.network, batches, EpochHooks(finished, stop, until_diverged=not warned))
            loss = history.history["loss"][-1]
            if not warned and not math.isfinite(loss):
                warned = True
                _warn_diverged(history.epochs[-1], loss)


@contextmanager
def _holding(model: Model, network: Any) -> Iterator[None]:
    """While open, weights and states may be newer in the network's own memory, of which the model knows."""
    hold = getattr(network, "holding", None)
    if hold is None:
        yield
        return
    outer = model._holder
    with hold():
        model._holder = network, threading.get_ident()
        try:
            yield
        finally:
            model._holder = outer


def _epoch(model: Model, plan: Plan, bar: Bar | None) -> tuple[dict[str, float], np.ndarray]:
    """Train and validate for an epoch; return its figures, and the losses of all steps."""
    batches = _batches(model, plan)
    callbacks, advance = plan.options.callbacks, bar.advance if bar else None
    if any(callback.every_steps for callback in callbacks):
        train = partial(train_epoch, model, plan.network)
        result = train_in_parts(model, batches, callbacks, train, advance)
    else:
        result = train_epoch(model, plan.network, batches, advance)
    model.epochs_done += 1
    logs = {name: values[0] for name, values in _figures(batches, EpochResults.of(result)).items()}
    if plan.validation is not None:
        last = {name: logs.pop(name) for name in LAST}
        evaluator = plan.evaluator or plan.network
        if evaluator is not plan.network:
            model._bring_back()  # the averages, which it reads
        found = evaluated(model, evaluator, plan.validation, EVALUATION_BATCH)
        logs |= {f"val_{name}": value for name, value in found.items()} | last
    if bar:
        bar.finish(logs)
    return logs, result.losses


def _batches(model: Model, plan: Plan) -> Batches:
    """The batches of the model's next epoch."""
    options, rows = plan.options, plan.rows
    shuffle = Shuffle(model.seed, model.epochs_done) if options.shuffle else None
    size = min(int(options.batch_size), len(rows))
    x, y, weights = plan.data
    return Batches(x, y, rows, size, int(options.accumulate), shuffle=shuffle, weights=weights)


def train_epoch(
    model: Model, network: Any, batches: Batches, advance: Callable[[int, float], None] | None = None
) -> PassResult:
    """Train on all batches in one call of the backend; the steps are counted even if it is interrupted."""
    return _train(model, network, batches, advance)


def train_epochs(model: Model, network: Any, batches: Batches, hooks: EpochHooks) -> PassResult:
    """Train on all batches, epoch after epoch, in one call of the backend, as `train_epoch` does on those of one."""
    return _train(model, network, batches, None, hooks)


def _train(model: Model, network: Any, batches: Batches, *reporting: Any) -> PassResult:
    optimizer = model.optimizer
    assert optimizer is not None
    with optimizer._step_lock:
        steps = optimizer.next_steps(batches.epochs * batches.steps, model.param_settings)
        steps = work_after(steps, model._constraints(), model._averages, model._parameters)
        network.steps_done = 0
        try:
            result: PassResult = network.train(batches, steps, model.seed, *reporting)
        finally:
            optimizer.advance(network.steps_done)
            if model._averages is not None:
                model._averages.steps += network.steps_done
    return result


def evaluated(model: Model, network: Any, data: Data, batch_size: int) -> dict[str, float]:
    """The mean loss, with the penalties of regularizers, and the metrics of an evaluation."""
    x, y, weights = data
    result, settings = network.evaluate(x, y, batch_size, weights), model.param_settings
    loss = float(result.losses[0])
    if any(own.has_penalty for own in settings):
        loss += network.penalty(settings)
    return {"loss": loss, **result.metrics} | function_figures(model, network, data, batch_size)


def function_figures(model: Model, network: Any, data: Data, batch_size: int) -> dict[str, float]:
    """Metrics that are functions, of the outputs that the network predicts, in the units of the targets.

    Those that have an argument `sample_weight` are given the weights of the rows, where there are any.
    """
    if not model.metric_functions:
        return {}
    outputs, y = network.predict(data.x, batch_size), data.y
    if model.target_scale is not None:
        outputs, y = (unscaled(values, model.target_scale) for values in (outputs, y))
    return function_values(model.metric_functions, y, outputs, data.weights)


def figure_names(metrics: Sequence[str], validation: bool, functions: Iterable[str] = ()) -> list[str]:
    """The names that the figures of an epoch will have; functions: metrics of the validation rows alone."""
    names = ["loss", *metrics]
    validated = [f"val_{name}" for name in [*names, *functions]] * validation
    return [*names, *validated, *LAST]


def _figures(batches: Batches, results: EpochResults) -> dict[str, list[float]]:
    """The figures of each epoch by name: mean loss over the rows, metrics, last rate, time of the training pass."""
    sizes = results.weights
    if sizes is None:
        # the last step may have fewer rows than the others
        sizes = np.full(batches.steps, batches.batch_size * batches.accumulate)
        sizes[-1] = len(batches.order) - sizes[:-1].sum()
    losses = np.average(results.losses, axis=1, weights=sizes)
    speeds = len(batches.order) / np.maximum(results.seconds, 1e-9)
    last = results.rates.tolist(), results.seconds.tolist(), speeds.tolist()
    return {"loss": losses.tolist(), **results.metrics, **dict(zip(LAST, last, strict=True))}


def _warn_diverged(epoch: int, loss: float) -> None:
    warn(f"{DIVERGED} {epoch}, where the loss is {loss:g}: {REMEDIES}")


# ---------------------------------------------------------------- the progress bar
ShowEpoch = Callable[[int], AbstractContextManager[Bar | None]]


def _no_bar(epoch: int) -> AbstractContextManager[None]:
    return nullcontext()


def _bar_of(backend: str, plan: Plan) -> ShowEpoch:
    """A function that shows the bar of an epoch; while that is open, it names the kernels that are compiled."""
    options = plan.options

    @contextmanager
    def show(epoch: int) -> Iterator[Bar]:
        bar = Bar(epoch, options.epochs, len(plan.rows), int(options.batch_size) * int(options.accumulate))
        try:
            with compiling(backend, bar.compiling):
                yield bar
        finally:
            bar.close()

    return show
