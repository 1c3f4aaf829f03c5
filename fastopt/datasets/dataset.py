"""Dataset: arrays to train and to test on, with their origin."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Dataset(NamedTuple):
    """Arrays to train and test on.

    `x_train` (rows, features) and `x_test` are float32. For classification `y_train` and `y_test` are int64
    (rows,) with labels 0 .. classes-1; for regression (`classes` is 0) they are float32 (rows, outputs).
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
