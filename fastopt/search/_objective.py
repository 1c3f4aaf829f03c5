"""The objective of a search: a network of a trial's settings, trained on every fold."""

from __future__ import annotations

from typing import Any

import numpy as np

from .._metrics import rises
from .._task import FIT, Task
from .._validation import check_count, describe
from ..callbacks import Callback, EarlyStopping
from ..models.sequential import Sequential
from ..models.training import FitOptions
from ._options import Options
from ._pruning import PruningCallback
from ._space import Space


class Objective:
    """The score of a trial of Optuna's: the mean figure of the networks of its settings over all folds."""

    def __init__(self, task: Task, space: Space, options: Options, monitor: str, folds: list[Any]) -> None:
        self._task, self._space, self._options, self._monitor = task, space, options, monitor
        self._folds = folds
        self._most_epochs = max(check_count("epochs", value) for value in space.values("epochs", options.epochs))
        metric = monitor.removeprefix("val_")
        if options.build is None and metric != "loss" and metric not in task.metrics:
            self._task = task._replace(metrics=(*task.metrics, metric))

    def check(self) -> None:
        """Raise TypeError or ValueError for settings that no network has, and for a figure that it lacks."""
        if self._options.build is None:
            for settings in self._space.examples():
                model = self._task.model(settings)
                FitOptions(**{name: settings[name] for name in FIT if name in settings})
            if self._monitor.removeprefix("val_") not in ("loss", *model.metrics):
                raise ValueError(f"monitor must be val_loss, or val_ and a metric; got {self._monitor!r}")

    def build(self, settings: dict[str, Any]) -> Sequential:
        """A new compiled model of some settings."""
        if self._options.build is None:
            return self._task.model(settings)
        model = self._options.build(dict(settings))
        if not isinstance(model, Sequential) or model.loss is None:
            raise TypeError(f"build must return a Sequential that is compiled; got {describe(model)}")
        return model

    def __call__(self, trial: Any) -> float:
        settings, scores = self._space.suggest(trial), []
        for number, (train, test) in enumerate(self._folds):
            scores.append(self._score(trial, settings, number, train, test))
        trial.set_user_attr("scores", scores)
        return float(np.mean(scores))

    def _score(self, trial: Any, settings: dict[str, Any], fold: int, train: np.ndarray, test: np.ndarray) -> float:
        """The figure of the last epoch, or the best one where patience ends the training."""
        # steps of folds do not overlap, so that the pruner compares the same epoch of the same fold
        reported: Any = trial if self._options.prune else _Unpruned()
        callbacks: list[Callback] = [PruningCallback(reported, self._monitor, fold * self._most_epochs)]
        if self._options.patience is not None:
            callbacks.append(EarlyStopping(self._monitor, self._options.patience))
        (x, y), validation = self._task.of(train), self._task.of(test)
        options = {"epochs": self._options.epochs, **{name: settings[name] for name in FIT if name in settings}}
        history = self.build(settings).fit(
            x, y, validation_data=validation, callbacks=callbacks, verbose=0,
            standardize_targets=self._task.standardizes_targets, **options,
        )  # fmt: skip
        figures = history[self._monitor]
        if self._options.patience is None:
            return figures[-1]
        return max(figures) if rises(self._monitor.removeprefix("val_")) else min(figures)


class _Unpruned:
    """A trial that is never given up. Its epochs are not reported: SQLite takes some 20 ms for each."""

    def report(self, value: float, step: int) -> None:
        pass

    def should_prune(self) -> bool:
        return False
