"""Metrics: sums over the rows of a batch, in float64, piece by piece as those of losses."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numba.extending import register_jitable

from ...formulas import losses
from ..runtime.compile import Kernel
from ..runtime.partition import batch_rows, pieces
from ..runtime.primitives import view
from ..runtime.records import METRIC, read
from .rows import ROWS


def _count_labels(Z, T, label, columns, w):
    best, known = 0, Z[0] == Z[0]
    for j in range(1, columns):
        known = known and Z[j] == Z[j]
        if Z[j] > Z[best]:
            best = j
    return 1.0 if known and best == label else 0.0


def _count_classes(Z, T, label, columns, w):
    best, right, known = 0, 0, Z[0] == Z[0]
    for j in range(1, columns):
        known = known and Z[j] == Z[j]
        if Z[j] > Z[best]:
            best = j
        if T[j] > T[right]:
            right = j
    return 1.0 if known and best == right else 0.0


def _count_outputs(Z, T, label, columns, w):
    total = 0.0
    for j in range(columns):
        if Z[j] == Z[j] and (Z[j] > w.z_boundary) == (T[j] > w.t_boundary):
            total += 1.0
    return total


def _sum_squares(Z, T, label, columns, w):
    total = 0.0
    for j in range(columns):
        total += losses.squared(Z[j], T[j], Z[j])
    return total


def _sum_distances(Z, T, label, columns, w):
    total = 0.0
    for j in range(columns):
        total += losses.absolute(Z[j], T[j], Z[j])
    return total


COUNTS: dict[tuple[str, str], Callable[..., Any]] = {
    ("accuracy", "labels"): _count_labels,
    ("accuracy", "dense"): _count_classes,
    ("accuracy", "outputs"): _count_outputs,
    ("mean_squared_error", "dense"): _sum_squares,
    ("mean_absolute_error", "dense"): _sum_distances,
    ("r2", "dense"): _sum_squares,
}


def _metric(count, real, width, labels):
    def metric(work, step, rank, ranks):
        w = read(work, METRIC)
        rows, sums = batch_rows(w.run, step), view(w.sums, pieces(batch_rows(w.run, step), ROWS), np.float64)
        for piece in range(rank, pieces(rows, ROWS), ranks):
            total = 0.0
            for i in range(piece * ROWS, min(rows, (piece + 1) * ROWS)):
                Z = view(w.z + i * w.stride * width, w.columns, real)
                T = view(0 if labels else w.t + i * w.stride * width, w.columns, real)
                label = view(w.t + i * 8, 1, np.int64)[0] if labels else 0
                total += count(Z, T, label, w.columns, w)
            sums[piece] = total

    return metric


@cache
def metric_kernel(name: str, targets: str, dtype: str) -> Kernel:
    """A count of COUNTS; targets: "labels", "dense", or "outputs", where accuracy counts each output by itself."""
    count = register_jitable(error_model="numpy")(COUNTS[name, targets])
    function = _metric(count, getattr(np, dtype), np.dtype(dtype).itemsize, targets == "labels")
    return Kernel(function, f"metric_{name}_{targets}_{dtype}")
