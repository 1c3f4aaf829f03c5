"""Numbers of 16 bits in kernels: they lie in memory as such, and everything is computed in float32."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir

from .compile import SIMULATED, device

HALVES = ("float16", "bfloat16")


def stored(kind: str) -> str:
    """What kernels load and store for an array of this dtype."""
    return "uint16" if kind in HALVES else kind


def computed(kind: str) -> str:
    """The dtype that formulas are evaluated in."""
    return "float32" if kind in HALVES else kind


def low(word):
    """The first of two that lie in a word of 32 bits."""
    return np.uint16(word & np.uint32(0xFFFF))


def high(word):
    """The second."""
    return np.uint16(word >> np.uint32(16))


def join(first, second):
    return np.uint32(np.uint32(first) | (np.uint32(second) << np.uint32(16)))


def _same(x):
    return x


def _widen16(builder: Any, word: Any) -> Any:
    return builder.fpext(builder.bitcast(word, ir.HalfType()), ir.FloatType())


def _narrow16(builder: Any, number: Any) -> Any:
    return builder.bitcast(builder.fptrunc(number, ir.HalfType()), ir.IntType(16))


def _widen_b16(builder: Any, word: Any) -> Any:
    word = builder.shl(builder.zext(word, ir.IntType(32)), ir.IntType(32)(16))
    return builder.bitcast(word, ir.FloatType())


def _narrow_b16(builder: Any, number: Any) -> Any:
    """To nearest, ties to even: half of what is dropped is added, or a little less if the result is even already."""
    i32 = ir.IntType(32)
    word = builder.bitcast(number, i32)
    odd = builder.and_(builder.lshr(word, i32(16)), i32(1))
    rounded = builder.lshr(builder.add(builder.add(word, i32(0x7FFF)), odd), i32(16))
    is_nan = builder.fcmp_unordered("uno", number, number)  # whose last bits might be all there is
    return builder.trunc(builder.select(is_nan, i32(0x7FC0), rounded), ir.IntType(16))


# LLVM's instructions, of a builder and a value.
WIDEN = {"float16": _widen16, "bfloat16": _widen_b16}
NARROW = {"float16": _narrow16, "bfloat16": _narrow_b16}


def _compiled(emit: Callable[[Any, Any], Any], takes: str, gives: str) -> Any:
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


def _simulated_widen(kind: str) -> Callable[..., Any]:
    def widen(word):
        if kind == "float16":
            return np.float32(np.uint16(word).view(np.float16))
        return np.uint32(np.uint32(word) << np.uint32(16)).view(np.float32)

    return widen


def _simulated_narrow(kind: str) -> Callable[..., Any]:
    def narrow(number):
        if kind == "float16":
            with np.errstate(over="ignore"):
                return np.float16(number).view(np.uint16)
        word = int(np.float32(number).view(np.uint32))
        return np.uint16(0x7FC0 if number != number else (word + 0x7FFF + (word >> 16 & 1)) >> 16)

    return narrow


@cache
def widen(kind: str) -> Any:
    """A function of kernels, from what is stored to what is computed with."""
    if kind not in HALVES:
        return device(_same)
    if SIMULATED:
        return _simulated_widen(kind)
    return _compiled(WIDEN[kind], "uint16", "float32")


@cache
def narrow(kind: str) -> Any:
    """And back, rounded to nearest."""
    if kind not in HALVES:
        return device(_same)
    if SIMULATED:
        return _simulated_narrow(kind)
    return _compiled(NARROW[kind], "float32", "uint16")
