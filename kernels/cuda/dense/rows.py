"""What goes through a batch row by row, besides losses.

    gather    rows of the data, in the order of the epoch, into the rows of the batch; float32 may become 16 bits
    scatter   rows of the batch to those of the outputs of all batches
    dropout   forward x -> y, and backward dy -> dx: the mask is drawn again, not kept

Which batch it is lies in device memory, in a record `CLOCK`, so that a list of launches is the same for every batch.
Arrays lie in rows, each array with a stride of its own; 0 in place of an address: there is none.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numba import cuda

from ...formulas import dropout_draw, dropout_key
from ..runtime.compile import THREADS, Kernel, device
from ..runtime.device import launch
from ..runtime.primitives import VECTOR, array_loader, array_storer, loader, reader, storer, word
from ..runtime.records import CLOCK, DROPOUT, offset
from ..runtime.storage import STORES, vector_map
from .epilogues import is_wide

BATCH, EVER = offset(CLOCK, "batch"), offset(CLOCK, "ever")
SCALE, THRESHOLD, STREAM = (offset(DROPOUT, name) for name in ("scale", "threshold", "stream"))

read_word, read_double = reader("int64", 1), reader("float64", 1)
LABEL = "int64"  # the dtype of class numbers, which are gathered as rows of one column


class Vector(NamedTuple):
    """Values that a thread copies at once: `words` of a kind, each with `held` elements of `size` bytes."""

    kind: str
    words: int
    held: int
    size: int

    @property
    def elements(self) -> int:
        return self.words * self.held


def vector(dtype: str, wide: bool) -> Vector:
    """16 bytes, or one element. Two values of 16 bits are a word: 8 of them by themselves would be two loads."""
    size, kind = STORES[dtype].size, STORES[dtype].kind
    if not wide:
        return Vector(kind, 1, 1, size)
    return Vector("uint32", 4, 2, size) if size == 2 else Vector(kind, VECTOR // size, 1, size)


def _gather(load, store, size):
    # size: of what is loaded and stored at once, in the units that both take.
    def gather(x, order, into, rows, across, x_stride, into_stride, clock, batch, ring):
        # `across` vectors a row. Without an order, rows come one after the other, and from the first after `ring` rows.
        start = read_word(clock + BATCH)[0] * batch
        if order == 0:
            start %= ring
        first, step = cuda.blockIdx.x * THREADS + cuda.threadIdx.x, cuda.gridDim.x * THREADS
        for i in range(first, rows * across, step):
            row, column = i // across, i % across
            source = read_word(order + (start + row) * 8)[0] if order != 0 else start + row
            store((into,), row * into_stride + column * size, load((x,), source * x_stride + column * size))

    return gather


def _scatter(kind, words):
    load, store = loader(kind, words), storer(kind, words)
    size = np.dtype(kind).itemsize * words

    def scatter(y, out, rows, across, y_bytes, out_bytes, clock, batch, ring):
        start = read_word(clock + BATCH)[0] * batch % ring
        first, step = cuda.blockIdx.x * THREADS + cuda.threadIdx.x, cuda.gridDim.x * THREADS
        for i in range(first, rows * across, step):
            row, column = i // across, i % across
            store((out,), (start + row) * out_bytes + column * size, load((y,), row * y_bytes + column * size))

    return scatter


def _dropout(dtype, width):
    own = STORES[dtype]
    load, store, real = array_loader((own,), width), array_storer((own,), width), getattr(np, own.real)
    key_of, draw = device(dropout_key), device(dropout_draw)

    def kept_or_not(x, threshold, scale, key, i):
        value = x[0] * scale
        return (real(0) if draw(key, word(i)) < threshold else value,)

    each = vector_map(kept_or_not, width, numbered=True)

    def dropout(x, y, rows, columns, x_stride, y_stride, clock, settings):
        key = key_of(word(read_word(settings + STREAM)[0]), word(read_word(clock + EVER)[0] + 1))
        threshold = word(read_word(settings + THRESHOLD)[0])
        scale = real(read_double(settings + SCALE)[0])
        # A vector of columns at a time. Where the next one lies is counted on, to divide only once.
        across = columns // width
        first, step = cuda.blockIdx.x * THREADS + cuda.threadIdx.x, cuda.gridDim.x * THREADS
        row, part = first // across, first % across
        down, right = step // across, step % across
        while row < rows:
            column = part * width
            kept = each(load((x,), row * x_stride + column), threshold, scale, key, row * columns + column)
            store((y,), row * y_stride + column, kept)
            row += down
            part += right
            if part >= across:
                part -= across
                row += 1

    return dropout


@cache
def gather_kernel(kind: str, words: int) -> Kernel:
    """Bytes as they are; strides are in bytes."""
    size = np.dtype(kind).itemsize * words
    return Kernel(_gather(loader(kind, words), storer(kind, words), size), f"gather_{kind}_{words}")


@cache
def gather_narrow_kernel(dtype: str, width: int) -> Kernel:
    """float32 becomes 16 bits; strides are in elements."""
    load, store = array_loader((STORES["float32"],), width), array_storer((STORES[dtype],), width)
    return Kernel(_gather(load, store, width), f"gather_float32_{dtype}_{width}")


@cache
def scatter_kernel(kind: str, words: int) -> Kernel:
    return Kernel(_scatter(kind, words), f"scatter_{kind}_{words}")


@cache
def dropout_kernel(dtype: str, wide: bool) -> Kernel:
    width = STORES[dtype].width if wide else 1
    return Kernel(_dropout(dtype, width), f"dropout_{dtype}{'_wide' * wide}")


def dropout_kernels(dtype: str) -> list[Kernel]:
    return [dropout_kernel(dtype, wide) for wide in (False, True)]


def rows_kernels(dtype: str) -> list[Kernel]:
    """Every kernel of a dtype, with those of none."""
    kinds = [(v.kind, v.words) for v in (vector(dtype, False), vector(dtype, True))]
    moving = [make(*kind) for make in (gather_kernel, scatter_kernel) for kind in kinds]
    return [gather_kernel(LABEL, 1), *moving, *dropout_kernels(dtype)]


# ---------------------------------------------------------------- launches
def gather(
    gpu: Any, stream: int, x: int, order: int, into: int, rows: int, columns: int, into_stride: int, dtype: str,
    clock: int, batch: int, ring: int, source: str = "",
) -> None:  # fmt: skip
    """Rows `order[b * batch :][:rows]` of x (ring, columns) into those of `into`, for batch b of the clock.

    order: int64; 0: the rows as they come, from [b * batch % ring :][:rows]. dtype: also LABEL. source: "float32" where
    x is that, and `into` of 16 bits.
    """
    if dtype == LABEL:
        kernel, size, across = gather_kernel(LABEL, 1), 8, columns
    else:
        # Rows of x have no gaps, those of `into` may.
        v = vector(dtype, is_wide(dtype, columns, into_stride, x, into))
        size, across = vector(dtype, False).size, columns // v.elements
        kernel = gather_kernel(v.kind, v.words)
        if source not in ("", dtype):
            kernel, size = gather_narrow_kernel(dtype, v.elements), 1
    pieces = -(-rows * across // THREADS)
    strides = columns * size, into_stride * size
    launch(gpu, kernel, pieces, stream, x, order, into, rows, across, *strides, clock, batch, ring)


def scatter(
    gpu: Any, stream: int, y: int, out: int, rows: int, columns: int, y_stride: int, dtype: str, clock: int, batch: int,
    ring: int,
) -> None:  # fmt: skip
    """The rows of y into rows [b * batch % ring :][:rows] of `out` (ring, columns), for batch b of the clock."""
    v = vector(dtype, is_wide(dtype, columns, y_stride, y, out))
    across = columns // v.elements
    strides = y_stride * v.size, columns * v.size
    kernel = scatter_kernel(v.kind, v.words)
    launch(gpu, kernel, -(-rows * across // THREADS), stream, y, out, rows, across, *strides, clock, batch, ring)


def dropout(
    gpu: Any, stream: int, x: int, y: int, rows: int, columns: int, x_stride: int, y_stride: int, dtype: str,
    clock: int, settings: int,
) -> None:  # fmt: skip
    """y = x scale where kept, else 0, with the mask of the clock's batch; y may be x. settings: a record DROPOUT."""
    # Rows of either may have gaps of their own.
    wide = is_wide(dtype, columns, x_stride, x) and is_wide(dtype, columns, y_stride, y)
    pieces = -(-rows * columns // ((STORES[dtype].width if wide else 1) * THREADS))
    kernel = dropout_kernel(dtype, wide)
    launch(gpu, kernel, pieces, stream, x, y, rows, columns, x_stride, y_stride, clock, settings)
