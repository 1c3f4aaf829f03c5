"""Codes of 8 bits for the states of a block, and back: see `formulas.blockwise`.

    dequantize(codes, largest, numbers, size)              numbers = values[code] times the largest magnitude
    quantize(numbers, codes, largest, size, key, element)  codes of the numbers, and their largest magnitude

All arguments but the last three are addresses; a block has BLOCK elements, or fewer at the end of an array. Tables are
in the code. The piece of a number is found by comparing it with all of them, eight comparisons and selections, of
which LLVM makes vectors on every processor; a look-up by the exponent would be a load an element. Processors with
AVX-512 VBMI hold tables in registers and permute them (`blockwise_vectors.py`), with the same bits.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from ...formulas import dropout_draw
from ...formulas.blockwise import DECADES, LEAST, ZERO, Codebook
from ...formulas.dropout import mix
from ..runtime.frontend import register_jitable
from ..runtime.primitives import view, word

_inlined = register_jitable(error_model="numpy", forceinline=True)
PIECES = DECADES + 2
INFINITE = 0x7F800000  # bits of infinity; those of NaN are more
RANDOM_BITS, RANDOM_UNIT = 24, 2.0**-24

mix_word = register_jitable(mix)


@cache
def dequantizer(book: Codebook) -> Callable[..., None]:
    """dequantize(codes, largest, numbers, size) for a codebook."""
    values = book.values

    def dequantize(codes, largest, numbers, size):
        C, N, scale = view(codes, size, np.uint8), view(numbers, size, np.float32), view(largest, 1, np.float32)[0]
        for i in range(size):
            N[i] = values[C[i]] * scale

    return register_jitable(error_model="numpy")(dequantize)


@_inlined
def _largest(numbers, size):
    """The largest magnitude, NaN left out. Magnitudes compare as their bits do, which LLVM reduces in vectors."""
    B, found = view(numbers, size, np.int32), np.int32(0)
    for i in range(size):
        magnitude = np.int32(B[i] & np.int32(0x7FFFFFFF))
        found = max(found, magnitude if magnitude <= np.int32(INFINITE) else np.int32(0))
    return found


@_inlined
def _inverse(largest):
    """The factor that brings magnitudes to [0, 1]; 0 for a block of zeros."""
    return np.float32(1) / largest if largest > np.float32(0) else np.float32(0)


@cache
def _entry_finder(book: Codebook) -> Callable[..., Any]:
    """find(u): the nearest entry of a magnitude in [0, 1], as float32."""
    begins, scales, offsets, last = book.begins, book.scales, book.offsets, book.last
    least = np.float32(LEAST)

    def find(u):
        y = u if u > least else least  # NaN, too, counts as the smallest
        scale, offset, most = scales[0], offsets[0], last[0]
        for i in range(PIECES - 1):
            inside = y >= begins[i]
            scale = scales[i + 1] if inside else scale
            offset = offsets[i + 1] if inside else offset
            most = last[i + 1] if inside else most
        entry = np.float32(np.floor(y * scale + offset))
        return entry if entry < most else most

    return _inlined(find)


@cache
def _signing(book: Codebook) -> Callable[..., Any]:
    """code_of(entry, x): the code of the entry of a magnitude, with the sign of x."""
    signed = book.signed

    def code_of(entry, x):
        if signed:
            below = np.int32(ZERO) - entry
            code = (below if below > 0 else np.int32(0)) if x < 0 else np.int32(ZERO) + entry
        else:
            code = entry if x > 0 else np.int32(0)
        return np.uint8(code)

    return _inlined(code_of)


def _nearest(book: Codebook) -> Callable[..., None]:
    find, code_of = _entry_finder(book), _signing(book)

    def quantize(numbers, codes, largest, size, key, element):
        N, C, L = view(numbers, size, np.float32), view(codes, size, np.uint8), view(largest, 1, np.float32)
        view(largest, 1, np.int32)[0] = _largest(numbers, size)
        factor = _inverse(L[0])
        for i in range(size):
            entry = np.int32(find(abs(N[i]) * factor))
            C[i] = code_of(entry, N[i])

    return quantize


def _at_random(book: Codebook) -> Callable[..., None]:
    """Codes of one of the two neighbours: the larger with the probability of the number's part of the way to it."""
    find, code_of, entries = _entry_finder(book), _signing(book), book.entries
    top, least = len(entries) - 1, 0 if book.signed else 1

    def quantize(numbers, codes, largest, size, key, element):
        N, C, L = view(numbers, size, np.float32), view(codes, size, np.uint8), view(largest, 1, np.float32)
        view(largest, 1, np.int32)[0] = _largest(numbers, size)
        factor = _inverse(L[0])
        for i in range(size):
            u = abs(N[i]) * factor
            # the entry below, or the number itself
            entry = np.int32(find(u))
            entry = max(entry - np.int32(1), np.int32(least)) if entries[entry] > u else entry
            above = min(entry + np.int32(1), np.int32(top))
            draw = np.float32(dropout_draw(key, word(element + i)) >> word(53 - RANDOM_BITS)) * np.float32(RANDOM_UNIT)
            entry = above if draw * (entries[above] - entries[entry]) < u - entries[entry] else entry
            C[i] = code_of(entry, N[i])

    return quantize


@cache
def quantizer(book: Codebook, at_random: bool) -> Callable[..., None]:
    """quantize(numbers, codes, largest, size, key, element) for a codebook; element: number of the first."""
    return register_jitable(error_model="numpy")(_at_random(book) if at_random else _nearest(book))
