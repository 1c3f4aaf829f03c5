"""Copies of float32 arrays in bfloat16, half as many bytes to send."""

from __future__ import annotations

import numpy as np

from ..runtime.compile import Kernel
from ..runtime.frontend import register_jitable
from ..runtime.launch import UPDATE_ELEMENTS, num_threads_for
from ..runtime.partition import num_pieces, pieces_of_rank
from ..runtime.primitives import address_of, view
from ..runtime.records import WIRE, fill, read
from ..runtime.storage import STORES
from ..runtime.teams import run_team

TILE = 2_048  # elements of a piece of work


def _in_tiles(convert):
    """The kernel that converts all elements, tile by tile; convert(X, Y): one tile, wide and narrow."""
    convert = register_jitable(convert)

    def convert_tiles(work, step, rank, num_ranks):
        w = read(work, WIRE)
        for tile in pieces_of_rank(num_pieces(w.elements, TILE), rank, num_ranks):
            start, count = tile * TILE, min(TILE, w.elements - tile * TILE)
            convert(view(w.wide + start * 4, count, np.float32), view(w.narrow + start * 2, count, np.uint16))

    return convert_tiles


def _narrow(X, Y):
    for i in range(len(X)):
        Y[i] = nearest(X[i], 0, 0)


def _widen(X, Y):
    for i in range(len(X)):
        X[i] = widen_bits(Y[i])


nearest, widen_bits = STORES["bfloat16"].narrow, STORES["bfloat16"].widen
NARROW_KERNEL = Kernel(_in_tiles(_narrow), "narrow_bfloat16")
WIDEN_KERNEL = Kernel(_in_tiles(_widen), "widen_bfloat16")


def _run(kernel: Kernel, wide: np.ndarray, narrow: np.ndarray) -> None:
    if wide.size:
        record = fill(WIRE, wide=wide, narrow=narrow, elements=wide.size)
        run_team(kernel, address_of(record), num_threads_for(wide.size, UPDATE_ELEMENTS, num_pieces(wide.size, TILE)))


def narrow(wide: np.ndarray, bits: np.ndarray) -> None:
    """Write the nearest numbers of bfloat16 of float32 values to an array of uint16, of the same size.

    >>> bits = np.zeros(3, np.uint16)
    >>> narrow(np.array([1.0, -2.0, 1.001], np.float32), bits)
    >>> [hex(word) for word in bits]
    ['0x3f80', '0xc000', '0x3f80']
    """
    _run(NARROW_KERNEL, wide, bits)


def widen(bits: np.ndarray, wide: np.ndarray) -> None:
    """Write the values of bits of bfloat16 to an array of float32, of the same size."""
    _run(WIDEN_KERNEL, wide, bits)
