"""The objective of a search: a network of a trial's settings, trained on every fold."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .._metrics import rises
from .._task import FIT, Task
from .._validation import check_count, describe
from ..callbacks import Callback, EarlyStopping
from ..kernels.cpu.runtime.launch import get_num_threads
from ..models.many import fit_many
from ..models.sequential import Sequential
from ..models.training import FitOptions
from ._options import Options
from ._optuna import optuna
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
                try:
                    model = self._task.model(settings)
                    FitOptions(**{name: settings[name] for name in FIT if name in settings})
                except (TypeError, ValueError) as error:
                    tried = ", ".join(f"{name}={value!r}" for name, value in settings.items())
                    raise type(error)(f"{error} (in a trial with {tried})") from error
            if self._monitor.removeprefix("val_") not in ("loss", *model.metrics, *model.metric_functions):
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
        settings = self._space.suggest(trial)
        if self._trains_together:
            scores = self._scores(settings)
        else:
            found = [self._score(trial, settings, number, *rows) for number, rows in enumerate(self._folds)]
            scores = [score for score, _ in found]
            if self._options.patience is not None:
                trial.set_user_attr("epochs", [epochs for _, epochs in found])
        trial.set_user_attr("scores", scores)
        return float(np.mean(scores))

    @property
    def _trains_together(self) -> bool:
        """True if nobody looks at epochs, and folds are enough to keep all threads busy: each model has one.

        3 folds of 64 features and layers of 64 and 32 took 0.90 of the time of one after the other on 2 cores, those of
        784 features and a layer of 16 took 0.60, and those of layers of 512 and 256 took 1.17.
        """
        looks = self._options.prune or self._options.patience is not None
        return not looks and len(self._folds) >= get_num_threads()

    def _scores(self, settings: dict[str, Any]) -> list[float]:
        """The figures of the last epoch on all folds, whose networks are trained in one call; TrialPruned for NaN."""
        models = [self.build(settings) for _ in self._folds]
        histories = fit_many(
            models, self._task.x, self._task.y, rows=[train for train, _ in self._folds], verbose=0,
            standardize_targets=self._task.standardizes_targets, **self._fit_options(settings),
        )  # fmt: skip
        scores = []
        for model, history, (_, test) in zip(models, histories, self._folds, strict=True):
            name = self._monitor.removeprefix("val_")
            has_diverged = not math.isfinite(history["loss"][-1])
            score = math.nan if has_diverged else model.evaluate(*self._task.of(test))[name]
            if not math.isfinite(score):
                raise optuna.TrialPruned(f"{self._monitor} is {score:g} in epoch {len(history.epochs)}")
            scores.append(score)
        return scores

    def _fit_options(self, settings: dict[str, Any]) -> dict[str, Any]:
        return {"epochs": self._options.epochs, **{name: settings[name] for name in FIT if name in settings}}

    def _score(
        self, trial: Any, settings: dict[str, Any], fold: int, train: np.ndarray, test: np.ndarray
    ) -> tuple[float, int]:
        """The figure of the last epoch, or the best one where patience ends the training; and the epoch's number."""
        # steps of folds do not overlap, so that the pruner compares the same epoch of the same fold
        reported: Any = trial if self._options.prune else _Unpruned()
        callbacks: list[Callback] = [PruningCallback(reported, self._monitor, fold * self._most_epochs)]
        if self._options.patience is not None:
            callbacks.append(EarlyStopping(self._monitor, self._options.patience))
        (x, y), validation = self._task.of(train), self._task.of(test)
        history = self.build(settings).fit(
            x, y, validation_data=validation, callbacks=callbacks, verbose=0,
            standardize_targets=self._task.standardizes_targets, **self._fit_options(settings),
        )  # fmt: skip
        figures = history[self._monitor]
        if self._options.patience is None:
            return figures[-1], len(figures)
        best = max(figures) if rises(self._monitor.removeprefix("val_")) else min(figures)
        return best, list(figures).index(best) + 1


class _Unpruned:
    """A trial that is never given up. Its epochs are not reported: SQLite takes some 20 ms for each."""

    def report(self, value: float, step: int) -> None:
        pass

    def should_prune(self) -> bool:
        return False
