"""Requirements of the "cuda" backend, as far as they are installed. Importing this needs none of them."""

from __future__ import annotations

import importlib.util
import os
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from . import nvjitlink
from .driver import CudaError, capability, device, device_count, device_name, driver_version

COMPILER = ("numba-cuda", "libNVVM", "nvJitLink", "NVRTC")


def simulated() -> bool:
    """Return True if Numba's simulator stands in for the device."""
    return os.environ.get("NUMBA_ENABLE_CUDASIM", "0") not in ("", "0")


def find_requirements() -> dict[str, Any]:
    """Return every requirement with its version or path, None if it is missing; and the devices, by their names."""
    found: dict[str, Any] = {"numba-cuda": numba_cuda()}
    found |= {"libNVVM": _library("nvvm"), "nvJitLink": nvjitlink.find(), "NVRTC": _library("nvrtc")}
    found |= {"cuBLASLt": _library("cublasLt"), "driver": None, "devices": []}
    try:
        found["driver"] = dotted(driver_version())
        handles = [device(i) for i in range(device_count())]
        found["devices"] = [f"{device_name(h)} ({dotted(capability(h))})" for h in handles]
    except CudaError:
        pass  # `installation.trouble` says why
    return found


def dotted(version: tuple[int, int]) -> str:
    """Return a version, or a compute capability, as people write it."""
    return ".".join(map(str, version))


def numba_cuda() -> str | None:
    """Return the version of numba-cuda; None if it is missing."""
    try:
        return version("numba-cuda")
    except PackageNotFoundError:
        return None


def _library(name: str) -> str | None:
    """Load a library; return its path, None if there is none.

    cuda-pathfinder, which comes with numba-cuda, knows wheels, conda and toolkits, and has names of its own for them.
    """
    if not importlib.util.find_spec("cuda") or not importlib.util.find_spec("cuda.pathfinder"):
        return None
    from cuda.pathfinder import DynamicLibNotFoundError, load_nvidia_dynamic_lib

    try:
        return str(load_nvidia_dynamic_lib(name).abs_path)
    except (DynamicLibNotFoundError, RuntimeError, OSError):
        return None
