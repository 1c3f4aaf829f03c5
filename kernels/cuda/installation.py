"""Diagnosis of the "cuda" backend: one sentence on what to do if it cannot run. Importing it needs nothing."""

from __future__ import annotations

import os
import threading

from .runtime import nvjitlink, requirements
from .runtime.driver import (
    NO_DEVICE,
    OLDEST,
    CudaError,
    capability,
    current_device,
    device,
    device_count,
    device_name,
    driver_version,
    library,
)
from .runtime.requirements import COMPILER, dotted

INSTALL = "pip install 'fastopt[cuda]'"
CUDA, DRIVER = (13, 0), 580  # cubins are CUDA 13.0's: an older driver refuses to load them


def trouble(*more: str) -> str:
    """Return one sentence on why kernels cannot run and on what to do about it; "" if they can.

    The last of the checks compiles a kernel and loads it into the current device, once a process.

    more: requirements besides the compiler, the driver and a device.
    """
    if requirements.simulated():
        there = requirements.numba_cuda()
        return "" if there else f"the backend 'cuda' lacks numba-cuda: {INSTALL} brings the libraries"
    found = requirements.find_requirements()
    lacking = [name for name in (*COMPILER, *more, "driver") if found[name] is None]
    if lacking:
        advice = [f"{INSTALL} brings the libraries"] if set(lacking) & {*COMPILER, *more} else []
        if "driver" in lacking:
            advice.append("the driver comes with the system, and wants an NVIDIA GPU")
        return f"the backend 'cuda' lacks {', '.join(lacking)}: {'; '.join(advice)}"
    reason = _driver_trouble() or _linker_trouble() or _trial.trouble()
    return f"the backend 'cuda' cannot run: {reason}" if reason else ""


def require(*more: str) -> None:
    """Raise ImportError, with the sentence of `trouble`, if kernels cannot run."""
    if reason := trouble(*more):
        raise ImportError(reason)


def _driver_trouble() -> str:
    """Return what is wrong with the driver or its devices; "" if nothing is."""
    if driver_version() < CUDA:
        knows, needed = dotted(driver_version()), dotted(CUDA)
        return f"the NVIDIA driver knows CUDA {knows}, and {needed} is needed: install driver {DRIVER} or newer"
    try:
        library()
        count = device_count()
    except CudaError as error:
        if error.code != NO_DEVICE:
            return f"the NVIDIA driver does not start ({error}): see what nvidia-smi says"
        count = 0
    if not count:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        if visible is None:
            return "the NVIDIA driver sees no GPU: see what nvidia-smi says"
        return f"no GPU is visible: CUDA_VISIBLE_DEVICES is {visible!r}"
    handle = device(current_device())
    if capability(handle) < OLDEST:
        has, needed = dotted(capability(handle)), dotted(OLDEST)
        return f"{device_name(handle)} has compute capability {has}, and CUDA 13 makes code for {needed} or newer"
    return ""


def _linker_trouble() -> str:
    """Return what is wrong with nvJitLink; "" if nothing is."""
    try:
        if (has := nvjitlink.version()) >= CUDA:
            return ""
        wrong = f"nvJitLink {dotted(has)} ({nvjitlink.find()}) is too old"
    except nvjitlink.LinkError as error:
        wrong = str(error)
    return f"{wrong}: {INSTALL} brings that of CUDA {dotted(CUDA)}"


class _Trial:
    """One small kernel, compiled and loaded once a process: it shows faults that no version number tells."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: str | None = None

    def trouble(self) -> str:
        """Return what went wrong, as one line; "" if nothing did."""
        with self._lock:
            if self._found is None:
                try:
                    self.run()
                    self._found = ""
                except Exception as error:  # any error is the reason
                    words = " ".join(str(error).split()) or "no further word"
                    self._found = f"a first kernel could not be compiled and loaded ({type(error).__name__}: {words})"
            return self._found

    def run(self) -> None:
        """Compile the kernel that resolves a step, which every optimizer may need, and load it."""
        from .optim.norm import RESOLVE_STEP
        from .runtime.gpu import gpu

        here = gpu(current_device())
        with here.active():
            here.load(RESOLVE_STEP)

    def forget(self) -> None:
        """Try again the next time."""
        self._found = None


_trial = _Trial()
