"""The loop that runs a program's phases, batch after batch, on all ranks; and its twin that marks when each was done.

The twin is a kernel of its own, so a run that nobody profiles has no code for marks. It reads the clock after each
phase and each meeting, at 20 to 80 ns, and writes to memory of its rank's own: 1.4 us for a step of 16 phases.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from ...profile import Cost, Pass, recorder
from ..runtime.compile import Kernel, ffi
from ..runtime.primitives import (
    INTERPRETED,
    address_of,
    atomic_add,
    atomic_load,
    call_clock,
    call_int,
    call_phase,
    python_address,
    relax,
    view,
)
from ..runtime.records import RUN, offset, read

SPINS = 400  # looks at the barrier before the processor is given up, some 10 us
MARK = 16  # bytes: two words, whatever the clock writes there
MARKS = 1 << 26  # bytes of memory for the marks of a pass; steps beyond that are run without

# The clock of time.perf_counter: clock_gettime(CLOCK, address) or, on Windows, QueryPerformanceCounter(address).
WINDOWS = sys.platform == "win32" and not INTERPRETED
CLOCK = int(getattr(time, "CLOCK_UPTIME_RAW", getattr(time, "CLOCK_MONOTONIC", 0)))
ARRIVALS = offset(RUN, "arrivals")


def _run_program(marked):
    def run_program(work, step, rank, num_ranks):
        run = read(work, RUN)
        phases = view(run.phases, run.num_phases * 3, np.int64)
        meetings = 0
        for batch in range(run.num_batches):
            if marked:
                mark = run.marks + (rank * run.num_marked + batch) * (1 + 2 * run.num_phases) * MARK
                marks = batch < run.num_marked
                if marks:
                    # A C function finds its arguments in registers; QueryPerformanceCounter overlooks the second.
                    call_clock(run.clock, mark if WINDOWS else CLOCK, mark)
            for i in range(run.num_phases):
                call_phase(phases[3 * i], phases[3 * i + 1], batch, rank, num_ranks)
                if marked and marks:
                    mark += MARK
                    call_clock(run.clock, mark if WINDOWS else CLOCK, mark)
                if phases[3 * i + 2] and num_ranks > 1:
                    # Arrivals are counted and never reset: at meeting k everybody waits for the (k ranks)-th.
                    meetings += 1
                    atomic_add(work + ARRIVALS, 1)
                    looks = 0
                    while atomic_load(work + ARRIVALS) < meetings * num_ranks:
                        looks += 1
                        if looks < SPINS:
                            relax()
                        else:
                            call_int(run.yield_cpu)
                    if marked and marks:
                        mark += MARK
                        call_clock(run.clock, mark if WINDOWS else CLOCK, mark)
                elif marked and marks:
                    done, left = view(mark, 2, np.int64), view(mark + MARK, 2, np.int64)
                    left[0], left[1] = done[0], done[1]
                    mark += MARK
            if run.halt:
                break

    return run_program


def _finish(work, step, rank, num_ranks):
    if rank == 0:
        run = read(work, RUN)
        run.done = step + 1
        run.halt = run.stop


FINISH = Kernel(_finish, "finish")
RUN_PROGRAM = Kernel(_run_program(False), "run_program")
MARKED_PROGRAM = Kernel(_run_program(True), "run_program_marked")


class _Clock(NamedTuple):
    address: int
    frequency: int  # of the first of the two words it writes; the second, if it is used, has nanoseconds

    def nanoseconds(self, words: np.ndarray) -> np.ndarray:
        """Of words (..., 2)."""
        seconds, rest = np.divmod(words[..., 0], self.frequency)
        return seconds * 10**9 + rest * 10**9 // self.frequency + words[..., 1]


@cache
def _clock() -> _Clock:
    if INTERPRETED:

        def now(which: int, address: int) -> int:
            words = view(address, 2, np.int64)
            words[0], words[1] = divmod(time.perf_counter_ns(), 10**9)
            return 0

        return _Clock(python_address(now), 1)
    if WINDOWS:
        ffi.cdef("int QueryPerformanceCounter(int64_t *); int QueryPerformanceFrequency(int64_t *);")
        library, frequency = ffi.dlopen("kernel32.dll"), ffi.new("int64_t *")
        library.QueryPerformanceFrequency(frequency)
        return _Clock(int(ffi.cast("intptr_t", library.QueryPerformanceCounter)), frequency[0])
    ffi.cdef("int clock_gettime(int, int64_t *);")
    return _Clock(int(ffi.cast("intptr_t", ffi.dlopen(None).clock_gettime)), 1)


@contextmanager
def marking(verb: str, dtype: str, run: Any, costs: Sequence[Cost], num_ranks: int) -> Iterator[Kernel]:
    """The kernel to run a filled record RUN with; where somebody wants to know, one that marks, and then tells them."""
    listener = recorder.get()
    if listener is None:
        yield RUN_PROGRAM
        return
    slots, clock = 1 + 2 * len(costs), _clock()
    steps = int(min(run["num_batches"], max(1, MARKS // (num_ranks * slots * MARK))))
    words = np.zeros((num_ranks, steps, slots, 2), np.int64)
    run["marks"], run["num_marked"], run["clock"] = address_of(words), steps, clock.address
    _ = MARKED_PROGRAM.address  # compiled before the pass begins
    start = time.perf_counter_ns()
    try:
        yield MARKED_PROGRAM
    finally:
        end, done = time.perf_counter_ns(), int(run["done"])
        at_work = words[:, :1].any(axis=(1, 2, 3))  # a team may be smaller than asked for
        marks = clock.nanoseconds(words[at_work, :done])
        rows = min(int(run["num_rows"]), done * int(run["batch_size"]))
        listener.record(Pass(verb, dtype, tuple(costs), int(run["batch_size"]), rows, done, start, end, marks))
