"""Estimate: a number with its interval."""

from __future__ import annotations

from typing import NamedTuple

LEVEL = 0.95  # of all intervals


class Estimate(NamedTuple):
    """A number with the ends of its interval of 95 %.

    >>> print(Estimate(0.1234, 0.1, 0.15))
    0.123 (0.1 to 0.15)
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3g} ({self.low:.3g} to {self.high:.3g})"
