"""Targets of a data set: numbers, or classes with the labels that they have in the data."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from ._dialect import MISSING
from ._table import Table, listed

Wish = Literal["auto", "classes", "numbers"]
WISHES = ("auto", "classes", "numbers")
FEW = 20  # classes that whole numbers may always mean
ROWS_OF_A_CLASS = 20  # that more classes than FEW have on average
_LABEL = re.compile(r"[+-]?\d+|true|false", re.IGNORECASE)
_PLAIN_LABEL = re.compile(r"[+-]?(0|[1-9]\d*)")
_WAYS = (
    "say which: numbers (targets='numbers'; --loss mean_squared_error, mean_absolute_error or huber) or classes "
    "(targets='classes'; --loss sparse_categorical_crossentropy)"
)


class Targets(NamedTuple):
    """Targets as a data set holds them.

    y        int64 codes (rows,), or floats (rows, outputs)
    labels   of the classes, sorted; None for numbers
    decided  the decision in words, such as "3 classes: a, b, c"
    """

    y: np.ndarray
    labels: np.ndarray | None
    decided: str


def check_wish(targets: str) -> Wish:
    """Return what targets are to be."""
    for wish in WISHES:
        if targets == wish:
            return wish  # type: ignore[return-value]
    raise ValueError(f"targets must be one of {', '.join(WISHES)}; got {targets!r}")


def choose(
    raw: np.ndarray, wish: Wish, title: str, at: Callable[[int], str], dtype: str, whole: bool | None = None
) -> Targets:
    """Return targets that are numbers or classes, as wished for or as they look: see `read_table`.

    raw    (rows,) of ints, floats, bools or text, none missing; floats also (rows, outputs)
    title  what messages call all of them, with the file: "a.csv: column 'price'"
    at     place of a row's target, with the file, for messages
    whole  True for floats that were whole numbers before a cell was missing
    """
    if raw.dtype.kind == "f" and whole:
        raw = raw.astype(np.int64)
    if wish == "numbers" or (wish == "auto" and raw.dtype.kind == "f"):
        if raw.dtype.kind not in "biuf":
            raise ValueError(f"{at(0)} must be a number for a loss of numbers, as all targets; got {str(raw[0])!r}")
        return _numbers(raw, at, dtype)
    if raw.dtype.kind == "f":
        raw = _whole(raw, at)
    labels, codes = np.unique(raw, return_inverse=True)
    if len(labels) < 2:
        raise ValueError(f"{title} must have at least two classes; got only {labels[0]}")
    if wish == "auto":
        _check_few(labels, len(raw), title)
    words = f"{len(labels):,} classes: {listed(labels.tolist(), most=6)}"
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


def _whole(raw: np.ndarray, at: Callable[[int], str]) -> np.ndarray:
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
    """Refuse whole numbers and text that hardly ever come again, unless they are few and count from 0 or 1."""
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
    """Return True for labels in a text file that are to be read as text: as numbers or bools they would look different.

    >>> labels_to_keep(["01", "02"]), labels_to_keep(["true", "false"]), labels_to_keep(["1", "-1"])
    (True, True, False)
    """
    there = [cell for cell in cells if cell not in MISSING]
    return all(map(_LABEL.fullmatch, there)) and not all(map(_PLAIN_LABEL.fullmatch, there))


def are_labels_kept(table: Table, position: int) -> bool:
    """Return True for a column of such labels, once it is read."""
    if table.decimal is None or table.frame.dtypes.iloc[position] != "string":
        return False
    cells = table.frame.iloc[:, position].dropna().str.strip()
    return bool(len(cells)) and all(map(_LABEL.fullmatch, cells.unique()))
