"""The error function for arrays, so that GELU's erf form needs no SciPy.

The rational approximations are those of fdlibm's s_erf.c, in four pieces of |x|, evaluated in the array's own
number type: at most 1 unit in the last place off, in float64 and in float32. Its notice:
Copyright (C) 1993 by Sun Microsystems, Inc. All rights reserved. Developed at SunPro, a Sun Microsystems,
Inc. business. Permission to use, copy, modify, and distribute this software is freely granted, provided that
this notice is preserved.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Coefficients from the lowest power up; P / Q is what the comment beside it says.
SMALL_P = (  # |x| <= 0.84375: erf(x) = x + x P(x^2) / Q(x^2)
    1.28379167095512558561e-01,
    -3.25042107247001499370e-01,
    -2.84817495755985104766e-02,
    -5.77027029648944159157e-03,
    -2.37630166566501626084e-05,
)
SMALL_Q = (
    1.0,
    3.97917223959155352819e-01,
    6.50222499887672944485e-02,
    5.08130628187576562776e-03,
    1.32494738004321644526e-04,
    -3.96022827877536812320e-06,
)
ERF_NEAR_ONE = 8.45062911510467529297e-01  # erf(1) in float32, exactly
MIDDLE_P = (  # 0.84375 <= |x| <= 1.25: erf(x) = ERF_NEAR_ONE + P(|x| - 1) / Q(|x| - 1)
    -2.36211856075265944077e-03,
    4.14856118683748331666e-01,
    -3.72207876035701323847e-01,
    3.18346619901161753674e-01,
    -1.10894694282396677476e-01,
    3.54783043256182359371e-02,
    -2.16637559486879084300e-03,
)
MIDDLE_Q = (
    1.0,
    1.06420880400844228286e-01,
    5.40397917702171048937e-01,
    7.18286544141962662868e-02,
    1.26171219808761642112e-01,
    1.36370839120290507362e-02,
    1.19844998467991074170e-02,
)
LARGE_P = (  # 1.25 <= |x| <= 1 / 0.35: erf(x) = 1 - exp(-x^2 - 0.5625 + P(1 / x^2) / Q(1 / x^2)) / |x|
    -9.86494403484714822705e-03,
    -6.93858572707181764372e-01,
    -1.05586262253232909814e01,
    -6.23753324503260060396e01,
    -1.62396669462573470355e02,
    -1.84605092906711035994e02,
    -8.12874355063065934246e01,
    -9.81432934416914548592e00,
)
LARGE_Q = (
    1.0,
    1.96512716674392571292e01,
    1.37657754143519042600e02,
    4.34565877475229228821e02,
    6.45387271733267880336e02,
    4.29008140027567833386e02,
    1.08635005541779435134e02,
    6.57024977031928170135e00,
    -6.04244152148580987438e-02,
)
HUGE_P = (  # 1 / 0.35 <= |x|: the same expression
    -9.86494292470009928597e-03,
    -7.99283237680523006574e-01,
    -1.77579549177547519889e01,
    -1.60636384855821916062e02,
    -6.37566443368389627722e02,
    -1.02509513161107724954e03,
    -4.83519191608651397019e02,
)
HUGE_Q = (
    1.0,
    3.03380607434824582924e01,
    3.25792512996573918826e02,
    1.53672958608443695994e03,
    3.19985821950859553908e03,
    2.55305040643316442583e03,
    4.74528541206955367215e02,
    -2.24409524465858183362e01,
)


def erf(x: np.ndarray) -> np.ndarray:
    """2 / sqrt(pi) times the integral of exp(-t^2) from 0 to x, of x's shape and number type; NaN gives NaN.

    >>> erf(np.array([-0.5, 0.0, 2.0])).round(6).tolist()
    [-0.5205, 0.0, 0.995322]
    """
    a = np.abs(x)
    y = np.array(x)
    for low, high, piece in (
        (0.0, 0.84375, _small),
        (0.84375, 1.25, _middle),
        (1.25, 1 / 0.35, _large),
        (1 / 0.35, np.inf, _huge),
    ):
        inside = (low <= a) & (a <= high)
        y[inside] = piece(a[inside])
    return np.copysign(y, x, out=y)


def _small(a: np.ndarray) -> np.ndarray:
    return a + a * _ratio(a * a, SMALL_P, SMALL_Q)


def _middle(a: np.ndarray) -> np.ndarray:
    return ERF_NEAR_ONE + _ratio(a - 1, MIDDLE_P, MIDDLE_Q)


def _large(a: np.ndarray) -> np.ndarray:
    square = a * a
    return 1 - np.exp(-square - 0.5625 + _ratio(1 / square, LARGE_P, LARGE_Q)) / a


def _huge(a: np.ndarray) -> np.ndarray:
    square = a * a
    return 1 - np.exp(-square - 0.5625 + _ratio(1 / square, HUGE_P, HUGE_Q)) / a


def _ratio(x: np.ndarray, numerator: Sequence[float], denominator: Sequence[float]) -> np.ndarray:
    return _polynomial(x, numerator) / _polynomial(x, denominator)


def _polynomial(x: np.ndarray, coefficients: Sequence[float]) -> np.ndarray:
    y = np.full_like(x, coefficients[-1])
    for c in coefficients[-2::-1]:
        y *= x
        y += c
    return y
