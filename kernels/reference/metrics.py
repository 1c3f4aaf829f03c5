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
    """Fed batch by batch. `logits`: it wants the outputs as the loss sees them, and not as they are shown.

    weights: (rows,) float64, above 0; None: all 1.
    """

    logits: bool

    def __init__(self, rule: Rule) -> None: ...
    def add(self, outputs: Array, targets: Array, weights: Array | None = None) -> None: ...
    def result(self) -> float: ...


class Mean:
    """Totals that end in a quotient; NaN before the first row."""

    logits = False

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.total = self.count = 0.0

    def include(self, values: Array, weights: Array | None) -> None:
        """Add values of rows, (rows,) or (rows, outputs)."""
        if weights is None:
            self.total += total(values)
            self.count += values.size
        else:
            self.total += total((weights * values.T).T)
            self.count += total(weights) * (values.size // len(values))

    def result(self) -> float:
        return self.total / self.count if self.count else np.nan


class Accuracy(Mean):
    """The share of outputs that are on the right side, or of rows whose largest output is the right one."""

    logits = True

    def add(self, outputs: Array, targets: Array, weights: Array | None = None) -> None:
        known = ~np.isnan(outputs)
        if self.rule.by_output:
            hits = known & ((outputs > self.rule.boundary[0]) == (targets > self.rule.boundary[1]))
        else:
            labels = targets if targets.ndim == 1 else targets.argmax(axis=1)
            hits = known.all(axis=1) & (outputs.argmax(axis=1) == labels)
        self.include(hits, weights)


class TopAccuracy(Mean):
    """The share of rows whose class is among those of the k largest outputs; of equal outputs the first count."""

    logits = True
    k = 5

    def add(self, outputs: Array, targets: Array, weights: Array | None = None) -> None:
        labels = targets if targets.ndim == 1 else targets.argmax(axis=1)
        largest = np.argsort(-outputs, axis=1, kind="stable")[:, : self.k]
        hits = ~np.isnan(outputs).any(axis=1) & (largest == labels[:, None]).any(axis=1)
        self.include(hits, weights)


class Counts:
    """Totals of each class: rows of it that were predicted to be, rows predicted to be, and rows of it.

    With `by_output` each output has two classes, in columns 2 j (it is not) and 2 j + 1 (it is). An output that is NaN
    predicts nothing.
    """

    logits = True

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.right = self.predicted = self.actual = np.zeros(0)
        self.outputs = 0

    def add(self, outputs: Array, targets: Array, weights: Array | None = None) -> None:
        if self.rule.by_output:
            known = ~np.isnan(outputs)
            above, positive = outputs > self.rule.boundary[0], targets > self.rule.boundary[1]
            predicted = np.stack([known & ~above, known & above], axis=2).reshape(len(outputs), -1)
            actual = np.stack([~positive, positive], axis=2).reshape(len(outputs), -1)
        else:
            classes = np.arange(outputs.shape[1])
            labels = targets if targets.ndim == 1 else targets.argmax(axis=1)
            known = ~np.isnan(outputs).any(axis=1)
            predicted = known[:, None] & (np.where(known, outputs.argmax(axis=1), -1)[:, None] == classes)
            actual = labels[:, None] == classes
        found = np.stack([predicted & actual, predicted, actual])
        found = found.sum(axis=1) if weights is None else np.einsum("i,kij->kj", weights, found)
        if not self.outputs:
            self.outputs, self.totals = outputs.shape[1], np.zeros_like(found)
        self.totals += found
        self.right, self.predicted, self.actual = self.totals

    averages = False  # True: the figure is a mean over classes

    def score(self, right: Array, predicted: Array, actual: Array) -> Array:
        """The figure of each class; 0 where it would be 0 / 0."""
        raise NotImplementedError

    def result(self) -> float:
        return self.macro() if self.averages else self.binary()

    def binary(self) -> float:
        """The figure of the positive class, of all outputs together where each is one by itself."""
        if not self.outputs:
            return np.nan
        positive = slice(1, None, 2) if self.rule.by_output else slice(1, 2)
        totals = (counts[positive].sum(keepdims=True) for counts in (self.right, self.predicted, self.actual))
        return float(self.score(*totals)[0])

    def macro(self) -> float:
        """The mean over the classes that there are, or over all outputs where several are classes by themselves."""
        if not self.outputs:
            return np.nan
        if self.rule.by_output and self.outputs > 1:
            chosen = np.arange(2 * self.outputs) % 2 == 1
        else:
            chosen = self.predicted + self.actual > 0
        return float(self.score(self.right[chosen], self.predicted[chosen], self.actual[chosen]).mean())


def _ratio(a: Array, b: Array) -> Array:
    return np.divide(a, b, out=np.zeros(len(a)), where=b > 0)


class Precision(Counts):
    """The share of those predicted to be of a class that are."""

    def score(self, right: Array, predicted: Array, actual: Array) -> Array:
        return _ratio(right, predicted)


class Recall(Counts):
    """The share of those of a class that were predicted to be."""

    def score(self, right: Array, predicted: Array, actual: Array) -> Array:
        return _ratio(right, actual)


class F1(Counts):
    """The harmonic mean of precision and recall."""

    def score(self, right: Array, predicted: Array, actual: Array) -> Array:
        p, r = _ratio(right, predicted), _ratio(right, actual)
        return _ratio(2 * p * r, p + r)


class PrecisionMacro(Precision):
    averages = True


class RecallMacro(Recall):
    averages = True


class F1Macro(F1):
    averages = True


class MeanSquaredError(Mean):
    """mean (t - z)^2 over rows and outputs."""

    def add(self, outputs: Array, targets: Array, weights: Array | None = None) -> None:
        r = targets - outputs
        self.include(r * r, weights)


class MeanAbsoluteError(Mean):
    """mean |t - z| over rows and outputs."""

    def add(self, outputs: Array, targets: Array, weights: Array | None = None) -> None:
        self.include(np.abs(targets - outputs), weights)


class R2:
    """1 - sum (t - z)^2 / sum (t - mean t)^2 of each output, averaged by its variation, the second of these sums.

    Where it is 0, the value is 1 if the first is 0 too, else 0: scikit-learn's r2_score(multioutput=
    "variance_weighted"), but for one row, too, which that has no value for. Means and variations of batches are put
    together as by Chan, Golub & LeVeque 1979, relative to the first row, so that those of equal numbers are exact.
    """

    logits = False

    def __init__(self, rule: Rule) -> None:
        self.count = 0.0
        self.origin: Array | None = None

    def add(self, outputs: Array, targets: Array, weights: Array | None = None) -> None:
        if self.origin is None:
            self.origin = targets[0].astype(np.float64)
            self.errors, self.mean, self.variation = np.zeros((3, targets.shape[1]))

        def summed(values: Array) -> Array:
            return values.sum(axis=0, dtype=np.float64) if weights is None else weights @ values

        r, own = targets - outputs, len(targets) if weights is None else float(weights.sum())
        self.errors += summed(r * r)
        away = targets - self.origin
        count, mean = self.count + own, summed(away) / own
        step = mean - self.mean
        self.variation += summed((away - mean) ** 2) + step**2 * (self.count * own / count)
        self.mean += step * (own / count)
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


class _Metrics(dict[str, type[Metric]]):
    def __missing__(self, name: str) -> type[Metric]:
        """top_K_accuracy of any K."""
        first, k, last = name.split("_")
        if (first, last) != ("top", "accuracy"):
            raise KeyError(name)
        return type(f"Top{k}Accuracy", (TopAccuracy,), {"k": int(k)})


METRICS: dict[str, type[Metric]] = _Metrics({
    "accuracy": Accuracy,
    "top_5_accuracy": TopAccuracy,
    "precision": Precision,
    "recall": Recall,
    "f1": F1,
    "precision_macro": PrecisionMacro,
    "recall_macro": RecallMacro,
    "f1_macro": F1Macro,
    "mean_squared_error": MeanSquaredError,
    "mean_absolute_error": MeanAbsoluteError,
    "r2": R2,
})
