"""Threads of a fit: all that kernels may use, or one where others train at the same time."""

from __future__ import annotations

import multiprocessing
import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from joblib.parallel import effective_n_jobs, get_active_backend

from .. import _backends
from .._validation import check_count


def share() -> int | None:
    """Return the threads that a fit within joblib's call is to use; None: all.

    A process of joblib's or Dask's pools goes by OMP_NUM_THREADS, where they say it: the processors over the jobs. A
    thread of joblib's uses no other, as it cannot tell how many beside it train.
    """
    said = os.environ.get("OMP_NUM_THREADS", "") if multiprocessing.parent_process() else ""
    if said.isdecimal() and int(said) > 0:
        return int(said)
    return 1 if getattr(get_active_backend()[0], "nesting_level", 0) else None


def on_threads(threads: Any, jobs: int | None = None) -> AbstractContextManager[None]:
    """While open, kernels of this thread use at most so many threads; None: joblib's `jobs`, or what `share` says."""
    most = share() if threads is None else check_count("threads", threads)
    if jobs is not None:
        most = effective_n_jobs(jobs)
    return nullcontext() if most is None else _backends.get("cpu").on_threads(most)
