"""Values of 16 bits in kernels: they lie in memory as such, and everything is computed in float32.

The conversions and roundings here are, bit for bit, those of the CPU's `storage.py` and of the reference. A value is
widened exactly. It is rounded to nearest, ties to even, or at random, by draws that are counted: functions of the
array, the step and the element. bfloat16 has no denormal numbers but zero where it is rounded to nearest.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir

from ...formulas import dropout_draw
from .compile import SIMULATED, device
from .primitives import word

DTYPES_16BIT = ("float16", "bfloat16")
U = np.uint32
I16, I32 = ir.IntType(16), ir.IntType(32)


# ---------------------------------------------------------------- conversions, as instructions of LLVM
def _widen_float16(builder: Any, bits: Any) -> Any:
    return builder.fpext(builder.bitcast(bits, ir.HalfType()), ir.FloatType())


def _narrow_float16(builder: Any, x: Any) -> Any:
    return builder.bitcast(builder.fptrunc(x, ir.HalfType()), I16)


def _widen_bfloat16(builder: Any, bits: Any) -> Any:
    return builder.bitcast(builder.shl(builder.zext(bits, I32), I32(16)), ir.FloatType())


def _narrow_bfloat16(builder: Any, x: Any) -> Any:
    """Half a unit of the last place is added, or a little less if the result is even already; the rest is cut off."""
    b = builder.bitcast(x, I32)
    odd = builder.and_(builder.lshr(b, I32(16)), I32(1))
    rounded = builder.add(builder.add(b, I32(0x7FFF)), odd)
    is_denormal = builder.icmp_unsigned("==", builder.and_(b, I32(0x7F800000)), I32(0))
    rounded = builder.select(is_denormal, builder.and_(b, I32(-0x80000000)), rounded)
    is_nan = builder.fcmp_unordered("uno", x, x)  # which must stay one, though its upper half may look like infinity
    rounded = builder.select(is_nan, builder.or_(b, I32(0x400000)), rounded)
    return builder.trunc(builder.lshr(rounded, I32(16)), I16)


def cut_bfloat16(builder: Any, x: Any) -> Any:
    """The upper half of a float32, which is exact where the value has been rounded to bfloat16 before."""
    return builder.trunc(builder.lshr(builder.bitcast(x, I32), I32(16)), I16)


WIDEN = {"float16": _widen_float16, "bfloat16": _widen_bfloat16}
NARROW = {"float16": _narrow_float16, "bfloat16": _narrow_bfloat16}


# ---------------------------------------------------------------- the same in Python
def _bits_python(x):
    return np.float32(x).view(U)


def _float32_python(bits):
    return U(bits).view(np.float32)


def _widen_float16_python(bits):
    return np.float32(np.uint16(bits).view(np.float16))


def _narrow_float16_python(x):
    with np.errstate(over="ignore"):
        return np.float16(x).view(np.uint16)


def _widen_bfloat16_python(bits):
    return _float32_python(U(bits) << U(16))


def _narrow_bfloat16_python(x):
    b = int(_bits_python(x))
    if x != x:
        return np.uint16((b | 0x400000) >> 16)
    return np.uint16((b & 0x80000000 if b & 0x7F800000 == 0 else b + 0x7FFF + (b >> 16 & 1)) >> 16)


def cut_bfloat16_python(x):
    return np.uint16(int(_bits_python(x)) >> 16)


WIDEN_PYTHON = {"float16": _widen_float16_python, "bfloat16": _widen_bfloat16_python}
NARROW_PYTHON = {"float16": _narrow_float16_python, "bfloat16": _narrow_bfloat16_python}


# ---------------------------------------------------------------- functions of kernels
def _compiled(emit: Callable[[Any, Any], Any], takes: str, gives: str) -> Any:
    """A function of one value that kernels can call, from LLVM's instructions."""
    from numba import cuda
    from numba.cuda.extending import intrinsic

    given, taken = getattr(cuda.types, gives), getattr(cuda.types, takes)

    @intrinsic
    def convert(typingctx, x):
        if x != taken:
            raise TypeError(f"the argument must be {taken}; got {x}")

        def codegen(context, builder, signature, args):
            return emit(builder, args[0])

        return given(taken), codegen

    return convert


@cache
def _widen(dtype: str) -> Any:
    return WIDEN_PYTHON[dtype] if SIMULATED else _compiled(WIDEN[dtype], "uint16", "float32")


@cache
def _narrow(dtype: str) -> Any:
    return NARROW_PYTHON[dtype] if SIMULATED else _compiled(NARROW[dtype], "float32", "uint16")


bits_of, float32_of = (
    (_bits_python, _float32_python)
    if SIMULATED
    else (
        _compiled(lambda builder, x: builder.bitcast(x, I32), "float32", "uint32"),
        _compiled(lambda builder, x: builder.bitcast(x, ir.FloatType()), "uint32", "float32"),
    )
)


def _same(x):
    return x


@cache
def round_to(dtype: str) -> Any:
    """Return a function that rounds to nearest, to a value of a dtype in the dtype that is computed with."""
    if dtype not in DTYPES_16BIT:
        return device(_same)
    widen, narrow = _widen(dtype), _narrow(dtype)

    def rounded(x):
        return widen(narrow(x))

    return device(rounded)


# ---------------------------------------------------------------- is_rounding(p, x): p, widened, is x to nearest
_half_of = round_to("float16")


def _is_rounding_float16(p, x):
    return _half_of(x) == p


def _is_rounding_bfloat16(p, x):
    # At most half a unit of the last place off, which takes a third of the operations of rounding.
    return U(U(bits_of(x) + U(0x8000)) - bits_of(p)) <= U(0x10000)


# ---------------------------------------------------------------- at_random(x, key, element): float32 of 16 bits
def _random_float16(x, key, element):
    # Below 2^-14 float16 has a fixed point, and its last place is 2^-24: with 2^-14 added, that is bit 13 here, too.
    b = bits_of(x)
    sign = U(b & U(0x80000000))
    size = float32_of(U(b ^ sign))
    lift = np.float32(0.00006103515625) if size < np.float32(0.00006103515625) else np.float32(0)
    draw = U(dropout_draw(key, word(element)) >> word(40))
    cut = np.float32(float32_of(U(U(bits_of(np.float32(size + lift)) + draw) & U(0xFFFFE000))) - lift)
    return float32_of(U(bits_of(cut) | sign)) if x == x else x


def _random_bfloat16(x, key, element):
    b = bits_of(x)
    rounded = U(b + U(dropout_draw(key, word(element)) >> word(37)))
    return float32_of(rounded if x == x else U(b | U(0x400000)))


IS_ROUNDING = {"float16": _is_rounding_float16, "bfloat16": _is_rounding_bfloat16}
AT_RANDOM = {"float16": _random_float16, "bfloat16": _random_bfloat16}
