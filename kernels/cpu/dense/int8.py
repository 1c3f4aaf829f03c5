"""Products of uint8 rows with int8 columns, added up exactly in int32: the same integers on every processor.

A (rows, 4 steps) is read as it lies, in rows of whole groups. B is packed once for a network (`pack`): groups of GROUP
columns, of each the words of WORD numbers along k, one behind the other, so that a tile reads memory in order. Numbers
that are not there are zeros of B, whose products are zero whatever A has there.

An int32 holds the sums of LARGEST_INPUTS products of 255 x 127.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..runtime.frontend import register_jitable
from ..runtime.partition import num_pieces
from ..runtime.primitives import aligned_zeros, view
from .int8_tiles import GROUP, GROUP_BYTES, WORD, DotUnit, int8_tile_of

ROW_UNIT = 12  # rows of A come in so many: whole tiles of every unit
SINGLE_GROUPS = 4  # groups of a tile of a single row


def row_bytes(inputs: int) -> int:
    """Bytes of a row of A: whole groups, as the layer below may write them."""
    return num_pieces(inputs, GROUP) * GROUP


def pack(codes: np.ndarray) -> np.ndarray:
    """Return B (inputs, outputs) int8 packed: (groups, steps, GROUP, WORD), on a cache line.

    >>> pack(np.array([[1], [2], [3], [4], [5]], np.int8))[0, :, 0].tolist()
    [[1, 2, 3, 4], [5, 0, 0, 0]]
    """
    inputs, outputs = codes.shape
    steps, groups = num_pieces(inputs, WORD), num_pieces(outputs, GROUP)
    padded = np.zeros((steps * WORD, groups * GROUP), np.int8)
    padded[:inputs, :outputs] = codes
    packed = aligned_zeros(padded.size, np.int8).reshape(groups, steps, GROUP, WORD)
    packed[...] = padded.reshape(steps, WORD, groups, GROUP).transpose(2, 0, 3, 1)
    return packed


def starts(codes: np.ndarray, zero: int) -> np.ndarray:
    """Return what the sums of each column start from, (groups GROUP,) int32: - zero times the sum of the column.

    So sum (a - zero) b is start + sum a b.
    """
    found = aligned_zeros(num_pieces(codes.shape[1], GROUP) * GROUP, np.int32)
    found[: codes.shape[1]] = -zero * codes.sum(axis=0, dtype=np.int32)
    return found


def product_of(unit: DotUnit | None) -> Callable[..., None]:
    """C (rows, groups GROUP) = start + A B, for kernels. C has room for whole tiles of rows, and A has them."""
    return _plain() if unit is None else _tiled(unit)


def _tiled(unit: DotUnit) -> Callable[..., None]:
    rows_of_tile, groups_of_tile = unit.tile_rows, unit.tile_groups
    tile, narrow = int8_tile_of(unit, rows_of_tile, groups_of_tile), int8_tile_of(unit, rows_of_tile, 1)
    single, single_narrow = int8_tile_of(unit, 1, SINGLE_GROUPS), int8_tile_of(unit, 1, 1)

    @register_jitable
    def product(a, a_row, b, steps, groups, start, rows, c, c_row):
        b_group, g = steps * GROUP_BYTES, 0
        most = SINGLE_GROUPS if rows == 1 else groups_of_tile
        while g < groups:
            # a strip of columns
            wide = groups - g >= most
            from_b, from_start, to = b + g * b_group, start + g * GROUP_BYTES, c + g * GROUP_BYTES
            if rows == 1:
                if wide:
                    single(a, a_row, from_b, b_group, steps, from_start, to, c_row)
                else:
                    single_narrow(a, a_row, from_b, b_group, steps, from_start, to, c_row)
            else:
                # its tiles, the last of which may have rows that nobody reads
                for i in range(0, rows, rows_of_tile):
                    if wide:
                        tile(a + i * a_row, a_row, from_b, b_group, steps, from_start, to + i * c_row, c_row)
                    else:
                        narrow(a + i * a_row, a_row, from_b, b_group, steps, from_start, to + i * c_row, c_row)
            g += most if wide else 1

    return product


def _plain() -> Callable[..., None]:
    @register_jitable
    def product(a, a_row, b, steps, groups, start, rows, c, c_row):
        begin = view(start, groups * GROUP, np.int32)
        for i in range(rows):
            A, C = view(a + i * a_row, steps * WORD, np.uint8), view(c + i * c_row, groups * GROUP, np.int32)
            for j in range(groups * GROUP):
                C[j] = begin[j]
            for g in range(groups):
                # one row, one group of columns
                B = view(b + g * steps * GROUP_BYTES, steps * GROUP_BYTES, np.int8)
                for k in range(steps):
                    for j in range(GROUP):
                        total = C[g * GROUP + j]
                        for word in range(WORD):
                            total += np.int32(A[k * WORD + word]) * np.int32(B[(k * GROUP + j) * WORD + word])
                        C[g * GROUP + j] = total

    return product


def name_of(unit: DotUnit | None) -> str:
    """Name of the instructions in those of kernels."""
    return "plain" if unit is None else unit.name
