"""Teams of threads that run one long kernel together and meet at barriers, for passes over data.

Between two phases lies a barrier of 0.03 to 0.4 us instead of a launch of 2 us or more. A team needs no threading
layer, so it works after a fork, and any number of Python threads may have one at the same time.

Threads are kept for the next call. They look for it some 100 us, then wait for a lock, after whose release they begin
12 us later on one machine (Zen 5) and 60 to 150 on another (Zen 3), where a hypervisor wakes the processor: there a
team of two that does nothing took 65 to 150 us with the lock alone, and takes 6 to 14. With new threads for each call,
`predict` of 64 rows took 475 us on two threads for 126.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import sys
import threading
from collections.abc import Callable
from functools import cache

from ...interrupts import interrupts_held
from .compile import Kernel, ffi
from .primitives import INTERPRETED, address_of, atomic_add, atomic_load, call_int, call_phase, python_address, relax
from .records import TEAM, WORKER, fill, offset, read, word_of, words_of

log = logging.getLogger("fastopt")

SPINS = 400  # reads of a word before the processor is yielded, some 10 us
LOOKS = 0 if INTERPRETED else 4000  # before a thread that waits for a rank falls asleep, some 100 us
KERNEL, WORK, ENDED = (word_of(TEAM, name) for name in ("kernel", "work", "ended"))
ENDED_OFFSET = offset(TEAM, "ended")
CLAIMS = offset(WORKER, "claims")
TEAM_OF, RANK, NUM_RANKS, REPORTS, REPORTED, SLEEPS = (
    word_of(WORKER, name) for name in ("team", "rank", "num_ranks", "reports", "reported", "claims_before")
)


@cache
def yield_address() -> int:
    """Address of the C function that yields the processor, for a thread that waits longer than some microseconds."""
    if INTERPRETED:
        return python_address(lambda: 0)
    if sys.platform == "win32":
        ffi.cdef("int SwitchToThread(void);")
        function = ffi.dlopen("kernel32.dll").SwitchToThread
    else:
        ffi.cdef("int sched_yield(void);")
        function = ffi.dlopen(None).sched_yield
    return int(ffi.cast("intptr_t", function))


def _member(work, step, rank, num_ranks):
    """One rank of a team. Rank 0 waits for the ends of the others, after which nobody reads the team's memory."""
    t = read(work, TEAM)
    call_phase(t.kernel, t.work, step, rank, num_ranks)
    atomic_add(work + ENDED_OFFSET, 1)
    spins = 0
    while rank == 0 and atomic_load(work + ENDED_OFFSET) < num_ranks:
        spins += 1
        if spins < SPINS:
            relax()
        else:
            call_int(t.yield_cpu)


MEMBER = Kernel(_member, "member")


def _serve(work, step, rank, num_ranks):
    """The ranks that a worker is given, one after the other, without Python in between, until none comes."""
    w = read(work, WORKER)
    while True:
        # look for a rank, without yields: each might take as long as threads that wait for the processor like
        spins = 0
        while atomic_load(work + CLAIMS) == 0:
            spins += 1
            if spins < LOOKS:
                relax()
            elif atomic_add(work + CLAIMS, 1) == 0:
                # fall asleep: the team that adds to this 1 releases the lock
                w.reported = 0
                return
        # run it; once it has ended, the next team may write to the record
        reports = w.reports
        w.claims = 0
        call_phase(w.member, w.team, step, w.rank, w.num_ranks)
        if reports:
            w.reported = 1
            return


def _claim(worker):
    """A rank for a worker; `claims_before` is 1 if it sleeps."""
    w = read(worker, WORKER)
    w.claims_before = atomic_add(worker + CLAIMS, 1)


SERVE, CLAIM = Kernel(_serve, "serve"), Kernel(_claim, "claim")


class _Worker:
    """A thread that runs one rank at a time, and waits for the next one: some time awake, then for a lock."""

    numbers = itertools.count(1)

    def __init__(self) -> None:
        self.record = fill(TEAM, yield_cpu=yield_address())  # of a team whose first worker this is
        self.words, self.address = words_of(self.record), address_of(self.record)
        self._own = fill(WORKER, member=MEMBER.address)
        self._own_words, self._own_address = words_of(self._own), address_of(self._own)
        self._wake = threading.Lock()
        self._wake.acquire()
        self._end: threading.Event | None = None
        threading.Thread(target=self._work, name=f"fastopt-{next(self.numbers)}", daemon=True).start()

    def start(self, team: int, rank: int, num_ranks: int, end: threading.Event | None = None) -> None:
        """Begin with a rank of a team, whose record has this address. `end` is set when the rank has ended."""
        words, self._end = self._own_words, end
        words[TEAM_OF], words[RANK], words[NUM_RANKS], words[REPORTS] = team, rank, num_ranks, int(end is not None)
        CLAIM.run(self._own_address)
        if words[SLEEPS]:
            self._wake.release()

    def _work(self) -> None:
        while True:
            try:
                SERVE.run(self._own_address, 0, 0, 0)
            except BaseException:  # of an interpreted kernel: whoever watches waits for the end
                if self._end:
                    self._end.set()
                raise
            if not self._own_words[REPORTED]:
                self._wake.acquire()
            elif self._end:
                self._end.set()


_idle: list[_Worker] = []  # that wait for a rank
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_idle.clear)  # threads are not in the child


def _workers(count: int) -> list[_Worker]:
    """So many workers that wait; fewer where no further thread can start: a smaller team has the same results."""
    found: list[_Worker] = []
    try:
        while len(found) < count:
            try:
                found.append(_idle.pop())
            except IndexError:
                found.append(_Worker())
    except RuntimeError as error:
        log.debug("%d threads instead of %d: %s", len(found), count, error)
    except BaseException:
        _idle.extend(found)
        raise
    return found


def run_team(
    kernel: Kernel,
    work: int,
    num_ranks: int,
    watch: Callable[[], None] | None = None,
    stop: Callable[[], None] | None = None,
) -> None:
    """Run kernel(work, 0, rank, num_ranks) for every rank at the same time.

    The calling thread does rank 0; if there is `watch`, it calls this some twenty times a second instead. If it is
    interrupted while it watches, it calls stop() and still waits for the kernel to end, because the kernel works on
    memory that the caller is about to release.
    """
    code, *_ = kernel.address, MEMBER.address, SERVE.address, CLAIM.address  # compiled here, not in a rank
    workers = _workers(num_ranks if watch else num_ranks - 1)
    if not workers:
        kernel.run(work, 0, 0, 1)
        return
    team, words = workers[0].address, workers[0].words
    words[KERNEL], words[WORK], words[ENDED] = code, work, 0
    try:
        if watch:
            _watched(workers, team, watch, stop)
            return
        with interrupts_held():  # ranks would wait for good for those that are not started
            for rank, worker in enumerate(workers, 1):
                worker.start(team, rank, len(workers) + 1)
            MEMBER.run(team, 0, 0, len(workers) + 1)
    finally:
        _idle.extend(workers)


def _watched(workers: list[_Worker], team: int, watch: Callable[[], None], stop: Callable[[], None] | None) -> None:
    """Run all ranks on workers, and watch them."""
    # events: before Python 3.13 an interrupted `join` takes a thread for ended
    ends = [threading.Event() for _ in workers]
    try:
        with interrupts_held():
            for rank, (worker, end) in enumerate(zip(workers, ends, strict=True)):
                worker.start(team, rank, len(workers), end)
        for end in ends:
            while not end.wait(0.05):
                watch()
    except BaseException:
        if stop:
            stop()
        for end in ends:
            while not end.is_set():
                with contextlib.suppress(BaseException):  # further interruptions
                    end.wait()
        raise
