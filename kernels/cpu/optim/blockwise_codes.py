"""Codes of 8 bits for the states of a block, and back: see `formulas.blockwise`.

    dequantize(codes, largest, numbers, size)              numbers = values[code] times the largest magnitude
    quantize(numbers, codes, largest, size, key, element)  codes of the numbers, and their largest magnitude

All arguments but the last three are addresses; a block has BLOCK elements, or fewer at the end of an array. Tables are
in the code. The piece of a number is found by comparing it with all of them, eight comparisons and selections, of
which LLVM makes vectors on every processor; a look-up by the exponent would be a load an element. Processors with AVX2
or AVX-512 VBMI hold tables in registers and permute them (`blockwise_vectors.py`), with the same bits.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from ...formulas import blockwise as formulas
from ...formulas import dropout_draw
from ...formulas.blockwise import INFINITE, RANDOM_BITS, RANDOM_UNIT, Codebook
from ...formulas.dropout import mix
from ..runtime.frontend import register_jitable
from ..runtime.primitives import view, word

_inlined = register_jitable(error_model="numpy", forceinline=True)

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


_inverse = _inlined(formulas.inverse)


@cache
def _formulas(book: Codebook) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The formulas of entries and codes, for kernels."""
    return _inlined(formulas.entry_of(book)), _inlined(formulas.code_of(book))


def _nearest(book: Codebook) -> Callable[..., None]:
    find, code_of = _formulas(book)

    def quantize(numbers, codes, largest, size, key, element):
        N, C, L = view(numbers, size, np.float32), view(codes, size, np.uint8), view(largest, 1, np.float32)
        view(largest, 1, np.int32)[0] = _largest(numbers, size)
        factor = _inverse(L[0])
        for i in range(size):
            entry = np.int32(np.floor(find(abs(N[i]) * factor)))
            C[i] = code_of(entry, N[i])

    return quantize


def _at_random(book: Codebook) -> Callable[..., None]:
    """Codes of one of the two neighbours: the larger with the probability of the number's part of the way to it."""
    (find, code_of), entries = _formulas(book), book.entries
    top, least = len(entries) - 1, 0 if book.signed else 1

    def quantize(numbers, codes, largest, size, key, element):
        N, C, L = view(numbers, size, np.float32), view(codes, size, np.uint8), view(largest, 1, np.float32)
        view(largest, 1, np.int32)[0] = _largest(numbers, size)
        factor = _inverse(L[0])
        for i in range(size):
            u = abs(N[i]) * factor
            # the entry below, or the number itself
            entry = np.int32(np.floor(find(u)))
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
