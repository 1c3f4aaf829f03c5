"""Arrays in a device's memory that fastopt owns: states beside a user's arrays, and the arrays of a network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .array_interface import current_stream, gpu_of, numpy_dtype, see
from .compile import THREADS
from .convert import widen_kernel
from .device import Device, launch
from .driver import ALIGNMENT
from .storage import STORES


class DeviceArray:
    """A C-contiguous array in device memory that it owns; other libraries read it by its array interface.

    It is filled with one value, and ready for any stream, when it is made. `np.asarray` gives a copy on the host.
    """

    def __init__(self, gpu: Device, shape: tuple[int, ...], dtype: str | np.dtype[Any], fill: float = 0) -> None:
        self.gpu, self.shape, self.dtype = gpu, tuple(shape), np.dtype(dtype)
        self.size = math.prod(self.shape)
        self._memory = gpu.allocate(self.nbytes) if self.size else None
        if fill and self.size:
            self.write(np.full(self.shape, fill, self.dtype), 0)
            with gpu.active():
                gpu.wait(0)

    @property
    def address(self) -> int:
        return int(self._memory.address) if self._memory else 0

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape, "typestr": self.dtype.str, "strides": None, "data": (self.address, False),
            "version": 3,
        }  # fmt: skip

    def write(self, array: np.ndarray, stream: int) -> None:
        """Copy a host array of the same shape and dtype, contiguous, in the order of the stream."""
        assert array.nbytes == self.nbytes
        if self.size:
            with self.gpu.active():
                self.gpu.copy_in(self.address, array, stream)

    def copy_to_host(self, stream: int = 0) -> np.ndarray:
        """Return a copy on the host, in the order of the stream. Waits for it."""
        return _copied(self.gpu, self.address, self.shape, self.dtype, stream)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("an array in a GPU's memory can only be copied to the host")
        array = self.copy_to_host()
        return array if dtype is None else array.astype(dtype, copy=False)

    def __repr__(self) -> str:
        return f"DeviceArray(shape={self.shape}, dtype={self.dtype.name})"


class Block:
    """Memory for arrays of these sizes in bytes, one after the other, each aligned as an allocation is."""

    def __init__(self, gpu: Device, sizes: Sequence[int]) -> None:
        ends = np.cumsum([-(-size // ALIGNMENT) * ALIGNMENT for size in sizes], dtype=np.int64)
        self.size = int(ends[-1]) if len(ends) else 0
        self.memory = gpu.allocate(self.size)
        self.addresses = [self.memory.address + int(start) for start in (0, *ends[:-1])][: len(sizes)]


class Mirror:
    """Copies on the device of host arrays, which are C-contiguous and must keep their addresses."""

    def __init__(self, gpu: Device, arrays: Sequence[np.ndarray]) -> None:
        self.gpu, self.arrays = gpu, list(arrays)
        self.block = Block(gpu, [array.nbytes for array in arrays])
        self.addresses = self.block.addresses

    def upload(self, stream: int) -> None:
        """Copy the host's arrays to the device, in the order of the stream."""
        for array, address in zip(self.arrays, self.addresses, strict=True):
            self.gpu.copy_in(address, array, stream)

    def download(self, stream: int) -> None:
        """Copy the device's arrays to the host, in the order of the stream. Waits for it."""
        for array, address in zip(self.arrays, self.addresses, strict=True):
            self.gpu.copy_out(array, address, stream)
        self.gpu.wait(stream)


def to_host(array: Any, stream: int | None = None) -> np.ndarray:
    """Return a host copy of any library's device array, C-contiguous, in the order of its stream. Waits for it.

    The copy of a bfloat16 array has its bits, as uint16.

    stream: a stream other than the one that its library works on.
    """
    seen = see(array)
    if not seen.contiguous:
        raise ValueError(f"the array must be C-contiguous; got one with gaps or permuted axes, of shape {seen.shape}")
    gpu, stream = gpu_of({seen.address}), current_stream(array) if stream is None else stream
    return _copied(gpu, seen.address, seen.shape, numpy_dtype(seen.dtype), stream)


def widened(array: Any) -> DeviceArray:
    """Return a float32 copy of a float16 or bfloat16 array, C-contiguous, made on the stream of its library."""
    seen = see(array)
    gpu = gpu_of({seen.address})
    wide, kernel = DeviceArray(gpu, seen.shape, "float32"), widen_kernel(seen.dtype)
    if wide.size:
        pieces = -(-wide.size // (THREADS * STORES[seen.dtype].width))
        launch(gpu, kernel, pieces, current_stream(array), seen.address, wide.address, wide.size)
    return wide


def _copied(gpu: Device, address: int, shape: tuple[int, ...], dtype: np.dtype[Any], stream: int) -> np.ndarray:
    array = np.empty(shape, dtype)
    if array.size:
        with gpu.active():
            gpu.copy_out(array, address, stream)
            gpu.wait(stream)
    return array
