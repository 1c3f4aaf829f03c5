"""Metrics of the NumPy reference: each is fed batch by batch and keeps float64 totals."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from .reference_maths import total

Array = np.ndarray


class Metric(Protocol):
    """`boundary` holds what an output and a target must exceed to count as the positive class."""

    def __init__(self, boundary: tuple[float, float]) -> None: ...
    def add(self, outputs: Array, targets: Array) -> None: ...
    def result(self) -> float: ...


class Mean:
    """Totals that end in a quotient; NaN before the first row."""

    def __init__(self, boundary: tuple[float, float]) -> None:
        self.boundary = boundary
        self.total = 0.0
        self.count = 0

    def result(self) -> float:
        return self.total / self.count if self.count else np.nan


class Accuracy(Mean):
    """The share of rows of the right class: that of the largest output, or side of the boundary."""

    def add(self, outputs: Array, targets: Array) -> None:
        if targets.ndim == 1:
            hits = outputs.argmax(axis=1) == targets
        elif outputs.shape[1] > 1:
            hits = outputs.argmax(axis=1) == targets.argmax(axis=1)
        else:
            hits = (outputs > self.boundary[0]) == (targets > self.boundary[1])
        self.total += int(np.count_nonzero(hits))
        self.count += len(outputs)


class MeanSquaredError(Mean):
    """mean (t - z)^2 over rows and outputs."""

    def add(self, outputs: Array, targets: Array) -> None:
        r = targets - outputs
        self.total += total(r * r)
        self.count += r.size


class MeanAbsoluteError(Mean):
    """mean |t - z| over rows and outputs."""

    def add(self, outputs: Array, targets: Array) -> None:
        self.total += total(np.abs(targets - outputs))
        self.count += targets.size


class R2:
    """1 - sum (t - z)^2 / sum (t - mean t)^2, the mean taken per output, both sums over all outputs.

    scikit-learn's r2_score(multioutput="variance_weighted", force_finite=False).
    """

    def __init__(self, boundary: tuple[float, float]) -> None:
        self.count = 0
        self.residual = 0.0
        self.origin: Array | None = None  # targets are summed relative to the first row, against cancellation
        self.sums = np.zeros(0)
        self.squares = 0.0

    def add(self, outputs: Array, targets: Array) -> None:
        if self.origin is None:
            self.origin = targets[:1].copy()
            self.sums = np.zeros(targets.shape[1])
        r = targets - outputs
        d = targets - self.origin
        self.count += len(targets)
        self.residual += total(r * r)
        self.squares += total(d * d)
        self.sums += d.sum(axis=0, dtype=np.float64)

    def result(self) -> float:
        variation = np.float64(self.squares - self.sums @ self.sums / max(self.count, 1))
        with np.errstate(divide="ignore", invalid="ignore"):
            return float(1 - self.residual / variation)


METRICS: dict[str, type[Metric]] = {
    "accuracy": Accuracy,
    "mean_squared_error": MeanSquaredError,
    "mean_absolute_error": MeanAbsoluteError,
    "r2": R2,
}
