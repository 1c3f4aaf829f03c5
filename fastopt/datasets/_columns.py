"""Columns of a table as numbers, bools or text. Errors for other cells name the column and the row."""

from __future__ import annotations

import datetime
import decimal
import numbers
import re
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from . import _dialect
from ._table import Table, import_pandas, shown

Kind = Literal["number", "bool", "text"]
FEW = 20  # different texts that may be categories, whatever the number of rows
MOST_CATEGORIES = 1000
_DATE = re.compile(
    r"\d{4}[-/.]\d{1,2}([-/.]\d{1,2})?([T ].*)?"
    r"|\d{1,2}[-/.]\d{1,2}[-/.](\d{4}|\d{2})( .*)?"
    r"|\d{1,2}:\d{2}(:\d{2}(\.\d*)?)?"
    r"|\d{1,2}\.?[ -][A-Za-z]{3,9}\.?[ -]\d{2,4}( .*)?|[A-Z][a-z]{2,8}\.? \d{1,2},? \d{4}( .*)?"
)
_SIGNED = re.compile(r"[$€£¥]\s*([+-]?[\d.,]+)|([+-]?[\d.,]+)\s*[%$€£¥]")  # amounts and percentages
_CELLS = (str, numbers.Real, decimal.Decimal, np.bool_)
_DATES = (datetime.date, datetime.time, datetime.timedelta, np.datetime64, np.timedelta64)


@dataclass
class Column:
    """The cells of one column.

    kind     "number": values int64, uint64 or float64; "bool": bool; "text": objects, str
    missing  (rows,) bool; the values of missing cells mean nothing
    """

    kind: Kind
    values: np.ndarray
    missing: np.ndarray

    @property
    def is_whole(self) -> bool:
        """True for integers, and for floats that pandas has made of integers because a cell is missing.
        """
        if self.kind != "number":
            return False
        if self.values.dtype.kind in "iu":
            return True
        present = self.values[~self.missing]
        if not self.missing.any() or not len(present):
            return False
        return bool((present == np.floor(present)).all() and np.isfinite(present).all())

    def floats(self) -> np.ndarray:
        """Return numbers or bools as float64; missing cells are NaN."""
        values = self.values.astype(np.float64)
        values[self.missing] = np.nan
        return values


def read_column(table: Table, position: int, as_text: bool = False) -> Column:
    """Return a column of a table. With `as_text`, numbers and bools become text, such as the numbers of categories.

    Raises ValueError, naming column and row, for dates, complex numbers, lists and other objects, and for cells of a
    text file that are not numbers in a column that mostly holds numbers.
    """
    pd = import_pandas()
    types, series = pd.api.types, table.frame.iloc[:, position]
    dtype = series.dtype
    if isinstance(dtype, pd.SparseDtype):
        series = series.sparse.to_dense()
        dtype = series.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        missing = _missing(series)
        return Column("text", _as_text(series.astype(object).to_numpy(), missing), missing)
    if types.is_complex_dtype(dtype):
        raise ValueError(f"{table.source}: {table.title(position)} must hold real numbers; got complex ones")
    if types.is_datetime64_any_dtype(dtype) or isinstance(dtype, pd.PeriodDtype) or types.is_timedelta64_dtype(dtype):
        missing = _missing(series)
        if as_text:
            return Column("text", _as_text(series.astype(object).to_numpy(), missing), missing)
        raise _date_error(table, position, int(np.argmax(~missing)))
    if types.is_bool_dtype(dtype) or types.is_numeric_dtype(dtype):
        column = _numeric(series, types.is_bool_dtype(dtype), types.is_unsigned_integer_dtype(dtype))
        return Column("text", _as_text(column.values, column.missing), column.missing) if as_text else column
    return _objects(table, position, series, as_text)


def are_categories(table: Table, position: int) -> bool:
    """Return True for a column of pandas' categories."""
    return isinstance(table.frame.dtypes.iloc[position], import_pandas().CategoricalDtype)


def _missing(series: Any) -> np.ndarray:
    return np.asarray(series.isna(), bool)


def _numeric(series: Any, is_bool: bool, unsigned: bool) -> Column:
    missing = _missing(series)
    if is_bool:
        return Column("bool", series.to_numpy(dtype=bool, na_value=False), missing)
    if import_pandas().api.types.is_integer_dtype(series.dtype):
        dtype = np.uint64 if unsigned else np.int64
        filled = series.to_numpy(dtype=dtype, na_value=0) if missing.any() else series.to_numpy(dtype=dtype)
        return Column("number", filled, missing)
    return Column("number", series.to_numpy(dtype=np.float64, na_value=np.nan), missing)


def _objects(table: Table, position: int, series: Any, as_text: bool) -> Column:
    """A column of Python objects or strings."""
    missing, values = _missing(series), series.astype(object).to_numpy()
    kinds = {type(value) for value in values[~missing]}
    if not all(issubclass(kind, str) for kind in kinds):
        for kind in kinds:
            is_date = issubclass(kind, _DATES)
            if not (is_date and as_text) and (is_date or not issubclass(kind, _CELLS)):
                row = next(int(row) for row in np.flatnonzero(~missing) if type(values[row]) is kind)
                if is_date:
                    raise _date_error(table, position, row)
                raise ValueError(
                    f"{table.at(row, position)}: a cell must be a number, a bool or text; got a {kind.__name__}"
                )
        if not as_text and all(issubclass(kind, bool | np.bool_) for kind in kinds):
            return Column("bool", np.where(missing, False, values).astype(bool), missing)
        if not as_text and not any(issubclass(kind, str | bool | np.bool_) for kind in kinds):
            return _python_numbers(values, missing, all(issubclass(kind, numbers.Integral) for kind in kinds))
    text = _as_text(values, missing)
    missing = missing | (text == "")
    if not as_text and not missing.all():
        _refuse_dates(table, position, text, missing)
        if table.decimal is not None:
            found = _numbers_in_text(table, position, text, missing, table.decimal)
            if found is not None:
                return Column("number", found, missing)
    return Column("text", text, missing)


def _python_numbers(values: np.ndarray, missing: np.ndarray, are_integers: bool) -> Column:
    filled = np.where(missing, 0, values)
    if are_integers:
        try:
            return Column("number", filled.astype(np.int64), missing)
        except OverflowError:
            pass
    return Column("number", np.where(missing, np.nan, filled.astype(np.float64)), missing)


def _as_text(values: np.ndarray, missing: np.ndarray) -> np.ndarray:
    """Cells as text, without blanks around it; whole numbers have no decimal point."""
    text = np.empty(len(values), object)
    text[:] = ""
    present = np.flatnonzero(~missing)
    text[present] = [cell_text(value) for value in values[present]]
    return text


def cell_text(value: Any) -> str:
    """Return the text of a cell; a number and its text have the same.

    >>> cell_text(" a "), cell_text(1.0), cell_text(1), cell_text(True), cell_text(0.5)
    ('a', '1', '1', 'True', '0.5')
    """
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, float | np.floating) and float(value).is_integer() and abs(value) < 2**53:
        return str(int(value))
    return str(value.item() if isinstance(value, np.generic) else value)


def _numbers_in_text(
    table: Table, position: int, text: np.ndarray, missing: np.ndarray, mark: str
) -> np.ndarray | None:
    """Numbers that pandas has read as text, with thousands separators or too large for an integer; None for text.

    ValueError for a column in which most cells are numbers and others are not, unless it looks like categories: few
    different values, each of which occurs more than once if it is not a number, such as 0, 1, 2, 3+.
    """
    unique, inverse, counts = np.unique(text[~missing].astype(str), return_inverse=True, return_counts=True)
    numeric = np.array([_dialect.is_number(cell, mark) for cell in unique])
    if numeric.all():
        values = np.full(len(text), np.nan)
        values[~missing] = np.array([_dialect.to_float(cell, mark) for cell in unique])[inverse]
        return values
    if all(map(_SIGNED.fullmatch, unique)):
        row = int(np.argmax(~missing))
        raise ValueError(
            f"{table.at(row, position)} must be a number without a sign of its unit; got {shown(text[row])}; "
            "leave the column out (--drop), or take it as text (--categorical)"
        )
    other = "," if mark == "." else "."
    if all(_dialect.is_number(cell, mark) or _dialect.is_number(cell, other) for cell in unique):
        row = _first(text, missing, unique[~numeric])
        raise ValueError(
            f"{table.at(row, position)} must be a number with the decimal mark {mark!r}; got {shown(text[row])}: "
            f"say decimal={other!r} (--decimal {other}) if that is the mark"
        )
    if 2 * counts[numeric].sum() >= counts.sum() and (len(unique) > FEW or counts[~numeric].max() == 1):
        row = _first(text, missing, unique[~numeric])
        raise ValueError(
            f"{table.at(row, position)} must be a number, as most cells of this column are; got {shown(text[row])}; "
            f"leave the column out (--drop), or take it as text (--categorical)"
        )
    return None


def _first(text: np.ndarray, missing: np.ndarray, values: np.ndarray) -> int:
    """The first row that has one of the values."""
    searched = set(values.tolist())
    return next(int(row) for row in np.flatnonzero(~missing) if text[row] in searched)


def _refuse_dates(table: Table, position: int, text: np.ndarray, missing: np.ndarray) -> None:
    present = text[~missing]
    if all(_DATE.fullmatch(cell) for cell in present[:100]) and all(map(_DATE.fullmatch, set(present))):
        raise _date_error(table, position, int(np.argmax(~missing)))


def _date_error(table: Table, position: int, row: int) -> ValueError:
    cell = table.frame.iloc[row, position] if len(table.frame) else ""
    return ValueError(
        f"{table.at(row, position)}: dates and times are not read, such as {shown(str(cell))}: "
        "turn them into numbers, leave the column out (--drop), or take them as text (--categorical)"
    )
