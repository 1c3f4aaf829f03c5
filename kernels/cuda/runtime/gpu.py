"""One GPU: memory, copies and launches, on streams that belong to the caller.

We use the device's primary context, as CuPy, Numba and torch do, so that everybody's addresses are everybody's. A
stream is its handle, an integer: 0 is the default stream. Nothing here waits for the device, except what says so.
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
    """One device, by its number."""

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
        """As many as run at once. With more, the last ones would have the device for themselves."""
        if kernel not in self._blocks:
            occupancy = self.driver.cuOccupancyMaxActiveBlocksPerMultiprocessor
            each = query("int", occupancy, self.load(kernel), THREADS, 0)
            self._blocks[kernel] = each * attribute(self._device, MULTIPROCESSORS)
        return self._blocks[kernel]

    @cached_property
    def cache_bytes(self) -> int:
        """The size of the cache that all multiprocessors share."""
        return attribute(self._device, L2_CACHE)

    @cached_property
    def shared_bytes(self) -> int:
        """The most shared memory that a block can have, if it asks for it."""
        return attribute(self._device, SHARED_MEMORY)

    @cached_property
    def _context(self) -> Any:
        return query("void *", self.driver.cuDevicePrimaryCtxRetain, self._device)

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """While open, the driver's calls of this thread go to this device. Nearly always they do anyway."""
        if query("void *", self.driver.cuCtxGetCurrent) == self._context:
            yield
            return
        check(self.driver.cuCtxPushCurrent_v2(self._context))
        try:
            yield
        finally:
            query("void *", self.driver.cuCtxPopCurrent_v2)

    def allocate(self, size: int, stream: int = 0) -> Memory:
        """Device memory of this size, zeros by way of a stream; it is freed, when nobody has it any more."""
        with self.active():
            address = int(query("CUdeviceptr", self.driver.cuMemAlloc_v2, max(size, 1)))
            memory = Memory(address)
            weakref.finalize(memory, _free, self, address)
            self.zero(address, size, stream)
            self.wait(stream)  # another one may use it at once
        return memory

    def pinned(self, words: int) -> np.ndarray:
        """Zeros, (words,) int64, in host memory that the device can write to while the host goes on."""
        with self.active():
            pointer = ffi.new("void **")
            check(self.driver.cuMemHostAlloc(pointer, 8 * words, PORTABLE))
        owner = ffi.gc(ffi.cast("char *", pointer[0]), self._unpin, 8 * words)
        array = np.frombuffer(ffi.buffer(owner, 8 * words), np.int64)
        array[:] = 0
        return array

    def _unpin(self, pointer: Any) -> None:
        with contextlib.suppress(CudaError), self.active():  # at exit the driver may be gone before
            check(self.driver.cuMemFreeHost(pointer))

    @cached_property
    def _staging(self) -> Staging:
        return Staging(self)

    @cached_property
    def _reads_pageable(self) -> bool:
        """True if the device reads ordinary host memory itself, as on GH200; a copy may then return before it has."""
        return bool(attribute(self._device, PAGEABLE_ACCESS))

    def copy_in(self, address: int, array: np.ndarray, stream: int) -> None:
        """Host to device, in the order of the stream. The array, in ordinary memory, may be changed at once.

        Little goes by way of pinned memory, so that nothing waits. The driver takes what is large before it returns,
        but where the device reads ordinary memory itself: there we wait for the copy.
        """
        if not array.nbytes or self._staging.copy_in(address, array, stream):
            return
        self.copy_pinned(address, array, stream)
        if self._reads_pageable:
            self.wait(stream)

    def copy_pinned(self, address: int, array: np.ndarray, stream: int) -> None:
        """Host to device, in the order of the stream; the array, in pinned memory, stays as it is until it is done."""
        source = ffi.cast("void *", array.ctypes.data)
        check(self.driver.cuMemcpyHtoDAsync_v2(address, source, array.nbytes, ffi.cast("void *", stream)))

    def copy_out(self, array: np.ndarray, address: int, stream: int) -> None:
        """Device to host, in the order of the stream; into pinned memory without waiting."""
        into = ffi.cast("void *", array.ctypes.data)
        check(self.driver.cuMemcpyDtoHAsync_v2(into, address, array.nbytes, ffi.cast("void *", stream)))

    def copy(self, into: int, source: int, size: int, stream: int) -> None:
        """Bytes from one place of the device's memory to another, in the order of the stream."""
        check(self.driver.cuMemcpyDtoDAsync_v2(into, source, size, ffi.cast("void *", stream)))

    def zero(self, address: int, size: int, stream: int) -> None:
        """Bytes of device memory become 0, in the order of the stream."""
        if size:  # of nothing the driver makes an error
            check(self.driver.cuMemsetD8Async(address, 0, size, ffi.cast("void *", stream)))

    def wait(self, stream: int) -> None:
        """Until all that was given to the stream is done."""
        check(self.driver.cuStreamSynchronize(ffi.cast("void *", stream)))

    def is_capturing(self, stream: int) -> bool:
        """Whether what is given to the stream becomes part of a graph, instead of being done."""
        status = ffi.new("int *")
        check(self.driver.cuStreamIsCapturing(ffi.cast("void *", stream), status))
        return bool(status[0])

    @contextlib.contextmanager
    def relaxed(self) -> Iterator[None]:
        """While open, the driver's calls of this thread may be those that a capture forbids for fear of a mistake.

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
        """While open, and another stream is being captured: a stream whose work is done at once, and waited for."""
        with self.relaxed():
            own = self.stream()
            yield own.handle
            self.wait(own.handle)

    def free_memory(self) -> int:
        """Bytes that can still be allocated."""
        free, total = ffi.new("size_t *"), ffi.new("size_t *")
        with self.active():
            check(self.driver.cuMemGetInfo_v2(free, total))
        return int(free[0])

    def stream(self) -> Stream:
        """A stream of one's own."""
        return Stream(self)

    def event(self, timed: bool = False) -> Event:
        return Event(self, timed)

    def replay(self, stream: int, run: Callable[[], None]) -> Replay:
        """What `run` gives to the stream, to be given to it again and again."""
        return Replay(self, stream, run)

    def launch(self, kernel: Kernel, blocks: int, stream: int, *args: int) -> None:
        """Run a kernel once all that was given to the stream before is done."""
        values = ffi.new("long long[]", args)
        pointers = ffi.new("void *[]", [values + i for i in range(len(args))])
        where = ffi.cast("void *", stream)
        function = self.load(kernel)
        check(self.driver.cuLaunchKernel(function, blocks, 1, 1, THREADS, 1, 1, 0, where, pointers, ffi.NULL))

    def launch_one_block(self, kernel: Kernel, threads: int, shared: int, stream: int, *args: int) -> None:
        """As `launch`, but one block of so many threads, with so many bytes of shared memory."""
        values = ffi.new("long long[]", args)
        pointers = ffi.new("void *[]", [values + i for i in range(len(args))])
        where, function = ffi.cast("void *", stream), self.load(kernel)
        check(self.driver.cuFuncSetAttribute(function, MAX_DYNAMIC_SHARED, shared))  # or 48 KiB would be the most
        check(self.driver.cuLaunchKernel(function, 1, 1, 1, threads, 1, 1, shared, where, pointers, ffi.NULL))

    def load(self, kernel: Kernel) -> Any:
        """Return the kernel as the driver's function, loaded; also while a stream is being captured."""
        if kernel not in self._functions:
            image = kernel.cubin(self.capability)
            with self.relaxed():
                module = query("void *", self.driver.cuModuleLoadData, ffi.from_buffer(image))
            self._functions[kernel] = query("void *", self.driver.cuModuleGetFunction, module, entry(image))
        return self._functions[kernel]


class Memory:
    """Device memory, owned."""

    __slots__ = ("__weakref__", "address")

    def __init__(self, address: int) -> None:
        self.address = address


def _free(gpu: Gpu, address: int) -> None:
    with contextlib.suppress(CudaError), gpu.active():  # at exit the driver may be gone before
        check(gpu.driver.cuMemFree_v2(address))


@cache
def gpu(ordinal: int) -> Gpu:
    return Gpu(ordinal)
