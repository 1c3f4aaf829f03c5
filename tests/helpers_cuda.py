"""Helpers of the tests of CUDA kernels: conditions to run them, and arrays on the device, a GPU or the simulator."""

from __future__ import annotations

import importlib.util
import os
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import settings

SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM", "0") not in ("", "0")


def require_compiler() -> None:
    """Skip a module if CUDA kernels cannot be compiled."""
    if importlib.util.find_spec("numba_cuda") is None:
        pytest.skip("needs numba-cuda: pip install -e '.[cuda-compiler]'", allow_module_level=True)
    if SIMULATED:
        pytest.skip("the simulator compiles nothing", allow_module_level=True)
    if os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0"):
        pytest.skip("NUMBA_DISABLE_JIT compiles nothing", allow_module_level=True)


def require_device() -> None:
    """Skip a module if CUDA kernels cannot run."""
    if importlib.util.find_spec("numba_cuda") is None:
        pytest.skip("needs numba-cuda: pip install -e '.[cuda-compiler]'", allow_module_level=True)
    if not SIMULATED:
        from fastopt.kernels.cuda.installation import require

        try:
            require()
        except ImportError as error:
            pytest.skip(f"{error}; or set NUMBA_ENABLE_CUDASIM=1", allow_module_level=True)


def drawing(simulated: int, **more: Any) -> settings:
    """Settings of hypothesis: so many examples under the simulator, else as many as the profile has."""
    return settings(max_examples=simulated if SIMULATED else settings.default.max_examples, deadline=None, **more)


def to_device(array: np.ndarray, shift: int = 0) -> Any:
    """Return a copy on the device, whose address is `shift` elements past an aligned one."""
    from numba import cuda

    room = np.full(array.size + 8, 9, array.dtype)
    room[shift : shift + array.size] = array.reshape(-1)
    if SIMULATED:  # whose memory comes from NumPy, aligned to 16 bytes but for chance
        memory = np.zeros(room.nbytes + 256, np.uint8)
        start = -memory.ctypes.data % 256
        aligned = memory[start : start + room.nbytes].view(array.dtype)
        aligned[:] = room
        on_device = cuda.to_device(aligned, copy=False)
    else:
        on_device = cuda.to_device(room)
    return on_device[shift : shift + array.size].reshape(array.shape)


def on_device(*arrays: np.ndarray) -> list[Any]:
    return [to_device(array) for array in arrays]


def bits(array: np.ndarray) -> np.ndarray:
    return array.view(f"u{array.itemsize}")


def assert_same_bits(ours: Any, theirs: np.ndarray) -> None:
    """Compare an array on the device with one on the host, bit for bit, except that every NaN equals every other."""
    ours = ours.copy_to_host()
    assert ours.dtype == theirs.dtype
    numbers = ~np.isnan(theirs)
    np.testing.assert_array_equal(np.isnan(ours), ~numbers)
    np.testing.assert_array_equal(bits(np.array(ours, order="C"))[numbers], bits(theirs)[numbers])


def update_reference(jobs: list[Any], scale: float = 1.0) -> None:
    """Run the reference's updates with denormals kept, as kernels on a device keep them."""
    from fastopt.kernels import reference

    reference.update.__wrapped__(jobs, scale)  # type: ignore[attr-defined]


class Bits:
    """An array of bfloat16 on the device as CuPy shows it: of ml_dtypes' dtype, for which the interface has no word."""

    dtype = "bfloat16"

    def __init__(self, array: np.ndarray) -> None:
        from fastopt.kernels.cuda import see

        self.array = to_device(array)
        self.__cuda_array_interface__ = {
            "shape": array.shape, "typestr": "<V2", "strides": None, "data": (see(self.array).address, False),
            "version": 3,
        }  # fmt: skip

    def __dlpack__(self, **asked: Any) -> Any:
        raise AssertionError("what the interface says is enough")

    def copy_to_host(self) -> np.ndarray:
        copied: np.ndarray = self.array.copy_to_host()
        return copied


def assert_exact_code(listing: Any, registers: int) -> None:
    """Machine code of an update: nothing is spilled, and arithmetic is what the formula says."""
    assert listing.local_bytes == 0
    assert ".local" not in listing.ptx
    assert 0 < listing.registers <= registers
    assert not re.findall(r"\bfma\.", listing.ptx)  # two roundings, as on the CPU
    assert not re.findall(r"\.ftz|\.approx|\.full", listing.ptx)  # denormals are kept, nothing is approximate
    assert not re.findall(r"\bcall\b", listing.ptx)
