"""What the "cuda" backend is made of, and what of it is there. Needs none of it itself."""

from __future__ import annotations

import importlib.util
import os
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from .driver import CudaError, capability, device, device_count, device_name, driver_version

INSTALL = "pip install 'fastopt[cuda]'"

# Libraries, as cuda-pathfinder calls them, which comes with numba-cuda and finds wheels, conda and toolkits.
LIBRARIES = {"libNVVM": "nvvm", "nvJitLink": "nvJitLink", "NVRTC": "nvrtc", "cuBLASLt": "cublasLt"}
COMPILER = ("numba-cuda", "libNVVM", "nvJitLink", "NVRTC")


def simulated() -> bool:
    """Whether Numba's simulator takes the place of the device."""
    return os.environ.get("NUMBA_ENABLE_CUDASIM", "0") not in ("", "0")


def parts() -> dict[str, Any]:
    """Every part with its version or place, None where it is missing; and the devices, by their names."""
    found: dict[str, Any] = {"numba-cuda": _numba_cuda()}
    found |= {name: _library(short) for name, short in LIBRARIES.items()}
    try:
        found["driver"] = ".".join(map(str, driver_version()))
        handles = [device(i) for i in range(device_count())]
        found["devices"] = [f"{device_name(h)} ({'.'.join(map(str, capability(h)))})" for h in handles]
    except CudaError:
        found |= {"driver": None, "devices": []}
    return found


def require(*more: str) -> None:
    """Raises ImportError, with what is missing and how to get it, where kernels cannot run.

    more: parts that are needed besides the compiler, the driver and a device.
    """
    if simulated():
        lacking = [] if _numba_cuda() else ["numba-cuda"]
    else:
        found = parts()
        lacking = [name for name in (*COMPILER, *more, "driver") if found[name] is None]
        if found["driver"] and not found["devices"]:
            lacking.append("a device")
    if not lacking:
        return
    advice = [f"{INSTALL} brings the libraries"] if set(lacking) & {*COMPILER, *more} else []
    if set(lacking) & {"driver", "a device"}:
        advice.append("the driver comes with the system, and wants an NVIDIA GPU")
    raise ImportError(f"the backend 'cuda' lacks {', '.join(lacking)}: {'; '.join(advice)}")


def _numba_cuda() -> str | None:
    try:
        return version("numba-cuda")
    except PackageNotFoundError:
        return None


def _library(name: str) -> str | None:
    """The path of a library; loading it is how it is found."""
    if not importlib.util.find_spec("cuda") or not importlib.util.find_spec("cuda.pathfinder"):
        return None
    from cuda.pathfinder import DynamicLibNotFoundError, load_nvidia_dynamic_lib

    try:
        return str(load_nvidia_dynamic_lib(name).abs_path)
    except (DynamicLibNotFoundError, RuntimeError, OSError):
        return None
