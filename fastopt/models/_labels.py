"""Class labels of users (whole numbers, bools, strings) and class numbers for losses."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .. import _frames
from .._validation import describe


class Labels(NamedTuple):
    """A vector of labels: bool, int, uint, whole float, or strings."""

    values: np.ndarray  # (n,)
    missing: np.ndarray | None  # (n,) bool; None: none is missing
    rows: np.ndarray | None = None  # (n,) row numbers in the data; None: all rows are here

    def row(self, index: int) -> int:
        """Number of a row in the data."""
        return index if self.rows is None else int(self.rows[index])


def read(name: str, y: Any) -> Labels:
    """Return y, of shape (n,) or (n, 1), as labels; NaN, None and NA are missing ones.

    Raises TypeError for a mixture of types and for values that cannot be labels, ValueError for another shape.
    """
    cells = y if type(y) is np.ndarray else _frames.column(name, y)
    if isinstance(cells, np.ndarray):
        cells = _from_array(name, y, cells)
    values, missing = cells
    if values.dtype.kind == "f":
        gone = np.isnan(values)
        if gone.any():
            missing = gone if missing is None else missing | gone
    return Labels(values, missing)


def encode(name: str, y: Any, classes: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return (codes, classes): class numbers, int64 (n,), with y = classes[codes].

    y        labels (n,) or (n, 1): ints, whole floats, bools or strings; also of pandas and polars. May be `Labels`
    classes  labels in the order of their numbers; by default those in y, as `np.unique` sorts them

    Raises TypeError for a mixture of types; ValueError for a missing label (None, NaN, NA), for a fraction, and for
    one that is not among `classes`, with its row.

    >>> codes, classes = encode("y", ["no", "yes", "no"])
    >>> codes.tolist(), classes.tolist()
    ([0, 1, 0], ['no', 'yes'])
    >>> encode("y", ["maybe"], classes)
    Traceback (most recent call last):
    ValueError: y must be among the classes 'no', 'yes'; got 'maybe' in row 0
    """
    labels = y if isinstance(y, Labels) else read(name, y)
    values = check(name, labels)
    if classes is None:
        classes, codes = np.unique(values, return_inverse=True)
        return np.asarray(codes.reshape(-1), np.int64), classes
    return _looked_up(name, labels, classes), classes


def decode(codes: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Return the labels of class numbers: an array of their shape and the classes' dtype."""
    return np.asarray(classes)[codes]


def check(name: str, y: Any) -> np.ndarray:
    """Return the values of labels; ValueError for a missing label and for a fraction."""
    labels = y if isinstance(y, Labels) else read(name, y)
    values = check_present(name, labels)
    if values.dtype.kind == "f":
        fractional = values != np.floor(values)
        fractional |= np.isinf(values)
        if fractional.any():
            first = int(np.argmax(fractional))
            raise ValueError(f"{name} must be whole class labels; got {values[first]} in row {labels.row(first)}")
    return values


def check_present(name: str, labels: Labels) -> np.ndarray:
    """Return the values of labels; ValueError for a missing one."""
    values, missing, _ = labels
    if missing is not None and missing.any():
        first, more = int(np.argmax(missing)), int(np.count_nonzero(missing)) - 1
        others = f" (nor in {more} more)" if more else ""
        raise ValueError(f"{name} must have a label in every row; got none in row {labels.row(first)}{others}")
    return values


def check_classes(classes: Any, count: int) -> np.ndarray:
    """Return a copy of distinct labels, as many as there must be, in the order given."""
    if isinstance(classes, str) or (not hasattr(classes, "__len__") and not hasattr(classes, "__array__")):
        raise TypeError(f"classes must be a list of labels, or None; got {describe(classes)}")
    values = np.array(check("classes", classes))
    if len(np.unique(values)) != len(values):
        listed, counts = np.unique(values, return_counts=True)
        raise ValueError(f"classes must be distinct; got {listed[np.argmax(counts)].item()!r} twice")
    if len(values) != count:
        raise ValueError(f"classes must be {count} labels, as the model tells {count} classes apart; got {len(values)}")
    return values


def listed(classes: np.ndarray) -> str:
    """Text of labels for a message: the first few of many."""
    few = 10
    shown = ", ".join(repr(label) for label in classes[:few].tolist())
    return shown + (f", ... ({len(classes)} in all)" if len(classes) > few else "")


def _looked_up(name: str, labels: Labels, classes: np.ndarray) -> np.ndarray:
    values = labels.values
    if (values.dtype.kind == "U") != (classes.dtype.kind == "U"):  # numbers are no strings
        known = np.zeros(len(values), bool)
        codes = np.zeros(len(values), np.int64)
    else:
        order = np.argsort(classes, kind="stable")
        positions = np.searchsorted(classes, values, sorter=order)
        codes = order[np.minimum(positions, len(classes) - 1)]
        known = classes[codes] == values
    if not known.all():
        first = int(np.argmin(known))
        raise ValueError(
            f"{name} must be among the classes {listed(classes)}; got {values[first].item()!r} in row"
            f" {labels.row(first)}"
        )
    return np.asarray(codes, np.int64)


def _from_array(name: str, y: Any, array: np.ndarray) -> _frames.Column:
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        hint = "; for one-hot rows use the loss categorical_crossentropy" if array.ndim == 2 else ""
        raise ValueError(f"{name} must be class labels of shape (n,); got shape {array.shape}{hint}")
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    kind = array.dtype.kind
    if kind == "T":  # NumPy's strings of any length, some of which may be missing
        array, kind = array.astype(object), "O"
    if kind in "biufU":
        is_longdouble = kind == "f" and array.itemsize > 8  # which no model file can hold
        return _frames.Column(array.astype(np.float64) if is_longdouble else array, None)
    if kind != "O":
        more = " (bytes: use .astype(str))" if kind == "S" else ""
        raise TypeError(f"{name} must be class labels, whole numbers or strings; got {array.dtype}{more}")
    try:
        return _frames.from_objects(array)
    except _frames.NotNumbers as error:
        raise TypeError(f"{name} must be class labels of one type, whole numbers or strings; got {error}") from None
