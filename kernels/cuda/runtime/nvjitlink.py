"""nvJitLink, opened with cffi: the linker from Numba's intermediate code to a cubin.

The package cuda-bindings offers the same functions, but it calls whichever nvJitLink it finds in the process. A torch
built for CUDA 12 brings one of its own, which cannot read what CUDA 13's libNVVM writes: linking ends with
ERROR_INTERNAL. Here the library is named by its version, and its functions are looked up in that library alone.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import cffi

ffi = cffi.FFI()
ffi.cdef("""
    typedef void *nvJitLinkHandle;
    int nvJitLinkVersion(unsigned int *major, unsigned int *minor);
    int nvJitLinkCreate(nvJitLinkHandle *handle, uint32_t count, const char **options);
    int nvJitLinkDestroy(nvJitLinkHandle *handle);
    int nvJitLinkAddData(nvJitLinkHandle handle, int kind, const void *data, size_t size, const char *name);
    int nvJitLinkComplete(nvJitLinkHandle handle);
    int nvJitLinkGetLinkedCubinSize(nvJitLinkHandle handle, size_t *size);
    int nvJitLinkGetLinkedCubin(nvJitLinkHandle handle, void *cubin);
    int nvJitLinkGetLinkedPtxSize(nvJitLinkHandle handle, size_t *size);
    int nvJitLinkGetLinkedPtx(nvJitLinkHandle handle, char *ptx);
    int nvJitLinkGetInfoLogSize(nvJitLinkHandle handle, size_t *size);
    int nvJitLinkGetInfoLog(nvJitLinkHandle handle, char *log);
    int nvJitLinkGetErrorLogSize(nvJitLinkHandle handle, size_t *size);
    int nvJitLinkGetErrorLog(nvJitLinkHandle handle, char *log);
""")

LTOIR = 3  # NVJITLINK_INPUT_LTOIR
NAME = "nvJitLink_130_0.dll" if sys.platform == "win32" else "libnvJitLink.so.13"
# Folders of NVIDIA's wheel, in site-packages, and of a toolkit, in CUDA_HOME or CUDA_PATH.
WHEEL = ("cu13", "bin" if sys.platform == "win32" else "lib")
TOOLKIT = ("bin/x64", "bin") if sys.platform == "win32" else ("lib64", "lib")
# nvJitLinkResult: NVJITLINK_ERROR_...
ERRORS = (
    "SUCCESS", "UNRECOGNIZED_OPTION", "MISSING_ARCH", "INVALID_INPUT", "PTX_COMPILE", "NVVM_COMPILE", "INTERNAL",
    "THREADPOOL", "UNRECOGNIZED_INPUT", "FINALIZE", "NULL_INPUT", "INCOMPATIBLE_OPTIONS", "INCORRECT_INPUT_TYPE",
    "ARCH_MISMATCH", "OUTDATED_LIBRARY", "MISSING_FATBIN", "UNRECOGNIZED_ARCH", "UNSUPPORTED_ARCH", "LTO_NOT_ENABLED",
)  # fmt: skip


class LinkError(RuntimeError):
    """A call of nvJitLink failed, or CUDA 13's is not installed."""


def _paths() -> Iterator[str]:
    """Paths to try: NVIDIA's wheel, a toolkit, and last the name alone, which the system's loader may find."""
    spec = importlib.util.find_spec("nvidia")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        yield str(Path(folder, *WHEEL, NAME))
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        if home := os.environ.get(variable):
            yield from (str(Path(home, folder, NAME)) for folder in TOOLKIT)
    yield NAME


@cache
def find() -> str | None:
    """Return the path of the library, or its name if the system's loader finds it; None if there is none."""
    return next((path for path in _paths() if _opened(path) is not None), None)


@cache
def _opened(path: str) -> Any:
    # Bound to itself first: functions that it calls must not be those of another version in the process.
    flags = ffi.RTLD_NOW | ffi.RTLD_LOCAL | getattr(os, "RTLD_DEEPBIND", 0)
    try:
        return ffi.dlopen(path, flags)
    except OSError:
        return None


def library() -> Any:
    """Return the opened library; LinkError if there is none."""
    path = find()
    if path is None:
        raise LinkError(f"there is no {NAME} here")
    return _opened(path)


def version() -> tuple[int, int]:
    """Return the version of the library."""
    major, minor = ffi.new("unsigned int *"), ffi.new("unsigned int *")
    _check(library().nvJitLinkVersion(major, minor), "asking for its version")
    return int(major[0]), int(minor[0])


def link(code: bytes, name: str, options: list[str], output: str) -> tuple[bytes, str]:
    """Link LTO-IR into `output`, "cubin" or "ptx"; return that and the linker's report.

    Raises:
        LinkError: the linker refused, with its own words.
    """
    lib, handle = library(), ffi.new("nvJitLinkHandle *")
    texts = [ffi.new("char[]", option.encode()) for option in options]
    _check(lib.nvJitLinkCreate(handle, len(texts), ffi.new("char *[]", texts)), f"options {' '.join(options)}")
    try:
        source = ffi.from_buffer(code)
        _check(lib.nvJitLinkAddData(handle[0], LTOIR, source, len(code), name.encode()), f"reading {name}", handle[0])
        _check(lib.nvJitLinkComplete(handle[0]), f"linking {name}", handle[0])
        made = "Cubin" if output == "cubin" else "Ptx"
        linked = _read(handle[0], f"Linked{made}")
        return linked, _read(handle[0], "InfoLog").decode(errors="replace")
    finally:
        lib.nvJitLinkDestroy(handle)


def _read(handle: Any, what: str) -> bytes:
    """Return a result of the linker: LinkedCubin, LinkedPtx, InfoLog or ErrorLog."""
    lib, size = library(), ffi.new("size_t *")
    _check(getattr(lib, f"nvJitLinkGet{what}Size")(handle, size), f"asking for {what}")
    room = ffi.new("char[]", max(size[0], 1))
    _check(getattr(lib, f"nvJitLinkGet{what}")(handle, room), f"asking for {what}")
    return bytes(ffi.buffer(room, size[0]))


def _check(code: int, doing: str, handle: Any = None) -> None:
    if not code:
        return
    log = "" if handle is None else _read(handle, "ErrorLog").decode(errors="replace").strip("\0\n ")
    error = ERRORS[code] if 0 < code < len(ERRORS) else f"error {code}"
    reason = f"nvJitLink: {error} while {doing}"
    raise LinkError(f"{reason}: {log}" if log else reason)
