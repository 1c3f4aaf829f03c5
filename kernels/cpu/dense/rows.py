"""Phases that copy the rows of a batch: gather, scatter and dropout.

Each goes through the batch in pieces of ROWS rows, whose results do not depend on the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from ...formulas import dropout_draw, dropout_key
from ..runtime.compile import Kernel
from ..runtime.partition import batch_rows, num_pieces, pieces_of_rank
from ..runtime.primitives import prefetch, view, word
from ..runtime.records import DROPOUT, GATHER, RUN, read

ROWS = 32
AHEAD = 4  # rows that are asked for before they are copied


def _gather(T, itemsize):
    def gather(work, step, rank, num_ranks):
        g = read(work, GATHER)
        run = read(g.run, RUN)
        rows, start = batch_rows(g.run, step), step * run.batch
        order = view(run.order, run.rows if run.order else 0, np.int64)
        down = num_pieces(rows, ROWS)
        for piece in pieces_of_rank(num_pieces(g.inputs, g.part) * down, rank, num_ranks):
            c, down_to = piece // down * g.part, piece % down * ROWS
            n = min(g.part, g.inputs - c)
            for i in range(down_to, min(rows, down_to + ROWS)):
                row = order[start + i] if run.order else start + i
                if run.order and start + i + AHEAD < run.rows:
                    ahead = g.x + (order[start + i + AHEAD] * g.inputs + c) * itemsize
                    for line in range(0, n * itemsize, 64):
                        prefetch(ahead + line)
                source = view(g.x + (row * g.inputs + c) * itemsize, n, T)
                target = view(g.into_x + (i * g.inputs + c) * itemsize, n, T)
                for j in range(n):
                    target[j] = source[j]
                if c:  # the targets go with the first part
                    continue
                if g.labels:
                    view(g.into_y + i * 8, 1, np.int64)[0] = view(g.y + row * 8, 1, np.int64)[0]
                elif g.y:
                    source = view(g.y + row * g.targets * itemsize, g.targets, T)
                    target = view(g.into_y + i * g.targets * itemsize, g.targets, T)
                    for j in range(g.targets):
                        target[j] = source[j]

    return gather


def _scatter(T, itemsize):
    def scatter(work, step, rank, num_ranks):
        # The way back of `gather`: rows of the batch into rows of x, in order.
        g = read(work, GATHER)
        rows, start = batch_rows(g.run, step), step * read(g.run, RUN).batch
        for piece in range(rank, num_pieces(rows, ROWS), num_ranks):
            size = min(rows - piece * ROWS, ROWS) * g.inputs
            source = view(g.into_x + piece * ROWS * g.inputs * itemsize, size, T)
            target = view(g.x + (start + piece * ROWS) * g.inputs * itemsize, size, T)
            for i in range(size):
                target[i] = source[i]

    return scatter


def _dropout(T, itemsize):
    def dropout(work, step, rank, num_ranks):
        # Forward x -> y; backward the same with dy -> dx: the mask is drawn again, not kept.
        d = read(work, DROPOUT)
        run = read(d.run, RUN)
        key = dropout_key(word(d.stream), word(run.first + step + 1))
        threshold, scale, zero = word(d.threshold), T(d.scale), T(0)
        rows = batch_rows(d.run, step)
        for piece in range(rank, num_pieces(rows, ROWS), num_ranks):
            start = piece * ROWS * d.columns
            size = min(rows - piece * ROWS, ROWS) * d.columns
            X, Y = view(d.x + start * itemsize, size, T), view(d.y + start * itemsize, size, T)
            for i in range(size):
                kept = dropout_draw(key, word(start + i)) >= threshold
                Y[i] = X[i] * scale if kept else zero

    return dropout


ROW_PHASES: dict[str, Callable[..., Any]] = {"gather": _gather, "scatter": _scatter, "dropout": _dropout}


@cache
def rows_kernel(phase: str, dtype: str) -> Kernel:
    return Kernel(ROW_PHASES[phase](getattr(np, dtype), np.dtype(dtype).itemsize), f"{phase}_{dtype}")
