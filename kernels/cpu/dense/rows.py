"""Phases that go through a batch row by row: gathering it, dropout, losses with their gradients, metrics, totals.

Sums over the batch are taken in float64 within pieces of ROWS rows and then over the pieces in order, so they do not
depend on the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from math import log
from typing import Any

import numpy as np
from numba.extending import register_jitable

from ...formulas import LOSSES, METRICS, dropout_draw, dropout_key
from ...formulas.functions import exp
from ...metrics import OF_CLASSES
from ...spec import LossSpec
from ..runtime.compile import Kernel
from ..runtime.launch import parallel, ranks_for
from ..runtime.primitives import address_of, call_tile, prefetch, view, word
from ..runtime.records import ACTIVATE, DROPOUT, GATHER, LOSS, METRIC, RUN, TOTAL, fill, read
from .layer import activate_kernel, batch_rows, pieces, span

ROWS = 32
AHEAD = 4  # rows that are asked for before they are copied
ELEMENTS = 8_192  # outputs that deserve a thread in a loss or an activation


# ---------------------------------------------------------------- the batch
def _gather(real, width):
    def gather(work, step, rank, ranks):
        g = read(work, GATHER)
        run = read(g.run, RUN)
        rows, start = batch_rows(g.run, step), step * run.batch
        order = view(run.order, run.rows if run.order else 0, np.int64)
        down = pieces(rows, ROWS)
        for piece in span(pieces(g.inputs, g.part) * down, rank, ranks):
            c, down_to = piece // down * g.part, piece % down * ROWS
            n = min(g.part, g.inputs - c)
            for i in range(down_to, min(rows, down_to + ROWS)):
                row = order[start + i] if run.order else start + i
                if run.order and start + i + AHEAD < run.rows:
                    ahead = g.x + (order[start + i + AHEAD] * g.inputs + c) * width
                    for line in range(0, n * width, 64):
                        prefetch(ahead + line)
                source = view(g.x + (row * g.inputs + c) * width, n, real)
                target = view(g.into_x + (i * g.inputs + c) * width, n, real)
                for j in range(n):
                    target[j] = source[j]
                if c:  # the targets go with the first part
                    continue
                if g.labels:
                    view(g.into_y + i * 8, 1, np.int64)[0] = view(g.y + row * 8, 1, np.int64)[0]
                elif g.y:
                    source = view(g.y + row * g.targets * width, g.targets, real)
                    target = view(g.into_y + i * g.targets * width, g.targets, real)
                    for j in range(g.targets):
                        target[j] = source[j]

    return gather


def _scatter(real, width):
    def scatter(work, step, rank, ranks):
        # The way back of `gather`: rows of the batch into rows of x, in order.
        g = read(work, GATHER)
        rows, start = batch_rows(g.run, step), step * read(g.run, RUN).batch
        for piece in range(rank, pieces(rows, ROWS), ranks):
            size = min(rows - piece * ROWS, ROWS) * g.inputs
            source = view(g.into_x + piece * ROWS * g.inputs * width, size, real)
            target = view(g.x + (start + piece * ROWS) * g.inputs * width, size, real)
            for i in range(size):
                target[i] = source[i]

    return scatter


def _dropout(real, width):
    def dropout(work, step, rank, ranks):
        # Forward x -> y; backward the same with dy -> dx: the mask is drawn again, not kept.
        d = read(work, DROPOUT)
        run = read(d.run, RUN)
        key = dropout_key(word(d.stream), word(run.first + step + 1))
        threshold, scale, zero = word(d.threshold), real(d.scale), real(0)
        rows = batch_rows(d.run, step)
        for piece in range(rank, pieces(rows, ROWS), ranks):
            start = piece * ROWS * d.columns
            size = min(rows - piece * ROWS, ROWS) * d.columns
            X, Y = view(d.x + start * width, size, real), view(d.y + start * width, size, real)
            for i in range(size):
                kept = dropout_draw(key, word(start + i)) >= threshold
                Y[i] = X[i] * scale if kept else zero

    return dropout


def _exponentials(real):
    @register_jitable(error_model="numpy")
    def exponentials(z, e, rows, columns, width):
        # e = exp(z - the largest z of the row): one loop for the rows' ends, one for all exponentials.
        Z, E = view(z, rows * columns, real), view(e, rows * columns, real)
        for i in range(rows):
            start = i * columns
            top = Z[start]
            for j in range(start + 1, start + columns):
                top = max(top, Z[j])
            for j in range(start, start + columns):
                E[j] = Z[j] - top
        for j in range(rows * columns):
            E[j] = exp(E[j])

    return exponentials


def _activate_rows(real, width):
    exponentials = _exponentials(real)

    def activate(work, step, rank, ranks):
        a = read(work, ACTIVATE)
        rows, columns = batch_rows(a.run, step), a.columns
        for piece in range(rank, pieces(rows, ROWS), ranks):
            skip, high = piece * ROWS * columns * width, min(rows - piece * ROWS, ROWS)
            if a.activate:
                call_tile(a.activate, a.z + skip, 0, a.y + skip, 0, 1, high * columns, high * columns)
                continue
            exponentials(a.z + skip, a.y + skip, high, columns, width)
            for i in range(high):
                Y = view(a.y + skip + i * columns * width, columns, real)
                mass = real(0)
                for j in range(columns):
                    mass += Y[j]
                for j in range(columns):
                    Y[j] /= mass

    return activate


# ---------------------------------------------------------------- losses
def _elementwise(value, slope, real, width):
    def loss(work, step, rank, ranks):
        w = read(work, LOSS)
        rows = batch_rows(w.run, step)
        param, scale, sums = real(w.param), real(1.0 / (rows * w.columns)), view(w.sums, pieces(rows, ROWS), np.float64)
        for piece in range(rank, pieces(rows, ROWS), ranks):
            skip = piece * ROWS * w.columns * width
            size = min(rows - piece * ROWS, ROWS) * w.columns
            Z, T = view(w.z + skip, size, real), view(w.t + skip, size, real)
            total = 0.0
            for i in range(size):
                total += value(Z[i], T[i], param)
            sums[piece] = total
            D = view(w.dz + skip, size, real)
            for i in range(size):
                D[i] = slope(Z[i], T[i], param) * scale

    return loss


def _by_row(value, slope, real, width, labels):
    exponentials = _exponentials(real)

    def loss(work, step, rank, ranks):
        # t is the smoothed target; the sum over a row of value(z, t, log_sum) is its cross-entropy. z is taken from the
        # row's largest: added to a large z, log_sum would lose its digits.
        w = read(work, LOSS)
        rows, columns = batch_rows(w.run, step), w.columns
        smooth, scale, sums = real(w.param), real(1.0 / rows), view(w.sums, pieces(rows, ROWS), np.float64)
        zero, one = real(0), real(1)
        floor, keep = smooth / real(columns), one - smooth
        for piece in range(rank, pieces(rows, ROWS), ranks):
            total, high = 0.0, min(rows - piece * ROWS, ROWS)
            first = piece * ROWS * columns * width
            exponentials(w.z + first, w.dz + first, high, columns, width)
            for i in range(piece * ROWS, piece * ROWS + high):
                at = i * columns * width
                Z, E = view(w.z + at, columns, real), view(w.dz + at, columns, real)
                T = view(0 if labels else w.t + at, columns, real)
                label = view(w.t + i * 8, 1, np.int64)[0] if labels else 0
                mass, top = zero, Z[0]
                for j in range(columns):
                    mass += E[j]
                    top = max(top, Z[j])
                log_sum, share = real(log(mass)), one / mass
                if labels and smooth == 0:
                    total += value(Z[label] - top, one, log_sum)
                else:
                    for j in range(columns):
                        t = ((one if j == label else zero) if labels else T[j]) * keep + floor
                        total += value(Z[j] - top, t, log_sum) if t != 0 else zero
                for j in range(columns):
                    t = ((one if j == label else zero) if labels else T[j]) * keep + floor
                    E[j] = slope(E[j] * share, t) * scale
            sums[piece] = total

    return loss


@cache
def loss_kernel(name: str, dtype: str) -> Kernel:
    row, real, width = LOSSES[name], getattr(np, dtype), np.dtype(dtype).itemsize
    if row.by_row:
        function = _by_row(row.value, row.slope, real, width, row.targets == "labels")
    else:
        function = _elementwise(row.value, row.slope, real, width)
    return Kernel(function, f"loss_{name}_{dtype}")


# ---------------------------------------------------------------- metrics
@register_jitable(error_model="numpy")
def _rank(Z, right, columns):
    """Number of classes that outputs Z prefer to the right one: larger, or equal and before it. -1 if one is NaN."""
    rank, known, score = 0, True, Z[right]
    for j in range(columns):
        known = known and Z[j] == Z[j]
        if Z[j] > score or (Z[j] == score and j < right):
            rank += 1
    return rank if known else -1


def _of_labels(score):
    def hits(Z, T, label, columns, w):
        rank = _rank(Z, label, columns)
        return 1.0 if rank >= 0 and score(rank) else 0.0

    return hits


def _of_largest_targets(score):
    def hits(Z, T, label, columns, w):
        right = 0
        for j in range(1, columns):
            if T[j] > T[right]:
                right = j
        rank = _rank(Z, right, columns)
        return 1.0 if rank >= 0 and score(rank) else 0.0

    return hits


def _of_outputs(score):
    def hits(Z, T, label, columns, w):
        # Of the two classes of an output the right one is preferred, or it is not.
        total = 0.0
        for j in range(columns):
            rank = 0 if (Z[j] > w.z_boundary) == (T[j] > w.t_boundary) else 1
            if Z[j] == Z[j] and score(rank):
                total += 1.0
        return total

    return hits


def _of_values(score):
    def total(Z, T, label, columns, w):
        total = 0.0
        for j in range(columns):
            total += score(Z[j], T[j], Z[j])
        return total

    return total


SCORES: dict[str, Callable[..., Any]] = {  # of a row, by the names in SCORED
    "labels": _of_labels,
    "largest": _of_largest_targets,
    "outputs": _of_outputs,
    "values": _of_values,
}


def _metric(score, real, width, labels):
    def metric(work, step, rank, ranks):
        w = read(work, METRIC)
        rows, sums = batch_rows(w.run, step), view(w.sums, pieces(batch_rows(w.run, step), ROWS), np.float64)
        for piece in range(rank, pieces(rows, ROWS), ranks):
            total = 0.0
            for i in range(piece * ROWS, min(rows, (piece + 1) * ROWS)):
                Z = view(w.z + i * w.stride * width, w.columns, real)
                T = view(0 if labels else w.t + i * w.stride * width, w.columns, real)
                label = view(w.t + i * 8, 1, np.int64)[0] if labels else 0
                total += score(Z, T, label, w.columns, w)
            sums[piece] = total

    return metric


@cache
def metric_kernel(name: str, scored: str, dtype: str) -> Kernel:
    """Sums of a row of METRICS; scored: one of SCORED."""
    score = register_jitable(error_model="numpy")(SCORES[scored](METRICS[name].score))
    function = _metric(score, getattr(np, dtype), np.dtype(dtype).itemsize, scored == "labels")
    return Kernel(function, f"metric_{name}_{scored}_{dtype}")


def metric_kernels(dtype: str) -> list[Kernel]:
    """Every kernel of a dtype."""
    kinds = {name: OF_CLASSES if row.of_classes else ("values",) for name, row in METRICS.items()}
    return [metric_kernel(name, scored, dtype) for name, some in kinds.items() for scored in some]


# ---------------------------------------------------------------- totals
def _total(work, step, rank, ranks):
    if rank == 0:
        t = read(work, TOTAL)
        count = pieces(batch_rows(t.run, step), ROWS)
        sums, into = view(t.sums, count, np.float64), view(t.into + step * t.stride, 1, np.float64)
        total = 0.0
        for i in range(count):
            total += sums[i]
        into[0] += total


def _finish(work, step, rank, ranks):
    if rank == 0:
        run = read(work, RUN)
        run.done = step + 1
        run.halt = run.stop


TOTAL_KERNEL = Kernel(_total, "total")
FINISH_KERNEL = Kernel(_finish, "finish")

ROW_PHASES: dict[str, Callable[..., Any]] = {
    "gather": _gather,
    "scatter": _scatter,
    "dropout": _dropout,
    "activate_rows": _activate_rows,
}


@cache
def rows_kernel(phase: str, dtype: str) -> Kernel:
    return Kernel(ROW_PHASES[phase](getattr(np, dtype), np.dtype(dtype).itemsize), f"{phase}_{dtype}")


# ---------------------------------------------------------------- verbs
def loss_param(spec: LossSpec) -> float:
    """The one parameter a loss may have."""
    row = LOSSES[spec.name]
    return next((float(spec.params.get(name, default)) for name, default in row.params.items()), 0.0)


def loss(spec: LossSpec, outputs, targets, gradient=None) -> float:
    """The mean loss of outputs (rows, columns); writes its gradient if given."""
    gradient = np.empty_like(outputs) if gradient is None else gradient
    rows, columns = outputs.shape
    dtype, count = outputs.dtype.name, pieces(rows, ROWS)
    run, sums = fill(RUN, batch=rows, rows=rows), np.zeros(count)
    work = fill(LOSS, run=run, z=outputs, t=targets, dz=gradient, columns=columns, sums=sums, param=loss_param(spec))
    ranks = ranks_for(outputs.size, ELEMENTS, count)
    parallel(loss_kernel(spec.name, dtype), address_of(work), 0, ranks)
    return float(sums.sum()) / (rows if LOSSES[spec.name].by_row else outputs.size)


def activate(name: str, z, y) -> None:
    """y = f(z), elementwise or, for softmax, over rows (rows, columns); y may be z."""
    if not z.size:
        return
    rows, columns = z.shape if z.ndim == 2 else (1, z.size)
    dtype = z.dtype.name
    code = 0 if name == "softmax" else activate_kernel(name, dtype).address
    run = fill(RUN, batch=rows, rows=rows)
    work = fill(ACTIVATE, run=run, z=z, y=y, columns=columns, activate=code)
    parallel(rows_kernel("activate_rows", dtype), address_of(work), 0, ranks_for(z.size, ELEMENTS, pieces(rows, ROWS)))
