"""Sums of gradients over ranks, and the updates of each rank for all others.

A flat gradient is cut into buckets, whose gradients are complete one after the other, and each of these into messages.
After the update of its own parts each rank sends the new parameters to all: an all-gather of as many bytes as the
reduce-scatter of `_buckets`. MPI's Allreduce leaves the whole gradient on every rank, which then updates everything.

Where there are several messages, calls of MPI are non-blocking; every rank makes them in the same order. A single one
has nothing to travel beside, and blocking calls took 0.9 of the time of a step of 784-256-128-10.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from ._buckets import Bucket, MpiBucket, MpiPartBucket, TreeBucket, Unit, Views, within
from ._tree import chunk_of, cuts_of
from ._world import World

# At most that one call sums. A step of 1024-4096-4096-10 on two ranks took 116 ms, and 121, 122, 132 and 141 ms with
# 4, 16, 32 MB and no limit: parts are added up and updated while others travel. Smaller ones have more calls.
MESSAGE_BYTES = 8 << 20


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


class Exchange:
    """The exchange of a step's gradient, and of parameters, between all ranks.

    gradient: (elements,) of this rank, summed over its pieces. complete: parts of it, (first, end), in the order in
    which they are complete. kernels: the backend's module. reduction: "fixed", the order of the tree, or "fast", MPI's
    own. shard_states: each rank updates its part alone. wire_dtype: "bfloat16", in which parts of gradients travel, or
    None.

    buckets: what one call of MPI sums. updates_all: every rank has the whole sum, and updates everything.
    """

    def __init__(
        self, world: World, gradient: np.ndarray, complete: Sequence[tuple[int, int]], kernels: Any,
        reduction: str = "fixed", shard_states: bool = False, wire_dtype: str | None = None,
    ) -> None:  # fmt: skip
        self._world, self._gradient, self.chunk = world, gradient, chunk_of(gradient.size)
        cuts = [_messages(*part, self.chunk, gradient.itemsize) for part in complete]
        self._buckets_of = np.cumsum([0, *map(len, cuts)]).tolist()
        parts = [part for of_part in cuts for part in of_part]
        if reduction == "fixed":
            kind: Any = partial(TreeBucket, kernels=kernels, wire=wire_dtype)
        else:
            kind = MpiPartBucket if shard_states and world.ranks > 1 else MpiBucket
        self.buckets: list[Bucket] = [
            kind(world, gradient, begin, end, self.chunk, alone=len(parts) == 1) for begin, end in parts
        ]
        self.updates_all = world.ranks == 1 or self.buckets[0].has_all
        self._staging = np.zeros(0 if self.updates_all else gradient.size, gradient.dtype)
        self._shares: list[Any] = []  # requests of those that are under way
        self._units: list[list[Unit]] = []  # of each bucket
        self.traffic = Traffic()

    # ------------------------------------------------------------ gradients
    def start(self, number: int) -> None:
        """Begin with the buckets of a part of the gradient, which is complete."""
        if self._world.ranks == 1:
            return
        begun = time.perf_counter()
        first, end = self._buckets_of[number : number + 2]
        for bucket in self.buckets[:first]:
            bucket.test()
        for bucket in self.buckets[first:end]:
            bucket.start()
            self._count(begun, bucket.sent_bytes)
            begun = time.perf_counter()

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
        if self.updates_all:
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
        if self.updates_all:
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
        if self.updates_all:
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


def _messages(first: int, end: int, chunk: int, itemsize: int) -> list[tuple[int, int]]:
    """The parts of a flat gradient that are sent one by one: of whole chunks, as equal as these allow.

    >>> _messages(0, 3_000_000, 16_384, 4)
    [(0, 1507328), (1507328, 3000000)]
    """
    count = -(-(end - first) * itemsize // MESSAGE_BYTES)
    cuts = [first + cut for cut in cuts_of(end - first, max(1, count), chunk)]
    return [part for part in pairwise(cuts) if part[0] < part[1]] or [(first, end)]


def flattened(starts: Sequence[int], arrays: Sequence[np.ndarray]) -> list[tuple[int, np.ndarray]]:
    """The arrays as vectors, with the places where they begin."""
    return [(start, array.reshape(-1)) for start, array in zip(starts, arrays, strict=True)]
