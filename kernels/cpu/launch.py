"""Who runs a kernel: how many threads, which threads, and when none but the caller's.

Work is cut into pieces by its shape, never by the number of threads, and piece i goes to rank i mod ranks: results are
the same bits for any number of threads. A phase is a kernel(work, step, rank, ranks) that does the pieces of one rank.

- `parallel` runs one phase on Numba's threading layer: a few microseconds, for calls on arrays.
- `team` runs one long kernel on threads of its own that meet at barriers: for epochs. Between two phases lies a barrier
  of 0.2 us instead of a launch of 2 us or more. It needs no threading layer, so it works after a fork, and from any
  number of Python threads at once.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numba
from numba import prange, types
from numba.core import config
from numba.np.ufunc import parallel as numba_parallel

from .compile import INTERPRETED, Kernel
from .primitives import call_phase

log = logging.getLogger("fastopt")

# Below these a second thread costs more than it brings (measured on 2 cores: an update of 32 k float32 values takes
# 12 us, a launch 2 to 5 us).
UPDATE_ELEMENTS = 32_768
FLOPS = 1_000_000

_threads: int | None = None


def _available() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def get_num_threads() -> int:
    """How many threads a kernel may use: `set_num_threads`, else FASTOPT_NUM_THREADS, else the processors available."""
    if _threads is not None:
        return _threads
    chosen = os.environ.get("FASTOPT_NUM_THREADS")
    if not chosen:
        return _available()
    if not chosen.isdigit() or int(chosen) < 1:
        raise ValueError(f"FASTOPT_NUM_THREADS must be an integer of at least 1, got {chosen!r}")
    return int(chosen)


def set_num_threads(n: int) -> None:
    """Let kernels use up to n threads; NumPy's, torch's and Numba's own settings stay as they are."""
    global _threads
    if isinstance(n, bool) or not isinstance(n, int):
        raise TypeError(f"the number of threads must be an int, got {type(n).__name__}")
    if n < 1:
        raise ValueError(f"the number of threads must be at least 1, got {n}")
    _threads = n


def ranks_for(work: float, worth: float, pieces: int) -> int:
    """The number of ranks for an amount of work of which `worth` deserves a thread, in so many pieces."""
    return max(1, min(get_num_threads(), int(work // worth), pieces))


# ---------------------------------------------------------------- Numba's threading layer
def _prefer_tbb() -> None:
    """Open the TBB that pip installed, where Numba does not look for it: it is the only layer safe in every way."""
    import ctypes

    names = {"win32": "Library/bin/tbb12.dll", "darwin": "lib/libtbb.12.dylib"}
    library = Path(sys.prefix) / names.get(sys.platform, "lib/libtbb.so.12")
    if library.exists():
        try:
            ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
        except OSError as error:
            log.debug("TBB at %s could not be opened: %s", library, error)


@cache
def threading_layer() -> str:
    """Numba's threading layer, started if need be: "tbb", "omp", "workqueue", or "none" where none can be started."""
    if INTERPRETED:
        return "none"
    if not numba_parallel._is_initialized and config.THREADING_LAYER.lower() not in ("omp", "workqueue"):
        _prefer_tbb()
    try:
        numba_parallel._launch_threads()
        return str(numba.threading_layer())
    except (ValueError, ImportError) as error:  # the layer asked for is not installed
        log.warning("no threading layer, so kernels on arrays run on one thread: %s", error)
        return "none"


class _Fork:
    happened = False  # after the threading layer was started


def _after_fork() -> None:
    _Fork.happened = _Fork.happened or threading_layer.cache_info().currsize > 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _can_launch() -> bool:
    """TBB can always be used. OpenMP ends a forked process that uses it again. Workqueue ends the process if two
    threads launch at once, and another thread may be launching a Numba function of the user's."""
    layer = threading_layer()
    return layer == "tbb" or (layer == "omp" and not _Fork.happened)


def _launch(code, work, step, ranks):
    for rank in prange(ranks):
        call_phase(code, work, step, rank, ranks)


LAUNCH = Kernel(_launch, "launch", parallel=True)


def parallel(kernel: Kernel, work: int, step: int, ranks: int) -> None:
    """Run all ranks of a phase that has no barrier inside."""
    if ranks == 1 or INTERPRETED or not _can_launch():
        kernel(work, step, 0, 1)
        return
    before = numba.get_num_threads()
    wanted = min(ranks, config.NUMBA_NUM_THREADS)
    if wanted == before:
        LAUNCH(kernel.address, work, step, ranks)
        return
    numba.set_num_threads(wanted)
    try:
        LAUNCH(kernel.address, work, step, ranks)
    finally:
        numba.set_num_threads(before)


# ---------------------------------------------------------------- teams
@cache
def yield_address() -> int:
    """The C function that gives up the processor; a waiting thread calls it where there are more threads than cores."""
    from .compile import ffi
    from .primitives import python_address

    if INTERPRETED:
        return python_address(lambda: 0)
    if sys.platform == "win32":
        ffi.cdef("int SwitchToThread(void);")
        function = ffi.dlopen("kernel32.dll").SwitchToThread
    else:
        ffi.cdef("int sched_yield(void);")
        function = ffi.dlopen(None).sched_yield
    return int(ffi.cast("intptr_t", function))


def team(
    kernel: Kernel,
    work: int,
    ranks: int,
    watch: Callable[[], None] | None = None,
    stop: Callable[[], None] | None = None,
) -> None:
    """Run kernel(work, 0, rank, ranks) for every rank at the same time.

    With `watch` all ranks run on threads of their own and the calling thread calls watch() some twenty times a second;
    if it is interrupted, it calls stop() and waits for the kernel to end.
    """
    if watch is None and ranks == 1:
        kernel(work, 0, 0, 1)
        return
    _ = kernel.address  # compiled here, not in a rank
    gate, size = threading.Event(), [1]

    def body(rank: int) -> None:
        gate.wait()
        kernel(work, 0, rank, size[0])

    first = 0 if watch else 1
    threads = []
    for rank in range(first, ranks):
        thread = threading.Thread(target=body, args=(rank,), name=f"fastopt-{rank}", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # the system grants no further thread: the team is smaller, its results the same
            log.debug("a team of %d instead of %d: %s", first + len(threads), ranks, error)
            break
        threads.append(thread)
    if watch and not threads:
        kernel(work, 0, 0, 1)
        return
    size[0] = (0 if watch else 1) + len(threads)
    gate.set()
    try:
        if watch is None:
            kernel(work, 0, 0, size[0])
        for thread in threads:
            while thread.is_alive():
                thread.join(0.05)
                if watch:
                    watch()
    except BaseException:
        if stop:
            stop()
        for thread in threads:
            thread.join()
        raise
