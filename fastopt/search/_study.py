"""Optuna's study of a search: new or gone on with, its sampler, and the trials that are left."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping
from typing import Any

from .._metrics import rises
from .._task import Task, digest_of, sample_of
from .._validation import describe
from ._options import Options
from ._optuna import optuna
from ._space import Space

EXAMPLE = "sqlite:///trials.db"
ATTEMPTS = 3  # to open a database
MADE_TWICE = ("already exists", "alembic_version")  # words of errors: a table, or the row of its version
FINISHED = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
BEGUN = (optuna.trial.TrialState.RUNNING, optuna.trial.TrialState.WAITING)


class GridSampler(optuna.samplers.GridSampler):
    """Optuna's sampler, which does not expect trials from the queue."""

    def after_trial(self, study: Any, trial: Any, state: Any, values: Any) -> None:
        if "grid_id" in trial.system_attrs:
            super().after_trial(study, trial, state, values)


class Trials:
    """Count of the trials of a search that are left, those of other processes among the finished ones."""

    def __init__(self, study: Any, count: int) -> None:
        self._study, self._count = study, count
        self.total = count

    def left(self) -> int:
        """Number of trials to be run."""
        return max(0, self._count - len(self._study.get_trials(deepcopy=False, states=FINISHED)))

    def enqueue(self) -> None:
        """Put trials into the queue of the study that its sampler would leave out."""

    def __call__(self, study: Any, trial: Any) -> None:
        """Called by Optuna after a trial: the end of the search with the last one."""
        if not self.left():
            study.stop()


class GridTrials(Trials):
    """The same for a grid: a point is left until a trial of it is finished.

    Optuna's GridSampler hands out each point once, and counts trials that an error or an interrupt has ended as done:
    their points are put into the queue.
    """

    def __init__(self, study: Any, grid: Mapping[str, list[Any]]) -> None:
        self._names = list(grid)
        self._points = list(itertools.product(*grid.values()))
        super().__init__(study, len(self._points))

    def _missing(self, *states: Any) -> list[tuple[Any, ...]]:
        trials = self._study.get_trials(deepcopy=False, states=states)
        found = {tuple(trial.params.get(name) for name in self._names) for trial in trials}
        # of trials in the queue
        fixed = [trial.system_attrs.get("fixed_params", {}) for trial in trials]
        found |= {tuple(params.get(name) for name in self._names) for params in fixed}
        return [point for point in self._points if point not in found]

    def left(self) -> int:
        return len(self._missing(*FINISHED))

    def enqueue(self) -> None:
        missing = self._missing(*FINISHED, *BEGUN)
        if len(self._study.get_trials(deepcopy=False)) < len(self._points):  # the sampler has points yet
            not_failed = self._missing(optuna.trial.TrialState.FAIL)
            missing = [point for point in missing if point not in not_failed]
        for point in missing:
            self._study.enqueue_trial(dict(zip(self._names, point, strict=True)))


def _opened(storage: Any) -> Any:
    """The storage of a URL; ValueError for one that cannot be opened.

    Two processes that make a new database at the same time get into each other's way: the later one opens it again.
    """
    if storage is not None and not isinstance(storage, str | optuna.storages.BaseStorage):
        raise TypeError(f"storage must be a URL such as {EXAMPLE!r}, or a storage of Optuna's; got {describe(storage)}")
    if not isinstance(storage, str):
        return storage
    if "://" not in storage:
        raise ValueError(f"storage must be a URL such as {EXAMPLE!r}; got {storage!r}")
    for attempt in range(ATTEMPTS):
        try:
            return optuna.storages.get_storage(storage)
        except ImportError:  # of the database's driver
            raise
        except Exception as error:  # SQLAlchemy's, of which there are many
            if not any(words in str(error) for words in MADE_TWICE) or attempt == ATTEMPTS - 1:
                reason = str(error).partition("\n")[0]
                raise ValueError(f"the storage {storage!r} cannot be opened: {reason}") from error
            time.sleep(1.0)
    return None


def open_study(task: Task, space: Space, options: Options, monitor: str, grid: Any, folds: list[Any]) -> Any:
    """A new study, or the one of this name that the storage has, if it is of the same search."""
    direction: Any = "maximize" if rises(monitor.removeprefix("val_")) else "minimize"
    pruner = optuna.pruners.MedianPruner() if options.prune else optuna.pruners.NopPruner()
    made: dict[str, Any] = {"storage": _opened(options.storage), "study_name": options.name, "pruner": pruner}
    try:
        study = optuna.create_study(direction=direction, sampler=_sampler(options, grid, task.seed), **made)
    except optuna.exceptions.DuplicatedStudyError:
        if not options.resume:
            raise ValueError(
                f"the storage has a study {options.name!r} already: go on with it by resume=True (--resume), or give"
                " another name"
            ) from None
        study = optuna.load_study(sampler=_sampler(options, grid, None), **made)
    train, test = folds[0]
    this = {
        "space": space.describe(), "monitor": monitor, "rows": task.rows, "loss": task.loss, "epochs": options.epochs,
        "folds": [len(folds), len(train), len(test)], "seed": task.seed, "standardize": task.standardize,
        "dtype": task.dtype, "patience": options.patience,
        "data": digest_of(task.y, sample_of(task.x), *itertools.chain.from_iterable(folds)),
    }  # fmt: skip
    before = study.user_attrs.get("search")
    if before is None:
        study.set_user_attr("search", this)
    for name, value in (before or {}).items():
        if name in this and this[name] != value:
            raise ValueError(
                f"the study {options.name!r} is of another search: its {name} is {value}, not {this.get(name)}"
            )
    return study


def _sampler(options: Options, grid: Any, seed: int | None) -> Any:
    """Optuna's sampler; seed: None for one that goes on, which would else draw the first trials once more."""
    if grid is not None:
        return GridSampler(grid, seed=0)  # the order of the points must be that of other processes
    return optuna.samplers.TPESampler(seed=seed) if options.sampler == "tpe" else optuna.samplers.RandomSampler(seed)
