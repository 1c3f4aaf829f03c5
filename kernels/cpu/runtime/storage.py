"""Storage of values: kernels calculate in float32 and float64, and arrays may also be float16 or bfloat16.

A 16-bit value is widened to float32 when it is read, exactly, and rounded to nearest, ties to even, when it is written:
overflow becomes infinity, and NaN stays NaN. In kernels its type is uint16. float16 is converted by the processor if it
can, denormal numbers included. bfloat16 is the upper half of a float32; smaller values than its smallest normal number,
which is float32's, are written as zero, as processors do that have an instruction for it.

Stochastic rounding goes to one of the two neighbours of x, the more probably the nearer it is, so that it is right on
average: c added to p often enough moves p, even if each c is less than half a unit in p's last place. Its random
numbers are a function of the array, the step and the element, so they are the same on every backend.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir

from ...formulas import dropout_draw
from .frontend import intrinsic, register_jitable, types
from .primitives import INTERPRETED, bitcast, target_has, word

U = np.uint32


class BFloat(ir.Type):  # type: ignore[misc]
    """LLVM's type of bfloat16, which llvmlite does not name. LLVM 20 and later have vectors of it."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BFloat)

    def __hash__(self) -> int:
        return hash(BFloat)


# ---------------------------------------------------------------- bits
_bits = intrinsic(bitcast("float32", "uint32"))
_float32 = intrinsic(bitcast("uint32", "float32"))


@intrinsic
def _from_half(typingctx, bits):
    def codegen(context, builder, signature, args):
        return builder.fpext(builder.bitcast(args[0], ir.HalfType()), ir.FloatType())

    return types.float32(types.uint16), codegen


@intrinsic
def _to_half(typingctx, x):
    def codegen(context, builder, signature, args):
        return builder.bitcast(builder.fptrunc(args[0], ir.HalfType()), ir.IntType(16))

    return types.uint16(types.float32), codegen


def _bits_python(x):
    return np.float32(x).view(np.uint32)


def _float32_python(bits):
    return np.uint32(bits).view(np.float32)


bits_of, float32_of = (_bits_python, _float32_python) if INTERPRETED else (_bits, _float32)


@register_jitable(forceinline=True)
def from_half_by_bits(stored):
    size = U(U(stored) & U(0x7FFF))
    infinite = U(0x7F800000) if size >= U(0x7C00) else U(0)
    # both exact: exponents differ by 112; denormal numbers, which that would leave denormal, are multiples of 2^-24
    normal = bits_of(np.float32(float32_of(U(size << U(13))) * np.float32(2.0**112)))
    counted = bits_of(np.float32(np.float32(np.int32(size)) * np.float32(2.0**-24)))
    moved = counted if size < U(0x400) else normal
    return float32_of(U(U(moved | infinite) | U(U(U(stored) & U(0x8000)) << U(16))))


@register_jitable(forceinline=True)
def to_half_by_bits(x):
    b = bits_of(x)
    size = U(b & U(0x7FFFFFFF))
    # below 2^-14, where float16 has a fixed point, adding 0.5 leaves float32 with as many bits, and rounds
    fixed = U(bits_of(np.float32(float32_of(size) + np.float32(0.5))) - U(0x3F000000))
    normal = U(U(U(U(size - U(112 << 23)) + U(0xFFF)) + U(U(size >> U(13)) & U(1))) >> U(13))
    rounded = fixed if size < U(113 << 23) else normal
    rounded = U(0x7C00) if size >= U(143 << 23) else rounded
    rounded = U(0x7E00) if size > U(0x7F800000) else rounded
    return np.uint16(U(rounded | U(U(b & U(0x80000000)) >> U(16))))


def converts_half() -> bool:
    """True if Numba's target has instructions for float16; else LLVM would call functions that it does not find."""
    arm = platform.machine().lower() in ("aarch64", "arm64") and not INTERPRETED
    return arm or target_has("+f16c")


from_half, to_half = (_from_half, _to_half) if converts_half() else (from_half_by_bits, to_half_by_bits)


# ---------------------------------------------------------------- widen(stored), narrow(x, key, element)
@register_jitable(forceinline=True)
def as_it_is(x):
    return x


@register_jitable(forceinline=True)
def unrounded(x, key, element):
    return x


@register_jitable(forceinline=True)
def widen_float16(stored):
    return from_half(stored)


@register_jitable(forceinline=True)
def nearest_float16(x, key, element):
    return to_half(x)


@register_jitable(forceinline=True)
def stochastic_float16(x, key, element):
    # below 2^-14 float16 has a fixed point, and its last bit is 2^-24: with 2^-14 added, that is bit 13 here, too
    b = bits_of(x)
    sign = U(b & U(0x80000000))
    size = float32_of(U(b ^ sign))
    lift = np.float32(0.00006103515625) if size < np.float32(0.00006103515625) else np.float32(0)
    draw = U(dropout_draw(key, word(element)) >> word(40))
    cut = float32_of(U(U(bits_of(np.float32(size + lift)) + draw) & U(0xFFFFE000))) - lift
    return to_half(float32_of(U(bits_of(np.float32(cut)) | sign)) if x == x else x)


@register_jitable(forceinline=True)
def widen_bfloat16(stored):
    return float32_of(U(U(stored) << U(16)))


@register_jitable(forceinline=True)
def nearest_bfloat16(x, key, element):
    b = bits_of(x)
    rounded = U(U(b + U(0x7FFF)) + U(U(b >> U(16)) & U(1)))
    rounded = U(b & U(0x80000000)) if U(b & U(0x7F800000)) == U(0) else rounded
    return np.uint16((rounded if x == x else U(b | U(0x400000))) >> U(16))


@register_jitable(forceinline=True)
def round_bfloat16(x):
    """The nearest number of bfloat16, as float32."""
    return widen_bfloat16(nearest_bfloat16(x, 0, 0))


@register_jitable(forceinline=True)
def stochastic_bfloat16(x, key, element):
    b = bits_of(x)
    rounded = U(b + U(dropout_draw(key, word(element)) >> word(37)))
    return np.uint16((rounded if x == x else U(b | U(0x400000))) >> U(16))


# ---------------------------------------------------------------- is_rounding(p, x): p, widened, is x to nearest
@register_jitable(forceinline=True)
def rounding_float16(p, x):
    return from_half(to_half(x)) == p


@register_jitable(forceinline=True)
def rounding_bfloat16(p, x):
    # at most half a unit off: a third of the operations of rounding; not true of what rounding flushes to zero
    return U(U(bits_of(x) + U(0x8000)) - bits_of(p)) <= U(0x10000)


IS_ROUNDING = {"float16": rounding_float16, "bfloat16": rounding_bfloat16}


# ---------------------------------------------------------------- dtypes
class Store(NamedTuple):
    """Storage of an array's values."""

    dtype: type[np.generic]  # in memory
    T: type[np.generic]  # in calculations
    widen: Callable[..., Any]  # widen(stored)
    narrow: Callable[..., Any]  # narrow(x, key, element)

    @property
    def itemsize(self) -> int:
        return np.dtype(self.dtype).itemsize


STORES = {
    "float32": Store(np.float32, np.float32, as_it_is, unrounded),
    "float64": Store(np.float64, np.float64, as_it_is, unrounded),
    "float16": Store(np.uint16, np.float32, widen_float16, nearest_float16),
    "bfloat16": Store(np.uint16, np.float32, widen_bfloat16, nearest_bfloat16),
}
STOCHASTIC_STORES = {
    "float16": Store(np.uint16, np.float32, widen_float16, stochastic_float16),
    "bfloat16": Store(np.uint16, np.float32, widen_bfloat16, stochastic_bfloat16),
}



class Arithmetic(NamedTuple):
    """Numbers that layers compute in: what they hand to one another is kept as T, rounded to those numbers."""

    T: type[np.generic]
    round: Callable[..., Any]  # round(x)

    @property
    def itemsize(self) -> int:
        return np.dtype(self.T).itemsize


ARITHMETIC = {
    "float32": Arithmetic(np.float32, as_it_is),
    "float64": Arithmetic(np.float64, as_it_is),
    "bfloat16": Arithmetic(np.float32, round_bfloat16),
}

# NumPy has no bfloat16: an array of its bits is of uint16, or of the dtype of ml_dtypes, which is called bfloat16.
_NAMES = {np.dtype(name): name for name in ("float32", "float64", "float16")} | {np.dtype(np.uint16): "bfloat16"}


def name_of(dtype: np.dtype[Any]) -> str:
    """The name in STORES of an array's dtype."""
    return _NAMES.get(dtype) or dtype.name  # 4 us, so only for others
