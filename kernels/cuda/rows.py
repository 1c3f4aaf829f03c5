"""What goes through a batch row by row, besides losses: gathering it, dropout, and the count of batches.

    gather    rows of the data, in the order of the epoch, into the rows of the batch
    dropout   forward x -> y, and backward dy -> dx: the mask is drawn again, not kept
    advance   one batch more is done

Which batch it is lies in device memory, in a record `CLOCK`, so that a list of launches is the same for every batch.
Arrays lie in rows, each array with a stride of its own; 0 in place of an address: there is none.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numba import cuda

from ..formulas import dropout_draw, dropout_key
from .compile import THREADS, Kernel, device
from .epilogues import is_wide, launch, vector
from .layout import CLOCK, DROPOUT, offset
from .primitives import loader, reader, storer, word, writer

BATCH, EVER = offset(CLOCK, "batch"), offset(CLOCK, "ever")
SCALE, THRESHOLD, STREAM = (offset(DROPOUT, name) for name in ("scale", "threshold", "stream"))

read_word, write_word, read_double = reader("int64", 1), writer("int64"), reader("float64", 1)
LABEL = "int64"  # the dtype of class numbers, which are gathered as rows of one column


def _gather(kind, words):
    load, store = loader(kind, words), storer(kind, words)
    size = np.dtype(kind).itemsize * words

    def gather(x, order, into, rows, across, x_bytes, into_bytes, clock, batch):
        # `across` vectors a row. Without an order, rows come one after the other.
        start = read_word(clock + BATCH)[0] * batch
        first, step = cuda.blockIdx.x * THREADS + cuda.threadIdx.x, cuda.gridDim.x * THREADS
        for i in range(first, rows * across, step):
            row, column = i // across, i % across
            source = read_word(order + (start + row) * 8)[0] if order != 0 else start + row
            store((into,), row * into_bytes + column * size, load((x,), source * x_bytes + column * size))

    return gather


def _dropout(dtype):
    load, store, real, size = loader(dtype, 1), storer(dtype, 1), getattr(np, dtype), np.dtype(dtype).itemsize
    key_of, draw = device(dropout_key), device(dropout_draw)

    def dropout(x, y, rows, columns, x_stride, y_stride, clock, settings):
        key = key_of(word(read_word(settings + STREAM)[0]), word(read_word(clock + EVER)[0] + 1))
        threshold = word(read_word(settings + THRESHOLD)[0])
        scale = real(read_double(settings + SCALE)[0])
        first, step = cuda.blockIdx.x * THREADS + cuda.threadIdx.x, cuda.gridDim.x * THREADS
        for i in range(first, rows * columns, step):
            row, column = i // columns, i % columns
            value = load((x,), (row * x_stride + column) * size)[0][0] * scale
            if draw(key, word(i)) < threshold:
                value = real(0)
            store((y,), (row * y_stride + column) * size, ((value,),))

    return dropout


def _advance(clock):
    if cuda.threadIdx.x == 0:
        write_word(clock + BATCH, read_word(clock + BATCH)[0] + 1)
        write_word(clock + EVER, read_word(clock + EVER)[0] + 1)


ADVANCE = Kernel(_advance, "advance")


@cache
def gather_kernel(kind: str, words: int) -> Kernel:
    return Kernel(_gather(kind, words), f"gather_{kind}_{words}")


@cache
def dropout_kernel(dtype: str) -> Kernel:
    return Kernel(_dropout(dtype), f"dropout_{dtype}")


def rows_kernels(dtype: str) -> list[Kernel]:
    """Every kernel of a dtype, with those of none."""
    gathers = [gather_kernel(v.kind, v.words) for v in (vector(dtype, False), vector(dtype, True))]
    return [ADVANCE, gather_kernel(LABEL, 1), *gathers, dropout_kernel(dtype)]


# ---------------------------------------------------------------- launches
def gather(
    gpu: Any, stream: int, x: int, order: int, into: int, rows: int, columns: int, into_stride: int, dtype: str,
    clock: int, batch: int,
) -> None:  # fmt: skip
    """Rows `order[b * batch :][:rows]` of x (n, columns) into those of `into`, for batch b of the clock.

    order: int64; 0: the rows as they come. dtype: also LABEL.
    """
    if dtype == LABEL:
        kind, words, size, across = LABEL, 1, 8, columns
    else:
        # Rows of x have no gaps, those of `into` may.
        v = vector(dtype, is_wide(dtype, columns, into_stride, x, into))
        kind, words, size, across = v.kind, v.words, vector(dtype, False).size, columns // v.elements
    pieces = -(-rows * across // THREADS)
    strides = columns * size, into_stride * size
    launch(gpu, gather_kernel(kind, words), pieces, stream, x, order, into, rows, across, *strides, clock, batch)


def dropout(
    gpu: Any, stream: int, x: int, y: int, rows: int, columns: int, x_stride: int, y_stride: int, dtype: str,
    clock: int, settings: int,
) -> None:  # fmt: skip
    """y = x scale where kept, else 0, with the mask of the clock's batch; y may be x. settings: a record DROPOUT."""
    pieces = -(-rows * columns // THREADS)
    launch(gpu, dropout_kernel(dtype), pieces, stream, x, y, rows, columns, x_stride, y_stride, clock, settings)


def advance(gpu: Any, stream: int, clock: int) -> None:
    """The clock's next batch."""
    launch(gpu, ADVANCE, 1, stream, clock)
