"""Transfer of the data to the device: all rows once, or part after part if they do not fit.

The values of a `Source` keep their dtype: they are converted, and prepared, as a batch is gathered. Sparse rows are
filled up on their way, part by part: the device has the network's dtype, and the host never has all rows in it.

A feed has the addresses of the rows (x, y, and `ring` rows of each), and yields the numbers of the batches that may be
launched, chunk by chunk. It keeps the host only a little ahead of the device, so that interrupts are handled soon.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import Any

import numpy as np

from ...sources import Source, block_rows, take
from ..dense.stored import layout_of

MEMORY_SHARE = 0.8  # of the free memory, for data; the rest is for the arrays of a batch
SECONDS_AHEAD = 0.05  # work that the host is ahead of the device, or twice as much
FIRST_CHUNK = 32  # batches, before their time is known
PART_BYTES = 32 << 20  # data that are copied at once


# Rows of more than 2^32, whose numbers the device does not read, are streamed: the host puts them in order.
NUMBERED_ROWS = 1 << 32


class HostRows:
    """Rows of x or y of the host as the device gets them: those of `order` (None: all), in a dtype."""

    def __init__(self, values: np.ndarray | Source, dtype: np.dtype[Any], order: np.ndarray | None = None) -> None:
        self.values, self.dtype, self.order = values, dtype, order
        self.shape = (len(values) if order is None else len(order), *values.shape[1:])
        self.columns = int(np.prod(self.shape[1:]))
        self.nbytes = len(self) * self.columns * dtype.itemsize

    def __len__(self) -> int:
        return int(self.shape[0])

    def __getitem__(self, index: Any) -> np.ndarray:
        return take(self.values, index if self.order is None else self.order[index], self.dtype)


def _host_rows(
    values: np.ndarray | Source, dtype: np.dtype[Any] | None, order: np.ndarray | None
) -> np.ndarray | HostRows:
    """Rows to be copied: an array itself if that is possible."""
    if isinstance(values, Source):
        assert dtype is not None
        if layout_of(values, dtype):
            return HostRows(Source(values.values), values.dtype.newbyteorder("="), order)
        return HostRows(values, dtype, order)
    return values if order is None else HostRows(values, values.dtype, order)


class Resident:
    """All rows are on the device, as long as this object lives."""

    streamed = False

    def __init__(
        self, gpu: Any, stream: int, x: np.ndarray | HostRows, y: np.ndarray | HostRows | None
    ) -> None:
        self.gpu, self.stream, self.ring = gpu, stream, len(x)
        self._memory = [gpu.allocate(array.nbytes) for array in (x, y) if array is not None]
        self.x, self.y = self._memory[0].address, 0 if y is None else self._memory[1].address
        self._copy_in(self.x, x)
        if y is not None:
            self._copy_in(self.y, y)
        self._ahead = FIRST_CHUNK

    def _copy_in(self, address: int, rows: np.ndarray | HostRows) -> None:
        """Copy rows to the device, those that are converted block by block."""
        if isinstance(rows, np.ndarray):
            self.gpu.copy_in(address, rows, self.stream)
            return
        size = block_rows(rows.columns)
        for start in range(0, len(rows), size):
            block = rows[start : start + size]
            self.gpu.copy_in(address, block, self.stream)
            address += block.nbytes

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
        self.gpu, self.stream, self.batch = gpu, stream, batch
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

    dtype: that of the network, which sparse rows become. order: the rows that there are for the pass; None: all.
    """
    rows_x, rows_y = _host_rows(x, dtype, order), None if y is None else _host_rows(y, None, order)
    size = rows_x.nbytes + other_bytes + (0 if rows_y is None else rows_y.nbytes)
    if size <= MEMORY_SHARE * gpu.free_memory() and len(rows_x) <= NUMBERED_ROWS:
        return Resident(gpu, stream, rows_x, rows_y)
    return Streamed(gpu, stream, rows_x, rows_y, batch)
