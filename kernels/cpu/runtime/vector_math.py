"""Functions of `formulas.functions` as arithmetic that compilers turn into vector code; libm's take one value.

Cephes' expf and exp (S. L. Moshier 1989): x = n log 2 + r with |r| <= log(2) / 2, a polynomial or rational function in
r, and n added to the exponent. n stays a number of its type: vectors of 64-bit integers lack half of the instructions,
with AVX2 those from and to float64. Within 1 unit in the last place in float32, 2 in float64; 0 for a denormal result.
The others are Cephes', too, each of polynomials or rational functions in one range and of exp in the other.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ...formulas import functions
from .frontend import intrinsic, overload, register_jitable, types
from .primitives import INTERPRETED, bitcast

_float32_of_bits = intrinsic(bitcast("int32", "float32"))
_float64_of_bits = intrinsic(bitcast("int64", "float64"))
_bits_of_float32 = intrinsic(bitcast("float32", "int32"))
_bits_of_float64 = intrinsic(bitcast("float64", "int64"))


@register_jitable(error_model="numpy", forceinline=True)
def _power_of_two32(n):
    """2**n, for a whole n from -127 (as which it is 0) to 127: added to 1.5 2**23, it is in the lowest bits."""
    return _float32_of_bits(_bits_of_float32(n + np.float32(12582912 + 127)) << np.int32(23))


@register_jitable(error_model="numpy", forceinline=True)
def _power_of_two64(n):
    """2**n, for a whole n from -1023 (as which it is 0) to 1023: added to 1.5 2**52, it is in the lowest bits."""
    return _float64_of_bits(_bits_of_float64(n + (6755399441055744.0 + 1023.0)) << np.int64(52))


@register_jitable(error_model="numpy", forceinline=True)
def _reduced32(y):
    """n and exp(r) - 1, where y = n log 2 + r."""
    T = np.float32
    n = np.floor(y * T(1.4426950408889634) + T(0.5))
    r = y - n * T(0.693359375) + n * T(2.12194440e-4)
    p = T(1.9875691500e-4)
    p = p * r + T(1.3981999507e-3)
    p = p * r + T(8.3334519073e-3)
    p = p * r + T(4.1665795894e-2)
    p = p * r + T(1.6666665459e-1)
    p = p * r + T(5.0000001201e-1)
    return n, p * r * r + r


@register_jitable(error_model="numpy", forceinline=True)
def _reduced64(y):
    """n and exp(r) - 1, where y = n log 2 + r."""
    n = np.floor(y * 1.4426950408889634 + 0.5)
    r = y - n * 6.93145751953125e-1 - n * 1.42860682030941723212e-6
    s = r * r
    p = r * ((1.26177193074810590878e-4 * s + 3.02994407707441961300e-2) * s + 9.99999999999999999910e-1)
    q = ((3.00198505138664455042e-6 * s + 2.52448340349684104192e-3) * s + 2.27265548208155028766e-1) * s + 2.0
    return n, 2.0 * p / (q - p)


@register_jitable(error_model="numpy", forceinline=True)
def _exp32(x):
    T = np.float32
    low, high = T(-87.33654), T(88.72283)
    y = x if x >= low else low  # NaN, too, which no integer can hold
    y = min(y, high)
    n, excess = _reduced32(y)
    half = np.floor(n * T(0.5))  # in two factors, since 2**128 alone is no float32
    value = (excess + T(1)) * _power_of_two32(half) * _power_of_two32(n - half)
    value = T(math.inf) if x > high else value
    return (value if x >= low else T(0)) if x == x else x


@register_jitable(error_model="numpy", forceinline=True)
def _exp64(x):
    low, high = -708.3964185322641, 709.782712893384
    y = x if x >= low else low
    y = min(y, high)
    n, excess = _reduced64(y)
    half = np.floor(n * 0.5)
    value = (1.0 + excess) * _power_of_two64(half) * _power_of_two64(n - half)
    value = math.inf if x > high else value
    return (value if x >= low else 0.0) if x == x else x


@register_jitable(error_model="numpy", forceinline=True)
def _tanh32(x):
    T = np.float32
    s = x * x
    p = T(-5.70498872745e-3)
    p = p * s + T(2.06390887954e-2)
    p = p * s + T(-5.37397155531e-2)
    p = p * s + T(1.33314422036e-1)
    p = p * s + T(-3.33332819422e-1)
    small = p * s * x + x
    a = abs(x)
    large = T(1) - T(2) / (_exp32(a + a) + T(1))
    large = -large if x < 0 else large
    return small if a < T(0.625) else large


@register_jitable(error_model="numpy", forceinline=True)
def _tanh64(x):
    s = x * x
    p = (-9.64399179425052238628e-1 * s - 9.92877231001918586564e1) * s - 1.61468768441708447952e3
    q = ((s + 1.12811678491632931402e2) * s + 2.23548839060100448583e3) * s + 4.84406305325125486048e3
    small = x + x * s * (p / q)
    a = abs(x)
    large = 1.0 - 2.0 / (_exp64(a + a) + 1.0)
    large = -large if x < 0 else large
    return small if a < 0.625 else large


@register_jitable(error_model="numpy", forceinline=True)
def _expm1_32(x):
    T = np.float32
    y = x if x >= T(-87.33654) else T(-87.33654)
    n, excess = _reduced32(y)
    power = _power_of_two32(n)
    value = power * excess + (power - T(1))
    return value if x == x else x


@register_jitable(error_model="numpy", forceinline=True)
def _expm1_64(x):
    y = x if x >= -708.3964185322641 else -708.3964185322641
    n, excess = _reduced64(y)
    power = _power_of_two64(n)
    value = power * excess + (power - 1.0)
    return value if x == x else x


@register_jitable(error_model="numpy", forceinline=True)
def _log1p32(f):
    """log(1 + f), for 1 + f between the square roots of 0.5 and 2."""
    T = np.float32
    s = f * f
    p = T(7.0376836292e-2)
    p = p * f + T(-1.1514610310e-1)
    p = p * f + T(1.1676998740e-1)
    p = p * f + T(-1.2420140846e-1)
    p = p * f + T(1.4249322787e-1)
    p = p * f + T(-1.6668057665e-1)
    p = p * f + T(2.0000714765e-1)
    p = p * f + T(-2.4999993993e-1)
    p = p * f + T(3.3333331174e-1)
    return f + (p * s * f - T(0.5) * s)


@register_jitable(error_model="numpy", forceinline=True)
def _log1p64(f):
    """log(1 + f), for 1 + f between the square roots of 0.5 and 2."""
    s = f * f
    p = 1.01875663804580931796e-4
    p = p * f + 4.97494994976747001425e-1
    p = p * f + 4.70579119878881725854
    p = p * f + 1.44989225341610930846e1
    p = p * f + 1.79368678507819816313e1
    p = p * f + 7.70838733755885391666
    q = f + 1.12873587189167450590e1
    q = q * f + 4.52279145837532221105e1
    q = q * f + 8.29875266912776603211e1
    q = q * f + 7.11544750618563894466e1
    q = q * f + 2.31251620126765340583e1
    return f + (f * (s * p / q) - 0.5 * s)


@register_jitable(error_model="numpy", forceinline=True)
def _log32(x):
    T = np.float32
    bits = _bits_of_float32(x)
    n = (bits >> np.int32(23)) - np.int32(126)
    m = _float32_of_bits((bits & np.int32(0x7FFFFF)) | np.int32(0x3F000000))  # x = m 2^n with m in [0.5, 1)
    low = m < T(0.7071067811865476)
    n = n - np.int32(1) if low else n
    m = m + m if low else m
    e = T(n)
    value = _log1p32(m - T(1)) + e * T(-2.12194440e-4) + e * T(0.693359375)
    return value if x == x else x


@register_jitable(error_model="numpy", forceinline=True)
def _log64(x):
    bits = _bits_of_float64(x)
    # the exponent as the lowest bits of 1.5 2**52
    n = ((bits >> np.int64(52)) & np.int64(0x7FF)) | np.int64(0x4338000000000000)
    m = _float64_of_bits((bits & np.int64(0xFFFFFFFFFFFFF)) | np.int64(0x3FE0000000000000))
    low = m < 0.7071067811865476
    e = _float64_of_bits(n) - (6755399441055744.0 + 1023.0 if low else 6755399441055744.0 + 1022.0)
    m = m + m if low else m
    value = _log1p64(m - 1.0) - e * 2.121944400546905827679e-4 + e * 0.693359375
    return value if x == x else x


@register_jitable(error_model="numpy", forceinline=True)
def _log1pexp32(x):
    T = np.float32
    e = _exp32(x)
    far = e > T(0.41421356237309503)  # then 1 + e = 2 (1 + f), and f is nearer to 0
    f = T(0.5) * (e - T(1)) if far else e
    value = _log1p32(f)
    return value + T(0.6931471805599453) if far else value


@register_jitable(error_model="numpy", forceinline=True)
def _log1pexp64(x):
    e = _exp64(x)
    far = e > 0.41421356237309503
    f = 0.5 * (e - 1.0) if far else e
    value = _log1p64(f)
    return value + 0.6931471805599453 if far else value


@register_jitable(error_model="numpy", forceinline=True)
def _erf32(x):
    T = np.float32
    s = x * x
    p = T(7.853861353153693e-5)
    p = p * s + T(-8.010193625184903e-4)
    p = p * s + T(5.188327685732524e-3)
    p = p * s + T(-2.685381193529856e-2)
    p = p * s + T(1.128358514861418e-1)
    p = p * s + T(-3.761262582423300e-1)
    p = p * s + T(1.128379165726710)
    small = x * p
    a = abs(x)
    a = a if a < T(4) else T(4)  # above, erf is 1
    a = a if a > T(1) else T(1)
    i = T(1) / a
    t = i * i
    near = T(2.326819970068386e-2)
    near = near * t + T(-1.387039388740657e-1)
    near = near * t + T(3.687424674597105e-1)
    near = near * t + T(-5.824733027278666e-1)
    near = near * t + T(6.210004621745983e-1)
    near = near * t + T(-4.944515323274145e-1)
    near = near * t + T(3.404879937665872e-1)
    near = near * t + T(-2.741127028184656e-1)
    near = near * t + T(5.638259427386472e-1)
    far = T(-1.047766399936249e1)
    far = far * t + T(1.297719955372516e1)
    far = far * t + T(-7.495518717768503)
    far = far * t + T(2.921019019210786)
    far = far * t + T(-1.015265279202700)
    far = far * t + T(4.218463358204948e-1)
    far = far * t + T(-2.820767439740514e-1)
    far = far * t + T(5.641895067754075e-1)
    large = T(1) - _exp32(-a * a) * i * (near if a < T(2) else far)
    large = -large if x < 0 else large
    value = small if s < T(1) else large
    return value if x == x else x


@register_jitable(error_model="numpy", forceinline=True)
def _erf64(x):
    s = x * x
    t = 9.60497373987051638749
    t = t * s + 9.00260197203842689217e1
    t = t * s + 2.23200534594684319226e3
    t = t * s + 7.00332514112805075473e3
    t = t * s + 5.55923013010394962768e4
    u = s + 3.35617141647503099647e1
    u = u * s + 5.21357949780152679795e2
    u = u * s + 4.59432382970980127987e3
    u = u * s + 2.26290000613890934246e4
    u = u * s + 4.92673942608635921086e4
    small = x * t / u
    a = abs(x)
    a = a if a < 6.0 else 6.0  # above, erf is 1
    a = a if a > 1.0 else 1.0
    p = 2.46196981473530512524e-10
    p = p * a + 5.64189564831068821977e-1
    p = p * a + 7.46321056442269912687
    p = p * a + 4.86371970985681366614e1
    p = p * a + 1.96520832956077098242e2
    p = p * a + 5.26445194995477358631e2
    p = p * a + 9.34528527171957607540e2
    p = p * a + 1.02755188689515710272e3
    p = p * a + 5.57535335369399327526e2
    q = a + 1.32281951154744992508e1
    q = q * a + 8.67072140885989742329e1
    q = q * a + 3.54937778887819891062e2
    q = q * a + 9.75708501743205489753e2
    q = q * a + 1.82390916687909736289e3
    q = q * a + 2.24633760818710981792e3
    q = q * a + 1.65666309194161350182e3
    q = q * a + 5.57535340817727675546e2
    large = 1.0 - _exp64(-a * a) * p / q
    large = -large if x < 0 else large
    value = small if s < 1.0 else large
    return value if x == x else x


@register_jitable(error_model="numpy", forceinline=True)
def _sqrt(x):
    return math.sqrt(x)


# One number at a time, by the C library.


@register_jitable(error_model="numpy", forceinline=True)
def _power(x, y):
    return math.pow(x, y)


@register_jitable(error_model="numpy", forceinline=True)
def _sin(x):
    return math.sin(x)


@register_jitable(error_model="numpy", forceinline=True)
def _cos(x):
    return math.cos(x)


@register_jitable(error_model="numpy", forceinline=True)
def _arctan(x):
    return math.atan(x)


def _overload(function: Any, single: Any, double: Any) -> None:
    """Make kernels call `single` or `double`, by dtype, where a formula calls `function`."""

    @overload(function, jit_options={"error_model": "numpy"})
    def choose(x):
        if x is types.float32:
            return lambda x: single(x)
        return lambda x: double(x)


if not INTERPRETED:
    _overload(functions.exp, _exp32, _exp64)
    _overload(functions.expm1, _expm1_32, _expm1_64)
    _overload(functions.log, _log32, _log64)
    _overload(functions.log1pexp, _log1pexp32, _log1pexp64)
    _overload(functions.tanh, _tanh32, _tanh64)
    _overload(functions.erf, _erf32, _erf64)
    _overload(functions.sqrt, _sqrt, _sqrt)
    _overload(functions.sin, _sin, _sin)
    _overload(functions.cos, _cos, _cos)
    _overload(functions.arctan, _arctan, _arctan)

    @overload(functions.power, jit_options={"error_model": "numpy"})
    def _choose_power(x, y):
        return lambda x, y: _power(x, y)
