"""Tasks of searches and studies: data, and the dense network of given settings."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from ._validation import check_count, check_name
from .kernels.formulas import LOSSES
from .layers import Dense, Dropout, Layer
from .losses import canonical
from .models.sequential import Sequential
from .optim import OPTIMIZER_CLASSES, get_optimizer
from .preprocessing import Normalization

# Settings of a network, and those of `fit`; others are arguments of the optimizer.
NETWORK, FIT = ("layers", "activation", "dropout", "optimizer"), ("batch_size", "epochs", "accumulate")
# Optimizer of settings that name none.
OPTIMIZER = "adam"


class Task(NamedTuple):
    """Data, and the parts of a network that follow from them."""

    x: Any  # rows that an array of numbers indexes, or a table of pandas
    y: np.ndarray  # in the form that the loss takes
    outputs: int
    loss: str
    metrics: tuple[str, ...]
    classes: np.ndarray | None  # all labels, which a fold may lack
    standardize: bool = False
    dtype: str = "float32"
    backend: str = "cpu"
    seed: int = 0

    @property
    def is_classification(self) -> bool:
        """True if the metric is accuracy."""
        return self.metrics == ("accuracy",)

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.y)

    def of(self, rows: np.ndarray) -> tuple[Any, np.ndarray]:
        """The data of some rows."""
        return getattr(self.x, "iloc", self.x)[rows], self.y[rows]

    def model(self, settings: Mapping[str, Any]) -> Sequential:
        """A new network of some settings, compiled, that of `fastopt train` with these options."""
        activation, dropout = settings.get("activation", "relu"), settings.get("dropout", 0.0)
        layers: list[Layer] = [Normalization()] if self.standardize else []
        for width in _widths(settings.get("layers", (64, 32))):
            layers.append(Dense(width, activation))
            if dropout:
                layers.append(Dropout(dropout))
        layers.append(Dense(self.outputs, LOSSES[self.loss].link or "linear"))
        hyper = {name: value for name, value in settings.items() if name not in (*NETWORK, *FIT)}
        model = Sequential(layers, self.seed, self.backend, self.dtype)
        model.compile(get_optimizer(settings.get("optimizer", OPTIMIZER), **hyper), self.loss, self.metrics)
        model.classes = self.classes
        return model

    @property
    def standardizes_targets(self) -> bool:
        """True if targets are numbers to be scaled, too."""
        return self.standardize and is_regression(self.loss)


def is_regression(loss: str) -> bool:
    """True for a loss of real-valued targets."""
    row = LOSSES[loss]
    return row.targets == "dense" and row.link is None and not row.signs


def task_of(x: Any, y: Any, loss: str | None, **options: Any) -> Task:
    """The task of arrays: labels are classes, and numbers that are not whole are to be predicted."""
    targets = np.asarray(y)
    if targets.ndim == 2 and targets.shape[1] == 1:
        targets = targets[:, 0]
    rows = x if hasattr(x, "iloc") else x.tocsr() if hasattr(x, "tocsr") else np.asarray(x)
    if rows.shape[:1] != targets.shape[:1]:
        raise ValueError(f"x and y must have as many rows; got {rows.shape} and {targets.shape}")
    if loss is None:
        classes = targets.ndim == 1 and targets.dtype.kind in "OUSTbiu"
        loss = "sparse_categorical_crossentropy" if classes else "mean_squared_error"
    loss = check_name("loss", canonical(loss), LOSSES)
    if is_regression(loss):
        outputs = 1 if targets.ndim == 1 else targets.shape[1]
        return Task(rows, targets, outputs, loss, ("mean_squared_error", "r2"), None, **options)
    if targets.ndim == 2:  # one-hot, or several answers of yes and no
        return Task(rows, targets, targets.shape[1], loss, ("accuracy",), None, **options)
    labels = np.unique(targets)
    by_label = LOSSES[loss].targets == "labels"
    if not by_label and len(labels) != 2:
        raise ValueError(f"{loss} takes labels of two classes, or one-hot rows; got {len(labels)} classes")
    return Task(rows, targets, len(labels) if by_label else 1, loss, ("accuracy",), labels, **options)


def _widths(layers: Any) -> tuple[int, ...]:
    """Widths of hidden layers: one number is one layer."""
    listed = layers if isinstance(layers, tuple | list) else (layers,)
    return tuple(check_count("the width of a layer", width) for width in listed)


def takes(optimizer: str, name: str) -> bool:
    """True if a setting is an argument of an optimizer.

    >>> takes("sgd", "momentum"), takes("adam", "momentum")
    (True, False)
    """
    return name in inspect.signature(OPTIMIZER_CLASSES[optimizer]).parameters


def sample_of(x: Any) -> np.ndarray:
    """Some rows of x, by which it is known again."""
    some = getattr(x, "iloc", x)[:: max(1, x.shape[0] // 1000)]
    return some.toarray() if hasattr(some, "toarray") else np.asarray(some)


def digest_of(*arrays: np.ndarray) -> str:
    """Checksum of arrays with their shapes and dtypes, by which other data are told."""
    found = hashlib.blake2b(digest_size=8)
    for array in arrays:
        found.update(str((array.shape, array.dtype.str)).encode())
        plain = array if array.dtype.kind != "O" else array.astype(str)
        found.update(np.ascontiguousarray(plain).tobytes())
    return found.hexdigest()
