"""Preparation: the way from a table's columns to features, learnt from the training table and saved with the model."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ._columns import FEW, MOST_CATEGORIES, Column, read_column
from ._layout import TableLayout
from ._open import open_table
from ._table import Table, listed, shown
from ._text_files import Expected

MISSING = ("refuse", "skip", "mean")


@dataclass(frozen=True)
class ColumnSpec:
    """A column that features are made of.

    name        its name; None in a table without a header
    position    its index in the training table
    kind        "number" or "bool", which give one feature; "text" gives one for each category
    categories  the categories of text, sorted
    fill        value of missing cells with missing="mean": mean of numbers or bools, most frequent category of text
    """

    name: str | None
    position: int
    kind: str
    categories: tuple[str, ...] = ()
    fill: float | str | None = None

    @property
    def features(self) -> int:
        """Number of features."""
        return len(self.categories) if self.kind == "text" else 1


@dataclass(frozen=True)
class Preparation:
    """Transforms the columns of a table into features: numbers unchanged, bools as 0 and 1, text one-hot encoded.

    `fastopt.datasets.read_table` learns it from a table (`Dataset.preparation`), `fastopt train` saves it with the
    model, and `fastopt predict` and `fastopt evaluate` apply it to new tables. A model has it as a dict,
    `model.preparation`.

    columns  the columns that features are made of, in the order of the features
    layout   names and positions of all columns of the training table: new tables are matched by names if both have a
             header, else by position
    missing  missing cells are an error ("refuse"), their rows are left out ("skip"), or they are filled with the
             column's mean or most frequent category ("mean")

    >>> import pandas as pd
    >>> from fastopt import datasets
    >>> frame = pd.DataFrame({"colour": ["red", "blue", "red"], "size": [1, 2, 4], "price": [1.5, 2.5, 3.5]})
    >>> preparation = datasets.read_table(frame).preparation
    >>> preparation.feature_names
    ['colour=blue', 'colour=red', 'size']
    >>> preparation.transform(pd.DataFrame({"size": [3], "colour": ["blue"]}))
    array([[1., 0., 3.]], dtype=float32)
    >>> preparation == datasets.Preparation.from_dict(preparation.to_dict())
    True
    """

    columns: tuple[ColumnSpec, ...]
    layout: TableLayout = field(default_factory=TableLayout)
    missing: str = "refuse"

    @property
    def features(self) -> int:
        """Number of features."""
        return sum(column.features for column in self.columns)

    @property
    def feature_names(self) -> list[str]:
        """Names of the features: the column's, or column=category."""
        names = []
        for column in self.columns:
            name = column.name or str(column.position)
            names += [f"{name}={category}" for category in column.categories] if column.kind == "text" else [name]
        return names

    # -- learning

    @classmethod
    def learn(
        cls,
        table: Table,
        columns: Mapping[int, Column],
        layout: TableLayout,
        missing: str,
        rows: np.ndarray,
        learning: np.ndarray,
        categorical: Collection[int] = (),
    ) -> Preparation:
        """Return the preparation of a table's columns (position -> cells).

        Categories come from all `rows`; means and most frequent categories from the rows `learning`.
        """
        specs = []
        unwieldy: dict[int, str] = {}
        for position, column in columns.items():
            name = table.names[position] if table.names is not None else None
            if column.missing[rows].all():
                raise ValueError(
                    f"{table.source}: {table.title(position)} has no value in the rows that have a target: leave it "
                    f"out (--drop {shlex.quote(table.key(position))})"
                )
            present = learning[~column.missing[learning]]
            present = present if len(present) else rows[~column.missing[rows]]
            if column.kind != "text":
                mean = _mean(column.floats()[present])
                specs.append(ColumnSpec(name, position, column.kind, (), mean))
                continue
            used = rows[~column.missing[rows]]
            categories = tuple(np.unique(column.values[used].astype(str)).tolist())
            limit = MOST_CATEGORIES if position in categorical else min(MOST_CATEGORIES, max(FEW, len(used) // 2))
            if len(categories) > limit:
                unwieldy[position] = f"{len(categories):,} different values in {len(used):,} rows"
            specs.append(ColumnSpec(name, position, "text", categories, _most_frequent(column.values[present])))
        if unwieldy:
            raise ValueError(_too_many(table, unwieldy))
        return cls(tuple(specs), layout, missing)

    # -- applying

    def expected(self) -> Expected:
        """Return the columns of new tables for `open_table`, so that their cells are read as those learnt from."""
        return Expected([column.name for column in self.columns if column.name], self.text_columns)

    def text_columns(self, names: list[str] | None, width: int, rows: Any = ()) -> list[int]:
        """Return the positions of the columns to read as text, in a table of `width` columns."""
        found = zip(self.columns, self.layout.locate(self._keys(), names, width), strict=True)
        positions = [position for column, position in found if column.kind == "text"]
        if self.layout.target_is_text:
            with contextlib.suppress(ValueError):  # a table to predict from has no target
                positions.append(self.layout.locate_target(names, width))
        return positions

    def transform(self, data: Any, missing: str | None = None) -> np.ndarray:
        """Return the features (rows, features), float32, of a table: a path, or a frame of pandas, polars or pyarrow.

        missing  "refuse", "skip" or "mean", instead of `self.missing`; the result lacks the rows that "skip" leaves out

        Raises ValueError, naming column and row, for missing columns, for cells that are missing, infinite or not of
        the column's kind, and for unknown categories.
        """
        return self.features_of(open_table(data, expected=self.expected()), missing)[0]

    def features_of(
        self, table: Table, missing: str | None = None, dtype: str = "float32"
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return features (rows, features) and the indices of their rows in the table, (rows,)."""
        columns = self.read_columns(table)
        rows = choose_rows(table, columns, self.missing if missing is None else check_missing(missing))
        return self.encode(table, columns, rows, dtype), rows

    def read_columns(self, table: Table) -> dict[int, Column]:
        """Return the columns that features are made of, by their positions in the table."""
        try:
            positions = self.layout.locate(self._keys(), table.names, table.width)
        except ValueError as error:
            raise ValueError(f"{table.source}: {error}") from None
        return {
            position: self._read(table, column, position)
            for column, position in zip(self.columns, positions, strict=True)
        }

    def encode(self, table: Table, columns: Mapping[int, Column], rows: np.ndarray, dtype: str) -> np.ndarray:
        """Return the features of `rows`, (rows, features); `columns` are in the order of `self.columns`."""
        x = np.zeros((len(rows), self.features), dtype)
        start = 0
        for spec, (position, column) in zip(self.columns, columns.items(), strict=True):
            block = x[:, start : start + spec.features]
            if spec.kind == "text":
                _one_hot(block, table, position, column, spec, rows)
            else:
                block[:, 0] = to_floats(table, position, column, rows, dtype, spec.fill)
            start += spec.features
        return x

    def _keys(self) -> list[tuple[str | None, int]]:
        return [(column.name, column.position) for column in self.columns]

    @staticmethod
    def _read(table: Table, spec: ColumnSpec, position: int) -> Column:
        column = read_column(table, position, as_text=spec.kind == "text")
        if spec.kind != "text" and column.kind == "text" and not column.missing.all():
            row = int(np.argmax(~column.missing))
            raise ValueError(
                f"{table.at(row, position)} must be a {spec.kind}, as in training; got {shown(column.values[row])}"
            )
        if spec.kind != "text" and column.kind == "text":  # no cell at all
            return Column("number", np.full(len(column.values), np.nan), column.missing)
        return column

    # -- files

    def to_dict(self) -> dict[str, Any]:
        """Return a dict for JSON."""
        return {
            "columns": [{**asdict(column), "categories": list(column.categories)} for column in self.columns],
            "layout": self.layout.to_dict(),
            "missing": self.missing,
        }

    @classmethod
    def from_dict(cls, saved: Any) -> Preparation:
        """Return the preparation of a dict that `to_dict` returned; ValueError for another one."""
        try:
            columns = tuple(_spec(entry) for entry in saved["columns"])
            layout = TableLayout.from_dict(saved["layout"])
            if not all(0 <= column.position < layout.width for column in columns):
                raise ValueError(f"a column is beyond the {layout.width} columns of the table")
            return cls(columns, layout, check_missing(saved["missing"]))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"the model's preparation of tables cannot be read: {error!r}") from error


def check_missing(missing: str) -> str:
    """Return a valid policy for missing cells; ValueError for another one."""
    if missing not in MISSING:
        raise ValueError(f"missing must be one of {', '.join(MISSING)}; got {missing!r}")
    return missing


def check_cells(table: Table, columns: Mapping[int, Column]) -> None:
    """Raise ValueError for a column without any cell, which can be neither learnt from nor filled."""
    empty = [position for position, column in columns.items() if column.missing.all()]
    if empty:
        drop = " ".join(f"--drop {shlex.quote(table.key(position))}" for position in empty)
        raise ValueError(f"{table.source}: {_titles(table, empty)} has no value at all: leave it out ({drop})")


def note_constant(table: Table, columns: Mapping[int, Column], rows: np.ndarray) -> None:
    """Add a note about columns whose cells are all equal."""
    constant = []
    for position, column in columns.items():
        values = column.values[rows[~column.missing[rows]]]
        if len(values) and (values == values[0]).all():
            constant.append(position)
    if constant:
        alike = "is the same in every row" if len(constant) == 1 else "are the same in every row"
        table.notes.append(f"{_titles(table, constant)} {alike}")


def choose_rows(
    table: Table, columns: Mapping[int, Column], missing: str, target: int | None = None
) -> np.ndarray:
    """Return the indices of the rows to use. Rows without a target are left out with "mean", too.

    Raises ValueError, naming column and row, for a missing cell with "refuse", and if no row remains.
    """
    masks = {position: column.missing for position, column in columns.items() if column.missing.any()}
    everything = np.arange(len(table.frame))
    if not masks:
        return everything
    if missing == "refuse":
        raise ValueError(_missing_cells(table, masks))
    excluded = [mask for position, mask in masks.items() if missing == "skip" or position == target]
    if not excluded:
        return everything
    rows = everything[~np.logical_or.reduce(excluded)]
    if not len(rows):
        raise ValueError(f"{table.source}: no row is without a missing cell; such are in {_titles(table, masks)}")
    if len(rows) < len(everything):
        why = "with missing cells" if missing == "skip" else f"without a target in {table.title(list(columns)[-1])}"
        table.notes.append(f"{len(everything) - len(rows):,} of {len(everything):,} rows, those {why}, are left out")
    return rows


def _missing_cells(table: Table, masks: Mapping[int, np.ndarray]) -> str:
    position, mask = min(masks.items(), key=lambda item: int(np.argmax(item[1])))
    count = sum(int(mask.sum()) for mask in masks.values())
    more = f" ({count:,} cells are missing, in {_titles(table, masks)})" if count > 1 else ""
    return (
        f"{table.at(int(np.argmax(mask)), position)}: the cell is missing{more}; leave such rows out with "
        "missing='skip' (--missing skip), or fill such cells with missing='mean' (--missing mean)"
    )


def _titles(table: Table, positions: Collection[int]) -> str:
    if len(positions) == 1:
        return table.title(next(iter(positions)))
    return f"the columns {listed([table.key(position) for position in sorted(positions)])}"


def to_floats(
    table: Table, position: int, column: Column, rows: np.ndarray, dtype: str, fill: Any = None
) -> np.ndarray:
    """Return the numbers of `rows` in `dtype`; missing ones become `fill`.

    Raises ValueError, naming column and row, for infinities and for numbers too large for the dtype.
    """
    values = column.floats()[rows]
    missing = column.missing[rows]
    if missing.any():
        values[missing] = np.nan if fill is None else fill
    with np.errstate(over="ignore"):
        result = values.astype(dtype)
    bad = ~np.isfinite(result)
    if bad.any():
        index = int(np.argmax(bad))
        larger = " (dtype float64 holds it)" if np.isfinite(values[index]) else ""
        raise ValueError(
            f"{table.at(int(rows[index]), position)} must be a finite {np.dtype(dtype)} number; "
            f"got {values[index]}{larger}"
        )
    return result


def _one_hot(
    block: np.ndarray, table: Table, position: int, column: Column, spec: ColumnSpec, rows: np.ndarray
) -> None:
    values = column.values[rows]
    missing = column.missing[rows]
    if missing.any():
        values = np.where(missing, spec.fill, values)
    known = {category: index for index, category in enumerate(spec.categories)}
    codes = np.fromiter((known.get(value, -1) for value in values), np.int64, len(values))
    if (codes < 0).any():
        index = int(np.argmax(codes < 0))
        raise ValueError(
            f"{table.at(int(rows[index]), position)} must be one of the categories of the training data, "
            f"{listed(spec.categories)}; got {shown(values[index])}"
        )
    block[np.arange(len(codes)), codes] = 1


def _mean(values: np.ndarray) -> float | None:
    finite = values[np.isfinite(values)]
    if not len(finite):
        return None
    with np.errstate(over="ignore"):
        mean = float(np.mean(finite))
    return mean if np.isfinite(mean) else float(np.sum(finite / len(finite)))  # sums may be too large


def _most_frequent(values: np.ndarray) -> str | None:
    """The most frequent text; of several, the first in alphabetical order."""
    if not len(values):
        return None
    unique, counts = np.unique(values.astype(str), return_counts=True)
    return str(unique[np.argmax(counts)])


def _too_many(table: Table, columns: Mapping[int, str]) -> str:
    """A message about columns with too many categories; `columns` maps positions to descriptions."""
    descriptions = " and ".join(f"{table.title(position)} is text with {text}" for position, text in columns.items())
    drop = " ".join(f"--drop {shlex.quote(table.key(position))}" for position in columns)
    return f"{table.source}: {descriptions}, too many for categories: leave out what does not tell anything ({drop})"


def _spec(entry: Mapping[str, Any]) -> ColumnSpec:
    """A ColumnSpec of a dict that `to_dict` returned, checked."""
    spec = ColumnSpec(
        entry["name"], entry["position"], entry["kind"], tuple(entry["categories"]), entry["fill"]
    )
    text = spec.kind == "text"
    if (
        spec.kind not in ("number", "bool", "text")
        or not (spec.name is None or isinstance(spec.name, str))
        or isinstance(spec.position, bool)
        or not isinstance(spec.position, int)
        or bool(spec.categories) != text
        or not all(isinstance(category, str) for category in spec.categories)
        or not (spec.fill is None or (isinstance(spec.fill, str) if text else isinstance(spec.fill, int | float)))
    ):
        raise ValueError(f"a column is described as {dict(entry)!r}")
    return spec
