"""Sums over a tile of w before its update, while the tile is in cache: those that penalties are made of.

The kernels that add up are `optim.norm`'s. Reading w once more, beside the update that reads and writes it, took 9 % of
an epoch of 784-256-128-10 at batch 64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..runtime.frontend import register_jitable
from ..runtime.primitives import call_tile


def tile_sums(itemsize: int) -> Callable[..., Any]:
    """Return a function for kernels, of a record DENSE and a tile of w: m x n from element `first` on."""

    def tile_sums(d, rank, piece, first, m, n):
        # whole rows at once, where the tile has them
        rows, columns = (1, m * n) if n == d.outputs else (m, n)
        w, lanes = d.w + first * itemsize, d.lanes + rank * d.lane_bytes
        if d.squares:
            call_tile(d.squares, w, lanes, d.square_sums + piece * 8, 0, rows, columns, d.outputs)
        if d.magnitudes:
            call_tile(d.magnitudes, w, lanes, d.magnitude_sums + piece * 8, 0, rows, columns, d.outputs)

    return register_jitable(tile_sums)
