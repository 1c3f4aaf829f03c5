"""Kernels that move the rows of a batch, dropout and noise.

    gather    rows of x and y, in the order of the epoch, to the rows of the batch, in one launch
    narrow    the same for x alone, from float32 to 16 bits
    stored    the same for x alone, from the dtype and through the stages of a source
    scatter   rows of the batch to those of the outputs of all batches
    dropout   forward x -> y, and backward dy -> dx: the mask is drawn again, not kept
    noise     x + stddev z -> y, with z of N(0, 1)

The number of the batch lies in device memory, in a record `CLOCK`, so that a list of launches is the same for every
batch. An address of 0 stands for an array that is not there. Rows are copied in units of bytes: 16 where all rows begin
at multiples of 16, else those of an element.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
from numba import cuda

from ...formulas import dropout_draw, dropout_key, with_noise
from ..runtime.compile import THREADS, Kernel, device
from ..runtime.device import Device, launch
from ..runtime.primitives import VECTOR, reader, word
from ..runtime.records import CLOCK, DROPOUT, NOISE, offset
from ..runtime.storage import STORES
from ..runtime.vectors import array_loader, array_storer, loader, storer, vector_map
from .epilogues import is_wide
from .stored import Layout, value_of

BATCH, EVER = offset(CLOCK, "batch"), offset(CLOCK, "ever")
SCALE, THRESHOLD, STREAM = (offset(DROPOUT, name) for name in ("scale", "threshold", "stream"))
STDDEV, NOISE_STREAM = (offset(NOISE, name) for name in ("stddev", "stream"))

read_word, read_double, read_row_number = reader("int64", 1), reader("float64", 1), reader("uint32", 1)
LABEL = "int64"  # the dtype of class numbers, which are gathered as rows of one column
SIZES = {dtype: store.size for dtype, store in STORES.items()} | {LABEL: 8}  # bytes of an element

# A type of so many bytes for copies: what is loaded and stored at once.
UNITS = {16: ("uint32", 4), 8: ("int64", 1), 4: ("uint32", 1), 2: ("uint16", 1)}


def _row_number(order, start, row):
    return np.int64(read_row_number(order + (start + row) * 4)[0]) if order != 0 else start + row


# Number in x and y of row `row` of the batch that begins with row `start` of the pass.
row_number = device(_row_number)


def _gather(x_unit, y_unit):
    load_x, store_x = loader(*UNITS[x_unit]), storer(*UNITS[x_unit])
    load_y, store_y = loader(*UNITS[y_unit]), storer(*UNITS[y_unit])

    def gather(x, x_into, x_units, x_stride, y, y_into, y_units, y_stride, order, rows, clock, batch, ring):
        # x_units, y_units: units of a row; 0: no such array. x_stride, y_stride: bytes from row to row of the batch.
        start = read_word(clock + BATCH)[0] * batch
        if order == 0:
            start %= ring
        num_x, num_y = rows * x_units, rows * y_units
        first, step = cuda.blockIdx.x * THREADS + cuda.threadIdx.x, cuda.gridDim.x * THREADS
        for i in range(first, num_x + num_y, step):
            if i < num_x:  # a unit of x
                row, column = i // x_units, i % x_units
                at = (row_number(order, start, row) * x_units + column) * x_unit
                store_x((x_into,), row * x_stride + column * x_unit, load_x((x,), at))
            else:  # a unit of y
                row, column = (i - num_x) // y_units, (i - num_x) % y_units
                at = (row_number(order, start, row) * y_units + column) * y_unit
                store_y((y_into,), row * y_stride + column * y_unit, load_y((y,), at))

    return gather


def _narrow(dtype, width):
    load, store = array_loader((STORES["float32"],), width), array_storer((STORES[dtype],), width)

    def narrow(x, into, vectors, stride, order, rows, clock, batch, ring):
        # vectors: of a row of x; stride: elements from row to row of the batch.
        start = read_word(clock + BATCH)[0] * batch
        if order == 0:
            start %= ring
        first, step = cuda.blockIdx.x * THREADS + cuda.threadIdx.x, cuda.gridDim.x * THREADS
        for i in range(first, rows * vectors, step):
            row, column = i // vectors, i % vectors
            source = row_number(order, start, row)
            store((into,), row * stride + column * width, load((x,), (source * vectors + column) * width))

    return narrow


def _stored(layout, dtype, compute):
    value, store = value_of(layout, dtype), array_storer((STORES[compute],), 1)

    def gather_stored(x, stages, into, columns, stride, order, rows, clock, batch, ring):
        # stages: address of their factors and terms; stride: elements from row to row of the batch.
        start = read_word(clock + BATCH)[0] * batch
        if order == 0:
            start %= ring
        first, step = cuda.blockIdx.x * THREADS + cuda.threadIdx.x, cuda.gridDim.x * THREADS
        for i in range(first, rows * columns, step):
            row, column = i // columns, i % columns
            v = value(x, stages, columns, row_number(order, start, row), column)
            store((into,), row * stride + column, ((v,),))

    return gather_stored


def _scatter(unit):
    load, store = loader(*UNITS[unit]), storer(*UNITS[unit])

    def scatter(y, out, rows, units, y_stride, clock, batch, ring):
        # units: of a row; y_stride: bytes from row to row of the batch.
        start = read_word(clock + BATCH)[0] * batch % ring
        first, step = cuda.blockIdx.x * THREADS + cuda.threadIdx.x, cuda.gridDim.x * THREADS
        for i in range(first, rows * units, step):
            row, column = i // units, i % units
            store((out,), ((start + row) * units + column) * unit, load((y,), row * y_stride + column * unit))

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
        # one vector of columns at a time; row and column of the next one are counted on, which spares divisions
        vectors = columns // width
        first, step = cuda.blockIdx.x * THREADS + cuda.threadIdx.x, cuda.gridDim.x * THREADS
        row, vector = first // vectors, first % vectors
        rows_down, vectors_right = step // vectors, step % vectors
        while row < rows:
            column = vector * width
            kept = each(load((x,), row * x_stride + column), threshold, scale, key, row * columns + column)
            store((y,), row * y_stride + column, kept)
            row += rows_down
            vector += vectors_right
            if vector >= vectors:
                vector -= vectors
                row += 1

    return dropout


def _noise(dtype, width):
    own = STORES[dtype]
    load, store, real = array_loader((own,), width), array_storer((own,), width), getattr(np, own.real)
    key_of, noisy = device(dropout_key), device(with_noise)

    def one(x, stddev, key, i):
        return (noisy(x[0], stddev, key, word(i)),)

    each = vector_map(one, width, numbered=True)

    def noise(x, y, rows, columns, stride, clock, settings):
        key = key_of(word(read_word(settings + NOISE_STREAM)[0]), word(read_word(clock + EVER)[0] + 1))
        stddev = real(read_double(settings + STDDEV)[0])
        vectors = columns // width
        first, step = cuda.blockIdx.x * THREADS + cuda.threadIdx.x, cuda.gridDim.x * THREADS
        for i in range(first, rows * vectors, step):
            row, column = i // vectors, i % vectors * width
            at = row * stride + column
            store((y,), at, each(load((x,), at), stddev, key, row * columns + column))

    return noise


@cache
def gather_kernel(x_unit: int, y_unit: int) -> Kernel:
    return Kernel(_gather(x_unit, y_unit), f"gather_{x_unit}_{y_unit}")


@cache
def gather_narrow_kernel(dtype: str, width: int) -> Kernel:
    """float32 becomes 16 bits, `width` elements at a time."""
    return Kernel(_narrow(dtype, width), f"gather_float32_{dtype}_{width}")


@cache
def gather_stored_kernel(layout: Layout, dtype: str, compute: str) -> Kernel:
    """dtype: the network's, to which values are rounded first; compute: that of the batch."""
    name = "_".join(["gather", layout.name, "to", *dict.fromkeys([dtype, compute])])
    return Kernel(_stored(layout, dtype, compute), name)


@cache
def scatter_kernel(unit: int) -> Kernel:
    return Kernel(_scatter(unit), f"scatter_{unit}")


@cache
def dropout_kernel(dtype: str, wide: bool) -> Kernel:
    width = STORES[dtype].width if wide else 1
    return Kernel(_dropout(dtype, width), f"dropout_{dtype}{'_wide' * wide}")


@cache
def noise_kernel(dtype: str, wide: bool) -> Kernel:
    width = STORES[dtype].width if wide else 1
    return Kernel(_noise(dtype, width), f"noise_{dtype}{'_wide' * wide}")


def random_kernels(dtype: str) -> list[Kernel]:
    """Kernels of dropout and of noise."""
    return [make(dtype, wide) for make in (dropout_kernel, noise_kernel) for wide in (False, True)]


def rows_kernels(dtype: str) -> list[Kernel]:
    """Every kernel of a dtype: x of that dtype, beside y of the same or class numbers."""
    units = SIZES[dtype], VECTOR
    gathers = [gather_kernel(x, y) for x in units for y in (*units, SIZES[LABEL])]
    return list(dict.fromkeys([*gathers, *map(scatter_kernel, units), *random_kernels(dtype)]))


# ---------------------------------------------------------------- launches
class Rows(NamedTuple):
    """An array (n, columns) at `source`, whose rows go to a batch at `into`, one every `stride` elements."""

    source: int
    into: int
    columns: int
    stride: int
    dtype: str  # of both; LABEL for class numbers

    @property
    def unit(self) -> int:
        """Bytes that are copied at once."""
        size = SIZES[self.dtype]
        low_bits = (self.columns | self.stride) * size | self.source | self.into
        return VECTOR if low_bits % VECTOR == 0 else size

    @property
    def units(self) -> int:
        """Units of a row."""
        return self.columns * SIZES[self.dtype] // self.unit

    @property
    def stride_bytes(self) -> int:
        return self.stride * SIZES[self.dtype]


NO_ROWS = Rows(0, 0, 0, 0, LABEL)


def gather(
    gpu: Device, stream: int, x: Rows, y: Rows | None, order: int, rows: int, clock: int, batch: int, ring: int
) -> None:
    """Copy rows `order[b * batch :][:rows]` of x, and of y if it is given, for batch b of the clock.

    order: address of uint32; 0: the rows as they come, from [b * batch % ring :][:rows].
    """
    y = y or NO_ROWS
    addresses = x.source, x.into, x.units, x.stride_bytes, y.source, y.into, y.units, y.stride_bytes
    pieces = -(-rows * (x.units + y.units) // THREADS)
    launch(gpu, gather_kernel(x.unit, y.unit), pieces, stream, *addresses, order, rows, clock, batch, ring)


def gather_narrow(gpu: Device, stream: int, x: Rows, order: int, rows: int, clock: int, batch: int, ring: int) -> None:
    """The same for x of float32, which becomes x.dtype of 16 bits."""
    width = STORES[x.dtype].width if x.unit == VECTOR else 1
    vectors = x.columns // width
    arguments = x.source, x.into, vectors, x.stride, order, rows, clock, batch, ring
    launch(gpu, gather_narrow_kernel(x.dtype, width), -(-rows * vectors // THREADS), stream, *arguments)


def gather_stored(
    gpu: Device, stream: int, x: Rows, layout: Layout, stages: int, dtype: str, order: int, rows: int, clock: int,
    batch: int, ring: int,
) -> None:  # fmt: skip
    """The same for x of a source, whose values have a layout and become x.dtype by way of the network's dtype."""
    kernel, pieces = gather_stored_kernel(layout, dtype, x.dtype), -(-rows * x.columns // THREADS)
    arguments = x.source, stages, x.into, x.columns, x.stride, order, rows, clock, batch, ring
    launch(gpu, kernel, pieces, stream, *arguments)


def scatter(gpu: Device, stream: int, y: Rows, rows: int, clock: int, batch: int, ring: int) -> None:
    """Copy the rows of a batch into rows [b * batch % ring :][:rows] of all, for batch b of the clock.

    y: here the batch is the source, with rows one every `stride` elements, and rows of `into` have no gaps.
    """
    pieces, arguments = -(-rows * y.units // THREADS), (y.source, y.into, rows, y.units, y.stride_bytes)
    launch(gpu, scatter_kernel(y.unit), pieces, stream, *arguments, clock, batch, ring)


def dropout(
    gpu: Device, stream: int, x: int, y: int, rows: int, columns: int, x_stride: int, y_stride: int, dtype: str,
    clock: int, settings: int,
) -> None:  # fmt: skip
    """y = x scale where kept, else 0, with the mask of the clock's batch; y may be x. settings: a record DROPOUT."""
    wide = is_wide(dtype, columns, x_stride, x) and is_wide(dtype, columns, y_stride, y)
    vectors = rows * columns // (STORES[dtype].width if wide else 1)
    kernel = dropout_kernel(dtype, wide)
    launch(gpu, kernel, -(-vectors // THREADS), stream, x, y, rows, columns, x_stride, y_stride, clock, settings)


def noise(
    gpu: Device, stream: int, x: int, y: int, rows: int, columns: int, stride: int, dtype: str, clock: int,
    settings: int,
) -> None:  # fmt: skip
    """y = x + stddev z, with the draws of the clock's batch; y may be x. settings: a record NOISE."""
    wide = is_wide(dtype, columns, stride, x, y)
    vectors = rows * columns // (STORES[dtype].width if wide else 1)
    kernel = noise_kernel(dtype, wide)
    launch(gpu, kernel, -(-vectors // THREADS), stream, x, y, rows, columns, stride, clock, settings)
