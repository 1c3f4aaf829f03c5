"""Weights of the rows of a pass, in its order, as kernels read them; the host knows the order of an epoch."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class RowWeights(NamedTuple):
    """Weights of a pass, and their sums, in float64."""

    rows: np.ndarray  # (rows, 2): weight, and share of the gradient: weight over the sum of the step
    batches: np.ndarray  # (batches,) sums
    updates: np.ndarray  # (batches,) bool: the weights of the batch's step do not sum to 0

    @property
    def total(self) -> float:
        return float(self.batches.sum())


def weights_in_order(
    weights: np.ndarray | None, order: np.ndarray | None, batch_size: int, accumulate: int = 1
) -> RowWeights | None:
    """Return the weights (n,) of the rows `order` (None: all of them), in batches; None where rows have none.

    >>> found = weights_in_order(np.array([1.0, 3.0, 0.0]), np.array([1, 0, 2]), batch_size=2)
    >>> found.rows.tolist(), found.updates.tolist()
    ([[3.0, 0.75], [1.0, 0.25], [0.0, 0.0]], [True, False])
    """
    if weights is None:
        return None
    w = np.asarray(weights if order is None else weights[order], np.float64)
    group = batch_size * accumulate
    batches = np.add.reduceat(w, np.arange(0, len(w), batch_size))
    steps = np.add.reduceat(batches, np.arange(0, len(batches), accumulate))
    divisors = np.repeat(np.where(steps == 0, 1, steps), group)[: len(w)]
    return RowWeights(np.stack([w, w / divisors], axis=1), batches, np.repeat(steps > 0, accumulate)[: len(batches)])
