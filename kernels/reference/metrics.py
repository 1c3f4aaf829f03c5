"""Metrics of the NumPy reference: each is fed batch by batch and keeps float64 totals."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np

from .maths import total

Array = np.ndarray


class Rule(NamedTuple):
    """Classes as accuracy tells them: by the largest output of a row, or `by_output`, each by its boundary.

    `boundary` holds what an output and a target must exceed to count as the positive class.
    """

    by_output: bool
    boundary: tuple[float, float] = (0.5, 0.5)


class Metric(Protocol):
    """Fed batch by batch. `logits`: it wants the outputs as the loss sees them, and not as they are shown."""

    logits: bool

    def __init__(self, rule: Rule) -> None: ...
    def add(self, outputs: Array, targets: Array) -> None: ...
    def result(self) -> float: ...


class Mean:
    """Totals that end in a quotient; NaN before the first row."""

    logits = False

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.total = 0.0
        self.count = 0

    def result(self) -> float:
        return self.total / self.count if self.count else np.nan


class Accuracy(Mean):
    """The share of outputs that are on the right side, or of rows whose largest output is the right one."""

    logits = True

    def add(self, outputs: Array, targets: Array) -> None:
        known = ~np.isnan(outputs)
        if self.rule.by_output:
            hits = known & ((outputs > self.rule.boundary[0]) == (targets > self.rule.boundary[1]))
        else:
            labels = targets if targets.ndim == 1 else targets.argmax(axis=1)
            hits = known.all(axis=1) & (outputs.argmax(axis=1) == labels)
        self.total += int(np.count_nonzero(hits))
        self.count += hits.size


class Top5Accuracy(Mean):
    """The share of rows whose class is among those of the five largest outputs; of equal outputs the first count."""

    logits = True

    def add(self, outputs: Array, targets: Array) -> None:
        labels = targets if targets.ndim == 1 else targets.argmax(axis=1)
        largest = np.argsort(-outputs, axis=1, kind="stable")[:, :5]
        hits = ~np.isnan(outputs).any(axis=1) & (largest == labels[:, None]).any(axis=1)
        self.total += int(np.count_nonzero(hits))
        self.count += len(hits)


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
    """1 - sum (t - z)^2 / sum (t - mean t)^2 of each output, averaged by its variation, the second of these sums.

    Where it is 0, the value is 1 if the first is 0 too, else 0: scikit-learn's r2_score(multioutput=
    "variance_weighted"), but for one row, too, which that has no value for. Means and variations of batches are put
    together as by Chan, Golub & LeVeque 1979, relative to the first row, so that those of equal numbers are exact.
    """

    logits = False

    def __init__(self, rule: Rule) -> None:
        self.count = 0
        self.origin: Array | None = None

    def add(self, outputs: Array, targets: Array) -> None:
        if self.origin is None:
            self.origin = targets[0].astype(np.float64)
            self.errors, self.mean, self.variation = np.zeros((3, targets.shape[1]))
        r = targets - outputs
        self.errors += (r * r).sum(axis=0, dtype=np.float64)
        away = targets - self.origin
        count, mean = self.count + len(away), away.mean(axis=0)
        step = mean - self.mean
        self.variation += ((away - mean) ** 2).sum(axis=0) + step**2 * (self.count * len(away) / count)
        self.mean += step * (len(away) / count)
        self.count = count

    def result(self) -> float:
        if self.origin is None:
            return np.nan
        constant = self.variation == 0
        if np.isnan(self.errors[constant]).any() and constant.all():
            return np.nan
        scores = np.where(self.errors == 0, 1.0, 0.0)
        scores[~constant] = 1 - self.errors[~constant] / self.variation[~constant]
        return float(scores.mean() if constant.all() else np.average(scores, weights=self.variation))


METRICS: dict[str, type[Metric]] = {
    "accuracy": Accuracy,
    "top_5_accuracy": Top5Accuracy,
    "mean_squared_error": MeanSquaredError,
    "mean_absolute_error": MeanAbsoluteError,
    "r2": R2,
}
