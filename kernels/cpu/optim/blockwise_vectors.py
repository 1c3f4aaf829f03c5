"""Codes of a whole block in the vectors of AVX-512, with the bits of `blockwise_codes`.

LLVM's vectoriser makes sixteen loads of a look-up in a table. A table of 256 bytes is four registers, though, which two
instructions of AVX-512 VBMI look up 64 elements in: so the map's float32 numbers are four tables, one for each of their
bytes, whose results are interleaved: 21 instructions for 64 elements. Tables of the 32 exponents and of the pieces of a
map are one or two registers. The signed map needs fewer: numbers are looked up by their magnitudes, and entries of its
decades are powers of 2. 16 elements take 4 or 6 instructions to dequantize, and 14 or 16 to quantize; those of Adam
take 25.

    dequantize(codes, largest, numbers)   a whole block; all are addresses, numbers aligned to 64 bytes
    factor = measure(numbers, largest)
    quantize(numbers, codes, factor)
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir

from ...formulas.blockwise import BLOCK, DECADES, EXPONENTS, LEAST, ZERO, Codebook
from ..runtime.frontend import cgutils, intrinsic, types
from ..runtime.primitives import target_has

AVAILABLE = target_has("+avx512vbmi") and target_has("+avx512bw") and target_has("+avx512dq")
LANES = 16  # float32 numbers of a register
FIRST_FIELD = 126  # of the signed map: the exponent field of 2^-1, of the piece of 0
BELOW_TWO = 0x3FFFFFFF  # bits of the largest float32 below 2
ABSOLUTE_MAXIMUM = 0b1011  # of vrangeps: the larger magnitude, with the sign +
BYTE, WORD, FLOAT = ir.IntType(8), ir.IntType(32), ir.FloatType()
BYTES, WORDS, FLOATS = ir.VectorType(BYTE, 64), ir.VectorType(WORD, LANES), ir.VectorType(FLOAT, LANES)


def _constant(values: Any, kind: Any = WORD) -> Any:
    return ir.Constant(ir.VectorType(kind, len(values)), [value.item() for value in values])


def _same(number: float, kind: Any = FLOAT) -> Any:
    return ir.Constant(ir.VectorType(kind, LANES), [number] * LANES)


def _all_bytes(value: int) -> Any:
    return ir.Constant(BYTES, [value] * 64)


def _call(builder: Any, name: str, result: Any, *args: Any) -> Any:
    """Call an instruction of the processor by LLVM's name for it."""
    kind = ir.FunctionType(result, [arg.type for arg in args])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.x86.avx512.{name}"), args)


def _shuffle(builder: Any, a: Any, b: Any, indices: Any) -> Any:
    return builder.shuffle_vector(a, b, _constant(np.asarray(indices)))


def _load(builder: Any, address: Any, skip: int, kind: Any, align: int) -> Any:
    at = builder.add(address, ir.Constant(ir.IntType(64), skip))
    return builder.load(builder.inttoptr(at, kind.as_pointer()), align=align)


def _store(builder: Any, value: Any, address: Any, skip: int, align: int) -> None:
    at = builder.add(address, ir.Constant(ir.IntType(64), skip))
    builder.store(value, builder.inttoptr(at, value.type.as_pointer()), align=align)


def _broadcast(builder: Any, number: Any) -> Any:
    one = builder.insert_element(ir.Constant(FLOATS, ir.Undefined), number, WORD(0))
    return _shuffle(builder, one, one, np.zeros(LANES, np.int32))


def _larger(builder: Any, a: Any, b: Any) -> Any:
    """The larger one; b where a is NaN."""
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


def _magnitude(builder: Any, x: Any) -> Any:
    bits = builder.and_(builder.bitcast(x, WORDS), _same(0x7FFFFFFF, WORD))
    return builder.bitcast(bits, FLOATS)


# ---------------------------------------------------------------- dequantize
def _planes(values: np.ndarray) -> list[list[Any]]:
    """Tables of each of the four bytes of float32 numbers, 64 to a register."""
    of_bytes = np.ascontiguousarray(values.view(np.uint8).reshape(-1, 4).T)
    return [[_constant(part, BYTE) for part in plane.reshape(-1, 64)] for plane in of_bytes]


def _unsigned_bytes(builder: Any, book: Codebook, code: Any) -> list[Any]:
    """The bytes of the numbers of 64 codes, each looked up in a table of four registers."""
    upper, found = builder.icmp_signed("<", code, _all_bytes(0)), []
    for tables in _planes(book.values):
        low = _call(builder, "vpermi2var.qi.512", BYTES, tables[0], code, tables[1])
        high = _call(builder, "vpermi2var.qi.512", BYTES, tables[2], code, tables[3])
        found.append(builder.select(upper, high, low))
    return found


def _signed_bytes(builder: Any, book: Codebook, code: Any) -> list[Any]:
    """The same of the signed map, by the distance from the code of 0: a table of two registers, and the sign.

    The largest code has a distance of 128, of which the table sees the lower 7 bits, and a number of its own, 1.
    """
    distance = builder.sub(code, _all_bytes(ZERO))
    size = builder.select(
        builder.icmp_signed("<", distance, _all_bytes(0)), builder.sub(_all_bytes(0), distance), distance
    )
    found = [
        _call(builder, "vpermi2var.qi.512", BYTES, tables[0], size, tables[1]) for tables in _planes(book.entries[:128])
    ]
    found[3] = builder.or_(found[3], builder.and_(distance, _all_bytes(0x80)))
    is_one = builder.icmp_signed("==", code, _all_bytes(255))
    for k, byte in ((2, 0x80), (3, 0x3F)):  # of 1.0, whose lower bytes are 0, as those found of a distance of 0
        found[k] = builder.select(is_one, _all_bytes(byte), found[k])
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
    mixed = _shuffle(
        builder, builder.bitcast(a, vector), builder.bitcast(b, vector), _unpack_indices(kind.width // 8, half)
    )
    return builder.bitcast(mixed, BYTES)


@cache
def dequantizer(book: Codebook) -> Callable[..., Any]:
    """dequantize(codes, largest, numbers) for a codebook."""
    bytes_of = _signed_bytes if book.signed else _unsigned_bytes

    @intrinsic
    def dequantize(typingctx, codes, largest, numbers):
        def codegen(context, builder, signature, args):
            scale = _broadcast(builder, _load(builder, args[1], 0, FLOAT, 4))
            for first in range(0, BLOCK, 64):
                # codes in the order that the interleaving will undo: groups of four, transposed as a 4 x 4 matrix
                stored = builder.bitcast(_load(builder, args[0], first, BYTES, 1), WORDS)
                turned = _shuffle(builder, stored, stored, np.arange(LANES, dtype=np.int32).reshape(4, 4).T.ravel())
                # each byte of the numbers
                found = bytes_of(builder, book, builder.bitcast(turned, BYTES))
                # the bytes of each number together
                for i in range(2):
                    low = _unpack(builder, found[0], found[1], BYTE, i)
                    high = _unpack(builder, found[2], found[3], BYTE, i)
                    for j in range(2):
                        numbers = builder.bitcast(_unpack(builder, low, high, ir.IntType(16), j), FLOATS)
                        _store(builder, builder.fmul(numbers, scale), args[2], 4 * first + 64 * (2 * i + j), 64)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, types.int64), codegen

    return dequantize


# ---------------------------------------------------------------- quantize
def _shifted(builder: Any, book: Codebook, y: Any, first_field: int = 0) -> tuple[Any, Any]:
    """The bits of y with an exponent field of first_field and the piece, and that field alone; see `blockwise`."""
    tables = [_constant(part) for part in (book.shifts + (first_field << 23)).reshape(2, LANES)]
    bits, by_23 = builder.bitcast(y, WORDS), _same(23, WORD)
    shift = _call(builder, "vpermi2var.d.512", WORDS, tables[0], builder.lshr(bits, by_23), tables[1])
    found = builder.add(bits, shift)
    return found, builder.lshr(found, by_23)


def _entry(builder: Any, book: Codebook, u: Any) -> Any:
    """The nearest entries of numbers in [0, 1], as float32 that truncation makes the number of; see `blockwise`."""
    y = _larger(builder, u, _same(LEAST))
    _, piece = _shifted(builder, book, y)
    scale, offset, last = (
        _call(builder, "permvar.sf.512", FLOATS, _constant(table, FLOAT), piece)
        for table in (book.scales, book.offsets, book.last)
    )
    entry = builder.fadd(builder.fmul(y, scale), offset)
    return builder.select(builder.fcmp_ordered("<", entry, last), entry, last)


def _code(builder: Any, book: Codebook, x: Any, factor: Any) -> Any:
    """Codes of 16 numbers, of 32 bits; of the signed map ZERO less the code, before it is brought to 8 bits."""
    if not book.signed:
        entry = builder.fptosi(_entry(builder, book, builder.fmul(x, factor)), WORDS)
        return builder.select(builder.fcmp_ordered(">", x, _same(0.0)), entry, _same(0, WORD))
    entry = _signed_entry(builder, book, builder.fmul(x, factor))
    # the entry with the other sign than x has
    rest = builder.and_(builder.not_(builder.bitcast(x, WORDS)), _same(-(1 << 31), WORD))
    return builder.fptosi(builder.bitcast(builder.or_(entry, rest), FLOATS), WORDS)


def _signed_entry(builder: Any, book: Codebook, u: Any) -> Any:
    """The bits of `_entry` of the signed map for numbers of any sign, without tables of offsets and of last entries.

    Decade e has the entries from 2^e to 2^(e + 1) - 1, so that an entry is 2^e t with t = u 10^(6 - e) / 0.9 + 8/9,
    which is between 1 and 2, where it is rounded as that of `_entry` is: t is cut off below 2, and its exponent becomes
    e. The pieces of 0 and of 1 are e = -1, with t = 8/9, and e = 7.
    """
    # the larger of |u| and LEAST, which NaN counts as
    y = _range(builder, u, _same(LEAST))
    exponent, field = _shifted(builder, book, y, FIRST_FIELD)
    scale = _call(builder, "permvar.sf.512", FLOATS, _constant(_factors(), FLOAT), field)
    t = builder.bitcast(builder.fadd(builder.fmul(y, scale), _same(float(np.float32(8 / 9)))), WORDS)
    t = builder.select(builder.icmp_signed("<", t, _same(BELOW_TWO, WORD)), t, _same(BELOW_TWO, WORD))
    mantissa = _same((1 << 23) - 1, WORD)
    return builder.or_(builder.and_(t, mantissa), builder.and_(exponent, builder.not_(mantissa)))


def _range(builder: Any, a: Any, b: Any) -> Any:
    """The larger magnitude of two; that of b where a is NaN."""
    whole, current = ir.Constant(ir.IntType(16), -1), WORD(4)  # all lanes; rounding as it is set
    return _call(builder, "mask.range.ps.512", FLOATS, a, b, WORD(ABSOLUTE_MAXIMUM), a, whole, current)


def _factors() -> np.ndarray:
    """10^(6 - e) / 0.9 of decade e, by the lower bits of its exponent field; (LANES,) float32."""
    found = np.zeros(LANES, np.float32)
    for e in range(DECADES):
        found[(FIRST_FIELD + 1 + e) % LANES] = 10.0 ** (DECADES - 1 - e) / 0.9
    found[(FIRST_FIELD + 1 + DECADES) % LANES] = 0.113  # of the piece of 1: t is a little above 1
    return found


def _store_codes(builder: Any, book: Codebook, codes: list[Any], address: Any, skip: int) -> None:
    """Store four registers of 32 bits as bytes.

    Bytes are packed with saturation. So the signed map's 128, of the largest negative number, becomes 127, for which
    there is a code, and -128, of the largest number, stays.
    """
    halves, packed = ir.VectorType(ir.IntType(16), 32), "packsswb.512" if book.signed else "packuswb.512"
    ab = _call(builder, "packssdw.512", halves, codes[0], codes[1])
    cd = _call(builder, "packssdw.512", halves, codes[2], codes[3])
    # in each quarter of the result there are four codes of each register
    mixed = builder.bitcast(_call(builder, packed, BYTES, ab, cd), WORDS)
    found = builder.bitcast(_shuffle(builder, mixed, mixed, _QUARTERS), BYTES)
    if book.signed:
        found = builder.sub(_all_bytes(ZERO), found)
    _store(builder, found, address, skip, 1)


_QUARTERS = np.arange(LANES, dtype=np.int32).reshape(4, 4).T.ravel()


@cache
def measurer(book: Codebook) -> Callable[..., Any]:
    """measure(numbers, largest) for a codebook: writes the largest magnitude, and returns the factor of `quantize`."""

    @intrinsic
    def measure(typingctx, numbers, largest):
        def codegen(context, builder, signature, args):
            # four chains, since each maximum waits for the one before
            found = [_same(0.0)] * 4
            for i in range(BLOCK // LANES):
                x = _load(builder, args[0], 64 * i, FLOATS, 64)
                x = _magnitude(builder, x) if book.signed else x
                found[i % 4] = _larger(builder, x, found[i % 4])
            most = _larger(builder, _larger(builder, found[0], found[1]), _larger(builder, found[2], found[3]))
            kind = ir.FunctionType(WORD, [WORDS])
            reduce = cgutils.get_or_insert_function(builder.module, kind, "llvm.vector.reduce.umax.v16i32")
            top = builder.bitcast(builder.call(reduce, [builder.bitcast(most, WORDS)]), FLOAT)
            _store(builder, top, args[1], 0, 4)
            inverse = builder.fdiv(ir.Constant(FLOAT, 1.0), top)
            some = builder.fcmp_ordered(">", top, ir.Constant(FLOAT, 0.0))
            return builder.select(some, inverse, ir.Constant(FLOAT, 0.0))

        return types.float32(types.int64, types.int64), codegen

    return measure


@cache
def quantizer(book: Codebook) -> Callable[..., Any]:
    """quantize(numbers, codes, factor) for a codebook."""

    @intrinsic
    def quantize(typingctx, numbers, codes, factor):
        def codegen(context, builder, signature, args):
            factor = _broadcast(builder, args[2])
            for first in range(0, BLOCK, 64):
                parts = [_load(builder, args[0], 4 * first + 64 * k, FLOATS, 64) for k in range(4)]
                codes_of = [_code(builder, book, x, factor) for x in parts]
                _store_codes(builder, book, codes_of, args[1], first)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, types.float32), codegen

    return quantize


assert EXPONENTS == 2 * LANES  # one table of two registers
