"""Sums of gradients over ranks, and the updates of each rank for all others.

A flat gradient is cut into buckets, whose gradients are complete one after the other, and each bucket into a part for
every rank. A rank sends each other the part that is theirs, and adds up what it gets in the order of the tree: a
reduce-scatter, in which a rank sends (n - 1) / n of the gradient's bytes. After the update of its own parts each sends
the new parameters to all: an all-gather of as many bytes. MPI's own sums have an order that depends on the ranks.

Where there are several buckets, calls of MPI are non-blocking; every rank makes them in the same order. A single one
has nothing to travel beside, and blocking calls took 0.9 of the time of a step of 784-256-128-10.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ._tree import additions, chunk_of, cuts_of
from ._world import World, mpi

Views = Sequence[tuple[int, np.ndarray]]
COPIED_BYTES = 1 << 18  # of a parameter; a smaller one is copied beside others, so that one call sends all


class Traffic(NamedTuple):
    """Data that a rank has sent in a training, the number of messages, and the seconds that it has waited for MPI."""

    steps: int = 0
    sent_bytes: int = 0
    messages: int = 0
    seconds: float = 0.0

    def __add__(self, other: Any) -> Traffic:
        """Return the sums of both, entry by entry."""
        return Traffic(
            self.steps + other.steps, self.sent_bytes + other.sent_bytes, self.messages + other.messages,
            self.seconds + other.seconds,
        )  # fmt: skip


class _Unit(NamedTuple):
    """Neighbouring elements of the flat array that one call shares; view: number of the view that they are, or None.

    base: place of the first element of the array that they are sent from. counts, starts: of every rank's part.
    """

    first: int
    end: int
    view: int | None
    base: int
    counts: Sequence[int] = ()
    starts: Sequence[int] = ()

    def shared(self, begin: int, cuts: Sequence[int]) -> _Unit:
        """Return it with the parts that ranks have of a bucket, from `begin` on, that is cut so."""
        ends = [min(max(begin + cut, self.first), self.end) - self.first for cut in cuts]
        return self._replace(counts=np.diff(ends).tolist(), starts=ends[:-1])


class _Bucket:
    """Buffers of a bucket, gradient[begin:end], of which gradient[first:stop] is the own part; total: its sum."""

    def __init__(
        self, world: World, gradient: np.ndarray, begin: int, end: int, chunk: int, kernels: Any, wire: str | None
    ) -> None:
        self._world, self._kernels, self._wire = world, kernels, wire
        self._gradient, ranks, rank = gradient[begin:end], world.ranks, world.rank
        self.begin, self.end, self._request, self._alone = begin, end, None, end - begin == gradient.size
        self._cuts = cuts_of(end - begin, ranks, chunk)
        self._counts = np.diff(self._cuts).tolist()
        self.first, self.stop = begin + self._cuts[rank], begin + self._cuts[rank + 1]
        own = self._gradient[self._cuts[rank] : self._cuts[rank + 1]]
        self.total, self._additions, self._calls = own, None, mpi()
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
        self._kind = self._calls._typedict[gradient.dtype.char]

    def start(self) -> None:
        """Send the parts of the gradient, which stay as they are until `wait`."""
        if self._wire is not None:
            self._kernels.narrow(self._gradient, self._narrow)
        if self._alone:
            self._world.comm.Alltoallv(self._to, self._from)
        else:
            self._request = self._world.comm.Ialltoallv(self._to, self._from)

    def test(self) -> None:
        """Let MPI go on with what was begun: without threads of its own it does so in its calls alone."""
        if self._request is not None:
            self._request.Test()

    def wait(self) -> None:
        """Leave the sum of the own part in `total`."""
        if self._request is not None:
            self._request.Wait()
            self._request = None

    def add_up(self) -> None:
        """Add up the parts that have come."""
        if self._wire is not None:
            for rank, bits in enumerate(self._narrow_received):
                if rank != self._world.rank:
                    self._kernels.widen(bits, self._received[rank])
        assert self._additions is not None
        self._additions.run()

    def start_share(self, unit: _Unit, array: np.ndarray) -> Any:
        """Send the own part of a unit, which `array` has from `unit.base` on, to all; return a request, or None."""
        into = [array[unit.first - unit.base : unit.end - unit.base], (unit.counts, unit.starts), self._kind]
        if self._alone:
            self._world.comm.Allgatherv(self._calls.IN_PLACE, into)
            return None
        return self._world.comm.Iallgatherv(self._calls.IN_PLACE, into)

    def units_of(self, views: Views) -> list[_Unit]:
        """Units of the bucket for views of this layout: a large one is sent from where it lies, others are copied."""
        units: list[_Unit] = []
        for number, (at, view) in enumerate(views):
            if not self.begin <= at < self.end:
                continue
            end, is_large = at + view.size, view.nbytes >= COPIED_BYTES
            if units and not is_large and units[-1].view is None:
                units[-1] = units[-1]._replace(end=end)
            else:
                units.append(_Unit(at, end, number if is_large else None, at if is_large else 0))
        return [unit.shared(self.begin, self._cuts) for unit in units]

    def start_gather(self, staging: np.ndarray) -> Any:
        """The same, to rank 0 alone."""
        into = [staging[self.begin : self.end], (self._counts, self._cuts[:-1]), self._kind]
        if self._world.is_first:
            return self._world.comm.Igatherv(self._calls.IN_PLACE, into)
        return self._world.comm.Igatherv(staging[self.first : self.stop], None)


class Exchange:
    """The exchange of a step's gradient, and of parameters, between all ranks.

    gradient: (elements,) of this rank, summed over its pieces. kernels: the backend's module. wire_dtype: "bfloat16",
    in which parts of gradients travel, or None.
    """

    def __init__(
        self, world: World, gradient: np.ndarray, buckets: Sequence[tuple[int, int]], kernels: Any,
        wire_dtype: str | None = None,
    ) -> None:  # fmt: skip
        self._world, self._gradient = world, gradient
        self.chunk = chunk_of(gradient.size)
        self.buckets = [_Bucket(world, gradient, *bucket, self.chunk, kernels, wire_dtype) for bucket in buckets]
        self._staging = np.zeros(gradient.size if world.ranks > 1 else 0, gradient.dtype)
        self._shares: list[Any] = []  # requests of those that are under way
        self._units: list[list[_Unit]] = []  # of each bucket
        self.traffic = Traffic()

    # ------------------------------------------------------------ gradients
    def start(self, number: int) -> None:
        """Begin with a bucket, whose gradient is complete."""
        if self._world.ranks == 1:
            return
        begun = time.perf_counter()
        for bucket in self.buckets[:number]:
            bucket.test()
        self.buckets[number].start()
        self._count(begun, self.buckets[number].sent_bytes)

    def finish(self, number: int) -> np.ndarray:
        """Return the sum over all ranks of the own part of a bucket, (count,), as it is at every step."""
        bucket = self.buckets[number]
        if self._world.ranks > 1:
            begun = time.perf_counter()
            bucket.wait()
            self._count(begun)
            bucket.add_up()
        return bucket.total

    # ------------------------------------------------------------ parameters and states
    def start_share(self, number: int, views: Views) -> None:
        """Begin to give every rank the own part of a bucket.

        views: places in the flat array, and the elements of a parameter, or of a state, that begin there: of all
        parameters, in order.
        """
        if self._world.ranks == 1:
            return
        if not self._units:
            self._units = [bucket.units_of(views) for bucket in self.buckets]
        bucket = self.buckets[number]
        for unit in self._units[number]:
            if unit.view is None:
                for at, view in within(views, max(bucket.first, unit.first), min(bucket.stop, unit.end)):
                    self._staging[at : at + view.size] = view
            begun = time.perf_counter()
            array = self._staging if unit.view is None else views[unit.view][1]
            self._shares.append(bucket.start_share(unit, array))
            self._count(begun, (self._world.ranks - 1) * unit.counts[self._world.rank] * array.itemsize)

    def finish_shares(self, views: Views) -> None:
        """Take the parts of all buckets that the others own."""
        if self._world.ranks == 1:
            return
        units = [(bucket, unit) for bucket, own in zip(self.buckets, self._units, strict=True) for unit in own]
        for request, (bucket, unit) in zip(self._shares, units, strict=True):
            if request is not None:
                begun = time.perf_counter()
                request.Wait()
                self._count(begun, messages=0)
            if unit.view is not None:
                continue
            for first, end in ((unit.first, min(bucket.first, unit.end)), (max(bucket.stop, unit.first), unit.end)):
                for at, view in within(views, first, end):
                    view[:] = self._staging[at : at + view.size]
        self._shares.clear()

    def share(self, views: Views) -> None:
        """Give every rank the parts that the others own."""
        for number in range(len(self.buckets)):
            self.start_share(number, views)
        self.finish_shares(views)

    def gather(self, views: Views) -> None:
        """Give rank 0 the parts that the others own."""
        if self._world.ranks == 1:
            return
        for bucket in self.buckets:
            for at, view in within(views, bucket.first, bucket.stop):
                self._staging[at : at + view.size] = view
            begun = time.perf_counter()
            bucket.start_gather(self._staging).Wait()
            self._count(begun, 0 if self._world.is_first else bucket.total.nbytes, messages=1)
            if self._world.is_first:
                for at, view in within(views, bucket.stop, bucket.end):
                    view[:] = self._staging[at : at + view.size]

    def _count(self, begun: float, sent_bytes: int = 0, messages: int | None = None) -> None:
        """Take note of data that were sent, in a call that began then."""
        if messages is None:
            messages = self._world.ranks - 1 if sent_bytes else 0
        self.traffic += Traffic(0, sent_bytes, messages, time.perf_counter() - begun)


def flattened(starts: Sequence[int], arrays: Sequence[np.ndarray]) -> list[tuple[int, np.ndarray]]:
    """The arrays as vectors, with the places where they begin."""
    return [(start, array.reshape(-1)) for start, array in zip(starts, arrays, strict=True)]


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
