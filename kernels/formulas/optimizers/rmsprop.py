"""RMSprop: steps divided by a running root mean square of the gradients."""

from __future__ import annotations

from ..domains import FLAG, FRACTION
from .common import constant, constant_scalars, floor, flush, preprocess_gradient, root
from .table import Convention, Optimizer, OptimizerClass, Option, rule_options, same

# ---------------------------------------------------------------- formulas


def mean_square(v, g, alpha, one_minus_alpha, tiny):
    return floor(alpha * v + one_minus_alpha * (g * g), v, g, tiny)


def variance(v, a):
    """v - a^2 of the gradient, whose second and first moment are v and a; not below 0."""
    difference = v - a * a
    return type(v)(0) if difference < 0 else difference


def rmsprop(p, g, s, h, tiny):
    lr, alpha, one_minus_alpha, eps = h[5:9]
    p, g = preprocess_gradient(p, g, h)
    v = mean_square(s[0], g, alpha, one_minus_alpha, tiny)
    return p - lr * (g / (root(v) + eps)), (v,)


def rmsprop_momentum(p, g, s, h, tiny):
    lr, alpha, one_minus_alpha, eps, mu = h[5:10]
    p, g = preprocess_gradient(p, g, h)
    v = mean_square(s[0], g, alpha, one_minus_alpha, tiny)
    b = flush(mu * s[1] + g / (root(v) + eps), tiny)  # momentum buffer
    return p - lr * b, (v, b)


def rmsprop_centered(p, g, s, h, tiny):
    lr, alpha, one_minus_alpha, eps = h[5:9]
    p, g = preprocess_gradient(p, g, h)
    v = mean_square(s[0], g, alpha, one_minus_alpha, tiny)
    a = flush(alpha * s[1] + one_minus_alpha * g, tiny)  # mean gradient
    return p - lr * (g / (root(variance(v, a)) + eps)), (v, a)


def rmsprop_centered_momentum(p, g, s, h, tiny):
    lr, alpha, one_minus_alpha, eps, mu = h[5:10]
    p, g = preprocess_gradient(p, g, h)
    v = mean_square(s[0], g, alpha, one_minus_alpha, tiny)
    a = flush(alpha * s[1] + one_minus_alpha * g, tiny)  # mean gradient
    b = flush(mu * s[2] + g / (root(variance(v, a)) + eps), tiny)  # momentum buffer
    return p - lr * b, (v, a, b)


# Keras's and optax's form: eps inside the root, and a momentum that holds the learning rate, as in `velocity`.


def rmsprop_eps_in_sqrt(p, g, s, h, tiny):
    lr, alpha, one_minus_alpha, eps = h[5:9]
    p, g = preprocess_gradient(p, g, h)
    v = mean_square(s[0], g, alpha, one_minus_alpha, tiny)
    return p - lr * (g / root(v + eps)), (v,)


def rmsprop_eps_in_sqrt_momentum(p, g, s, h, tiny):
    lr, alpha, one_minus_alpha, eps, mu = h[5:10]
    p, g = preprocess_gradient(p, g, h)
    v = mean_square(s[0], g, alpha, one_minus_alpha, tiny)
    b = flush(mu * s[1] - lr * (g / root(v + eps)), tiny)  # velocity
    return p + b, (v, b)


def rmsprop_eps_in_sqrt_centered(p, g, s, h, tiny):
    lr, alpha, one_minus_alpha, eps = h[5:9]
    p, g = preprocess_gradient(p, g, h)
    v = mean_square(s[0], g, alpha, one_minus_alpha, tiny)
    a = flush(alpha * s[1] + one_minus_alpha * g, tiny)  # mean gradient
    return p - lr * (g / root(variance(v, a) + eps)), (v, a)


def rmsprop_eps_in_sqrt_centered_momentum(p, g, s, h, tiny):
    lr, alpha, one_minus_alpha, eps, mu = h[5:10]
    p, g = preprocess_gradient(p, g, h)
    v = mean_square(s[0], g, alpha, one_minus_alpha, tiny)
    a = flush(alpha * s[1] + one_minus_alpha * g, tiny)  # mean gradient
    b = flush(mu * s[2] - lr * (g / root(variance(v, a) + eps)), tiny)  # velocity
    return p + b, (v, a, b)


# ---------------------------------------------------------------- rows

_scalars = constant_scalars(lambda alpha, eps, momentum=0.0: (alpha, 1.0 - alpha, eps, momentum))
_OPTIONS = rule_options(1e-2, alpha=0.99, eps=1e-8)
_EPS_IN_SQRT = rule_options(1e-3, alpha=0.9, eps=1e-7, decoupled=True)
_MOMENTUM = {"momentum": 0.9}
_TIELEMAN = "Tieleman & Hinton 2012, lecture 6.5; torch's form"
_GRAVES = "Graves 2013; torch's form"
_TIELEMAN_KERAS = "Tieleman & Hinton 2012, lecture 6.5; Keras's and optax's form"
_GRAVES_KERAS = "Graves 2013; Keras's and optax's form"

# row: rule, states, options, source
_ROWS = {
    "rmsprop": (rmsprop, ("square_avg",), _OPTIONS, _TIELEMAN),
    "rmsprop_momentum": (
        rmsprop_momentum, ("square_avg", "momentum_buffer"), {**_OPTIONS, **_MOMENTUM}, _TIELEMAN,
    ),
    "rmsprop_centered": (rmsprop_centered, ("square_avg", "grad_avg"), _OPTIONS, _GRAVES),
    "rmsprop_centered_momentum": (
        rmsprop_centered_momentum,
        ("square_avg", "grad_avg", "momentum_buffer"),
        {**_OPTIONS, **_MOMENTUM},
        _GRAVES,
    ),
    "rmsprop_eps_in_sqrt": (rmsprop_eps_in_sqrt, ("square_avg",), _EPS_IN_SQRT, _TIELEMAN_KERAS),
    "rmsprop_eps_in_sqrt_momentum": (
        rmsprop_eps_in_sqrt_momentum, ("square_avg", "velocity"), {**_EPS_IN_SQRT, **_MOMENTUM}, _TIELEMAN_KERAS,
    ),
    "rmsprop_eps_in_sqrt_centered": (
        rmsprop_eps_in_sqrt_centered, ("square_avg", "grad_avg"), _EPS_IN_SQRT, _GRAVES_KERAS,
    ),
    "rmsprop_eps_in_sqrt_centered_momentum": (
        rmsprop_eps_in_sqrt_centered_momentum,
        ("square_avg", "grad_avg", "velocity"),
        {**_EPS_IN_SQRT, **_MOMENTUM},
        _GRAVES_KERAS,
    ),
}  # fmt: skip
OPTIMIZERS = {
    name: Optimizer(rule, states, _scalars, constant, options, source)
    for name, (rule, states, options, source) in _ROWS.items()
}

_VARIANTS = ("rmsprop", "rmsprop_momentum", "rmsprop_centered", "rmsprop_centered_momentum")
_KERAS_ROWS = {variant: variant.replace("rmsprop", "rmsprop_eps_in_sqrt") for variant in _VARIANTS}

RMSPROP = OptimizerClass(
    "RMSprop",
    {"lr": None, "alpha": None, "eps": None, "weight_decay": 0.0, "momentum": 0.0, "centered": False},
    """RMSprop: steps divided by a running root mean square of the gradients.

        v = alpha v + (1 - alpha) g^2
        d = sqrt(v) + eps, or if centered, with a = alpha a + (1 - alpha) g, d = sqrt(v - a^2) + eps
        p = p - lr g / d, or with momentum b = momentum b + g / d, p = p - lr b""",
    {
        "torch": Convention("torch.optim.RMSprop", same(*_VARIANTS), {"lr": 1e-2, "alpha": 0.99, "eps": 1e-8}),
        "keras": Convention(
            "keras.optimizers.RMSprop", _KERAS_ROWS, {"lr": 1e-3, "alpha": 0.9, "eps": 1e-7}, decoupled=True
        ),
        "optax": Convention("optax.rmsprop", _KERAS_ROWS, {"alpha": 0.9, "eps": 1e-8}),
    },
    variant=lambda hyper: "rmsprop" + "_centered" * bool(hyper["centered"]) + "_momentum" * (hyper["momentum"] > 0),
    example=("lr=0.05", (0.5, 2.5)),
    order=("lr", "momentum", "alpha", "eps", "centered", "weight_decay"),
    options={
        "alpha": Option(FRACTION, "smoothing, in [0, 1)."),
        "centered": Option(FLAG, "divide by the standard deviation instead.", "bool"),
    },
    no_rows="RMSprop has no form for some rows, here as in torch; SGD, Adagrad and Adam have",
)
