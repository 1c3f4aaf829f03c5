"""Losses and metrics within the kernel of a small network: as in `losses.py`, of a batch in shared memory.

What they leave are sums of each thread, in a fixed order, and the gradient of the outputs, 0 in rows and columns that
are only there to fill up. `rows` are those of the batch, `padded_rows` with those that it is filled up with.
"""

from __future__ import annotations

import math

import numpy as np

from ...formulas import ACTIVATIONS, LOSSES
from ..dense.losses import hits_of
from ..runtime.compile import device
from ..runtime.primitives import SHARED, loader, reader, storer, writer
from .layout import COLUMN_LANES, H, L

read_word = reader("int64", 1, SHARED)
read_double, write_double = reader("float64", 1, SHARED), writer("float64", SHARED)


def _errors(kind):
    """The errors that metrics add up, of an output as it is shown and its target."""
    squared, absolute = (device(LOSSES[name].value) for name in ("mean_squared_error", "mean_absolute_error"))
    real = getattr(np, kind.dtype)

    def both(found, y, t):
        a = real(0)
        return found[0] + np.float64(squared(y, t, a)), found[1] + np.float64(absolute(y, t, a))

    def neither(found, y, t):
        return found

    return device(both if kind.metrics & {"squared", "absolute"} else neither)


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


def _right_outputs(dtype):
    """Number of outputs of a row, in a space of memory, on the same side of their boundary as their targets."""
    load, real, size = loader(dtype, 1, SHARED), getattr(np, dtype), np.dtype(dtype).itemsize

    def right_of(z, t, columns, z_boundary, t_boundary):
        right = 0
        for j in range(columns):
            x, y = load((z,), j * size)[0][0], load((t,), j * size)[0][0]
            if x == x and (x > real(z_boundary)) == (y > real(t_boundary)):
                right += 1
        return right

    return device(right_of)


def _right(kind):
    """Count of what is right in a row: 1 or 0 for the row, or a number of outputs where those are counted."""
    best, right = _largest(kind.dtype), _right_outputs(kind.dtype)

    def of_label(table, z, t, row, row_stride, columns):
        return 1 if best(z + row * row_stride, columns) == read_word(t + row * 8)[0] else 0

    def of_outputs(table, z, t, row, row_stride, columns):
        z_boundary, t_boundary = read_double(table + H.z_boundary)[0], read_double(table + H.t_boundary)[0]
        return right(z + row * row_stride, t + row * row_stride, columns, z_boundary, t_boundary)

    def of_largest(table, z, t, row, row_stride, columns):
        return 1 if best(z + row * row_stride, columns) == best(t + row * row_stride, columns) else 0

    def of_either(table, z, t, row, row_stride, columns):
        if columns > 1:
            return of_largest(table, z, t, row, row_stride, columns)
        return of_outputs(table, z, t, row, row_stride, columns)

    def uncounted(table, z, t, row, row_stride, columns):
        return 0

    if "accuracy" not in kind.metrics:
        return device(uncounted)
    one, more = (hits_of(kind.loss, kind.labels, columns) for columns in (1, 2))
    of_outputs, of_largest = device(of_outputs), device(of_largest)
    counts = {"labels": device(of_label), "outputs": of_outputs, "dense": of_largest}
    return counts[one] if one == more else device(of_either)


def judge_elements(kind):
    threads, row_lanes = kind.threads, kind.threads // COLUMN_LANES
    row_of_loss, real, size = LOSSES[kind.loss], getattr(np, kind.dtype), np.dtype(kind.dtype).itemsize
    load, store = loader(kind.dtype, 1, SHARED), storer(kind.dtype, 1, SHARED)
    value, slope, errors, right = device(row_of_loss.value), device(row_of_loss.slope), _errors(kind), _right(kind)
    shown = device(ACTIVATIONS[kind.link or "linear"].value)
    zero = real(0)

    def judge(table, layer, rows, padded_rows, found, count, tid, column_lane, row_lane):
        z, t = table + read_word(layer + L.y)[0], table + read_word(table + H.targets)[0]
        dz = table + read_word(table + H.gradient)[0]
        row_stride, columns = read_word(layer + L.row_stride)[0], read_word(layer + L.outputs)[0]
        a, scale = real(read_double(table + H.param)[0]), real(1) / real(rows * columns)
        for row in range(tid, rows, threads):
            count += right(table, z, t, row, row_stride, columns)
        total = 0.0
        for row in range(row_lane, padded_rows, row_lanes):
            for j in range(column_lane, row_stride // size, COLUMN_LANES):
                at, d = row * row_stride + j * size, zero
                if j < columns and row < rows:
                    x, y = load((z,), at)[0][0], load((t,), at)[0][0]
                    total += np.float64(value(x, y, a))
                    d = slope(x, y, a) * scale
                    found = errors(found, shown(x), y)
                store((dz,), at, ((d,),))
        return total, found, count

    return device(judge)


def judge_rows(kind, meet):
    threads, row_lanes = kind.threads, kind.threads // COLUMN_LANES
    row_of_loss, real, size = LOSSES[kind.loss], getattr(np, kind.dtype), np.dtype(kind.dtype).itemsize
    load, store = loader(kind.dtype, 1, SHARED), storer(kind.dtype, 1, SHARED)
    value, slope, errors, right = device(row_of_loss.value), device(row_of_loss.slope), _errors(kind), _right(kind)
    zero, one, tiny, least = real(0), real(1), real(np.finfo(kind.dtype).tiny), real(-math.inf)
    labels, linked = kind.labels, kind.link is not None

    def judge(table, layer, rows, padded_rows, found, count, tid, column_lane, row_lane):
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
            count += right(table, z, t, row, row_stride, columns)
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
                found = errors(found, p if linked else x, target)
                target = target * keep + floor
                if target != zero:
                    total += np.float64(value(x - top, target, log_sum))
                g = slope(p, target) * scale
                store((dz,), at, ((zero if abs(g) < tiny else g,),))
        return total, found, count

    return device(judge)
