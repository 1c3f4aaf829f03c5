"""Phases that copy the rows of a batch: gather, scatter, dropout and noise.

Each goes through the batch in pieces of ROWS rows, whose results do not depend on the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from ...formulas import dropout_draw, dropout_key, with_noise
from ..runtime.compile import Kernel
from ..runtime.partition import batch_of_epoch, batch_rows, num_pieces, pieces_of_rank
from ..runtime.primitives import prefetch, view, word
from ..runtime.records import DROPOUT, GATHER, NOISE, RUN, read
from ..runtime.storage import ARITHMETIC

ROWS = 32
AHEAD = 4  # rows prefetched ahead of the one that is copied
LINE_BYTES = 64


def _gather(T, itemsize, round_):
    """Copy the batch's rows of x, rounded, and of y, drawn by `order`, into batch_x and batch_y.

    batch_x has the columns of a piece together. They are read by the rank that copies them, and if those of two ranks
    were neighbours in memory, each core would fetch ahead what the other one is about to write.
    """

    def gather(work, step, rank, num_ranks):
        g = read(work, GATHER)
        run = read(g.run, RUN)
        rows, start = batch_rows(g.run, step), batch_of_epoch(run, step) * run.batch_size
        order = view(run.order, run.num_rows if run.order else 0, np.int64)
        pieces_down = num_pieces(rows, ROWS)
        for piece in pieces_of_rank(num_pieces(g.inputs, g.piece_cols) * pieces_down, rank, num_ranks):
            # one piece: ROWS rows, piece_cols columns of x
            first_col, first_row = piece // pieces_down * g.piece_cols, piece % pieces_down * ROWS
            cols = min(g.piece_cols, g.inputs - first_col)
            for i in range(first_row, min(rows, first_row + ROWS)):
                row = order[start + i] if run.order else start + i
                # ask for a row that is copied later
                if run.order and start + i + AHEAD < run.num_rows:
                    ahead = g.x + (order[start + i + AHEAD] * g.inputs + first_col) * itemsize
                    for line in range(0, cols * itemsize, LINE_BYTES):
                        prefetch(ahead + line)
                # the row of x
                source = view(g.x + (row * g.inputs + first_col) * itemsize, cols, T)
                target = view(g.batch_x + (first_col * g.capacity + i * g.piece_cols) * itemsize, cols, T)
                for j in range(cols):
                    target[j] = round_(source[j])
                # the label or the row of y, with the first columns of x
                if first_col:
                    continue
                if g.has_labels:
                    view(g.batch_y + i * 8, 1, np.int64)[0] = view(g.y + row * 8, 1, np.int64)[0]
                elif g.y:
                    source = view(g.y + row * g.outputs * itemsize, g.outputs, T)
                    target = view(g.batch_y + i * g.outputs * itemsize, g.outputs, T)
                    for j in range(g.outputs):
                        target[j] = source[j]

    return gather


def _scatter(T, itemsize, round_):
    """Copy batch_x into the batch's rows of x, in order: the reverse of `gather`."""

    def scatter(work, step, rank, num_ranks):
        g = read(work, GATHER)
        rows, start = batch_rows(g.run, step), step * read(g.run, RUN).batch_size
        for piece in range(rank, num_pieces(rows, ROWS), num_ranks):
            size = min(rows - piece * ROWS, ROWS) * g.inputs
            source = view(g.batch_x + piece * ROWS * g.inputs * itemsize, size, T)
            target = view(g.x + (start + piece * ROWS) * g.inputs * itemsize, size, T)
            for i in range(size):
                target[i] = source[i]

    return scatter


def _dropout(T, itemsize, round_):
    """x -> y, rounded, in the forward pass, dy -> dx in the backward pass: the mask is drawn again, not kept."""

    def dropout(work, step, rank, num_ranks):
        d = read(work, DROPOUT)
        run = read(d.run, RUN)
        # the key of the batch's mask
        key = dropout_key(word(d.stream), word(run.first_batch + step + 1))
        threshold, scale, zero = word(d.threshold), T(d.scale), T(0)
        rows = batch_rows(d.run, step)
        for piece in range(rank, num_pieces(rows, ROWS), num_ranks):
            start = piece * ROWS * d.columns
            size = min(rows - piece * ROWS, ROWS) * d.columns
            X, Y = view(d.x + start * itemsize, size, T), view(d.y + start * itemsize, size, T)
            for i in range(size):
                is_kept = dropout_draw(key, word(start + i)) >= threshold
                Y[i] = round_(X[i] * scale) if is_kept else zero

    return dropout


def _noise(T, itemsize, round_):
    """x + stddev z -> y, rounded, with z of N(0, 1)."""

    def noise(work, step, rank, num_ranks):
        d = read(work, NOISE)
        run = read(d.run, RUN)
        # the key of the batch's draws
        key, stddev = dropout_key(word(d.stream), word(run.first_batch + step + 1)), T(d.stddev)
        rows = batch_rows(d.run, step)
        for piece in range(rank, num_pieces(rows, ROWS), num_ranks):
            start = piece * ROWS * d.columns
            size = min(rows - piece * ROWS, ROWS) * d.columns
            X, Y = view(d.x + start * itemsize, size, T), view(d.y + start * itemsize, size, T)
            for i in range(size):
                Y[i] = round_(with_noise(X[i], stddev, key, word(start + i)))

    return noise


ROW_PHASES: dict[str, Callable[..., Any]] = {
    "gather": _gather,
    "scatter": _scatter,
    "dropout": _dropout,
    "noise": _noise,
}


@cache
def rows_kernel(phase: str, dtype: str) -> Kernel:
    """dtype: that which layers compute in, to which features are rounded."""
    T, itemsize, round_ = ARITHMETIC[dtype].T, ARITHMETIC[dtype].itemsize, ARITHMETIC[dtype].round
    return Kernel(ROW_PHASES[phase](T, itemsize, round_), f"{phase}_{dtype}")
