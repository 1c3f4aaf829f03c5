"""Metrics: each is one scalar function and one row of METRICS.

A pass adds up a score over rows or outputs, and the sum becomes a figure at its end. Metrics of values are scored on
the outputs that `predict` gives, metrics of classes on those that the loss is given: logits, where training runs on
them. A row with an output that is NaN is never right.

Precision, recall and their like are made from counts of each class, which a pass adds up once for all of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from .losses import Loss, absolute, squared


def is_first(rank):
    return rank == 0


@cache
def is_among_first(k):
    def is_among_first_k(rank):
        return rank < k

    return is_among_first_k


def precision(right, predicted, actual):
    return right / predicted if predicted else 0.0


def recall(right, predicted, actual):
    return right / actual if actual else 0.0


def f1(right, predicted, actual):
    return 2 * right / (predicted + actual) if right else 0.0


@dataclass(frozen=True)
class Metric:
    """A row of METRICS.

    score         of classes: score(rank), true where a prediction is right; rank is the number of classes with a larger
                  output than the right class, or an equal one that comes first. Of values: score(y, t, a) of an output
                  y and its target t; a is unused, but lets a loss and a metric share the function. Of counts:
                  score(right, predicted, actual), the numbers of rows that are a class and were predicted to be, that
                  were predicted to be, and that are; called on the host
    of_classes    true: rows are scored by their class, or each output by itself for the losses that say so
    losses        losses that it goes with: "all", "dense" (those with a target an output), or "softmax"
    of_variation  the figure is 1 - sum / (sum of squares of the targets around their mean), not sum / count
    average       of counts: "binary", the score of the positive class, whose counts are added up over outputs that are
                  classes by themselves; "macro", the mean of the scores of all classes. Else ""
    rises         a larger figure is better
    aliases       other names
    """

    score: Callable[..., Any]
    of_classes: bool = False
    losses: str = "dense"
    of_variation: bool = False
    average: str = ""
    rises: bool = False
    aliases: tuple[str, ...] = ()

    @property
    def of_counts(self) -> bool:
        return bool(self.average)

    def goes_with(self, loss: Loss) -> bool:
        """True if the targets of a loss, a row of LOSSES, have this metric."""
        return {"all": True, "dense": loss.targets == "dense", "softmax": loss.by_row}[self.losses]

    def takes_outputs(self, loss: Loss, outputs: int) -> bool:
        """True if so many outputs are classes of which it is: one with "binary" needs two, or outputs by themselves."""
        return self.average != "binary" or outputs == 2 or loss.hits_by_output(outputs)


TOP = re.compile(r"top_([1-9]\d*)_accuracy")


class _Metrics(dict[str, Metric]):
    """Rows by name; top_K_accuracy is there for every K, but iteration and length know only that of K = 5."""

    def __missing__(self, name: str) -> Metric:
        found = TOP.fullmatch(name) if isinstance(name, str) else None
        if not found:
            raise KeyError(name)
        return Metric(is_among_first(int(found[1])), of_classes=True, losses="softmax", rises=True)

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or (isinstance(name, str) and TOP.fullmatch(name) is not None)


def _of_counts(score: Callable[..., Any], average: str, *aliases: str) -> Metric:
    return Metric(score, of_classes=True, losses="all", average=average, rises=True, aliases=aliases)


METRICS: dict[str, Metric] = _Metrics({
    "accuracy": Metric(
        is_first,
        of_classes=True,
        losses="all",
        rises=True,
        aliases=("acc", "binary_accuracy", "categorical_accuracy", "sparse_categorical_accuracy"),
    ),
    "top_5_accuracy": Metric(
        is_among_first(5),
        of_classes=True,
        losses="softmax",
        rises=True,
        aliases=("top_k_accuracy", "top_k_categorical_accuracy", "sparse_top_k_categorical_accuracy"),
    ),
    "precision": _of_counts(precision, "binary"),
    "recall": _of_counts(recall, "binary"),
    "f1": _of_counts(f1, "binary", "f1_score"),
    "precision_macro": _of_counts(precision, "macro"),
    "recall_macro": _of_counts(recall, "macro"),
    "f1_macro": _of_counts(f1, "macro"),
    "mean_squared_error": Metric(squared, aliases=("mse",)),
    "mean_absolute_error": Metric(absolute, aliases=("mae",)),
    "r2": Metric(squared, of_variation=True, rises=True, aliases=("r2_score",)),
})
