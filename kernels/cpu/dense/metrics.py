"""Metrics: sums over the rows of a batch, in float64, piece by piece as those of losses.

metric_...   one sum: of the scores of a metric
counts_...   sums for each class: how often a row is one and was predicted to be, was predicted to be, and is
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from ...formulas import METRICS
from ...metrics import scored_forms
from ..runtime.compile import Kernel
from ..runtime.frontend import register_jitable
from ..runtime.partition import batch_rows, num_pieces
from ..runtime.primitives import view
from ..runtime.records import METRIC, WEIGHTS, read
from .rows import ROWS


def _weight_of_row(T, weighted):
    """f: the weight of row i of a batch, 1 where rows have none; w: the record METRIC."""

    def weight_of_row(w, i):
        return np.float64(view(read(w.weights, WEIGHTS).batch_weights, i + 1, T)[i]) if weighted else 1.0

    return register_jitable(error_model="numpy")(weight_of_row)


@register_jitable(error_model="numpy")
def _class_rank(Z, right, columns):
    """Number of classes that outputs Z prefer to the right one: larger, or equal and before it. -1 if one is NaN."""
    rank, is_number, score = 0, True, Z[right]
    for j in range(columns):
        is_number = is_number and Z[j] == Z[j]
        if Z[j] > score or (Z[j] == score and j < right):
            rank += 1
    return rank if is_number else -1


def _of_labels(score):
    def hits(Z, targets, label, columns, w):
        rank = _class_rank(Z, label, columns)
        return 1.0 if rank >= 0 and score(rank) else 0.0

    return hits


def _of_largest_targets(score):
    def hits(Z, targets, label, columns, w):
        # the right class: the first with the largest target
        right = 0
        for j in range(1, columns):
            if targets[j] > targets[right]:
                right = j
        rank = _class_rank(Z, right, columns)
        return 1.0 if rank >= 0 and score(rank) else 0.0

    return hits


def _of_outputs(score):
    def hits(Z, targets, label, columns, w):
        # an output has two classes: the right one is preferred (rank 0) or the other (rank 1)
        total = 0.0
        for j in range(columns):
            rank = 0 if (Z[j] > w.z_boundary) == (targets[j] > w.t_boundary) else 1
            if Z[j] == Z[j] and score(rank):
                total += 1.0
        return total

    return hits


def _of_values(score):
    def total(Z, targets, label, columns, w):
        total = 0.0
        for j in range(columns):
            total += score(Z[j], targets[j], Z[j])
        return total

    return total


SCORES: dict[str, Callable[..., Any]] = {  # of a row, by the names in SCORED
    "labels": _of_labels,
    "largest": _of_largest_targets,
    "outputs": _of_outputs,
    "values": _of_values,
}


def _metric(score, T, itemsize, has_labels, weighted):
    weight_of_row = _weight_of_row(T, weighted)

    def metric(work, step, rank, num_ranks):
        w = read(work, METRIC)
        rows = batch_rows(w.run, step)
        sums = view(w.sums, num_pieces(rows, ROWS), np.float64)
        for piece in range(rank, num_pieces(rows, ROWS), num_ranks):
            # the piece's sum of scores, row by row
            total = 0.0
            for i in range(piece * ROWS, min(rows, (piece + 1) * ROWS)):
                Z = view(w.z + i * w.stride * itemsize, w.columns, T)
                targets = view(0 if has_labels else w.t + i * w.stride * itemsize, w.columns, T)
                label = view(w.t + i * 8, 1, np.int64)[0] if has_labels else 0
                weight = weight_of_row(w, i)
                # a row of weight 0 is absent: its score may be inf or NaN
                if weight != 0:
                    total += weight * score(Z, targets, label, w.columns, w)
            sums[piece] = total

    return metric


@cache
def _compilable(score: Callable[..., Any]) -> Callable[..., Any]:
    """The score of a metric; one that was made for a number, such as the first three, is compiled with this number."""
    made = score.__closure__ is not None
    return register_jitable(error_model="numpy", forceinline=True)(score) if made else score


@cache
def metric_kernel(name: str, scored: str, dtype: str, weighted: bool) -> Kernel:
    """Sums of a row of METRICS; scored: one of SCORED; weighted: by the weights of rows."""
    score = register_jitable(error_model="numpy")(SCORES[scored](_compilable(METRICS[name].score)))
    function = _metric(score, getattr(np, dtype), np.dtype(dtype).itemsize, scored == "labels", weighted)
    return Kernel(function, f"metric_{name}_{scored}{'_weighted' * weighted}_{dtype}")


# ---------------------------------------------------------------- counts of classes
@register_jitable(error_model="numpy")
def _largest(Z, columns):
    """Index of the largest element, of equal ones the first; -1 if one is NaN."""
    best, is_number = 0, True
    for j in range(columns):
        is_number = is_number and Z[j] == Z[j]
        if Z[j] > Z[best]:
            best = j
    return best if is_number else -1


@register_jitable(error_model="numpy")
def _count_rows(Z, targets, label, columns, right, predicted, actual, w, weight):
    # targets of no columns: the class is the label
    is_class = label if len(targets) == 0 else _largest(targets, columns)
    found = _largest(Z, columns)
    actual[is_class] += weight
    if found >= 0:
        predicted[found] += weight
        if found == is_class:
            right[found] += weight


@register_jitable(error_model="numpy")
def _count_outputs(Z, targets, label, columns, right, predicted, actual, w, weight):
    # an output is two classes: it is not, or it is
    for j in range(columns):
        is_class = 2 * j + (1 if targets[j] > w.t_boundary else 0)
        found = 2 * j + (1 if Z[j] > w.z_boundary else 0)
        actual[is_class] += weight
        if Z[j] == Z[j]:
            predicted[found] += weight
            if found == is_class:
                right[found] += weight


def _counts(count, T, itemsize, has_labels, by_output, weighted):
    weight_of_row = _weight_of_row(T, weighted)

    def counts(work, step, rank, num_ranks):
        w = read(work, METRIC)
        rows, classes = batch_rows(w.run, step), 2 * w.columns if by_output else w.columns
        for piece in range(rank, num_pieces(rows, ROWS), num_ranks):
            # the piece's counts: right, predicted, actual
            sums = w.sums + piece * 3 * classes * 8
            right, predicted = view(sums, classes, np.float64), view(sums + classes * 8, classes, np.float64)
            actual = view(sums + 2 * classes * 8, classes, np.float64)
            for k in range(classes):
                right[k] = predicted[k] = actual[k] = 0.0
            for i in range(piece * ROWS, min(rows, (piece + 1) * ROWS)):
                Z = view(w.z + i * w.stride * itemsize, w.columns, T)
                targets = view(0 if has_labels else w.t + i * w.stride * itemsize, 0 if has_labels else w.columns, T)
                label = view(w.t + i * 8, 1, np.int64)[0] if has_labels else 0
                count(Z, targets, label, w.columns, right, predicted, actual, w, weight_of_row(w, i))

    return counts


@cache
def counts_kernel(scored: str, dtype: str, weighted: bool) -> Kernel:
    """Counts of all classes; scored: one of SCORED but values; weighted: sums of the weights of rows."""
    by_output = scored == "outputs"
    count = _count_outputs if by_output else _count_rows
    function = _counts(count, getattr(np, dtype), np.dtype(dtype).itemsize, scored == "labels", by_output, weighted)
    return Kernel(function, f"counts_{scored}{'_weighted' * weighted}_{dtype}")


def metric_kernels(dtype: str, weighted: bool = False) -> list[Kernel]:
    """Every kernel of a dtype."""
    forms = {name: scored_forms(name) for name in METRICS}
    kernels = [
        counts_kernel(scored, dtype, weighted)
        if METRICS[name].of_counts
        else metric_kernel(name, scored, dtype, weighted)
        for name, found in forms.items()
        for scored in found
    ]
    return list(dict.fromkeys(kernels))
