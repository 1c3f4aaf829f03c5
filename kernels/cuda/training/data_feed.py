"""Transfer of the data to the device: all rows once, or part after part if they do not fit.

The values of a `Source` keep their dtype: they are converted, and prepared, as a batch is gathered. So do sparse rows,
if they fit. If not, they are filled up on their way, part by part: then the device has the network's dtype.

A feed has the addresses of the rows (x, y, and `ring` rows of each) and the `layout` of x, and yields the numbers of
the batches that may be launched, chunk by chunk. It keeps the host only a little ahead of the device, so that
interrupts are handled soon.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import Any

import numpy as np

from ...sources import Source, SparseRows, block_rows, take
from ..dense.stored import Layout, layout_of

MEMORY_SHARE = 0.8  # of the free memory, for data; the rest is for the arrays of a batch
SECONDS_AHEAD = 0.05  # work that the host is ahead of the device, or twice as much
FIRST_CHUNK = 32  # batches, before their time is known
PART_BYTES = 32 << 20  # data that are copied at once


# Rows of more than 2^32, whose numbers the device does not read, are streamed: the host puts them in order.
NUMBERED_ROWS = 1 << 32


class HostRows:
    """Rows of x or y of the host as the device gets them: those of `order` (None: all), in a dtype.

    layout: that of x, where it is not the network's dtype.
    """

    def __init__(
        self,
        values: np.ndarray | Source,
        dtype: np.dtype[Any],
        order: np.ndarray | None = None,
        layout: Layout | None = None,
    ) -> None:
        self.values, self.dtype, self.order, self.layout = values, dtype, order, layout
        self.shape = (len(values) if order is None else len(order), *values.shape[1:])
        self.columns = int(np.prod(self.shape[1:]))
        self.nbytes = len(self) * self.columns * dtype.itemsize

    def __len__(self) -> int:
        return int(self.shape[0])

    def __getitem__(self, index: Any) -> np.ndarray:
        return take(self.values, index if self.order is None else self.order[index], self.dtype)


class HostSparseRows:
    """Sparse rows of x of the host, which the device gets as they are."""

    def __init__(self, rows: SparseRows, layout: Layout) -> None:
        self.rows, self.layout, self.nbytes = rows, layout, rows.nbytes

    def __len__(self) -> int:
        return len(self.rows)


def _host_rows(
    values: np.ndarray | Source, dtype: np.dtype[Any] | None, order: np.ndarray | None
) -> np.ndarray | HostRows:
    """Rows to be copied: an array itself if that is possible."""
    if isinstance(values, Source):
        assert dtype is not None
        layout = layout_of(values, dtype)
        if layout and not layout.columns:
            return HostRows(Source(values.values), values.dtype.newbyteorder("="), order, layout)
        return HostRows(values, dtype, order)
    return values if order is None else HostRows(values, values.dtype, order)


def _host_sparse_rows(
    x: np.ndarray | Source, dtype: np.dtype[Any] | None, order: np.ndarray | None
) -> HostSparseRows | None:
    """Rows to be copied as they are; None: x has no sparse ones."""
    if not isinstance(x, Source) or not isinstance(x.values, SparseRows):
        return None
    assert dtype is not None
    layout = layout_of(x, dtype)
    assert layout is not None
    return HostSparseRows(x.values if order is None else x.values.chosen(order), layout)


class Resident:
    """All rows are on the device, as long as this object lives."""

    streamed = False

    def __init__(
        self, gpu: Any, stream: int, x: np.ndarray | HostRows | HostSparseRows, y: np.ndarray | HostRows | None
    ) -> None:
        self.gpu, self.stream, self.ring, self.layout = gpu, stream, len(x), _layout(x)
        self._memory: list[Any] = []
        self.x = self._copy_of_sparse(x.rows) if isinstance(x, HostSparseRows) else self._copy_of(x)
        self.y = 0 if y is None else self._copy_of(y)
        self._ahead = FIRST_CHUNK

    def _allocate(self, size: int) -> int:
        self._memory.append(self.gpu.allocate(size))
        return int(self._memory[-1].address)

    def _copy_of_sparse(self, rows: SparseRows) -> int:
        """Copy sparse rows to the device; return the address of the record of their addresses."""
        arrays = [np.ascontiguousarray(array) for array in (rows.stored, rows.columns, rows.starts)]
        record = np.array([self._allocate(max(1, array.nbytes)) for array in arrays], np.int64)
        for address, array in zip(record.tolist(), arrays, strict=True):
            if array.nbytes:
                self.gpu.copy_in(address, array, self.stream)
        of_record = self._allocate(record.nbytes)
        self.gpu.copy_in(of_record, record, self.stream)
        return of_record

    def _copy_of(self, rows: np.ndarray | HostRows) -> int:
        """Copy rows to the device, those that are converted block by block; return their address."""
        found = address = self._allocate(rows.nbytes)
        if isinstance(rows, np.ndarray):
            self.gpu.copy_in(address, rows, self.stream)
            return found
        size = block_rows(rows.columns)
        for start in range(0, len(rows), size):
            block = rows[start : start + size]
            self.gpu.copy_in(address, block, self.stream)
            address += block.nbytes
        return found

    def chunks(self, order: np.ndarray | None, batches: int) -> Generator[range, None, None]:
        """Yield the batches of a pass in chunks; a chunk is done before the next one is yielded."""
        start = 0
        while start < batches:
            chunk, began = range(start, min(start + self._ahead, batches)), time.perf_counter()
            yield chunk
            self.gpu.wait(self.stream)
            took = time.perf_counter() - began
            if took < SECONDS_AHEAD and len(chunk) == self._ahead:
                self._ahead *= 2
            elif took > 2 * SECONDS_AHEAD:
                self._ahead = max(1, self._ahead // 2)
            start = chunk.stop


class Streamed:
    """Rows stay on the host; parts of them are copied to the two halves of a ring on the device, in order of the pass.

    While the device works on one half, the host gathers the rows of the next part in pinned memory, and a second stream
    copies them to the other half.
    """

    streamed = True

    def __init__(
        self, gpu: Any, stream: int, x: np.ndarray | HostRows, y: np.ndarray | HostRows | None, batch: int
    ) -> None:
        self.gpu, self.stream, self.batch, self.layout = gpu, stream, batch, _layout(x)
        self.arrays = [array for array in (x, y) if array is not None]
        row_bytes = [array.nbytes // len(array) for array in self.arrays]  # bytes of a row
        self.count = max(1, PART_BYTES // (batch * sum(row_bytes)))  # batches of a part
        self.ring = 2 * self.count * batch
        self._memory = [gpu.allocate(self.ring * size) for size in row_bytes]
        self.x, self.y = self._memory[0].address, 0 if y is None else self._memory[1].address
        self._pinned = [self._rows(array, size) for array, size in zip(self.arrays, row_bytes, strict=True)]
        self._copies = gpu.stream()
        self._copied, self._used = [[gpu.event() for _ in range(2)] for _ in range(2)]

    def _rows(self, array: np.ndarray | HostRows, size: int) -> np.ndarray:
        """Pinned memory for the rows of the ring."""
        count = self.ring * size
        memory = self.gpu.pinned(-(-count // 8)).view(np.uint8)[:count]
        return memory.view(array.dtype).reshape(self.ring, *array.shape[1:])

    def chunks(self, order: np.ndarray | None, batches: int) -> Generator[range, None, None]:
        """Yield the batches of a pass in chunks; the stream waits until the rows of a chunk are copied."""
        copies, half_rows = self._copies.handle, self.ring // 2
        total = len(self.arrays[0]) if order is None else len(order)
        try:
            for number, start in enumerate(range(0, batches, self.count)):
                half, first = number % 2, start * self.batch
                count = min(half_rows, total - first)
                self._copied[half].wait()  # before the pinned rows are overwritten
                self._used[half].before(copies)
                for array, pinned, memory in zip(self.arrays, self._pinned, self._memory, strict=True):
                    rows = pinned[half * half_rows :][:count]
                    if isinstance(array, HostRows):
                        _convert(array, slice(first, first + count), order, rows)
                    elif order is None:
                        rows[...] = array[first : first + count]
                    else:  # mode "raise" would copy once more
                        np.take(array, order[first : first + count], axis=0, out=rows, mode="clip")
                    self.gpu.copy_pinned(memory.address + half * pinned.nbytes // 2, rows, copies)
                self._copied[half].record(copies)
                self._copied[half].before(self.stream)
                yield range(start, min(start + self.count, batches))
                self._used[half].record(self.stream)
        finally:
            self.gpu.wait(copies)


def _layout(x: np.ndarray | HostRows | HostSparseRows) -> Layout | None:
    return None if isinstance(x, np.ndarray) else x.layout


def _convert(array: HostRows, part: slice, order: np.ndarray | None, into: np.ndarray) -> None:
    """Write rows `part`, of an order if there is one, in the dtype of the device's rows, block by block."""
    size = block_rows(array.columns)
    for start in range(part.start, part.stop, size):
        some = slice(start, min(start + size, part.stop))
        into[start - part.start :][: size] = array[some if order is None else order[some]]


def feed(
    gpu: Any, stream: int, x: np.ndarray | Source, y: np.ndarray | None, batch: int, other_bytes: int,
    dtype: np.dtype[Any] | None = None, order: np.ndarray | None = None,
) -> Resident | Streamed:  # fmt: skip
    """The feed of x and y for batches of `batch` rows; other_bytes: memory that a pass needs besides.

    dtype: that of the network. order: the rows that there are for the pass; None: all.
    """
    rows_y = None if y is None else _host_rows(y, None, order)
    room = MEMORY_SHARE * gpu.free_memory() - other_bytes - (0 if rows_y is None else rows_y.nbytes)
    sparse = _host_sparse_rows(x, dtype, order)
    if sparse is not None and sparse.nbytes <= room and len(sparse) <= NUMBERED_ROWS:
        return Resident(gpu, stream, sparse, rows_y)
    rows_x = _host_rows(x, dtype, order)
    if rows_x.nbytes <= room and len(rows_x) <= NUMBERED_ROWS:
        return Resident(gpu, stream, rows_x, rows_y)
    return Streamed(gpu, stream, rows_x, rows_y, batch)
