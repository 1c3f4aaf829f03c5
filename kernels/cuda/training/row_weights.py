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


def apart(values: np.ndarray, sizes: np.ndarray, batch: int) -> np.ndarray:
    """The values (rows, ...) with those of each batch at a multiple of `batch`, where it begins on the device.

    There are zeros between.

    >>> apart(np.array([5, 6, 7]), np.array([2, 1]), batch=4).tolist()
    [5, 6, 0, 0, 7, 0, 0, 0]
    """
    padded = np.zeros((len(sizes) * batch, *values.shape[1:]), values.dtype)
    starts = np.arange(len(sizes)) * batch - np.cumsum(sizes) + sizes
    padded[np.repeat(starts, sizes) + np.arange(len(values))] = values
    return padded


def weights_in_order(
    weights: np.ndarray | None, order: np.ndarray | None, batch_size: int, accumulate: int = 1,
    sizes: np.ndarray | None = None,
) -> RowWeights | None:  # fmt: skip
    """Return the weights (n,) of the rows `order` (None: all of them), in batches; None where rows have none.

    sizes: rows of every batch, whose weights are then `apart`; None: full batches, and what is left.

    >>> found = weights_in_order(np.array([1.0, 3.0, 0.0]), np.array([1, 0, 2]), batch_size=2)
    >>> found.rows.tolist(), found.updates.tolist()
    ([[3.0, 0.75], [1.0, 0.25], [0.0, 0.0]], [True, False])
    """
    if weights is None:
        return None
    w = np.asarray(weights if order is None else weights[order], np.float64)
    starts = np.arange(0, len(w), batch_size) if sizes is None else np.cumsum(sizes) - sizes
    batches = np.add.reduceat(w, starts)
    steps = np.add.reduceat(batches, np.arange(0, len(batches), accumulate))
    of_rows = np.diff(starts, append=len(w))
    divisors = np.repeat(np.repeat(np.where(steps == 0, 1, steps), accumulate)[: len(batches)], of_rows)
    rows = np.stack([w, w / divisors], axis=1)
    rows = rows if sizes is None else apart(rows, sizes, batch_size)
    return RowWeights(rows, batches, np.repeat(steps > 0, accumulate)[: len(batches)])
