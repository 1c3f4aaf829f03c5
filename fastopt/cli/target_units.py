"""Metrics in the units of the targets, for models that scaled their targets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from ..kernels.metrics import variation_of

if TYPE_CHECKING:
    from ..models.sequential import Sequential


def metrics_in_target_units(
    model: Sequential, x: np.ndarray, y: np.ndarray, results: Mapping[str, float]
) -> dict[str, float]:
    """Return the results of `evaluate`, its metrics (not the loss) converted from scaled targets to their own units."""
    if model.target_scale is None:
        return dict(results)
    targets = np.asarray(y, np.float64).reshape(len(y), -1)
    errors = model.predict(x).astype(np.float64) - targets
    squares, variation = np.square(errors).sum(axis=0), variation_of(targets, None)
    own = {
        "mean_squared_error": float(squares.sum()) / errors.size,
        "mean_absolute_error": float(np.abs(errors).mean()),
        "r2": variation.r2([float(squares[first:end].sum()) for first, end in variation.parts]),
    }
    return {name: own.get(name, value) for name, value in results.items()}
