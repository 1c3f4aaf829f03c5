"""Dataset: arrays for training and testing, with their origin."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .preparation import Preparation


class Dataset(NamedTuple):
    """Arrays for training and testing.

    x_train, x_test  features (rows, features), float32 unless `read_table` was asked for float64
    y_train, y_test  classification: class numbers 0 ... classes-1, int64 (rows,); regression: (rows, outputs) in the
                 dtype of x
    classes      number of classes; 0 for regression
    labels       labels of the classes in the data, (classes,) sorted: ints, bools, whole floats or text, so that
                 `labels[y_train]` are the labels of the rows; None for regression, and if they are 0 ... classes-1
    preparation  transforms a table's columns into x; None for data that are not a table
    notes        remarks on the reading of a table
    targets      description of the targets, such as "column 'price', numbers"; "" for data that are not a file's
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
