"""Block-wise dynamic quantisation of optimizer states: 8 bits a number (Dettmers et al. 2022, as in bitsandbytes).

A state is kept as a code of 8 bits an element, and a float32 a BLOCK: the largest magnitude there. A number is that of
its code in a map, times the magnitude. The map of 256 numbers in [-1, 1], or in [0, 1] for states that are sums or
means of squares, is finer in the larger of seven decades of magnitudes, from 1e-7 to 1: decade e of the signed map has
2^e entries, the middles of as many equal parts of it, and the unsigned map has twice as many. 0 and 1 are entries, -1
is not.

A magnitude u in [0, 1] gets the nearest entry, of two equally near ones the larger: it is found in float32 arithmetic,
so that one within 1e-5 of the distance of two entries from their middle may get either. The pieces of the map are the
decades, and before and after them a piece that has 0 and one that has 1:

    entry = min(floor(u SCALES[piece] + OFFSETS[piece]), LAST[piece]) - BEFORE

BEFORE, 0 of the signed and 1 of the unsigned map, makes the numbers of a decade's entries those from a power of 2 to
the next: then SCALES, OFFSETS and LAST + 1 of all decades differ by powers of 2 and 10 alone, and an entry is

    floor(2^piece t / 2^signed) - BEFORE    with t = u 10^(6 - e) / 0.9 + 8/9, cut off below 2, in decade e = piece - 1

SHIFTS finds the piece of u by its exponent, as no two pieces begin between the same two powers of 2:
piece = (bits of u + SHIFTS[exponent of u]) >> 23.

Squares above 0 never get the entry 0: Adam would divide the first moment by eps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

BLOCK = 256  # elements that share a largest magnitude
DECADES = 7
LEAST = 2.0**-30  # smaller magnitudes count as this, so that 5 bits tell the exponent
EXPONENTS = 32  # of magnitudes from 2^-31 to 2: bits of float32 >> 23, of which the lower 5 count
RANDOM_BITS, RANDOM_UNIT = 24, 2.0**-24  # of a draw that rounds a number at random
INFINITE = 0x7F800000  # bits of infinity; those of NaN are more
# For kernels that calculate t: its term, and a factor for the piece of 1 that makes it a little above 1.
EIGHT_NINTHS, OF_ONE = float(np.float32(8 / 9)), 0.113
ZERO = 127  # the signed map's code of 0: positive numbers have larger codes

# States that are sums or means of squares, which are never negative; all others may be.
SQUARES = frozenset({"exp_avg_sq", "max_exp_avg_sq", "sum", "square_avg", "acc_delta"})


def blocks_of(elements: int) -> int:
    """Blocks of an array.

    >>> blocks_of(256), blocks_of(257)
    (1, 2)
    """
    return -(-elements // BLOCK)


def _middles(count: int) -> np.ndarray:
    """The middles of `count` equal parts of [0.1, 1], as torch.linspace makes them."""
    step = np.float64((np.float32(1) - np.float32(0.1)) / np.float32(count))
    i = np.arange(count + 1)
    # a product and a sum rounded once, from the nearer end
    ends = np.where(i < (count + 1) // 2, np.float32(0.1) + step * i, 1 - step * (count - i)).astype(np.float32)
    return (ends[:-1] + ends[1:]) / np.float32(2)


@dataclass(frozen=True, eq=False)  # each is itself alone, for caches
class Codebook:
    """A map of 8 bits, and the pieces that find an entry for a number."""

    signed: bool
    entries: np.ndarray  # float32, 0 to 1, ascending: 129 of the signed map, 256 of the unsigned one
    values: np.ndarray  # (256,) float32, ascending: the numbers of the codes
    begins: np.ndarray  # (DECADES + 1,) float32: where the pieces after the first begin
    shifts: np.ndarray  # (EXPONENTS,) int32
    scales: np.ndarray  # (16,) float32; those of the pieces, and of more that are never used
    offsets: np.ndarray  # (16,) float32
    last: np.ndarray  # (16,) float32: the last entry of each piece, and BEFORE
    before: int  # BEFORE


def _codebook(signed: bool) -> Codebook:
    counts = [2 ** (e if signed else e + 1) for e in range(DECADES)]
    decades = [np.float32(10.0 ** (e - DECADES + 1)) * _middles(count) for e, count in enumerate(counts)]
    entries = np.concatenate([np.zeros(1), *decades, np.ones(1)]).astype(np.float32)
    values = np.concatenate([-entries[-2:0:-1], entries]) if signed else entries
    # the entries that pieces begin with, and where they begin: in the middle of two entries
    first = np.cumsum([0, 1, *counts])
    begins = (entries[first[1:] - 1] + entries[first[1:]]) / np.float32(2)
    scales, offsets, last = (np.zeros(16, np.float32) for _ in range(3))
    before = 0 if signed else 1
    for e, count in enumerate(counts):
        scales[e + 1] = 10.0 ** (DECADES - 1 - e) * count / 0.9
        offsets[e + 1] = count * 8 / 9
        last[e + 1] = 2 * count - 1
    offsets[DECADES + 1] = last[DECADES + 1] = len(entries) - 1 + before
    if not signed:  # squares above 0
        offsets[0] = last[0] = 1 + before
    # by exponent: the piece of its smallest number, and how far the next piece is
    bits, unit = begins.view(np.int32).astype(np.int64), 1 << 23
    shifts = np.zeros(EXPONENTS, np.int32)
    for exponent in range(128 - EXPONENTS, 128):
        piece, begun = np.count_nonzero(bits < exponent * unit), bits // unit == exponent
        rest = unit - int(bits[begun][0]) % unit if begun.any() else 0
        shifts[exponent % EXPONENTS] = (piece - exponent) * unit + rest
    return Codebook(signed, entries, values, begins, shifts, scales, offsets, last, before)


SIGNED, UNSIGNED = _codebook(True), _codebook(False)


def codebook_of(state: str) -> Codebook:
    """The codebook of a state, by its name.

    >>> codebook_of("exp_avg").signed, codebook_of("exp_avg_sq").signed
    (True, False)
    """
    return UNSIGNED if state in SQUARES else SIGNED


# ---------------------------------------------------------------- formulas, which kernels compile
Formula = Callable[..., Any]


def inverse(largest):
    """The factor that brings the magnitudes of a block to [0, 1]; 0 for a block of zeros."""
    return np.float32(1) / largest if largest > np.float32(0) else np.float32(0)


@cache
def entry_of(book: Codebook) -> Formula:
    """Return f(u): the nearest entry of a magnitude in [0, 1], as a float32 to be rounded down.

    >>> [int(entry_of(UNSIGNED)(np.float32(u))) for u in (0, 1e-7, 0.5, 1)]
    [1, 1, 183, 255]
    """
    begins, scales, offsets, last = book.begins, book.scales, book.offsets, book.last
    least, pieces, before = np.float32(LEAST), DECADES + 2, np.float32(book.before)

    def entry(u):
        y = u if u > least else least  # NaN, too, counts as the smallest
        # the piece of the number, by comparing it with all
        scale, offset, most = scales[0], offsets[0], last[0]
        for i in range(pieces - 1):
            inside = y >= begins[i]
            scale = scales[i + 1] if inside else scale
            offset = offsets[i + 1] if inside else offset
            most = last[i + 1] if inside else most
        found = y * scale + offset
        return (found if found < most else most) - before

    return entry


@cache
def code_of(book: Codebook) -> Formula:
    """Return f(entry, x): the code of the entry, an int32, of the magnitude of x."""
    signed, zero, none = book.signed, np.int32(ZERO), np.int32(0)

    def code(entry, x):
        if signed:
            below = zero - entry
            return (below if below > none else none) if x < 0 else zero + entry
        return entry if x > 0 else none

    return code
