"""`read_table`: tables and .npz files of users as data sets."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .. import _random_rows
from .._validation import check_flag, check_number
from ._columns import Column, are_categories, read_column
from ._frames import is_frame
from ._layout import TableLayout, check_unique
from ._npz import Part, read_npz
from ._open import check_path, open_table
from ._split import hold_out
from ._table import Table
from ._targets import Targets, are_labels_kept, check_target_kind, labels_to_keep, make_targets
from ._text_files import Expected, TextOptions
from .dataset import Dataset
from .preparation import Preparation, check_cells, check_missing, choose_rows, note_constant

log = logging.getLogger("fastopt")


class TableOptions(NamedTuple):
    """Options of `read_table`."""

    target: str | int | None = None
    text: TextOptions = TextOptions()
    drop: tuple[str | int, ...] = ()
    categorical: tuple[str | int, ...] = ()
    missing: str = "refuse"
    targets: str = "auto"
    dtype: str = "float32"
    seed: int = 0
    validation_split: float = 0.0  # share of the training rows that the preparation is not learnt from


def read_table(
    data: Any,
    target: str | int | None = None,
    seed: int = 0,
    *,
    sep: str | None = None,
    decimal: str | None = None,
    header: bool | None = None,
    encoding: str | None = None,
    drop: str | int | Sequence[str | int] = (),
    categorical: str | int | Sequence[str | int] = (),
    missing: str = "refuse",
    targets: str = "auto",
    dtype: str = "float32",
) -> Dataset:
    """Return a table or a .npz file as a Dataset. Nothing is scaled.

    data     a path: .csv, .tsv, .txt (also .tab, .dat, .data; packed as .gz, .bz2, .xz or .zip), .parquet, .feather or
             .npz; or a frame of pandas, polars or pyarrow. Tables need pandas (extra `data`)
    target   name or index of the column to predict; the last one by default. Indices count from 0, negative ones from
             the end; a column with the name "1" goes before the column with the index 1
    seed     seed of the random fifth of the rows that becomes the test part; every class has a training row, if it can
    sep      delimiter of a text file: a character, "tab" or "space" (any run of blanks). By default the one of tab,
             semicolon, comma, bar and space that divides the first lines best
    decimal  "." or ","; by default a comma if some numbers have commas and none has a decimal point. Thousands
             separators (1,234.5 or 1.234,5) are understood
    header   True or False. By default 0, 1, 2, ... is a header, and so is a row of text above numbers; a row of numbers
             is data. A table of text alone has a header unless a cell of its first row occurs again
    encoding encoding of a text file; by default UTF-8, or UTF-16 if it begins with the byte-order mark
    drop     names or indices of columns to leave out
    categorical  names or indices of columns to read as text, such as the numbers of categories
    missing  missing cells (empty, NA, NaN, null, ? and the like) are an error ("refuse"), their rows are left out
             ("skip"), or they are filled with the mean or most frequent text of the training rows ("mean"); rows
             without a target are then left out
    targets  "numbers", "classes", or "auto": text, bools and whole numbers are classes, other numbers are numbers.
             Whole numbers that hardly ever occur twice are an error with "auto": they may be either
    dtype    dtype of features, and of targets that are numbers: "float32" or "float64"

    Columns of text (and pandas' categorical ones) are one-hot encoded, up to 1000 categories; bools become 0 and 1.
    Dates are errors, and so are the few cells that are not numbers in a column of numbers. Left out, with a note in
    `Dataset.notes`, are a first column without a name that counts the rows from 0 or 1, the index of a frame, and a
    column without name and cells. `Dataset.preparation` does the same to new data.

    A .npz file holds the arrays x and y, or x_train and y_train and perhaps x_test and y_test; rows of more than one
    dimension are flattened. The arguments from `sep` to `missing` are not for .npz files.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: pandas is not installed, or pyarrow for a Parquet or Feather file.
        ValueError: a cell is not finite, rows have different lengths, or one of the errors above. The message names the
            file, the column and the row: rows of text files by their line, counted from 1, others counted from 0.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "fruit.csv"
    ...     _ = path.write_text("weight;colour;fruit\\n" + "0,2;red;apple\\n0,1;yellow;lemon\\n0,15;green;apple\\n" * 2)
    ...     data = read_table(path)
    >>> data.x_train.shape, data.x_test.shape, data.classes, data.labels.tolist()
    ((5, 4), (1, 4), 2, ['apple', 'lemon'])
    >>> data.preparation.feature_names
    ['weight', 'colour=green', 'colour=red', 'colour=yellow']
    """
    if header is not None:
        check_flag("header", header)
    options = TableOptions(
        target, TextOptions(sep, decimal, header, encoding), _several(drop), _several(categorical), missing, targets,
        dtype, seed,
    )  # fmt: skip
    dataset = load_table(data, options)
    for note in dataset.notes:
        log.warning("%s: %s", dataset.source or dataset.name, note)
    return dataset


def load_table(data: Any, options: TableOptions) -> Dataset:
    """Return the data set that `read_table` describes, without logging its notes."""
    check_missing(options.missing)
    check_target_kind(options.targets)
    if options.dtype not in ("float32", "float64"):
        raise ValueError(f"dtype must be float32 or float64; got {options.dtype!r}")
    if not is_frame(data):
        path = check_path(data)
        if path.suffix.lower() == ".npz":
            return _from_npz(path, options)
    name = "table" if is_frame(data) else Path(os.fsdecode(data)).name.partition(".")[0]
    return _from_table(open_table(data, options.text, _expected(options)), options, name)


def _several(columns: Any) -> tuple[str | int, ...]:
    if columns is None:
        return ()
    if isinstance(columns, np.integer):
        return (int(columns),)
    return (columns,) if isinstance(columns, str | int) else tuple(columns)


def _expected(options: TableOptions) -> Expected:
    """The columns to read as text: categorical ones, and labels that would change otherwise, such as 01 or true.

    Wrong names are ignored here: the whole table is needed for their error messages.
    """

    def positions(names: list[str] | None, width: int, rows: Sequence[Sequence[str]]) -> list[int]:
        found = [_position(column, names, width) for column in options.categorical]
        target = _position(-1 if options.target is None else options.target, names, width)
        kept = target is not None and labels_to_keep([row[target] for row in rows if len(row) > target])
        if kept and options.targets != "numbers":
            found.append(target)
        return [position for position in found if position is not None]

    return Expected(text=positions)


def _position(column: str | int, names: list[str] | None, width: int) -> int | None:
    if names is not None and str(column) in names:
        return names.index(str(column))
    try:
        return range(width)[int(column)]
    except (ValueError, IndexError):
        return None


# ---------------------------------------------------------------- tables


def _from_table(table: Table, options: TableOptions, name: str) -> Dataset:
    empty = columns_without_data(table)
    last = max(i for i in range(table.width) if i not in empty)
    target = last if options.target is None else table.find("target", options.target)
    dropped = [table.find("drop", column) for column in options.drop]
    if target in dropped:
        raise ValueError(f"{table.source}: {table.title(target)} is the target and cannot be left out")
    automatic = [i for i in empty if i not in (target, *dropped)]
    table.notes.extend(empty[i] for i in automatic)
    left_out = sorted({*dropped, *automatic})
    features = [i for i in range(table.width) if i != target and i not in left_out]
    if 0 in features and table.names is not None and _is_unnamed(table.names[0]):
        table.notes.append(f"{_first_title(table.names[0])} is taken as data; --drop {table.key(0)!r} leaves it out")
    categorical = {table.find("categorical", column) for column in options.categorical}
    _check_columns(table, features, target, categorical)
    columns = {i: read_column(table, i, as_text=i in categorical) for i in features}
    check_cells(table, columns)
    options, target_column = _read_target(table, target, options)
    rows = choose_rows(table, {**columns, target: target_column}, options.missing, target)
    if len(rows) < 2:
        raise ValueError(f"{table.source}: must have at least two rows (train and test); got {len(rows)}")
    y = _targets_of(table, target, target_column, rows, options)
    train, test = hold_out(len(rows), y.y if y.labels is not None else None, options.seed)
    learning = rows[train][_rows_to_learn_from(len(train), options)]
    target_name = table.names[target] if table.names is not None else None
    layout = TableLayout(
        table.width, table.names is not None, target, target_name, tuple(left_out), target_column.kind == "text"
    )
    preparation = Preparation.learn(table, columns, layout, options.missing, rows, learning, categorical)
    x = preparation.encode(table, columns, rows, options.dtype)
    note_constant(table, columns, rows)
    return Dataset(
        name=name,
        x_train=x[train],
        y_train=y.y[train],
        x_test=x[test],
        y_test=y.y[test],
        classes=0 if y.labels is None else len(y.labels),
        description=f"{len(rows)} rows of {Path(table.source).name}",
        source=table.source,
        licence="",
        labels=y.labels,
        preparation=preparation,
        notes=tuple(table.notes),
        targets=f"{table.title(target)}, {y.decided}",
    )


def columns_without_data(table: Table) -> dict[int, str]:
    """Return the positions of columns that hold no data, with notes for the user.

    They are a first column without a name that counts the rows, pandas' indices, and columns with neither a name nor a
    cell, which a comma at every line's end makes.
    """
    found = {}
    for i in range(table.width):
        name = "" if table.names is None else table.names[i]
        if name.startswith("__index_level_"):
            found[i] = f"column {name!r}, an index of pandas, is left out"
        elif _is_unnamed(name) and table.frame.iloc[:, i].isna().all():
            found[i] = f"column {i} (counted from 0), which is empty, is left out"
        elif i == 0 and table.names is not None and _is_unnamed(name) and _counts_rows(table):
            found[i] = f"{_first_title(name)} counts the rows and is left out"
    return found if len(found) < table.width else {}


def _first_title(name: str) -> str:
    return f"column {name!r}" if name else "the first column, which has no name,"


def _is_unnamed(name: str) -> bool:
    return name == "" or name.startswith("Unnamed: ")


def _counts_rows(table: Table) -> bool:
    series = table.frame.iloc[:, 0]
    if series.isna().any():
        return False
    try:
        values = series.to_numpy(dtype=np.float64)
    except (TypeError, ValueError):
        return table.row_names
    return table.row_names or any(np.array_equal(values, np.arange(start, start + len(values))) for start in (0, 1))


def _check_columns(table: Table, features: Sequence[int], target: int, categorical: set[int]) -> None:
    if table.width < 2:
        raise ValueError(
            f"{table.source}: must have at least two columns, features and a target; got {table.width}; "
            "say the delimiter (sep, --sep) if it is another one"
        )
    if not features:
        raise ValueError(f"{table.source}: no column is left for features beside the target, {table.title(target)}")
    if target in categorical:
        raise ValueError(f"{table.source}: {table.title(target)} is the target: give a loss of classes instead")
    if table.names is not None:
        try:
            check_unique(table.names, [*features, target])
        except ValueError as error:
            raise ValueError(f"{table.source}: {error}") from None


def _read_target(table: Table, target: int, options: TableOptions) -> tuple[TableOptions, Column]:
    """The target's column; pandas' categories are labels in their own type."""
    if are_categories(table, target):
        table.frame[target] = table.frame[target].astype(object)
        options = options._replace(targets="classes") if options.targets == "auto" else options
    keep = options.targets != "numbers" and are_labels_kept(table, target)
    return options, read_column(table, target, as_text=keep)


def _targets_of(table: Table, target: int, column: Column, rows: np.ndarray, options: TableOptions) -> Targets:
    raw = column.values[rows]
    if column.kind == "text":
        raw = raw.astype(str)
    return make_targets(
        raw,
        check_target_kind(options.targets),
        f"{table.source}: {table.title(target)}",
        lambda row: table.at(int(rows[row]), target),
        options.dtype,
        column.is_whole,
    )


def _rows_to_learn_from(rows: int, options: TableOptions) -> np.ndarray:
    """The training rows that `fit` will not hold out, with the same share and seed."""
    if not check_number("validation_split", options.validation_split, 0.0, 1.0):
        return np.arange(rows)
    return _random_rows.split(rows, options.validation_split, options.seed, shuffle=True)[0]


# ---------------------------------------------------------------- .npz


def _from_npz(path: Path, options: TableOptions) -> Dataset:
    given = {"target": options.target, "drop": options.drop, "categorical": options.categorical}
    given |= dict(zip(options.text._fields, options.text, strict=True))
    given |= {"missing": options.missing if options.missing != "refuse" else None}
    for name, value in given.items():
        if value not in (None, ()):
            raise ValueError(f"{path}: {name} is for tables; a .npz file holds arrays, and names its targets y")
    parts = read_npz(path, options.dtype)
    raw = _joined(path, parts)
    flat = raw.reshape(-1) if raw.dtype.kind != "f" else raw
    y = make_targets(
        flat, check_target_kind(options.targets), f"{path}: y", lambda row: f"{path}: y[{row}]", options.dtype
    )
    x = np.concatenate([part.x for part in parts])
    if len(parts) == 2:
        train, test = np.split(np.arange(len(x)), [len(parts[0].x)])
    elif len(x) < 2:
        raise ValueError(f"{path}: must have at least two rows (train and test); got {len(x)}")
    else:
        train, test = hold_out(len(x), y.y if y.labels is not None else None, options.seed)
    return Dataset(
        path.stem, x[train], y.y[train], x[test], y.y[test], 0 if y.labels is None else len(y.labels),
        f"{len(x)} rows of {path.name}", str(path), "", y.labels, None, (), f"y, {y.decided}",
    )  # fmt: skip


def _joined(path: Path, parts: Sequence[Part]) -> np.ndarray:
    """The targets of both parts, concatenated; ValueError if their shapes or types differ."""
    first, last = parts[0], parts[-1]
    alike = first.y.shape[1:] == last.y.shape[1:] and (first.y.dtype.kind in "iu") == (last.y.dtype.kind in "iu")
    if first.x.shape[1:] != last.x.shape[1:] or not alike or (first.y.dtype.kind == "U") != (last.y.dtype.kind == "U"):
        raise ValueError(
            f"{path}: must have the same columns and types in both parts; got x {first.x.shape} and {last.x.shape}, "
            f"y {first.y.shape} {first.y.dtype} and {last.y.shape} {last.y.dtype}"
        )
    return np.concatenate([part.y for part in parts])
