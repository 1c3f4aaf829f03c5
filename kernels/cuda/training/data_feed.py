"""How the rows of the data come to the device: all of them once, or, where they do not fit, a part after the other.

A feed says where rows lie (x, y, and `ring` rows of each), and gives the numbers of the batches that may be launched,
chunk by chunk. It also keeps the host from being far ahead of the device, so that an interrupt is heard soon.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import Any

import numpy as np

SHARE = 0.8  # of the memory that is free, for data; the rest is for what a batch passes through
MOMENT = 0.05  # seconds of work that the host is ahead, or twice as much
FIRST = 32  # batches at once, until it is known how long they take
PART = 32 << 20  # bytes of data that are copied at once


class Resident:
    """All rows lie on the device, as long as this lives."""

    streamed = False

    def __init__(self, gpu: Any, stream: int, x: np.ndarray, y: np.ndarray | None) -> None:
        self.gpu, self.stream, self.ring = gpu, stream, len(x)
        self._memory = [gpu.allocate(array.nbytes) for array in (x, y) if array is not None]
        self.x, self.y = self._memory[0].address, 0 if y is None else self._memory[1].address
        gpu.copy_in(self.x, x, stream)
        if y is not None:
            gpu.copy_in(self.y, y, stream)
        self._ahead = FIRST

    def chunks(self, order: np.ndarray | None, batches: int) -> Generator[range, None, None]:
        """The batches of a pass; those that were given before are done when the next ones are asked for."""
        start = 0
        while start < batches:
            chunk, began = range(start, min(start + self._ahead, batches)), time.perf_counter()
            yield chunk
            self.gpu.wait(self.stream)
            took = time.perf_counter() - began
            if took < MOMENT and len(chunk) == self._ahead:
                self._ahead *= 2
            elif took > 2 * MOMENT:
                self._ahead = max(1, self._ahead // 2)
            start = chunk.stop


class Streamed:
    """Rows lie on the host; parts of them come to the two halves of a ring on the device, in the order of the pass.

    While the device works on one half, the host brings the rows of the next part together in pinned memory, from which
    they are copied to the other half on a stream of their own.
    """

    streamed = True

    def __init__(self, gpu: Any, stream: int, x: np.ndarray, y: np.ndarray | None, batch: int) -> None:
        self.gpu, self.stream, self.batch = gpu, stream, batch
        self.arrays = [array for array in (x, y) if array is not None]
        widths = [array.nbytes // len(array) for array in self.arrays]  # bytes of a row
        self.count = max(1, PART // (batch * sum(widths)))  # batches of a part
        self.ring = 2 * self.count * batch
        self._memory = [gpu.allocate(self.ring * width) for width in widths]
        self.x, self.y = self._memory[0].address, 0 if y is None else self._memory[1].address
        self._pinned = [self._rows(array, width) for array, width in zip(self.arrays, widths, strict=True)]
        self._copies = gpu.stream()
        self._copied, self._used = [[gpu.event() for _ in range(2)] for _ in range(2)]

    def _rows(self, array: np.ndarray, width: int) -> np.ndarray:
        """Room in pinned memory for the rows of the ring."""
        size = self.ring * width
        room = self.gpu.pinned(-(-size // 8)).view(np.uint8)[:size]
        return room.view(array.dtype).reshape(self.ring, *array.shape[1:])

    def chunks(self, order: np.ndarray | None, batches: int) -> Generator[range, None, None]:
        """The batches of a pass; the stream waits until the rows of a chunk are there."""
        copies, half_rows = self._copies.handle, self.ring // 2
        total = len(self.arrays[0]) if order is None else len(order)
        try:
            for number, start in enumerate(range(0, batches, self.count)):
                half, first = number % 2, start * self.batch
                count = min(half_rows, total - first)
                self._copied[half].wait()  # the pinned rows may be written to
                self._used[half].before(copies)
                for array, pinned, memory in zip(self.arrays, self._pinned, self._memory, strict=True):
                    there = pinned[half * half_rows :][:count]
                    if order is None:
                        there[...] = array[first : first + count]
                    else:  # with "raise" NumPy would copy once more
                        np.take(array, order[first : first + count], axis=0, out=there, mode="clip")
                    self.gpu.copy_pinned(memory.address + half * pinned.nbytes // 2, there, copies)
                self._copied[half].record(copies)
                self._copied[half].before(self.stream)
                yield range(start, min(start + self.count, batches))
                self._used[half].record(self.stream)
        finally:
            self.gpu.wait(copies)


def feed(gpu: Any, stream: int, x: np.ndarray, y: np.ndarray | None, batch: int, beside: int) -> Resident | Streamed:
    """x and y, for batches of so many rows; beside: bytes that a pass over all rows needs besides."""
    size = x.nbytes + beside + (0 if y is None else y.nbytes)
    if size <= SHARE * gpu.free_memory():
        return Resident(gpu, stream, x, y)
    return Streamed(gpu, stream, x, y, batch)
