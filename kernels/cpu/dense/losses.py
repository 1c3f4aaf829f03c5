"""Losses with their gradients, and activations of whole rows.

Sums over the batch are taken in float64 within pieces of ROWS rows and then over the pieces in order, so they do not
depend on the number of threads.
"""

from __future__ import annotations

from functools import cache
from math import log

import numpy as np

from ...formulas import LOSSES
from ...formulas.functions import exp
from ...formulas.losses import cross_entropy_factor
from ...spec import LossSpec
from ..runtime.compile import Kernel
from ..runtime.frontend import register_jitable
from ..runtime.launch import num_threads_for, parallel
from ..runtime.partition import batch_rows, epoch_of_batch, num_pieces
from ..runtime.primitives import address_of, call_tile, view
from ..runtime.records import ACTIVATE, LOSS, RUN, TOTAL, WEIGHTS, fill, read
from .layer import activate_kernel
from .row_weights import step_weight
from .rows import ROWS

ELEMENTS_PER_THREAD = 8_192  # outputs of a loss or an activation that are worth a thread


# ---------------------------------------------------------------- activations of rows
def _exponentials(T):
    @register_jitable(error_model="numpy")
    def exponentials(z, e, rows, columns, itemsize):
        """e = exp(z - the largest z of the row)."""
        Z, E = view(z, rows * columns, T), view(e, rows * columns, T)
        # z - largest, row by row
        for i in range(rows):
            start = i * columns
            largest = Z[start]
            for j in range(start + 1, start + columns):
                largest = max(largest, Z[j])
            for j in range(start, start + columns):
                E[j] = Z[j] - largest
        # all exponentials in one loop, however short the rows are
        for j in range(rows * columns):
            E[j] = exp(E[j])

    return exponentials


def _activate_rows(T, itemsize):
    exponentials = _exponentials(T)

    def activate(work, step, rank, num_ranks):
        a = read(work, ACTIVATE)
        rows, columns = batch_rows(a.run, step), a.columns
        for piece in range(rank, num_pieces(rows, ROWS), num_ranks):
            skip, piece_rows = piece * ROWS * columns * itemsize, min(rows - piece * ROWS, ROWS)
            # an elementwise function
            if a.activate:
                size = piece_rows * columns
                call_tile(a.activate, a.z + skip, 0, a.y + skip, 0, 1, size, size)
                continue
            # softmax
            exponentials(a.z + skip, a.y + skip, piece_rows, columns, itemsize)
            for i in range(piece_rows):
                Y = view(a.y + skip + i * columns * itemsize, columns, T)
                total = T(0)
                for j in range(columns):
                    total += Y[j]
                for j in range(columns):
                    Y[j] /= total

    return activate


@cache
def activate_rows_kernel(dtype: str) -> Kernel:
    return Kernel(_activate_rows(getattr(np, dtype), np.dtype(dtype).itemsize), f"activate_rows_{dtype}")


# ---------------------------------------------------------------- losses
def _elementwise(value, slope, T, itemsize):
    def loss(work, step, rank, num_ranks):
        w = read(work, LOSS)
        rows = batch_rows(w.run, step)
        param, scale = T(w.param), T(1.0 / (rows * w.columns))
        sums = view(w.sums, num_pieces(rows, ROWS), np.float64)
        for piece in range(rank, num_pieces(rows, ROWS), num_ranks):
            skip = piece * ROWS * w.columns * itemsize
            size = min(rows - piece * ROWS, ROWS) * w.columns
            Z, targets = view(w.z + skip, size, T), view(w.t + skip, size, T)
            # the piece's sum of losses
            total = 0.0
            for i in range(size):
                total += value(Z[i], targets[i], param)
            sums[piece] = total
            # the gradient of the mean loss
            D = view(w.dz + skip, size, T)
            for i in range(size):
                D[i] = slope(Z[i], targets[i], param) * scale

    return loss


def _elementwise_weighted(value, slope, T, itemsize):
    """The loss sum(w l) / sum(w), whose gradient at a row is w / sum(w) of the row's; sum(w) is that of the step."""

    def loss(work, step, rank, num_ranks):
        w = read(work, LOSS)
        rows, columns = batch_rows(w.run, step), w.columns
        weights = view(read(w.weights, WEIGHTS).batch_weights, rows, T)
        param, divisor = T(w.param), step_weight(w.weights, step) * columns
        sums = view(w.sums, num_pieces(rows, ROWS), np.float64)
        for piece in range(rank, num_pieces(rows, ROWS), num_ranks):
            total = 0.0
            for i in range(piece * ROWS, min(rows, (piece + 1) * ROWS)):
                skip, weight = i * columns * itemsize, np.float64(weights[i])
                D = view(w.dz + skip, columns, T)
                # a row of weight 0 is absent: its loss may be inf or NaN
                if weight == 0:
                    for j in range(columns):
                        D[j] = T(0)
                    continue
                Z, targets = view(w.z + skip, columns, T), view(w.t + skip, columns, T)
                # the row's loss
                of_row = 0.0
                for j in range(columns):
                    of_row += value(Z[j], targets[j], param)
                total += weight * of_row
                # its share of the gradient
                scale = T(weight / divisor)
                for j in range(columns):
                    D[j] = slope(Z[j], targets[j], param) * scale
            sums[piece] = total

    return loss


def _by_row(value, slope, factor_of, T, itemsize, has_labels, weighted=False):
    exponentials = _exponentials(T)
    has_factor, factor_of = factor_of is not None, factor_of or cross_entropy_factor

    def loss(work, step, rank, num_ranks):
        # t is the smoothed target; the sum over a row of value(z, t, log_sum) is its cross-entropy. The row's largest z
        # is subtracted: added to a large z, log_sum would lose its digits.
        w = read(work, LOSS)
        rows, columns = batch_rows(w.run, step), w.columns
        smoothing, scale, weight, mean = T(w.param), T(1.0 / rows), 1.0, T(1.0 / rows)
        sums = view(w.sums, num_pieces(rows, ROWS), np.float64)
        zero, one = T(0), T(1)
        added, factor = smoothing / T(columns), one - smoothing
        for piece in range(rank, num_pieces(rows, ROWS), num_ranks):
            total, piece_rows = 0.0, min(rows - piece * ROWS, ROWS)
            # dz holds exp(z - largest) until the gradient replaces it
            first = piece * ROWS * columns * itemsize
            exponentials(w.z + first, w.dz + first, piece_rows, columns, itemsize)
            for i in range(piece * ROWS, piece * ROWS + piece_rows):
                skip = i * columns * itemsize
                Z, E = view(w.z + skip, columns, T), view(w.dz + skip, columns, T)
                targets = view(0 if has_labels else w.t + skip, columns, T)
                label = view(w.t + i * 8, 1, np.int64)[0] if has_labels else 0
                if weighted:
                    # a row of weight 0 is absent: its loss may be inf or NaN
                    weight = np.float64(view(read(w.weights, WEIGHTS).batch_weights, rows, T)[i])
                    if weight == 0:
                        for j in range(columns):
                            E[j] = zero
                        continue
                    scale = T(weight / step_weight(w.weights, step))
                # the row's sum of exponentials
                exp_sum, largest = zero, Z[0]
                for j in range(columns):
                    exp_sum += E[j]
                    largest = max(largest, Z[j])
                log_sum, inv_sum = T(log(exp_sum)), one / exp_sum
                # the row's loss
                if has_labels and smoothing == 0:
                    total += weight * value(Z[label] - largest, one, log_sum)
                else:
                    for j in range(columns):
                        t = ((one if j == label else zero) if has_labels else targets[j]) * factor + added
                        total += weight * (value(Z[j] - largest, t, log_sum) if t != 0 else zero)
                # the row of the gradient
                if has_factor:
                    scale = (T(weight / step_weight(w.weights, step)) if weighted else mean) * factor_of(
                        Z[label] - largest - log_sum
                    )
                for j in range(columns):
                    t = ((one if j == label else zero) if has_labels else targets[j]) * factor + added
                    E[j] = slope(E[j] * inv_sum, t) * scale
            sums[piece] = total

    return loss


@cache
def loss_kernel(name: str, dtype: str, weighted: bool) -> Kernel:
    """The loss of a row of LOSSES and its gradient; weighted: by the weights of rows."""
    row, T, itemsize = LOSSES[name], getattr(np, dtype), np.dtype(dtype).itemsize
    if row.by_row:
        function = _by_row(row.value, row.slope, row.factor, T, itemsize, row.targets == "labels", weighted)
    else:
        function = (_elementwise_weighted if weighted else _elementwise)(row.value, row.slope, T, itemsize)
    return Kernel(function, f"loss_{name}{'_weighted' * weighted}_{dtype}")


def _total(work, step, rank, num_ranks):
    """Add the sums of the pieces of a batch, in order, to `into`."""
    if rank == 0:
        t = read(work, TOTAL)
        count = num_pieces(batch_rows(t.run, step), ROWS)
        epoch = epoch_of_batch(read(t.run, RUN), step)
        sums = view(t.sums, count * t.columns, np.float64)
        into = view(t.into + step * t.stride + epoch * t.epoch_stride, t.columns, np.float64)
        for j in range(t.columns):
            total = 0.0
            for i in range(count):
                total += sums[i * t.columns + j]
            into[j] += total


TOTAL_KERNEL = Kernel(_total, "total")


# ---------------------------------------------------------------- verbs
def loss_param(spec: LossSpec) -> float:
    """The one parameter that a loss may have."""
    row = LOSSES[spec.name]
    return next((float(spec.params.get(name, default)) for name, default in row.params.items()), 0.0)


def loss(spec: LossSpec, outputs, targets, gradient=None) -> float:
    """The mean loss of outputs (rows, columns); writes its gradient if given."""
    gradient = np.empty_like(outputs) if gradient is None else gradient
    rows, columns = outputs.shape
    dtype, count = outputs.dtype.name, num_pieces(rows, ROWS)
    run, sums = fill(RUN, batch_size=rows, num_rows=rows), np.zeros(count)
    work = fill(LOSS, run=run, z=outputs, t=targets, dz=gradient, columns=columns, sums=sums, param=loss_param(spec))
    num_ranks = num_threads_for(outputs.size, ELEMENTS_PER_THREAD, count)
    parallel(loss_kernel(spec.name, dtype, False), address_of(work), 0, num_ranks)
    return float(sums.sum()) / (rows if LOSSES[spec.name].by_row else outputs.size)


def activate(name: str, z, y) -> None:
    """y = f(z), elementwise or, for softmax, over rows (rows, columns); y may be z."""
    if not z.size:
        return
    rows, columns = z.shape if z.ndim == 2 else (1, z.size)
    dtype = z.dtype.name
    code = 0 if name == "softmax" else activate_kernel(name, dtype).address
    run = fill(RUN, batch_size=rows, num_rows=rows)
    work = fill(ACTIVATE, run=run, z=z, y=y, columns=columns, activate=code)
    num_ranks = num_threads_for(z.size, ELEMENTS_PER_THREAD, num_pieces(rows, ROWS))
    parallel(activate_rows_kernel(dtype), address_of(work), 0, num_ranks)
