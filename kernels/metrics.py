"""Metrics from the sums that a pass leaves, for all backends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .formulas import LOSSES, METRICS

Columns = tuple[int, int]  # the first, and one past the last
# Things that metrics score: a row's class, by its label or its largest target; the class of every output; or values.
SCORED = ("labels", "largest", "outputs", "values")


def scored_by(name: str, loss: str, labels: bool, outputs: int) -> str:
    """Name in SCORED of what a metric scores in a batch; labels: targets are class numbers.

    >>> scored_by("accuracy", "binary_crossentropy", False, 3), scored_by("r2", "huber", False, 3)
    ('outputs', 'values')
    """
    if not METRICS[name].of_classes:
        return "values"
    return "labels" if labels else "outputs" if LOSSES[loss].hits_by_output(outputs) else "largest"


def scored_forms(name: str) -> list[str]:
    """Names in SCORED of all that a metric scores, over the losses that it goes with: it has a kernel for each.

    Those of counts share the kernels.

    >>> scored_forms("accuracy"), scored_forms("top_5_accuracy"), scored_forms("r2")
    (['labels', 'largest', 'outputs'], ['labels', 'largest'], ['values'])
    """
    losses = {loss: row for loss, row in LOSSES.items() if METRICS[name].goes_with(row)}
    found = {scored_by(name, loss, row.targets == "labels", n) for loss, row in losses.items() for n in (1, 2)}
    return [form for form in SCORED if form in found]


class Variation(NamedTuple):
    """Sums of squares of the targets around their mean, for r2."""

    of_columns: tuple[float, ...]

    @property
    def parts(self) -> list[Columns]:
        """Runs of columns, each of which needs its sum of squared errors for r2.

        Constant targets have weight 0 beside others; where all are constant, each output is exact or not by itself.

        >>> Variation((1.0, 2.0, 0.0, 3.0)).parts, Variation((0.0, 0.0)).parts
        ([(0, 2), (3, 4)], [(0, 1), (1, 2)])
        """
        weights = self.of_columns
        if not any(weights):
            return [(column, column + 1) for column in range(len(weights))]
        parts: list[Columns] = []
        for column, weight in enumerate(weights):
            if weight and parts and parts[-1][1] == column:
                parts[-1] = parts[-1][0], column + 1
            elif weight:
                parts.append((column, column + 1))
        return parts

    def r2(self, errors: Sequence[float]) -> float:
        """Coefficient of determination from the sums of squared errors, one for each of `parts`."""
        total, variation = float(np.sum(errors)), sum(self.of_columns)
        if variation or np.isnan(total):
            return 1 - total / variation if variation else total
        return sum(error == 0 for error in errors) / len(errors)


class ColumnVariation(Variation):
    """Variation of targets so far, which come batch by batch: squared errors of each column are added up apart.

    For a column that has been constant may vary with the next batch.

    >>> ColumnVariation((2.0, 0.0)).parts, ColumnVariation((2.0, 0.0)).r2([1.0, 5.0])
    ([(0, 1), (1, 2)], 0.5)
    """

    @property
    def parts(self) -> list[Columns]:
        return [(column, column + 1) for column in range(len(self.of_columns))]

    def r2(self, errors: Sequence[float]) -> float:
        varies = any(self.of_columns)
        return super().r2([error for error, own in zip(errors, self.of_columns, strict=True) if own or not varies])


class RunningVariation:
    """Variation of targets that come batch by batch; exactly 0 for constant ones.

    Means and squares of batches are put together as by Chan, Golub & LeVeque 1979, relative to the first row.
    """

    def __init__(self) -> None:
        self.state: dict[str, Any] = {}  # weight of all rows, and for each column its first target, mean and squares

    def add(self, y: np.ndarray, weights: np.ndarray | None = None) -> ColumnVariation:
        """Return the variation of all targets so far, with those of another batch, (n, outputs).

        weights: (n,) of the rows; None: all 1.

        >>> running = RunningVariation()
        >>> running.add(np.array([[0.1, 1.0], [0.1, 3.0]])), running.add(np.array([[0.1, 2.0]]))
        (ColumnVariation(of_columns=(0.0, 2.0)), ColumnVariation(of_columns=(0.0, 2.0)))
        """
        w = np.ones(len(y)) if weights is None else weights.astype(np.float64)
        y, w = y[w > 0], w[w > 0]  # the others are absent, also as the first
        if not self.state and not len(y):
            return ColumnVariation((0.0,) * y.shape[1])
        if not self.state:
            zeros = np.zeros(y.shape[1])
            self.state = {"weight": 0.0, "first": y[0].astype(np.float64), "mean": zeros, "squares": zeros}
        if len(y):
            weight, mean, squares = self.state["weight"], self.state["mean"], self.state["squares"]
            away, own = np.subtract(y, self.state["first"], dtype=np.float64), float(w.sum())
            of_batch = w @ away / own
            step, total = of_batch - mean, weight + own
            squares = squares + w @ (away - of_batch) ** 2 + step**2 * (weight * own / total)
            self.state |= {"weight": total, "mean": mean + step * (own / total), "squares": squares}
        return ColumnVariation(tuple(self.state["squares"].tolist()))


def variation_for(
    metrics: Sequence[str], y: np.ndarray, order: np.ndarray | None, weights: np.ndarray | None = None
) -> Variation | None:
    """Variation of the targets, as `variation_of`; None if no metric needs it."""
    return variation_of(y, order, weights) if any(METRICS[name].of_variation for name in metrics) else None


def variation_of_pass(metrics: Sequence[str], batches: Any, in_order: bool) -> Variation | None:
    """Variation of the targets of a training pass; batches: `Batches`, for a part of an epoch that of the whole one.

    in_order: true where the backend adds up in the order of the epoch, false where it shuffles afterwards.
    """
    parts = batches.parts
    if parts is None:
        return variation_for(metrics, batches.y, batches.order, batches.weights)
    if parts.variation is None:
        whole = parts.whole.epoch(0) if in_order else parts.whole
        parts.variation = variation_for(metrics, whole.y, whole.order, whole.weights)
    return parts.variation


def variation_of(y: np.ndarray, order: np.ndarray | None, weights: np.ndarray | None = None) -> Variation:
    """Variation of the targets y (n, outputs), or of their rows `order`; exactly 0 for constant ones.

    weights: (n,) of the rows, by which squares and mean are weighted; None: all 1.

    >>> variation_of(np.array([[0.1, 1.0], [0.1, 3.0], [0.1, 2.0]]), None)
    Variation(of_columns=(0.0, 2.0))
    >>> variation_of(np.array([[1.0], [3.0], [9.0]]), None, np.array([1.0, 3.0, 0.0]))
    Variation(of_columns=(3.0,))
    """
    if weights is not None:  # rows of weight 0 are absent, also as the first
        rows = np.arange(len(y)) if order is None else order
        order = rows[weights[rows] > 0]
    targets = y if order is None else y[order]
    if not len(targets):
        return Variation((0.0,) * y.shape[1])
    # Differences from the first row: they are 0 for equal numbers, whose mean is not always that number.
    deviations = np.subtract(targets, targets[0], dtype=np.float64)
    if weights is None:
        deviations -= deviations.mean(axis=0)
        return Variation(tuple(np.einsum("ij,ij->j", deviations, deviations).tolist()))
    w = weights[order].astype(np.float64)
    deviations -= w @ deviations / w.sum()
    return Variation(tuple(np.einsum("i,ij,ij->j", w, deviations, deviations).tolist()))


def num_counts(outputs: int, by_output: bool) -> int:
    """Number of counts of all classes: (right, predicted, actual) of each class, all right ones first.

    An output that is a class by itself, by_output, counts for two: class 2 j is that it is not, and 2 j + 1 that it is.

    >>> num_counts(10, by_output=False), num_counts(1, by_output=True)
    (30, 6)
    """
    return 3 * (2 * outputs if by_output else outputs)


def has_counts(metrics: Sequence[str]) -> bool:
    """True if metrics are made from counts of classes."""
    return any(METRICS[name].of_counts for name in metrics)


def _of_counts(name: str, counts: Sequence[float], outputs: int, by_output: bool) -> float:
    """A metric from counts of classes; a class that neither is nor was predicted is none of those of a mean.

    >>> _of_counts("precision", [5, 2, 5, 3, 6, 2], 1, by_output=True)  # of 3 predicted to be so 2 are
    0.6666666666666666
    >>> _of_counts("recall_macro", [4, 0, 1, 5, 0, 1, 4, 0, 2], 3, by_output=False)  # nobody is of the second class
    0.75
    """
    score, table = METRICS[name].score, np.reshape(counts, (3, -1))
    if METRICS[name].average == "binary":
        return float(score(*(table[:, 1::2].sum(axis=1) if by_output else table[:, 1]).tolist()))
    table = table[:, 1::2] if by_output and outputs > 1 else table[:, table[1:].any(axis=0)]
    return float(np.mean([score(*of_class) for of_class in table.T.tolist()])) if table.size else float("nan")


def metric_values(
    sums: Mapping[str, Sequence[float]], rows: float, outputs: int, by_output: bool, variation: Variation | None = None
) -> dict[str, float]:
    """Metrics from sums over `rows` rows, or rows of this weight together; NaN for none.

    sums: of each metric's scores over rows and outputs; of r2 one sum for each of the parts of the `variation`; of
    those of counts all the counts. by_output: true if metrics of classes count outputs, not rows.

    >>> metric_values({"accuracy": [3.0]}, 4, 2, by_output=False)
    {'accuracy': 0.75}
    """
    if not rows:
        return dict.fromkeys(sums, float("nan"))
    values = {}
    for name, found in sums.items():
        row = METRICS[name]
        if row.of_variation:
            assert variation is not None
            values[name] = variation.r2(found)
        elif row.of_counts:
            values[name] = _of_counts(name, found, outputs, by_output)
        else:
            value = found[0] / (rows if row.of_classes and not by_output else rows * outputs)
            # weights of right rows and of all rows add up with different roundings
            values[name] = 1.0 if row.of_classes and value > 1 else value
    return values


def sums_of(metrics: Sequence[str], outputs: int, variation: Variation | None) -> list[tuple[str, Columns]]:
    """Sums that metrics are computed from: (metric, columns) of each, in order; without counts of classes.

    >>> sums_of(["accuracy", "r2"], 3, Variation((1.0, 0.0, 2.0)))
    [('accuracy', (0, 3)), ('r2', (0, 1)), ('r2', (2, 3))]
    """
    parts: list[tuple[str, Columns]] = []
    for name in metrics:
        if METRICS[name].of_counts:
            continue
        of_metric = variation.parts if METRICS[name].of_variation and variation is not None else [(0, outputs)]
        parts += [(name, columns) for columns in of_metric]
    return parts
