"""Matrix products called like a BLAS: C (m, n) = alpha A (m, k) B (k, n) (+ C), with A, B or both transposed.

The products of a dense layer's training step have few rows or a short sum, and a BLAS spends much of their time on
packing its operands. Here a tile of C is kept in vector registers (`tiles`), and A and B are read in place where that
does not cost more than a copy:

    for a block of products         equal ones, at most DEPTH
      for a block of rows of A      it stays in the second-level cache; A transposed is packed if B has many columns
        for a strip of columns      of B and C, as wide as a tile: it stays in the first-level cache
          for a tile of rows        the first tile copies the strip of B that it reads, later ones read the copy

The last strip has the columns that are left, or, where that is a vector at most and the unit has wide tiles, those and
the ones before them. Where they are four or more and fill half of a vector at most, and A is transposed, so that the
rows of C are neighbours in it, vectors are along those rows instead.

Every element of C is summed in the same order, whatever the tiles: block by block of products, whose size depends on k
alone. So bits depend neither on threads nor on the processor.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from ..runtime.compile import Kernel, lock
from ..runtime.frontend import register_jitable
from ..runtime.partition import equal_size
from ..runtime.primitives import view
from ..runtime.processors import VectorUnit, microarchitecture, vector_unit
from .tiles import copy_of, pad_of, stack_of, tile_of, transpose_of

ROW_MAJOR, AS_IS, TRANSPOSED = 101, 111, 112  # CBLAS's constants
FEW = 4  # columns that are multiplied as rows where A is transposed
DEPTH, DEPTH_UNIT = 256, 16  # most products of a block, and their unit: the squares in which a transposed B is packed
PACKED_BYTES = 98_304  # of a block of A
NEVER = 1 << 62


class Blocking(NamedTuple):
    """From which sizes on a product copies its operands, and the rows of its blocks."""

    block_rows: int  # of A, read in place
    copied_rows: int  # a strip of B is copied if it is read by so many rows
    copied_bytes: int  # and its rows, with what lies between them, are so far apart in all
    packed_cols: int  # A^T is packed if it is read by so many columns
    packed_stride: int  # and its rows are a multiple of so many bytes apart


# The default was found on Intel's Emerald Rapids, where packing A^T took 784 x 1024 x 256 from 130 to 152 GFLOP/s. On
# Zen 5 that costs 4 %, unless the rows of A share sets of the cache: 1024 x 64 x 1024 goes from 218 to 234. Zen 4 does
# one fused multiplication of whole vectors a cycle, half of theirs, and waits for memory only there. On Zen 3 a block
# of 512 rows would fill the second-level cache: with 256, and A^T packed as on Zen 5, products take 2 % less.
BLOCKINGS = {
    "znver5": Blocking(512, copied_rows=24, copied_bytes=40_000, packed_cols=160, packed_stride=2048),
    "znver4": Blocking(512, copied_rows=24, copied_bytes=524_288, packed_cols=160, packed_stride=2048),
    "znver3": Blocking(256, copied_rows=24, copied_bytes=40_000, packed_cols=160, packed_stride=2048),
}
DEFAULT = Blocking(block_rows=512, copied_rows=24, copied_bytes=40_000, packed_cols=160, packed_stride=1)


def blocking() -> Blocking:
    return BLOCKINGS.get(microarchitecture(), DEFAULT)


def available() -> bool:
    """True if Numba compiles for a processor whose vector unit is known."""
    return vector_unit() is not None


def _strip(T: Any, unit: VectorUnit, vectors: int, whole: bool, size: int) -> Callable[..., None]:
    """The product for a strip of C: tiles of `size` rows from top to bottom, smaller ones for the last rows.

    Without `whole` a part of the last vector exists.
    """
    padded = not whole and not unit.mask_registers
    tile, four, two, one = (
        tile_of(T, unit, rows, vectors, whole, padded=padded, whole_vectors=vectors - 1) for rows in (size, 4, 2, 1)
    )
    copying: Any = tile_of(T, unit, size, vectors, whole, copies=True) if whole else None
    copy_step = vectors * unit.vector_bytes

    @register_jitable
    def strip(alpha, m, a, a_row, a_step, a_tile, b, b_step, c, c_row, depth, columns, add, copy):
        # a_tile: bytes from one tile of A to the next, in units of its rows; copy: address or 0
        i = 0
        if whole and copy:
            copying(alpha, a, a_row, a_step, b, b_step, c, c_row, depth, columns, add, copy)
            i = size
            b, b_step = copy, copy_step
        # two tiles of four rows take less than one of six and one of two, whose sums are too few to hide their latency
        while m - i >= size and (size != 6 or m - i != 8):
            tile(alpha, a + i * a_tile, a_row, a_step, b, b_step, c + i * c_row, c_row, depth, columns, add, 0)
            i += size
        while m - i >= 4:
            four(alpha, a + i * a_tile, a_row, a_step, b, b_step, c + i * c_row, c_row, depth, columns, add, 0)
            i += 4
        if m - i >= 2:
            two(alpha, a + i * a_tile, a_row, a_step, b, b_step, c + i * c_row, c_row, depth, columns, add, 0)
            i += 2
        if i < m:
            one(alpha, a + i * a_tile, a_row, a_step, b, b_step, c + i * c_row, c_row, depth, columns, add, 0)

    return strip


def _few_columns(T: Any, unit: VectorUnit) -> Callable[..., None]:
    """The product for a strip of at least four columns, made as C' = B' A' of an A whose rows are neighbours in memory.

    With vectors along the columns, 4 columns of 784 x 100 are multiplied as if they were 16, and tiles of one vector
    wait for the loads of A: dw of 56 x 100 over 200 rows ran at 216 GFLOP/s for float32 where 56 x 96 ran at 250.
    """
    lanes, itemsize = unit.lanes(np.dtype(T).itemsize), np.dtype(T).itemsize
    vectors = unit.tile_rows * unit.tile_vectors // FEW  # as many sums as the other tiles have
    width = vectors * lanes
    row_bytes = width * itemsize
    part, tile_stack = tile_of(T, unit, FEW, vectors, False), stack_of(FEW * row_bytes)
    # where masks take registers of the sums, whole tiles do without
    has_whole = not unit.mask_registers
    tile = tile_of(T, unit, FEW, vectors, True) if has_whole else part

    @register_jitable
    def few_columns(alpha, m, a, a_step, b, b_step, c, c_row, depth, columns, add):
        transposed = tile_stack()
        for i in range(0, m, width):
            # a group of rows of C, by four of its columns; the last four begin among those that are done
            rows, from_a, done = min(width, m - i), a + i * itemsize, 0
            while done < columns:
                first = min(done, columns - FEW)
                from_b = b + first * itemsize
                if has_whole and rows == width:
                    tile(alpha, from_b, itemsize, b_step, from_a, a_step, transposed, row_bytes, depth, rows, 0, 0)
                else:
                    part(alpha, from_b, itemsize, b_step, from_a, a_step, transposed, row_bytes, depth, rows, 0, 0)
                for r in range(rows):
                    target = view(c + (i + r) * c_row, columns, T)
                    for j in range(done, first + FEW):
                        value = view(transposed + (j - first) * row_bytes + r * itemsize, 1, T)[0]
                        target[j] = target[j] + value if add else value
                done = first + FEW

    return few_columns


def matmul_of(T: Any, unit: VectorUnit, sizes: Blocking) -> Callable[..., None]:
    """The product for a type, a vector unit and a blocking."""
    itemsize = np.dtype(T).itemsize
    lanes, tile_rows = unit.lanes(itemsize), unit.tile_rows
    strip_cols = lanes * unit.tile_vectors
    vector_bytes, strip_bytes = unit.vector_bytes, strip_cols * itemsize
    has_masks, strip = unit.has_masks, _strip(T, unit, unit.tile_vectors, True, tile_rows)
    edge: Any = _strip(T, unit, unit.tile_vectors, False, tile_rows) if has_masks else None
    narrow: Any = _strip(T, unit, 1, False, tile_rows) if has_masks else None
    # a wide strip: the last one, with the columns that are left over
    has_wide = unit.wide_rows > 0
    wide_vectors = unit.tile_vectors + has_wide
    most_cols, wide_bytes = wide_vectors * lanes, wide_vectors * unit.vector_bytes
    wide_strip: Any = _strip(T, unit, wide_vectors, False, unit.wide_rows) if has_wide else None
    few_columns: Any = _few_columns(T, unit) if has_masks else None
    # where masks take registers of the sums, tiles of parts of a strip read a copy of B
    pads = has_masks and not unit.mask_registers
    pad_edge: Any = pad_of(T, unit, unit.tile_vectors) if pads else None
    pad_narrow: Any = pad_of(T, unit, 1) if pads else None
    pad_wide: Any = pad_of(T, unit, wide_vectors) if pads and has_wide else None
    # tiles of a single row, with as many sums as the others, and half as many: few would wait for one another, and B
    # would be read in short pieces (a row of 784 x 256 took 17 us by strips, 7.8 so; 9.2 in OpenBLAS's sgemv)
    half_cols = tile_rows * unit.tile_vectors // 2 * lanes
    row_tile, half_row_tile = (tile_of(T, unit, 1, n * half_cols // lanes, True) for n in (2, 1))
    transpose, transpose_edge = transpose_of(T, unit), transpose_of(T, unit, whole=not has_masks)
    copy_group, copy_two = copy_of(T, tile_rows, 1), copy_of(T, tile_rows, 2)
    set_zero = zero_of(T)
    strip_stack, block_stack = stack_of((DEPTH + lanes) * wide_bytes), stack_of(PACKED_BYTES)
    tile_stack = stack_of(tile_rows * strip_bytes if not has_masks else 64)
    block_rows, copied_rows, copied_bytes, packed_cols, packed_stride = sizes
    packed_rows = PACKED_BYTES // (DEPTH * itemsize) // tile_rows * tile_rows

    @register_jitable
    def pack_elements(b, b_row, b_col, rows, columns, to):
        """to[p, j] = B[p, j], one element after the other."""
        for p in range(rows):
            target = view(to + p * strip_bytes, columns, T)
            for j in range(columns):
                target[j] = view(b + p * b_row + j * b_col, 1, T)[0]

    @register_jitable
    def last_strip(alpha, m, a, a_row, a_step, a_tile, b, c, c_row, depth, columns, add, tile_of_c):
        """A strip of which only some columns exist, by whole tiles of a copy of it and of C."""
        for i in range(0, m, tile_rows):
            rows = min(tile_rows, m - i)
            strip(
                alpha, rows, a + i * a_tile, a_row, a_step, a_tile, b, strip_bytes, tile_of_c, strip_bytes, depth,
                strip_cols, 0, 0,
            )  # fmt: skip
            for r in range(rows):
                source, target = view(tile_of_c + r * strip_bytes, columns, T), view(c + (i + r) * c_row, columns, T)
                for j in range(columns):
                    target[j] = target[j] + source[j] if add else source[j]

    @register_jitable
    def pack_b(b, ldb, columns, depth, to, to_row):
        """to[p, j] = B[j, p] for a strip, in rows of so many bytes."""
        for j in range(0, columns, lanes):
            n, p = min(lanes, columns - j), 0
            if n == lanes:
                while p + lanes <= depth:
                    corner = to + p * to_row + j * itemsize
                    transpose(b + (j * ldb + p) * itemsize, ldb * itemsize, corner, to_row, n, lanes)
                    p += lanes
            if has_masks:
                while p < depth:
                    corner = to + p * to_row + j * itemsize
                    transpose_edge(b + (j * ldb + p) * itemsize, ldb * itemsize, corner, to_row, n, depth - p)
                    p += lanes
            else:
                corner = to + p * to_row + j * itemsize
                pack_elements(b + (j * ldb + p) * itemsize, itemsize, ldb * itemsize, depth - p, n, corner)

    @register_jitable
    def pack_a(a, a_step, rows, depth, to):
        """to[i, p, :] = A[p, tile i] for whole tiles of rows: two at a time, half a line each, or one."""
        i = 0
        while rows - i >= 2 * tile_rows:
            copy_two(a + i * itemsize, a_step, to + i * depth * itemsize, depth)
            i += 2 * tile_rows
        if i < rows:
            copy_group(a + i * itemsize, a_step, to + i * depth * itemsize, depth)

    def matmul(order, ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc):
        # row-major; beta is 0 or 1 in all calls
        strip_copy, block_copy, c_tile, adds = strip_stack(), block_stack(), tile_stack(), int(beta != 0)
        # a column, of which a vector would hold one element: calculated as a row, C' = B' A'
        if n == 1 and ldc == 1:
            row_of_b = 1 if tb == TRANSPOSED else ldb
            tb = AS_IS if ta == TRANSPOSED else TRANSPOSED
            ta, m, n, a, lda, b, ldb, ldc = TRANSPOSED, 1, m, b, row_of_b, a, lda, m
        a_row, a_step = (itemsize, lda * itemsize) if ta == TRANSPOSED else (lda * itemsize, itemsize)
        packs = ta == TRANSPOSED and n >= packed_cols and m >= tile_rows and a_step % packed_stride == 0
        most_rows = packed_rows if packs else block_rows
        # equal blocks of products, in whole squares of a transposed B
        block_depth = equal_size(k, DEPTH, DEPTH_UNIT)
        for p in range(0, k, block_depth):
            depth, add = min(block_depth, k - p), p + adds  # all blocks but the first add to C
            for i in range(0, m, most_rows):
                # one block of rows of A
                rows = min(most_rows, m - i)
                from_a, row, step, tile, last_cols = a + p * a_step + i * a_row, a_row, a_step, a_row, most_cols
                if packs and rows % tile_rows == 0:
                    pack_a(from_a, a_step, rows, depth, block_copy)
                    from_a, row, step, tile = block_copy, itemsize, tile_rows * itemsize, depth * itemsize
                    last_cols = strip_cols  # a wide strip has tiles of other rows
                first_col = 0
                if m == 1 and tb != TRANSPOSED:
                    # a single row: B is read as far as the tile is wide
                    while n - first_col >= half_cols:
                        from_b, to = b + (p * ldb + first_col) * itemsize, c + first_col * itemsize
                        if n - first_col >= 2 * half_cols:
                            row_tile(alpha, from_a, row, step, from_b, ldb * itemsize, to, 0, depth, n, add, 0)
                            first_col += half_cols
                        else:
                            half_row_tile(alpha, from_a, row, step, from_b, ldb * itemsize, to, 0, depth, n, add, 0)
                        first_col += half_cols
                j = first_col
                while j < n:
                    # one strip of B, packed if it is transposed
                    columns, copy = n - j if n - j <= last_cols else strip_cols, 0
                    if tb == TRANSPOSED:
                        from_b, b_step = strip_copy, strip_bytes if columns <= strip_cols else wide_bytes
                        pack_b(b + (j * ldb + p) * itemsize, ldb, columns, depth, from_b, b_step)
                    else:
                        from_b, b_step = b + (p * ldb + j) * itemsize, ldb * itemsize
                        if rows >= copied_rows and depth * b_step >= copied_bytes:
                            copy = strip_copy
                    # its tiles
                    to, c_row = c + (i * ldc + j) * itemsize, ldc * itemsize
                    if columns == strip_cols:
                        strip(
                            alpha, rows, from_a, row, step, tile, from_b, b_step, to, c_row, depth, columns, add, copy
                        )
                    elif not has_masks:
                        # the other columns of the copy are whatever was there: nothing is kept of their products
                        if tb != TRANSPOSED:
                            pack_elements(from_b, ldb * itemsize, itemsize, depth, columns, strip_copy)
                        last_strip(
                            alpha, rows, from_a, row, step, tile, strip_copy, to, c_row, depth, columns, add, c_tile
                        )
                    elif has_wide and columns > strip_cols:
                        if pads and tb != TRANSPOSED:
                            pad_wide(from_b, b_step, columns, strip_copy, depth)
                            from_b, b_step = strip_copy, wide_bytes
                        wide_strip(
                            alpha, rows, from_a, row, step, tile, from_b, b_step, to, c_row, depth, columns, add, 0
                        )
                    elif FEW <= columns <= lanes // 2 and rows > 2 * tile_rows and row == itemsize == tile:
                        few_columns(alpha, rows, from_a, step, from_b, b_step, to, c_row, depth, columns, add)
                    elif columns <= lanes:
                        if pads and tb != TRANSPOSED:
                            pad_narrow(from_b, b_step, columns, strip_copy, depth)
                            from_b, b_step = strip_copy, vector_bytes
                        narrow(alpha, rows, from_a, row, step, tile, from_b, b_step, to, c_row, depth, columns, add, 0)
                    else:
                        if pads and tb != TRANSPOSED:
                            pad_edge(from_b, b_step, columns, strip_copy, depth)
                            from_b, b_step = strip_copy, strip_bytes
                        edge(alpha, rows, from_a, row, step, tile, from_b, b_step, to, c_row, depth, columns, add, 0)
                    j += columns
        # an empty sum
        if k == 0 and not adds:
            set_zero(c, ldc, m, n)

    return matmul


def zero_of(T: Any) -> Callable[..., None]:
    """The function that sets C (m, n) to zero, for kernels."""
    itemsize = np.dtype(T).itemsize

    @register_jitable
    def set_zero(c, ldc, m, n):
        for i in range(m):
            row = view(c + i * ldc * itemsize, n, T)
            for j in range(n):
                row[j] = 0

    return set_zero


def plain_of(T: Any, round_: Callable[[Any], Any]) -> Callable[..., None]:
    """Plain loops, called like a BLAS, whose operands are rounded as they are read."""
    set_zero = zero_of(T)

    def plain(order, ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc):
        # row-major; beta is 0 or 1 in all calls
        A = view(a, max(0, ((k if ta == TRANSPOSED else m) - 1) * lda + (m if ta == TRANSPOSED else k)), T)
        B = view(b, max(0, ((n if tb == TRANSPOSED else k) - 1) * ldb + (k if tb == TRANSPOSED else n)), T)
        C = view(c, (m - 1) * ldc + n, T)
        if beta == 0:
            set_zero(c, ldc, m, n)
        for i in range(m):
            # one row of C
            for p in range(k):
                factor = alpha * round_(A[p * lda + i] if ta == TRANSPOSED else A[i * lda + p])
                if tb == TRANSPOSED:
                    for j in range(n):
                        C[i * ldc + j] += factor * round_(B[j * ldb + p])
                else:
                    for j in range(n):
                        C[i * ldc + j] += factor * round_(B[p * ldb + j])

    return plain


def gemm_types(dtype: str) -> tuple[str, ...]:
    """Numba's types of the parameters of cblas_?gemm, by name, with addresses as integers."""
    i32, i64 = "int32", "int64"
    return (*[i32] * 6, dtype, i64, i32, i64, i32, dtype, i64, i32)


@cache
def matmul_kernel(dtype: str) -> Kernel:
    with lock:  # two threads would make two different kernels
        unit = vector_unit()
        assert unit is not None, "ask `available` first"
        return Kernel(matmul_of(getattr(np, dtype), unit, blocking()), f"matmul_{dtype}", gemm_types(dtype))
