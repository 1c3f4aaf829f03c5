"""Training epoch by epoch, where callbacks, a bar, validation, limits or checkpoints look at epochs or steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import numpy as np

from ..kernels.interrupts import interrupts_held
from ..kernels.spec import EpochResults
from . import training
from ._course import Course
from ._parts import PartialEpoch, train_in_parts
from ._streams import StreamedEpoch
from .history import History
from .progress import Bar
from .training import EVALUATION_BATCH, LAST, Model, Plan


def run(model: Model, plan: Plan) -> History:
    """Train by the plan, and return the figures.

    State stays consistent after an error or an interrupt, as in `training.run_at_once`, whose bits these are.
    """
    history = History(plan.batch_size, plan.batch_size_reason)
    watched = any(callback.reads_weights for callback in plan.options.callbacks)
    with training.in_training(model, plan.options.callbacks, history):
        for _ in _epochs(model, plan, history, watched):
            pass
    return history


def run_epochs(model: Model, plan: Plan) -> Iterator[Mapping[str, float]]:
    """Iterate over the epochs of a training: each is trained when its figures are requested. So models can alternate.

    The training ends when there are no more figures. It is that of `fit`, but weights may be looked at between epochs.
    """
    history = History(plan.batch_size, plan.batch_size_reason)
    with model._use.exclusive("fit", trains=True), training.in_training(model, plan.options.callbacks, history):
        yield from _epochs(model, plan, history, watched=True)


def _epochs(model: Model, plan: Plan, history: History, watched: bool) -> Iterator[Mapping[str, float]]:
    """Train epoch by epoch; watched: somebody may look at the weights between epochs, so they are brought back.

    If not, methods of the model that read or change them bring them back.
    """
    callbacks, warned = plan.options.callbacks, False
    names = training.figure_names(model.metrics, plan.validation is not None, model.metric_functions)
    show_epoch = _bar_of(model.backend, plan) if plan.options.shows_bar else _no_bar
    saved = plan.saved.pop() if plan.saved else None  # so that its memory is free once it is taken over
    course = Course(model, plan.options, history, plan.call, saved, plan.world, plan.source)
    del saved
    course.prepare()
    for callback in callbacks:
        callback.on_train_begin(model)
    course.begin()
    with nullcontext() if watched else training.holding(model, plan.network):
        for epoch in course.epochs():
            for callback in callbacks:
                callback.on_epoch_begin(model, epoch)
            with show_epoch(epoch) as bar:
                logs, losses = _epoch(model, plan, course, bar)
            with interrupts_held():  # all of an epoch or nothing
                history.append(epoch, {name: logs.get(name, math.nan) for name in names}, losses)
            for callback in callbacks:
                callback.on_epoch_end(model, epoch, logs)
            course.stop_together()
            if not warned and not math.isfinite(logs["loss"]):
                warned = True
                training.warn_diverged(epoch, logs["loss"])
            course.end_epoch()
            yield logs
            if model.stop_training:
                break


def _epoch(model: Model, plan: Plan, course: Course, bar: Bar | None) -> tuple[dict[str, float], np.ndarray]:
    """Train and validate for an epoch; return its figures, and the losses of all steps."""
    epoch = course.begin_epoch(_next_epoch(model, plan, course.epoch, bar))
    train = partial(training.train_epoch, model, plan.network)
    train_in_parts(model, epoch, course.parties, train, bar.advance if bar else None)
    model.epochs_done += 1
    batches, result = epoch.batches(), epoch.result()
    logs = {name: values[0] for name, values in training.epoch_figures(batches, EpochResults.of(result)).items()}
    if plan.validation is not None and plan.options.validates(course.epoch):
        last = {name: logs.pop(name) for name in LAST}
        evaluator = plan.evaluator or plan.network
        if evaluator is not plan.network:
            model._bring_back()  # the averages, which it reads
        found = training.evaluated(model, evaluator, plan.validation, EVALUATION_BATCH)
        logs |= {f"val_{name}": value for name, value in found.items()} | last
    if bar:
        bar.finish(logs)
    return logs, result.losses


def _next_epoch(model: Model, plan: Plan, number: int, bar: Bar | None) -> PartialEpoch:
    """The model's next epoch, which the bar is to follow."""
    if plan.source is not None:
        streamed: StreamedEpoch = plan.source.epoch(model, plan, number)
        if bar:
            bar.follow(lambda steps: streamed.rows)
        return streamed
    batches = training.next_batches(model, plan)
    if bar and (batches.leaves_out or type(plan.batch_size) is not int):
        ends = np.cumsum(batches.rows_of_steps())
        bar.follow(lambda steps: int(ends[steps - 1]), int(ends[-1]))
    return PartialEpoch(batches)


# ---------------------------------------------------------------- the progress bar
ShowEpoch = Callable[[int], AbstractContextManager[Bar | None]]


def _no_bar(epoch: int) -> AbstractContextManager[None]:
    return nullcontext()


def _bar_of(backend: str, plan: Plan) -> ShowEpoch:
    """A function that shows the bar of an epoch; while that is open, it names the kernels that are compiled."""
    options = plan.options

    @contextmanager
    def show(epoch: int) -> Iterator[Bar]:
        size = int(plan.batch_size) if isinstance(plan.batch_size, int) else 0  # else the bar follows the epoch's steps
        size *= int(options.accumulate)
        rows = training.rows_per_epoch(plan) if plan.batch_size is not None else None
        bar = Bar(epoch, options.last_epoch, rows, size)
        try:
            with training.compiling(backend, bar.compiling):
                yield bar
        finally:
            bar.close()

    return show
