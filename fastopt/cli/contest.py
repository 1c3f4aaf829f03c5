"""Training for `fastopt train`: one model, or the same model on several backends in turn.

All contestants start from the same weights and see the same batches, because both follow from the seed. They take turns
of a few epochs, so that whatever else the machine does meets all of them alike.
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
from ..kernels.formulas import LOSSES
from ..kernels.spec import Batches
from ..layers import Dense, Dropout, Layer
from ..models.sequential import Sequential
from ..models.training import DIVERGED, FitOptions, compiling, run_epochs
from ..optim import Optimizer, get_optimizer
from ..preprocessing import Normalization
from .figures import in_own_units
from .rates import SCHEDULES

TITLES = {"cpu": "compiled kernels", "cuda": "CUDA kernels", "numpy": "NumPy reference"}
COMPARED_STEPS = 100
TURNS = 6
# Seconds before a round. The threads of NumPy's BLAS go on spinning for 0.1 s after their last product, and while they
# hold a processor, kernels on all of them took ten times as long (64-128-64-10, batches of 64, 2 processors).
REST = 0.15


class Experiment(NamedTuple):
    """What is trained, and how: everything but the backend."""

    x: np.ndarray  # (rows, features)
    y: np.ndarray  # what the loss takes
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

    def model(self, backend: str) -> Sequential:
        """Return a new model, built and compiled."""
        layers: list[Layer] = [Normalization()] if self.standardize else []
        for width in self.hidden:
            layers.append(Dense(width, self.activation))
            if self.dropout:
                layers.append(Dropout(self.dropout))
        layers.append(Dense(self.outputs, LOSSES[self.loss].link or "linear"))
        model = Sequential(layers, self.seed, backend, self.dtype, self.x.shape[1], self.compute_dtype)
        model.compile(self.new_optimizer(), self.loss, self.metrics)
        model.classes, model.preparation = self.labels, self.preparation
        return model

    def new_optimizer(self) -> Optimizer:
        """Return a new optimizer with its schedule."""
        optimizer = get_optimizer(self.optimizer, **self.hyper)
        optimizer.lr = SCHEDULES[self.schedule](optimizer.lr, self.steps, self.warmup)
        return optimizer

    @property
    def steps(self) -> int:
        """Steps of the whole training, if nothing ends it early."""
        rows = np.arange(len(self.x))
        if check_number("validation_split", self.validation_split, 0.0, 1.0):
            rows, _ = _random_rows.split(len(rows), self.validation_split, self.seed, shuffle=True)
        return self.epochs * Batches(self.x, self.y, rows, min(self.batch_size, len(rows)), self.accumulate).steps

    def stopper(self) -> EarlyStopping | None:
        """Return what watches for the end, if there is to be such a thing."""
        if self.patience is None:
            return None
        monitor = "val_loss" if self.validation_split else "loss"
        return EarlyStopping(monitor, self.patience, restore_best_weights=True)


@dataclass
class Contestant:
    """A model in training, and what was measured."""

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
        self._figures: Iterator[Mapping[str, float]] | None = None  # of the epochs to come

    @property
    def done(self) -> bool:
        """Whether all epochs were run, or early stopping ended them."""
        return self.epochs == self.experiment.epochs or self.model.stop_training

    @property
    def loss(self) -> float:
        """The training loss of the epoch that the weights come from."""
        best = self.stopper.best_epoch if self.stopper else None
        return self.losses[(best or self.epochs) - 1]

    @property
    def step_losses(self) -> list[float]:
        """The losses of the first COMPARED_STEPS steps."""
        history = self.model.history
        return [] if history is None else history.step_losses[:COMPARED_STEPS].tolist()

    @property
    def median_seconds(self) -> float:
        """The median time of an epoch."""
        return statistics.median(self.seconds)

    def warm_up(self, compiles: Callable[[str], None]) -> None:
        """Train, validate and test a throw-away model on one batch, so that nothing is compiled or loaded later.

        `compiles` hears the name of each kernel that is not in the cache folder.
        """
        plan = self.experiment
        x, y = plan.x[: plan.batch_size], plan.y[: plan.batch_size]
        with compiling(self.backend, compiles):
            plan.model(self.backend).fit(
                x, y, batch_size=plan.batch_size, accumulate=plan.accumulate, validation_data=(x, y), verbose=0,
                standardize_targets=plan.standardize_targets,
            )

    def train_epoch(self) -> dict[str, float]:
        """Train for one more epoch and return its figures."""
        if self._figures is None:
            self._figures = self._fit()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", DIVERGED)  # the result will say so
            logs = dict(next(self._figures))
        self.epochs += 1
        self.seconds.append(logs.pop("seconds"))
        self.rates.append(logs.pop("samples_per_second"))
        self.losses.append(logs["loss"])
        return logs

    def _fit(self) -> Iterator[Mapping[str, float]]:
        """`fit`, epoch by epoch: what it makes on the device stays there while others have their turn."""
        plan = self.experiment
        options = FitOptions(
            epochs=plan.epochs,
            batch_size=plan.batch_size,
            validation_split=plan.validation_split,
            callbacks=[self.stopper] if self.stopper else [],
            accumulate=plan.accumulate,
            verbose=0,
            standardize_targets=plan.standardize_targets,
        )
        return run_epochs(self.model, self.model._plan_fit(plan.x, plan.y, options))

    def take_best(self) -> int | None:
        """Take the best weights that early stopping has kept, and return their epoch; None: it has kept none."""
        if self.stopper is None:
            return None
        self.stopper.on_interrupt(self.model)
        return self.stopper.best_epoch

    def finish(self) -> None:
        """Take the best weights, where early stopping kept some, and test the model."""
        assert self._figures is not None
        next(self._figures, None)
        plan = self.experiment
        self.test = in_own_units(self.model, plan.x_test, plan.y_test, self.model.evaluate(plan.x_test, plan.y_test))


def compete(contestants: Sequence[Contestant], show: Callable[[Contestant, dict[str, float]], None]) -> None:
    """Train all to the end, some epochs of each in turn; `show` hears of every epoch and its figures."""
    while running := [contestant for contestant in contestants if not contestant.done]:
        if len(contestants) > 1:
            time.sleep(REST)
        for contestant in running:
            for _ in range(math.ceil(contestant.experiment.epochs / TURNS)):
                if not contestant.done:
                    show(contestant, contestant.train_epoch())
    for contestant in contestants:
        contestant.finish()


def disagreement(a: Sequence[float], b: Sequence[float]) -> float:
    """Return the largest difference between losses of the same step, relative to the larger one.

    >>> disagreement([2.0, 1.0], [2.0, 0.5])
    0.5
    """
    first, second = np.array(a), np.array(b)
    with np.errstate(invalid="ignore"):
        larger = np.maximum(np.abs(first), np.abs(second))
        return float((np.abs(first - second) / np.where(larger == 0, 1, larger)).max())
