"""Phases on the rows of a batch: scatter, dropout and noise. `gather` fills the batch.

Each goes through the batch in pieces of ROWS rows, whose results do not depend on the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from ...formulas import dropout_draw, dropout_key, with_noise
from ..runtime.compile import Kernel
from ..runtime.partition import batch_rows, batch_start, draws_of_batch, num_pieces
from ..runtime.primitives import view, word
from ..runtime.records import DROPOUT, GATHER, NOISE, RUN, read
from ..runtime.storage import ARITHMETIC

ROWS = 32


def _scatter(T, itemsize, round_):
    """Copy batch_x into the batch's rows of x, in order: the reverse of `gather`."""

    def scatter(work, step, rank, num_ranks):
        g = read(work, GATHER)
        rows, start = batch_rows(g.run, step), batch_start(read(g.run, RUN), step)
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
        # the key of the batch's mask, and where the batch begins in it
        number, first_row = draws_of_batch(read(d.run, RUN), step)
        key, skip = dropout_key(word(d.stream), word(number + 1)), first_row * d.columns
        threshold, scale, zero = word(d.threshold), T(d.scale), T(0)
        rows = batch_rows(d.run, step)
        for piece in range(rank, num_pieces(rows, ROWS), num_ranks):
            start = piece * ROWS * d.columns
            size = min(rows - piece * ROWS, ROWS) * d.columns
            X, Y = view(d.x + start * itemsize, size, T), view(d.y + start * itemsize, size, T)
            first = skip + start
            for i in range(size):
                is_kept = dropout_draw(key, word(first + i)) >= threshold
                Y[i] = round_(X[i] * scale) if is_kept else zero

    return dropout


def _noise(T, itemsize, round_):
    """x + stddev z -> y, rounded, with z of N(0, 1)."""

    def noise(work, step, rank, num_ranks):
        d = read(work, NOISE)
        # the key of the batch's draws, and where the batch begins in them
        number, first_row = draws_of_batch(read(d.run, RUN), step)
        key, stddev, skip = dropout_key(word(d.stream), word(number + 1)), T(d.stddev), first_row * d.columns
        rows = batch_rows(d.run, step)
        for piece in range(rank, num_pieces(rows, ROWS), num_ranks):
            start = piece * ROWS * d.columns
            size = min(rows - piece * ROWS, ROWS) * d.columns
            X, Y = view(d.x + start * itemsize, size, T), view(d.y + start * itemsize, size, T)
            first = skip + start
            for i in range(size):
                Y[i] = round_(with_noise(X[i], stddev, key, word(first + i)))

    return noise


ROW_PHASES: dict[str, Callable[..., Any]] = {"scatter": _scatter, "dropout": _dropout, "noise": _noise}


def by_order(order: str) -> str:
    """End of the name of a kernel that reads row numbers of a dtype."""
    return "" if order == "uint32" else f"_by_{order}"


@cache
def rows_kernel(phase: str, dtype: str) -> Kernel:
    """dtype: that which layers compute in, to which features are rounded."""
    T, itemsize, round_ = ARITHMETIC[dtype].T, ARITHMETIC[dtype].itemsize, ARITHMETIC[dtype].round
    return Kernel(ROW_PHASES[phase](T, itemsize, round_), f"{phase}_{dtype}")
