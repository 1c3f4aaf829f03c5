"""Numbers rounded to codes in training: what products read in the place of weights and inputs (`spec.FakeQuantized`).

Weights have a scale for each column or group of its rows, of those of this step, as `compress.quantize` gives them.
Inputs have the scale and the zero of the range of the batch: `fake_limits` finds it piece by piece, `fake_inputs` puts
the pieces together, as every rank does for itself, and rounds.
"""

from __future__ import annotations

import numpy as np

from ..runtime.compile import Kernel
from ..runtime.frontend import register_jitable
from ..runtime.partition import batch_rows, num_pieces, pieces_of_rank
from ..runtime.primitives import view
from ..runtime.records import FAKE_INPUTS, FAKE_WEIGHTS, read
from .codes import LEVELS, ROUNDER
from .rows import ROWS

F = np.float32
COLS = 64  # of a piece of w
FAKE_SCRATCH = 3 * COLS * 4  # the largest magnitudes of columns, scales and their inverses
LEAST_SCALE = F(np.finfo(np.float32).tiny)
ROUNDER64 = 6755399441055744.0  # 1.5 x 2^52: adding it rounds a float64 to nearest, ties to even


@register_jitable(forceinline=True)
def rounded(t):
    return F(F(t + ROUNDER) - ROUNDER)


def _fake_weights(work, step, rank, num_ranks):
    d = read(work, FAKE_WEIGHTS)
    scratch, outputs, most = d.scratch + rank * FAKE_SCRATCH, d.outputs, np.float64(d.most)
    for piece in pieces_of_rank(num_pieces(outputs, COLS), rank, num_ranks):
        # one piece: some columns, all rows
        c = piece * COLS
        n = min(COLS, outputs - c)
        largest, scale, inverse = (
            view(scratch, n, F), view(scratch + COLS * 4, n, F), view(scratch + 2 * COLS * 4, n, F)
        )  # fmt: skip
        for first in range(0, d.inputs, d.group):
            end = min(first + d.group, d.inputs)
            # the largest magnitude of each column
            for j in range(n):
                largest[j] = F(0)
            for k in range(first, end):
                W = view(d.w + (k * outputs + c) * 4, n, F)
                for j in range(n):
                    size = abs(W[j])
                    largest[j] = size if size > largest[j] else largest[j]
            # its scale
            for j in range(n):
                s = F(np.float64(largest[j]) / most)
                scale[j] = s if s > LEAST_SCALE else F(1)
                inverse[j] = F(1) / scale[j]
            # rounded weights
            for k in range(first, end):
                W, Y = view(d.w + (k * outputs + c) * 4, n, F), view(d.y + (k * outputs + c) * 4, n, F)
                for j in range(n):
                    Y[j] = rounded(F(W[j] * inverse[j])) * scale[j]


def _fake_limits(work, step, rank, num_ranks):
    d = read(work, FAKE_INPUTS)
    rows, columns = batch_rows(d.run, step), d.columns
    low, high = (
        view(d.scratch + rank * 2 * columns * 4, columns, F),
        view(d.scratch + (rank * 2 + 1) * columns * 4, columns, F),
    )
    for piece in pieces_of_rank(num_pieces(rows, ROWS), rank, num_ranks):
        # one piece of rows: limits of each column, and 0
        for j in range(columns):
            low[j], high[j] = F(0), F(0)
        for split in range(d.splits):
            for i in range(piece * ROWS, min(rows, (piece + 1) * ROWS)):
                X = view(d.x + (split * d.capacity + i) * columns * 4, columns, F)
                for j in range(columns):
                    low[j] = X[j] if X[j] < low[j] else low[j]
                    high[j] = X[j] if X[j] > high[j] else high[j]
        # of all columns
        found = view(d.limits + piece * 8, 2, F)
        found[0], found[1] = low[0], high[0]
        for j in range(1, columns):
            found[0], found[1] = min(found[0], low[j]), max(found[1], high[j])


def _fake_inputs(work, step, rank, num_ranks):
    d = read(work, FAKE_INPUTS)
    rows, columns = batch_rows(d.run, step), d.columns
    pieces = num_pieces(rows, ROWS)
    # the range of the batch, its scale and its zero
    limits, low, high = view(d.limits, 2 * pieces, F), 0.0, 0.0
    for piece in range(pieces):
        low, high = min(low, np.float64(limits[2 * piece])), max(high, np.float64(limits[2 * piece + 1]))
    scale, zero = F((high - low) / LEVELS), 0.0
    if scale > LEAST_SCALE:
        zero = min(max((-low / np.float64(scale) + ROUNDER64) - ROUNDER64, 0.0), np.float64(LEVELS))
    else:
        scale = F(1)
    inverse, least, most = F(1) / scale, F(-zero), F(LEVELS - zero)
    for piece in pieces_of_rank(pieces, rank, num_ranks):
        for split in range(d.splits):
            for i in range(piece * ROWS, min(rows, (piece + 1) * ROWS)):
                # one row
                skip = (split * d.capacity + i) * columns * 4
                X, Y = view(d.x + skip, columns, F), view(d.y + skip, columns, F)
                for j in range(columns):
                    t = F(X[j] * inverse)
                    # NaN stays
                    t = least if t < least else t
                    t = most if t > most else t
                    Y[j] = rounded(t) * scale


FAKE_WEIGHTS_KERNEL = Kernel(_fake_weights, "fake_weights")
FAKE_LIMITS_KERNEL = Kernel(_fake_limits, "fake_limits")
FAKE_INPUTS_KERNEL = Kernel(_fake_inputs, "fake_inputs")
