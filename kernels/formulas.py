"""The mathematics, once: scalar formulas of plain arithmetic, and the tables that name them.

Every backend compiles these same functions into its own loops. To add an optimizer, an activation or a loss, write one
function, add one row, and add its independent counterpart to `reference.py`; loops, tests, benchmarks and command line
iterate the tables.

Rules for a formula: arguments are scalars of one floating-point type T, and so is the result. A literal is written
T(0.5), because a bare 0.5 is float64 and would silently promote float32 work.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import erf, exp, expm1, log1p, sqrt, tanh
from typing import Any

# ---------------------------------------------------------------- optimizers
# A rule is rule(p, g, s, h, tiny) -> (p, s): the parameter, its gradient, the tuple of its states, the step's scalars
# in the array's type, and the smallest normal number of that type. h[:3] mean the same in every rule (see `decay`).

HYPER = 10  # scalars a rule may have


def decay(p, g, h):
    """Maximisation, weight decay added to the gradient (coupled), or applied to the parameter (decoupled)."""
    sign, coupled, shrink = h[:3]
    g = sign * g
    return p * shrink, g + coupled * p if coupled != 0 else g


def flush(x, tiny):
    """Zero instead of a denormal number: a state that decays into that range makes every later step slow."""
    return type(x)(0) if abs(x) < tiny else x


def floor(x, tiny):
    """The smallest normal number instead of a positive denormal one: like `flush`, for what is divided by."""
    return tiny if 0 < x and x < tiny else x  # noqa: SIM300 (a chained comparison is not vectorised)


def root(x):
    return type(x)(sqrt(x))


def sgd(p, g, s, h, tiny):
    lr = h[3]
    p, g = decay(p, g, h)
    return p - lr * g, s


def momentum(p, g, s, h, tiny):
    lr, mu, undamped, nesterov = h[3:7]
    p, g = decay(p, g, h)
    b = flush(mu * s[0] + undamped * g, tiny)
    d = g + nesterov * b if nesterov != 0 else b
    return p - lr * d, (b,)


def adagrad(p, g, s, h, tiny):
    lr, eps = h[3:5]
    p, g = decay(p, g, h)
    total = s[0] + g * g
    return p - lr * (g / (root(total) + eps)), (total,)


def mean_square(v, g, h, tiny):
    alpha, rest = h[4:6]
    return floor(alpha * v + rest * (g * g), tiny)


def centred_root(v, a, eps):
    """sqrt(v - a^2) + eps: the standard deviation of the gradient where v and a are its second and first moment."""
    variance = v - a * a
    return root(type(v)(0) if variance < 0 else variance) + eps


def rmsprop(p, g, s, h, tiny):
    lr, eps = h[3], h[6]
    p, g = decay(p, g, h)
    v = mean_square(s[0], g, h, tiny)
    return p - lr * (g / (root(v) + eps)), (v,)


def rmsprop_momentum(p, g, s, h, tiny):
    lr, eps, mu = h[3], h[6], h[7]
    p, g = decay(p, g, h)
    v = mean_square(s[0], g, h, tiny)
    b = flush(mu * s[1] + g / (root(v) + eps), tiny)
    return p - lr * b, (v, b)


def rmsprop_centered(p, g, s, h, tiny):
    lr, alpha, rest, eps = h[3:7]
    p, g = decay(p, g, h)
    v = mean_square(s[0], g, h, tiny)
    a = flush(alpha * s[1] + rest * g, tiny)
    return p - lr * (g / centred_root(v, a, eps)), (v, a)


def rmsprop_centered_momentum(p, g, s, h, tiny):
    lr, alpha, rest, eps, mu = h[3:8]
    p, g = decay(p, g, h)
    v = mean_square(s[0], g, h, tiny)
    a = flush(alpha * s[1] + rest * g, tiny)
    b = flush(mu * s[2] + g / centred_root(v, a, eps), tiny)
    return p - lr * b, (v, a, b)


def moments(m, v, g, h, tiny):
    beta1, rest1, beta2, rest2 = h[4:8]
    return flush(beta1 * m + rest1 * g, tiny), floor(beta2 * v + rest2 * (g * g), tiny)


def adam(p, g, s, h, tiny):
    lr, correction, eps = h[3], h[8], h[9]
    p, g = decay(p, g, h)
    m, v = moments(s[0], s[1], g, h, tiny)
    return p - lr * (m / (root(v) * correction + eps)), (m, v)


def amsgrad(p, g, s, h, tiny):
    lr, correction, eps = h[3], h[8], h[9]
    p, g = decay(p, g, h)
    m, v = moments(s[0], s[1], g, h, tiny)
    top = s[2] if s[2] > v else v
    return p - lr * (m / (root(top) * correction + eps)), (m, v, top)


# The scalars of some steps, in float64 on the host: a column for each element of h, given the numbers of the steps (from
# 1), their learning rates, and the other options. A column is a list of numbers, or one number for all steps.
Column = float | list[float]


def _head(rates: list[float], weight_decay: float, maximize: bool, decoupled: bool = False) -> tuple[Column, ...]:
    sign = -1.0 if maximize else 1.0
    return (sign, 0.0, [1.0 - lr * weight_decay for lr in rates]) if decoupled else (sign, weight_decay, 1.0)


def _sgd_scalars(steps, rates, weight_decay, maximize):
    return *_head(rates, weight_decay, maximize), rates


def _momentum_scalars(steps, rates, weight_decay, maximize, momentum, dampening, nesterov):
    mu = [0.0 if step == 1 else momentum for step in steps]  # the first buffer is the gradient itself
    undamped = [1.0 if step == 1 else 1.0 - dampening for step in steps]
    return *_head(rates, weight_decay, maximize), rates, mu, undamped, momentum if nesterov else 0.0


def _adagrad_scalars(steps, rates, weight_decay, maximize, lr_decay, eps):
    decayed = [lr / (1.0 + (step - 1) * lr_decay) for step, lr in zip(steps, rates, strict=True)]
    return *_head(rates, weight_decay, maximize), decayed, eps


def _rmsprop_scalars(steps, rates, weight_decay, maximize, alpha, eps, momentum=0.0):
    return *_head(rates, weight_decay, maximize), rates, alpha, 1.0 - alpha, eps, momentum


def _adam_scalars(steps, rates, weight_decay, maximize, beta1, beta2, eps, decoupled=False):
    unbiased = [lr / (1.0 - beta1**step) for step, lr in zip(steps, rates, strict=True)]
    correction = [1.0 / sqrt(1.0 - beta2**step) for step in steps]
    head = _head(rates, weight_decay, maximize, decoupled)
    return *head, unbiased, beta1, 1.0 - beta1, beta2, 1.0 - beta2, correction, eps


def _adamw_scalars(steps, rates, **options):
    return _adam_scalars(steps, rates, decoupled=True, **options)


@dataclass(frozen=True)
class Domain:
    """The values an option may take: a flag, or a finite number between two bounds."""

    low: float = 0.0
    high: float = float("inf")
    open_high: bool = False
    flag: bool = False

    def __str__(self) -> str:
        if self.flag:
            return "True or False"
        if self.high == float("inf"):
            return f"a finite number of at least {self.low:g}" if self.low > -float("inf") else "a finite number"
        return f"a number in [{self.low:g}, {self.high:g}{')' if self.open_high else ']'}"

    def __contains__(self, value: float) -> bool:
        if self.flag:
            return value in (True, False)
        below = value < self.high if self.open_high else value <= self.high
        return self.low <= value and below and abs(value) < float("inf")


FLAG, POSITIVE, FRACTION = Domain(flag=True), Domain(), Domain(high=1.0, open_high=True)
DOMAINS = {
    "lr": POSITIVE,
    "weight_decay": POSITIVE,
    "maximize": FLAG,
    "momentum": POSITIVE,
    "dampening": Domain(low=-float("inf")),
    "nesterov": FLAG,
    "lr_decay": POSITIVE,
    "eps": POSITIVE,
    "alpha": FRACTION,
    "beta1": FRACTION,
    "beta2": FRACTION,
}


@dataclass(frozen=True)
class Optimizer:
    """A row of OPTIMIZERS: `states` in the order of the rule's tuple, `options` with their defaults."""

    rule: Callable[..., Any]
    states: tuple[str, ...]
    scalars: Callable[..., tuple[Column, ...]]
    options: Mapping[str, float]
    source: str

    @property
    def domains(self) -> dict[str, Domain]:
        return {name: DOMAINS[name] for name in self.options}


def _options(lr: float, weight_decay: float = 0.0, **more: float) -> dict[str, float]:
    return {"lr": lr, "weight_decay": weight_decay, "maximize": False, **more}


_RMSPROP = _options(1e-2, alpha=0.99, eps=1e-8)
_ADAM = _options(1e-3, beta1=0.9, beta2=0.999, eps=1e-8)
_ADAMW = {**_ADAM, "weight_decay": 1e-2}
_TIELEMAN = "Tieleman & Hinton 2012, lecture 6.5; torch's form"
_KINGMA = "Kingma & Ba 2015, algorithm 1; torch's form"
_REDDI = "Reddi, Kale & Kumar 2018, algorithm 2; torch's form"

OPTIMIZERS: dict[str, Optimizer] = {
    "sgd": Optimizer(sgd, (), _sgd_scalars, _options(1e-2), "Robbins & Monro 1951"),
    "momentum": Optimizer(
        momentum,
        ("momentum_buffer",),
        _momentum_scalars,
        _options(1e-2, momentum=0.9, dampening=0.0, nesterov=False),
        "Polyak 1964; Nesterov's form after Sutskever et al. 2013; torch's form",
    ),
    "adagrad": Optimizer(
        adagrad, ("sum",), _adagrad_scalars, _options(1e-2, lr_decay=0.0, eps=1e-10), "Duchi, Hazan & Singer 2011"
    ),
    "rmsprop": Optimizer(rmsprop, ("square_avg",), _rmsprop_scalars, _RMSPROP, _TIELEMAN),
    "rmsprop_momentum": Optimizer(
        rmsprop_momentum,
        ("square_avg", "momentum_buffer"),
        _rmsprop_scalars,
        {**_RMSPROP, "momentum": 0.9},
        _TIELEMAN,
    ),
    "rmsprop_centered": Optimizer(
        rmsprop_centered, ("square_avg", "grad_avg"), _rmsprop_scalars, _RMSPROP, "Graves 2013; torch's form"
    ),
    "rmsprop_centered_momentum": Optimizer(
        rmsprop_centered_momentum,
        ("square_avg", "grad_avg", "momentum_buffer"),
        _rmsprop_scalars,
        {**_RMSPROP, "momentum": 0.9},
        "Graves 2013; torch's form",
    ),
    "adam": Optimizer(adam, ("exp_avg", "exp_avg_sq"), _adam_scalars, _ADAM, _KINGMA),
    "amsgrad": Optimizer(amsgrad, ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"), _adam_scalars, _ADAM, _REDDI),
    "adamw": Optimizer(
        adam, ("exp_avg", "exp_avg_sq"), _adamw_scalars, _ADAMW, "Loshchilov & Hutter 2019; torch's form"
    ),
    "adamw_amsgrad": Optimizer(
        amsgrad, ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"), _adamw_scalars, _ADAMW, f"{_REDDI}, decoupled decay"
    ),
}


# ---------------------------------------------------------------- activations
# value(z) -> y, and slope(s) -> dy/dz, where s is y wherever the derivative is a function of y alone (nothing but y
# need then be kept for the backward pass), and z elsewhere.


def linear(z):
    return z


def linear_slope(y):
    return type(y)(1)


def relu(z):
    return z if z > 0 or z != z else type(z)(0)


def relu_slope(y):
    return type(y)(1) if y > 0 else type(y)(0)


def leaky_relu(z):
    return z if z > 0 else type(z)(0.01) * z


def leaky_relu_slope(y):
    return type(y)(1) if y > 0 else type(y)(0.01)


def elu(z):
    return z if z > 0 else type(z)(expm1(z))


def elu_slope(y):
    return type(y)(1) if y > 0 else y + type(y)(1)


def sigmoid(z):
    one = type(z)(1)
    e = type(z)(exp(-abs(z)))  # at most 1: never overflows
    return one / (one + e) if z >= 0 else e / (one + e)


def sigmoid_slope(y):
    return y * (type(y)(1) - y)


def hyperbolic_tangent(z):
    return type(z)(tanh(z))


def hyperbolic_tangent_slope(y):
    return type(y)(1) - y * y


def softplus(z):
    return (z if z > 0 else type(z)(0)) + type(z)(log1p(exp(-abs(z))))


def softplus_slope(y):
    return -type(y)(expm1(-y))


def silu(z):
    return z * sigmoid(z)


def silu_slope(z):
    one, y = type(z)(1), sigmoid(z)
    return y * (one + z * (one - y))


def gelu(z):
    T = type(z)
    return T(0.5) * z * (T(1) + T(erf(T(0.7071067811865476) * z)))


def gelu_slope(z):
    T = type(z)
    cumulative = T(0.5) * (T(1) + T(erf(T(0.7071067811865476) * z)))
    return cumulative + z * T(0.3989422804014327) * T(exp(T(-0.5) * z * z))


def gelu_tanh(z):
    T = type(z)
    return T(0.5) * z * (T(1) + T(tanh(T(0.7978845608028654) * (z + T(0.044715) * z * z * z))))


def gelu_tanh_slope(z):
    T = type(z)
    t = T(tanh(T(0.7978845608028654) * (z + T(0.044715) * z * z * z)))
    inner = T(0.7978845608028654) * (T(1) + T(0.134145) * z * z)
    return T(0.5) * (T(1) + t) + T(0.5) * z * (T(1) - t * t) * inner


@dataclass(frozen=True)
class Activation:
    """A row of ACTIVATIONS; `uses` says whether `slope` takes the output "y" or the pre-activation "z"."""

    value: Callable[..., Any]
    slope: Callable[..., Any]
    uses: str
    source: str


ACTIVATIONS: dict[str, Activation] = {
    "linear": Activation(linear, linear_slope, "y", "y = z"),
    "relu": Activation(relu, relu_slope, "y", "Nair & Hinton 2010"),
    "leaky_relu": Activation(leaky_relu, leaky_relu_slope, "y", "Maas, Hannun & Ng 2013, slope 0.01"),
    "elu": Activation(elu, elu_slope, "y", "Clevert, Unterthiner & Hochreiter 2016, alpha 1"),
    "sigmoid": Activation(sigmoid, sigmoid_slope, "y", "1 / (1 + exp(-z))"),
    "tanh": Activation(hyperbolic_tangent, hyperbolic_tangent_slope, "y", "tanh(z)"),
    "softplus": Activation(softplus, softplus_slope, "y", "Dugas et al. 2001: log(1 + exp(z))"),
    "silu": Activation(silu, silu_slope, "z", "Elfwing, Uchibe & Doya 2018: z sigmoid(z)"),
    "gelu": Activation(gelu, gelu_slope, "z", "Hendrycks & Gimpel 2016, erf form"),
    "gelu_tanh": Activation(gelu_tanh, gelu_tanh_slope, "z", "Hendrycks & Gimpel 2016, tanh form"),
}

OUTPUTS = (*ACTIVATIONS, "softmax")  # what the last layer may use; softmax needs the whole row


# ---------------------------------------------------------------- losses
# value(z, t, a) and slope(z, t, a) = d value / dz of one output z against its target t, with the loss's parameter a.
# A softmax loss takes a row: value(z, t, log_sum) with log(sum(exp(z))) of the row, slope(p, t) with the softmax p of z;
# t sums to 1 over the row, and z may be shifted by the same amount in all of it.


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


def logistic(z, t, a):
    T = type(z)
    t = t * (T(1) - a) + T(0.5) * a
    return (z if z > 0 else T(0)) - z * t + T(log1p(exp(-abs(z))))


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


@dataclass(frozen=True)
class Loss:
    """A row of LOSSES.

    `targets`: "dense" for one target an output, "labels" for one class number a row. `link`: the output activation
    whose inverse the loss includes, so that training runs on logits. `boundary`: above which output, and above which
    target, a row with a single output counts as the second class. `signs`: targets must be -1 or 1.
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

    @property
    def by_row(self) -> bool:
        return self.link == "softmax"


LOSS_DOMAINS = {"delta": Domain(low=5e-324), "label_smoothing": FRACTION}
_SMOOTH = {"label_smoothing": 0.0}

LOSSES: dict[str, Loss] = {
    "mean_squared_error": Loss(squared, squared_slope, "dense", "Gauss 1809"),
    "mean_absolute_error": Loss(absolute, absolute_slope, "dense", "Laplace 1774"),
    "huber": Loss(huber, huber_slope, "dense", "Huber 1964", {"delta": 1.0}),
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


# ---------------------------------------------------------------- metrics
# A metric is the mean over outputs (or rows) of a count; `name: (targets it is defined for)`.
METRICS: dict[str, tuple[str, ...]] = {
    "accuracy": ("labels", "dense"),
    "mean_squared_error": ("dense",),
    "mean_absolute_error": ("dense",),
    "r2": ("dense",),
}


# ---------------------------------------------------------------- dropout
# The mask is a function of (seed, layer, step, element), so it does not depend on the backend or on who computes it.
# The words are unsigned 64-bit integers in compiled code and Python's own integers elsewhere, hence the masks.
GOLDEN = 0x9E3779B97F4A7C15
WORD = 0xFFFFFFFFFFFFFFFF


def mix(z):
    """SplitMix64's finalizer (Steele, Lea & Flood 2014)."""
    T = type(z)
    z = ((z ^ (z >> T(30))) * T(0xBF58476D1CE4E5B9)) & T(WORD)
    z = ((z ^ (z >> T(27))) * T(0x94D049BB133111EB)) & T(WORD)
    return z ^ (z >> T(31))


def dropout_key(stream, step):
    """The key of a step's mask, from that of the layer's `dropout_stream`."""
    return mix((stream + step) & type(stream)(WORD))


def dropout_draw(key, element):
    """53 random bits for an element of the batch; it is kept where they reach rate * 2**53."""
    T = type(key)
    return mix((key + (element + T(1)) * T(GOLDEN)) & T(WORD)) >> T(11)


def dropout_stream(seed: int, layer: int) -> int:
    return mix((seed + (layer + 1) * GOLDEN) & WORD)
