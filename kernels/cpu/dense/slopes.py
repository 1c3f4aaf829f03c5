"""The slope of an activation that is a layer of its own: a phase on pieces of rows."""

from __future__ import annotations

from functools import cache

import numpy as np

from ..runtime.compile import Kernel
from ..runtime.partition import batch_rows, num_pieces
from ..runtime.primitives import call_tile
from ..runtime.records import SLOPES, read
from .rows import ROWS


def _slope_rows(itemsize):
    """dz *= f'(s); the sums of columns that the slope's tile makes are of no use here."""

    def slope_rows(work, step, rank, num_ranks):
        a = read(work, SLOPES)
        rows, columns = batch_rows(a.run, step), a.columns
        for piece in range(rank, num_pieces(rows, ROWS), num_ranks):
            skip, piece_rows = piece * ROWS * columns * itemsize, min(rows - piece * ROWS, ROWS)
            call_tile(a.slope, a.dz + skip, a.s + skip, a.scratch + rank * columns * 8, 0, piece_rows, columns, columns)

    return slope_rows


@cache
def slope_rows_kernel(dtype: str) -> Kernel:
    """dtype: that of the arrays."""
    return Kernel(_slope_rows(np.dtype(dtype).itemsize), f"slope_rows_{dtype}")
