"""Losses and metrics within the kernel of a small network: as in `losses.py`, of a batch in shared memory.

What they leave are sums of each thread, in a fixed order, and the gradient of the outputs, 0 in rows and columns that
are only there to fill up. `rows` are those of the batch, `padded_rows` with those that it is filled up with.
"""

from __future__ import annotations

import math

import numpy as np

from ...formulas import ACTIVATIONS, LOSSES, METRICS
from ...metrics import scored_by
from ..runtime.compile import device
from ..runtime.primitives import SHARED, loader, reader, storer, writer
from .layout import COLUMN_LANES, H, L

read_word = reader("int64", 1, SHARED)
read_double, write_double = reader("float64", 1, SHARED), writer("float64", SHARED)


def _added(functions):
    """A function that adds each function's number of (y, t) to its own of a tuple of sums."""
    function = functions[-1]

    def last(sums, y, t):
        return (sums[0] + function(y, t),)

    if len(functions) == 1:
        return device(last)
    others = _added(functions[:-1])

    def each(sums, y, t):
        return others(sums[:-1], y, t) + (sums[-1] + function(y, t),)  # noqa: RUF005 (Numba knows no star)

    return device(each)


def _unchanged(sums, y, t):
    return sums


def _values(kind):
    """What metrics of values add to their sums, of an output as it is shown and its target."""
    real = getattr(np, kind.dtype)

    def of(score):
        score = device(score)

        def value(y, t):
            return np.float64(score(y, t, real(0)))

        return device(value)

    scores = [METRICS[name].score for name in kind.metrics if not METRICS[name].of_classes]
    return _added([of(score) for score in scores]) if scores else device(_unchanged)


def _hits(kind):
    """What metrics of classes add to their counts, of the rank of the right class; below 0: an output is NaN."""

    def of(score):
        score = device(score)

        def hit(rank, unused):
            return 1 if rank >= 0 and score(rank) else 0

        return device(hit)

    scores = [METRICS[name].score for name in kind.metrics if METRICS[name].of_classes]
    return _added([of(score) for score in scores]) if scores else device(_unchanged)


def _largest(dtype):
    """The number of the largest element of a row; of equal ones the first; -1 if one is NaN."""
    load, size = loader(dtype, 1, SHARED), np.dtype(dtype).itemsize

    def best_of(row, columns):
        best, most = 0, load((row,), 0)[0][0]
        known = most == most
        for j in range(1, columns):
            x = load((row,), j * size)[0][0]
            known = known and x == x
            if x > most:
                best, most = j, x
        return best if known else -1

    return device(best_of)


def _rank(dtype):
    """The number of classes that a row of outputs prefers to the right one, as on the CPU; -1 if an output is NaN."""
    load, size = loader(dtype, 1, SHARED), np.dtype(dtype).itemsize

    def rank_of(row, columns, right):
        rank, known, score = 0, True, load((row,), right * size)[0][0]
        for j in range(columns):
            x = load((row,), j * size)[0][0]
            known = known and x == x
            if x > score or (x == score and j < right):
                rank += 1
        return rank if known else -1

    return device(rank_of)


def _count(kind):
    """A function that adds to the counts of metrics what is right in a row."""
    best, rank_of, add = _largest(kind.dtype), _rank(kind.dtype), _hits(kind)
    load, real, size = loader(kind.dtype, 1, SHARED), getattr(np, kind.dtype), np.dtype(kind.dtype).itemsize

    def of_label(counts, table, z, t, row, row_stride, columns):
        return add(counts, rank_of(z + row * row_stride, columns, read_word(t + row * 8)[0]), 0)

    def of_largest(counts, table, z, t, row, row_stride, columns):
        return add(counts, rank_of(z + row * row_stride, columns, best(t + row * row_stride, columns)), 0)

    def of_outputs(counts, table, z, t, row, row_stride, columns):
        z_boundary, t_boundary = read_double(table + H.z_boundary)[0], read_double(table + H.t_boundary)[0]
        for j in range(columns):
            at = row * row_stride + j * size
            x, y = load((z,), at)[0][0], load((t,), at)[0][0]
            rank = 0 if (x > real(z_boundary)) == (y > real(t_boundary)) else 1
            counts = add(counts, rank if x == x else -1, 0)
        return counts

    def of_either(counts, table, z, t, row, row_stride, columns):
        if columns > 1:
            return of_largest(counts, table, z, t, row, row_stride, columns)
        return of_outputs(counts, table, z, t, row, row_stride, columns)

    def uncounted(counts, table, z, t, row, row_stride, columns):
        return counts

    first = next((name for name in kind.metrics if METRICS[name].of_classes), None)
    if first is None:
        return device(uncounted)
    one, more = (scored_by(first, kind.loss, kind.labels, columns) for columns in (1, 2))
    of_outputs, of_largest = device(of_outputs), device(of_largest)
    ways = {"labels": device(of_label), "outputs": of_outputs, "largest": of_largest}
    return ways[one] if one == more else device(of_either)


def judge_elements(kind):
    threads, row_lanes = kind.threads, kind.threads // COLUMN_LANES
    row_of_loss, real, size = LOSSES[kind.loss], getattr(np, kind.dtype), np.dtype(kind.dtype).itemsize
    load, store = loader(kind.dtype, 1, SHARED), storer(kind.dtype, 1, SHARED)
    value, slope, values, count = device(row_of_loss.value), device(row_of_loss.slope), _values(kind), _count(kind)
    shown = device(ACTIVATIONS[kind.link or "linear"].value)
    zero = real(0)

    def judge(table, layer, rows, padded_rows, found, counts, tid, column_lane, row_lane):
        z, t = table + read_word(layer + L.y)[0], table + read_word(table + H.targets)[0]
        dz = table + read_word(table + H.gradient)[0]
        row_stride, columns = read_word(layer + L.row_stride)[0], read_word(layer + L.outputs)[0]
        a, scale = real(read_double(table + H.param)[0]), real(1) / real(rows * columns)
        for row in range(tid, rows, threads):
            counts = count(counts, table, z, t, row, row_stride, columns)
        total = 0.0
        for row in range(row_lane, padded_rows, row_lanes):
            for j in range(column_lane, row_stride // size, COLUMN_LANES):
                at, d = row * row_stride + j * size, zero
                if j < columns and row < rows:
                    x, y = load((z,), at)[0][0], load((t,), at)[0][0]
                    total += np.float64(value(x, y, a))
                    d = slope(x, y, a) * scale
                    found = values(found, shown(x), y)
                store((dz,), at, ((d,),))
        return total, found, counts

    return device(judge)


def judge_rows(kind, meet):
    threads, row_lanes = kind.threads, kind.threads // COLUMN_LANES
    row_of_loss, real, size = LOSSES[kind.loss], getattr(np, kind.dtype), np.dtype(kind.dtype).itemsize
    load, store = loader(kind.dtype, 1, SHARED), storer(kind.dtype, 1, SHARED)
    value, slope, values, count = device(row_of_loss.value), device(row_of_loss.slope), _values(kind), _count(kind)
    zero, one, tiny, least = real(0), real(1), real(np.finfo(kind.dtype).tiny), real(-math.inf)
    labels, linked = kind.labels, kind.link is not None

    def judge(table, layer, rows, padded_rows, found, counts, tid, column_lane, row_lane):
        # Threads of a row would wait for each other at every step of a sum; so one goes along a row for its largest
        # element and its mass, and exponentials are everybody's. `tops` (3, batch): that, log(mass) and 1 / mass.
        z, t = table + read_word(layer + L.y)[0], table + read_word(table + H.targets)[0]
        dz = table + read_word(table + H.gradient)[0]
        row_stride, columns = read_word(layer + L.row_stride)[0], read_word(layer + L.outputs)[0]
        tops, span = table + read_word(table + H.row_values)[0], read_word(table + H.batch_rows)[0] * size
        smooth = real(read_double(table + H.param)[0])
        floor, keep, scale = smooth / real(columns), one - smooth, one / real(rows)
        for row in range(tid, rows, threads):
            top = least
            for j in range(columns):
                x = load((z,), row * row_stride + j * size)[0][0]
                top = x if x > top else top
            store((tops,), row * size, ((top,),))
            counts = count(counts, table, z, t, row, row_stride, columns)
        meet()
        for row in range(row_lane, padded_rows, row_lanes):
            for j in range(column_lane, row_stride // size, COLUMN_LANES):
                at, e = row * row_stride + j * size, zero
                if j < columns and row < rows:
                    e = real(math.exp(load((z,), at)[0][0] - load((tops,), row * size)[0][0]))
                store((dz,), at, ((e,),))
        meet()
        for row in range(tid, rows, threads):
            mass = zero
            for j in range(columns):
                mass += load((dz,), row * row_stride + j * size)[0][0]
            store((tops,), span + row * size, ((real(math.log(mass)),),))
            store((tops,), 2 * span + row * size, ((one / mass,),))
        meet()
        total = 0.0
        for row in range(row_lane, rows, row_lanes):
            top, log_sum = load((tops,), row * size)[0][0], load((tops,), span + row * size)[0][0]
            share = load((tops,), 2 * span + row * size)[0][0]
            label = read_word(t + row * 8)[0] if labels else 0
            for j in range(column_lane, columns, COLUMN_LANES):
                at = row * row_stride + j * size
                if labels:  # noqa: SIM108 (as in losses.py)
                    target = one if j == label else zero
                else:
                    target = load((t,), at)[0][0]
                x, p = load((z,), at)[0][0], load((dz,), at)[0][0] * share
                found = values(found, p if linked else x, target)
                target = target * keep + floor
                if target != zero:
                    total += np.float64(value(x - top, target, log_sum))
                g = slope(p, target) * scale
                store((dz,), at, ((zero if abs(g) < tiny else g,),))
        return total, found, counts

    return device(judge)
