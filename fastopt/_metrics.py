"""Names of metrics, and checks that loss, targets and last activation go with each other."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from ._validation import check_name, describe
from .kernels.formulas import LOSSES, METRICS

ALIASES = {alias: name for name, row in METRICS.items() for alias in row.aliases}
_VALIDATION = "val_"


def canonical(name: str) -> str:
    """Return the name in `History` of a loss or metric, for any of its names; an unknown name is returned as it is.

    >>> canonical("val_mae"), canonical("R2"), canonical("loss")
    ('val_mean_absolute_error', 'r2', 'loss')
    """
    prefix = _VALIDATION if name.startswith(_VALIDATION) else ""
    bare = name.removeprefix(prefix)
    known = ALIASES.get(bare.lower(), bare.lower())
    return prefix + known if known in METRICS else name


def rises(name: str) -> bool:
    """True for a metric of which a larger figure is better, by its canonical name.

    >>> rises("accuracy"), rises("mean_squared_error"), rises("loss")
    (True, False, False)
    """
    return name in METRICS and METRICS[name].rises


def check_metrics(metrics: Any, loss: str, outputs: int) -> tuple[str, ...]:
    """Return the names in METRICS of one or several metrics; ValueError for one that does not fit loss and outputs."""
    if metrics is None:
        return ()
    if not isinstance(metrics, str | Iterable):
        raise TypeError(f"metrics must be a list of names; got {describe(metrics)}")
    listed = [metrics] if isinstance(metrics, str) else metrics
    names = tuple(_known(name) for name in listed)
    for i, name in enumerate(names):
        if not METRICS[name].goes_with(LOSSES[loss]):
            fitting = [other for other, row in METRICS.items() if row.goes_with(LOSSES[loss])]
            raise ValueError(f"the metric {name} does not go with the loss {loss}; what does: {', '.join(fitting)}")
        if not METRICS[name].takes_outputs(LOSSES[loss], outputs):
            raise ValueError(
                f"the metric {name} must have two classes to tell apart; got {outputs} outputs. Of several classes it"
                f" is {name}_macro"
            )
        if name in names[:i]:
            raise ValueError(f"the metric {name} is given twice")
    return names


def _known(name: Any) -> str:
    """The canonical name of a metric; TypeError or ValueError for what is none."""
    known = canonical(name) if isinstance(name, str) else name
    return known if known in METRICS else check_name("metric", known, [*METRICS, "top_K_accuracy of any K"])


def check_classes(metrics: Iterable[str], loss: str, y: np.ndarray, name: str) -> None:
    """Raise ValueError for metrics of classes if the checked targets y are real numbers, not classes.

    Classes are labels; probabilities of the categorical losses, of which the largest counts; 0 and 1 (or -1 and 1) for
    each output of the binary ones; and for the losses that take any numbers, 0 and 1 for a single output, else one-hot.

    >>> check_classes(["accuracy"], "mean_squared_error", np.array([[0.0], [1.0]]), "y")
    >>> check_classes(["accuracy"], "mean_squared_error", np.array([[0.5], [1.0]]), "y")
    Traceback (most recent call last):
    ...
    ValueError: the metric accuracy needs classes: for the loss mean_squared_error and 1 output(s) y must be 0 and 1; \
got 0.5 at index (0, 0). Metrics of real-valued targets: mean_squared_error, mean_absolute_error, r2
    """
    row, of_classes = LOSSES[loss], [name for name in metrics if METRICS[name].of_classes]
    if not of_classes or row.targets == "labels" or row.by_row or row.signs:
        return
    one_hot = not row.hits_by_output(y.shape[1])
    wrong = (y != 0) & (y != 1)
    if one_hot and not wrong.any():
        wrong = np.repeat((y.sum(axis=1) != 1)[:, None], y.shape[1], axis=1)
    if wrong.any():
        first = tuple(int(i) for i in np.argwhere(wrong)[0])
        expected = "one-hot rows of 0 and 1" if one_hot else "0 and 1"
        found = f"{y[first]} at index {first}" if not one_hot else f"row {first[0]}: {_row(y[first[0]])}"
        numbers = ", ".join(other for other, metric in METRICS.items() if not metric.of_classes)
        raise ValueError(
            f"the metric {of_classes[0]} needs classes: for the loss {loss} and {y.shape[1]} output(s) {name} must be"
            f" {expected}; got {found}. Metrics of real-valued targets: {numbers}"
        )


def _row(values: np.ndarray) -> str:
    return ", ".join(f"{value:g}" for value in values[:5]) + " ..." * (len(values) > 5)


def check_outputs(loss: str, activation: str, units: int) -> None:
    """Raise ValueError for a last layer whose outputs make no sense to the loss."""
    row = LOSSES[loss]
    if units == 1 and (row.by_row or activation == "softmax"):
        raise ValueError(
            "the softmax of a single output is always 1, and its cross-entropy compares classes: for two classes let"
            " the model end with Dense(1, 'sigmoid') and take binary_crossentropy, or let it end with"
            f" Dense(2, 'softmax'); got Dense(1, {activation!r}) and the loss {loss}"
        )
    if activation == "softmax" and not row.by_row:
        fitting = ", ".join(name for name, other in LOSSES.items() if other.by_row)
        raise ValueError(
            f"softmax as the last activation needs a softmax cross-entropy as the loss: {fitting}; got {loss}"
        )
    if row.link and activation not in (row.link, "linear"):
        raise ValueError(
            f"the loss {loss} takes logits, so that the last activation must be {row.link}, which it undoes, or linear;"
            f" got {activation}"
        )
    if row.signs and activation in NEVER_NEGATIVE:
        raise ValueError(
            f"the loss {loss} tells classes by the sign of the output, so that the last activation must be one that can"
            f" be negative, such as linear or tanh; got {activation}"
        )


NEVER_NEGATIVE = ("relu", "sigmoid", "softplus")
