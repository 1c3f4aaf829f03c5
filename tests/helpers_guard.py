"""Arrays that lie flush against memory that nobody may touch, so that a kernel that leaves its array is ended at once.

    with guarded_memory("end"):
        p = np.ones(1001, "float32")  # the byte behind its last element is on an inaccessible page

NumPy asks a handler for the memory of arrays (NEP 49); this one maps pages of their own for each of them, between two
that can neither be read nor written. All arrays that are made meanwhile lie there: those of a test, and the records,
copies and workspaces that the library makes for itself. A read or a write beyond an array is a SIGSEGV, so it is done
in a process of its own.

Alignment: at the end an array starts wherever its size puts it. One of an odd number of elements is aligned to its
elements and to nothing larger, so that what takes whole vectors for aligned shows, too. At the start it is aligned to a
page. Memory that is not asked to be zero is full of ones (NaN, -1): what is used before it is written shows in results.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import mmap
import sys
from collections.abc import Callable, Iterator
from functools import cache, wraps
from typing import Any
from unittest import mock

import numpy as np

from fastopt.kernels import reference

SUPPORTED = sys.platform == "linux" and sys.implementation.name == "cpython"
UNINITIALISED = 0xFF

_SET_HANDLER = 304  # the place of PyDataMem_SetHandler in NumPy's C API, the same in every version from 1.22 on
_MALLOC = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
_CALLOC = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t)
_REALLOC = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
_FREE = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)


class _Handler(ctypes.Structure):
    """PyDataMem_Handler of numpy/ndarraytypes.h."""

    _fields_ = (
        ("name", ctypes.c_char * 127),
        ("version", ctypes.c_uint8),
        ("context", ctypes.c_void_p),
        ("malloc", _MALLOC),
        ("calloc", _CALLOC),
        ("realloc", _REALLOC),
        ("free", _FREE),
    )


class _Pages:
    """Pieces of memory that end, or start, at an inaccessible page; there is one on either side of each."""

    def __init__(self, at_end: bool) -> None:
        self.at_end = at_end
        self.pieces: dict[int, tuple[int, int, int]] = {}  # address -> mapping, its length, bytes that are in use
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.libc.mmap.restype = ctypes.c_void_p
        self.libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
        self.libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        self.libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]

    def allocate(self, size: int, fill: int) -> int | None:
        room = -(-max(size, 1) // mmap.PAGESIZE) * mmap.PAGESIZE
        length = room + 2 * mmap.PAGESIZE
        mapping = self.libc.mmap(None, length, 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
        if mapping in (None, ctypes.c_void_p(-1).value):
            return None  # which NumPy makes a MemoryError
        if self.libc.mprotect(mapping + mmap.PAGESIZE, room, mmap.PROT_READ | mmap.PROT_WRITE):
            self.libc.munmap(mapping, length)
            return None
        # NumPy asks a byte for an array without elements, and takes it for misaligned where it is the page's last.
        used = room if not self.at_end else max(size, 16 if size <= 1 else size)
        address = int(mapping + mmap.PAGESIZE + room - used)
        self.pieces[address] = mapping, length, size
        if fill:
            ctypes.memset(address, fill, size)
        return address

    def release(self, address: int | None) -> None:
        if address:
            mapping, length, _ = self.pieces.pop(address)
            self.libc.munmap(mapping, length)  # what is used later is a SIGSEGV, too

    def move(self, address: int | None, size: int) -> int | None:
        moved = self.allocate(size, UNINITIALISED)
        if moved and address:
            ctypes.memmove(moved, address, min(size, self.pieces[address][2]))
            self.release(address)
        return moved


def _capsule(at_end: bool) -> Any:
    """NumPy's handler for one side."""
    pages = _Pages(at_end)
    handler = _Handler(
        b"guarded", 1, None,
        _MALLOC(lambda context, size: pages.allocate(size, UNINITIALISED)),
        _CALLOC(lambda context, count, size: pages.allocate(count * size, 0)),
        _REALLOC(lambda context, address, size: pages.move(address, size)),
        _FREE(lambda context, address, size: pages.release(address)),
    )  # fmt: skip
    # Never given back: the last arrays are released when nearly all of Python's own is gone.
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(handler))
    new = ctypes.pythonapi.PyCapsule_New
    new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    return new(ctypes.addressof(handler), b"mem_handler", None)


_HANDLERS: dict[str, Any] = {}


@cache
def _setter() -> Callable[[Any], Any]:
    """NumPy's function that sets the handler and returns the one until now."""
    core = sys.modules.get("numpy._core._multiarray_umath") or sys.modules["numpy.core._multiarray_umath"]
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    table = ctypes.cast(pointer(core._ARRAY_API, None), ctypes.POINTER(ctypes.c_void_p))
    return ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.py_object)(table[_SET_HANDLER])


def _set_handler(capsule: Any) -> Any:
    """The handler until now."""
    return _setter()(capsule)


# NumPy's own, which makes dozens of arrays a call: guarding them took two thirds of the time of such tests.
_PLAIN = [
    (reference, ("activate", "dense_backward", "dense_forward", "gradient_norm", "loss", "sum_rows")),
    (reference, ("update", "update_rows")),
    (reference.Network, ("train", "evaluate", "predict")),
    (np.testing, ("assert_allclose", "assert_array_equal")),
]


def _with_handler(function: Callable[..., Any], handler: Any) -> Callable[..., Any]:
    """The function, whose own arrays are in that handler's memory."""

    @wraps(function)
    def run(*args: Any, **options: Any) -> Any:
        before = _set_handler(handler)
        try:
            return function(*args, **options)
        finally:
            _set_handler(before)

    return run


def _flush_zeros(size: int, dtype: Any) -> np.ndarray:
    return np.zeros(size, dtype)


@contextlib.contextmanager
def guarded_memory(side: str) -> Iterator[None]:
    """While open, all memory that this thread makes arrays of lies flush against an inaccessible page on that side.

    But for the arrays that the reference and NumPy's comparisons make for themselves.
    """
    if side not in _HANDLERS:
        _HANDLERS[side] = _capsule({"end": True, "start": False}[side])
    importlib.import_module("fastopt.kernels.cpu")  # all of whose modules are to be there
    modules = [m for name, m in list(sys.modules.items()) if name.startswith("fastopt.kernels.cpu")]
    with contextlib.ExitStack() as stack:
        for module in modules:  # workspaces have room before them, to start on a cache line
            if hasattr(module, "aligned_zeros"):
                stack.enter_context(mock.patch.object(module, "aligned_zeros", _flush_zeros))
        before = _set_handler(_HANDLERS[side])
        stack.callback(_set_handler, before)
        for owner, names in _PLAIN:
            for name in names:
                plain = _with_handler(getattr(owner, name), before)
                stack.enter_context(mock.patch.object(owner, name, plain))
        yield


def guarded(array: np.ndarray, side: str) -> np.ndarray:
    """A copy of an array, C-contiguous, whose last byte (or first, on the side "start") is next to such a page."""
    with guarded_memory(side):
        return np.array(array, order="C")
