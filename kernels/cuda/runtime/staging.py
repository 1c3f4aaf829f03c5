"""Pinned memory that small host arrays pass through on their way to the device.

If the device reads ordinary host memory itself (GH200), it may read the source of a copy after the call has returned.
So an array that the next step overwrites must not be the source. A ring of pinned memory has a copy of it instead, and
an event tells when the device has read that.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Any

import numpy as np

from .device import Device

SIZE = 1 << 20  # bytes of the ring
LARGEST = SIZE // 4  # bytes of an array that passes through it: several are in flight at once
ALIGNMENT = 64


class Staging:
    """The ring of one device. Any thread may use it, for any stream."""

    def __init__(self, gpu: Device) -> None:
        self.gpu = gpu
        self._ring = gpu.pinned(SIZE // 8).view(np.uint8)
        self._next = 0  # offset of the next copy
        self._in_flight: deque[tuple[int, int, Any]] = deque()  # (begin, end, event), the oldest first
        self._idle: list[Any] = []  # events
        self._lock = threading.Lock()

    def copy_in(self, address: int, array: np.ndarray, stream: int) -> bool:
        """Copy a contiguous host array to the device, in the order of the stream; return False if it is too large."""
        size = array.nbytes
        if size > LARGEST:
            return False
        with self._lock:
            begin = self._reserve(size)
            part = self._ring[begin : begin + size]
            part[:] = array.reshape(-1).view(np.uint8)
            self.gpu.copy_pinned(address, part, stream)
            event = self._idle.pop() if self._idle else self.gpu.event()
            event.record(stream)
            self._in_flight.append((begin, begin + size, event))
            self._next = -(-(begin + size) // ALIGNMENT) * ALIGNMENT
        return True

    def _reserve(self, size: int) -> int:
        """Return the offset of so many free bytes; wait for the copies that are in the way."""
        begin = self._next if self._next + size <= SIZE else 0
        # Copies are in the ring in the order in which they were made: those in the way are the oldest ones.
        while any(first < begin + size and begin < last for first, last, _ in self._in_flight):
            _, _, event = self._in_flight.popleft()
            event.wait()
            self._idle.append(event)
        while self._in_flight and self._in_flight[0][2].reached():
            self._idle.append(self._in_flight.popleft()[2])
        return begin
