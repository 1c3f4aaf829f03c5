"""Pinned memory that small host arrays go through on their way to the device.

A copy from ordinary memory may be read after the call has returned where the device reads such memory itself (GH200),
so an array that the next step writes anew must not be its source. The ring has a copy of it instead, and an event tells
when the device has taken that.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Any

import numpy as np

from .device import Device

SIZE = 1 << 20  # bytes of the ring
LARGEST = SIZE // 4  # of an array that goes through it: several are on their way at once
ALIGNMENT = 64


class Staging:
    """The ring of one device. Any thread may use it, for any stream."""

    def __init__(self, gpu: Device) -> None:
        self.gpu = gpu
        self._room = gpu.pinned(SIZE // 8).view(np.uint8)
        self._next = 0  # where the next copy begins
        self._under_way: deque[tuple[int, int, Any]] = deque()  # begin, end, event; the oldest first
        self._idle: list[Any] = []  # events
        self._lock = threading.Lock()

    def copy_in(self, address: int, array: np.ndarray, stream: int) -> bool:
        """Copy a contiguous host array to the device, in the order of the stream; False where it is too large."""
        size = array.nbytes
        if size > LARGEST:
            return False
        with self._lock:
            begin = self._begin(size)
            part = self._room[begin : begin + size]
            part[:] = array.reshape(-1).view(np.uint8)
            self.gpu.copy_pinned(address, part, stream)
            event = self._idle.pop() if self._idle else self.gpu.event()
            event.record(stream)
            self._under_way.append((begin, begin + size, event))
            self._next = -(-(begin + size) // ALIGNMENT) * ALIGNMENT
        return True

    def _begin(self, size: int) -> int:
        """Return where so many bytes are free, waiting for the copies that lie there."""
        begin = self._next if self._next + size <= SIZE else 0
        # Copies lie in the order in which they were made, so those in the way are the oldest, and all before them.
        while any(first < begin + size and begin < last for first, last, _ in self._under_way):
            _, _, event = self._under_way.popleft()
            event.wait()
            self._idle.append(event)
        while self._under_way and self._under_way[0][2].reached():
            self._idle.append(self._under_way.popleft()[2])
        return begin
