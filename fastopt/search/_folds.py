"""Folds of a search: the rows that its networks train on, and those that validate them."""

from __future__ import annotations

from typing import Any

import numpy as np

from .._task import Task
from .._validation import check_count, describe

HELD_OUT = 0.2  # share of the rows that validates, where there are no folds


def folds_of(task: Task, cv: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    """(training rows, validation rows) of each fold, by a number of folds, 1, or a splitter of scikit-learn's.

    Rows are drawn by the seed; those of classes so that each fold has its share of every class.
    """
    from sklearn import model_selection as splitters

    if isinstance(cv, str) or not (hasattr(cv, "split") or isinstance(cv, int | np.integer)):
        raise TypeError(f"cv must be a number of folds, or a splitter of scikit-learn's; got {describe(cv)}")
    stratified = task.classes is not None
    if hasattr(cv, "split"):
        splitter = cv
    elif check_count("cv", cv) == 1:
        single = splitters.StratifiedShuffleSplit if stratified else splitters.ShuffleSplit
        splitter = single(1, test_size=HELD_OUT, random_state=task.seed)
    else:
        several = splitters.StratifiedKFold if stratified else splitters.KFold
        splitter = several(int(cv), shuffle=True, random_state=task.seed)
    try:
        found = list(splitter.split(np.empty((task.rows, 0)), task.y))
    except ValueError as error:
        raise ValueError(f"cv must split the {task.rows} rows; got {cv}: {error}") from error
    return [(np.asarray(train), np.asarray(test)) for train, test in found]
