"""The measured device: arrays with values in its memory, and facts about it."""

from __future__ import annotations

import subprocess
import uuid
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import numpy as np

from fastopt.kernels.cuda.dense.blaslt import BlasLtError, lt_version
from fastopt.kernels.cuda.dense.blaslt_simulator import decode, encode, storage
from fastopt.kernels.cuda.runtime import driver
from fastopt.kernels.cuda.runtime.array_interface import gpu_of
from fastopt.kernels.cuda.runtime.compile import SIMULATED
from fastopt.kernels.cuda.runtime.memory import DeviceArray

PERIOD = 1 << 20  # elements that are drawn: larger arrays repeat them
SMI = ("driver_version", "clocks.sm", "clocks.max.sm", "clocks.mem", "power.limit", "temperature.gpu")
CLOCK, MEMORY_CLOCK, BUS_WIDTH = 13, 36, 37  # CU_DEVICE_ATTRIBUTE_..., the first two in kHz

driver.ffi.cdef("""
    typedef struct { char bytes[16]; } CUuuid;
    CUresult cuDeviceGetUuid_v2(CUuuid *uuid, CUdevice device);
    CUresult cuCtxSynchronize(void);
""")


def the_gpu() -> Any:
    """The first device."""
    return gpu_of(())


def wait_for_all() -> None:
    """Wait until the first device has done all work on all streams. Raises CudaError if any of it failed."""
    gpu = the_gpu()
    with gpu.active():
        driver.check(driver.library().cuCtxSynchronize())


def filled(shape: Sequence[int], values: Any, kind: str) -> DeviceArray:
    """An array on the device that repeats these values; those of bfloat16 are words."""
    made = DeviceArray(the_gpu(), tuple(shape), storage(kind))
    refill(made, values, kind)
    return made


def refill(array: DeviceArray, values: Any, kind: str) -> None:
    """Write the values again."""
    words = np.ascontiguousarray(encode(np.asarray(values), kind)).reshape(-1)[: array.size]
    gpu, done = array.gpu, words.nbytes
    with gpu.active():
        gpu.copy_in(array.address, words, 0)
        while done < array.nbytes:  # a multiple of the period, except in the last copy
            size = min(done, array.nbytes - done)
            gpu.copy(array.address + done, array.address, size, 0)
            done += size
        gpu.wait(0)


def drawn(size: int, kind: str, seed: int, low: float = -0.5) -> np.ndarray:
    """Values between `low` and `low` + 1 for an array of this size, (min(size, PERIOD),), rounded to its dtype."""
    values = np.random.default_rng(seed).random(min(size, PERIOD)) + low
    return decode(encode(values, kind), kind)


def numbers(array: Any, kind: str, first: int = 0, count: int = 0) -> np.ndarray:
    """The first `count` elements of an array on the device, or all; those of 16 bits as float32."""
    count = count or array.size
    words = np.empty(count, storage(kind))
    gpu = array.gpu
    with gpu.active():
        gpu.copy_out(words, array.address + first * words.itemsize, 0)
        gpu.wait(0)
    return decode(words, kind)


class _Words:
    """An array on the device as signed words of 16 bits, which every version of torch accepts."""

    def __init__(self, array: DeviceArray) -> None:
        self.array = array  # kept alive by the tensor
        self.__cuda_array_interface__ = {**array.__cuda_array_interface__, "typestr": "<i2"}


def _words(array: DeviceArray, kind: str) -> np.ndarray:
    """An array of the simulator as a NumPy array, which keeps the memory alive."""
    if not array.size:
        return np.empty(array.shape, kind)
    memory: np.ndarray = array._memory.array  # type: ignore[union-attr]
    start = array.address - memory.ctypes.data
    return memory[start : start + array.nbytes].view(kind).reshape(array.shape)


def tensor(array: DeviceArray, kind: str) -> Any:
    """A torch tensor on the same memory."""
    import torch

    if SIMULATED:
        made = torch.from_numpy(_words(array, "int16" if kind == "bfloat16" else storage(kind)))
    else:
        made = torch.as_tensor(_Words(array) if kind == "bfloat16" else array, device="cuda")
    return made.view(torch.bfloat16) if kind == "bfloat16" else made


def facts() -> dict[str, Any]:
    """Facts that figures depend on: the device, its current clocks, and the libraries."""
    gpu = the_gpu()
    found: dict[str, Any] = {"name": gpu.name, "capability": ".".join(map(str, gpu.capability)), "simulated": SIMULATED}
    found |= {"cache_bytes": gpu.cache_bytes, "free_bytes": gpu.free_memory(), "numba-cuda": version("numba-cuda")}
    try:
        found["cublas"] = ".".join(map(str, lt_version()))
    except BlasLtError:
        found["cublas"] = None
    if not SIMULATED:
        handle = driver.device(gpu.ordinal)
        found["cuda"] = ".".join(map(str, driver.driver_version()))
        found["clock_mhz"] = driver.attribute(handle, CLOCK) / 1e3
        found["memory_clock_mhz"] = driver.attribute(handle, MEMORY_CLOCK) / 1e3
        found["bus_bits"] = driver.attribute(handle, BUS_WIDTH)
        found |= _smi(handle)
    return found


def _smi(handle: int) -> dict[str, str]:
    """The driver's version and the current clocks, by nvidia-smi if it is installed."""
    raw = driver.query("CUuuid", driver.library().cuDeviceGetUuid_v2, handle)
    name = f"GPU-{uuid.UUID(bytes=bytes(driver.ffi.buffer(raw.bytes)))}"
    command = ["nvidia-smi", f"--id={name}", f"--query-gpu={','.join(SMI)}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(zip(SMI, (value.strip() for value in done.stdout.split(",")), strict=False))
