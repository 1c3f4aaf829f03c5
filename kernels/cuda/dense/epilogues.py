"""Activations of dense layers, their slopes, and the sums of a bias' gradient, where cuBLASLt has no epilogue for them.

    activate   y = f(z + b), elementwise; moves 8 bytes an element in float32, and waits for memory
    slopes     dz = dy f'(s), and the sums of its columns over TILE_ROWS rows at a time
    totals     db, from those sums

Sums are cut by the shape alone and added in a fixed order, in float64, so they are the same bits in every run. Arrays
lie in rows, with the same stride for all of a layer's outputs.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
from numba import cuda

from ...formulas import ACTIVATIONS
from ..runtime.compile import THREADS, Kernel, device
from ..runtime.device import Device, launch
from ..runtime.float16 import round_to
from ..runtime.primitives import VECTOR, reader, writer
from ..runtime.storage import ROUNDED, STORES
from ..runtime.vectors import array_loader, array_storer, pair_map, vector_map
from .reductions import COLUMN_LANES, ROW_LANES

TILE_ROWS = 64
MAX_SUMS_BYTES = 4 << 20  # of the sums of a layer: tiles have more rows where there would be more

read_double, write_double = reader("float64", 1), writer("float64")


# ---------------------------------------------------------------- activations
def _activate(value, dtype, width):
    own, rounded, value = (STORES[dtype],), (ROUNDED[dtype],), device(value)
    load, store, store_rounded = array_loader(own, width), array_storer(own, width), array_storer(rounded, width)
    rounded_to = round_to(dtype)

    def plus(z, b):
        return (rounded_to(z[0] + b[0]),)

    def f(z):
        return (value(z[0]),)

    added, activated = pair_map(plus, width), vector_map(f, width)

    def activate(z, b, y, rows, columns, stride):
        # y = f(z + b); z, where it is not y, keeps z + b
        across = columns // width
        first, step = cuda.blockIdx.x * THREADS + cuda.threadIdx.x, cuda.gridDim.x * THREADS
        row, column = first // across, first % across
        down, right = step // across, step % across
        while row < rows:
            # one vector of columns
            at = row * stride + column * width
            x = load((z,), at)
            if b != 0:
                x = added(x, load((b,), column * width))
                if z != y:
                    store_rounded((z,), at, x)
            store((y,), at, activated(x))
            # the place of the next vector, without a division
            row += down
            column += right
            if column >= across:
                column -= across
                row += 1

    return activate


# ---------------------------------------------------------------- slopes
def _slopes(slope, dtype, width):
    own, rounded, slope, real = (STORES[dtype],), (ROUNDED[dtype],), device(slope), getattr(np, STORES[dtype].real)
    load, store, store1 = array_loader(own, width), array_storer(rounded, width), array_storer(own, 1)
    span, nothing, rounded_to = COLUMN_LANES * width, (0.0,) * width, round_to(dtype)

    def product(x):
        return (rounded_to(x[0] * slope(x[1])),)

    def plus(total, x):
        return total + np.float64(x[0])

    sloped, added = vector_map(device(product), width), pair_map(plus, width)

    def slopes(dy, s, dz, sums, db, rows, columns, stride, tile_rows):
        # dz may be dy, or 0: only the sums are wanted. They go to sums (tiles, columns), or to db if that is 0.
        totals = cuda.shared.array((ROW_LANES, span), np.float64)
        column_lane, row_lane = cuda.threadIdx.x % COLUMN_LANES, cuda.threadIdx.x // COLUMN_LANES
        across = (columns + span - 1) // span
        for tile in range(cuda.blockIdx.x, across * ((rows + tile_rows - 1) // tile_rows), cuda.gridDim.x):
            first_row, first_column = tile // across * tile_rows, tile % across * span
            column = first_column + column_lane * width
            # a thread's columns: every ROW_LANES-th row of the tile
            total = nothing
            if column < columns:
                for row in range(first_row + row_lane, min(first_row + tile_rows, rows), ROW_LANES):
                    at = row * stride + column
                    x = sloped(load((dy, s), at))
                    total = added(total, x)  # before it is stored: of 16 bits that takes 8 registers less
                    if dz != 0:
                        store((dz,), at, x)
            # the sums of the columns over the threads
            for k in range(width):
                totals[row_lane, column_lane * width + k] = total[k]
            half = ROW_LANES // 2
            while half > 0:
                cuda.syncthreads()
                if row_lane < half:
                    for i in range(column_lane, span, COLUMN_LANES):
                        totals[row_lane, i] += totals[row_lane + half, i]
                half //= 2
            # the sums of the tile, or db
            if row_lane == 0:
                for i in range(column_lane, min(span, columns - first_column), COLUMN_LANES):
                    if sums != 0:
                        write_double(sums + (tile // across * columns + first_column + i) * 8, totals[0, i])
                    elif db != 0:
                        store1((db,), first_column + i, ((real(totals[0, i]),),))
            cuda.syncthreads()  # the next tile begins with totals

    return slopes


def _totals(dtype):
    store, real = array_storer((STORES[dtype],), 1), getattr(np, STORES[dtype].real)

    def totals(sums, db, tiles, columns):
        kept = cuda.shared.array((ROW_LANES, COLUMN_LANES), np.float64)
        column_lane, row_lane = cuda.threadIdx.x % COLUMN_LANES, cuda.threadIdx.x // COLUMN_LANES
        for first_column in range(cuda.blockIdx.x * COLUMN_LANES, columns, cuda.gridDim.x * COLUMN_LANES):
            # a thread's column: every ROW_LANES-th tile
            column, total = first_column + column_lane, 0.0
            if column < columns:
                for tile in range(row_lane, tiles, ROW_LANES):
                    total += read_double(sums + (tile * columns + column) * 8)[0]
            # the sums of the columns over the threads
            kept[row_lane, column_lane] = total
            half = ROW_LANES // 2
            while half > 0:
                cuda.syncthreads()
                if row_lane < half:
                    kept[row_lane, column_lane] += kept[row_lane + half, column_lane]
                half //= 2
            # db
            if row_lane == 0 and column < columns:
                store((db,), column, ((real(kept[0, column_lane]),),))
            cuda.syncthreads()  # the next columns begin with kept

    return totals


@cache
def activate_kernel(name: str, dtype: str, wide: bool) -> Kernel:
    """Return the kernel of an activation; wide: in vectors of 16 bytes."""
    body = _activate(ACTIVATIONS[name].value, dtype, width_of(dtype, wide))
    return Kernel(body, f"activate_{name}_{dtype}{'_wide' * wide}")


@cache
def slopes_kernel(name: str, dtype: str, wide: bool) -> Kernel:
    """Return the kernel of an activation's slope; wide: in vectors of 16 bytes."""
    body = _slopes(ACTIVATIONS[name].slope, dtype, width_of(dtype, wide))
    return Kernel(body, f"slopes_{name}_{dtype}{'_wide' * wide}")


@cache
def totals_kernel(dtype: str) -> Kernel:
    """Return the kernel that adds up the sums of tiles."""
    return Kernel(_totals(dtype), f"totals_{dtype}")


def dense_kernels(dtype: str) -> list[Kernel]:
    """Return every kernel of a dtype."""
    makers = activate_kernel, slopes_kernel
    kernels = [make(name, dtype, wide) for make in makers for name in ACTIVATIONS for wide in (False, True)]
    return [totals_kernel(dtype), *kernels]


# ---------------------------------------------------------------- launches
def width_of(dtype: str, wide: bool) -> int:
    """Return the columns of a thread's vector: those of 16 bytes; 1 where not wide."""
    return STORES[dtype].width if wide else 1


def is_wide(dtype: str, columns: int, stride: int, *addresses: int) -> bool:
    """Return True if every row begins at a multiple of 16 bytes and is a multiple of them."""
    low = (columns | stride) * STORES[dtype].size
    for address in addresses:
        low |= address
    return low % VECTOR == 0


def tiles(rows: int, columns: int) -> tuple[int, int]:
    """Return the rows of a tile of `slopes`, and the number of tiles that a column has."""
    tile_rows = TILE_ROWS
    while -(-rows // tile_rows) * columns * 8 > MAX_SUMS_BYTES and tile_rows < rows:
        tile_rows *= 2
    return tile_rows, -(-rows // tile_rows)


class Shape(NamedTuple):
    """Shape and dtype of a layer's outputs; `gradient` is the dtype of db, if another."""

    rows: int
    columns: int
    stride: int
    dtype: str
    gradient: str = ""


def sums_bytes(shape: Shape) -> int:
    """Return the bytes of the sums of `slopes`; 0 where it writes db itself: from one tile, in its own dtype."""
    _, count = tiles(shape.rows, shape.columns)
    alone = count == 1 and shape.gradient in ("", shape.dtype)
    return 0 if alone else count * shape.columns * 8


def activate(gpu: Device, stream: int, name: str, z: int, b: int, y: int, shape: Shape) -> None:
    """y = f(z + b), and z += b where z is not y; b may be 0: there is none."""
    rows, columns, stride, dtype, _ = shape
    wide = is_wide(dtype, columns, stride, z, y, b)
    pieces = rows * (columns // width_of(dtype, wide))
    kernel = activate_kernel(name, dtype, wide)
    launch(gpu, kernel, -(-pieces // THREADS), stream, z, b, y, rows, columns, stride)


def slopes(gpu: Device, stream: int, name: str, dy: int, s: int, dz: int, sums: int, db: int, shape: Shape) -> None:
    """dz = dy f'(s), and db its sums over the rows; dz may be 0 (not wanted) or dy, db may be 0.

    sums: memory of `sums_bytes`.
    """
    tile_slopes(gpu, stream, name, dy, s, dz, sums, db, shape)
    if db and sums_bytes(shape):
        total_sums(gpu, stream, sums, db, shape)


def tile_slopes(
    gpu: Device, stream: int, name: str, dy: int, s: int, dz: int, sums: int, db: int, shape: Shape
) -> None:
    """The first launch of `slopes`: dz, and the sums of each tile, or db where `sums_bytes` is 0."""
    rows, columns, stride, dtype, _ = shape
    tile_rows, count = tiles(rows, columns)
    wide = is_wide(dtype, columns, stride, dy, s, dz)
    sums = sums if db and sums_bytes(shape) else 0
    pieces = count * -(-columns // (COLUMN_LANES * width_of(dtype, wide)))
    kernel = slopes_kernel(name, dtype, wide)
    launch(gpu, kernel, pieces, stream, dy, s, dz, sums, db, rows, columns, stride, tile_rows)


def total_sums(gpu: Device, stream: int, sums: int, db: int, shape: Shape) -> None:
    """The second launch of `slopes`: db, from the sums of the tiles."""
    rows, columns, _, dtype, gradient = shape
    _, count = tiles(rows, columns)
    launch(gpu, totals_kernel(gradient or dtype), -(-columns // COLUMN_LANES), stream, sums, db, count, columns)
