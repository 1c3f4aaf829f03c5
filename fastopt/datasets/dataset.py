"""Dataset: arrays to train and to test on, with their origin."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .preparation import Preparation


class Dataset(NamedTuple):
    """Arrays to train and test on.

    `x_train` (rows, features) and `x_test` are float32, unless read_table was asked for another dtype. For
    classification `y_train` and `y_test` are int64 (rows,), class numbers 0 .. classes-1; for regression (`classes` is
    0) they are of the dtype of x, (rows, outputs).

    labels       what the classes are called in the data, (classes,) sorted: ints, bools, whole floats or text, so that
                 `labels[y_train]` are the labels of the rows; None for regression, and where they are 0 .. classes-1
    preparation  from a table's columns to x; None for data that are no table
    notes        remarks on how a table was read
    targets      what the targets are, in words
    """

    name: str
    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    classes: int
    description: str
    source: str
    licence: str
    labels: np.ndarray | None = None
    preparation: Preparation | None = None
    notes: tuple[str, ...] = ()
    targets: str = ""
