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
