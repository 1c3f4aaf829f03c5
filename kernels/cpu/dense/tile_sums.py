"""Sums over a tile of w before its update, while the tile is in cache: those that penalties are made of.

The kernels that add up are `optim.norm`'s. Reading w once more, beside the update that reads and writes it, took 9 % of
an epoch of 784-256-128-10 at batch 64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..runtime.frontend import register_jitable
from ..runtime.partition import num_pieces, pieces_of_rank
from ..runtime.primitives import call_tile
from ..runtime.records import DENSE, read


@register_jitable
def weight_pieces(d):
    """The tiles of w, those of all splits; d: a record DENSE."""
    return d.num_splits * num_pieces(d.split_rows, d.dw_tile_rows) * num_pieces(d.outputs, d.dw_tile_cols)


@register_jitable
def weight_piece(d, piece):
    """The split of a tile of w, and the tile: m x n from (r, c) on, or m <= 0 where the last split needs fewer."""
    tiles_across = num_pieces(d.outputs, d.dw_tile_cols)
    num_tiles = num_pieces(d.split_rows, d.dw_tile_rows) * tiles_across
    split, tile = piece // num_tiles, piece % num_tiles
    r, c = split * d.split_rows + tile // tiles_across * d.dw_tile_rows, tile % tiles_across * d.dw_tile_cols
    m = min(d.dw_tile_rows, min((split + 1) * d.split_rows, d.inputs) - r)
    return split, r, c, m, min(d.dw_tile_cols, d.outputs - c)


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


def tile_penalties(gemm: Any, T: Any, itemsize: int) -> Callable[..., None]:
    """The phase of these sums alone, of a step that has no update; arguments as of DENSE_PHASES."""
    sums_of_tile = tile_sums(itemsize)

    def penalties(work, step, rank, num_ranks):
        d = read(work, DENSE)
        for piece in pieces_of_rank(weight_pieces(d), rank, num_ranks):
            _, r, c, m, n = weight_piece(d, piece)
            if m > 0:
                sums_of_tile(d, rank, piece, r * d.outputs + c, m, n)

    return penalties
