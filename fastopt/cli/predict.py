"""`fastopt predict`: predictions of a saved model for new data."""

from __future__ import annotations

import argparse
import csv
import io
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _files
from .._files import check_writable
from ..models._probabilities import refusal
from . import new_data

if TYPE_CHECKING:
    from ..models.sequential import Sequential

SUFFIXES = (".csv", ".tsv", ".parquet", ".feather", ".npz")


def add(commands: Any) -> None:
    """Add the parser of the command."""
    parser = commands.add_parser(
        "predict",
        help="apply a saved model to new data",
        description="Print a model's predictions for new data, one line a row: the names of classes as they were in "
        "the training data, or numbers in the units of the targets. The data are brought into the form of the training "
        "data: columns by their names, text one-hot encoded, numbers scaled. A column of targets is ignored.",
    )
    new_data.add_arguments(parser, "column that holds targets and is ignored (default: as in training)")
    parser.add_argument(
        "--out", metavar="FILE", help=f"write a file instead, whose name ends in {', '.join(SUFFIXES)}; with a header"
    )
    parser.add_argument("--probabilities", action="store_true", help="add the probability of every class")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Predict, and print the predictions or write them to a file."""
    if args.out is not None:
        _check_out(args)
    from ..models.loading import load_model

    model = load_model(args.model, backend=args.backend)
    data = new_data.read(model, args, with_targets=False)
    notes = list(data.notes)
    if len(data.rows) < data.total:
        notes.append(f"where cells are missing, the prediction is {'left out' if _suffix(args) == '.npz' else 'empty'}")
    columns = predictions(model, data.x, args.batch_size, data.target or "prediction", args.probabilities)
    for note in notes:
        print(f"fastopt: {note}", file=sys.stderr)
    if args.out is None:
        sys.stdout.write(_text(columns, data, ",", header=len(columns) > 1))
        return 0
    _write(args.out, columns, data)
    return 0


def predictions(
    model: Sequential, x: np.ndarray, batch_size: int, name: str, with_probabilities: bool
) -> dict[str, np.ndarray]:
    """Return columns of shape (rows,) by name: labels or numbers, then the probabilities of the classes."""
    found = model.predict_classes(x, batch_size) if new_data.classifies(model) else model.predict(x, batch_size)
    columns = _columns(found, [name] if found.ndim == 1 or found.shape[1] == 1 else None, name)
    if with_probabilities:
        reason = refusal(model.loss.spec if model.loss else None, model.last_activation)
        if reason:
            raise ValueError(
                "--probabilities is for models that end in softmax or sigmoid, or that a cross-entropy has trained;"
                f" {reason}"
            )
        outputs = model.predict_proba(x, batch_size)
        labels = range(outputs.shape[1]) if model.classes is None else model.classes.tolist()
        for label, column in _columns(outputs, [str(label) for label in labels], name).items():
            columns[label if label not in columns else f"probability of {label}"] = column
    return columns


def _columns(found: np.ndarray, names: list[str] | None, name: str) -> dict[str, np.ndarray]:
    matrix = found.reshape(len(found), -1)
    names = [f"{name}_{i}" for i in range(matrix.shape[1])] if names is None else names
    return dict(zip(names, matrix.T, strict=True))


# ---------------------------------------------------------------- files


def _suffix(args: argparse.Namespace) -> str:
    return "" if args.out is None else Path(args.out).suffix.lower()


def _check_out(args: argparse.Namespace) -> None:
    if _suffix(args) not in SUFFIXES:
        raise ValueError(f"--out {args.out} must be the name of a file that ends in {', '.join(SUFFIXES)}")
    check_writable("--out", args.out)
    for other in (args.model, args.data):
        if Path(args.out).exists() and Path(other).exists() and Path(args.out).samefile(other):
            raise ValueError(f"--out {args.out}: it is {other}, which would be overwritten")


def _text(columns: dict[str, np.ndarray], data: new_data.NewData, sep: str, header: bool) -> str:
    """A line for each row of the data; empty for rows that were left out."""
    positions = np.full(data.total, -1)
    positions[data.rows] = np.arange(len(data.rows))
    cells = [column.tolist() if column.dtype.kind != "f" else list(map(str, column)) for column in columns.values()]
    text = io.StringIO()
    writer = csv.writer(text, delimiter=sep, lineterminator="\n")
    if header:
        writer.writerow(columns)
    for row in positions.tolist():
        if row >= 0:
            writer.writerow([column[row] for column in cells])
        else:
            text.write(sep * (len(columns) - 1) + "\n")
    return text.getvalue()


def _write(path: str, columns: dict[str, np.ndarray], data: new_data.NewData) -> None:
    suffix = Path(path).suffix.lower()
    content = io.BytesIO()
    if suffix in (".csv", ".tsv"):
        content.write(_text(columns, data, "," if suffix == ".csv" else "\t", header=True).encode())
    elif suffix == ".npz":
        first, *others = columns.values()
        arrays: dict[str, Any] = {"prediction": first, "rows": data.rows}
        if others:
            arrays |= {"probabilities": np.stack(others, axis=1), "names": np.array(list(columns)[1:])}
        np.savez(content, **arrays)
    else:
        from ..datasets._table import import_pandas

        frame = import_pandas().DataFrame(columns, index=data.rows).convert_dtypes().reindex(range(data.total))
        frame.to_parquet(content) if suffix == ".parquet" else frame.to_feather(content)
    _files.write(path, content.getvalue())
