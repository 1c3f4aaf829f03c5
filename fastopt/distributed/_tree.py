"""Division of the rows of a step among ranks: pieces that do not depend on the number of ranks, and their tree."""

from __future__ import annotations

import numpy as np

PIECE_ROWS = 128  # rows of a piece, at least: below, a small network's products lose more than other ranks gain
LEAST_PIECES = 4  # of any step, however few its rows are


def num_pieces(rows: int) -> int:
    """Pieces of a step of at most so many rows: a power of two, and the most ranks that can share it.

    >>> [num_pieces(rows) for rows in (1, 256, 512, 1000, 1024, 65_536)]
    [4, 4, 4, 4, 8, 512]
    """
    return max(LEAST_PIECES, 1 << ((rows // PIECE_ROWS).bit_length() - 1 if rows >= PIECE_ROWS else 0))


def share_of(rank: int, ranks: int, pieces: int) -> tuple[int, int]:
    """The first of the pieces of a rank, and their number: those of one subtree.

    >>> [share_of(rank, 3, 8) for rank in range(3)]
    [(0, 4), (4, 2), (6, 2)]
    """
    first = 0
    while ranks > 1:
        left, pieces = ranks // 2, pieces // 2
        if rank < left:
            ranks = left
        else:
            rank, ranks, first = rank - left, ranks - left, first + pieces
    return first, pieces


def additions(ranks: int) -> list[tuple[int, int]]:
    """The sums over ranks in the order of the tree: the first of each pair becomes the sum of both, rank 0 that of all.

    >>> additions(3), additions(4)
    ([(1, 2), (0, 1)], [(0, 1), (2, 3), (0, 2)])
    """

    def below(first: int, count: int) -> list[tuple[int, int]]:
        if count == 1:
            return []
        left = count // 2
        return [*below(first, left), *below(first + left, count - left), (first, first + left)]

    return below(0, ranks)


def cut(rows: int, pieces: int) -> np.ndarray:
    """The first row of each piece, and the end of the last one, (pieces + 1,) int64; pieces of few rows may be empty.

    >>> cut(10, 4).tolist()
    [0, 2, 5, 7, 10]
    """
    return np.arange(pieces + 1, dtype=np.int64) * rows // pieces


def chunk_of(elements: int) -> int:
    """Elements of a chunk, at whose multiples buckets of a gradient of so many are cut among ranks: a power of two.

    The norm of a gradient is added up chunk by chunk, so that it does not depend on the ranks.

    >>> chunk_of(100), chunk_of(235_146), chunk_of(10**9)
    (16, 2048, 16384)
    """
    return min(16_384, max(16, 1 << (elements // 64).bit_length() - 1 if elements >= 64 else 16))


def cuts_of(elements: int, ranks: int, chunk: int) -> list[int]:
    """First element of each rank's part of a bucket, and the end of the last part: multiples of a chunk.

    >>> cuts_of(100, 3, 16)
    [0, 32, 64, 100]
    """
    chunks = -(-elements // chunk)
    return [min(elements, rank * chunks // ranks * chunk) for rank in range(ranks + 1)]
