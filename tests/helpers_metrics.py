"""Every metric beside scikit-learn's, of outputs and targets that are given: for the tests of all backends."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest

import fastopt as fo
from fastopt.kernels.formulas import LOSSES, METRICS

CATEGORICAL = ("sparse_categorical_crossentropy", "categorical_crossentropy")
BINARY = ("binary_crossentropy", "hinge", "perceptron")
NUMBERS = ("mean_squared_error", "mean_absolute_error", "huber", "quantile")
RNG = np.random.default_rng(7)
Case = tuple[str, str, np.ndarray, np.ndarray]  # loss, last activation, its inputs, targets


def sklearn_value(
    metric: str, loss: str, outputs: np.ndarray, logits: np.ndarray, y: np.ndarray, weights: np.ndarray | None = None
) -> float:
    """The metric of what `predict` gives; accuracy that of classes told by the logits.

    Rows of weight 0 are left out.
    """
    metrics = pytest.importorskip("sklearn.metrics")
    if weights is not None:  # scikit-learn counts their classes
        used = weights > 0
        outputs, logits, y, weights = outputs[used], logits[used], y[used], weights[used]
    of_outputs = weights if weights is None else np.repeat(weights, logits.shape[1])
    if metric == "accuracy":
        if loss in CATEGORICAL or (loss in NUMBERS and y.shape[1] > 1):
            labels = y if y.ndim == 1 else y.argmax(axis=1)
            return float(metrics.accuracy_score(labels, logits.argmax(axis=1), sample_weight=weights))
        above = 0.5 if loss in NUMBERS else 0
        right = (y > 0).reshape(-1), (logits > above).reshape(-1)
        return float(metrics.accuracy_score(*right, sample_weight=of_outputs))
    if METRICS[metric].of_counts:
        return _counted(metric, loss, logits, y, weights)
    if metric.startswith("top_"):
        labels, columns = y if y.ndim == 1 else y.argmax(axis=1), logits.shape[1]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # five of three classes are all of them
            # In reverse: of equal outputs the first count, and with scikit-learn the last.
            # It takes two columns for a binary score, so that there is one more, of a class that nobody prefers.
            worst = np.full((len(labels), 1), logits.min() - 1)
            last = columns - labels, np.hstack([worst, logits[:, ::-1]])
            k, known = int(metric.split("_")[1]), np.arange(columns + 1)
            return float(metrics.top_k_accuracy_score(*last, k=k, labels=known, sample_weight=weights))
    if metric == "r2":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a single row scikit-learn knows no value
            options = {"multioutput": "variance_weighted", "force_finite": True, "sample_weight": weights}
            value = metrics.r2_score(y, outputs, **options)
        return float(value) if len(y) > 1 else float(((y - outputs) ** 2 == 0).mean())
    return float(getattr(metrics, metric)(y, outputs, sample_weight=weights))


def _counted(metric: str, loss: str, logits: np.ndarray, y: np.ndarray, weights: np.ndarray | None) -> float:
    """Precision, recall and f1 of classes told by the logits: scikit-learn's, with its own averages."""
    metrics = pytest.importorskip("sklearn.metrics")
    name, _, macro = metric.partition("_")
    function = getattr(metrics, f"{name}_score")
    if loss in CATEGORICAL or (loss in NUMBERS and y.shape[1] > 1):
        labels, found = y if y.ndim == 1 else y.argmax(axis=1), logits.argmax(axis=1)
        return float(function(labels, found, average=macro or "binary", zero_division=0, sample_weight=weights))
    above = 0.5 if loss in NUMBERS else 0
    positive, found = y > 0, logits > above
    if y.shape[1] == 1:
        first, options = (positive[:, 0], found[:, 0]), {"zero_division": 0, "sample_weight": weights}
        return float(function(*first, average=macro or "binary", **options))
    return float(function(positive, found, average=macro or "micro", zero_division=0, sample_weight=weights))


def targets_of(loss: str, classes: np.ndarray, outputs: int) -> np.ndarray:
    """Class numbers (n,), or 0 and 1 (n, outputs), as the loss takes them."""
    if loss == "sparse_categorical_crossentropy":
        return classes
    y = np.eye(outputs)[classes] if classes.ndim == 1 else classes.astype(float)
    return 2 * y - 1 if LOSSES[loss].signs else y


def cases() -> Iterator[Any]:
    """Ordinary data, and data that nothing much can be said of."""
    for loss in CATEGORICAL:
        for last in ("linear", "softmax"):
            for count, (name, classes) in [(n, case) for n in (2, 3, 8) for case in _classes(n).items()]:
                y = targets_of(loss, classes, count)
                for kind, logits in _logits(np.eye(count)[classes]).items():
                    yield pytest.param((loss, last, logits, y), id=f"{loss}-{last}-{count}-{name}-{kind}")
    for loss in (*BINARY, *NUMBERS):
        for outputs in (1, 3):
            last = "sigmoid" if loss == "binary_crossentropy" and outputs == 3 else "linear"
            for name, labels in _labels(outputs).items():
                if loss in NUMBERS and outputs > 1:  # of which accuracy wants one-hot rows
                    labels = np.eye(outputs)[labels.argmax(axis=1)]
                shift = 0.5 if loss in NUMBERS else 0.0
                for kind, logits in _logits(labels).items():
                    case = loss, last, logits + shift, targets_of(loss, labels, outputs)
                    yield pytest.param(case, id=f"{loss}-{outputs}-{name}-{kind}")
    for loss in NUMBERS:
        for name, y in _numbers().items():
            for kind, z in (("exact", y.copy()), ("near", y + RNG.standard_normal(y.shape)), ("off", y + 1)):
                yield pytest.param((loss, "linear", z, y), id=f"{loss}-{name}-{kind}")


def _classes(count: int) -> dict[str, np.ndarray]:
    return {"many": RNG.integers(0, count, 37), "one class": np.full(9, 1), "one row": np.array([count - 1])}


def _labels(outputs: int) -> dict[str, np.ndarray]:
    return {
        "many": RNG.integers(0, 2, (37, outputs)), "none": np.zeros((9, outputs), int),
        "all": np.ones((9, outputs), int), "one row": RNG.integers(0, 2, (1, outputs)),
    }  # fmt: skip


def _logits(hits: np.ndarray) -> dict[str, np.ndarray]:
    right = np.where(hits == 1, 1.5, -1.5)
    random = RNG.standard_normal(hits.shape)
    return {
        "random": random, "right": right, "wrong": -right, "ties": np.round(random), "large": 500 * random,
    }  # fmt: skip


def _numbers() -> dict[str, np.ndarray]:
    y = RNG.standard_normal((37, 3))
    some = y.copy()
    some[:, 1] = 4
    return {
        "many": y, "one output": y[:, :1], "one row": y[:1], "one number": y[:1, :1], "constant": np.full((9, 3), 4.0),
        "constant output": some, "one constant": np.full((9, 1), -2.0), "far": y + 1000, "two rows": y[:2],
        "last constant": some[:, [0, 2, 1]], "first constant": some[:, [1, 0, 2]],
    }  # fmt: skip


def model_of(case: Case, backend: str, dtype: str, metrics: list[str]) -> fo.Sequential:
    """A model whose last layer is given the inputs of the case as they are."""
    loss, last, z, _ = case
    columns = z.shape[1]
    layer = fo.Dense(columns, last, use_bias=False, kernel_initializer=np.eye(columns))
    model = fo.Sequential([layer], backend=backend, dtype=dtype, inputs=columns)
    model.compile(fo.SGD(lr=0.0), loss, metrics)
    return model


def metrics_of(case: Case) -> list[str]:
    """Those that the targets of the case have."""
    loss, _, z, y = case
    row = LOSSES[loss]
    outputs = z.shape[1]
    some = [name for name, metric in METRICS.items() if metric.goes_with(row) and metric.takes_outputs(row, outputs)]
    some += ["top_3_accuracy", "top_1_accuracy"] if row.by_row else []
    one_hot = y.ndim == 1 or (np.isin(y, (0, 1)).all() and (y.shape[1] == 1 or (y.sum(axis=1) == 1).all()))
    return some if loss not in NUMBERS or one_hot else [name for name in some if not METRICS[name].of_classes]


def check(case: Case, backend: str, dtype: str, weights: np.ndarray | None = None) -> None:
    """The metrics of `evaluate` and of `fit`, in one batch and in several, are scikit-learn's."""
    loss, _, z, y = case
    z, y = z.astype(dtype), y if y.ndim == 1 else y.astype(dtype)
    names = metrics_of((loss, "", z, y))
    model = model_of((loss, case[1], z, y), backend, dtype, names)
    wanted = _wanted(tuple(names), loss, Values(model.predict(z)), Values(z), Values(y), Values(weights))
    rtol = 1e-9 if dtype == "float64" else 1e-4
    for found in _found(model, z, y, names, weights):
        assert found == pytest.approx(wanted, rel=rtol, abs=rtol)
    if names[1:]:  # alone, as the link is not needed for accuracy
        model.compile(model.optimizer, loss, names[:1])
        found = model.evaluate(z, y, sample_weight=weights)
        assert found[names[0]] == pytest.approx(wanted[names[0]], rel=rtol, abs=rtol)


class Values:
    """An array, or None, that is equal to another of the same values."""

    def __init__(self, array: np.ndarray | None) -> None:
        self.array = array
        self.key = None if array is None else (array.dtype.str, array.shape, array.tobytes())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Values) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


@cache
def _wanted(names: tuple[str, ...], loss: str, outputs: Values, z: Values, y: Values, w: Values) -> dict[str, float]:
    """scikit-learn's values, which take longer than ours: backends whose outputs are the same bits share them."""
    return {name: sklearn_value(name, loss, outputs.array, z.array, y.array, w.array) for name in names}


def _found(
    model: fo.Sequential, z: np.ndarray, y: np.ndarray, names: list[str], weights: np.ndarray | None
) -> Iterator[dict[str, float]]:
    scores = model.evaluate(z, y, sample_weight=weights)
    yield {name: scores[name] for name in names}
    history = model.fit(z, y, batch_size=4, verbose=0, sample_weight=weights)
    yield {name: history[name][0] for name in names}
