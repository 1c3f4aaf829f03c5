"""Order in which a sparse product reads the weights of a layer, made once from their mask."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .sparse import CHUNK, ENTRY, PAIRS, block_rows
from .sparse_vectors import PAIR, ROW_BYTES


class Entries(NamedTuple):
    """Entries of a layer, as `records.SPARSE` has them; all arrays are only read."""

    block: int
    room: np.ndarray
    starts: np.ndarray
    places: np.ndarray
    source: np.ndarray
    target: np.ndarray
    template: np.ndarray  # entries with the offsets of rows, and weights of zero

    @property
    def num_bytes(self) -> int:
        return sum(array.nbytes for array in self[1:])


def entries_of(mask: np.ndarray, itemsize: int) -> Entries:
    """Return the entries of a kernel with this mask, (inputs, outputs); itemsize: of the weights.

    Neighbouring columns, a pair, take turns in the entries of a block; the shorter of two is filled up with weights of
    zero, of row 0.
    """
    inputs, outputs = mask.shape
    block = block_rows(inputs)
    num_blocks, chunks = -(-inputs // block), -(-outputs // CHUNK)
    k, j = np.nonzero(mask)
    piece = j // CHUNK * num_blocks + k // block  # a chunk and a block
    # the number of each weight in its column, within its block
    column = piece * CHUNK + j % CHUNK
    by_column = np.argsort(column, kind="stable")
    counts = np.bincount(column, minlength=chunks * num_blocks * CHUNK)
    firsts = np.cumsum(counts) - counts
    number = np.empty(len(k), np.int64)
    number[by_column] = np.arange(len(k)) - firsts[column[by_column]]
    # the first entry of each pair, of its chunk
    longest = counts.reshape(chunks, num_blocks, PAIRS, PAIR).max(axis=3)
    ends = np.cumsum(longest.reshape(chunks, -1), axis=1).reshape(longest.shape)
    starts = np.concatenate([(ends - longest)[:, :, :1], ends], axis=2)
    room = PAIR * np.concatenate([[0], np.cumsum(longest.sum(axis=(1, 2)))])
    target = PAIR * (starts[:, :, :PAIRS].ravel()[column // PAIR] + number) + column % PAIR
    # weights in the order in which they lie in w, chunk by chunk and block by block
    order = np.argsort(piece, kind="stable")
    places = np.concatenate([[0], np.cumsum(np.bincount(piece, minlength=chunks * num_blocks))])
    offsets, _ = ENTRY[itemsize]
    template = np.zeros(2 * int(room[-1]), offsets)
    template[2 * (room[piece // num_blocks] + target)] = k * ROW_BYTES
    return Entries(
        block, room.astype(np.int64), np.ascontiguousarray(starts, np.int32), places.astype(np.int64),
        (k * outputs + j)[order].astype(np.uint32), target[order].astype(np.uint32), template,
    )  # fmt: skip
