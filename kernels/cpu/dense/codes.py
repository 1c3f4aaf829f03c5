"""Codes of float32 numbers, and numbers of int32 sums, a vector at a time.

LLVM's own vectors have four times the length, and what is left of a row is done one by one: 30 columns took twice as
long. Its vectors of any length, such as these, become those of the processor.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir

from ..runtime.frontend import INTERPRETED, intrinsic, register_jitable, types
from ..runtime.primitives import view
from .int8_tiles import GROUP
from .tiles import broadcast, i8, i32, pointer

F, LEVELS = np.float32, 255
# 1.5 x 2^23: a float32 of this size has no fraction, so adding it rounds to nearest, ties to even
ROUNDER = F(12582912)
FLOATS, INTEGERS = ir.VectorType(ir.FloatType(), GROUP), ir.VectorType(i32, GROUP)


@register_jitable(forceinline=True)
def code_of(x, inverse, zero):
    """The code of a number."""
    least, most = F(-zero), F(LEVELS - zero)
    t = F(x * inverse)
    t = t if t > least else least
    t = t if t < most else most
    return np.uint8(np.int32(F(F(t + ROUNDER) - ROUNDER)) + np.int32(zero))


@intrinsic
def _code_group(typingctx, x, codes, inverse, zero):
    """codes[0:16] = the codes of x[0:16]."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        x, codes, inverse, zero = args
        zeros = broadcast(builder, builder.trunc(zero, i32), GROUP)
        least = builder.sitofp(builder.neg(zeros), FLOATS)
        most = builder.fadd(least, ir.Constant(FLOATS, [float(LEVELS)] * GROUP))
        rounder = ir.Constant(FLOATS, [float(ROUNDER)] * GROUP)
        # as `code_of`
        t = builder.fmul(builder.load(pointer(builder, x, FLOATS), align=4), broadcast(builder, inverse, GROUP))
        t = builder.select(builder.fcmp_ordered(">", t, least), t, least)
        t = builder.select(builder.fcmp_ordered("<", t, most), t, most)
        whole = builder.fptosi(builder.fsub(builder.fadd(t, rounder), rounder), INTEGERS)
        bytes_ = ir.VectorType(i8, GROUP)
        value = builder.trunc(builder.add(whole, zeros), bytes_)
        builder.store(value, pointer(builder, codes, bytes_), align=1)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.float32, types.int64), codegen


@intrinsic
def _scale_group(typingctx, sums, scale):
    """sums[0:16], int32, become float32 times scale[0:16], in their place."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        sums, scale = args
        integers = builder.load(pointer(builder, sums, INTEGERS), align=4)
        factors = builder.load(pointer(builder, scale, FLOATS), align=4)
        builder.store(builder.fmul(builder.sitofp(integers, FLOATS), factors), pointer(builder, sums, FLOATS), align=4)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


def _code_group_python(x, codes, inverse, zero):
    X, Q = view(x, GROUP, F), view(codes, GROUP, np.uint8)
    for j in range(GROUP):
        Q[j] = code_of(X[j], inverse, zero)


def _scale_group_python(sums, scale):
    view(sums, GROUP, F)[:] = view(sums, GROUP, np.int32).astype(F) * view(scale, GROUP, F)


if INTERPRETED:
    code_group, scale_group = _code_group_python, _scale_group_python
else:
    code_group, scale_group = _code_group, _scale_group


@register_jitable(forceinline=True)
def codes_of_row(x, codes, count, inverse, zero):
    """The codes of a row. x, codes: addresses."""
    if count < GROUP:
        X, Q = view(x, count, F), view(codes, count, np.uint8)
        for j in range(count):
            Q[j] = code_of(X[j], inverse, zero)
        return
    for first in range(0, count, GROUP):
        # the last group ends with the row, and may do some again
        at = min(first, count - GROUP)
        code_group(x + at * 4, codes + at, inverse, zero)
