"""Training: the options of `Sequential.fit`, its passes over the data, and the loop where nobody looks at epochs."""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from .. import _backends, distributed
from .._exclusive import Exclusive
from .._files import Path
from .._metrics import Function, function_values
from .._pruning import check_pruning
from .._validation import check_count, check_flag, check_name, check_number, describe
from .._warnings import warn
from ..batches import BatchSize, check_batch_size, check_steps
from ..callbacks import Callback, Trainable
from ..kernels.interrupts import interrupts_held
from ..kernels.spec import (
    Batches,
    Constraint,
    EpochHooks,
    EpochResults,
    OptimizerSteps,
    ParamSettings,
    PassResult,
    Shuffle,
)
from ._averages import Averages, work_after
from ._intake import Data
from ._items import are_items, gathered
from ._late_callbacks import rule_of, teller
from ._limits import check_checkpoints, check_limits
from ._masks import Masks
from ._row_stream import RowStream
from ._row_weights import check_class_weight
from ._sizes import sized, varies
from ._targets import TargetScale, unscaled
from .history import History
from .progress import wants_bar

DIVERGED = "the training diverged in epoch"
REMEDIES = "a smaller learning rate may help, clip_norm, or features scaled to about -1 .. 1"
EVALUATION_BATCH = 1024
# The most steps of a call of several epochs: each takes 100 bytes of scalars, rates and losses, and 1 us to write them.
STEPS_OF_A_CALL = 1 << 15
# Sizes of shuffle="blocks": blocks are read from a disk in one go, and windows are held in memory.
BLOCK_BYTES, WINDOW_BLOCKS = 1 << 20, 64
LAST = "lr", "seconds", "samples_per_second"  # figures that stand behind all others
NAN = ("raise", "skip")


class Model(Trainable, Protocol):
    """The part of a model that its training asks for."""

    seed: int
    epochs_done: int
    history: History | None
    metrics: tuple[str, ...]
    metric_functions: dict[str, Function]
    target_scale: TargetScale | None
    param_settings: tuple[ParamSettings, ...]
    _use: Exclusive
    _holder: tuple[Any, int] | None
    _averages: Averages | None
    _masks: Masks | None
    _fixed_layers: tuple[int, ...]
    _parameters: list[np.ndarray]
    _constraints: tuple[Constraint | None, ...]
    _penalties_by_rows: bool

    @property
    def backend(self) -> str:
        """The name of the backend."""

    def _bring_back(self) -> None:
        """Update weights, states and averages from the device that holds them."""


@dataclass(frozen=True)
class FitOptions:
    """Options of `fit`, with its names and defaults; TypeError or ValueError for an impossible one."""

    epochs: int | None = None
    batch_size: BatchSize = 32
    validation_split: float = 0.0
    validation_data: Any = None
    shuffle: bool | str = True
    callbacks: Sequence[Callback] = ()
    verbose: int | str = "auto"
    initial_epoch: int = 0
    nan: str = "raise"
    accumulate: int = 1
    standardize_targets: bool = False
    sample_weight: Any = None
    class_weight: Any = None
    drop_last: bool = False
    steps_per_epoch: int | None = None
    validation_freq: int | Sequence[int] = 1
    max_steps: int | None = None
    max_seconds: float | None = None
    checkpoint: Path | None = None
    checkpoint_every: int | str | None = None
    resume: Path | bool | None = None
    augment: Any = None
    pruning: Any = None  # a `Pruning`, once they are made
    distributed: str | None = None
    reduction: str = "fixed"
    shard_states: bool = False
    wire_dtype: str | None = None
    rows: str = "global"

    def __post_init__(self) -> None:
        check_count("initial_epoch", self.initial_epoch, least=0)
        if self.epochs is not None:
            check_count("epochs", self.epochs)
        if self.initial_epoch and self.last_epoch is not None and self.initial_epoch > self.last_epoch:
            raise ValueError(f"initial_epoch must be at most epochs={self.last_epoch}; got {self.initial_epoch}")
        if type(self.batch_size) is not int or self.batch_size < 1:
            check_batch_size(self.batch_size)
            check_steps(self.batch_size, self.steps_per_epoch)
        check_count("accumulate", self.accumulate)
        check_number("validation_split", self.validation_split, 0.0, 1.0)
        check_shuffle(self.shuffle)
        check_verbose(self.verbose)
        check_callbacks(self.callbacks)
        check_flag("standardize_targets", self.standardize_targets)
        if self.drop_last is not False:
            check_flag("drop_last", self.drop_last)
        check_name("nan", self.nan, NAN)
        if self.class_weight is not None:
            check_class_weight(self.class_weight)
        if self.validation_data is not None:
            if self.validation_split:
                raise ValueError("give validation_split or validation_data, not both")
            if are_items(self.validation_data):
                object.__setattr__(self, "validation_data", gathered("validation_data", self.validation_data))
            elif not isinstance(self.validation_data, tuple | list) or len(self.validation_data) not in (2, 3):
                raise TypeError(
                    "validation_data must be a tuple (x, y) or (x, y, sample_weight), or an iterable of such items; got"
                    f" {describe(self.validation_data)}"
                )
        if self.augment is not None and not callable(self.augment):
            raise TypeError(f"augment must be a function f(x, y, rng); got {describe(self.augment)}")
        if self.pruning is not None:
            object.__setattr__(self, "pruning", check_pruning(self.pruning))
        limits = self.steps_per_epoch, self.validation_freq, self.max_steps, self.max_seconds
        if limits != (None, 1, None, None):
            check_limits(self)
        if (self.checkpoint, self.checkpoint_every, self.resume) != (None, None, None):
            check_checkpoints(self)
        together = self.distributed, self.reduction, self.shard_states, self.wire_dtype, self.rows
        if together != (None, "fixed", False, None, "global"):
            distributed.check_options(self)

    @property
    def last_epoch(self) -> int | None:
        """Number of the last epoch; None: other limits end the training."""
        if self.epochs is not None:
            return int(self.epochs)
        return 1 if self.max_steps is None and self.max_seconds is None else None

    @property
    def epoch_numbers(self) -> range:
        """Numbers of the epochs to run, from 1."""
        last = self.last_epoch if self.epochs is None else int(self.epochs)
        return range(int(self.initial_epoch) + 1, (sys.maxsize if last is None else last + 1))

    @property
    def resume_path(self) -> Path | None:
        """Path of the checkpoint to go on from."""
        if self.resume is True:
            return self.checkpoint
        return None if self.resume is False else self.resume

    def validates(self, epoch: int) -> bool:
        """True if an epoch, counted from 1, ends with a validation, where there is one."""
        freq: Any = self.validation_freq
        return epoch in freq if isinstance(freq, Sequence) else epoch % int(freq) == 0

    @property
    def shows_bar(self) -> bool:
        """True if there is to be a progress bar."""
        return bool(self.verbose) and wants_bar(self.verbose)


def check_shuffle(shuffle: Any) -> None:
    """Raise unless `shuffle` is True, False or "blocks"."""
    if not isinstance(shuffle, bool | np.bool_ | str):
        raise TypeError(f'shuffle must be True, False or "blocks"; got {describe(shuffle)}')
    if isinstance(shuffle, str) and shuffle != "blocks":
        raise ValueError(f'shuffle must be True, False or "blocks"; got {shuffle!r}')


def listed(callbacks: Any) -> Any:
    """Return one callback, or None for no callback, as a sequence; anything else as it is."""
    return () if callbacks is None else (callbacks,) if isinstance(callbacks, Callback) else callbacks


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
    rows: np.ndarray  # numbers of the rows of `data` to train on, as of `row_numbers`
    validation: Data | None
    options: FitOptions
    evaluator: Any = None  # the network to validate with: over the averages of the weights, where there are any
    batch_size: BatchSize | None = None  # a number of rows, or one of `fastopt.batches`; None: batches come as they are
    batch_size_reason: str = ""
    stream: RowStream | None = None  # of the rows, where epochs are of `steps_per_epoch`
    call: dict[str, Any] | None = None  # all that must be the same where a checkpoint goes on; None: there is none
    saved: list[Any] | None = None  # the `_checkpoints.Saved` to go on from, if there is one, until it is used
    source: Any = None  # of epochs whose batches come one by one: an `ItemSource` or `AugmentedSource`
    world: Any = None  # the ranks that train together, of `fastopt.distributed`; None: there is one
    local_steps: int | None = None  # steps of an epoch where each rank has rows of its own

    @property
    def at_once(self) -> bool:
        """True if nobody looks at the training before all epochs are done."""
        options = self.options
        limited = options.max_steps is not None or options.max_seconds is not None
        in_parts = limited or self.stream is not None or self.call is not None or self.source is not None
        in_parts = in_parts or options.pruning is not None
        looks = options.shows_bar or self.validation is not None or in_parts
        return not looks and (not options.callbacks or rule_of(options.callbacks) is not None)


def compiling(backend: str, listener: Callable[[str], None]) -> AbstractContextManager[None]:
    """While open, `listener(kernel's name)` hears of compilations, on a backend that compiles."""
    open_ = getattr(_backends.get(backend), "compiling", None)
    return nullcontext() if open_ is None else open_(listener)


def run_at_once(model: Model, plan: Plan) -> History:
    """Train by a plan that is `at_once`, and return the figures, with the bits of `epoch_loop.run`.

    State stays consistent after an error or an interrupt: parameters, states, and counts of steps and epochs fit each
    other. Only losing the GPU can break it.
    """
    history = History(plan.batch_size, plan.batch_size_reason)
    with in_training(model, plan.options.callbacks, history):
        _all_epochs(model, plan, history)
    return history


@contextmanager
def in_training(model: Model, callbacks: Sequence[Callback], history: History) -> Iterator[None]:
    """While open, `history` and `stop_training` are this training's; then again those of one that is around it.

    Callbacks hear of the end, or of the interrupt that ends it.
    """
    with ExitStack() as stack:
        for callback in callbacks:
            stack.enter_context(callback.used())
        trainings, before = model._use.trainings, (model.history, model.stop_training)
        model.history, model.stop_training = history, False
        trainings.append(history)
        try:
            yield
            for callback in callbacks:
                callback.on_train_end(model)
        except KeyboardInterrupt:
            with interrupts_held():
                for callback in callbacks:
                    callback.on_interrupt(model)
            raise
        finally:
            trainings.remove(history)
            if trainings:
                model.history, model.stop_training = before


def _all_epochs(model: Model, plan: Plan, history: History) -> None:
    """Train all epochs in one call of the backend, with the bits of one each; nobody asks for figures between them."""
    callbacks = plan.options.callbacks
    tell = teller(callbacks, model, history) if callbacks else None
    for callback in callbacks:
        callback.on_train_begin(model)
    with holding(model, plan.network):
        for batches, hooks in calls_at_once(model, plan, history):
            try:
                rule = rule_of(callbacks) if callbacks else None
                train_epochs(model, plan.network, batches, hooks._replace(rule=rule))
            finally:
                if tell:
                    tell()


def calls_at_once(model: Model, plan: Plan, history: History) -> Iterator[tuple[Batches, EpochHooks]]:
    """The calls of the backend that a plan `at_once` comes to; each is to be made before the next is asked for.

    There are further calls after so many steps, and after an epoch that diverged, which is told at once.
    """
    numbers, warned = plan.options.epoch_numbers, False
    is_alone = type(plan.batch_size) is not int or (plan.options.drop_last and varies(model.metrics))
    is_alone = is_alone or plan.local_steps is not None

    def finished(results: EpochResults) -> None:
        model.epochs_done += len(results.losses)
        history.extend(numbers[len(history.epochs)], epoch_figures(batches, results), results.losses)

    def stop() -> bool:
        return model.stop_training

    while len(history.epochs) < len(numbers) and not model.stop_training:
        batches = next_batches(model, plan)
        most = 1 if is_alone else max(1, STEPS_OF_A_CALL // batches.steps)
        batches = batches._replace(epochs=min(most, len(numbers) - len(history.epochs)))
        yield batches, EpochHooks(finished, stop, until_diverged=not warned)
        loss = history.history["loss"][-1]
        if not warned and not math.isfinite(loss):
            warned = True
            warn_diverged(history.epochs[-1], loss)


@contextmanager
def holding(model: Model, network: Any) -> Iterator[None]:
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


def next_batches(model: Model, plan: Plan) -> Batches:
    """The batches of the model's next epoch."""
    options, rows, shuffle, epoch = plan.options, plan.rows, None, model.epochs_done
    if plan.stream is not None:
        count = rows_per_epoch(plan)
        rows = plan.stream.rows(epoch * count, count)
    else:
        shuffle = shuffle_of(model, plan)
    data, is_number = plan.data, type(plan.batch_size) is int
    size = plan.batch_size if type(plan.batch_size) is int else 1
    batches = Batches(data.x, data.y, rows, size, int(options.accumulate), shuffle=shuffle, weights=data.weights)
    if plan.local_steps is not None:
        sizes = np.diff(np.arange(plan.local_steps + 1) * len(rows) // plan.local_steps)
        return batches._replace(batch_size=int(sizes.max()), sizes=sizes)
    if is_number and not options.drop_last:
        return batches
    assert plan.batch_size is not None
    batches = sized(batches, plan.batch_size, bool(options.drop_last), model.seed, epoch)
    # the targets of an epoch that leaves out rows are known with its order
    return batches.epoch(0) if batches.leaves_out and varies(model.metrics) else batches


def shuffle_of(model: Model, plan: Plan) -> Shuffle | None:
    """The orders of epochs from the model's next one on; None: rows come as they are."""
    if not plan.options.shuffle:
        return None
    shuffle = Shuffle(model.seed, model.epochs_done)
    if plan.options.shuffle != "blocks":
        return shuffle
    x = plan.data.x
    block_rows = max(1, BLOCK_BYTES * len(x) // x.nbytes)
    return shuffle._replace(block_rows=block_rows, window_rows=WINDOW_BLOCKS * block_rows)


def rows_per_epoch(plan: Plan) -> int:
    """Rows that an epoch trains on: all, or those of `steps_per_epoch` whole steps."""
    options = plan.options
    if options.steps_per_epoch is None:
        return len(plan.rows)
    assert isinstance(plan.batch_size, int)
    return int(options.steps_per_epoch) * plan.batch_size * int(options.accumulate)


def train_epoch(
    model: Model, network: Any, batches: Batches, advance: Callable[[int, float], None] | None = None
) -> PassResult:
    """Train on all batches in one call of the backend; the steps are counted even if it is interrupted."""
    return _train(model, network, batches, advance)


def train_epochs(model: Model, network: Any, batches: Batches, hooks: EpochHooks) -> PassResult:
    """Train on all batches, epoch after epoch, in one call of the backend, as `train_epoch` does on those of one."""
    return _train(model, network, batches, None, hooks)


def _train(model: Model, network: Any, batches: Batches, *reporting: Any) -> PassResult:
    assert model.optimizer is not None
    with model.optimizer._step_lock:
        steps = next_steps(model, network, batches)
        try:
            result: PassResult = network.train(batches, steps, model.seed, *reporting)
        finally:
            count_steps(model, network)
    return result


def next_steps(model: Model, network: Any, batches: Batches) -> OptimizerSteps:
    """The steps of the optimizer for these batches; call it with `_step_lock`, and `count_steps` when they are done."""
    optimizer = model.optimizer
    assert optimizer is not None
    steps: OptimizerSteps = optimizer.next_steps(batches.epochs * batches.steps, model.param_settings)
    if model._fixed_layers:
        steps = steps._replace(fixed=model._fixed_layers)
    if model._constraints or model._averages is not None:
        steps = work_after(steps, model._constraints, model._averages, model._parameters)
    if model._penalties_by_rows and steps.penalties:
        weights = batches.weight_of_steps()
        steps = steps._replace(penalty_divisors=np.where(weights == 0, 1.0, weights))
    if model._masks is not None:
        steps = steps._replace(masks=model._masks.arrays)
    network.steps_done = 0
    return steps


def count_steps(model: Model, network: Any) -> None:
    """Count the steps that the network has taken, also if it was interrupted."""
    assert model.optimizer is not None
    model.optimizer.advance(network.steps_done)
    if model._averages is not None:
        model._averages.steps += network.steps_done


def evaluated(model: Model, network: Any, data: Data, batch_size: int) -> dict[str, float]:
    """The mean loss, with the penalties of regularizers, and the metrics of an evaluation on the rows that count."""
    result = network.evaluate(data.x, data.y, batch_size, data.weights, data.rows)
    loss, settings = float(result.losses[0]), model.param_settings
    if any(own.has_penalty for own in settings):
        loss += network.penalty(settings) / (_weight_of(data) if model._penalties_by_rows else 1.0)
    return {"loss": loss, **result.metrics} | function_figures(model, network, data, batch_size)


def _weight_of(data: Data) -> float:
    """The number of the rows that count, or the sum of their weights."""
    if data.weights is None:
        return float(len(data.x) if data.rows is None else len(data.rows))
    weights = data.weights if data.rows is None else data.weights[data.rows]
    return float(weights.sum(dtype=np.float64))


def function_figures(model: Model, network: Any, data: Data, batch_size: int) -> dict[str, float]:
    """Metrics that are functions, of the outputs that the network predicts, in the units of the targets.

    Those that have an argument `sample_weight` are given the weights of the rows, where there are any.
    """
    if not model.metric_functions:
        return {}
    outputs, y = network.predict(data.x, batch_size, data.rows), data.targets
    if model.target_scale is not None:
        outputs, y = (unscaled(values, model.target_scale) for values in (outputs, y))
    return function_values(model.metric_functions, y, outputs, data.row_weights)


def figure_names(metrics: Sequence[str], validation: bool, functions: Iterable[str] = ()) -> list[str]:
    """The names that the figures of an epoch will have; functions: metrics of the validation rows alone."""
    names = ["loss", *metrics]
    validated = [f"val_{name}" for name in [*names, *functions]] * validation
    return [*names, *validated, *LAST]


def epoch_figures(batches: Batches, results: EpochResults) -> dict[str, list[float]]:
    """The figures of each epoch by name: mean loss over the rows, metrics, last rate, time of the training pass."""
    rows = sizes = batches.rows_of_steps()
    if results.weights is not None:
        # a short epoch may have no weight: the losses of its steps are 0, but for penalties
        sizes = np.where(results.weights.any(axis=1, keepdims=True), results.weights, 1.0)
    losses = (results.losses * sizes).sum(axis=1) / sizes.sum(axis=-1)  # np.average takes 4 times as long
    speeds = rows.sum() / np.maximum(results.seconds, 1e-9)
    last = results.rates.tolist(), results.seconds.tolist(), speeds.tolist()
    return {"loss": losses.tolist(), **results.metrics, **dict(zip(LAST, last, strict=True))}


def warn_diverged(epoch: int, loss: float) -> None:
    warn(f"{DIVERGED} {epoch}, where the loss is {loss:g}: {REMEDIES}")
