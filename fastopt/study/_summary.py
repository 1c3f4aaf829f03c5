"""Errors of each size and share: means over the seeds, and under- and overfitting said in words."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ._records import Run

NOTABLE = 0.02  # relative differences of errors below it are none
SMALL_GAP = 0.15  # of the test error: the training error is nearly as large, so the model lacks freedom
LARGE_GAP = 0.5  # of the test error: the training error is less than half of it, so the model knows the rows by heart
SURE = 2.0  # standard errors
IDLE = 0.9  # of the error of the best constant: a model with a larger training error has hardly learned


class Point(NamedTuple):
    """Models of a size, share, batch size and number of epochs, over their seeds.

    train_error, test_error  means
    deviation  standard error of the mean test error, 0 of a single seed
    seeds      number of models
    """

    layers: tuple[int, ...]
    rows: int
    batch_size: int
    epochs: int
    train_error: float
    test_error: float
    deviation: float
    seeds: int
    errors: tuple[float, ...]

    @property
    def gap(self) -> float:
        """Test error minus training error."""
        return self.test_error - self.train_error


class Verdict(NamedTuple):
    """kind: "underfits", "overfits", "unfinished" or "fits"; reason: a clause with the figures."""

    kind: str
    reason: str


def points(runs: Iterable[Run]) -> list[Point]:
    """The mean of each cell over the seeds that did not diverge."""
    cells: dict[tuple, list[Run]] = {}
    for run in runs:
        if not run.has_diverged:
            cells.setdefault((run.layers, run.rows, run.batch_size, run.epochs), []).append(run)
    found = []
    for cell, same in cells.items():
        errors = [float(run.test_error or 0.0) for run in same]
        mean = sum(errors) / len(errors)
        spread = math.sqrt(sum((error - mean) ** 2 for error in errors) / max(1, len(errors) - 1) / len(errors))
        train = sum(float(run.train_error or 0.0) for run in same) / len(same)
        layers, rows, batch_size, epochs = cell
        found.append(Point(layers, rows, batch_size, epochs, train, mean, spread, len(same), tuple(errors)))
    return found


def best_of_each(found: Iterable[Point]) -> list[Point]:
    """The epochs and the batch size with the least mean test error, of each size and share."""
    best: dict[tuple, Point] = {}
    for point in found:
        known = best.setdefault((point.layers, point.rows), point)
        if point.test_error < known.test_error:
            best[point.layers, point.rows] = point
    return list(best.values())


def verdict(
    point: Point, found: Sequence[Point], parameters: dict[tuple[int, ...], int], percent: bool, constant: float | None
) -> Verdict:
    """Judge a point by its gap, by the epochs before it, and by larger models on as many rows.

    point: the best of its size and share; found: all points; parameters: numbers of them, by layers; constant: test
    error of the best answer that is the same for all rows, None if it is not known.
    """
    same = [other for other in found if (other.layers, other.rows, other.batch_size) == point[:3]]
    larger = [
        other
        for other in best_of_each(found)
        if other.rows == point.rows and parameters[other.layers] > parameters[point.layers]
    ]
    gains = any(_is_worse(point, other) for other in larger)
    last = max(same, key=lambda other: other.epochs)
    earlier = max((other for other in same if other.epochs < last.epochs), key=lambda other: other.epochs, default=None)
    train, test = (shown(value, percent) for value in (last.train_error, last.test_error))
    figures = f"after {counted(last.epochs)} the training error is {train} and the test error {test}"
    if last.epochs > point.epochs and _is_worse(last, point):
        return Verdict("overfits", f"{figures}, which was {shown(point.test_error, percent)} after {point.epochs}")
    if earlier is not None and _is_worse(earlier, last):
        before = f"{shown(earlier.test_error, percent)} after {earlier.epochs}"
        return Verdict("unfinished", f"{figures}; it was {before}, and falls yet")
    if constant is not None and last.train_error > IDLE * constant:
        return Verdict("underfits", f"{figures}; one answer for all rows has {shown(constant, percent)}")
    if last.gap > LARGE_GAP * last.test_error and last.gap > SURE * last.deviation:
        return Verdict("overfits", figures + ", yet larger models have less" * gains)
    if last.gap < SMALL_GAP * last.test_error and gains:
        return Verdict("underfits", f"{figures}, and larger models have less")
    return Verdict("fits", figures)


def _is_worse(point: Point, other: Point) -> bool:
    """True if an error is larger than another by more than their spread, and by 2 % of it at least."""
    rise = point.test_error - other.test_error
    return rise > NOTABLE * other.test_error and rise > SURE * math.hypot(point.deviation, other.deviation)


def counted(epochs: int) -> str:
    """A number of epochs in words.

    >>> counted(1), counted(5)
    ('1 epoch', '5 epochs')
    """
    return f"{epochs} epoch{'s' * (epochs != 1)}"


def shown(error: float, percent: bool) -> str:
    """An error in words: a percentage of wrong classes, or a number.

    >>> shown(0.1234, True), shown(0.1234, False)
    ('12.3 %', '0.1234')
    """
    return f"{100 * error:.3g} %" if percent else f"{error:.4g}"
