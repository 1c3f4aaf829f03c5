"""Losses.

value(z, t, a) and slope(z, t, a) = d value / dz of one output z against its target t, with the loss's parameter a.
A softmax loss takes a row: value(z, t, log_sum) with log(sum(exp(z))) of the row, slope(p, t) with the softmax p of
z; t sums to 1 over the row, and z may be shifted by the same amount in all of it. A loss of the right class's log(p)
multiplies the row of the gradient by factor(log(p)) = -d value / d log(p).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .activations import sigmoid
from .domains import FRACTION, Domain
from .functions import log1pexp


def squared(z, t, a):
    return (z - t) * (z - t)


def squared_slope(z, t, a):
    return type(z)(2) * (z - t)


def absolute(z, t, a):
    return abs(z - t)


def absolute_slope(z, t, a):
    one = type(z)(1)
    return one if z > t else -one if z < t else z - t  # 0 at 0, NaN stays NaN


def huber(z, t, a):
    half, r = type(z)(0.5), abs(z - t)
    return half * r * r if r <= a else a * (r - half * a)


def huber_slope(z, t, a):
    r = z - t
    return a if r > a else -a if r < -a else r


def pinball(z, t, a):
    r = t - z
    return a * r if r > 0 else (a - type(z)(1)) * r


def pinball_slope(z, t, a):
    return type(z)(1) - a if z > t else -a if z < t else z - t  # 0 at 0, NaN stays NaN


def logistic(z, t, a):
    T = type(z)
    t = t * (T(1) - a) + T(0.5) * a
    return (z if z > 0 else T(0)) - z * t + T(log1pexp(-abs(z)))


def logistic_slope(z, t, a):
    T = type(z)
    return sigmoid(z) - (t * (T(1) - a) + T(0.5) * a)


def hinge(z, t, a):
    T = type(z)
    margin = T(1) - t * z
    return T(0) if margin < 0 else margin


def hinge_slope(z, t, a):
    T = type(z)
    return T(0) if t * z >= 1 else -t


def perceptron(z, t, a):
    T = type(z)
    return T(0) if t * z > 0 else -t * z


def perceptron_slope(z, t, a):
    T = type(z)
    return T(0) if t * z > 0 else -t


def cross_entropy(z, t, log_sum):
    return t * (log_sum - z)


def cross_entropy_slope(p, t):
    return p - t


def cross_entropy_factor(log_p):
    return type(log_p)(1)


@dataclass(frozen=True)
class Loss:
    """A row of LOSSES.

    targets       "dense": one target an output; "labels": one class number a row
    params        parameter of the loss, with its default
    link          output activation whose inverse the loss includes, so that training runs on logits
    boundary      (output, target) above which an output by itself counts as the positive class
    target_range  smallest and largest target
    signs         True: targets must be -1 or 1
    factor        of a row of the gradient, by log(p) of the right class; None: 1, as of the cross-entropy
    """

    value: Callable[..., Any]
    slope: Callable[..., Any]
    targets: str
    source: str
    params: Mapping[str, float] = field(default_factory=dict)
    link: str | None = None
    boundary: tuple[float, float] = (0.5, 0.5)
    target_range: tuple[float, float] | None = None
    signs: bool = False
    factor: Callable[..., Any] | None = None

    @property
    def by_row(self) -> bool:
        return self.link == "softmax"

    @property
    def binary(self) -> bool:
        """True if every target is one of two classes, whatever the others of its row are."""
        return self.signs or self.link == "sigmoid"

    def hits_by_output(self, outputs: int) -> bool:
        """True if accuracy counts outputs, each by its boundary; False if it counts rows, by their largest output."""
        return self.binary or (outputs == 1 and not self.by_row)


LOSS_DOMAINS = {
    "delta": Domain(low=5e-324),
    "quantile": Domain(high=1.0, open_low=True, open_high=True),
    "label_smoothing": FRACTION,
}
_SMOOTH = {"label_smoothing": 0.0}

LOSSES: dict[str, Loss] = {
    "mean_squared_error": Loss(squared, squared_slope, "dense", "Gauss 1809"),
    "mean_absolute_error": Loss(absolute, absolute_slope, "dense", "Laplace 1774"),
    "huber": Loss(huber, huber_slope, "dense", "Huber 1964", {"delta": 1.0}),
    "quantile": Loss(pinball, pinball_slope, "dense", "Koenker & Bassett 1978", {"quantile": 0.5}),
    "binary_crossentropy": Loss(
        logistic,
        logistic_slope,
        "dense",
        "max(z, 0) - z t + log(1 + exp(-|z|)), from logits",
        _SMOOTH,
        link="sigmoid",
        boundary=(0.0, 0.5),
        target_range=(0.0, 1.0),
    ),
    "hinge": Loss(hinge, hinge_slope, "dense", "Cortes & Vapnik 1995", boundary=(0.0, 0.0), signs=True),
    "perceptron": Loss(perceptron, perceptron_slope, "dense", "Rosenblatt 1958", boundary=(0.0, 0.0), signs=True),
    "sparse_categorical_crossentropy": Loss(
        cross_entropy, cross_entropy_slope, "labels", "Bridle 1990, from logits", _SMOOTH, link="softmax"
    ),
    "categorical_crossentropy": Loss(
        cross_entropy,
        cross_entropy_slope,
        "dense",
        "Bridle 1990, from logits",
        _SMOOTH,
        link="softmax",
        target_range=(0.0, 1.0),
    ),
}
