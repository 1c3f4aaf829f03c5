"""Buckets of a flat gradient, and their sums over ranks: in the order of the tree, or by MPI's own reductions.

Each bucket is cut into a part for every rank. `TreeBucket` sends each other rank the part that is theirs, and adds up
what comes in the order of the tree: a reduce-scatter, in which a rank sends (n - 1) / n of the gradient's bytes.
MPI's own reductions, of `MpiBucket` and `MpiPartBucket`, have an order that depends on the ranks and the library.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ._tree import additions, cuts_of
from ._world import World, mpi

Views = Sequence[tuple[int, np.ndarray]]
COPIED_BYTES = 1 << 18  # of a parameter; a smaller one is copied beside others, so that one call sends all


class Unit(NamedTuple):
    """Neighbouring elements of the flat array that one call shares; view: number of the view that they are, or None.

    base: place of the first element of the array that they are sent from. counts, starts: of every rank's part.
    """

    first: int
    end: int
    view: int | None
    base: int
    counts: Sequence[int] = ()
    starts: Sequence[int] = ()

    def shared(self, begin: int, cuts: Sequence[int]) -> Unit:
        """Return it with the parts that ranks have of a bucket, from `begin` on, that is cut so."""
        ends = [min(max(begin + cut, self.first), self.end) - self.first for cut in cuts]
        return self._replace(counts=np.diff(ends).tolist(), starts=ends[:-1])


class Bucket:
    """A bucket, gradient[begin:end], of which gradient[first:stop] is the own part; total: the sum of that.

    alone: the only one, which has nothing to travel beside, so that calls of MPI are blocking.
    """

    has_all = False  # True: the sum of the whole bucket is on every rank

    def __init__(self, world: World, gradient: np.ndarray, begin: int, end: int, chunk: int, alone: bool) -> None:
        self._world, self._gradient, ranks, rank = world, gradient[begin:end], world.ranks, world.rank
        self.begin, self.end, self._request, self._alone = begin, end, None, alone
        self._cuts = cuts_of(end - begin, ranks, chunk)
        self._counts = np.diff(self._cuts).tolist()
        self.first, self.stop = begin + self._cuts[rank], begin + self._cuts[rank + 1]
        self.total = self._own = self._gradient[self._cuts[rank] : self._cuts[rank + 1]]
        self._calls, self.sent_bytes = mpi(), 0
        self._kind = self._calls._typedict[gradient.dtype.char]

    def start(self) -> None:
        """Send the parts of the gradient, which stay as they are until `wait`."""
        raise NotImplementedError

    def test(self) -> None:
        """Let MPI go on with what was begun: without threads of its own it does so in its calls alone."""
        if self._request is not None:
            self._request.Test()

    def wait(self) -> None:
        """Wait for the parts of the others."""
        if self._request is not None:
            self._request.Wait()
            self._request = None

    def add_up(self) -> None:
        """Leave the sum of the own part in `total`."""

    # ------------------------------------------------------------ parameters and states
    def start_share(self, unit: Unit, array: np.ndarray) -> Any:
        """Send the own part of a unit, which `array` has from `unit.base` on, to all; return a request, or None."""
        into = [array[unit.first - unit.base : unit.end - unit.base], (unit.counts, unit.starts), self._kind]
        if self._alone:
            self._world.comm.Allgatherv(self._calls.IN_PLACE, into)
            return None
        return self._world.comm.Iallgatherv(self._calls.IN_PLACE, into)

    def units_of(self, views: Views) -> list[Unit]:
        """Units of the bucket for views of this layout: a large one is sent from where it lies, others are copied."""
        units: list[Unit] = []
        for number, (at, view) in enumerate(views):
            first, end, is_large = max(at, self.begin), min(at + view.size, self.end), view.nbytes >= COPIED_BYTES
            if first >= end:
                continue
            if units and not is_large and units[-1].view is None:
                units[-1] = units[-1]._replace(end=end)
            else:
                units.append(Unit(first, end, number if is_large else None, at if is_large else 0))
        return [unit.shared(self.begin, self._cuts) for unit in units]

    def start_gather(self, staging: np.ndarray) -> Any:
        """The same, to rank 0 alone."""
        into = [staging[self.begin : self.end], (self._counts, self._cuts[:-1]), self._kind]
        if self._world.is_first:
            return self._world.comm.Igatherv(self._calls.IN_PLACE, into)
        return self._world.comm.Igatherv(staging[self.first : self.stop], None)


class TreeBucket(Bucket):
    """A bucket that is summed in the order of the tree. wire: "bfloat16", in which parts travel, or None."""

    def __init__(
        self, world: World, gradient: np.ndarray, begin: int, end: int, chunk: int, alone: bool, kernels: Any,
        wire: str | None,
    ) -> None:  # fmt: skip
        super().__init__(world, gradient, begin, end, chunk, alone)
        self._kernels, self._wire, self._additions = kernels, wire, None
        ranks, rank, own = world.ranks, world.rank, self._own
        if ranks == 1:
            return
        # arrays of the part from every rank, to be added up; that of rank 0 becomes the sum
        received = np.zeros((ranks, own.size), gradient.dtype)
        arrays = [own if other == rank else received[other] for other in range(ranks)]
        self._additions = kernels.Additions([(arrays[a], arrays[b]) for a, b in additions(ranks)])
        self.total, self._received = arrays[0], received
        counts = [own.size * (other != rank) for other in range(ranks)]
        sent = [size * (other != rank) for other, size in enumerate(self._counts)]
        source, target = self._gradient, received
        if wire is not None:
            self._narrow = source = np.zeros(end - begin, np.uint16)
            self._narrow_received = target = np.zeros((ranks, own.size), np.uint16)
        kind = self._calls._typedict[source.dtype.char]
        self._to = [source, (sent, self._cuts[:-1]), kind]
        self._from = [target, (counts, [other * own.size for other in range(ranks)]), kind]
        self.sent_bytes = sum(sent) * source.itemsize

    def start(self) -> None:
        """Send each rank its part."""
        if self._wire is not None:
            self._kernels.narrow(self._gradient, self._narrow)
        if self._alone:
            self._world.comm.Alltoallv(self._to, self._from)
        else:
            self._request = self._world.comm.Ialltoallv(self._to, self._from)

    def add_up(self) -> None:
        """Add up the parts that have come."""
        if self._wire is not None:
            for rank, bits in enumerate(self._narrow_received):
                if rank != self._world.rank:
                    self._kernels.widen(bits, self._received[rank])
        if self._additions is not None:
            self._additions.run()


class MpiBucket(Bucket):
    """A bucket that MPI's Allreduce sums in place, for every rank; bytes are the fewest that such a call can send."""

    has_all = True

    def __init__(self, world: World, gradient: np.ndarray, begin: int, end: int, chunk: int, alone: bool) -> None:
        super().__init__(world, gradient, begin, end, chunk, alone)
        self.first, self.stop, self.total = begin, end, self._gradient
        self.sent_bytes = 2 * (world.ranks - 1) * self._gradient.nbytes // world.ranks

    def start(self) -> None:
        """Add up the bucket over all ranks."""
        given = self._calls.IN_PLACE, self._gradient, self._calls.SUM
        if self._alone:
            self._world.comm.Allreduce(*given)
        else:
            self._request = self._world.comm.Iallreduce(*given)


class MpiPartBucket(Bucket):
    """A bucket of which MPI's Reduce_scatter gives each rank the sum of its own part."""

    def __init__(self, world: World, gradient: np.ndarray, begin: int, end: int, chunk: int, alone: bool) -> None:
        super().__init__(world, gradient, begin, end, chunk, alone)
        self.total = np.zeros(self._own.size, gradient.dtype)
        self.sent_bytes = self._gradient.nbytes - self._own.nbytes

    def start(self) -> None:
        """Add up the parts of all ranks."""
        given = self._gradient, self.total, self._counts, self._calls.SUM
        if self._alone:
            self._world.comm.Reduce_scatter(*given)
        else:
            self._request = self._world.comm.Ireduce_scatter(*given)


def within(views: Views, first: int, end: int) -> list[tuple[int, np.ndarray]]:
    """The parts of the views that lie between two places of the flat array.

    >>> within([(0, np.arange(3)), (3, np.arange(4))], 2, 5)
    [(2, array([2])), (3, array([0, 1]))]
    """
    found = []
    for at, view in views:
        start, stop = max(first, at), min(end, at + view.size)
        if start < stop:
            found.append((start, view[start - at : stop - at]))
    return found
