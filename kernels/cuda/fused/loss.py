"""Losses and metrics of the one-block kernel: those of `dense/losses.py`, for a batch in shared memory.

Each thread adds up its own sums in a fixed order. The gradient of the outputs is 0 in rows and columns of padding.
`rows` are those of the batch, `padded_rows` with the padding.
"""

from __future__ import annotations

import math

import numpy as np

from ...formulas import ACTIVATIONS, LOSSES, METRICS
from ...metrics import scored_by
from ..runtime.compile import device
from ..runtime.primitives import SHARED
from ..runtime.vectors import loader, storer
from .access import field, read_double, read_word, resolve
from .layout import COLUMN_LANES, H, L


# ---------------------------------------------------------------- metrics
def _add_each(functions):
    """A function that adds f(y, t) of each function f to its element of a tuple of sums."""
    if not functions:
        return device(_unchanged)
    function = functions[-1]

    def add_one(sums, y, t):
        return (sums[0] + function(y, t),)

    if len(functions) == 1:
        return device(add_one)
    others = _add_each(functions[:-1])

    def add(sums, y, t):
        return others(sums[:-1], y, t) + (sums[-1] + function(y, t),)  # noqa: RUF005 (Numba knows no star)

    return device(add)


def _unchanged(sums, y, t):
    return sums


def _add_values(kind):
    """Sums of the metrics of values with those of an output, as users see it, and its target."""
    T = getattr(np, kind.dtype)

    def score_as_float64(score):
        score = device(score)

        def value(y, t):
            return np.float64(score(y, t, T(0)))

        return device(value)

    scores = [METRICS[name].score for name in kind.metrics if not METRICS[name].of_classes]
    return _add_each([score_as_float64(score) for score in scores])


def _add_hits(kind):
    """Counts of the metrics of classes with those of a rank of the right class; below 0: an output is NaN."""

    def hit_or_not(score):
        score = device(score)

        def hit(rank, unused):
            return 1 if rank >= 0 and score(rank) else 0

        return device(hit)

    scores = [METRICS[name].score for name in kind.metrics if METRICS[name].of_classes]
    return _add_each([hit_or_not(score) for score in scores])


def _argmax(dtype):
    """Index of a row's largest element; of equal ones the first; -1 if one is NaN."""
    load, size = loader(dtype, 1, SHARED), np.dtype(dtype).itemsize

    def argmax(row, columns):
        best, largest = 0, load((row,), 0)[0][0]
        no_nan = largest == largest
        for j in range(1, columns):
            x = load((row,), j * size)[0][0]
            no_nan = no_nan and x == x
            if x > largest:
                best, largest = j, x
        return best if no_nan else -1

    return device(argmax)


def _rank(dtype):
    """Number of classes that a row of outputs prefers to the right one, as on the CPU; -1 if an output is NaN."""
    load, size = loader(dtype, 1, SHARED), np.dtype(dtype).itemsize

    def rank_of(row, columns, right):
        rank, no_nan, score = 0, True, load((row,), right * size)[0][0]
        for j in range(columns):
            x = load((row,), j * size)[0][0]
            no_nan = no_nan and x == x
            if x > score or (x == score and j < right):
                rank += 1
        return rank if no_nan else -1

    return device(rank_of)


def _count_hits(kind):
    """A function that adds the hits of a row to the counts of the metrics of classes."""
    argmax, rank_of, add = _argmax(kind.dtype), _rank(kind.dtype), _add_hits(kind)
    load, T, size = loader(kind.dtype, 1, SHARED), getattr(np, kind.dtype), np.dtype(kind.dtype).itemsize

    def by_label(counts, table, z, t, row, row_stride, columns):
        return add(counts, rank_of(z + row * row_stride, columns, read_word(t + row * 8)[0]), 0)

    def by_largest(counts, table, z, t, row, row_stride, columns):
        return add(counts, rank_of(z + row * row_stride, columns, argmax(t + row * row_stride, columns)), 0)

    def by_output(counts, table, z, t, row, row_stride, columns):
        z_boundary, t_boundary = read_double(table + H.z_boundary)[0], read_double(table + H.t_boundary)[0]
        for j in range(columns):
            at = row * row_stride + j * size
            x, y = load((z,), at)[0][0], load((t,), at)[0][0]
            rank = 0 if (x > T(z_boundary)) == (y > T(t_boundary)) else 1
            counts = add(counts, rank if x == x else -1, 0)
        return counts

    def by_columns(counts, table, z, t, row, row_stride, columns):
        if columns > 1:
            return by_largest(counts, table, z, t, row, row_stride, columns)
        return by_output(counts, table, z, t, row, row_stride, columns)

    def uncounted(counts, table, z, t, row, row_stride, columns):
        return counts

    first = next((name for name in kind.metrics if METRICS[name].of_classes), None)
    if first is None:
        return device(uncounted)
    one, more = (scored_by(first, kind.loss, kind.labels, columns) for columns in (1, 2))
    by_output, by_largest = device(by_output), device(by_largest)
    ways = {"labels": device(by_label), "outputs": by_output, "largest": by_largest}
    return ways[one] if one == more else device(by_columns)


# ---------------------------------------------------------------- losses
def elementwise_loss(kind):
    """Loss, gradient and metrics of a loss that is a sum over all outputs."""
    threads, row_lanes = kind.threads, kind.threads // COLUMN_LANES
    row_of_loss, T, size = LOSSES[kind.loss], getattr(np, kind.dtype), np.dtype(kind.dtype).itemsize
    load, store = loader(kind.dtype, 1, SHARED), storer(kind.dtype, 1, SHARED)
    value, slope = device(row_of_loss.value), device(row_of_loss.slope)
    add_values, count_hits = _add_values(kind), _count_hits(kind)
    link = device(ACTIVATIONS[kind.link or "linear"].value)
    zero = T(0)

    def loss_and_metrics(table, layer, rows, padded_rows, value_sums, hits, tid, column_lane, row_lane):
        z, t = resolve(table, layer + L.y), resolve(table, table + H.targets)
        dz = resolve(table, table + H.gradient)
        row_stride, columns = field(layer + L.row_stride), field(layer + L.outputs)
        param, scale = T(read_double(table + H.param)[0]), T(1) / T(rows * columns)
        # hits: one thread a row
        for row in range(tid, rows, threads):
            hits = count_hits(hits, table, z, t, row, row_stride, columns)
        # loss, gradient and metrics of values: one thread an element
        total = 0.0
        for row in range(row_lane, padded_rows, row_lanes):
            for j in range(column_lane, row_stride // size, COLUMN_LANES):
                at, d = row * row_stride + j * size, zero
                if j < columns and row < rows:
                    x, y = load((z,), at)[0][0], load((t,), at)[0][0]
                    total += np.float64(value(x, y, param))
                    d = slope(x, y, param) * scale
                    value_sums = add_values(value_sums, link(x), y)
                store((dz,), at, ((d,),))
        return total, value_sums, hits

    return device(loss_and_metrics)


def row_loss(kind, barrier):
    """Loss, gradient and metrics of a cross-entropy of softmax outputs."""
    threads, row_lanes = kind.threads, kind.threads // COLUMN_LANES
    row_of_loss, T, size = LOSSES[kind.loss], getattr(np, kind.dtype), np.dtype(kind.dtype).itemsize
    load, store = loader(kind.dtype, 1, SHARED), storer(kind.dtype, 1, SHARED)
    value, slope = device(row_of_loss.value), device(row_of_loss.slope)
    add_values, count_hits = _add_values(kind), _count_hits(kind)
    zero, one, tiny, least = T(0), T(1), T(np.finfo(kind.dtype).tiny), T(-math.inf)
    labels, has_link = kind.labels, kind.link is not None

    def loss_and_metrics(table, layer, rows, padded_rows, value_sums, hits, tid, column_lane, row_lane):
        # Threads that share a row would meet at every step of a sum. So one thread finds a row's largest element and
        # its mass, and all threads compute exponentials. row_values (3, batch): largest, log(mass), 1 / mass.
        z, t = resolve(table, layer + L.y), resolve(table, table + H.targets)
        dz = resolve(table, table + H.gradient)
        row_stride, columns = field(layer + L.row_stride), field(layer + L.outputs)
        row_values, span = resolve(table, table + H.row_values), field(table + H.batch_rows) * size
        smoothing = T(read_double(table + H.param)[0])
        floor, keep, scale = smoothing / T(columns), one - smoothing, one / T(rows)
        # the largest element of each row, and hits
        for row in range(tid, rows, threads):
            largest = least
            for j in range(columns):
                x = load((z,), row * row_stride + j * size)[0][0]
                largest = x if x > largest else largest
            store((row_values,), row * size, ((largest,),))
            hits = count_hits(hits, table, z, t, row, row_stride, columns)
        barrier()
        # exponentials, in the place of the gradient
        for row in range(row_lane, padded_rows, row_lanes):
            for j in range(column_lane, row_stride // size, COLUMN_LANES):
                at, e = row * row_stride + j * size, zero
                if j < columns and row < rows:
                    e = T(math.exp(load((z,), at)[0][0] - load((row_values,), row * size)[0][0]))
                store((dz,), at, ((e,),))
        barrier()
        # their sum for each row
        for row in range(tid, rows, threads):
            mass = zero
            for j in range(columns):
                mass += load((dz,), row * row_stride + j * size)[0][0]
            store((row_values,), span + row * size, ((T(math.log(mass)),),))
            store((row_values,), 2 * span + row * size, ((one / mass,),))
        barrier()
        # loss, gradient and metrics of values of each element
        total = 0.0
        for row in range(row_lane, rows, row_lanes):
            largest, log_mass = load((row_values,), row * size)[0][0], load((row_values,), span + row * size)[0][0]
            inv_mass = load((row_values,), 2 * span + row * size)[0][0]
            label = read_word(t + row * 8)[0] if labels else 0
            for j in range(column_lane, columns, COLUMN_LANES):
                at = row * row_stride + j * size
                if labels:  # noqa: SIM108 (a conditional expression would be typed by both branches)
                    target = one if j == label else zero
                else:
                    target = load((t,), at)[0][0]
                x, p = load((z,), at)[0][0], load((dz,), at)[0][0] * inv_mass
                value_sums = add_values(value_sums, p if has_link else x, target)
                target = target * keep + floor
                if target != zero:
                    total += np.float64(value(x - largest, target, log_mass))
                g = slope(p, target) * scale
                store((dz,), at, ((zero if abs(g) < tiny else g,),))
        return total, value_sums, hits

    return device(loss_and_metrics)
