"""Training for `fastopt train`: one model, or the same model on several backends in turn.

All contestants start from the same weights and see the same batches, because both follow from the seed. They alternate
after a few epochs each, so that other load on the machine slows all of them alike.
"""

from __future__ import annotations

import math
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from .. import _random_rows
from .._validation import check_number
from ..callbacks import EarlyStopping
from ..compress import Pruning
from ..kernels.formulas import LOSSES
from ..kernels.spec import Batches, row_numbers
from ..layers import Dense, Dropout, Layer
from ..models._distributed import joined
from ..models.epoch_loop import run_epochs
from ..models.sequential import Sequential
from ..models.training import DIVERGED, LAST, FitOptions, compiling
from ..optim import Optimizer, get_optimizer
from ..preprocessing import Normalization
from . import compression
from .lr_schedules import SCHEDULES
from .target_units import metrics_in_target_units

TITLES = {"cpu": "compiled kernels", "cuda": "CUDA kernels", "numpy": "NumPy reference"}
COMPARED_STEPS = 100
ROUNDS = 6  # in which the epochs of a comparison are trained
# Most seconds of sleep before a round. The threads of NumPy's BLAS spin for 0.1 s after their last product; while they
# did, kernels took ten times as long (64-128-64-10, batches of 64, 2 processors). After small products none spins.
REST_SECONDS = 0.15
LOOK_SECONDS = 0.01


class Experiment(NamedTuple):
    """Data, network and training options: everything but the backend."""

    x: np.ndarray  # (rows, features)
    y: np.ndarray  # in the form that the loss takes
    x_test: np.ndarray
    y_test: np.ndarray
    outputs: int
    metrics: tuple[str, ...]
    loss: str
    labels: np.ndarray | None  # of the classes, in the order of the outputs; None: as `fit` finds them
    preparation: dict[str, Any] | None  # of a table, for the model's file
    standardize: bool  # features
    standardize_targets: bool
    hidden: tuple[int, ...]  # widths
    activation: str
    dropout: float
    optimizer: str
    hyper: Mapping[str, Any]
    schedule: str  # one of SCHEDULES
    warmup: int  # steps
    epochs: int
    batch_size: int
    accumulate: int  # batches per step
    validation_split: float
    patience: int | None
    dtype: str
    compute_dtype: str | None
    seed: int
    max_steps: int | None = None
    max_seconds: float | None = None
    checkpoint: str | None = None
    checkpoint_every: int | str | None = None
    resume: bool = False
    distributed: str | None = None
    reduction: str = "fixed"
    batch_size_reason: str = ""  # for a size that was measured
    pruning: Pruning | None = None
    quantize: str | None = None  # one of compression.WAYS

    def model(self, backend: str) -> Sequential:
        """Return a new model, built and compiled."""
        layers: list[Layer] = [Normalization()] if self.standardize else []
        for width in self.hidden:
            layers.append(Dense(width, self.activation))
            if self.dropout:
                layers.append(Dropout(self.dropout))
        layers.append(Dense(self.outputs, LOSSES[self.loss].link or "linear"))
        model = Sequential(layers, self.seed, backend, self.dtype, self.x.shape[1], self.compute_dtype)
        model.compile(self.new_optimizer(), self.loss, self.metrics, quantize=self.quantize)
        model.classes, model.preparation = self.labels, self.preparation
        return model

    def with_batch_size(self, size: str, backend: str) -> Experiment:
        """Return the same experiment with the number of rows that `fit` makes of "full" or "auto"."""
        options = FitOptions(
            batch_size=size,
            validation_split=self.validation_split,
            accumulate=self.accumulate,
            standardize_targets=self.standardize_targets,
        )
        plan = self.model(backend)._plan_fit(self.x, self.y, options)
        assert isinstance(plan.batch_size, int)
        return self._replace(batch_size=plan.batch_size, batch_size_reason=plan.batch_size_reason)

    def new_optimizer(self) -> Optimizer:
        """Return a new optimizer with its schedule."""
        optimizer = get_optimizer(self.optimizer, **self.hyper)
        optimizer.lr = SCHEDULES[self.schedule](optimizer.lr, self.steps, self.warmup)
        return optimizer

    @property
    def steps(self) -> int:
        """Steps of the whole training, if nothing ends it early."""
        rows = row_numbers(len(self.x))
        if check_number("validation_split", self.validation_split, 0.0, 1.0):
            rows, _ = _random_rows.split(len(rows), self.validation_split, self.seed, shuffle=True)
        steps = self.epochs * Batches(self.x, self.y, rows, min(self.batch_size, len(rows)), self.accumulate).steps
        return steps if self.max_steps is None else min(steps, self.max_steps)

    def stopper(self) -> EarlyStopping | None:
        """Return a new callback for early stopping, or None without `patience`."""
        if self.patience is None:
            return None
        monitor = "val_loss" if self.validation_split else "loss"
        return EarlyStopping(monitor, self.patience, restore_best_weights=True)


@dataclass
class Contestant:
    """A model in training on one backend, with its measurements."""

    experiment: Experiment
    backend: str
    epochs: int = 0
    seconds: list[float] = field(default_factory=list)  # of the training pass of every epoch
    rates: list[float] = field(default_factory=list)  # samples per second
    losses: list[float] = field(default_factory=list)  # of every epoch, on the training rows

    def __post_init__(self) -> None:
        self.title = TITLES[self.backend]
        self.model = self.experiment.model(self.backend)
        self.stopper = self.experiment.stopper()
        self.test: dict[str, float] = {}
        self._epochs: Iterator[Mapping[str, float]] | None = None  # of the epochs to come
        self._ended = False  # by a limit
        self._tested: Sequential | None = None  # the model that was tested at the end

    @property
    def done(self) -> bool:
        """True once all epochs were run, or early stopping or a limit has ended the training."""
        return self.epochs == self.experiment.epochs or self.model.stop_training or self._ended

    @property
    def loss(self) -> float:
        """Training loss of the epoch that the weights come from."""
        best = self.stopper.best_epoch if self.stopper else None
        return self.losses[(best or self.epochs) - 1]

    @property
    def step_losses(self) -> list[float]:
        """Losses of the first COMPARED_STEPS steps."""
        history = self.model.history
        return [] if history is None else history.step_losses[:COMPARED_STEPS].tolist()

    @property
    def median_seconds(self) -> float:
        """Median time of an epoch."""
        return statistics.median(self.seconds)

    def warm_up(self, compiles: Callable[[str], None]) -> None:
        """Train, validate and test a throw-away model on one batch, so that nothing is compiled or loaded later.

        `compiles` is called with the name of each kernel that is not in the cache folder.
        """
        plan = self.experiment
        x, y = plan.x[: plan.batch_size], plan.y[: plan.batch_size]
        with compiling(self.backend, compiles):
            plan.model(self.backend).fit(
                x, y, batch_size=plan.batch_size, accumulate=plan.accumulate, validation_data=(x, y), verbose=0,
                standardize_targets=plan.standardize_targets, pruning=plan.pruning,
            )

    def train_epoch(self) -> dict[str, float] | None:
        """Train for one more epoch and return its loss and metrics; None if the training has ended before it."""
        if self._epochs is None:
            self._epochs = self._fit()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", DIVERGED)  # the table of results says so
            logs = next(self._epochs, None)
        history = self.model.history
        assert history is not None
        # with the epochs of a training that goes on
        self.epochs, self._ended, self.losses = len(history), logs is None, history["loss"]
        self.seconds, self.rates = history["seconds"], history["samples_per_second"]
        # the line of an epoch is long enough
        return None if logs is None else {name: value for name, value in logs.items() if name not in LAST}

    def _fit(self) -> Iterator[Mapping[str, float]]:
        """`fit` as an iterator of epochs: its memory on a device stays allocated while other contestants train."""
        plan = self.experiment
        options = FitOptions(
            epochs=plan.epochs,
            batch_size=plan.batch_size,
            validation_split=plan.validation_split,
            callbacks=[self.stopper] if self.stopper else [],
            accumulate=plan.accumulate,
            verbose=0,
            standardize_targets=plan.standardize_targets,
            max_steps=plan.max_steps,
            max_seconds=plan.max_seconds,
            checkpoint=plan.checkpoint,
            checkpoint_every=plan.checkpoint_every,
            resume=plan.resume or None,
            distributed=plan.distributed,
            reduction=plan.reduction,
            pruning=plan.pruning,
        )
        if plan.distributed is not None:
            return run_epochs(self.model, joined(self.model, plan.x, plan.y, options))
        return run_epochs(self.model, self.model._plan_fit(plan.x, plan.y, options))

    def restore_best(self) -> int | None:
        """Restore the best weights that early stopping has kept and return their epoch; None if it has kept none."""
        if self.stopper is None:
            return None
        self.stopper.on_interrupt(self.model)
        return self.stopper.best_epoch

    def finish(self) -> None:
        """Restore the best weights, if early stopping kept some, and test the model."""
        assert self._epochs is not None
        next(self._epochs, None)
        plan, model = self.experiment, self.product()
        self._tested = model
        results = model.evaluate(plan.x_test, plan.y_test)
        self.test = metrics_in_target_units(model, plan.x_test, plan.y_test, results)

    def product(self) -> Sequential:
        """Return the model as it is tested and saved: of integers, with `quantize`."""
        plan = self.experiment
        if plan.quantize is None:
            return self.model
        if self._tested is not None:
            return self._tested
        return compression.quantized(self.model, plan.quantize, plan.x, plan.seed)


def compete(contestants: Sequence[Contestant], show: Callable[[Contestant, dict[str, float]], None]) -> None:
    """Train all contestants to the end, some epochs of each in turn; `show` is called after every epoch."""
    while running := [contestant for contestant in contestants if not contestant.done]:
        if len(contestants) > 1:
            _rest()
        for contestant in running:
            for _ in range(math.ceil(contestant.experiment.epochs / ROUNDS)):
                if not contestant.done and (figures := contestant.train_epoch()) is not None:
                    show(contestant, figures)
    for contestant in contestants:
        contestant.finish()


def _rest() -> None:
    """Sleep until no thread of this process uses its processor, REST_SECONDS at most."""
    end = time.monotonic() + REST_SECONDS
    if time.get_clock_info("process_time").resolution > LOOK_SECONDS / 10:  # on Windows
        time.sleep(REST_SECONDS)
    while time.monotonic() < end:
        before = time.process_time()
        time.sleep(LOOK_SECONDS)
        if time.process_time() - before < LOOK_SECONDS / 5:
            return


def disagreement(a: Sequence[float], b: Sequence[float]) -> float:
    """Return the largest difference between losses of the same step, relative to the larger one.

    >>> disagreement([2.0, 1.0], [2.0, 0.5])
    0.5
    """
    first, second = np.array(a), np.array(b)
    with np.errstate(invalid="ignore"):
        larger = np.maximum(np.abs(first), np.abs(second))
        return float((np.abs(first - second) / np.where(larger == 0, 1, larger)).max())
