"""Sums in the order of a binary tree: over the pieces of a step one after the other, and over arrays that are there.

Floating-point sums depend on their order. In that of a tree over the pieces, a subtree can be added up anywhere, and
the total has the same bits: ((0 + 1) + (2 + 3)) + ((4 + 5) + (6 + 7)).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from ... import costs
from ..runtime.compile import Kernel
from ..runtime.launch import UPDATE_ELEMENTS, num_threads_for
from ..runtime.partition import num_pieces, pieces_of_rank
from ..runtime.primitives import address_of, aligned_zeros, view
from ..runtime.records import ADDITIONS, TREE_SUM, fill, read
from ..runtime.teams import run_team
from .phases import PhaseList

TILE = 2_048  # elements that are added up while they are in the first-level cache
IN_TILES = 16_384  # elements of a weight whose gradient is added up as it is made, at least


def _tree_sum(T, itemsize):
    """Add the gradient of a piece, or a part of it, to the sums that wait for it.

    The ones at the end of the piece's binary number are the levels that it completes: piece 3, 11 in binary, is added
    to piece 2, and their sum to that of 0 and 1.
    """

    def tree_sum(work, step, rank, num_ranks):
        t = read(work, TREE_SUM)
        levels = view(t.levels, t.num_levels, np.int64)
        # the levels that this piece completes
        piece, completed = t.first_piece + step, 0
        while (piece >> completed) & 1:
            completed += 1
        for tile in pieces_of_rank(num_pieces(t.elements, TILE), rank, num_ranks):
            skip, count = tile * TILE * itemsize, min(TILE, t.elements - tile * TILE)
            G = view(t.gradient + skip, count, T)
            # the sums that wait, the smallest subtree first
            for level in range(completed):
                S = view(levels[level] + skip, count, T)
                for i in range(count):
                    G[i] = S[i] + G[i]
            # the last piece leaves the total where it is
            if completed < t.num_levels:
                S = view(levels[completed] + skip, count, T)
                for i in range(count):
                    S[i] = G[i]

    return tree_sum


def _tree_tile(T, itemsize):
    """The same of a tile of a gradient, rows x columns from element `first` on, which was made in cache."""

    def tree_tile(g, tree, first, step, rows, columns, stride):
        t = read(tree, TREE_SUM)
        levels = view(t.levels, t.num_levels, np.int64)
        # the levels that this piece completes
        piece, completed = t.first_piece + step, 0
        while (piece >> completed) & 1:
            completed += 1
        target = levels[completed] if completed < t.num_levels else t.gradient
        for row in range(rows):
            skip, count = (first + row * stride) * itemsize, columns
            G, S = view(g + row * columns * itemsize, count, T), view(target + skip, count, T)
            # the sums that wait, the smallest subtree first; the last addition goes where the sum is kept
            for level in range(completed - 1):
                W = view(levels[level] + skip, count, T)
                for i in range(count):
                    G[i] = W[i] + G[i]
            if completed:
                W = view(levels[completed - 1] + skip, count, T)
                for i in range(count):
                    S[i] = W[i] + G[i]
            else:
                for i in range(count):
                    S[i] = G[i]

    return tree_tile


def _additions(T, itemsize):
    """Add arrays to others, pair after pair."""

    def additions(work, step, rank, num_ranks):
        a = read(work, ADDITIONS)
        pairs = view(a.pairs, 2 * a.count, np.int64)
        for tile in pieces_of_rank(num_pieces(a.elements, TILE), rank, num_ranks):
            skip, count = tile * TILE * itemsize, min(TILE, a.elements - tile * TILE)
            for k in range(a.count):
                # one pair
                A, B = view(pairs[2 * k] + skip, count, T), view(pairs[2 * k + 1] + skip, count, T)
                for i in range(count):
                    A[i] = A[i] + B[i]

    return additions


@cache
def tree_sum_kernel(dtype: str) -> Kernel:
    return Kernel(_tree_sum(getattr(np, dtype), np.dtype(dtype).itemsize), f"tree_sum_{dtype}")


@cache
def tree_tile_kernel(dtype: str) -> Kernel:
    return Kernel(_tree_tile(getattr(np, dtype), np.dtype(dtype).itemsize), f"tree_tile_{dtype}")


@cache
def additions_kernel(dtype: str) -> Kernel:
    return Kernel(_additions(getattr(np, dtype), np.dtype(dtype).itemsize), f"additions_{dtype}")


class TreeSum:
    """The sum of a gradient over the pieces of a step, which one program goes through in order.

    gradient: (elements,), of a piece; after the last one the sum. pieces: a power of two. Large weights are added up
    tile by tile, as their products are made: through memory, sums took a quarter of a step of 1024-4096-4096-10.
    """

    def __init__(self, gradient: np.ndarray, pieces: int) -> None:
        self.gradient, self._num_levels = gradient, pieces.bit_length() - 1
        self.levels = [aligned_zeros(gradient.size, gradient.dtype.name) for _ in range(self._num_levels)]
        self._records: list[np.ndarray] = []
        self._tables: list[np.ndarray] = []
        self._in_tiles: list[tuple[int, int]] = []

    def tile_fields(self, first: int, elements: int) -> dict[str, Any]:
        """Fields of the record DENSE by which it adds up a weight's gradient, which begins at `first`, in tiles."""
        if not self.levels or elements < IN_TILES:
            return {}
        self._in_tiles.append((first, first + elements))
        tile = tree_tile_kernel(self.gradient.dtype.name).address
        return {"tree_tile": tile, "tree": self._record(first, elements)}

    def add_to(self, program: PhaseList, first: int, end: int) -> None:
        """Add the phases for what is not added up in tiles of gradient[first:end], behind a barrier."""
        if not self.levels:
            return
        dtype = self.gradient.dtype
        for start, stop in [*sorted(part for part in self._in_tiles if first <= part[0] < end), (end, end)]:
            if first < start:
                cost = costs.tree_sum(start - first, dtype.itemsize)
                program.add(tree_sum_kernel(dtype.name), self._record(first, start - first), barrier=False, cost=cost)
            first = stop

    def _record(self, first: int, elements: int) -> np.ndarray:
        skip = first * self.gradient.dtype.itemsize
        table = np.array([address_of(array) + skip for array in self.levels], np.int64)
        record = fill(
            TREE_SUM, gradient=address_of(self.gradient) + skip, levels=table, num_levels=self._num_levels,
            elements=elements,
        )  # fmt: skip
        self._records.append(record)
        self._tables.append(table)
        return record

    def begin_with(self, piece: int, alone: bool = False) -> None:
        """Let the next run of the program begin with this piece; alone: one whose gradient is not added to others."""
        for record in self._records:
            record["first_piece"], record["num_levels"] = piece, 0 if alone else self._num_levels


class Additions:
    """Additions of arrays of one size, in a fixed order.

    >>> a, b, c = np.array([1.0, 2.0]), np.array([10.0, 20.0]), np.array([100.0, 200.0])
    >>> Additions([(b, c), (a, b)]).run()
    >>> a.tolist()
    [111.0, 222.0]
    """

    def __init__(self, pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
        self._pairs, self.elements = list(pairs), pairs[0][0].size if pairs else 0
        self._table = np.array([[address_of(a), address_of(b)] for a, b in pairs], np.int64)
        self._record = fill(ADDITIONS, pairs=self._table, count=len(pairs), elements=self.elements)
        self._address = address_of(self._record)

    def run(self) -> None:
        """Add the second array of each pair to the first, in place."""
        if self.elements:
            kernel = additions_kernel(self._pairs[0][0].dtype.name)
            work = self.elements * len(self._pairs)
            run_team(kernel, self._address, num_threads_for(work, UPDATE_ELEMENTS, num_pieces(self.elements, TILE)))
