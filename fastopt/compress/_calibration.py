"""Ranges of activations, found from data: what their 256 codes are spread over."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

Batches = Callable[[], Iterable[Sequence[np.ndarray]]]  # each call goes through the data: arrays of every layer
BINS = 4096  # of a histogram between the least and the largest value
SHRINKS = np.linspace(1.0, 0.2, 81)  # shares of the range that "mse" tries
METHODS = ("minmax", "percentile", "mse")


class Codes(NamedTuple):
    """Codes 0 to 255 of numbers: x = scale (code - zero)."""

    scale: float  # a float32
    zero: int


def codes_between(low: float, high: float) -> Codes:
    """Return the codes of a range, which is widened to hold 0, so that 0 has a code.

    >>> codes_between(-1.0, 4.1), codes_between(2.0, 5.1).zero
    (Codes(scale=0.019999999552965164, zero=50), 0)
    """
    low, high = min(low, 0.0), max(high, 0.0)
    if not _can_be_told_apart(low, high):
        return Codes(1.0, 0)
    scale = float(np.float32((high - low) / 255))
    return Codes(scale, int(np.clip(np.rint(-low / scale), 0, 255)))


def _can_be_told_apart(low: float, high: float) -> bool:
    """False if all numbers of the range are 0, or as good as 0: the scale of its codes would be denormal."""
    return bool(np.float32((high - low) / 255) > np.finfo(np.float32).tiny)


class _Histogram:
    """Values of one layer: their limits, widened to hold 0, and how many there are between them."""

    def __init__(self) -> None:
        self.low = self.high = 0.0
        self.counts = np.zeros(BINS, np.int64)

    def add_limits(self, values: np.ndarray) -> None:
        self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))

    def add(self, values: np.ndarray) -> None:
        if _can_be_told_apart(self.low, self.high):
            # in float64: the width of a range of float32 may be none
            self.counts += np.histogram(values.astype(np.float64), BINS, (self.low, self.high))[0]

    @property
    def edges(self) -> np.ndarray:
        return np.linspace(self.low, self.high, BINS + 1)

    def within(self, percentile: float) -> tuple[float, float]:
        """Limits of the share of all values: the rest is cut off at both ends alike, or at the only one."""
        share, total = 1 - percentile / 100, int(self.counts.sum())
        if not total:
            return self.low, self.high
        one_sided = self.low >= 0 or self.high <= 0
        tail = total * share * (1 if one_sided else 0.5)
        upper = BINS - int(np.searchsorted(np.cumsum(self.counts[::-1]), tail, side="right"))
        lower = int(np.searchsorted(np.cumsum(self.counts), tail, side="right"))
        edges = self.edges
        low = self.low if self.low >= 0 else float(edges[lower])
        return low, self.high if self.high <= 0 else float(edges[upper])

    def least_error(self) -> tuple[float, float]:
        """Limits for which the squares of the errors of codes add up to the least, of those shrunk by SHRINKS."""
        centres = (self.edges[:-1] + self.edges[1:]) / 2
        errors = []
        for share in SHRINKS:
            scale, zero = codes_between(self.low * share, self.high * share)
            rounded = scale * (np.clip(np.rint(centres / scale), -zero, 255 - zero))
            errors.append(float(self.counts @ (centres - rounded) ** 2))
        best = SHRINKS[int(np.argmin(errors))]
        return self.low * best, self.high * best


def calibrate(batches: Batches, method: str, percentile: float) -> list[Codes]:
    """Return the codes of each layer's inputs. batches: called once for "minmax", else twice."""
    found: list[_Histogram] = []
    for arrays in batches():
        found = found or [_Histogram() for _ in arrays]
        for histogram, values in zip(found, arrays, strict=True):
            histogram.add_limits(values)
    if method == "minmax":
        return [codes_between(histogram.low, histogram.high) for histogram in found]
    for arrays in batches():
        for histogram, values in zip(found, arrays, strict=True):
            histogram.add(values)
    if method == "percentile":
        return [codes_between(*histogram.within(percentile)) for histogram in found]
    return [codes_between(*histogram.least_error()) for histogram in found]
