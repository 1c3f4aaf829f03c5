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


def model_of(
    *front: Any, backend: str = "cpu", layer: Any = None, optimizer: Any = "adam", metrics: Any = (), ema: Any = None
) -> fo.Sequential:
    """Return our model, compiled: ReLU, and softmax at the end; layer: options of each."""
    units = zip(WIDTHS[1:], ("relu", "relu", "softmax"), strict=True)
    layers = [*front, *(fo.Dense(width, activation, **(layer or {})) for width, activation in units)]
    model = fo.Sequential(layers, seed=1, backend=backend)
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics, ema=ema)
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


L2 = {"kernel_regularizer": fo.regularizers.L2(1e-6)}
MAX_NORM = {"kernel_constraint": fo.constraints.MaxNorm(8)}
METRICS = ("accuracy", "f1_macro", "top_5_accuracy")
STEPS = 10_000


def _schedule() -> fo.Optimizer:
    return fo.Adam(lr=fo.schedules.Cosine(1e-3, steps=STEPS))


def _option(fit: Callable[[np.ndarray], dict[str, Any]] = lambda y: {}, **model: Any) -> Callable[..., Any]:
    """Return `make` of a contestant: arguments of `model_of`, and of `fit`, made of the labels."""

    def make(x: np.ndarray, y: np.ndarray) -> Callable[[], float]:
        own = {name: value() if name == "optimizer" else value for name, value in model.items()}
        return epochs_of(model_of(**own), (x * (1 / 255)).astype(np.float32), y, **fit(y))

    return make


def _pruned(x: np.ndarray, y: np.ndarray) -> Callable[[], float]:
    model = model_of()
    model.build(x.shape[1])
    fo.compress.prune(model, 0.8)
    return epochs_of(model, (x * (1 / 255)).astype(np.float32), y)


def _gradual(y: np.ndarray) -> dict[str, Any]:
    steps = -(-len(y) // BATCH)
    return {"pruning": fo.compress.Pruning(0.8, every=max(1, steps // 9), end=steps)}


def _weights(y: np.ndarray) -> dict[str, Any]:
    return {"sample_weight": np.random.default_rng(0).uniform(0.5, 1.5, len(y)), "class_weight": {0: 2.0}}


def _callbacks(y: np.ndarray) -> dict[str, Any]:
    callbacks = fo.callbacks
    return {
        "callbacks": [callbacks.EarlyStopping("loss", patience=99), callbacks.ReduceLROnPlateau("loss", patience=99)]
    }


def _all(y: np.ndarray) -> dict[str, Any]:
    return _weights(y) | {"callbacks": [fo.callbacks.EarlyStopping("loss", patience=99)]}


OPTIONS = {
    "bare": Option("float32, prepared beforehand", _beforehand),
    "bytes": Option("uint8, Rescaling(1 / 255)", _bytes),
    "normalized": Option("uint8, Normalization", _normalized_bytes, same_loss=False),
    "doubles": Option("float64, prepared beforehand", _doubles),
    "l2": Option("L2 of all kernels", _option(layer=L2), same_loss=False),
    "max norm": Option("MaxNorm of all kernels", _option(layer=MAX_NORM), same_loss=False),  # factors of 1 - 1e-8
    "average": Option("average of the weights", _option(ema=fo.EMA(0.999))),
    "weights": Option("sample_weight and class_weight", _option(_weights), same_loss=False),
    "metrics": Option(", ".join(METRICS), _option(metrics=METRICS)),
    "clipping": Option("clip_norm", _option(optimizer=lambda: fo.Adam(clip_norm=1e6))),
    "schedule": Option("cosine schedule", _option(optimizer=_schedule), same_loss=False),
    "pruned": Option("masks of all kernels", _pruned, same_loss=False),
    "pruning": Option("weights pruned 9 times an epoch", _option(_gradual), same_loss=False),
    "callbacks": Option("EarlyStopping, ReduceLROnPlateau", _option(_callbacks)),
    "all": Option(
        "L2, MaxNorm, average, weights, metrics, schedule, callback at once",
        _option(_all, layer=L2 | MAX_NORM, ema=fo.EMA(0.999), metrics=METRICS, optimizer=_schedule),
        same_loss=False,
    ),
}
