"""Launches on the OpenMP threads of torch, in a process that has them.

When torch is done with its work, its OpenMP threads look for more for some milliseconds, on the cores where threads of
another pool are to run. In a loop of forward, backward and step the step of an MLP took 328 us on threads of TBB and
208 us on those, which are awake and have the cores. So where torch is, ranks run on its threads.

torch's pool is that of GNU's libgomp, and `GOMP_parallel` is what a compiler makes of `#pragma omp parallel`: it calls
a function on every thread of a team. Each thread of Python's that launches has a pool of its own, as with torch. The
library is the one that the dynamic linker gives to whoever asks for that name, as it did to torch; a second libgomp
beside it would be a second pool, and ten times slower. It has to be libgomp: other libraries have the same name for a
pool that nobody has tried, and then, as on other systems, launches are Numba's threading layer's.
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
from numba.core import config

from .compile import Kernel, ffi
from .primitives import INTERPRETED, call_int, enter, view

LINUX = sys.platform.startswith("linux")
FORKED = 0x40  # PF_FORKNOEXEC among the flags of a process in Linux

# Record that a team is given: addresses of omp_get_thread_num and omp_get_num_threads, the phase with its arguments.
FIELDS = 6


def _body(record):
    # Run by every thread of the team, which may be smaller than was asked for, or larger than there are ranks.
    r = view(record, FIELDS, np.int64)
    rank, size = call_int(r[0]), call_int(r[1])
    while rank < r[5]:
        enter(r[2], r[3], r[4], rank, r[5])
        rank += size


BODY = Kernel(_body, "openmp_body")


class _Fork:
    """Tells a process that was forked off one that had torch: the pool's threads are not in it, and a launch that waits
    for them would hang. It does without the pool, for nobody can tell whether torch had started it."""

    happened = False

    @classmethod
    def after(cls) -> None:
        cls.happened = cls.happened or "torch" in sys.modules


def _forked_before() -> bool:
    """True if this process is a fork that nobody has told of: torch may have been loaded, and at work, before it."""
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


# Declared here, once: threads that declared it one after the other would each have a structure of their own.
linker = cffi.FFI()
linker.cdef("""
    typedef struct { const char *path; void *base; const char *symbol; void *address; } dl_info;
    void *dlsym(void *, const char *);
    int dladdr(const void *, dl_info *);
""")


class _Library(NamedTuple):
    """libgomp, as far as it is needed."""

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


class Pool(NamedTuple):
    """torch's threads."""

    library: _Library
    threads: int  # of a team of torch's; a smaller one would end threads that torch must start again

    def run(self, kernel: Kernel, work: int, step: int, num_ranks: int) -> None:
        """Run all ranks of a phase."""
        library = self.library
        record = ffi.new("int64_t[6]", (library.thread_num, library.num_threads, kernel.address, work, step, num_ranks))
        library.start(BODY.address, record, self.threads, 0)


def wanted() -> bool:
    """True if ranks are to run on torch's threads where torch is: not after a fork, nor where the user has chosen one
    of Numba's threading layers."""
    return LINUX and not INTERPRETED and not _Fork.happened and config.THREADING_LAYER.lower() == "default"


def pool() -> Pool | None:
    """torch's threads, where there are some and launches may use them; else None."""
    count = getattr(sys.modules.get("torch"), "get_num_threads", None)  # not there while torch is being imported
    if count is None or not wanted():
        return None
    library = _find()
    return Pool(library, count()) if library else None
