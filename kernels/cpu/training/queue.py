"""Training passes of many networks at the same time: each on one thread, the next one as soon as a thread is free.

A pass has no barriers on one thread, and shares no memory that it writes to with another. On two threads, 24 networks
of 64-32-10 took 0.54 of the time of one after the other, Python's work on each network included.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ...interrupts import interrupts_held
from ...profile import recorder
from ..runtime.compile import Kernel
from ..runtime.launch import get_num_threads
from ..runtime.primitives import address_of, atomic_add, call_clock, call_phase, view
from ..runtime.records import QUEUE, STOP_BATCH, STOP_EPOCH, fill, offset, read, word_of, words_of
from ..runtime.teams import run_team
from .passes import TrainingPass
from .program import STOP
from .run import CLOCK, MARK, RUN_PROGRAM, WINDOWS, clock

TAKEN, ENDED = offset(QUEUE, "taken"), offset(QUEUE, "ended")
STOP_QUEUE = word_of(QUEUE, "stop")


def _run_queue(work, step, rank, num_ranks):
    """Run programs on this rank until none is left."""
    queue = read(work, QUEUE)
    programs = view(queue.programs, queue.count, np.int64)
    i = atomic_add(work + TAKEN, 1)
    while i < queue.count and queue.stop == 0:
        began = queue.times + 2 * i * MARK
        call_clock(queue.clock, began if WINDOWS else CLOCK, began)
        call_phase(queue.run_program, programs[i], 0, 0, 1)
        ended = began + MARK
        call_clock(queue.clock, ended if WINDOWS else CLOCK, ended)
        # an atomic operation: it also makes the rank read `stop` anew
        atomic_add(work + ENDED, 1)
        i = atomic_add(work + TAKEN, 1)


RUN_QUEUE = Kernel(_run_queue, "run_queue")


def run_passes(passes: Sequence[TrainingPass], watch: Callable[[], None] | None = None) -> None:
    """Run prepared passes, as many at a time as there are threads, the longest first; the bits are those of one each.

    Every pass must be of another network. `finish` of their networks is to be called afterwards, also after an error:
    passes that were not begun have no steps then.
    watch: called some twenty times a second. A pass ends with its epoch if its hooks tell it to stop. All end with
    their batches, and no other is begun, if `watch` raises or the calling thread is interrupted.
    """
    if recorder.get() is not None:  # an open `fastopt.profile` has marks of one pass at a time
        for this in passes:
            _run_alone(this, watch)
        return
    order = sorted(passes, key=lambda this: -this.flops)
    now, times = clock(), np.zeros((len(order), 2, 2), np.int64)
    addresses = np.array([this.program.address for this in order], np.int64)
    queue = fill(
        QUEUE, programs=addresses, count=len(order), run_program=RUN_PROGRAM.address, clock=now.address, times=times
    )
    words = words_of(queue)

    def look() -> None:
        check()
        if watch:
            watch()
        for this in order:
            if this.hooks and this.hooks.stop():
                this.program.words[STOP] = STOP_EPOCH

    def stop() -> None:
        words[STOP_QUEUE] = 1
        for this in order:
            this.program.words[STOP] = STOP_BATCH

    with interrupts_held() as check:
        try:
            run_team(RUN_QUEUE, address_of(queue), min(len(order), get_num_threads()), look, stop)
        finally:
            for this, (start, end) in zip(order, now.nanoseconds(times).tolist(), strict=True):
                this.start, this.end = start, end


def _run_alone(this: TrainingPass, watch: Callable[[], None] | None) -> None:
    """Run a pass before the next one, on all threads."""

    def look(done: int) -> bool:
        check()
        if watch:
            watch()
        return this.hooks is not None and this.hooks.stop()

    with interrupts_held() as check:
        this.program.execute(this.flops, look)
