"""Callbacks: code of the user that `fit` calls between epochs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ._exclusive import Single
from ._metrics import canonical
from ._validation import check_count, check_flag, check_name, check_number, describe
from .kernels.formulas import METRICS
from .kernels.interrupts import interrupts_held


class Trainable(Protocol):
    """The part of a model that callbacks may rely on: `Sequential` has it, and more."""

    stop_training: bool
    optimizer: Any  # the compiled `Optimizer`

    def get_weights(self) -> list[NDArray[Any]]:
        """Copies of the weights."""

    def set_weights(self, weights: Sequence[ArrayLike]) -> None:
        """Copy weights into the model."""


class Callback:
    """Base class: override what you need.

    `model` is the `Sequential` in training; `epoch` counts from 1; `logs` are the epoch's figures, as in `History`.
    `on_epoch_end` may set `model.stop_training = True` to end the training after this epoch, or change
    `model.optimizer.lr` for the next one. An exception from any method ends `fit`, with model and optimizer as they
    were at that moment; only after Ctrl-C (a KeyboardInterrupt) `on_interrupt` is called.

    >>> class Decay(Callback):
    ...     def on_epoch_end(self, model, epoch, logs):
    ...         model.optimizer.lr *= 0.9
    """

    def check(self, names: Sequence[str]) -> None:
        """Called before anything else, with the names of the figures in the logs; raise ValueError to refuse."""

    def on_train_begin(self, model: Any) -> None:
        """Called once, before the first epoch."""

    def on_epoch_begin(self, model: Any, epoch: int) -> None:
        """Called before every epoch."""

    def on_epoch_end(self, model: Any, epoch: int, logs: Mapping[str, float]) -> None:
        """Called after every epoch, its validation included."""

    def on_train_end(self, model: Any) -> None:
        """Called once, after the last epoch, also if a callback stopped the training early."""

    def on_interrupt(self, model: Any) -> None:
        """Called once if Ctrl-C ends the training within an epoch, before `fit` raises KeyboardInterrupt.

        A further Ctrl-C waits until this returns.
        """

    def used(self) -> AbstractContextManager[None]:
        """Called by `fit`, and open until its end, also by an error; raise RuntimeError to refuse a second training."""
        return nullcontext()


MODES = ("auto", "min", "max")


class EarlyStopping(Callback):
    """Stop when a figure has not improved for `patience` epochs in a row.

    monitor               name of the figure: "loss", "val_loss", any name of a metric, or "val_" and such a name
    patience              number of epochs in a row without improvement (as in Keras; 0 is the same as 1)
    min_delta             a change must be larger than this to be an improvement
    mode                  "min", "max", or "auto": "max" for accuracies and r2, "min" for the rest
    restore_best_weights  put back the weights of the best epoch when the training ends, also by Ctrl-C (but not by
                          another exception); the optimizer's state stays

    After `fit`: `best` (the figure), `best_epoch` and `stopped_epoch` (None if all epochs ran). NaN is never an
    improvement. `fit` raises ValueError, before anything is changed, if `monitor` is not among the figures.

    >>> EarlyStopping("val_accuracy", patience=3).mode
    'max'
    """

    def __init__(
        self,
        monitor: str = "val_loss",
        patience: int = 0,
        min_delta: float = 0.0,
        mode: str = "auto",
        restore_best_weights: bool = False,
    ) -> None:
        if not isinstance(monitor, str):
            raise TypeError(f"monitor must be a string; got {describe(monitor)}")
        check_name("mode", mode, MODES)
        self.monitor = canonical(monitor)
        self.patience = check_count("patience", patience, least=0)
        self.min_delta = check_number("min_delta", min_delta, 0.0)
        metric = METRICS.get(self.monitor.removeprefix("val_"))
        self.mode = mode if mode != "auto" else "max" if metric is not None and metric.rises else "min"
        self.restore_best_weights = check_flag("restore_best_weights", restore_best_weights)
        self._user = Single()
        self._reset()

    def _reset(self) -> None:
        self.best: float | None = None
        self.best_epoch: int | None = None
        self.stopped_epoch: int | None = None
        self._waited = 0
        self._weights: list[NDArray[np.floating]] | None = None

    def check(self, names: Sequence[str]) -> None:
        if self.monitor not in names:
            hint = "; val_... needs validation_split or validation_data" if self.monitor.startswith("val_") else ""
            raise ValueError(f"EarlyStopping cannot monitor {self.monitor!r}; known: {', '.join(names)}{hint}")

    def used(self) -> AbstractContextManager[None]:
        return self._user.taken("this EarlyStopping is watching another training already: give each `fit` its own")

    def on_train_begin(self, model: Trainable) -> None:
        self._reset()

    def on_epoch_end(self, model: Trainable, epoch: int, logs: Mapping[str, float]) -> None:
        value = logs[self.monitor]
        if self._improves(value):
            weights = model.get_weights() if self.restore_best_weights else None
            with interrupts_held():  # value and weights are of the same epoch, even after an interrupt
                self.best, self.best_epoch, self._waited, self._weights = value, epoch, 0, weights
            return
        self._waited += 1
        if self._waited >= max(1, self.patience):
            self.stopped_epoch = epoch
            model.stop_training = True

    def on_train_end(self, model: Trainable) -> None:
        self._restore(model)

    def on_interrupt(self, model: Trainable) -> None:
        self._restore(model)

    def _restore(self, model: Trainable) -> None:
        if self._weights is not None:
            model.set_weights(self._weights)
            self._weights = None

    def _improves(self, value: float) -> bool:
        if self.best is None:
            return value == value
        return value - self.min_delta > self.best if self.mode == "max" else value + self.min_delta < self.best
