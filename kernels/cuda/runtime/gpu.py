"""One GPU: memory, copies and launches, on streams that belong to the caller.

It uses the device's primary context, as CuPy, Numba and torch do, so that all of them share addresses. A stream is its
handle, an integer: 0 is the default stream. Only methods that say so wait for the device.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator
from functools import cache, cached_property
from typing import Any

import numpy as np

from .compile import THREADS, Kernel, entry
from .driver import CudaError, attribute, capability, check, device, device_name, ffi, library, query
from .staging import Staging
from .streams import RELAXED, Event, Replay, Stream

MULTIPROCESSORS = 16  # CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT
L2_CACHE = 38  # CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE
SHARED_MEMORY = 97  # CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN
PAGEABLE_ACCESS = 88  # CU_DEVICE_ATTRIBUTE_PAGEABLE_MEMORY_ACCESS
MAX_DYNAMIC_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
PORTABLE = 1  # CU_MEMHOSTALLOC_PORTABLE: pinned for every device


class Gpu:
    """One device, by its ordinal."""

    def __init__(self, ordinal: int) -> None:
        self.ordinal = ordinal
        self.driver = library()
        self._device = device(ordinal)
        self._functions: dict[Kernel, Any] = {}
        self._blocks: dict[Kernel, int] = {}
        self.idle_streams: list[int] = []

    @cached_property
    def name(self) -> str:
        return device_name(self._device)

    @cached_property
    def capability(self) -> tuple[int, int]:
        return capability(self._device)

    def max_blocks(self, kernel: Kernel) -> int:
        """Return the number of blocks that run at once. With more, the last ones would leave the device partly idle."""
        if kernel not in self._blocks:
            occupancy = self.driver.cuOccupancyMaxActiveBlocksPerMultiprocessor
            each = query("int", occupancy, self.load(kernel), THREADS, 0)
            self._blocks[kernel] = each * attribute(self._device, MULTIPROCESSORS)
        return self._blocks[kernel]

    @cached_property
    def cache_bytes(self) -> int:
        """Bytes of the cache that all multiprocessors share."""
        return attribute(self._device, L2_CACHE)

    @cached_property
    def shared_bytes(self) -> int:
        """Bytes of shared memory that a block can have at most, by request."""
        return attribute(self._device, SHARED_MEMORY)

    @cached_property
    def _context(self) -> Any:
        return query("void *", self.driver.cuDevicePrimaryCtxRetain, self._device)

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """While open, direct the driver's calls of this thread to this device. Nearly always they are already."""
        if query("void *", self.driver.cuCtxGetCurrent) == self._context:
            yield
            return
        check(self.driver.cuCtxPushCurrent_v2(self._context))
        try:
            yield
        finally:
            query("void *", self.driver.cuCtxPopCurrent_v2)

    def allocate(self, size: int, stream: int = 0) -> Memory:
        """Allocate device memory, zeroed on a stream; it is freed with the object. Waits for the stream."""
        with self.active():
            address = int(query("CUdeviceptr", self.driver.cuMemAlloc_v2, max(size, 1)))
            memory = Memory(address)
            weakref.finalize(memory, _free, self, address)
            self.zero(address, size, stream)
            self.wait(stream)  # another stream may use it at once
        return memory

    def pinned(self, words: int) -> np.ndarray:
        """Return zeros, (words,) int64, in pinned host memory, which the device can write while the host goes on."""
        with self.active():
            pointer = ffi.new("void **")
            check(self.driver.cuMemHostAlloc(pointer, 8 * words, PORTABLE))
        owner = ffi.gc(ffi.cast("char *", pointer[0]), self._unpin, 8 * words)
        array = np.frombuffer(ffi.buffer(owner, 8 * words), np.int64)
        array[:] = 0
        return array

    def _unpin(self, pointer: Any) -> None:
        with contextlib.suppress(CudaError), self.active():  # at exit the driver may be gone already
            check(self.driver.cuMemFreeHost(pointer))

    @cached_property
    def _staging(self) -> Staging:
        return Staging(self)

    @cached_property
    def _reads_pageable(self) -> bool:
        """True if the device reads ordinary host memory itself, as on GH200: a copy may return before it is read."""
        return bool(attribute(self._device, PAGEABLE_ACCESS))

    def copy_in(self, address: int, array: np.ndarray, stream: int) -> None:
        """Copy host to device, in the order of the stream. The array, in ordinary memory, may be changed at once.

        Small arrays go through pinned memory, so that nothing waits. Large ones the driver reads before it returns,
        except if the device reads ordinary memory itself: then this waits for the copy.
        """
        if not array.nbytes or self._staging.copy_in(address, array, stream):
            return
        self.copy_pinned(address, array, stream)
        if self._reads_pageable:
            self.wait(stream)

    def copy_pinned(self, address: int, array: np.ndarray, stream: int) -> None:
        """Copy host to device, in the order of the stream; the array, in pinned memory, must not change until then."""
        source = ffi.cast("void *", array.ctypes.data)
        check(self.driver.cuMemcpyHtoDAsync_v2(address, source, array.nbytes, ffi.cast("void *", stream)))

    def copy_out(self, array: np.ndarray, address: int, stream: int) -> None:
        """Copy device to host, in the order of the stream; into pinned memory without waiting."""
        into = ffi.cast("void *", array.ctypes.data)
        check(self.driver.cuMemcpyDtoHAsync_v2(into, address, array.nbytes, ffi.cast("void *", stream)))

    def copy(self, into: int, source: int, size: int, stream: int) -> None:
        """Copy bytes within the device's memory, in the order of the stream."""
        check(self.driver.cuMemcpyDtoDAsync_v2(into, source, size, ffi.cast("void *", stream)))

    def zero(self, address: int, size: int, stream: int) -> None:
        """Set bytes of device memory to 0, in the order of the stream."""
        if size:  # 0 bytes are an error to the driver
            check(self.driver.cuMemsetD8Async(address, 0, size, ffi.cast("void *", stream)))

    def wait(self, stream: int) -> None:
        """Wait until all work of the stream is done."""
        check(self.driver.cuStreamSynchronize(ffi.cast("void *", stream)))

    def is_capturing(self, stream: int) -> bool:
        """Return True if work given to the stream becomes part of a graph, instead of being done."""
        status = ffi.new("int *")
        check(self.driver.cuStreamIsCapturing(ffi.cast("void *", stream), status))
        return bool(status[0])

    @contextlib.contextmanager
    def relaxed(self) -> Iterator[None]:
        """While open, allow this thread the calls of the driver that a capture forbids as probable mistakes.

        Another library may be capturing with the strictest mode, which forbids allocating, loading and making streams.
        """
        mode = ffi.new("int *", RELAXED)
        check(self.driver.cuThreadExchangeStreamCaptureMode(mode))
        try:
            yield
        finally:
            check(self.driver.cuThreadExchangeStreamCaptureMode(mode))

    @contextlib.contextmanager
    def side_stream(self) -> Iterator[int]:
        """Give a stream whose work is done at once, even if another one is being captured; wait for it at the end."""
        with self.relaxed():
            own = self.stream()
            yield own.handle
            self.wait(own.handle)

    def free_memory(self) -> int:
        """Return the bytes that can still be allocated."""
        free, total = ffi.new("size_t *"), ffi.new("size_t *")
        with self.active():
            check(self.driver.cuMemGetInfo_v2(free, total))
        return int(free[0])

    def stream(self) -> Stream:
        """Return a stream of one's own."""
        return Stream(self)

    def event(self, timed: bool = False) -> Event:
        return Event(self, timed)

    def replay(self, stream: int, run: Callable[[], None]) -> Replay:
        """Return the launches of `run`, to be given to the stream again and again."""
        return Replay(self, stream, run)

    def launch(self, kernel: Kernel, blocks: int, stream: int, *args: int) -> None:
        """Launch a kernel, in the order of the stream."""
        values = ffi.new("long long[]", args)
        pointers = ffi.new("void *[]", [values + i for i in range(len(args))])
        handle = ffi.cast("void *", stream)
        function = self.load(kernel)
        check(self.driver.cuLaunchKernel(function, blocks, 1, 1, THREADS, 1, 1, 0, handle, pointers, ffi.NULL))

    def launch_one_block(self, kernel: Kernel, threads: int, shared: int, stream: int, *args: int) -> None:
        """Launch one block of so many threads, with so many bytes of shared memory."""
        values = ffi.new("long long[]", args)
        pointers = ffi.new("void *[]", [values + i for i in range(len(args))])
        handle, function = ffi.cast("void *", stream), self.load(kernel)
        check(
            self.driver.cuFuncSetAttribute(function, MAX_DYNAMIC_SHARED, shared)
        )  # without which 48 KiB are the limit
        check(self.driver.cuLaunchKernel(function, 1, 1, 1, threads, 1, 1, shared, handle, pointers, ffi.NULL))

    def load(self, kernel: Kernel) -> Any:
        """Load a kernel, even while a stream is being captured; return the driver's function."""
        if kernel not in self._functions:
            image = kernel.cubin(self.capability)
            with self.relaxed():
                module = query("void *", self.driver.cuModuleLoadData, ffi.from_buffer(image))
            self._functions[kernel] = query("void *", self.driver.cuModuleGetFunction, module, entry(image))
        return self._functions[kernel]


class Memory:
    """Device memory, freed with this object."""

    __slots__ = ("__weakref__", "address")

    def __init__(self, address: int) -> None:
        self.address = address


def _free(gpu: Gpu, address: int) -> None:
    with contextlib.suppress(CudaError), gpu.active():  # at exit the driver may be gone already
        check(gpu.driver.cuMemFree_v2(address))


@cache
def gpu(ordinal: int) -> Gpu:
    return Gpu(ordinal)
