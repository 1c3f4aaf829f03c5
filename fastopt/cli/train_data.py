"""Data of `fastopt train`: loading them, and bringing targets into the form that the loss takes."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .. import datasets
from ..datasets.tables import TableOptions, load_table
from ..kernels.formulas import LOSSES
from .table_arguments import (
    TABLES,
    add_missing_argument,
    add_text_arguments,
    check_file_arguments,
    refuse_table_arguments,
    text_options,
)

if TYPE_CHECKING:
    from .._task import Task

CLASSIFICATION_LOSS, REGRESSION_LOSS = "sparse_categorical_crossentropy", "mean_squared_error"
# Losses of real-valued targets.
REGRESSION_LOSSES = tuple(
    name for name, row in LOSSES.items() if row.targets == "dense" and row.link is None and not row.signs
)


class Targets(NamedTuple):
    """Targets in the form that a loss takes."""

    outputs: int
    y: np.ndarray
    y_test: np.ndarray
    metrics: tuple[str, ...]


def add_arguments(data: Any) -> None:
    """Add the options for the data."""
    data.add_argument(
        "data",
        nargs="?",
        default="digits",
        metavar="DATA",
        help=f"{', '.join(datasets.NAMES)}, {TABLES} (default: digits)",
    )
    data.add_argument("--folder", help="where the IDX files of mnist or fashion-mnist are")
    data.add_argument(
        "--target", metavar="COLUMN", help="name or index of the column to predict (default: the last one)"
    )
    add_text_arguments(data)
    data.add_argument(
        "--drop",
        action="append",
        default=[],
        metavar="COLUMN",
        help="name or index of a column to leave out; repeatable",
    )
    data.add_argument(
        "--categorical",
        action="append",
        default=[],
        metavar="COLUMN",
        help="name or index of a column to take as text, such as the numbers of categories; repeatable",
    )
    add_missing_argument(data, "refuse")
    data.add_argument(
        "--standardize",
        action="store_true",
        help="scale features, and targets that are numbers, to mean 0 and deviation 1 over the training rows",
    )
    data.add_argument(
        "--validation-split", type=float, default=0.0, metavar="SHARE", help="share of the training rows to hold out"
    )


def load(args: argparse.Namespace) -> datasets.Dataset:
    """Return the data; the loss decides whether whole numbers are classes or numbers."""
    if args.data in datasets.NAMES:
        refuse_table_arguments(args, ("target", "drop", "categorical"))
        return datasets.load(args.data, args.folder)
    check_file_arguments(args)
    kind = "auto" if args.loss is None else "numbers" if args.loss in REGRESSION_LOSSES else "classes"
    options = TableOptions(
        args.target, text_options(args), tuple(args.drop), tuple(args.categorical), args.missing or "refuse", kind,
        "float64" if args.standardize else args.dtype, args.seed, args.validation_split,
    )  # fmt: skip
    return load_table(args.data, options)


def targets(data: datasets.Dataset, loss: str) -> Targets:
    """Return the targets in the form that the loss takes.

    Losses of class labels, and of two classes with one output, get labels as they are in the data. Other losses of
    classes get one-hot rows (rows, classes).
    """
    row = LOSSES[loss]
    if loss in REGRESSION_LOSSES:
        y, y_test = (
            part.reshape(len(part), -1) if part.dtype.kind == "f" else part.reshape(-1, 1).astype(np.float32)
            for part in (data.y_train, data.y_test)
        )
        return Targets(y.shape[1], y, y_test, ("mean_squared_error", "r2"))
    labels = np.arange(data.classes) if data.labels is None else data.labels
    if row.targets == "labels" or (data.classes == 2 and not row.by_row):
        outputs = data.classes if row.targets == "labels" else 1
        return Targets(outputs, labels[data.y_train], labels[data.y_test], ("accuracy",))
    codes = np.eye(data.classes, dtype=np.float32)
    return Targets(data.classes, codes[data.y_train], codes[data.y_test], ("accuracy",))


def task(args: argparse.Namespace, data: datasets.Dataset) -> Task:
    """Return the training rows, in the form that the loss takes, as searches and studies have them."""
    from .._task import Task

    loss = args.loss or (CLASSIFICATION_LOSS if data.classes else REGRESSION_LOSS)
    target = targets(data, loss)
    is_labelled = target.metrics == ("accuracy",) and target.y.ndim == 1
    features = data.x_train.astype("float64" if args.standardize else args.dtype, copy=False)
    labels = None
    if is_labelled:
        labels = data.labels if data.labels is not None else np.arange(data.classes)
    return Task(
        features, target.y, target.outputs, loss, target.metrics, labels, args.standardize, args.dtype, args.backend,
        args.seed,
    )  # fmt: skip


def use_threads(args: argparse.Namespace) -> None:
    """Set the number of threads of the compiled kernels, if there is one."""
    if args.threads is None:
        return
    if args.backend != "cpu":
        raise ValueError("--threads is for the compiled kernels: it needs --backend cpu")
    from ..kernels.cpu.runtime.launch import set_num_threads

    set_num_threads(args.threads)
