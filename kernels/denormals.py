"""Flushing of denormal numbers to zero: the floating-point setting under which kernels calculate, and NumPy for them.

Processors are slow on numbers below the smallest normal one: an Adam step of 4 M float32 took 1.3 ms on Intel, and 25
to 38 ms where squares of gradients were denormal. So operands and results below it count as zero, with their sign (FTZ
and DAZ of x86's MXCSR, FZ of aarch64's FPCR). The setting belongs to a thread: `enter` in `cpu/runtime/primitives.py`
makes it when compiled code starts on a thread, and restores the thread's own at the end.

`flushed` does the same for NumPy, which obeys the setting of its thread: for the reference, whose bits are those of the
compiled kernels, and for interpreted kernels. It calls the C library's fegetenv and fesetenv, and needs no compiler.
"""

from __future__ import annotations

import ctypes
import functools
import platform
import sys
from collections.abc import Callable
from typing import Any, NamedTuple, ParamSpec, TypeVar

import numpy as np

P = ParamSpec("P")
R = TypeVar("R")

MACHINE = platform.machine().lower()
X86, ARM = ("x86_64", "amd64"), ("aarch64", "arm64")
# The bits of the control register: FTZ and DAZ, or FZ; on other processors nothing is flushed.
FLUSH = 0x8040 if MACHINE in X86 else 1 << 24 if MACHINE in ARM else 0

# Computed while nothing is flushed: NumPy caches what it computes of a dtype, such as its smallest denormal number.
SMALLEST = {np.dtype(name): np.finfo(name).tiny for name in ("float32", "float64")}


class _Setting(NamedTuple):
    """Functions of the C library for the setting of the calling thread."""

    read: Callable[[], tuple[Any, Any]]  # the setting, and the same with denormals flushed
    write: Callable[[Any], object]  # a C function: no signal handler runs between its call and its effect


def _of_fenv(words: int, control: int) -> _Setting:
    """The setting by fegetenv and fesetenv; the control register is word `control` of their structure."""
    library = ctypes.PyDLL(None)
    get, put, kind = library.fegetenv, library.fesetenv, ctypes.c_uint32 * words

    def read() -> tuple[Any, Any]:
        now, flushing = kind(), kind()
        get(now)
        get(flushing)
        flushing[control] |= FLUSH
        return now, flushing

    return _Setting(read, put)


def _of_windows() -> _Setting:
    """The setting by _controlfp, whose denormal control is both bits of x86."""
    mask, flush = 0x03000000, 0x01000000
    control = ctypes.CDLL("ucrtbase").__getattr__("_controlfp")
    return _Setting(lambda: (control(0, 0) & mask, flush), lambda value: control(value, mask))


# Words of the C library's structure, and the index of the control register among them: glibc and musl, macOS.
_LAYOUTS = {
    ("linux", X86): (8, 7),
    ("linux", ARM): (2, 0),
    ("darwin", X86): (4, 1),
    ("darwin", ARM): (4, 2),
}


@np.errstate(all="ignore")
def _flushes(setting: _Setting) -> bool:
    """True if NumPy flushes operands and results under the setting, and works as before afterwards."""
    smallest = np.full(8, SMALLEST[np.dtype(np.float32)])
    denormal = np.full(8, 1 << 20, np.uint32).view(np.float32)
    before, flushing = setting.read()
    found = []
    try:
        for state in (before, flushing, before):
            setting.write(state)
            results = smallest * np.float32(0.5), denormal * np.float32(2.0**100)
            found.append([bool(result.view(np.uint32).any()) for result in results])
    finally:
        setting.write(before)
    return found[1] == [False, False] and found[0] == found[2]


@functools.cache
def setting() -> _Setting | None:
    """The functions for the calling thread's setting; None where they do not work."""
    try:
        if sys.platform == "win32":
            made = _of_windows()
        else:
            made = next(_of_fenv(*layout) for (system, kind), layout in _LAYOUTS.items()
                        if sys.platform.startswith(system) and MACHINE in kind)  # fmt: skip
        return made if _flushes(made) else None
    except (StopIteration, OSError, AttributeError):
        return None


def flushed(function: Callable[P, R]) -> Callable[P, R]:
    """Decorator: denormals are flushed in the calling thread while the function runs.

    The function must not call code of the user's. Where the setting cannot be changed, it runs without.

    >>> @flushed
    ... def halve(x):
    ...     return x * np.float32(0.5)
    >>> smallest = np.array([np.finfo(np.float32).tiny])
    >>> halve(smallest).tolist(), (smallest * np.float32(0.5) > 0).tolist()
    ([0.0], [True])
    """

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        made = setting()
        if made is None:
            return function(*args, **kwargs)
        write = made.write
        before, flushing = made.read()
        try:  # an interrupt may come after any call, so the first that changes something is inside
            write(flushing)
            return function(*args, **kwargs)
        finally:
            write(before)

    return run
