"""The norm of all gradients: sums of squares in float64, in pieces that depend on sizes alone, added up in order."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import numpy as np

from .compile import Kernel
from .launch import UPDATE_ELEMENTS, parallel, ranks_for
from .layout import SQUARES, SQUARES_ALL, fill, read
from .primitives import address_of, call_tile, view
from .storage import STORES, name_of

PIECE = 16_384  # elements of a piece
LANES = 64  # sums of a piece, for every 64th element each: one sum could not run on vectors without changing its bits


def _squares(store):
    kind, width, widen = store.kind, store.width, store.widen

    def squares(x, lanes, into, unused, rows, columns, stride):
        S = view(lanes, LANES, np.float64)
        for j in range(LANES):
            S[j] = 0
        for i in range(rows):
            for start in range(i * stride, i * stride + columns, LANES):
                count = min(LANES, i * stride + columns - start)
                X = view(x + start * width, count, kind)
                for j in range(count):
                    value = np.float64(widen(X[j]))
                    S[j] += value * value
        total = 0.0
        for j in range(LANES):
            total += S[j]
        view(into, 1, np.float64)[0] = total

    return squares


@cache
def squares_kernel(dtype: str) -> Kernel:
    return Kernel(_squares(STORES[dtype]), f"squares_{dtype}")


def _squares_all(work, step, rank, ranks):
    # Rank r does pieces r P / ranks to (r + 1) P / ranks of all arrays laid end to end.
    all_ = read(work, SQUARES_ALL)
    if all_.due and view(all_.due + step * 8, 1, np.int64)[0] == 0:
        return
    first, last = rank * all_.pieces // ranks, (rank + 1) * all_.pieces // ranks
    lanes = all_.lanes + rank * LANES * 8
    for i in range(all_.count):
        one = read(all_.table + i * RECORD, SQUARES)
        for piece in range(max(first, one.first_piece), last):
            start = (piece - one.first_piece) * PIECE
            if start >= one.elements:
                break
            size = min(PIECE, one.elements - start)
            call_tile(one.squares, one.x + start * one.width, lanes, all_.sums + piece * 8, 0, 1, size, 0)


RECORD = SQUARES.itemsize
SQUARES_KERNEL = Kernel(_squares_all, "squares_all")


class Squares:
    """The sums of squares of some arrays: a record with what it points to, to be run as a phase, or by `norm`.

    parts: dtype and elements of each array; `take` says where they are.
    ranks: of the phase; `norm` chooses its own.
    due: (batches,) int64, 0 where the phase has nothing to do.
    """

    def __init__(self, parts: Sequence[tuple[str, int]], ranks: int = 1, due: np.ndarray | None = None) -> None:
        self.sizes = np.array([size for _, size in parts], np.int64)
        self.table = np.zeros(len(parts), SQUARES)
        pieces = 0
        for i, (dtype, size) in enumerate(parts):
            self.table[i] = (squares_kernel(dtype).address, 0, 0, pieces, STORES[dtype].width)
            pieces += -(-size // PIECE)
        self.sums, self.due = np.zeros(pieces), due
        self.lanes = np.empty(max(ranks, pieces) * LANES)
        self.record = fill(
            SQUARES_ALL, count=len(parts), table=self.table, pieces=pieces, sums=self.sums, lanes=self.lanes, due=due
        )
        self.x, self.elements, self.at = self.table["x"], self.table["elements"], address_of(self.record)

    def take(self, addresses: Sequence[int] | np.ndarray) -> None:
        """The addresses of the arrays; 0 for one that does not count."""
        self.x[:] = addresses
        np.multiply(self.sizes, self.x != 0, out=self.elements)
        self.sums[:] = 0  # nobody writes those of an array that does not count

    def norm(self, addresses: Sequence[int] | np.ndarray) -> float:
        """The root of all squares, with the pieces added up in order."""
        self.take(addresses)
        if len(self.sums):
            parallel(SQUARES_KERNEL, self.at, 0, ranks_for(self.elements.sum(), UPDATE_ELEMENTS, len(self.sums)))
        return math.sqrt(sum(self.sums.tolist()))


def gradient_norm(gradients: Sequence[np.ndarray]) -> float:
    """The Euclidean norm of all gradients laid end to end; they are C-contiguous."""
    squares = Squares([(name_of(g.dtype), g.size) for g in gradients])
    return squares.norm([address_of(g) for g in gradients])
