"""Codes of a whole block in the vectors of AVX2: see `blockwise_vectors`.

A register holds tables of 8 words. So the piece of a number is found in two steps: the upper half of its bits, times a
constant, tells the decade, if not exactly where it begins, and a comparison with where the next piece begins settles
that. There are 9 pieces, and the first shares its entry in the tables with the last. 8 elements take 18
instructions to quantize. To dequantize them is 8 loads: a gather takes 5.5 ns for 8 on Zen 3, loads into the lanes 3.0.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir

from ...formulas.blockwise import DECADES, EIGHT_NINTHS, OF_ONE, ZERO, Codebook
from ..runtime.frontend import cgutils
from ..runtime.primitives import target_has
from .vector_code import BYTE, FLOAT, HALF, WORD, Lanes, call, constant, larger, load, shuffle, store

AVAILABLE = target_has("+avx2")
V = Lanes(8)
STEP = 8  # codes that `dequantize` takes
TAKES_TURNS = True  # one chain takes some 10 cycles of Zen 3 for 8 elements, which 64 waiting instructions cannot hide
HALVES = ir.VectorType(HALF, 16)
# The upper half of a float32 counts 128 an octave, 412 to 426 a decade. Times this factor, of 65,536ths, it is 32 and
# the number of the piece, or of the one before: pieces begin 0.35 to 0.65 after the whole numbers.
DECADE_FACTOR, FIRST_DECADE = 159, 32
BELOW_TWO = 2 - 2.0**-23  # the largest float32 below 2


def _call(builder: Any, name: str, result: Any, *args: Any) -> Any:
    return call(builder, f"x86.avx2.{name}", result, *args)


def _look_up(builder: Any, table: np.ndarray, index: Any) -> Any:
    """Entries of a table of 8 float32 numbers, by the lower three bits of an index."""
    return _call(builder, "permps", V.floats, constant(table.astype(np.float32), FLOAT), index)


def dequantize(builder: Any, book: Codebook, codes: Any, first: int, scale: Any, numbers: Any) -> None:
    """Store the numbers of 8 codes, from the element `first` on, times the scale."""
    of_values = ir.ArrayType(FLOAT, 256)
    table = cgutils.global_constant(builder, "values", ir.Constant(of_values, [value.item() for value in book.values]))
    found = ir.Constant(V.floats, ir.Undefined)
    for lane in range(V.lanes):
        code = builder.zext(load(builder, codes, first + lane, BYTE, 1), ir.IntType(64))
        value = builder.load(builder.gep(table, [ir.Constant(ir.IntType(64), 0), code], inbounds=True), align=4)
        found = builder.insert_element(found, value, WORD(lane))
    store(builder, builder.fmul(found, scale), numbers, 4 * first, V.bytes)


def _piece(builder: Any, book: Codebook, y: Any) -> Any:
    """FIRST_DECADE and the piece of numbers between half of where piece 1 begins and 1."""
    factor = builder.bitcast(V.same(DECADE_FACTOR, WORD), HALVES)
    halves = builder.lshr(builder.bitcast(y, V.words), V.same(16, WORD))
    decade = builder.bitcast(_call(builder, "pmulhu.w", HALVES, builder.bitcast(halves, HALVES), factor), V.words)
    # this piece, or the next
    inside = builder.fcmp_ordered(">=", y, _look_up(builder, book.begins, decade))
    return builder.sub(decade, builder.sext(inside, V.words))


def code(builder: Any, book: Codebook, x: Any, factor: Any) -> Any:
    """Codes of 8 numbers as words, less what `store_codes` adds."""
    u = builder.fmul(x, factor)
    # NaN counts as the least; the unsigned map has no piece of 0, see `blockwise_avx512`
    u, part = (V.magnitude(builder, u), 0.5) if book.signed else (u, 1.0)
    y = larger(builder, u, V.same(book.begins[0].item() * part))
    piece = _piece(builder, book, y)
    # t, or half of it, whose exponent gets the piece
    unit = part * 2.0**-FIRST_DECADE
    t = builder.fadd(builder.fmul(y, _look_up(builder, _factors() * unit, piece)), V.same(EIGHT_NINTHS * unit))
    most = V.same(BELOW_TWO * unit)
    t = builder.select(builder.fcmp_ordered("<", t, most), t, most)
    bits = builder.add(builder.bitcast(t, V.words), builder.shl(piece, V.same(23, WORD)))
    entry = builder.fptosi(builder.bitcast(bits, V.floats), V.words)
    if book.signed:
        return _call(builder, "psign.d", V.words, entry, builder.bitcast(x, V.words))
    return builder.select(builder.fcmp_ordered(">", x, V.same(0.0)), entry, V.same(0, WORD))


def _factors() -> np.ndarray:
    """10^(6 - e) / 0.9 of decade e, by the lower bits of its piece; those of 0 and 1 share the first."""
    return np.array([OF_ONE, *(10.0 ** (DECADES - 1 - e) / 0.9 for e in range(DECADES))]).astype(np.float32)


def store_codes(builder: Any, book: Codebook, codes: list[Any], address: Any, skip: int) -> None:
    """Store four registers of words as bytes, packed with saturation: the largest negative number gets the code 0."""
    zero = ir.Constant(HALVES, [ZERO if book.signed else -book.before] * HALVES.count)
    ab, cd = (builder.add(_call(builder, "packssdw", HALVES, a, b), zero) for a, b in (codes[:2], codes[2:]))
    # in each half of the result there are four codes of each register
    mixed = builder.bitcast(_call(builder, "packuswb", V.octets, ab, cd), V.words)
    store(builder, builder.bitcast(shuffle(builder, mixed, mixed, _HALVES), V.octets), address, skip, 1)


_HALVES = np.arange(V.lanes, dtype=np.int32).reshape(2, 4).T.ravel()

assert len(_factors()) == V.lanes
