"""Names of metrics, functions as metrics, and checks that loss, targets and last activation go with each other."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np

from ._validation import check_name, describe
from .kernels.formulas import LOSSES, METRICS

Function = Callable[..., float]  # f(y_true, y_pred), and perhaps sample_weight


def roc_auc(y_true: np.ndarray, y_pred: np.ndarray, sample_weight: np.ndarray | None = None) -> float:
    """Area under the ROC curve: the share of pairs of a positive and a negative row that the outputs order rightly.

    Pairs of equal outputs count half. Of several classes, or outputs that are classes by themselves, it is the mean of
    each against the rest; without those that all rows are, or none. NaN where nothing is left, or an output is NaN.

    y_true: labels (n,), where positive is above 0, or class numbers for y_pred (n, K); or (n, K). y_pred: (n,), (n, K).
    sample_weight: (n,), above 0 or 0; a pair counts by the product of its weights. None: all 1.

    Source: Hanley & McNeil 1982; scikit-learn's roc_auc_score, with multi_class="ovr" for several classes.

    >>> roc_auc(np.array([0, 1, 0, 1]), np.array([0.1, 0.4, 0.5, 0.5]))
    0.625
    """
    scores = y_pred.reshape(len(y_pred), -1)
    if np.isnan(scores).any():
        return float("nan")
    if y_true.ndim == 1 and scores.shape[1] > 1:
        positive = y_true[:, None] == np.arange(scores.shape[1])
        if scores.shape[1] == 2:  # the second class against the first
            positive, scores = positive[:, 1:], scores[:, 1:]
    else:
        positive = y_true.reshape(scores.shape) > 0
    area = _area
    if sample_weight is not None:
        used = sample_weight > 0
        positive, scores = positive[used], scores[used]
        area = partial(_weighted_area, sample_weight[used].astype(np.float64))
    classes = zip(positive.T, scores.T, strict=True)
    areas = [area(is_one, score) for is_one, score in classes if 0 < is_one.sum() < len(is_one)]
    return float(np.mean(areas)) if areas else float("nan")


def _weighted_area(weights: np.ndarray, positive: np.ndarray, scores: np.ndarray) -> float:
    """The weight of pairs whose positive row has the larger score, and half that of equal ones, over that of all.

    >>> float(_weighted_area(np.array([1.0, 2.0, 3.0]), np.array([False, True, True]), np.array([0.5, 0.5, 0.9])))
    0.8
    """
    _, index = np.unique(scores, return_inverse=True)
    of_positive, of_negative = (np.bincount(index, weights * is_one) for is_one in (positive, ~positive))
    below = np.cumsum(of_negative) - of_negative / 2
    return float(of_positive @ below / (of_positive.sum() * of_negative.sum()))


def _area(positive: np.ndarray, scores: np.ndarray) -> float:
    """Mann & Whitney's U of the positive rows over the number of pairs, with the mean rank of equal scores."""
    _, index, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2
    count, others = int(positive.sum()), int((~positive).sum())
    return float((ranks[index][positive].sum() - count * (count + 1) / 2) / (count * others))


FUNCTIONS: dict[str, Function] = {"roc_auc": roc_auc}  # metrics of all rows together, by name
ALIASES = {alias: name for name, row in METRICS.items() for alias in row.aliases}
ALIASES |= {"auc": "roc_auc", "roc_auc_score": "roc_auc"}
_RESERVED = ("loss", "lr", "seconds", "samples_per_second", "epoch", "step")
_VALIDATION = "val_"


def canonical(name: str) -> str:
    """Return the name in `History` of a loss or metric, for any of its names; an unknown name is returned as it is.

    >>> canonical("val_mae"), canonical("R2"), canonical("loss")
    ('val_mean_absolute_error', 'r2', 'loss')
    """
    prefix = _VALIDATION if name.startswith(_VALIDATION) else ""
    bare = name.removeprefix(prefix)
    known = ALIASES.get(bare.lower(), bare.lower())
    return prefix + known if known in METRICS or known in FUNCTIONS else name


def among(name: str, names: Collection[str]) -> str:
    """Return the name of a figure that is meant, of these: itself if it is there, else the canonical one.

    >>> among("r2_score", ["loss", "r2"]), among("r2_score", ["loss", "r2_score"])
    ('r2', 'r2_score')
    """
    return name if name in names else canonical(name)


def rises(name: str) -> bool:
    """True for a metric of which a larger figure is better, by its canonical name.

    >>> rises("accuracy"), rises("mean_squared_error"), rises("loss")
    (True, False, False)
    """
    return name in FUNCTIONS or (name in METRICS and METRICS[name].rises)


def check_metrics(metrics: Any, loss: str, outputs: int) -> tuple[tuple[str, ...], dict[str, Function]]:
    """Return the names in METRICS of one or several metrics, and functions by their names.

    Raises ValueError for a metric that does not fit loss and outputs.
    """
    if metrics is None:
        return (), {}
    if not isinstance(metrics, str | Iterable) and not callable(metrics):
        raise TypeError(f"metrics must be a list of names; got {describe(metrics)}")
    listed = [metrics] if isinstance(metrics, str) or callable(metrics) else list(metrics)
    chosen: dict[str, Function | None] = {}
    for one in listed:
        name, function = _named(one)
        if name in chosen:
            raise ValueError(f"the metric {name} is given twice")
        chosen[name] = function
    names = tuple(name for name, function in chosen.items() if function is None)
    _check_fit(names, loss, outputs)
    functions = {name: function for name, function in chosen.items() if function is not None}
    row = LOSSES[loss]
    if "roc_auc" in functions and not (row.by_row or row.binary):
        fitting = ", ".join(name for name, other in LOSSES.items() if other.by_row or other.binary)
        raise ValueError(f"the metric roc_auc is for losses of classes: {fitting}; got {loss}")
    return names, functions


def _named(metric: Any) -> tuple[str, Function | None]:
    """The canonical name of a metric, and its function if it is one."""
    if isinstance(metric, str) or not callable(metric):
        name = _known(metric)
        return name, FUNCTIONS.get(name)
    name = getattr(metric, "__name__", "")
    if not name.isidentifier():
        raise ValueError(f"a function that is a metric must have a name, as `def` gives it; got {metric!r}")
    if FUNCTIONS.get(name) is metric:
        return name, metric
    # other names of our metrics are free: scikit-learn's r2_score is listed as r2_score
    if name in METRICS or name in FUNCTIONS or name in _RESERVED or name.startswith(_VALIDATION):
        raise ValueError(f"the name of a function that is a metric must be a new one; got {name}")
    return name, metric


def function_values(
    functions: Mapping[str, Function], y: np.ndarray, outputs: np.ndarray, weights: np.ndarray | None = None
) -> dict[str, float]:
    """Values of functions f(y_true, y_pred) for targets and outputs (n, outputs), which are (n,) for one output.

    weights: (n,), given to functions that have an argument `sample_weight`; others see all rows alike.

    >>> function_values({"hits": lambda t, y: (t == y).mean()}, np.array([[1.0], [2.0]]), np.array([[1.0], [3.0]]))
    {'hits': 0.5}
    """
    if outputs.shape[1] == 1:
        y, outputs = y.reshape(len(y)), outputs[:, 0]
    values = {}
    for name, function in functions.items():
        more = {} if weights is None or not _takes_weights(function) else {"sample_weight": weights.copy()}
        try:
            value = function(y.copy(), outputs.copy(), **more)  # which it may change
        except (TypeError, ValueError) as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(
                f"the metric {name} cannot be taken of targets {y.shape} and predictions {outputs.shape}, which are"
                f" what `predict` returns: {error}"
            ) from error
        try:
            values[name] = float(value)
        except (TypeError, ValueError):
            raise TypeError(f"the metric {name} must return a number; got {describe(value)}") from None
    return values


def _takes_weights(function: Function) -> bool:
    try:
        return "sample_weight" in inspect.signature(function).parameters
    except ValueError:  # a function of C without a signature
        return False


def _check_fit(names: Iterable[str], loss: str, outputs: int) -> None:
    for name in names:
        if not METRICS[name].goes_with(LOSSES[loss]):
            fitting = [other for other, row in METRICS.items() if row.goes_with(LOSSES[loss])]
            raise ValueError(f"the metric {name} does not go with the loss {loss}; what does: {', '.join(fitting)}")
        if not METRICS[name].takes_outputs(LOSSES[loss], outputs):
            raise ValueError(
                f"the metric {name} must have two classes to tell apart; got {outputs} outputs. Of several classes it"
                f" is {name}_macro"
            )


def _known(name: Any) -> str:
    """The canonical name of a metric; TypeError or ValueError for what is none."""
    known = canonical(name) if isinstance(name, str) else name
    if known in METRICS:
        return known
    return check_name("metric", known, [*METRICS, *FUNCTIONS, "top_K_accuracy of any K"])


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
