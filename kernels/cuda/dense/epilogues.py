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
from typing import NamedTuple

import numpy as np
from numba import cuda

from ...formulas import ACTIVATIONS, functions
from ..runtime.compile import SIMULATED, THREADS, Kernel, device, stand_in
from ..runtime.device import Device, launch
from ..runtime.float16 import computed, high, join, low, narrow, stored, widen
from ..runtime.primitives import VECTOR, loader, reader, storer, writer

LANES = 4 if SIMULATED else 32  # threads side by side, each with a vector of columns
DEEP = THREADS // LANES  # threads one behind the other, each with every DEEP-th row
HIGH = 64  # rows of a tile
SUMS_BYTES = 4 << 20  # of the sums of a layer, at most; tiles are higher where there would be more

read_double, write_double = reader("float64", 1), writer("float64")


def _exp(x):
    return math.exp(x)


stand_in(functions.exp, _exp)  # which overflows to inf on a device, without an exception to be caught


class Vector(NamedTuple):
    """What a thread loads of an array at once: `words` of a kind, each with `held` elements of `size` bytes."""

    kind: str
    words: int
    held: int
    size: int

    @property
    def elements(self) -> int:
        return self.words * self.held


def vector(dtype: str, wide: bool) -> Vector:
    """16 bytes, or one element. Two numbers of 16 bits come in a word: 8 of them by themselves would be two loads."""
    size = np.dtype(stored(dtype)).itemsize
    if not wide:
        return Vector(stored(dtype), 1, 1, size)
    return Vector("uint32", 4, 2, size) if size == 2 else Vector(dtype, VECTOR // size, 1, size)


def _words(one, count):
    """`one`, from a word to a word, for a vector of them; a word is a tuple of one value, or of one of each array."""
    one = device(one)

    def words1(v):
        return (one(v[0]),)

    def words2(v):
        return one(v[0]), one(v[1])

    def words4(v):
        return one(v[0]), one(v[1]), one(v[2]), one(v[3])

    return device({1: words1, 2: words2, 4: words4}[count])


def pairs(one, count):
    """`one`, of two words, for two vectors."""
    one = device(one)

    def pairs1(u, v):
        return (one(u[0], v[0]),)

    def pairs2(u, v):
        return one(u[0], v[0]), one(u[1], v[1])

    def pairs4(u, v):
        return one(u[0], v[0]), one(u[1], v[1]), one(u[2], v[2]), one(u[3], v[3])

    return device({1: pairs1, 2: pairs2, 4: pairs4}[count])


def _of_one(f, held):
    """f, of a number, for what a word holds."""
    f, first, second, both = device(f), device(low), device(high), device(join)

    def one(word):
        return (f(word[0]),)

    def two(word):
        return (both(f(first(word[0])), f(second(word[0]))),)

    return {1: one, 2: two}[held]


def _of_two(f, held):
    """f, of two numbers, for what the words of two arrays hold."""
    f, first, second, both = device(f), device(low), device(high), device(join)

    def one(x, y):
        return (f(x, y),)

    def two(x, y):
        return (both(f(first(x), first(y)), f(second(x), second(y))),)

    return device({1: one, 2: two}[held])


# ---------------------------------------------------------------- activations
def _activate(value, dtype, wide):
    v = vector(dtype, wide)
    to_real, from_real, value = widen(dtype), narrow(dtype), device(value)
    load, store, size, elements = loader(v.kind, v.words), storer(v.kind, v.words), v.size, v.elements

    def f(z):
        return from_real(value(to_real(z)))

    def plus(z, b):
        return from_real(to_real(z) + to_real(b))

    sum_of = _of_two(plus, v.held)

    def add(left, right):
        return sum_of(left[0], right[0])

    activated, added = _words(_of_one(f, v.held), v.words), pairs(add, v.words)

    def activate(z, b, y, rows, columns, stride):
        # y = f(z + b); z, where it is not y, keeps z + b. Where a vector lies is counted on, to divide only once.
        across = columns // elements
        first, step = cuda.blockIdx.x * THREADS + cuda.threadIdx.x, cuda.gridDim.x * THREADS
        row, column = first // across, first % across
        down, right = step // across, step % across
        while row < rows:
            at = (row * stride + column * elements) * size
            x = load((z,), at)
            if b != 0:
                x = added(x, load((b,), column * elements * size))
                if z != y:
                    store((z,), at, x)
            store((y,), at, activated(x))
            row += down
            column += right
            if column >= across:
                column -= across
                row += 1

    return activate


# ---------------------------------------------------------------- slopes
def _keep(elements):
    """A function that puts the sums of a thread into shared memory."""

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

    def keep8(totals, deep, at, t):
        totals[deep, at] = t[0][0]
        totals[deep, at + 1] = t[0][1]
        totals[deep, at + 2] = t[1][0]
        totals[deep, at + 3] = t[1][1]
        totals[deep, at + 4] = t[2][0]
        totals[deep, at + 5] = t[2][1]
        totals[deep, at + 6] = t[3][0]
        totals[deep, at + 7] = t[3][1]

    return device({1: keep1, 2: keep2, 4: keep4, 8: keep8}[elements])


def _slopes(slope, dtype, wide):
    v = vector(dtype, wide)
    to_real, from_real, slope = widen(dtype), narrow(dtype), device(slope)
    load, store, size, elements = loader(v.kind, v.words), storer(v.kind, v.words), v.size, v.elements
    write, real, span = writer(stored(dtype)), getattr(np, computed(dtype)), LANES * v.elements
    nothing = ((0.0,) * v.held,) * v.words
    first, second = device(low), device(high)

    def f(dy, s):
        return from_real(to_real(dy) * slope(to_real(s)))

    product_of = _of_two(f, v.held)

    def one(word):
        return product_of(word[0], word[1])

    def add(total, word):
        return (total[0] + np.float64(to_real(word[0])),)

    def add2(total, word):
        return total[0] + np.float64(to_real(first(word[0]))), total[1] + np.float64(to_real(second(word[0])))

    sloped, added, keep = _words(one, v.words), pairs({1: add, 2: add2}[v.held], v.words), _keep(elements)

    def slopes(dy, s, dz, sums, db, rows, columns, stride, height):
        # dz may be dy, or 0: only the sums are wanted. They go to sums (tiles, columns), or to db if that is 0.
        totals = cuda.shared.array((DEEP, span), np.float64)
        lane, deep = cuda.threadIdx.x % LANES, cuda.threadIdx.x // LANES
        across = (columns + span - 1) // span
        for tile in range(cuda.blockIdx.x, across * ((rows + height - 1) // height), cuda.gridDim.x):
            top, left = tile // across * height, tile % across * span
            column = left + lane * elements
            total = nothing
            if column < columns:
                for row in range(top + deep, min(top + height, rows), DEEP):
                    at = (row * stride + column) * size
                    x = sloped(load((dy, s), at))
                    if dz != 0:
                        store((dz,), at, x)
                    total = added(total, x)
            keep(totals, deep, lane * elements, total)
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
                        write(db + (left + i) * size, from_real(real(totals[0, i])))
            cuda.syncthreads()  # the next tile begins with totals

    return slopes


def _totals(dtype):
    kind, real, from_real = stored(dtype), getattr(np, computed(dtype)), narrow(dtype)
    write, size = writer(kind), np.dtype(kind).itemsize

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
                write(db + column * size, from_real(real(kept[0, lane])))
            cuda.syncthreads()

    return totals


@cache
def activate_kernel(name: str, dtype: str, wide: bool) -> Kernel:
    return Kernel(_activate(ACTIVATIONS[name].value, dtype, wide), f"activate_{name}_{dtype}{'_wide' * wide}")


@cache
def slopes_kernel(name: str, dtype: str, wide: bool) -> Kernel:
    return Kernel(_slopes(ACTIVATIONS[name].slope, dtype, wide), f"slopes_{name}_{dtype}{'_wide' * wide}")


@cache
def totals_kernel(dtype: str) -> Kernel:
    return Kernel(_totals(dtype), f"totals_{dtype}")


def dense_kernels(dtype: str) -> list[Kernel]:
    """Every kernel of a dtype."""
    makers = activate_kernel, slopes_kernel
    kernels = [make(name, dtype, wide) for make in makers for name in ACTIVATIONS for wide in (False, True)]
    return [totals_kernel(dtype), *kernels]


# ---------------------------------------------------------------- launches
def is_wide(dtype: str, columns: int, stride: int, *addresses: int) -> bool:
    """Whether every row begins at a multiple of 16 bytes and is a multiple of them."""
    low = (columns | stride) * vector(dtype, False).size
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
    pieces = rows * (columns // vector(dtype, wide).elements)
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
    height, count = tiles(rows, columns)
    wide = is_wide(dtype, columns, stride, dy, s, dz)
    sums = sums if db and sums_bytes(shape) else 0
    pieces = count * -(-columns // (LANES * vector(dtype, wide).elements))
    kernel = slopes_kernel(name, dtype, wide)
    launch(gpu, kernel, pieces, stream, dy, s, dz, sums, db, rows, columns, stride, height)


def total_sums(gpu: Device, stream: int, sums: int, db: int, shape: Shape) -> None:
    """The second launch of `slopes`: db, from the sums of the tiles."""
    rows, columns, _, dtype, gradient = shape
    _, count = tiles(rows, columns)
    launch(gpu, totals_kernel(gradient or dtype), -(-columns // LANES), stream, sums, db, count, columns)
