"""Callbacks that watch a figure: each compares the epoch's value with the best one before."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._exclusive import Single
from .._metrics import among, canonical, rises
from .._validation import check_count, check_flag, check_name, check_number, describe
from ..kernels.interrupts import interrupts_held
from ..kernels.loss_rule import LossRule
from .base import Callback, Trainable

MODES = ("auto", "min", "max")


class MonitorCallback(Callback):
    """Base of callbacks that watch a figure.

    monitor    name of the figure: "loss", "val_loss", any name of a metric, or "val_" and such a name
    mode       "min", "max", or "auto": "max" for metrics that rise as predictions become better, "min" for the rest
    min_delta  a change must be larger than this to be an improvement

    verbose    1: say what the callback does, on the standard output

    `best` is the best value so far, None before the first; NaN is never an improvement. Logs lack "val_..." in epochs
    that are not validated (`validation_freq`): they do not count. `fit` raises ValueError, before anything is changed,
    if `monitor` is not among the figures, and RuntimeError if the callback is in use already.

    >>> class Announce(MonitorCallback):
    ...     def on_epoch_end(self, model, epoch, logs):
    ...         if self.monitor in logs and self.improves(logs[self.monitor]):
    ...             self.best = logs[self.monitor]
    >>> announce = Announce("val_accuracy")
    >>> announce.mode, announce.improves(0.5), announce.is_better(0.5, than=0.6)
    ('max', True, False)
    """

    reads_weights = False
    verbose, _given = 0, ""  # also of an older pickle

    def __init__(self, monitor: str = "val_loss", mode: str = "auto", min_delta: float = 0.0, verbose: int = 0) -> None:
        if not isinstance(monitor, str):
            raise TypeError(f"monitor must be a string; got {describe(monitor)}")
        check_name("mode", mode, MODES)
        self._given = monitor
        self.monitor = canonical(monitor)
        self.mode = mode if mode != "auto" else "max" if rises(self.monitor.removeprefix("val_")) else "min"
        self.min_delta = check_number("min_delta", min_delta, 0.0)
        if verbose not in (0, 1):
            raise ValueError(f"verbose must be 0 or 1; got {verbose!r}")
        self.verbose = int(verbose)
        self.best: float | None = None
        self._user = Single()

    def check(self, names: Sequence[str]) -> None:
        self.monitor = among(self._given or self.monitor, names)
        if self.monitor not in names:
            hint = "; val_... needs validation_split or validation_data" if self.monitor.startswith("val_") else ""
            name = type(self).__name__
            raise ValueError(f"{name} cannot monitor {self.monitor!r}; known: {', '.join(names)}{hint}")

    def say(self, epoch: int, text: str) -> None:
        """Print what has happened in an epoch, if the callback is verbose."""
        if self.verbose:
            print(f"epoch {epoch}: {text}", flush=True)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.best = state["best"]

    def used(self) -> AbstractContextManager[None]:
        name = type(self).__name__
        return self._user.taken(f"this {name} is watching another training already: give each `fit` its own")

    def is_better(self, value: float, than: float) -> bool:
        """True if a value is better than another one by more than `min_delta`."""
        return value - self.min_delta > than if self.mode == "max" else value + self.min_delta < than

    def improves(self, value: float) -> bool:
        """True if a value is better than the best one so far, by more than `min_delta`."""
        return value == value if self.best is None else self.is_better(value, self.best)


class EarlyStopping(MonitorCallback):
    """Stop when a figure has not improved for `patience` epochs in a row, or when it has reached a threshold.

    monitor               name of the figure: "loss", "val_loss", any name of a metric, or "val_" and such a name
    patience              number of epochs in a row without improvement (as in Keras; 0 is the same as 1). With a
                          `threshold` the default is None: only the threshold stops the training
    min_delta             a change must be larger than this to be an improvement
    mode                  "min", "max", or "auto": "max" for metrics that rise as predictions become better (accuracies,
                          precision, recall, f1, r2, ROC AUC), "min" for the rest
    restore_best_weights  put back the weights of the best epoch when the training ends, also by Ctrl-C (but not by
                          another exception); the optimizer's state stays
    baseline              as in Keras: an improvement ends the waiting only where the figure is better than this, too
    start_from_epoch      epochs up to this number are not looked at
    threshold             stop as soon as the figure has reached this: is as large or larger (mode "max"), or as small
                          or smaller ("min")
    verbose               1: say so when the training is stopped, and of which epoch weights are put back

    After `fit`: `best` (the figure), `best_epoch` and `stopped_epoch` (None if all epochs ran). NaN is never an
    improvement; epochs without validation (`validation_freq`) do not count for "val_...". `fit` raises ValueError,
    before anything is changed, if `monitor` is not among the figures.

    >>> EarlyStopping("val_accuracy", patience=3).mode
    'max'
    >>> EarlyStopping("val_loss", threshold=0.1).patience is None
    True
    """

    def __init__(
        self,
        monitor: str = "val_loss",
        patience: int | None = None,
        min_delta: float = 0.0,
        mode: str = "auto",
        restore_best_weights: bool = False,
        baseline: float | None = None,
        start_from_epoch: int = 0,
        threshold: float | None = None,
        verbose: int = 0,
    ) -> None:
        super().__init__(monitor, mode, min_delta, verbose)
        self.baseline = None if baseline is None else check_number("baseline", baseline, -math.inf)
        self.threshold = None if threshold is None else check_number("threshold", threshold, -math.inf)
        if patience is None and self.threshold is None:
            patience = 0
        self.patience = None if patience is None else check_count("patience", patience, least=0)
        self.start_from_epoch = check_count("start_from_epoch", start_from_epoch, least=0)
        self.restore_best_weights = check_flag("restore_best_weights", restore_best_weights)
        self._reset()

    def _reset(self) -> None:
        self.best: float | None = None
        self.best_epoch: int | None = None
        self.stopped_epoch: int | None = None
        self._waited = 0
        self._weights: tuple[list[NDArray[np.floating]], ...] | None = None  # and their averages

    def on_train_begin(self, model: Trainable) -> None:
        self._reset()

    def on_epoch_end(self, model: Trainable, epoch: int, logs: Mapping[str, float]) -> None:
        if epoch <= self.start_from_epoch or self.monitor not in logs:
            return
        value = logs[self.monitor]
        improved = self.improves(value)
        if improved:
            ends_waiting = self.baseline is None or self.is_better(value, self.baseline)
            waited = 0 if ends_waiting else self._waited + 1
            weights = _weights_of(model) if self.restore_best_weights else None
            with interrupts_held():  # value and weights are of the same epoch, even after an interrupt
                self.best, self.best_epoch, self._waited, self._weights = value, epoch, waited, weights
        else:
            self._waited += 1
        waits_no_longer = not improved and self.patience is not None and self._waited >= max(1, self.patience)
        if waits_no_longer or self._reached(value):
            self.stopped_epoch = epoch
            model.stop_training = True
            self.say(epoch, f"the training stops, {self.monitor} is {value:.6g}, the best was {self._best_words}")

    @property
    def _best_words(self) -> str:
        return "none" if self.best is None else f"{self.best:.6g} of epoch {self.best_epoch}"

    def _loss_rule(self) -> LossRule | None:
        waits_alone = (
            self.patience is not None and self.threshold is None and self.baseline is None
            and not self.restore_best_weights and not self.start_from_epoch
        )  # fmt: skip
        is_plain = type(self) is EarlyStopping and "on_epoch_end" not in vars(self)
        if not (is_plain and waits_alone and self.monitor == "loss" and self.mode == "min"):
            return None
        assert self.patience is not None
        best = math.inf if self.best is None else self.best
        return LossRule(self.min_delta, max(1, self.patience), best, self._waited)

    def _reached(self, value: float) -> bool:
        if self.threshold is None:
            return False
        return value >= self.threshold if self.mode == "max" else value <= self.threshold

    def state_dict(self) -> dict[str, Any]:
        return {
            "best": self.best, "best_epoch": self.best_epoch, "stopped_epoch": self.stopped_epoch,
            "waited": self._waited, "weights": self._weights,
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.best, self.best_epoch, self.stopped_epoch = (state[k] for k in ("best", "best_epoch", "stopped_epoch"))
        self._waited, self._weights = state["waited"], state["weights"]

    def on_train_end(self, model: Trainable) -> None:
        self._restore(model)

    def on_interrupt(self, model: Trainable) -> None:
        self._restore(model)

    def _restore(self, model: Trainable) -> None:
        if self._weights is not None:
            model.set_weights(*self._weights)
            self._weights = None
            assert self.best_epoch is not None
            self.say(self.best_epoch, "its weights are put back")


def _weights_of(model: Trainable) -> tuple[list[NDArray[Any]], ...]:
    """The arguments of `set_weights` that bring the model's weights back, with their averages over steps."""
    # a protocol's model need not know of averages
    averages = model.get_averages() if hasattr(model, "get_averages") else None
    return (model.get_weights(),) if averages is None else (model.get_weights(), averages)


class ReduceLROnPlateau(MonitorCallback):
    """Multiply the learning rate by `factor` when a figure has not improved for `patience` epochs in a row.

    monitor    name of the figure: "loss", "val_loss", any name of a metric, or "val_" and such a name
    factor     in [0, 1)
    patience   number of epochs in a row without improvement (0 is the same as 1)
    mode       "min", "max" or "auto", as of `EarlyStopping`
    min_delta  a change must be larger than this to be an improvement
    cooldown   epochs after a reduction in which none is counted
    min_lr     the rate never falls below this
    verbose    1: say so when the rate is reduced

    Names and defaults are Keras's. `history["lr"]` has the rates. `fit` raises ValueError, before it trains, where the
    optimizer's lr is a schedule: that sets the rate of every step itself.

    >>> plateau = ReduceLROnPlateau("val_accuracy", factor=0.5, patience=3)
    >>> plateau.mode, plateau.min_delta
    ('max', 0.0001)
    """

    def __init__(
        self,
        monitor: str = "val_loss",
        factor: float = 0.1,
        patience: int = 10,
        mode: str = "auto",
        min_delta: float = 1e-4,
        cooldown: int = 0,
        min_lr: float = 0.0,
        verbose: int = 0,
    ) -> None:
        super().__init__(monitor, mode, min_delta, verbose)
        self.factor = check_number("factor", factor, 0.0, 1.0)
        self.patience = check_count("patience", patience, least=0)
        self.cooldown = check_count("cooldown", cooldown, least=0)
        self.min_lr = check_number("min_lr", min_lr, 0.0)
        self._waited = self._cooling = 0

    def on_train_begin(self, model: Trainable) -> None:
        lr = model.optimizer.param_groups[0]["lr"]
        if callable(lr):
            raise ValueError(f"ReduceLROnPlateau lowers a constant learning rate; got an optimizer whose lr is {lr!r}")
        self.best, self._waited, self._cooling = None, 0, 0

    def on_epoch_end(self, model: Trainable, epoch: int, logs: Mapping[str, float]) -> None:
        value = logs.get(self.monitor)
        if value is None:
            return
        if self._cooling:
            self._cooling -= 1
            self._waited = 0
        if self.improves(value):
            self.best, self._waited = value, 0
        elif not self._cooling:
            self._waited += 1
            rate = model.optimizer.lr
            if self._waited >= self.patience and rate > self.min_lr:
                model.optimizer.lr = max(rate * self.factor, self.min_lr)
                self._waited, self._cooling = 0, self.cooldown
                self.say(epoch, f"the learning rate is {model.optimizer.lr:.6g} from now on")

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "waited": self._waited, "cooling": self._cooling}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.best, self._waited, self._cooling = state["best"], state["waited"], state["cooling"]


class _Figures(dict[str, float]):
    """Figures by any of their names, for `str.format_map`."""

    def __missing__(self, name: str) -> float:
        known = canonical(name)
        if known in self:
            return self[known]
        raise KeyError(name)


class ModelCheckpoint(MonitorCallback):
    """Save the model after epochs, or after every n steps; or only if a figure has become better.

    filepath        name of the file: "model.safetensors", or one with fields in braces, as of `str.format`: {epoch},
                    {step} where save_freq is a number, and figures: "{epoch:03d}-{val_loss:.4f}.safetensors". Files are
                    those of `model.save`: written in one step, with the optimizer, so that training can go on from
                    them; one that is there is replaced. Folders are made
    monitor         name of the figure that `save_best_only` watches
    save_best_only  True: save only when the figure is better than ever before in this training
    mode            "min", "max" or "auto", as of `EarlyStopping`
    save_freq       "epoch", after every epoch; "5 epochs", after every fifth; or n: after every n steps
    initial_value_threshold  the figure must be better than this for a first file of `save_best_only`
    save_weights_only  True: files without the optimizer, a third of the size for Adam: `load_model` gives a model that
                    predicts, and `load_weights` reads them
    verbose         1: name each file that is written

    Names and defaults are Keras's. After `fit`: `best` (the figure), and `path`, of the file last written (None: none).
    `fit` raises ValueError, before anything is changed, for fields and figures that are unknown.

    >>> ModelCheckpoint("best.safetensors", "val_accuracy", save_best_only=True).mode
    'max'
    """

    writes_files = True

    def __init__(
        self,
        filepath: str | os.PathLike[str],
        monitor: str = "val_loss",
        save_best_only: bool = False,
        mode: str = "auto",
        save_freq: str | int = "epoch",
        initial_value_threshold: float | None = None,
        save_weights_only: bool = False,
        verbose: int = 0,
    ) -> None:
        super().__init__(monitor, mode, verbose=verbose)
        if not isinstance(filepath, str | os.PathLike) or not isinstance(os.fspath(filepath), str):
            raise TypeError(f"filepath must be a str or a path; got {describe(filepath)}")
        self.filepath = os.fspath(filepath)
        self.save_best_only = check_flag("save_best_only", save_best_only)
        self.every_epochs, self.every_steps = _frequency(save_freq)
        if self.save_best_only and self.every_steps:
            raise ValueError(f"save_best_only compares figures of epochs: save_freq must be epochs; got {save_freq}")
        if initial_value_threshold is not None:
            check_number("initial_value_threshold", initial_value_threshold, -math.inf)
        self.initial_value_threshold = initial_value_threshold
        self.save_weights_only = check_flag("save_weights_only", save_weights_only)
        self.path: str | None = None
        self._names: list[str] = []
        self._epoch = 0

    def check(self, names: Sequence[str]) -> None:
        if self.save_best_only:
            super().check(names)
        known = ["epoch", "step", "loss", "lr"] if self.every_steps else ["epoch", *names]
        self._names = known
        try:
            self._name(dict.fromkeys(known, 1))
        except (KeyError, IndexError, ValueError, AttributeError, TypeError) as error:
            raise ValueError(
                f"the fields of filepath must be among {', '.join(known)}; got {self.filepath!r} ({error})"
            ) from None

    def on_train_begin(self, model: Trainable) -> None:
        self.best, self.path, self._epoch = self.initial_value_threshold, None, 0

    def on_epoch_begin(self, model: Trainable, epoch: int) -> None:
        self._epoch = epoch

    def on_step_end(self, model: Trainable, step: int, logs: Mapping[str, float]) -> None:
        self._save(model, {**logs, "epoch": self._epoch, "step": step})

    def on_epoch_end(self, model: Trainable, epoch: int, logs: Mapping[str, float]) -> None:
        if not self.every_epochs or epoch % self.every_epochs:
            return
        if self.save_best_only:
            if self.monitor not in logs or not self.improves(logs[self.monitor]):
                return
            self.best = logs[self.monitor]
        self._save(model, {**logs, "epoch": epoch})

    def _name(self, figures: Mapping[str, float]) -> str:
        return self.filepath.format_map(_Figures(figures))

    def _save(self, model: Trainable, figures: Mapping[str, float]) -> None:
        path = self._name({**dict.fromkeys(self._names, math.nan), **figures})  # some epochs have no val_...
        if folder := os.path.dirname(path):
            os.makedirs(folder, exist_ok=True)
        model.save(path, **{"weights_only": True} if self.save_weights_only else {})
        self.path = path
        self.say(self._epoch, f"the model is in {path}")

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "path": self.path, "epoch": self._epoch}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.best, self.path, self._epoch = state["best"], state["path"], state["epoch"]


def _frequency(save_freq: Any) -> tuple[int | None, int | None]:
    """Number of epochs, and of steps, between two files; one of them is None.

    >>> _frequency("epoch"), _frequency("5 epochs"), _frequency(100)
    ((1, None), (5, None), (None, 100))
    """
    if not isinstance(save_freq, str):
        return None, check_count("save_freq", save_freq)
    found = re.fullmatch(r"epoch|([1-9]\d*) epochs?", save_freq)
    if not found:
        raise ValueError(f'save_freq must be "epoch", "n epochs" or a number of steps; got {save_freq!r}')
    return int(found[1] or 1), None
