"""Dense layers whose weights are mostly zero: y = f(x w + b), where only the weights that are not zero are multiplied.

The lanes of a vector are rows of the batch, so a weight is one number for all of them, and it does not matter which
weights are there. x is packed with the rows of a strip beside each other, and y comes out in the same layout, as the x
of a next sparse layer:

    build     w -> entries: the weights that are not zero, block after block of the rows of w, column after column
    pack      x (rows, inputs) -> (strips, inputs, rows of a strip)
    forward   a strip of rows and a chunk of columns: for each block, for each pair of columns: sums in registers +=
              weight x its row of x
    unpack    (strips, outputs, rows of a strip) -> y (rows, outputs)

Every element is summed as `matmul` does it, block by block, without the products with zero. Those add nothing to a
finite number, so the bits are those of the dense product.

The mask of the weights says where entries are. `build` reads the weights themselves, once a pass, for nobody need tell
of a change; it also looks for weights that are not zero where the mask has none, and then the chunk is multiplied as it
is in w.

Measured on Zen 5, 784-1024-1024-10, 90 % of the weights zero, batches of 256: one column at a time with four sums took
1.1 times as long as a pair with eight, which hide the latency of multiplications; the weights found in w by their bits
cost 780 us a pass, by their places 490; strips of half and of twice as many rows took 1.1 and 1.08 times as long.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from ..runtime.compile import Kernel
from ..runtime.frontend import INTERPRETED, register_jitable
from ..runtime.partition import batch_rows, equal_size, num_pieces, pieces_of_rank
from ..runtime.primitives import call_tile, view
from ..runtime.processors import vector_unit
from ..runtime.records import SPARSE, read
from .matmul import DEPTH, DEPTH_UNIT
from .sparse_vectors import PAIR, ROW_BYTES, pair_of
from .tiles import transpose_of

CHUNK = 256  # columns of a piece of work
PAIRS = CHUNK // PAIR
ENTRY = {4: (np.int32, np.float32), 8: (np.int64, np.float64)}  # offset of the row of x in a strip, and the weight


def available() -> bool:
    """True if Numba compiles for a processor whose vector unit is known, or kernels are interpreted."""
    return INTERPRETED or vector_unit() is not None


def strip_rows(itemsize: int) -> int:
    """Rows of a strip of x."""
    return ROW_BYTES // itemsize


def scratch_bytes(itemsize: int) -> int:
    """Memory of a rank: sums of a column that is not there, and entries of a block of a pair."""
    return ROW_BYTES + DEPTH * PAIR * 2 * itemsize


def block_rows(inputs: int) -> int:
    """Rows of w in a block, whose products are summed from zero."""
    return min(inputs, equal_size(inputs, DEPTH, DEPTH_UNIT))


# ---------------------------------------------------------------- pieces
@register_jitable
def num_strip_pieces(rows, rows_of_strip, columns):
    """Number of pieces of a matrix (rows, columns): a strip of rows each, and a chunk of columns."""
    return num_pieces(rows, rows_of_strip) * num_pieces(columns, CHUNK)


@register_jitable
def strip_piece(piece, rows, rows_of_strip, columns):
    """Return (strip, first row, number of rows, first column, number of columns) of a piece."""
    across = num_pieces(columns, CHUNK)
    strip, c = piece // across, piece % across * CHUNK
    r = strip * rows_of_strip
    return strip, r, min(rows_of_strip, rows - r), c, min(CHUNK, columns - c)


# ---------------------------------------------------------------- entries
def _build(T: Any, itemsize: int) -> Callable[..., None]:
    def build(work, step, rank, num_ranks):
        s = read(work, SPARSE)
        num_blocks = num_pieces(s.inputs, s.block)
        W = view(s.w, s.inputs * s.outputs, T)
        for chunk in pieces_of_rank(num_pieces(s.outputs, CHUNK), rank, num_ranks):
            # one chunk of columns, block by block
            c = chunk * CHUNK
            n, places = min(CHUNK, s.outputs - c), view(s.places + chunk * num_blocks * 8, num_blocks + 1, np.int64)
            room, strays = view(s.room + chunk * 8, 2, np.int64), 0
            V = view(s.entries + room[0] * 2 * itemsize, 2 * (room[1] - room[0]), T)
            for i in range(num_blocks):
                # the number of weights that are not zero; a row's in 32 bits, whose vectors are as wide as the weights'
                for k in range(i * s.block, min((i + 1) * s.block, s.inputs)):
                    row, of_row = view(s.w + (k * s.outputs + c) * itemsize, n, T), np.int32(0)
                    for j in range(n):
                        of_row += np.int32(1) if row[j] != 0 else np.int32(0)
                    strays += of_row
                # less those that the mask leaves, each of which goes to its entry
                first, count = places[i], places[i + 1] - places[i]
                source, target = s.source + first * 4, s.target + first * 4
                elements, entries = view(source, count, np.uint32), view(target, count, np.uint32)
                for j in range(count):
                    value = W[elements[j]]
                    V[np.uint32(2) * entries[j] + np.uint32(1)] = value
                    strays -= 1 if value != 0 else 0
            view(s.fits + chunk * 8, 1, np.int64)[0] = strays == 0

    return build


# ---------------------------------------------------------------- layouts
def _pack(T: Any, itemsize: int) -> Callable[..., None]:
    rows_of_strip, unit = strip_rows(itemsize), vector_unit()
    square: Any = transpose_of(T, unit) if unit else None
    lanes = unit.lanes(itemsize) if unit else 1

    def pack(work, step, rank, num_ranks):
        s = read(work, SPARSE)
        rows = batch_rows(s.run, step)
        for piece in pieces_of_rank(num_strip_pieces(rows, rows_of_strip, s.inputs), rank, num_ranks):
            # one strip and some columns; rows of the strip that are not there stay whatever they were
            strip, r, m, c, n = strip_piece(piece, rows, rows_of_strip, s.inputs)
            source = s.rows_x + (r * s.inputs + c) * itemsize
            to = s.x + (strip * s.inputs + c) * ROW_BYTES
            whole_m, whole_n = (m // lanes * lanes, n // lanes * lanes) if unit else (0, 0)
            for j in range(0, whole_n, lanes):
                for i in range(0, whole_m, lanes):
                    corner = to + j * ROW_BYTES + i * itemsize
                    square(source + (i * s.inputs + j) * itemsize, s.inputs * itemsize, corner, ROW_BYTES, lanes, lanes)
            # what squares leave: the last columns of all rows, and the last rows
            for i in range(m):
                X = view(source + i * s.inputs * itemsize, n, T)
                for j in range(whole_n if i < whole_m else 0, n):
                    view(to + j * ROW_BYTES, rows_of_strip, T)[i] = X[j]

    return pack


def _unpack(T: Any, itemsize: int) -> Callable[..., None]:
    rows_of_strip, unit = strip_rows(itemsize), vector_unit()
    square: Any = transpose_of(T, unit) if unit else None
    lanes = unit.lanes(itemsize) if unit else 1

    def unpack(work, step, rank, num_ranks):
        s = read(work, SPARSE)
        rows = batch_rows(s.run, step)
        for piece in pieces_of_rank(num_strip_pieces(rows, rows_of_strip, s.outputs), rank, num_ranks):
            # one strip and some columns
            strip, r, m, c, n = strip_piece(piece, rows, rows_of_strip, s.outputs)
            source = s.y + (strip * s.outputs + c) * ROW_BYTES
            to = s.rows_y + (r * s.outputs + c) * itemsize
            whole_m, whole_n = (m // lanes * lanes, n // lanes * lanes) if unit else (0, 0)
            for i in range(0, whole_m, lanes):
                for j in range(0, whole_n, lanes):
                    corner = to + (i * s.outputs + j) * itemsize
                    square(
                        source + j * ROW_BYTES + i * itemsize, ROW_BYTES, corner, s.outputs * itemsize, lanes, lanes
                    )  # fmt: skip
            for i in range(m):
                Y = view(to + i * s.outputs * itemsize, n, T)
                for j in range(whole_n if i < whole_m else 0, n):
                    Y[j] = view(source + j * ROW_BYTES, rows_of_strip, T)[i]

    return unpack


# ---------------------------------------------------------------- products
def _forward(T: Any, itemsize: int) -> Callable[..., None]:
    rows_of_strip = strip_rows(itemsize)
    offset_type, pair_of_columns = ENTRY[itemsize][0], pair_of(T, vector_unit())

    @register_jitable
    def entries_of_pair(s, j, first_row, last_row, memory):
        """The entries of columns j and j + 1 in some rows of w, written to memory; return their number for each."""
        size = 2 * PAIR * (last_row - first_row)
        K, V, count = view(memory, size, offset_type), view(memory, size, T), 0
        for k in range(first_row, last_row):
            row = view(s.w + (k * s.outputs + j) * itemsize, PAIR, T)
            second = row[1] if j + 1 < s.outputs else T(0)
            if row[0] != 0 or second != 0:
                K[4 * count], V[4 * count + 1] = k * ROW_BYTES, row[0]
                K[4 * count + 2], V[4 * count + 3] = k * ROW_BYTES, second
                count += 1
        return count

    @register_jitable
    def bias_of(s, j):
        return view(s.b + j * itemsize, 1, T)[0] if s.b else T(0)

    def forward(work, step, rank, num_ranks):
        s = read(work, SPARSE)
        rows = batch_rows(s.run, step)
        num_blocks = num_pieces(s.inputs, s.block)
        nowhere = s.scratch + rank * s.scratch_bytes
        own_entries = nowhere + ROW_BYTES
        for piece in pieces_of_rank(num_strip_pieces(rows, rows_of_strip, s.outputs), rank, num_ranks):
            # one strip of rows, one chunk of columns
            strip, _, _, c, n = strip_piece(piece, rows, rows_of_strip, s.outputs)
            chunk = c // CHUNK
            x, y = s.x + strip * s.inputs * ROW_BYTES, s.y + (strip * s.outputs + c) * ROW_BYTES
            entries = s.entries + view(s.room + chunk * 8, 1, np.int64)[0] * 2 * itemsize
            fits = view(s.fits + chunk * 8, 1, np.int64)[0] != 0
            starts = s.starts + chunk * num_blocks * (PAIRS + 1) * 4
            for i in range(num_blocks):
                # one block: sums from zero, which join those of the blocks before it
                of_block = view(starts + i * (PAIRS + 1) * 4, PAIRS + 1, np.int32)
                has_bias = s.b != 0 and i == num_blocks - 1
                for j in range(0, n, PAIR):
                    # one pair of columns
                    first = of_block[j // PAIR]
                    of_pair, count = entries + PAIR * first * 2 * itemsize, of_block[j // PAIR + 1] - first
                    if not fits:
                        last_row = min((i + 1) * s.block, s.inputs)
                        of_pair, count = own_entries, entries_of_pair(s, c + j, i * s.block, last_row, own_entries)
                    sums, second = y + j * ROW_BYTES, nowhere if j + 1 == n else y + (j + 1) * ROW_BYTES
                    pair_of_columns(
                        of_pair, count, x, int(i > 0), sums, second, int(has_bias), bias_of(s, c + j),
                        bias_of(s, min(c + j + 1, s.outputs - 1)),
                    )  # fmt: skip
            call_tile(s.activate, y, 0, y, 0, n, rows_of_strip, rows_of_strip)

    return forward


SPARSE_PHASES: dict[str, Callable[..., Any]] = {
    "build": _build, "pack": _pack, "forward": _forward, "unpack": _unpack,
}  # fmt: skip


@cache
def sparse_kernel(phase: str, dtype: str) -> Kernel:
    return Kernel(SPARSE_PHASES[phase](getattr(np, dtype), np.dtype(dtype).itemsize), f"sparse_{phase}_{dtype}")
