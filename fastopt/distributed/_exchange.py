"""Sums of gradients over ranks, and the updates of each rank for all others.

Rank r owns a part of the flat gradient. Each rank sends every other its part, and adds up what it gets in the order of
the tree: a reduce-scatter, of (n - 1) / n of the gradient's bytes a rank. After the update of its own part each sends
the new parameters to all: an all-gather of as many bytes. MPI's own sums have an order that depends on the ranks.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ._tree import additions, chunk_of, cuts_of
from ._world import World, mpi


class Traffic(NamedTuple):
    """Data that a rank has sent in the steps of a training, and the time that it has waited for MPI."""

    steps: int = 0
    sent_bytes: int = 0
    messages: int = 0
    seconds: float = 0.0


class Exchange:
    """The exchange of a step's gradient, and of parameters, for flat arrays of so many elements.

    gradient: (elements,) of this rank, summed over its pieces. total: the sum over all ranks of the own part, from
    `first` on, after `sum_gradients`. additions: a class that adds pairs of arrays in order.
    """

    def __init__(self, world: World, gradient: np.ndarray, reduction: str, additions_class: Any) -> None:
        self._world, self._gradient, self._reduction = world, gradient, reduction
        self._cuts = cuts_of(gradient.size, world.ranks)
        self.chunk = chunk_of(gradient.size)
        self.first, self.end = self._cuts[world.rank], self._cuts[world.rank + 1]
        self._counts = np.diff(self._cuts).tolist()
        own, count, ranks = gradient[self.first : self.end], self.end - self.first, world.ranks
        self._type = mpi()._typedict[gradient.dtype.char]
        self.total, self._additions = own, None
        self._staging = np.zeros(gradient.size if ranks > 1 else 0, gradient.dtype)
        self.traffic = Traffic()
        if ranks == 1:
            return
        if reduction == "fast":
            self.total = np.zeros(count, gradient.dtype)
            return
        self._received = np.zeros((ranks, count), gradient.dtype)
        arrays = [own if rank == world.rank else self._received[rank] for rank in range(ranks)]
        self._additions = additions_class([(arrays[a], arrays[b]) for a, b in additions(ranks)])
        self.total = arrays[0]
        others = [count * (rank != world.rank) for rank in range(ranks)]
        sent = [size * (rank != world.rank) for rank, size in enumerate(self._counts)]
        starts = [rank * count for rank in range(ranks)]
        self._to = [self._gradient, (sent, self._cuts[:-1]), self._type]
        self._from = [self._received, (others, starts), self._type]

    def sum_gradients(self) -> None:
        """Leave the sum over all ranks of the own part in `total`."""
        world = self._world
        if world.ranks == 1:
            return
        start = time.perf_counter()
        if self._additions is None:
            world.comm.Reduce_scatter(self._gradient, self.total, self._counts)
        else:
            world.comm.Alltoallv(self._to, self._from)
        self._count((self._gradient.size - self.total.size) * self._gradient.itemsize, start)
        if self._additions is not None:
            self._additions.run()

    def share(self, views: Sequence[tuple[int, np.ndarray]]) -> None:
        """Give every rank the parts that the others own.

        views: places in the flat array, and the elements of a parameter, or of a state, that begin there.
        """
        world = self._world
        if world.ranks == 1:
            return
        pieces = [(place, view.reshape(-1)) for place, view in views]
        for at, view in _within(pieces, self.first, self.end):
            self._staging[at : at + view.size] = view
        start = time.perf_counter()
        world.comm.Allgatherv(mpi().IN_PLACE, [self._staging, (self._counts, self._cuts[:-1]), self._type])
        self._count((world.ranks - 1) * self.total.nbytes, start)
        for first, end in ((0, self.first), (self.end, self._gradient.size)):
            for at, view in _within(pieces, first, end):
                view[:] = self._staging[at : at + view.size]

    def _count(self, sent_bytes: int, start: float) -> None:
        """Take note of data that were sent, in a call that began at `start`."""
        before, others = self.traffic, self._world.ranks - 1
        self.traffic = Traffic(
            before.steps, before.sent_bytes + sent_bytes, before.messages + others,
            before.seconds + time.perf_counter() - start,
        )  # fmt: skip


def _within(views: Sequence[tuple[int, np.ndarray]], first: int, end: int) -> list[tuple[int, np.ndarray]]:
    """The parts of the views that lie between two places of the flat array."""
    found = []
    for at, view in views:
        start, stop = max(first, at), min(end, at + view.size)
        if start < stop:
            found.append((start, view[start - at : stop - at]))
    return found
