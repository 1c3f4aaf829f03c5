"""What cuBLASLt's epilogues cannot do of a dense layer: activations, their slopes, and the sums of a bias' gradient.

    activate   y = f(z + b), elementwise; moves 8 bytes an element in float32, and waits for memory
    slopes     dz = dy f'(s), and the sums of its columns over HIGH rows at a time
    totals     db, from those sums

Sums are cut by the shape alone and added in a fixed order, in float64, so they are the same bits in every run. Arrays
lie in rows, with the same stride for all of a layer's outputs.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numba import cuda

from ..formulas import ACTIVATIONS, functions
from .compile import SIMULATED, THREADS, Kernel, device, stand_in
from .primitives import VECTOR, loader, reader, storer, writer

LANES = 4 if SIMULATED else 32  # threads side by side, each with a vector of columns
DEEP = THREADS // LANES  # threads one behind the other, each with every DEEP-th row
HIGH = 64  # rows of a tile
SUMS_BYTES = 4 << 20  # of the sums of a layer, at most; tiles are higher where there would be more

read_double, write_double = reader("float64", 1), writer("float64")


def _exp(x):
    return math.exp(x)


stand_in(functions.exp, _exp)  # which overflows to inf on a device, without an exception to be caught


def _lanes(one, width):
    """`one`, from a tuple to a tuple, for a vector of `width` of them."""
    one = device(one)

    def lanes1(v):
        return (one(v[0]),)

    def lanes2(v):
        return one(v[0]), one(v[1])

    def lanes4(v):
        return one(v[0]), one(v[1]), one(v[2]), one(v[3])

    return device({1: lanes1, 2: lanes2, 4: lanes4}[width])


def _pairs(one, width):
    """`one`, of two tuples, for two vectors."""
    one = device(one)

    def pairs1(u, v):
        return (one(u[0], v[0]),)

    def pairs2(u, v):
        return one(u[0], v[0]), one(u[1], v[1])

    def pairs4(u, v):
        return one(u[0], v[0]), one(u[1], v[1]), one(u[2], v[2]), one(u[3], v[3])

    return device({1: pairs1, 2: pairs2, 4: pairs4}[width])


# ---------------------------------------------------------------- activations
def _activate(value, dtype, width):
    size = np.dtype(dtype).itemsize
    load, store, value = loader(dtype, width), storer(dtype, width), device(value)

    def one(element):
        return (value(element[0]),)

    def add(left, right):
        return (left[0] + right[0],)

    activated, added = _lanes(one, width), _pairs(add, width)

    def activate(z, b, y, rows, columns, stride):
        # y = f(z + b); z, where it is not y, keeps z + b. Where a vector lies is counted on, to divide only once.
        across = columns // width
        first, step = cuda.blockIdx.x * THREADS + cuda.threadIdx.x, cuda.gridDim.x * THREADS
        row, column = first // across, first % across
        down, right = step // across, step % across
        while row < rows:
            at = (row * stride + column * width) * size
            v = load((z,), at)
            if b != 0:
                v = added(v, load((b,), column * width * size))
                if z != y:
                    store((z,), at, v)
            store((y,), at, activated(v))
            row += down
            column += right
            if column >= across:
                column -= across
                row += 1

    return activate


# ---------------------------------------------------------------- slopes
def _keep(width):
    """Functions that put a vector of sums into shared memory."""

    def keep1(totals, deep, at, t):
        totals[deep, at] = t[0][0]

    def keep2(totals, deep, at, t):
        totals[deep, at] = t[0][0]
        totals[deep, at + 1] = t[1][0]

    def keep4(totals, deep, at, t):
        totals[deep, at] = t[0][0]
        totals[deep, at + 1] = t[1][0]
        totals[deep, at + 2] = t[2][0]
        totals[deep, at + 3] = t[3][0]

    return device({1: keep1, 2: keep2, 4: keep4}[width])


def _slopes(slope, dtype, width):
    real, size = getattr(np, dtype), np.dtype(dtype).itemsize
    load, store, write, slope = loader(dtype, width), storer(dtype, width), writer(dtype), device(slope)
    wide = LANES * width
    nothing = ((0.0,),) * width

    def one(element):
        return (element[0] * slope(element[1]),)

    def add(total, element):
        return (total[0] + np.float64(element[0]),)

    sloped, added, keep = _lanes(one, width), _pairs(add, width), _keep(width)

    def slopes(dy, s, dz, sums, db, rows, columns, stride, high):
        # dz may be dy, or 0: only the sums are wanted. They go to sums (tiles, columns), or to db if that is 0.
        totals = cuda.shared.array((DEEP, wide), np.float64)
        lane, deep = cuda.threadIdx.x % LANES, cuda.threadIdx.x // LANES
        across = (columns + wide - 1) // wide
        for tile in range(cuda.blockIdx.x, across * ((rows + high - 1) // high), cuda.gridDim.x):
            top, left = tile // across * high, tile % across * wide
            column = left + lane * width
            total = nothing
            if column < columns:
                for row in range(top + deep, min(top + high, rows), DEEP):
                    at = (row * stride + column) * size
                    v = sloped(load((dy, s), at))
                    if dz != 0:
                        store((dz,), at, v)
                    total = added(total, v)
            keep(totals, deep, lane * width, total)
            half = DEEP // 2
            while half > 0:
                cuda.syncthreads()
                if deep < half:
                    for i in range(lane, wide, LANES):
                        totals[deep, i] += totals[deep + half, i]
                half //= 2
            if deep == 0:
                for i in range(lane, min(wide, columns - left), LANES):
                    if sums != 0:
                        write_double(sums + (tile // across * columns + left + i) * 8, totals[0, i])
                    elif db != 0:
                        write(db + (left + i) * size, real(totals[0, i]))
            cuda.syncthreads()  # the next tile begins with totals

    return slopes


def _totals(dtype):
    real, size, write = getattr(np, dtype), np.dtype(dtype).itemsize, writer(dtype)

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
                write(db + column * size, real(kept[0, lane]))
            cuda.syncthreads()

    return totals


@cache
def activate_kernel(name: str, dtype: str, width: int) -> Kernel:
    return Kernel(_activate(ACTIVATIONS[name].value, dtype, width), f"activate_{name}_{dtype}_{width}")


@cache
def slopes_kernel(name: str, dtype: str, width: int) -> Kernel:
    return Kernel(_slopes(ACTIVATIONS[name].slope, dtype, width), f"slopes_{name}_{dtype}_{width}")


@cache
def totals_kernel(dtype: str) -> Kernel:
    return Kernel(_totals(dtype), f"totals_{dtype}")


def dense_kernels(dtype: str) -> list[Kernel]:
    """Every kernel of a dtype."""
    widths = 1, VECTOR // np.dtype(dtype).itemsize
    return [
        totals_kernel(dtype),
        *(make(name, dtype, n) for make in (activate_kernel, slopes_kernel) for name in ACTIVATIONS for n in widths),
    ]


# ---------------------------------------------------------------- launches
def _width(dtype: str, columns: int, stride: int, *addresses: int) -> int:
    """Elements of a vector: 16 bytes where every row begins at a multiple of that and ends at one."""
    size = np.dtype(dtype).itemsize
    low = columns * size | stride * size
    for address in addresses:
        low |= address
    return VECTOR // size if low % VECTOR == 0 else 1


def _blocks(gpu: Any, pieces: int) -> int:
    return max(1, min(gpu.most_blocks, pieces))


def tiles(rows: int, columns: int) -> tuple[int, int]:
    """How many rows a sum of `slopes` is taken over, and how many such sums a column has."""
    high = HIGH
    while -(-rows // high) * columns * 8 > SUMS_BYTES and high < rows:
        high *= 2
    return high, -(-rows // high)


def sums_bytes(rows: int, columns: int) -> int:
    """The memory for the sums of `slopes`; 0 where one tile makes them."""
    _, count = tiles(rows, columns)
    return count * columns * 8 if count > 1 else 0


class Shape(NamedTuple):
    """Of a layer's outputs."""

    rows: int
    columns: int
    stride: int
    dtype: str


def activate(gpu: Any, stream: int, name: str, z: int, b: int, y: int, shape: Shape) -> None:
    """y = f(z + b), and z += b where z is not y; b may be 0: there is none."""
    rows, columns, stride, dtype = shape
    width = _width(dtype, columns, stride, z, y, b)
    kernel = activate_kernel(name, dtype, width)
    blocks = _blocks(gpu, -(-rows * (columns // width) // THREADS))
    gpu.launch(kernel, blocks, stream, z, b, y, rows, columns, stride)


def slopes(gpu: Any, stream: int, name: str, dy: int, s: int, dz: int, sums: int, db: int, shape: Shape) -> None:
    """dz = dy f'(s), and db its sums over the rows; dz may be 0 (not wanted) or dy, db may be 0.

    sums: memory of `sums_bytes`.
    """
    rows, columns, stride, dtype = shape
    high, count = tiles(rows, columns)
    width = _width(dtype, columns, stride, dy, s, dz)
    sums = sums if db and count > 1 else 0
    pieces = count * -(-columns // (LANES * width))
    kernel = slopes_kernel(name, dtype, width)
    gpu.launch(kernel, _blocks(gpu, pieces), stream, dy, s, dz, sums, db, rows, columns, stride, high)
    if sums:
        gpu.launch(totals_kernel(dtype), _blocks(gpu, -(-columns // LANES)), stream, sums, db, count, columns)
