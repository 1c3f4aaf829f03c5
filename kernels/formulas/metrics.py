"""Metrics: each is one scalar function and one row of METRICS.

A pass adds up a score over rows or outputs, and the sum becomes a figure at its end. Metrics of values are scored on
the outputs that `predict` gives, metrics of classes on those that the loss is given: logits, where training runs on
them. A row with an output that is NaN is never right.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .losses import Loss, absolute, squared


def is_first(rank):
    return rank == 0


def is_among_first_5(rank):
    return rank < 5


@dataclass(frozen=True)
class Metric:
    """A row of METRICS.

    score         of classes: score(rank), true where a prediction is right; rank is the number of classes with a larger
                  output than the right class, or an equal one that comes first. Of values: score(y, t, a) of an output
                  y and its target t; a is unused, but lets a loss and a metric share the function
    of_classes    true: rows are scored by their class, or each output by itself for the losses that say so
    losses        losses that it goes with: "all", "dense" (those with a target an output), or "softmax"
    of_variation  the figure is 1 - sum / (sum of squares of the targets around their mean), not sum / count
    rises         a larger figure is better
    aliases       other names
    """

    score: Callable[..., Any]
    of_classes: bool = False
    losses: str = "dense"
    of_variation: bool = False
    rises: bool = False
    aliases: tuple[str, ...] = ()

    def goes_with(self, loss: Loss) -> bool:
        """True if the targets of a loss, a row of LOSSES, have this metric."""
        return {"all": True, "dense": loss.targets == "dense", "softmax": loss.by_row}[self.losses]


METRICS: dict[str, Metric] = {
    "accuracy": Metric(is_first, of_classes=True, losses="all", rises=True, aliases=("acc",)),
    "top_5_accuracy": Metric(
        is_among_first_5,
        of_classes=True,
        losses="softmax",
        rises=True,
        aliases=("top_k_categorical_accuracy", "sparse_top_k_categorical_accuracy"),
    ),
    "mean_squared_error": Metric(squared, aliases=("mse",)),
    "mean_absolute_error": Metric(absolute, aliases=("mae",)),
    "r2": Metric(squared, of_variation=True, rises=True, aliases=("r2_score",)),
}
