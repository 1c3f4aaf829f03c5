"""Launches of kernels: the number of threads, and whose threads they are.

Work is cut into pieces by its shape, never by the number of threads, so results are the same bits for any number. A
phase is a kernel(work, step, rank, num_ranks) that does the pieces of one rank.

`parallel` runs one phase on torch's OpenMP threads, where torch is, or on Numba's threading layer: a few microseconds,
for calls on arrays. `teams` has launches for passes over data.
"""

from __future__ import annotations

import importlib
import logging
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from . import openmp
from .compile import Kernel, lock
from .primitives import INTERPRETED, enter

log = logging.getLogger("fastopt")

# Work that is worth a thread: with less than twice as much, a second thread costs more than it saves. Measured on 2
# cores: an update of 32 k float32 values takes 12 us, a launch 2 to 5 us. A training step has a dozen barriers, and its
# results go from cache to cache: two threads reach 0.9 of one's speed with 5 MFLOP a step, 1.2 with 10.
UPDATE_ELEMENTS = 32_768
CALL_FLOPS = 1_000_000
STEP_FLOPS = 4_000_000

_threads: int | None = None
_own = threading.local()  # `most`: threads that the kernels of a thread may use, where it has a limit of its own
Limit = Callable[[], int] | None  # the most threads by the setting of another library, such as torch's


def _available() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def get_num_threads() -> int:
    """Threads that a kernel may use: `set_num_threads`, else FASTOPT_NUM_THREADS, else the processors available."""
    most = getattr(_own, "most", None)
    if most == 1:
        return 1
    found = _threads or _chosen() or _available()
    return found if most is None else min(found, most)


def _chosen() -> int | None:
    chosen = os.environ.get("FASTOPT_NUM_THREADS")
    if not chosen:
        return None
    if not chosen.isdecimal() or int(chosen) < 1:
        raise ValueError(f"FASTOPT_NUM_THREADS must be an integer of at least 1; got {chosen!r}")
    return int(chosen)


def set_num_threads(n: int) -> None:
    """Let kernels use up to n threads; NumPy's, torch's and Numba's own settings stay as they are."""
    global _threads
    if isinstance(n, bool) or not isinstance(n, int):
        raise TypeError(f"the number of threads must be an int; got {type(n).__name__}")
    if n < 1:
        raise ValueError(f"the number of threads must be at least 1; got {n}")
    _threads = n


@contextmanager
def on_threads(most: int) -> Iterator[None]:
    """While open, kernels that this thread calls use at most so many threads."""
    before = getattr(_own, "most", None)
    _own.most = most if before is None else min(before, most)
    try:
        yield
    finally:
        _own.most = before


def on_one_thread() -> AbstractContextManager[None]:
    """While open, kernels that this thread calls use no other thread: others train models of their own meanwhile."""
    return on_threads(1)


def num_threads_for(work: float, work_per_thread: float, num_pieces: int, limit: Limit = None) -> int:
    """Threads to use: one for each `work_per_thread` of the work, at most one for each piece."""
    most = min(int(work // work_per_thread), num_pieces)
    if most > 1 and limit is not None:
        most = min(most, limit())
    return min(get_num_threads(), most) if most > 1 else 1  # asking costs 2 us


# ---------------------------------------------------------------- Numba's threading layer
prange: Any = range  # Numba's, once its layer is started: importing it takes longer than many a training


def _layer_started() -> bool:
    """True if anyone has started Numba's layer in this process."""
    return bool(getattr(sys.modules.get("numba.np.ufunc.parallel"), "_is_initialized", False))


def _prefer_tbb() -> None:
    """Open the TBB that pip installed, which Numba does not find: it is the only layer that is safe in every way."""
    import ctypes

    names = {"win32": "Library/bin/tbb12.dll", "darwin": "lib/libtbb.12.dylib"}
    library = Path(sys.prefix) / names.get(sys.platform, "lib/libtbb.so.12")
    if library.exists():
        try:
            ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
        except OSError as error:
            log.debug("TBB at %s could not be opened: %s", library, error)


def _has_tbb() -> bool:
    try:
        importlib.import_module("numba.np.ufunc.tbbpool")
    except ImportError:
        return False
    return True


@cache
def threading_layer() -> str:
    """Numba's threading layer, started if need be: "tbb", "omp", "workqueue", or "none" if none can be started."""
    if INTERPRETED:
        return "none"
    with lock:  # no fork meanwhile
        return _start_layer()


def _start_layer() -> str:
    global prange

    import numba
    from numba.core import config
    from numba.np.ufunc import parallel as numba_parallel

    prange = numba.prange
    tbb = config.THREADING_LAYER.lower() not in ("omp", "workqueue")
    if not numba_parallel._is_initialized and tbb:
        _prefer_tbb()
        tbb = _has_tbb()
    try:
        if tbb:  # it takes the thread that starts it for its main thread
            numba_parallel._launch_threads()
        else:  # Numba would set the calling thread's number of OpenMP threads, which may be torch's, too
            with ThreadPoolExecutor(1) as pool:
                pool.submit(numba_parallel._launch_threads).result()
        return str(numba.threading_layer())
    except (ValueError, ImportError) as error:  # the layer asked for is not installed
        log.warning("no threading layer, so kernels on arrays run on one thread: %s", error)
        return "none"


class _Fork:
    """State of a process forked off one whose threading layer was started: it does without the layer.

    OpenMP would end it at its next launch. TBB survives a fork if the forking thread is the one that started the layer;
    otherwise the child's next launch may hang (1 of 15 did, beside two threads that launched all the time).
    """

    # in a child of multiprocessing, the parent may have started the layer before this module was imported
    happened = _layer_started() and multiprocessing.parent_process() is not None

    @classmethod
    def after(cls) -> None:
        cls.happened = cls.happened or _layer_started()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_Fork.after)


def _can_launch() -> bool:
    """True if Numba's layer is safe: workqueue ends the process if two threads launch, and one may be the user's."""
    return not _Fork.happened and threading_layer() in ("tbb", "omp")


def _launch(code, work, step, num_ranks):
    for rank in prange(num_ranks):
        enter(code, work, step, rank, num_ranks)


LAUNCH = Kernel(_launch, "launch", layer=threading_layer)


def _on_layer(kernel: Kernel, work: int, step: int, num_ranks: int) -> None:
    import numba
    from numba.core import config

    before = numba.get_num_threads()
    num_threads = min(num_ranks, config.NUMBA_NUM_THREADS)
    if num_threads == before:
        LAUNCH(kernel.address, work, step, num_ranks)
        return
    try:
        numba.set_num_threads(num_threads)
        LAUNCH(kernel.address, work, step, num_ranks)
    finally:
        numba.set_num_threads(before)


# ---------------------------------------------------------------- calls on arrays
def parallel(kernel: Kernel, work: int, step: int, num_ranks: int) -> None:
    """Run all ranks of a phase that has no barrier inside."""
    if num_ranks == 1 or INTERPRETED:
        kernel.run(work, step, 0, 1)
        return
    torch = openmp.torch_threads()
    if torch is not None and torch.threads >= num_ranks:
        torch.run(kernel, work, step, num_ranks)
    elif _can_launch():
        _on_layer(kernel, work, step, num_ranks)
    else:
        kernel(work, step, 0, 1)


def launcher() -> str:
    """Threads that `parallel` uses now: "torch" (its OpenMP), "tbb" or "omp" (Numba's layer), "none" (the caller)."""
    torch = None if INTERPRETED else openmp.torch_threads()
    if torch is not None and torch.threads > 1:
        return "torch"
    return threading_layer() if _can_launch() else "none"
