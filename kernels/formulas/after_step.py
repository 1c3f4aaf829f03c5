"""Work on parameters after the update of a step: constraints, and averages over steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

EPSILON = 1e-7  # added to a norm that is divided by; Keras's


def averaged(average, p, share):
    """The average after a step, in which the parameter p has this share; a share of 1 is a copy."""
    return p if share == type(p)(1) else average + share * (p - average)


# Factors of the elements of one column, from its norm; in float64.


def max_norm(norm, most):
    """Keras's MaxNorm: a column of a norm above `most` gets this norm."""
    return (most if norm > most else norm) / (EPSILON + norm)


def unit_norm(norm, most):
    """Keras's UnitNorm: every column gets the norm 1."""
    return 1.0 / (EPSILON + norm)


# Functions of one element.


def non_negative(p):
    """Keras's NonNegative: 0 instead of a negative number; NaN passes."""
    return type(p)(0) if p < 0 else p


class Constraint(NamedTuple):
    """A row of CONSTRAINTS, which has one of the two.

    factor: factor(norm, most) of the elements of a column; element: function of an element.
    """

    factor: Callable[..., Any] | None = None
    element: Callable[..., Any] | None = None


CONSTRAINTS = {
    "max_norm": Constraint(factor=max_norm),
    "unit_norm": Constraint(factor=unit_norm),
    "non_negative": Constraint(element=non_negative),
}
