"""What cuBLASLt's epilogues cannot do of a dense layer: activations, their slopes, and the sums of a bias' gradient.

    activate   y = f(z + b), elementwise; moves 8 bytes an element in float32, and waits for memory
    slopes     dz = dy f'(s), and the sums of its columns over HIGH rows at a time
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
from ..runtime.compile import SIMULATED, THREADS, Kernel, device
from ..runtime.device import Device, launch
from ..runtime.float16 import round_to
from ..runtime.primitives import VECTOR, array_loader, array_storer, reader, writer
from ..runtime.storage import ROUNDED, STORES, pair_map, vector_map

LANES = 4 if SIMULATED else 32  # threads side by side, each with a vector of columns
DEEP = THREADS // LANES  # threads one behind the other, each with every DEEP-th row
HIGH = 64  # rows of a tile
SUMS_BYTES = 4 << 20  # of the sums of a layer, at most; tiles are higher where there would be more

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
        # y = f(z + b); z, where it is not y, keeps z + b. A thread has a vector of columns at a time.
        across = columns // width
        first, step = cuda.blockIdx.x * THREADS + cuda.threadIdx.x, cuda.gridDim.x * THREADS
        row, column = first // across, first % across
        down, right = step // across, step % across
        while row < rows:
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
    span, nothing, rounded_to = LANES * width, (0.0,) * width, round_to(dtype)

    def product(x):
        return (rounded_to(x[0] * slope(x[1])),)

    def plus(total, x):
        return total + np.float64(x[0])

    sloped, added = vector_map(device(product), width), pair_map(plus, width)

    def slopes(dy, s, dz, sums, db, rows, columns, stride, height):
        # dz may be dy, or 0: only the sums are wanted. They go to sums (tiles, columns), or to db if that is 0.
        totals = cuda.shared.array((DEEP, span), np.float64)
        lane, deep = cuda.threadIdx.x % LANES, cuda.threadIdx.x // LANES
        across = (columns + span - 1) // span
        for tile in range(cuda.blockIdx.x, across * ((rows + height - 1) // height), cuda.gridDim.x):
            top, left = tile // across * height, tile % across * span
            column = left + lane * width
            total = nothing
            if column < columns:
                for row in range(top + deep, min(top + height, rows), DEEP):
                    at = row * stride + column
                    x = sloped(load((dy, s), at))
                    total = added(total, x)  # before it is stored: of 16 bits that takes 8 registers less
                    if dz != 0:
                        store((dz,), at, x)
            for k in range(width):
                totals[deep, lane * width + k] = total[k]
            half = DEEP // 2
            while half > 0:
                cuda.syncthreads()
                if deep < half:
                    for i in range(lane, span, LANES):
                        totals[deep, i] += totals[deep + half, i]
                half //= 2
            if deep == 0:
                for i in range(lane, min(span, columns - left), LANES):
                    if sums != 0:
                        write_double(sums + (tile // across * columns + left + i) * 8, totals[0, i])
                    elif db != 0:
                        store1((db,), left + i, ((real(totals[0, i]),),))
            cuda.syncthreads()  # the next tile begins with totals

    return slopes


def _totals(dtype):
    store, real = array_storer((STORES[dtype],), 1), getattr(np, STORES[dtype].real)

    def totals(sums, db, tiles, columns):
        kept = cuda.shared.array((DEEP, LANES), np.float64)
        lane, deep = cuda.threadIdx.x % LANES, cuda.threadIdx.x // LANES
        for left in range(cuda.blockIdx.x * LANES, columns, cuda.gridDim.x * LANES):
            column, total = left + lane, 0.0
            if column < columns:
                for tile in range(deep, tiles, DEEP):
                    total += read_double(sums + (tile * columns + column) * 8)[0]
            kept[deep, lane] = total
            half = DEEP // 2
            while half > 0:
                cuda.syncthreads()
                if deep < half:
                    kept[deep, lane] += kept[deep + half, lane]
                half //= 2
            if deep == 0 and column < columns:
                store((db,), column, ((real(kept[0, lane]),),))
            cuda.syncthreads()

    return totals


@cache
def activate_kernel(name: str, dtype: str, wide: bool) -> Kernel:
    body = _activate(ACTIVATIONS[name].value, dtype, width_of(dtype, wide))
    return Kernel(body, f"activate_{name}_{dtype}{'_wide' * wide}")


@cache
def slopes_kernel(name: str, dtype: str, wide: bool) -> Kernel:
    body = _slopes(ACTIVATIONS[name].slope, dtype, width_of(dtype, wide))
    return Kernel(body, f"slopes_{name}_{dtype}{'_wide' * wide}")


@cache
def totals_kernel(dtype: str) -> Kernel:
    return Kernel(_totals(dtype), f"totals_{dtype}")


def dense_kernels(dtype: str) -> list[Kernel]:
    """Every kernel of a dtype."""
    makers = activate_kernel, slopes_kernel
    kernels = [make(name, dtype, wide) for make in makers for name in ACTIVATIONS for wide in (False, True)]
    return [totals_kernel(dtype), *kernels]


# ---------------------------------------------------------------- launches
def width_of(dtype: str, wide: bool) -> int:
    """Return the columns that a thread has at a time: those of 16 bytes, or one."""
    return STORES[dtype].width if wide else 1


def is_wide(dtype: str, columns: int, stride: int, *addresses: int) -> bool:
    """Whether every row begins at a multiple of 16 bytes and is a multiple of them."""
    low = (columns | stride) * STORES[dtype].size
    for address in addresses:
        low |= address
    return low % VECTOR == 0


def tiles(rows: int, columns: int) -> tuple[int, int]:
    """How many rows a sum of `slopes` is taken over, and how many such sums a column has."""
    height = HIGH
    while -(-rows // height) * columns * 8 > SUMS_BYTES and height < rows:
        height *= 2
    return height, -(-rows // height)


class Shape(NamedTuple):
    """Of a layer's outputs; `gradient` is the dtype of db, if another."""

    rows: int
    columns: int
    stride: int
    dtype: str
    gradient: str = ""


def sums_bytes(shape: Shape) -> int:
    """The memory for the sums of `slopes`; 0 where it writes db itself: from one tile, in its own dtype."""
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
    rows, columns, stride, dtype, gradient = shape
    height, count = tiles(rows, columns)
    wide = is_wide(dtype, columns, stride, dy, s, dz)
    sums = sums if db and sums_bytes(shape) else 0
    pieces = count * -(-columns // (LANES * width_of(dtype, wide)))
    kernel = slopes_kernel(name, dtype, wide)
    launch(gpu, kernel, pieces, stream, dy, s, dz, sums, db, rows, columns, stride, height)
    if sums:
        launch(gpu, totals_kernel(gradient or dtype), -(-columns // LANES), stream, sums, db, count, columns)
