"""Launches on the OpenMP threads of torch, in a process that has them.

After torch's own work, its OpenMP threads spin for some milliseconds on the cores where threads of another pool should
run. In a loop of forward, backward and step, the step of an MLP took 328 us on TBB's threads and 208 us on torch's,
which are awake and have the cores. So in a process that has torch, ranks run on its threads.

torch's pool is that of GNU's libgomp. `GOMP_parallel`, to which compilers translate `#pragma omp parallel`, calls a
function on every thread of a team. Each Python thread that launches has a pool of its own, as with torch. The dynamic
linker finds the same library by that name as it found for torch; a second libgomp would be a second pool, and ten times
slower. Only libgomp is used: other libraries have a function of that name that nobody has tried. With those, and on
other systems, Numba's threading layer launches.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import cffi
import numpy as np

from .compile import Kernel, ffi
from .frontend import config
from .primitives import INTERPRETED, call_int, enter, view

LINUX = sys.platform.startswith("linux")
FORKED = 0x40  # PF_FORKNOEXEC among the flags of a process in Linux

# The record of a launch: addresses of omp_get_thread_num and omp_get_num_threads, code, work, step, num_ranks.
FIELDS = 6


def _body(record):
    """Run by every thread of the team, which may be smaller than asked for, or larger than there are ranks."""
    r = view(record, FIELDS, np.int64)
    rank, team_size = call_int(r[0]), call_int(r[1])
    while rank < r[5]:
        enter(r[2], r[3], r[4], rank, r[5])
        rank += team_size


BODY = Kernel(_body, "openmp_body")


class _Fork:
    """State of a process forked off one that had torch: it does without the pool.

    The pool's threads are not in it, and a launch would wait for them for good, if torch had started them.
    """

    happened = False

    @classmethod
    def after(cls) -> None:
        cls.happened = cls.happened or "torch" in sys.modules


def _forked_before() -> bool:
    """True if this process was forked before this module was imported: torch may have started its threads before."""
    if not LINUX or "torch" not in sys.modules:
        return False
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        return bool(int(fields[6]) & FORKED)
    except (OSError, ValueError, IndexError):
        return True


if hasattr(os, "register_at_fork"):
    _Fork.happened = _forked_before()
    os.register_at_fork(after_in_child=_Fork.after)


# Declared once, for all threads: each declaration would make a structure type of its own.
linker = cffi.FFI()
linker.cdef("""
    typedef struct { const char *path; void *base; const char *symbol; void *address; } dl_info;
    void *dlsym(void *, const char *);
    int dladdr(const void *, dl_info *);
""")


class _Library(NamedTuple):
    """The functions of libgomp that are used."""

    path: str
    start: Callable[[int, Any, int, int], None]  # GOMP_parallel(body, record, threads, flags)
    thread_num: int  # addresses
    num_threads: int


@cache
def _find() -> _Library | None:
    """The libgomp of a process that has imported torch; None if its pool is another library's."""
    library, found, paths = linker.dlopen(None), [], set()
    for name in (b"GOMP_parallel", b"omp_get_thread_num", b"omp_get_num_threads"):
        address, info = library.dlsym(ffi.NULL, name), linker.new("dl_info *")  # NULL: RTLD_DEFAULT
        if address == ffi.NULL or not library.dladdr(address, info):
            return None
        found.append(address)
        paths.add(ffi.string(info.path).decode(errors="replace"))
    if len(paths) != 1 or "gomp" not in Path(*paths).name:
        return None
    start = ffi.cast("void(*)(intptr_t, int64_t *, unsigned, unsigned)", found[0])
    thread_num, num_threads = (int(ffi.cast("intptr_t", address)) for address in found[1:])
    return _Library(paths.pop(), start, thread_num, num_threads)


class TorchThreads(NamedTuple):
    """torch's OpenMP threads."""

    library: _Library
    threads: int  # of a team of torch's; a smaller team would end threads that torch must start again

    def run(self, kernel: Kernel, work: int, step: int, num_ranks: int) -> None:
        """Run all ranks of a phase."""
        library = self.library
        record = ffi.new("int64_t[6]", (library.thread_num, library.num_threads, kernel.address, work, step, num_ranks))
        library.start(BODY.address, record, self.threads, 0)


def uses_torch_threads() -> bool:
    """True if ranks run on torch's threads once torch is imported: not after a fork, nor if the user has chosen one of
    Numba's threading layers."""
    layer = getattr(config(), "THREADING_LAYER", "default")
    return LINUX and not INTERPRETED and not _Fork.happened and layer.lower() == "default"


def torch_threads() -> TorchThreads | None:
    """torch's threads, if there are some and launches may use them; else None."""
    get_num_threads = getattr(sys.modules.get("torch"), "get_num_threads", None)  # missing while torch is imported
    if get_num_threads is None or not uses_torch_threads():
        return None
    library = _find()
    return TorchThreads(library, get_num_threads()) if library else None
