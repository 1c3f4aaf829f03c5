"""New data for a saved model, from a data set, arrays or a table, in the form of its training data."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .. import _backends, datasets
from ..datasets._columns import Column, cell_text, read_column
from ..datasets._npz import read_features, read_npz
from ..datasets._open import check_path, open_table
from ..datasets._table import Table, listed, shown
from ..datasets.preparation import Preparation, choose_rows, to_floats
from ..datasets.tables import columns_without_data
from .arguments import integer
from .table_arguments import (
    TABLES,
    add_missing_argument,
    add_text_arguments,
    check_file_arguments,
    refuse_table_arguments,
    text_options,
)

if TYPE_CHECKING:
    from ..models.sequential import Sequential


class NewData(NamedTuple):
    """Rows for a model.

    x       (rows, inputs)
    y       targets for `Sequential.evaluate`; None if none were asked for
    rows    indices of these rows in the data; rows with missing cells may be left out
    total   number of rows of the data
    target  name of the target's column, if it has one
    notes   remarks for the user
    """

    x: np.ndarray
    y: np.ndarray | None
    rows: np.ndarray
    total: int
    target: str | None
    notes: list[str]


def add_arguments(parser: argparse.ArgumentParser, target: str) -> None:
    """Add the arguments for the model, the data, and how both are read and run; `target` is the help of --target."""
    parser.add_argument("model", metavar="MODEL", help="a model file, as fastopt train --save and model.save write it")
    parser.add_argument("data", metavar="DATA", help=f"{', '.join(datasets.NAMES)} (their test part), {TABLES}")
    parser.add_argument("--folder", help="where the IDX files of mnist or fashion-mnist are")
    parser.add_argument("--target", metavar="COLUMN", help=target)
    parser.add_argument(
        "--drop",
        action="append",
        default=[],
        metavar="COLUMN",
        help="column to leave out, for a model that was not trained on a table; repeatable",
    )
    add_text_arguments(parser)
    add_missing_argument(parser, "as in training")
    parser.add_argument("--backend", choices=_backends.MODULES, help="(default: the model's)")
    parser.add_argument("--batch-size", type=integer(1), default=1024, metavar="N", help="rows at once (default: 1024)")


def read(model: Sequential, args: argparse.Namespace, with_targets: bool) -> NewData:
    """Return the rows of args.data; ValueError, naming the file, if they do not fit the model."""
    if args.data in datasets.NAMES:
        refuse_table_arguments(args, ("target", "drop"))
        data = datasets.load(args.data, args.folder)
        return _arrays(model, args.data, data.x_test, data.y_test if with_targets else None)
    check_file_arguments(args)
    path = check_path(args.data)
    if path.suffix.lower() != ".npz":
        return _from_table(model, args, with_targets)
    refuse_table_arguments(args, ("target", "drop"))
    if not with_targets:
        return _arrays(model, args.data, read_features(path, _dtype(model)), None)
    part = read_npz(path, _dtype(model))[-1]
    return _arrays(model, args.data, part.x, part.y)


def preparation_of(model: Sequential) -> Preparation | None:
    """Return a model's preparation of tables; None if it has none, or one that the user has made."""
    saved = model.preparation
    return Preparation.from_dict(saved) if saved is not None and {"columns", "layout"} <= set(saved) else None


def _dtype(model: Sequential) -> str:
    """The dtype to read features in: float64 for layers that scale them, so that they are rounded once."""
    return "float64" if model.preprocessing else model.dtype.name


def _arrays(model: Sequential, name: str, x: np.ndarray, y: np.ndarray | None) -> NewData:
    _check_width(model, name, x.shape[1])
    if y is not None:
        y = _targets(model, y, lambda row: f"{name}: y[{row}]")
    return NewData(x, y, np.arange(len(x)), len(x), None, [])


def _check_width(model: Sequential, name: str, width: int) -> None:
    if width != model.inputs:
        raise ValueError(f"{name}: the model takes {model.inputs} features; got {width}")


# ---------------------------------------------------------------- tables


def _from_table(model: Sequential, args: argparse.Namespace, with_targets: bool) -> NewData:
    text, preparation = text_options(args), preparation_of(model)
    if preparation is None:
        table = open_table(args.data, text)
        columns, target = _plain_columns(model, table, args, with_targets)
        preparation, missing = _preparation_of_numbers(columns), args.missing or "refuse"
    else:
        if args.drop:
            raise ValueError("--drop is for models that were not trained on a table: this one knows its columns")
        table = open_table(args.data, text, preparation.expected())
        columns = preparation.read_columns(table)
        if preparation.layout.header and table.names is None:
            table.notes.append("there is no header: columns are taken by their positions")
        target = _target(table, preparation, args.target) if with_targets else None
        missing = args.missing or preparation.missing
    if args.missing == "mean" and any(column.fill is None for column in preparation.columns):
        raise ValueError("--missing mean needs the means of the training rows, and the model has none")
    _check_width(model, table.source, preparation.features)
    target_columns = {} if target is None else {target: _target_column(model, table, target)}
    rows = choose_rows(table, {**columns, **target_columns}, missing, target)
    x = preparation.encode(table, columns, rows, _dtype(model))
    y = None if target is None else _table_targets(model, table, target, target_columns[target], rows)
    name = preparation.layout.target_name
    return NewData(x, y, rows, len(table.frame), name, table.notes)


def _plain_columns(
    model: Sequential, table: Table, args: argparse.Namespace, with_targets: bool
) -> tuple[dict[int, Column], int | None]:
    """Columns of numbers by position, for a model without a preparation, and the position of the target."""
    assert model.inputs is not None
    left_out = {*columns_without_data(table), *(table.find("drop", column) for column in args.drop)}
    data = [i for i in range(table.width) if i not in left_out]
    target = data[-1] if len(data) > model.inputs else None
    if args.target is not None:
        target = table.find("target", args.target)
    features = [i for i in data if i != target]
    if len(features) != model.inputs or (with_targets and target is None):
        raise ValueError(
            f"{table.source}: must have {model.inputs} columns of features{' and one of targets' * with_targets}, as "
            f"the model has {model.inputs} inputs; got {len(data)} columns"
        )
    columns = {}
    for position in features:
        columns[position] = column = read_column(table, position)
        if column.kind == "text":
            row = int(np.argmax(~column.missing))
            raise ValueError(
                f"{table.at(row, position)} must be a number, as the model knows no categories; "
                f"got {shown(column.values[row])}"
            )
    return columns, target


def _preparation_of_numbers(columns: dict[int, Column]) -> Preparation:
    from ..datasets.preparation import ColumnSpec

    return Preparation(tuple(ColumnSpec(None, position, column.kind) for position, column in columns.items()))


def _target(table: Table, preparation: Preparation, given: str | None) -> int:
    if given is not None:
        return table.find("target", given)
    try:
        return preparation.layout.locate_target(table.names, table.width)
    except ValueError as error:
        raise ValueError(f"{table.source}: {error}") from None


def _target_column(model: Sequential, table: Table, target: int) -> Column:
    text = model.classes is not None and model.classes.dtype.kind == "U"
    return read_column(table, target, as_text=text)


def _table_targets(model: Sequential, table: Table, target: int, column: Column, rows: np.ndarray) -> np.ndarray:
    if not classifies(model):
        if column.kind == "text":
            row = int(np.argmax(~column.missing))
            raise ValueError(f"{table.at(row, target)} must be a number; got {shown(column.values[row])}")
        if model.outputs > 1:
            raise ValueError(
                f"{table.source}: the model has {model.outputs} outputs, and a table one column of targets: "
                "give a .npz file of x and y"
            )
        return to_floats(table, target, column, rows, "float64").reshape(-1, 1)
    raw = column.values[rows].astype(str) if column.kind == "text" else column.values[rows]
    return _targets(model, raw, lambda row: table.at(int(rows[row]), target))


# ---------------------------------------------------------------- targets


def classifies(model: Sequential) -> bool:
    """Return True if the outputs of a model stand for classes."""
    from ..models import _targets as targets

    spec = None if model.loss is None else model.loss.spec
    return model.classes is not None or targets.decision_rule(spec, model.last_activation, model.outputs) is not None


def _targets(model: Sequential, raw: np.ndarray, at: Any) -> np.ndarray:
    """Targets for `evaluate`: labels, one-hot rows, or numbers."""
    if not classifies(model) or raw.ndim == 2 or model.loss is None:
        return raw if raw.ndim == 2 or raw.dtype.kind == "U" else raw.reshape(-1, 1)
    from ..models import _labels
    from ..models import _targets as targets

    if model.classes is not None:
        raw = _as_labels(model.classes, raw, at)
    if targets.classifies(model.loss.spec, model.outputs):
        return raw
    classes = np.arange(model.outputs) if model.classes is None else model.classes
    codes, _ = _labels.encode("y", _as_labels(classes, raw, at), classes)
    return np.eye(model.outputs, dtype=np.float32)[codes]


def _as_labels(classes: np.ndarray, raw: np.ndarray, at: Any) -> np.ndarray:
    """Labels in the model's own type; ValueError, with row and column, for one that it does not know."""
    known = {cell_text(label): label for label in classes.tolist()}
    found = [known.get(cell_text(label)) for label in raw.tolist()]
    if None in found:
        row = found.index(None)
        raise ValueError(
            f"{at(row)} must be one of the model's classes, {listed(list(known))}; got {shown(raw[row])}"
        )
    return np.array(found, classes.dtype)
