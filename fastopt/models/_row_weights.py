"""Weights of rows: those of a user, and those of classes, checked and in the dtype of a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import _frames
from .._validation import check_finite, check_name, check_number, describe
from ..kernels.formulas import LOSSES
from ..losses import Loss
from . import _labels, _targets

BALANCED = "balanced"


def check_class_weight(class_weight: Any) -> None:
    """Raise TypeError or ValueError unless it is "balanced" or a mapping from labels to weights."""
    if isinstance(class_weight, str):
        check_name("class_weight", class_weight, [BALANCED])
    elif not isinstance(class_weight, Mapping):
        raise TypeError(
            f'class_weight must be "{BALANCED}", or a mapping such as {{0: 1.0, 1: 5.0}}; got {describe(class_weight)}'
        )
    else:
        for label, weight in class_weight.items():
            check_number(f"class_weight of {label!r}", weight, 0.0)


def read(name: str, weights: Any, rows: int, kept: np.ndarray | None) -> NDArray[np.float64]:
    """Return weights of rows, float64, finite and not negative.

    rows  number of rows that were given: weights are (rows,) or (rows, 1)
    kept  numbers of those that are used, of which the weights are returned; None: all
    """
    values = _frames.numbers_of(name, weights).values
    if values.shape not in ((rows,), (rows, 1)):
        raise ValueError(f"{name} must have a weight for each of the {rows} rows; got shape {values.shape}")
    numbers = check_finite(name, np.asarray(values.reshape(-1), np.float64))
    if (numbers < 0).any():
        first = int(np.argmax(numbers < 0))
        raise ValueError(f"{name} must not be negative; got {numbers[first]:g} in row {first}")
    return numbers if kept is None else numbers[kept]


def in_dtype(name: str, weights: NDArray[np.float64], dtype: np.dtype) -> np.ndarray:
    """Return weights for kernels: of the model's dtype, each 0 or normal."""
    limits = np.finfo(dtype)
    if weights.max(initial=0.0) > limits.max:
        raise ValueError(f"{name} must be numbers of {dtype}, at most {limits.max:g}; got {weights.max():g}")
    found = weights.astype(dtype)
    found[found < limits.tiny] = 0
    return found


def used(name: str, weights: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return those of these rows whose weight is not 0; ValueError if there is none."""
    found = rows[weights[rows] > 0]
    if not len(found):
        raise ValueError(f"{name} must be above 0 in some row; got 0 in all {len(rows)}")
    return found


def of_classes(
    class_weight: str | Mapping[Any, float],
    loss: Loss,
    y: np.ndarray,
    classes: np.ndarray | None,
    rows: np.ndarray,
) -> NDArray[np.float64]:
    """Return the weight of every row's class, float64 (n,); a class that the mapping lacks has weight 1.

    y        checked targets (n,) int64 or (n, outputs)
    classes  labels, which the keys of the mapping are; None: class numbers
    rows     those from which "balanced" counts the classes: a class's weight is rows / (classes x rows of the class)

    Raises ValueError for targets that are not one class a row, and for keys that are not among the classes.
    """
    outputs = 1 if y.ndim == 1 else y.shape[1]
    codes = _codes(loss, y)
    if codes is None:
        raise ValueError(
            "class_weight needs one class a row: class numbers, one-hot targets of categorical_crossentropy, or two"
            f" classes of one output; got the loss {loss.spec.name} with {outputs} output(s): give sample_weight"
        )
    count = int(codes.max(initial=1)) + 1
    if isinstance(class_weight, str):
        counts = np.bincount(codes[rows], minlength=count)
        weights = len(rows) / (np.count_nonzero(counts) * np.maximum(counts, 1.0))
        return np.asarray(weights[codes], np.float64)
    keys = list(class_weight)
    if classes is None:
        numbers = np.arange(max(count, outputs))
        classes = np.array([-1, 1]) if LOSSES[loss.spec.name].signs and -1 in keys else numbers
    weights = np.ones(max(len(classes), count))
    if keys:
        weights[_labels.encode("the keys of class_weight", keys, classes)[0]] = list(class_weight.values())
    return weights[codes]


def _codes(loss: Loss, y: np.ndarray) -> NDArray[np.int64] | None:
    """The class number of every row; None if targets are not one class a row."""
    row = LOSSES[loss.spec.name]
    if y.ndim == 1:
        return y
    if row.by_row:
        return y.argmax(axis=1)
    if not _targets.classifies(loss.spec, y.shape[1]) or not np.isin(y, (-1 if row.signs else 0, 1)).all():
        return None
    return (y[:, 0] > row.boundary[1]).astype(np.int64)
