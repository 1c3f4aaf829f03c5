"""Codes of a whole block in the vectors of AVX-512 VBMI: see `blockwise_vectors`.

LLVM's vectoriser makes sixteen loads of a look-up in a table. A table of 256 bytes is four registers, though, which two
instructions of AVX-512 VBMI look up 64 elements in: so the map's float32 numbers are four tables, one for each of their
bytes, whose results are interleaved: 21 instructions for 64 elements. Tables of the 32 exponents and of the pieces of a
map are one or two registers. The signed map needs fewer: numbers are looked up by their magnitudes. 16 elements take 4
or 6 instructions to dequantize, and 14 to quantize; those of Adam take 25.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir

from ...formulas.blockwise import DECADES, EIGHT_NINTHS, EXPONENTS, LEAST, OF_ONE, ZERO, Codebook
from ..runtime.primitives import target_has
from .vector_code import BYTE, FLOAT, HALF, WORD, Lanes, call, constant, load, shuffle, store

AVAILABLE = target_has("+avx512vbmi") and target_has("+avx512bw") and target_has("+avx512dq")
V = Lanes(16)
STEP = 64  # codes that `dequantize` takes
TAKES_TURNS = False
BELOW_TWO = 0x3FFFFFFF  # bits of the largest float32 below 2
ABSOLUTE_MAXIMUM = 0b1011  # of vrangeps: the larger magnitude, with the sign +
BYTES, WORDS, FLOATS, HALVES = V.octets, V.words, V.floats, ir.VectorType(HALF, 32)


def _call(builder: Any, name: str, result: Any, *args: Any) -> Any:
    return call(builder, f"x86.avx512.{name}", result, *args)


# ---------------------------------------------------------------- dequantize
def _planes(values: np.ndarray) -> list[list[Any]]:
    """Tables of each of the four bytes of float32 numbers, 64 to a register."""
    of_bytes = np.ascontiguousarray(values.view(np.uint8).reshape(-1, 4).T)
    return [[constant(part, BYTE) for part in plane.reshape(-1, 64)] for plane in of_bytes]


def _unsigned_bytes(builder: Any, book: Codebook, code: Any) -> list[Any]:
    """The bytes of the numbers of 64 codes, each looked up in a table of four registers."""
    upper, found = builder.icmp_signed("<", code, V.same_octets(0)), []
    for tables in _planes(book.values):
        low = _call(builder, "vpermi2var.qi.512", BYTES, tables[0], code, tables[1])
        high = _call(builder, "vpermi2var.qi.512", BYTES, tables[2], code, tables[3])
        found.append(builder.select(upper, high, low))
    return found


def _signed_bytes(builder: Any, book: Codebook, code: Any) -> list[Any]:
    """The same of the signed map, by the distance from the code of 0: a table of two registers, and the sign.

    The largest code has a distance of 128, of which the table sees the lower 7 bits, and a number of its own, 1.
    """
    distance = builder.sub(code, V.same_octets(ZERO))
    size = builder.select(
        builder.icmp_signed("<", distance, V.same_octets(0)), builder.sub(V.same_octets(0), distance), distance
    )
    found = [
        _call(builder, "vpermi2var.qi.512", BYTES, tables[0], size, tables[1]) for tables in _planes(book.entries[:128])
    ]
    found[3] = builder.or_(found[3], builder.and_(distance, V.same_octets(0x80)))
    is_one = builder.icmp_signed("==", code, V.same_octets(255))
    for k, byte in ((2, 0x80), (3, 0x3F)):  # of 1.0, whose lower bytes are 0, as those found of a distance of 0
        found[k] = builder.select(is_one, V.same_octets(byte), found[k])
    return found


def _unpack_indices(width: int, half: int) -> np.ndarray:
    """Shuffle of two registers of 64 bytes in pieces of `width`: in each of their four parts, half of the pieces."""
    pieces = 16 // width
    own = np.arange(pieces // 2) + half * (pieces // 2)
    pairs = np.stack([own, own + 64 // width], 1).ravel()
    return np.concatenate([pairs + part * pieces for part in range(4)])


def _unpack(builder: Any, a: Any, b: Any, kind: Any, half: int) -> Any:
    """Interleave two registers of bytes in pieces of a kind of integers."""
    vector = ir.VectorType(kind, 512 // kind.width)
    mixed = shuffle(
        builder, builder.bitcast(a, vector), builder.bitcast(b, vector), _unpack_indices(kind.width // 8, half)
    )
    return builder.bitcast(mixed, BYTES)


def dequantize(builder: Any, book: Codebook, codes: Any, first: int, scale: Any, numbers: Any) -> None:
    """Store the numbers of 64 codes, from the element `first` on, times the scale."""
    bytes_of = _signed_bytes if book.signed else _unsigned_bytes
    # codes in the order that the interleaving will undo: groups of four, transposed as a 4 x 4 matrix
    stored = builder.bitcast(load(builder, codes, first, BYTES, 1), WORDS)
    turned = shuffle(builder, stored, stored, _QUARTERS)
    # each byte of the numbers
    found = bytes_of(builder, book, builder.bitcast(turned, BYTES))
    # the bytes of each number together
    for i in range(2):
        low = _unpack(builder, found[0], found[1], BYTE, i)
        high = _unpack(builder, found[2], found[3], BYTE, i)
        for j in range(2):
            values = builder.bitcast(_unpack(builder, low, high, HALF, j), FLOATS)
            store(builder, builder.fmul(values, scale), numbers, 4 * first + 64 * (2 * i + j), 64)


# ---------------------------------------------------------------- quantize
def code(builder: Any, book: Codebook, x: Any, factor: Any) -> Any:
    """Codes of 16 numbers as words, before `store_codes` brings them to 8 bits.

    They are ZERO less the code of the signed map, and the code and 1 of the unsigned one, or 0 where x is not above 0.
    """
    entry = _entry(builder, book, builder.fmul(x, factor))
    if book.signed:
        return builder.fptosi(V.other_sign(builder, x, entry), WORDS)
    entry = builder.fptosi(builder.bitcast(entry, FLOATS), WORDS)
    return builder.select(builder.fcmp_ordered(">", x, V.same(0.0)), entry, V.same(0, WORD))


def _entry(builder: Any, book: Codebook, u: Any) -> Any:
    """The nearest entries of magnitudes, and BEFORE, as bits of float32 that truncation makes the number of.

    t is between 1 and 2, and gets an exponent by its piece: see `formulas.blockwise`. The pieces of 0 and 1 of the
    signed map have t = 8/9, with an exponent of -1, and t just above 1. The unsigned map has no piece of 0: its entry 1
    is the first of piece 1, and squares above 0 have no lower one.
    """
    # the larger of |u| and the least, which NaN counts as
    y = _range(builder, u, V.same(LEAST if book.signed else book.begins[0].item()))
    # its bits with the exponent of its piece: the one of 1.0, for piece 0 of the unsigned map, is 127
    first_field = 126 if book.signed else 127
    tables = [constant(part) for part in (book.shifts + (first_field << 23)).reshape(2, V.lanes)]
    bits, by_23 = builder.bitcast(y, WORDS), V.same(23, WORD)
    shift = _call(builder, "vpermi2var.d.512", WORDS, tables[0], builder.lshr(bits, by_23), tables[1])
    exponent = builder.add(bits, shift)
    # t, and its bits with that exponent
    factors = constant(_factors(first_field), FLOAT)
    scale = _call(builder, "permvar.sf.512", FLOATS, factors, builder.lshr(exponent, by_23))
    t = builder.bitcast(builder.fadd(builder.fmul(y, scale), V.same(EIGHT_NINTHS)), WORDS)
    t = builder.select(builder.icmp_signed("<", t, V.same(BELOW_TWO, WORD)), t, V.same(BELOW_TWO, WORD))
    mantissa = V.same((1 << 23) - 1, WORD)
    return builder.or_(builder.and_(t, mantissa), builder.and_(exponent, builder.not_(mantissa)))


def _range(builder: Any, a: Any, b: Any) -> Any:
    """The larger magnitude of two; that of b where a is NaN."""
    whole, current = ir.Constant(ir.IntType(16), -1), WORD(4)  # all lanes; rounding as it is set
    return _call(builder, "mask.range.ps.512", FLOATS, a, b, WORD(ABSOLUTE_MAXIMUM), a, whole, current)


def _factors(first_field: int) -> np.ndarray:
    """10^(6 - e) / 0.9 of decade e, by the lower bits of its exponent field; (16,) float32."""
    found = np.zeros(V.lanes, np.float32)
    for e in range(DECADES):
        found[(first_field + 1 + e) % V.lanes] = 10.0 ** (DECADES - 1 - e) / 0.9
    found[(first_field + 1 + DECADES) % V.lanes] = OF_ONE
    return found


def store_codes(builder: Any, book: Codebook, codes: list[Any], address: Any, skip: int) -> None:
    """Store four registers of words as bytes.

    They are packed with saturation. So the signed map's 128, of the largest negative number, becomes 127, for which
    there is a code, and -128, of the largest number, stays; the unsigned map's -1 becomes 0.
    """
    ab, cd = (_call(builder, "packssdw.512", HALVES, a, b) for a, b in (codes[:2], codes[2:]))
    if not book.signed:
        ab, cd = (builder.sub(pair, ir.Constant(HALVES, [1] * HALVES.count)) for pair in (ab, cd))
    # in each quarter of the result there are four codes of each register
    mixed = builder.bitcast(_call(builder, "packsswb.512" if book.signed else "packuswb.512", BYTES, ab, cd), WORDS)
    found = builder.bitcast(shuffle(builder, mixed, mixed, _QUARTERS), BYTES)
    if book.signed:
        found = builder.sub(V.same_octets(ZERO), found)
    store(builder, found, address, skip, 1)


_QUARTERS = np.arange(V.lanes, dtype=np.int32).reshape(4, 4).T.ravel()


assert 2 * V.lanes == EXPONENTS  # one table of two registers
