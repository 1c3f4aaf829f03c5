"""Figures of models whose targets were scaled, in the units of the targets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from ..model import Sequential


def in_own_units(model: Sequential, x: np.ndarray, y: np.ndarray, figures: Mapping[str, float]) -> dict[str, float]:
    """Return what `evaluate` has found, with the metrics (not the loss) of scaled targets in the targets' own units."""
    if model.target_scale is None:
        return dict(figures)
    targets = np.asarray(y, np.float64).reshape(len(y), -1)
    errors = model.predict(x).astype(np.float64) - targets
    spread = float(np.square(targets - targets.mean(axis=0)).sum())
    squares = float(np.square(errors).sum())
    exact = 1.0 if squares == 0 else 0.0
    own = {
        "mean_squared_error": squares / errors.size,
        "mean_absolute_error": float(np.abs(errors).mean()),
        "r2": exact if spread == 0 else 1.0 - squares / spread,
    }
    return {name: own.get(name, value) for name, value in figures.items()}
