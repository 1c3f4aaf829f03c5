"""Options of `fit` beside a bare fit: epochs of 784-256-128-10 on Fashion-MNIST, in batches of 64.

All start from the same weights. A row of OPTIONS makes a contestant. Where the package of the images is absent, bytes
at random take their place.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np

import fastopt as fo

BATCH, WIDTHS = 64, (784, 256, 128, 10)


class Option(NamedTuple):
    """A contestant: data and model of an epoch."""

    title: str
    make: Callable[[np.ndarray, np.ndarray], Any]  # bytes (n, 784), labels (n,) -> epoch() -> loss
    same_loss: bool = True  # True: to the last bit that of the bare fit


@cache
def images() -> tuple[np.ndarray, np.ndarray]:
    """Return x (60000, 784) uint8 and y (60000,) int64."""
    try:
        data = fo.datasets.load("fashion-mnist")
        x = np.rint(data.x_train.reshape(len(data.x_train), -1) * (1 if data.x_train.dtype == np.uint8 else 255))
        return x.astype(np.uint8), data.y_train.astype(np.int64)
    except (OSError, ValueError):
        rng = np.random.default_rng(0)
        return rng.integers(0, 256, (60_000, WIDTHS[0]), np.uint8), rng.integers(0, WIDTHS[-1], 60_000)


def model_of(*front: Any, backend: str = "cpu") -> fo.Sequential:
    """Return our model, compiled with Adam: ReLU, and softmax at the end."""
    layers = [*front, fo.Dense(WIDTHS[1], "relu"), fo.Dense(WIDTHS[2], "relu"), fo.Dense(WIDTHS[3], "softmax")]
    model = fo.Sequential(layers, seed=1, backend=backend)
    model.compile("adam", "sparse_categorical_crossentropy")
    return model


def epochs_of(model: fo.Sequential, x: np.ndarray, y: np.ndarray, **options: Any) -> Callable[[], float]:
    """Return a function that trains for an epoch more and returns its loss."""
    return lambda: model.fit(x, y, batch_size=BATCH, verbose=0, **options)["loss"][-1]


def _beforehand(x: np.ndarray, y: np.ndarray) -> Callable[[], float]:
    return epochs_of(model_of(), (x * (1 / 255)).astype(np.float32), y)


def _bytes(x: np.ndarray, y: np.ndarray) -> Callable[[], float]:
    return epochs_of(model_of(fo.Rescaling(1 / 255)), x, y)


def _normalized_bytes(x: np.ndarray, y: np.ndarray) -> Callable[[], float]:
    return epochs_of(model_of(fo.Normalization(mean=72.9, variance=8109.0)), x, y)


def _doubles(x: np.ndarray, y: np.ndarray) -> Callable[[], float]:
    return epochs_of(model_of(), x * (1 / 255), y)


OPTIONS = {
    "bare": Option("float32, prepared beforehand", _beforehand),
    "bytes": Option("uint8, Rescaling(1 / 255)", _bytes),
    "normalized": Option("uint8, Normalization", _normalized_bytes, same_loss=False),
    "doubles": Option("float64, prepared beforehand", _doubles),
}
