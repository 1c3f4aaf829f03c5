"""Parts of the "cuda" backend: which of them are there. Needs none of them itself."""

from __future__ import annotations

import importlib.util
import os
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from . import nvjitlink
from .driver import CudaError, capability, device, device_count, device_name, driver_version

COMPILER = ("numba-cuda", "libNVVM", "nvJitLink", "NVRTC")


def simulated() -> bool:
    """Return True if Numba's simulator takes the place of the device."""
    return os.environ.get("NUMBA_ENABLE_CUDASIM", "0") not in ("", "0")


def parts() -> dict[str, Any]:
    """Return every part with its version or place, None where it is missing; and the devices, by their names."""
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
    """Return the version of numba-cuda; None where it is missing."""
    try:
        return version("numba-cuda")
    except PackageNotFoundError:
        return None


def _library(name: str) -> str | None:
    """Return the path of a library; loading it is how it is found.

    cuda-pathfinder, which comes with numba-cuda, knows wheels, conda and toolkits, and has its own names for them.
    """
    if not importlib.util.find_spec("cuda") or not importlib.util.find_spec("cuda.pathfinder"):
        return None
    from cuda.pathfinder import DynamicLibNotFoundError, load_nvidia_dynamic_lib

    try:
        return str(load_nvidia_dynamic_lib(name).abs_path)
    except (DynamicLibNotFoundError, RuntimeError, OSError):
        return None
