"""Models and data for tests of models and their files."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastopt import Dense, Dropout, Rescaling, Sequential

CROSS_ENTROPY = "sparse_categorical_crossentropy"


def blobs(rows: int = 120, features: int = 6, classes: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Three well separated clouds: x (rows, features) float32, y (rows,) int64."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, rows)
    centres = rng.standard_normal((classes, features)) * 2
    return (centres[y] + 0.5 * rng.standard_normal((rows, features))).astype(np.float32), y


def classifier(backend: str = "numpy", **options: Any) -> Sequential:
    """A compiled, unbuilt network for `blobs`, with dropout, so that seeds and steps matter."""
    layers = [Dense(12, "relu"), Dropout(0.25), Dense(3, "softmax")]
    model = Sequential(layers, seed=options.pop("seed", 1), backend=backend, **options)
    model.compile("adam", CROSS_ENTROPY, ["accuracy"])
    return model


def trained(backend: str = "numpy", **options: Any) -> Sequential:
    """A `classifier` after one epoch on `blobs()`."""
    model = classifier(backend, **options)
    model.fit(*blobs())
    return model


def prepared(layers: Any, statistics: Any, x: Any, dtype: Any) -> np.ndarray:
    """Rows x after layers that prepare data, by their formulas: float64 (rows, inputs), then the dtype."""
    rows = np.asarray(x, np.float64)
    with np.errstate(over="ignore"):
        for layer, known in zip(layers, statistics, strict=True):
            if isinstance(layer, Rescaling):
                rows = rows * layer.scale + layer.offset
            else:
                rows = (rows - known.mean) / np.maximum(np.sqrt(known.variance), 1e-7)
        return rows.astype(dtype)


def snapshot(model: Sequential) -> dict[str, Any]:
    """State of a model that an error must not change."""
    return {
        "weights": model.get_weights(),
        "optimizer": None if model.optimizer is None else model.optimizer.state_dict(),
        "which": (id(model.optimizer), id(model.loss), model.metrics, id(model.history)),
        "counts": (model.inputs, model.epochs_done, model.backend, model.seed, model.dtype),
    }


def assert_same(left: Any, right: Any) -> None:
    """Assert that values are equal to the bit, within mappings and sequences, too."""
    if isinstance(left, dict):
        assert list(left) == list(right)
        for key in left:
            assert_same(left[key], right[key])
    elif isinstance(left, list | tuple):
        assert len(left) == len(right)
        for a, b in zip(left, right, strict=True):
            assert_same(a, b)
    elif isinstance(left, np.ndarray):
        assert left.dtype == right.dtype
        np.testing.assert_array_equal(left, right)
    else:
        assert left == right
