"""Codes of a whole block in vector instructions, with the bits of `blockwise_codes`.

    dequantize(codes, largest, numbers)   all are addresses, numbers aligned to 64 bytes
    factor = measure(numbers, largest)
    exchange(numbers, codes, factor, next_codes, next_largest, next_numbers)

What differs between AVX-512 VBMI and AVX2 is in a module of each.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import cache
from typing import Any

from llvmlite import ir

from ...formulas.blockwise import BLOCK, Codebook
from ..runtime.frontend import intrinsic, types
from . import blockwise_avx2, blockwise_avx512
from .vector_code import FLOAT, WORD, call, larger, load, store

# The module of the instructions that kernels are compiled for; None: LLVM's vectoriser makes what it can.
UNIT: Any = next((module for module in (blockwise_avx512, blockwise_avx2) if module.AVAILABLE), None)


@cache
def dequantizer(book: Codebook) -> Callable[..., Any]:
    """dequantize(codes, largest, numbers) for a codebook."""
    unit = UNIT

    @intrinsic
    def dequantize(typingctx, codes, largest, numbers):
        def codegen(context, builder, signature, args):
            scale = unit.V.broadcast(builder, load(builder, args[1], 0, FLOAT, 4))
            for first in range(0, BLOCK, unit.STEP):
                unit.dequantize(builder, book, args[0], first, scale, args[2])
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, types.int64), codegen

    return dequantize


@cache
def measurer(book: Codebook) -> Callable[..., Any]:
    """measure(numbers, largest) for a codebook: writes the largest magnitude, and returns the factor for codes."""
    V = UNIT.V

    @intrinsic
    def measure(typingctx, numbers, largest):
        def codegen(context, builder, signature, args):
            # four chains, since each maximum waits for the one before
            found = [V.same(0.0)] * 4
            for i in range(BLOCK // V.lanes):
                x = load(builder, args[0], V.bytes * i, V.floats, V.bytes)
                x = V.magnitude(builder, x) if book.signed else x
                found[i % 4] = larger(builder, x, found[i % 4])
            most = larger(builder, larger(builder, found[0], found[1]), larger(builder, found[2], found[3]))
            of_all = f"vector.reduce.umax.v{V.lanes}i32"
            top = builder.bitcast(call(builder, of_all, WORD, builder.bitcast(most, V.words)), FLOAT)
            store(builder, top, args[1], 0, 4)
            inverse = builder.fdiv(ir.Constant(FLOAT, 1.0), top)
            some = builder.fcmp_ordered(">", top, ir.Constant(FLOAT, 0.0))
            return builder.select(some, inverse, ir.Constant(FLOAT, 0.0))

        return types.float32(types.int64, types.int64), codegen

    return measure


@cache
def exchanger(book: Codebook) -> Callable[..., Any]:
    """exchange(...) for a codebook: writes the codes of numbers, and dequantizes those of another block.

    Where the one waits for its own results, and the other for loads, as with AVX2, they take turns.
    """
    unit, V = UNIT, UNIT.V

    @intrinsic
    def exchange(typingctx, numbers, codes, factor, next_codes, next_largest, next_numbers):
        def codegen(context, builder, signature, args):
            factor = V.broadcast(builder, args[2])
            scale = V.broadcast(builder, load(builder, args[4], 0, FLOAT, 4))
            others = iter(range(0, BLOCK, unit.STEP))

            def dequantize_some(steps):
                for first in itertools.islice(others, steps):
                    unit.dequantize(builder, book, args[3], first, scale, args[5])

            dequantize_some(0 if unit.TAKES_TURNS else None)
            for first in range(0, BLOCK, V.bytes):
                # four registers of numbers become one of codes
                done = []
                for k in range(4):
                    x = load(builder, args[0], 4 * first + V.bytes * k, V.floats, V.bytes)
                    done.append(unit.code(builder, book, x, factor))
                    dequantize_some(1)
                unit.store_codes(builder, book, done, args[1], first)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 2, types.float32, *[types.int64] * 3), codegen

    return exchange
