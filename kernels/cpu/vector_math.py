"""The exponential function as arithmetic that the compiler can run on whole vectors; libm's takes one number a call.

Cephes' expf and exp (S. L. Moshier 1989): x = n log 2 + r with |r| <= log(2) / 2, a polynomial or rational function in
r, and n added to the exponent. Within 1 unit in the last place in float32, 2 in float64; 0 for a denormal result.
"""

from __future__ import annotations

import math
from math import floor
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, register_jitable

from .primitives import INTERPRETED


@intrinsic
def _float32_of_bits(typingctx, bits):
    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.int32), codegen


@intrinsic
def _float64_of_bits(typingctx, bits):
    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], ir.DoubleType())

    return types.float64(types.int64), codegen


@register_jitable(error_model="numpy")
def _exp32(x):
    T = np.float32
    low, high = T(-87.33654), T(88.72283)
    y = x if x >= low else low  # also for NaN, which no integer can hold
    y = min(y, high)
    n = T(floor(y * T(1.4426950408889634) + T(0.5)))
    r = y - n * T(0.693359375) + n * T(2.12194440e-4)
    p = T(1.9875691500e-4)
    p = p * r + T(1.3981999507e-3)
    p = p * r + T(8.3334519073e-3)
    p = p * r + T(4.1665795894e-2)
    p = p * r + T(1.6666665459e-1)
    p = p * r + T(5.0000001201e-1)
    half = np.int32(n) >> np.int32(1)  # in two factors, since 2**128 alone is no float32
    rest = np.int32(n) - half
    bias, shift = np.int32(127), np.int32(23)
    value = p * r * r + r + T(1)
    value = value * _float32_of_bits((half + bias) << shift) * _float32_of_bits((rest + bias) << shift)
    value = T(math.inf) if x > high else value
    return (value if x >= low else T(0)) if x == x else x


@register_jitable(error_model="numpy")
def _exp64(x):
    low, high = -708.3964185322641, 709.782712893384
    y = x if x >= low else low
    y = min(y, high)
    n = floor(y * 1.4426950408889634 + 0.5)
    r = y - n * 6.93145751953125e-1 - n * 1.42860682030941723212e-6
    s = r * r
    p = r * ((1.26177193074810590878e-4 * s + 3.02994407707441961300e-2) * s + 9.99999999999999999910e-1)
    q = ((3.00198505138664455042e-6 * s + 2.52448340349684104192e-3) * s + 2.27265548208155028766e-1) * s + 2.0
    half = np.int64(n) >> np.int64(1)
    rest = np.int64(n) - half
    bias, shift = np.int64(1023), np.int64(52)
    value = 1.0 + 2.0 * p / (q - p)
    value = value * _float64_of_bits((half + bias) << shift) * _float64_of_bits((rest + bias) << shift)
    value = math.inf if x > high else value
    return (value if x >= low else 0.0) if x == x else x


def _exp_python(x: Any) -> Any:
    try:
        return type(x)(math.exp(x))
    except OverflowError:
        return type(x)(math.inf)


EXP = dict.fromkeys(("float32", "float64"), _exp_python) if INTERPRETED else {"float32": _exp32, "float64": _exp64}
