"""The compiled loop over a program's phases, batch after batch, on all ranks; and its twin that marks their times.

The twin is a kernel of its own, so that a run without a profiler has no code for marks. It reads the clock after each
phase and each barrier, in 20 to 80 ns, and writes to its rank's own memory: 1.4 us for a step of 16 phases.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from math import isfinite
from typing import Any, NamedTuple

import numpy as np

from ...profile import Cost, Pass, Recorder
from ..runtime.compile import Kernel, ffi
from ..runtime.partition import batch_of_epoch, epoch_of_batch
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
from ..runtime.records import RUN, STOP_BATCH, STOP_EPOCH, offset, read

SPINS = 400  # reads of the barrier before the processor is yielded, some 10 us
MARK = 16  # bytes of a mark: two words, as the clock writes them
MARKS = 1 << 26  # bytes of all marks of a pass; batches beyond have none

# The clock of time.perf_counter: clock_gettime(CLOCK, address) or, on Windows, QueryPerformanceCounter(address).
WINDOWS = sys.platform == "win32" and not INTERPRETED
CLOCK = int(getattr(time, "CLOCK_UPTIME_RAW", getattr(time, "CLOCK_MONOTONIC", 0)))
ARRIVALS = offset(RUN, "arrivals")


def _run_program(marked):
    def run_program(work, step, rank, num_ranks):
        run = read(work, RUN)
        phases = view(run.phases, run.num_phases * 3, np.int64)
        barriers = 0
        for count in range(run.num_epochs * run.num_batches):
            batch = count % run.num_batches
            step = count // run.num_batches * run.epoch_stride + batch
            if marked:
                mark = run.marks + (rank * run.num_marked + count) * (1 + 2 * run.num_phases) * MARK
                marks = count < run.num_marked
                if marks:
                    # arguments of C functions are in registers: QueryPerformanceCounter ignores the second
                    call_clock(run.clock, mark if WINDOWS else CLOCK, mark)
            for i in range(run.num_phases):
                # one phase
                skipped = i < run.epoch_phases and batch > 0
                if not skipped:
                    call_phase(phases[3 * i], phases[3 * i + 1], step, rank, num_ranks)
                if marked and marks:
                    mark += MARK
                    call_clock(run.clock, mark if WINDOWS else CLOCK, mark)
                if phases[3 * i + 2] and num_ranks > 1 and not skipped:
                    # the barrier: arrivals are counted and never reset, so barrier k waits for the (k num_ranks)-th
                    barriers += 1
                    atomic_add(work + ARRIVALS, 1)
                    spins = 0
                    while atomic_load(work + ARRIVALS) < barriers * num_ranks:
                        spins += 1
                        if spins < SPINS:
                            relax()
                        else:
                            call_int(run.yield_cpu)
                    if marked and marks:
                        mark += MARK
                        call_clock(run.clock, mark if WINDOWS else CLOCK, mark)
                elif marked and marks:
                    # no barrier: the rank went on at once
                    done, went_on = view(mark, 2, np.int64), view(mark + MARK, 2, np.int64)
                    went_on[0], went_on[1] = done[0], done[1]
                    mark += MARK
            if run.halt:
                break

    return run_program


def _finish(work, step, rank, num_ranks):
    """The end of a batch: publish it, and read whether to stop, for all ranks alike."""
    if rank == 0:
        run = read(work, RUN)
        halt = run.stop == STOP_BATCH
        run.done = step + 1
        if run.epoch_stride and batch_of_epoch(run, step) == run.num_batches - 1:
            # the end of an epoch: the next batch is the first of the next one
            epoch = epoch_of_batch(run, step)
            first = epoch * run.epoch_stride
            run.done = first + run.epoch_stride
            if run.epoch_ends:
                end = run.epoch_ends + epoch * MARK
                call_clock(run.clock, end if WINDOWS else CLOCK, end)
            if run.judge:
                call_phase(run.judge_code, run.judge, epoch, 0, 1)
            halt = halt or run.stop == STOP_EPOCH
            if run.losses:
                losses, total = view(run.losses + first * 8, run.num_batches, np.float64), 0.0
                for i in range(run.num_batches):
                    total += losses[i]
                halt = halt or not isfinite(total)
        run.halt = 1 if halt else 0


FINISH = Kernel(_finish, "finish")
RUN_PROGRAM = Kernel(_run_program(False), "run_program")
MARKED_PROGRAM = Kernel(_run_program(True), "run_program_marked")


class _Clock(NamedTuple):
    address: int
    frequency: int  # of the first of the two words it writes; the second, if it is used, has nanoseconds

    def nanoseconds(self, words: np.ndarray) -> np.ndarray:
        """Nanoseconds of words (..., 2)."""
        seconds, rest = np.divmod(words[..., 0], self.frequency)
        return seconds * 10**9 + rest * 10**9 // self.frequency + words[..., 1]


@cache
def clock() -> _Clock:
    """The clock of time.perf_counter as code that kernels call."""
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
def marking(
    listener: Recorder, verb: str, dtype: str, run: Any, costs: Sequence[Cost], num_ranks: int, starts: Sequence[int]
) -> Iterator[Kernel]:
    """Context whose value is the kernel that runs a filled record RUN and marks each phase, for the listener.

    starts: those of RUN, (): none.
    """
    slots, now = 1 + 2 * len(costs), clock()
    steps = int(min(run["num_epochs"] * run["num_batches"], max(1, MARKS // (num_ranks * slots * MARK))))
    words = np.zeros((num_ranks, steps, slots, 2), np.int64)
    run["marks"], run["num_marked"], run["clock"] = address_of(words), steps, now.address
    _ = MARKED_PROGRAM.address  # compiled before the pass
    start = time.perf_counter_ns()
    try:
        yield MARKED_PROGRAM
    finally:
        end = time.perf_counter_ns()
        batches, rows, size = int(run["num_batches"]), int(run["num_rows"]), int(run["batch_size"])
        epochs, rest = divmod(int(run["done"]), int(run["epoch_stride"]) or batches or 1)
        done = epochs * batches + rest
        worked = words[:, :1].any(axis=(1, 2, 3))  # a team may be smaller than asked for
        marks = now.nanoseconds(words[worked, :done])
        total = epochs * rows + (starts[rest] if starts else min(rows, rest * size))
        listener.record(
            Pass(verb, dtype, tuple(costs), size, total, done, start, end, marks, epoch_rows=rows, starts=starts)
        )
