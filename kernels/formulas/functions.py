"""Functions that formulas need and processors lack. A backend may put its own in their place, for whole vectors."""

from __future__ import annotations

import math


def exp(x):
    try:
        return math.exp(x)
    except OverflowError:
        return math.inf


def expm1(x):
    """exp(x) - 1, for x <= 0."""
    return math.expm1(x)


def log1pexp(x):
    """log(1 + exp(x)), for x <= 0."""
    return math.log1p(math.exp(x))


def log(x):
    """The natural logarithm, for x > 0 that is not denormal."""
    return math.log(x)


def tanh(x):
    return math.tanh(x)


def erf(x):
    return math.erf(x)


def sqrt(x):
    return math.sqrt(x) if x >= 0 else math.nan


def power(x, y):
    """x ** y; NaN where that is no real number."""
    try:
        return math.pow(x, y)
    except OverflowError:
        return -math.inf if x < 0 and y % 2 == 1 else math.inf
    except ValueError:
        return math.inf if x == 0 else math.nan


def sin(x):
    return math.sin(x) if abs(x) < math.inf else math.nan


def cos(x):
    return math.cos(x) if abs(x) < math.inf else math.nan


def arctan(x):
    return math.atan(x)
