"""Targets of a data set: numbers, or classes with their labels in the data."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from ._dialect import MISSING
from ._table import Table, listed

TargetKind = Literal["auto", "classes", "numbers"]
TARGET_KINDS = ("auto", "classes", "numbers")
FEW = 20  # whole numbers with so few different values may always be classes
ROWS_OF_A_CLASS = 20  # least average number of rows of a class, if there are more classes than FEW
_LABEL = re.compile(r"[+-]?\d+|true|false", re.IGNORECASE)
_PLAIN_LABEL = re.compile(r"[+-]?(0|[1-9]\d*)")
_WAYS = (
    "say which: numbers (targets='numbers'; --loss mean_squared_error, mean_absolute_error or huber) or classes "
    "(targets='classes'; --loss sparse_categorical_crossentropy)"
)


class Targets(NamedTuple):
    """Targets in the form of a `Dataset`.

    y        int64 codes (rows,), or floats (rows, outputs)
    labels   labels of the classes, sorted; None for numbers
    decided  the decision in words, such as "3 classes: a, b, c"
    """

    y: np.ndarray
    labels: np.ndarray | None
    decided: str


def check_target_kind(targets: str) -> TargetKind:
    """Return a valid kind of targets; ValueError for another one."""
    for kind in TARGET_KINDS:
        if targets == kind:
            return kind  # type: ignore[return-value]
    raise ValueError(f"targets must be one of {', '.join(TARGET_KINDS)}; got {targets!r}")


def make_targets(
    raw: np.ndarray, kind: TargetKind, title: str, at: Callable[[int], str], dtype: str, is_whole: bool | None = None
) -> Targets:
    """Return targets of the kind asked for; "auto" decides by their values: see `read_table`.

    raw    (rows,) of ints, floats, bools or text, none missing; floats also (rows, outputs)
    title  what messages call all of them, with the file: "a.csv: column 'price'"
    at     function of a row that returns file, row and column in words
    is_whole  True for floats that were integers before a cell was missing
    """
    if raw.dtype.kind == "f" and is_whole:
        raw = raw.astype(np.int64)
    if kind == "numbers" or (kind == "auto" and raw.dtype.kind == "f"):
        if raw.dtype.kind not in "biuf":
            raise ValueError(f"{at(0)} must be a number for a loss of numbers, as all targets; got {str(raw[0])!r}")
        return _numbers(raw, at, dtype)
    if raw.dtype.kind == "f":
        raw = _whole_labels(raw, at)
    labels, codes = np.unique(raw, return_inverse=True)
    if len(labels) < 2:
        raise ValueError(f"{title} must have at least two classes; got only {labels[0]}")
    if kind == "auto":
        _check_few(labels, len(raw), title)
    words = f"{len(labels):,} classes: {listed(labels.tolist(), max_names=6)}"
    return Targets(codes.reshape(-1).astype(np.int64), labels, words)


def _numbers(raw: np.ndarray, at: Callable[[int], str], dtype: str) -> Targets:
    values = raw.reshape(len(raw), -1)
    with np.errstate(over="ignore"):
        y = values.astype(dtype)
    bad = ~np.isfinite(y)
    if bad.any():
        row, output = (int(index) for index in np.argwhere(bad)[0])
        raise ValueError(f"{at(row)} must be a finite {np.dtype(dtype)} number; got {values[row, output]}")
    return Targets(y, None, "numbers")


def _whole_labels(raw: np.ndarray, at: Callable[[int], str]) -> np.ndarray:
    values = raw.reshape(len(raw), -1)
    bad = ~np.isfinite(values) | (values != np.floor(values))
    if bad.any() or values.shape[1] > 1:
        row, column = (int(index) for index in np.argwhere(bad)[0]) if bad.any() else (0, 0)
        got = f"{values.shape[1]} columns" if not bad.any() else f"{values[row, column]}"
        raise ValueError(
            f"{at(row)} must be a label for a loss of classes, a whole number or text; got {got}; "
            "known for such targets: mean_squared_error, mean_absolute_error, huber"
        )
    return values[:, 0]


def _check_few(labels: np.ndarray, rows: int, title: str) -> None:
    """ValueError for integers and texts of which most occur once, unless they are few and count from 0 or 1."""
    count = len(labels)
    if count <= FEW:
        counted = labels.dtype.kind in "iu" and labels[0] in (0, 1) and labels[-1] - labels[0] == count - 1
        seldom = count > 2 and 2 * count > rows and not counted and labels.dtype.kind in "iu"
    else:
        seldom = count * ROWS_OF_A_CLASS > rows if labels.dtype.kind in "iu" else 2 * count > rows
    if seldom and labels.dtype.kind in "iu":
        raise ValueError(f"{title} has {count:,} different whole numbers in {rows:,} rows: {_WAYS}")
    if seldom:
        raise ValueError(
            f"{title} has {count:,} different texts in {rows:,} rows, too many for classes: is it the target? "
            "targets='classes' (--loss sparse_categorical_crossentropy) takes them all the same"
        )


def labels_to_keep(cells: Sequence[str]) -> bool:
    """Return True for labels of a text file to be read as text, because numbers or bools would look different.

    >>> labels_to_keep(["01", "02"]), labels_to_keep(["true", "false"]), labels_to_keep(["1", "-1"])
    (True, True, False)
    """
    present = [cell for cell in cells if cell not in MISSING]
    return all(map(_LABEL.fullmatch, present)) and not all(map(_PLAIN_LABEL.fullmatch, present))


def are_labels_kept(table: Table, position: int) -> bool:
    """Return True for a column of labels that was read as text by `labels_to_keep`."""
    if table.decimal is None or table.frame.dtypes.iloc[position] != "string":
        return False
    cells = table.frame.iloc[:, position].dropna().str.strip()
    return bool(len(cells)) and all(map(_LABEL.fullmatch, cells.unique()))
