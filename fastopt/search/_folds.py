"""Folds of a search: the rows that its networks train on, and those that validate them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from .._task import Task
from .._validation import check_count, describe

HELD_OUT = 0.2  # share of the rows that validates, where there are no folds


def folds_of(task: Task, cv: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    """(training rows, validation rows) of each fold, by their number, a splitter of scikit-learn's, or themselves.

    Rows are drawn by the seed; those of classes so that each fold has its share of every class.
    """
    from sklearn import model_selection as splitters

    if isinstance(cv, str) or not (hasattr(cv, "split") or isinstance(cv, int | np.integer | Iterable)):
        raise TypeError(
            f"cv must be a number of folds, a splitter of scikit-learn's or pairs of row numbers; got {describe(cv)}"
        )
    stratified = task.classes is not None
    if hasattr(cv, "split"):
        splitter = cv
    elif isinstance(cv, Iterable):
        splitter = splitters.check_cv(cv)
    elif check_count("cv", cv) == 1:
        single = splitters.StratifiedShuffleSplit if stratified else splitters.ShuffleSplit
        splitter = single(1, test_size=HELD_OUT, random_state=task.seed)
    else:
        several = splitters.StratifiedKFold if stratified else splitters.KFold
        splitter = several(int(cv), shuffle=True, random_state=task.seed)
    try:
        pairs = [(train, test) for train, test in splitter.split(np.empty((task.rows, 0)), task.y)]
    except (TypeError, ValueError) as error:
        raise ValueError(f"cv must split the {task.rows} rows; got {describe(cv)}: {error}") from error
    if not pairs:
        raise ValueError("cv must have a fold at least; got none")
    return [(_rows(train, task.rows), _rows(test, task.rows)) for train, test in pairs]


def _rows(numbers: Any, count: int) -> np.ndarray:
    """Row numbers of a part of a fold, or the mask of them, as numbers."""
    found = np.asarray(numbers)
    found = np.flatnonzero(found) if found.dtype == bool and found.shape == (count,) else found
    if found.ndim != 1 or found.dtype.kind not in "iu" or not len(found) or found.min() < 0 or found.max() >= count:
        raise ValueError(f"cv must have numbers of rows, from 0 to {count - 1}; got {describe(numbers)}")
    return found
