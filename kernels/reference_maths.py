"""The formulas in plain vectorised NumPy: the tables behind `reference`, written so that they can check.

Nothing here comes from `formulas`; a mistake would have to be made twice, in two forms, to pass the tests.
Scalars are worked out in float64 and cast to the arrays' number type T before they meet an array, so float32
stays float32; the optimizer rules keep one order of operations, so that other backends can match them bit for
bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from ._erf import erf

Array = np.ndarray
Options = Mapping[str, Any]
States = Sequence[Array]


# Optimizer rules: rule(p, g, states, o, step) changes p and the states in place; o: options, step: from 1.


def flush(x: Array) -> None:
    """Put 0 where |x| is below the smallest normal number: processors are slow on denormals."""
    x[np.abs(x) < np.finfo(x.dtype).tiny] = 0


def floor(x: Array) -> None:
    """Put the smallest normal number where x is positive and below it; 0 stays 0."""
    tiny = np.finfo(x.dtype).tiny
    x[(x > 0) & (x < tiny)] = tiny


def ascent(g: Array, o: Options) -> Array:
    return -g if o["maximize"] else g


def prepared(g: Array, o: Options, scale: float) -> Array:
    """The gradient times `scale`, then clipped by value; NaN stays NaN."""
    T = g.dtype.type
    if scale != 1:
        g = g * T(scale)
    return g if o["clip_value"] is None else np.clip(g, T(-o["clip_value"]), T(o["clip_value"]))


def shrinkage(most: float, norm: float) -> float:
    """The factor that brings a gradient of this norm to `most`, a trifle less; at most 1, and NaN for NaN."""
    return float(np.minimum(np.float64(most) / (norm + 1e-6), 1.0))


def lasso(p: Array, g: Array, o: Options) -> Array:
    """The gradient with that of the L1 penalty, l1 times the sign of the parameter."""
    T = p.dtype.type
    return g + np.where(p > 0, T(o["l1"]), np.where(p < 0, T(-o["l1"]), T(0))) if o["l1"] != 0 else g


def coupled(p: Array, g: Array, o: Options) -> Array:
    """The gradient with its sign and both penalties: what every rule but AdamW's starts from."""
    g = ascent(g, o)
    if o["weight_decay"] != 0:
        g = g + p.dtype.type(o["weight_decay"]) * p
    return lasso(p, g, o)


def sgd(p: Array, g: Array, states: States, o: Options, step: int) -> None:
    T = p.dtype.type
    p -= T(o["lr"]) * coupled(p, g, o)


def momentum(p: Array, g: Array, states: States, o: Options, step: int) -> None:
    """Heavy ball, or Nesterov's form of it; the first step fills the buffer with the undamped gradient."""
    T = p.dtype.type
    (b,) = states
    mu = T(o["momentum"])
    g = coupled(p, g, o)
    if step == 1:
        b[...] = g
    else:
        b *= mu
        b += T(1 - o["dampening"]) * g
    flush(b)
    p -= T(o["lr"]) * (g + mu * b if o["nesterov"] else b)


def adagrad(p: Array, g: Array, states: States, o: Options, step: int) -> None:
    T = p.dtype.type
    (s,) = states
    g = coupled(p, g, o)
    s += g * g
    p -= T(o["lr"] / (1 + (step - 1) * o["lr_decay"])) * (g / (np.sqrt(s) + T(o["eps"])))


def rmsprop(
    p: Array, g: Array, states: States, o: Options, step: int, centered: bool = False, heavy: bool = False
) -> None:
    """Divide by the running root mean square; `centered`: of g minus its mean; `heavy`: a momentum buffer."""
    T = p.dtype.type
    alpha, rest = T(o["alpha"]), T(1 - o["alpha"])
    g = coupled(p, g, o)
    s = states[0]
    s *= alpha
    s += rest * (g * g)
    floor(s)
    spread = s
    if centered:
        a = states[1]
        a *= alpha
        a += rest * g
        flush(a)
        spread = np.maximum(s - a * a, T(0))
    d = np.sqrt(spread) + T(o["eps"])
    if heavy:
        b = states[-1]
        b *= T(o["momentum"])
        b += g / d
        flush(b)
        p -= T(o["lr"]) * b
    else:
        p -= T(o["lr"]) * (g / d)


def adam(
    p: Array, g: Array, states: States, o: Options, step: int, amsgrad: bool = False, decoupled: bool = False
) -> None:
    """Adam; `amsgrad` divides by the largest second moment so far, `decoupled` is AdamW's weight decay."""
    T = p.dtype.type
    beta1, beta2 = o["beta1"], o["beta2"]
    if not decoupled:
        g = coupled(p, g, o)
    else:
        g = lasso(p, ascent(g, o), o)
        if o["weight_decay"] != 0:
            p *= T(1 - o["lr"] * o["weight_decay"])
    m, v = states[:2]
    m *= T(beta1)
    m += T(1 - beta1) * g
    flush(m)
    v *= T(beta2)
    v += T(1 - beta2) * (g * g)
    floor(v)
    if amsgrad:
        largest = states[2]
        np.copyto(largest, v, where=~(largest > v))  # so a NaN in v gets through
        v = largest
    d = np.sqrt(v) * T(1 / math.sqrt(1 - beta2**step)) + T(o["eps"])
    p -= T(o["lr"] / (1 - beta1**step)) * (m / d)


UPDATES: dict[str, Callable[[Array, Array, States, Options, int], None]] = {
    "sgd": sgd,
    "momentum": momentum,
    "adagrad": adagrad,
    "rmsprop": rmsprop,
    "rmsprop_momentum": partial(rmsprop, heavy=True),
    "rmsprop_centered": partial(rmsprop, centered=True),
    "rmsprop_centered_momentum": partial(rmsprop, centered=True, heavy=True),
    "adam": adam,
    "amsgrad": partial(adam, amsgrad=True),
    "adamw": partial(adam, decoupled=True),
    "adamw_amsgrad": partial(adam, amsgrad=True, decoupled=True),
}


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
}


def softmax(z: Array, y: Array) -> None:
    """Over rows; not in ACTIVATIONS because its slope is not elementwise."""
    np.subtract(z, z.max(axis=1, keepdims=True), out=y)
    np.exp(y, out=y)
    y /= y.sum(axis=1, keepdims=True)


# Losses: value(z, t, gradient, **params) returns the mean and writes its gradient by z, unless that is None.


class Loss(NamedTuple):
    value: Callable[..., float]
    link: str | None = None  # the output activation whose inverse the loss takes
    boundary: tuple[float, float] = (0.5, 0.5)  # above it, an output and a target count as the positive class


def total(x: Array) -> float:
    """The sum in float64, whatever x is, without a float64 copy of x."""
    return float(np.sum(x, dtype=np.float64))


def mean_squared_error(z: Array, t: Array, gradient: Array | None) -> float:
    r = z - t
    if gradient is not None:
        np.multiply(r, 2 / r.size, out=gradient)
    return total(r * r) / r.size


def mean_absolute_error(z: Array, t: Array, gradient: Array | None) -> float:
    r = z - t
    if gradient is not None:
        np.multiply(np.sign(r), 1 / r.size, out=gradient)
    return total(np.abs(r)) / r.size


def huber(z: Array, t: Array, gradient: Array | None, delta: float = 1.0) -> float:
    """Huber 1964: squared up to delta, then linear with the same slope."""
    r = z - t
    a = np.abs(r)
    if gradient is not None:
        np.multiply(np.clip(r, -delta, delta), 1 / r.size, out=gradient)
    return total(np.where(a <= delta, 0.5 * r * r, delta * (a - 0.5 * delta))) / r.size


def binary_crossentropy(z: Array, t: Array, gradient: Array | None, label_smoothing: float = 0.0) -> float:
    if label_smoothing:
        t = t * (1 - label_smoothing) + 0.5 * label_smoothing
    if gradient is not None:
        np.multiply(logistic(z) - t, 1 / z.size, out=gradient)
    return total(np.maximum(z, 0) - z * t + np.log1p(np.exp(-np.abs(z)))) / z.size


def hinge(z: Array, t: Array, gradient: Array | None) -> float:
    margin = t * z
    if gradient is not None:
        np.multiply(np.where(margin < 1, -t, 0), 1 / z.size, out=gradient)
    return total(np.maximum(1 - margin, 0)) / z.size


def perceptron(z: Array, t: Array, gradient: Array | None) -> float:
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
    z: Array, t: Array, gradient: Array | None, label_smoothing: float = 0.0
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
    z: Array, t: Array, gradient: Array | None, label_smoothing: float = 0.0
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
    "binary_crossentropy": Loss(binary_crossentropy, link="sigmoid", boundary=(0.0, 0.5)),
    "hinge": Loss(hinge, boundary=(0.0, 0.0)),
    "perceptron": Loss(perceptron, boundary=(0.0, 0.0)),
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
