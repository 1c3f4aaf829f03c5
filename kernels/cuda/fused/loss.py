"""Losses and metrics of the one-block kernel: those of `dense/losses.py`, for a batch in shared memory.

Each thread adds up its own sums in a fixed order. The gradient of the outputs is 0 in rows and columns of padding.
`rows` are those of the batch, `padded_rows` with the padding.
"""

from __future__ import annotations

import math

import numpy as np

from ...formulas import ACTIVATIONS, LOSSES
from ..dense.losses import hits_of
from ..runtime.compile import device
from ..runtime.primitives import SHARED, loader, storer
from .access import field, read_double, read_word, resolve
from .layout import COLUMN_LANES, H, L


def _add_errors(kind):
    """Sums of squared and absolute errors with those of an output, as users see it, and its target."""
    squared, absolute = (device(LOSSES[name].value) for name in ("mean_squared_error", "mean_absolute_error"))
    T = getattr(np, kind.dtype)

    def add_both(sums, y, t):
        a = T(0)
        return sums[0] + np.float64(squared(y, t, a)), sums[1] + np.float64(absolute(y, t, a))

    def add_none(sums, y, t):
        return sums

    return device(add_both if kind.metrics & {"squared", "absolute"} else add_none)


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


def _count_right_outputs(dtype):
    """Number of outputs of a row on the same side of their boundary as their targets."""
    load, T, size = loader(dtype, 1, SHARED), getattr(np, dtype), np.dtype(dtype).itemsize

    def count_right(z, t, columns, z_boundary, t_boundary):
        right = 0
        for j in range(columns):
            x, y = load((z,), j * size)[0][0], load((t,), j * size)[0][0]
            if x == x and (x > T(z_boundary)) == (y > T(t_boundary)):
                right += 1
        return right

    return device(count_right)


def _num_right(kind):
    """Hits of a row: 1 or 0 for the row, or a number of outputs where those are counted."""
    argmax, count_right = _argmax(kind.dtype), _count_right_outputs(kind.dtype)

    def by_label(table, z, t, row, row_stride, columns):
        return 1 if argmax(z + row * row_stride, columns) == read_word(t + row * 8)[0] else 0

    def by_output(table, z, t, row, row_stride, columns):
        z_boundary, t_boundary = read_double(table + H.z_boundary)[0], read_double(table + H.t_boundary)[0]
        return count_right(z + row * row_stride, t + row * row_stride, columns, z_boundary, t_boundary)

    def by_argmax(table, z, t, row, row_stride, columns):
        return 1 if argmax(z + row * row_stride, columns) == argmax(t + row * row_stride, columns) else 0

    def by_columns(table, z, t, row, row_stride, columns):
        if columns > 1:
            return by_argmax(table, z, t, row, row_stride, columns)
        return by_output(table, z, t, row, row_stride, columns)

    def uncounted(table, z, t, row, row_stride, columns):
        return 0

    if "accuracy" not in kind.metrics:
        return device(uncounted)
    one, more = (hits_of(kind.loss, kind.labels, columns) for columns in (1, 2))
    by_output, by_argmax = device(by_output), device(by_argmax)
    counts = {"labels": device(by_label), "outputs": by_output, "dense": by_argmax}
    return counts[one] if one == more else device(by_columns)


def elementwise_loss(kind):
    """Loss, gradient and metrics of a loss that is a sum over all outputs."""
    threads, row_lanes = kind.threads, kind.threads // COLUMN_LANES
    row_of_loss, T, size = LOSSES[kind.loss], getattr(np, kind.dtype), np.dtype(kind.dtype).itemsize
    load, store = loader(kind.dtype, 1, SHARED), storer(kind.dtype, 1, SHARED)
    value, slope = device(row_of_loss.value), device(row_of_loss.slope)
    add_errors, num_right_in = _add_errors(kind), _num_right(kind)
    link = device(ACTIVATIONS[kind.link or "linear"].value)
    zero = T(0)

    def loss_and_metrics(table, layer, rows, padded_rows, error_sums, num_right, tid, column_lane, row_lane):
        z, t = resolve(table, layer + L.y), resolve(table, table + H.targets)
        dz = resolve(table, table + H.gradient)
        row_stride, columns = field(layer + L.row_stride), field(layer + L.outputs)
        param, scale = T(read_double(table + H.param)[0]), T(1) / T(rows * columns)
        # accuracy: one thread a row
        for row in range(tid, rows, threads):
            num_right += num_right_in(table, z, t, row, row_stride, columns)
        # loss, gradient and errors: one thread an element
        total = 0.0
        for row in range(row_lane, padded_rows, row_lanes):
            for j in range(column_lane, row_stride // size, COLUMN_LANES):
                at, d = row * row_stride + j * size, zero
                if j < columns and row < rows:
                    x, y = load((z,), at)[0][0], load((t,), at)[0][0]
                    total += np.float64(value(x, y, param))
                    d = slope(x, y, param) * scale
                    error_sums = add_errors(error_sums, link(x), y)
                store((dz,), at, ((d,),))
        return total, error_sums, num_right

    return device(loss_and_metrics)


def row_loss(kind, barrier):
    """Loss, gradient and metrics of a cross-entropy of softmax outputs."""
    threads, row_lanes = kind.threads, kind.threads // COLUMN_LANES
    row_of_loss, T, size = LOSSES[kind.loss], getattr(np, kind.dtype), np.dtype(kind.dtype).itemsize
    load, store = loader(kind.dtype, 1, SHARED), storer(kind.dtype, 1, SHARED)
    value, slope = device(row_of_loss.value), device(row_of_loss.slope)
    add_errors, num_right_in = _add_errors(kind), _num_right(kind)
    zero, one, tiny, least = T(0), T(1), T(np.finfo(kind.dtype).tiny), T(-math.inf)
    labels, has_link = kind.labels, kind.link is not None

    def loss_and_metrics(table, layer, rows, padded_rows, error_sums, num_right, tid, column_lane, row_lane):
        # Threads that share a row would meet at every step of a sum. So one thread finds a row's largest element and
        # its mass, and all threads compute exponentials. row_values (3, batch): largest, log(mass), 1 / mass.
        z, t = resolve(table, layer + L.y), resolve(table, table + H.targets)
        dz = resolve(table, table + H.gradient)
        row_stride, columns = field(layer + L.row_stride), field(layer + L.outputs)
        row_values, span = resolve(table, table + H.row_values), field(table + H.batch_rows) * size
        smoothing = T(read_double(table + H.param)[0])
        floor, keep, scale = smoothing / T(columns), one - smoothing, one / T(rows)
        # the largest element of each row, and accuracy
        for row in range(tid, rows, threads):
            largest = least
            for j in range(columns):
                x = load((z,), row * row_stride + j * size)[0][0]
                largest = x if x > largest else largest
            store((row_values,), row * size, ((largest,),))
            num_right += num_right_in(table, z, t, row, row_stride, columns)
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
        # loss, gradient and errors of each element
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
                error_sums = add_errors(error_sums, p if has_link else x, target)
                target = target * keep + floor
                if target != zero:
                    total += np.float64(value(x - largest, target, log_mass))
                g = slope(p, target) * scale
                store((dz,), at, ((zero if abs(g) < tiny else g,),))
        return total, error_sums, num_right

    return device(loss_and_metrics)
