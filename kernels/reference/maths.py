"""Activations, losses and dropout in plain vectorised NumPy: the tables behind `reference`, written so that they check.

Nothing here comes from `formulas`; a mistake would have to be made twice, in two forms, to pass the tests. The rules of
the optimizers are in `optimizers`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ._erf import erf

Array = np.ndarray


# Activations: value(z, y) writes y = f(z), y may be z itself; slope(s) is f' from what `uses` names, y or z.


class Activation(NamedTuple):
    uses: str
    value: Callable[[Array, Array], object]
    slope: Callable[[Array], Array]


def sigmoid(z: Array, y: Array) -> None:
    np.negative(z, out=y)
    np.exp(y, out=y)  # inf for very negative z, and 1 / inf = 0 is right
    y += 1
    np.divide(1, y, out=y)


def logistic(z: Array) -> Array:
    """The sigmoid as a new array."""
    y = np.empty_like(z)
    sigmoid(z, y)
    return y


def silu_slope(z: Array) -> Array:
    s = logistic(z)
    return s * (1 + z * (1 - s))


def mish_gate(z: Array) -> Array:
    """tanh(log(1 + exp(z)))."""
    return np.tanh(np.maximum(z, 0) + np.log1p(np.exp(-np.abs(z))))


def mish_slope(z: Array) -> Array:
    gate = mish_gate(z)
    return gate + z * logistic(z) * (1 - gate * gate)


def gelu(z: Array, y: Array) -> None:
    np.multiply(0.5 * z, 1 + erf(z * math.sqrt(0.5)), out=y)


def gelu_slope(z: Array) -> Array:
    density = np.exp(-0.5 * z * z) * (1 / math.sqrt(2 * math.pi))
    return 0.5 * (1 + erf(z * math.sqrt(0.5))) + z * density


GELU_SCALE, GELU_CUBE = math.sqrt(2 / math.pi), 0.044715  # Hendrycks and Gimpel 2016, equation 2


def gelu_tanh(z: Array, y: Array) -> None:
    np.multiply(0.5 * z, 1 + np.tanh(GELU_SCALE * (z + GELU_CUBE * z * z * z)), out=y)


def gelu_tanh_slope(z: Array) -> Array:
    t = np.tanh(GELU_SCALE * (z + GELU_CUBE * z * z * z))
    return 0.5 * (1 + t) + 0.5 * z * (1 - t * t) * GELU_SCALE * (1 + 3 * GELU_CUBE * z * z)


ACTIVATIONS: dict[str, Activation] = {
    "linear": Activation("y", lambda z, y: np.copyto(y, z), np.ones_like),
    "relu": Activation("y", lambda z, y: np.maximum(z, 0, out=y), lambda y: (y > 0).astype(y.dtype)),
    "leaky_relu": Activation(
        "y",
        lambda z, y: np.maximum(z, 0.01 * z, out=y),
        lambda y: np.where(y > 0, y.dtype.type(1), y.dtype.type(0.01)),
    ),
    "elu": Activation(
        "y",
        lambda z, y: np.copyto(y, np.where(z > 0, z, np.expm1(np.minimum(z, 0)))),
        lambda y: np.minimum(y, 0) + 1,
    ),
    "sigmoid": Activation("y", sigmoid, lambda y: y * (1 - y)),
    "tanh": Activation("y", lambda z, y: np.tanh(z, out=y), lambda y: 1 - y * y),
    "softplus": Activation(
        "y",
        lambda z, y: np.add(np.maximum(z, 0), np.log1p(np.exp(-np.abs(z))), out=y),
        lambda y: -np.expm1(-y),
    ),
    "silu": Activation("z", lambda z, y: np.divide(z, 1 + np.exp(-z), out=y), silu_slope),
    "gelu": Activation("z", gelu, gelu_slope),
    "gelu_tanh": Activation("z", gelu_tanh, gelu_tanh_slope),
    "hardswish": Activation(
        "z",
        lambda z, y: np.divide(z * np.clip(z + 3, 0, 6), 6, out=y),
        lambda z: np.where(z <= -3, 0 * z, np.where(z < 3, z / 3 + z.dtype.type(0.5), z.dtype.type(1))),
    ),
    "mish": Activation("z", lambda z, y: np.multiply(z, mish_gate(z), out=y), mish_slope),
}


def softmax(z: Array, y: Array) -> None:
    """Over rows; not in ACTIVATIONS because its slope is not elementwise."""
    np.subtract(z, z.max(axis=1, keepdims=True), out=y)
    np.exp(y, out=y)
    y /= y.sum(axis=1, keepdims=True)


# Losses: value(z, t, gradient, **params) returns the mean and writes its gradient by z, unless that is None. `total`
# adds up values of rows: (rows,), or (rows, columns).


class Loss(NamedTuple):
    value: Callable[..., float]
    link: str | None = None  # the output activation whose inverse the loss takes
    boundary: tuple[float, float] = (0.5, 0.5)  # above it, an output and a target count as the positive class
    binary: bool = False  # each output is of one of two classes, whatever the others are


Total = Callable[[Array], float]


def total(x: Array) -> float:
    """The sum in float64, whatever x is, without a float64 copy of x."""
    return float(np.sum(x, dtype=np.float64))


def weighted_total(weights: Array) -> Total:
    """Return a `total` over rows with weights (rows,), for which the mean over rows is sum(w x) / sum(w).

    >>> weighted_total(np.array([1.0, 3.0]))(np.array([[1.0, 2.0], [3.0, 4.0]])) / 4
    3.0
    """
    w = weights.astype(np.float64)
    w *= len(w) / w.sum()
    return lambda x: total((w * x.T).T)


def mean_squared_error(z: Array, t: Array, gradient: Array | None, total: Total = total) -> float:
    r = z - t
    if gradient is not None:
        np.multiply(r, 2 / r.size, out=gradient)
    return total(r * r) / r.size


def mean_absolute_error(z: Array, t: Array, gradient: Array | None, total: Total = total) -> float:
    r = z - t
    if gradient is not None:
        np.multiply(np.sign(r), 1 / r.size, out=gradient)
    return total(np.abs(r)) / r.size


def huber(z: Array, t: Array, gradient: Array | None, delta: float = 1.0, total: Total = total) -> float:
    """Huber 1964: squared up to delta, then linear with the same slope."""
    r = z - t
    a = np.abs(r)
    if gradient is not None:
        np.multiply(np.clip(r, -delta, delta), 1 / r.size, out=gradient)
    return total(np.where(a <= delta, 0.5 * r * r, delta * (a - 0.5 * delta))) / r.size


def quantile(z: Array, t: Array, gradient: Array | None, quantile: float = 0.5, total: Total = total) -> float:
    """Koenker & Bassett 1978: targets above the output cost `quantile` of their distance, those below it the rest."""
    above, below = np.maximum(t - z, 0), np.maximum(z - t, 0)
    if gradient is not None:
        sign = np.sign(z - t)
        np.multiply(np.where(sign > 0, (1 - quantile) * sign, quantile * sign), 1 / z.size, out=gradient)
    return total(quantile * above + (1 - quantile) * below) / z.size


def binary_crossentropy(
    z: Array, t: Array, gradient: Array | None, label_smoothing: float = 0.0, total: Total = total
) -> float:
    if label_smoothing:
        t = t * (1 - label_smoothing) + 0.5 * label_smoothing
    if gradient is not None:
        np.multiply(logistic(z) - t, 1 / z.size, out=gradient)
    return total(np.maximum(z, 0) - z * t + np.log1p(np.exp(-np.abs(z)))) / z.size


def hinge(z: Array, t: Array, gradient: Array | None, total: Total = total) -> float:
    margin = t * z
    if gradient is not None:
        np.multiply(np.where(margin < 1, -t, 0), 1 / z.size, out=gradient)
    return total(np.maximum(1 - margin, 0)) / z.size


def perceptron(z: Array, t: Array, gradient: Array | None, total: Total = total) -> float:
    margin = t * z
    if gradient is not None:
        np.multiply(np.where(margin <= 0, -t, 0), 1 / z.size, out=gradient)
    return total(np.maximum(-margin, 0)) / z.size


def log_softmax(z: Array, gradient: Array | None) -> Array:
    """The logarithm of softmax over rows; softmax itself goes into `gradient`."""
    shifted = z - z.max(axis=1, keepdims=True)
    powers = np.exp(shifted)
    sums = powers.sum(axis=1, keepdims=True)
    if gradient is not None:
        np.divide(powers, sums, out=gradient)
    shifted -= np.log(sums)
    return shifted


def sparse_categorical_crossentropy(
    z: Array, t: Array, gradient: Array | None, label_smoothing: float = 0.0, total: Total = total
) -> float:
    rows, classes = z.shape
    chosen = np.arange(rows), t
    log_p = log_softmax(z, gradient)
    if gradient is not None:
        gradient[chosen] -= 1 - label_smoothing
        if label_smoothing:
            gradient -= label_smoothing / classes
        gradient *= 1 / rows
    value = -(1 - label_smoothing) * total(log_p[chosen])
    if label_smoothing:
        value -= label_smoothing / classes * total(log_p)
    return value / rows


def categorical_crossentropy(
    z: Array, t: Array, gradient: Array | None, label_smoothing: float = 0.0, total: Total = total
) -> float:
    rows, classes = z.shape
    if label_smoothing:
        t = t * (1 - label_smoothing) + label_smoothing / classes
    log_p = log_softmax(z, gradient)
    if gradient is not None:
        gradient *= t.sum(axis=1, keepdims=True)  # 1, unless the targets are no distribution
        gradient -= t
        gradient *= 1 / rows
    return -total(t * log_p) / rows


LOSSES: dict[str, Loss] = {
    "mean_squared_error": Loss(mean_squared_error),
    "mean_absolute_error": Loss(mean_absolute_error),
    "huber": Loss(huber),
    "quantile": Loss(quantile),
    "binary_crossentropy": Loss(binary_crossentropy, link="sigmoid", boundary=(0.0, 0.5), binary=True),
    "hinge": Loss(hinge, boundary=(0.0, 0.0), binary=True),
    "perceptron": Loss(perceptron, boundary=(0.0, 0.0), binary=True),
    "sparse_categorical_crossentropy": Loss(sparse_categorical_crossentropy, link="softmax"),
    "categorical_crossentropy": Loss(categorical_crossentropy, link="softmax"),
}


# Dropout: which elements stay, the same on every backend because it is counted, not drawn.

GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio, the increment of splitmix64 (Steele, Lea and Flood 2014)


def mix(z: Array) -> Array:
    """splitmix64's finalizer, in place on uint64."""
    z ^= z >> np.uint64(30)
    z *= np.uint64(0xBF58476D1CE4E5B9)
    z ^= z >> np.uint64(27)
    z *= np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return z


def kept(seed: int, layer: int, step: int, shape: tuple[int, int], rate: float) -> Array:
    """Which elements of a (rows, width) batch the dropout at index `layer` keeps at step `step` (from 1)."""
    key = mix(np.array([(seed + (layer + 1) * GOLDEN) % 2**64], dtype=np.uint64))
    key = mix(key + np.uint64(step))
    counters = np.arange(1, shape[0] * shape[1] + 1, dtype=np.uint64)
    counters *= np.uint64(GOLDEN)
    counters += key
    bits = mix(counters)
    bits >>= np.uint64(11)
    return (bits >= np.uint64(int(rate * 2**53))).reshape(shape)


def normal_draws(seed: int, layer: int, step: int, shape: tuple[int, int]) -> Array:
    """Standard normal numbers for a (rows, width) batch, of the noise layer at index `layer` at step `step` (from 1).

    The two uniform numbers of an element are the halves of its 64 random bits (Box and Muller 1958).
    """
    key = mix(np.array([(seed + (layer + 1) * GOLDEN) % 2**64], dtype=np.uint64))
    key = mix(key + np.uint64(step))
    counters = np.arange(1, shape[0] * shape[1] + 1, dtype=np.uint64)
    counters *= np.uint64(GOLDEN)
    counters += key
    bits = mix(counters)
    radial, turn = ((bits >> np.uint64(32)) + np.uint64(1)) * 2.0**-32, (bits & np.uint64(2**32 - 1)) * 2.0**-32
    return (np.sqrt(-2 * np.log(radial)) * np.cos(2 * np.pi * turn)).reshape(shape)
