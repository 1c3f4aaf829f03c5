"""Adagrad: steps divided by the root of the sum of all squared gradients so far."""

from __future__ import annotations

from ..domains import POSITIVE
from .common import common_scalars, constant, constant_scalars, floor, preprocess_gradient, root
from .table import Convention, Optimizer, OptimizerClass, Option, only, rule_options

# ---------------------------------------------------------------- formulas


def adagrad(p, g, s, h, tiny):
    lr, eps = h[5:7]
    p, g = preprocess_gradient(p, g, h)
    total = floor(s[0] + g * g, s[0], g, tiny)
    return p - lr * (g / (root(total) + eps)), (total,)


def adagrad_eps_in_sqrt(p, g, s, h, tiny):
    lr, eps = h[5:7]
    p, g = preprocess_gradient(p, g, h)
    total = floor(s[0] + g * g, s[0], g, tiny)
    return p - lr * (g / root(total + eps)), (total,)


def adagrad_safe(p, g, s, h, tiny):
    """`adagrad_eps_in_sqrt` without a step while all gradients have been zero, also with eps = 0."""
    lr, eps = h[5:7]
    p, g = preprocess_gradient(p, g, h)
    total = floor(s[0] + g * g, s[0], g, tiny)
    return p - lr * (g / root(total + eps) if total > 0 else type(p)(0) * g), (total,)


# ---------------------------------------------------------------- scalars


def decayed_rate(lr, step, lr_decay):
    return lr / (1.0 + (step - 1) * lr_decay)


def adagrad_scalars(steps, rates, lr_decay, eps, **common):
    decayed = [decayed_rate(lr, step, lr_decay) for step, lr in zip(steps, rates, strict=True)]
    return *common_scalars(rates, **common), decayed, eps, lr_decay  # the last one is for `adagrad_at_step`


def adagrad_at_step(step, lr, h):
    _, eps, lr_decay = h[:3]
    return (decayed_rate(lr, step, lr_decay), eps, lr_decay, *h[3:])


# ---------------------------------------------------------------- rows

_eps_in_sqrt_scalars = constant_scalars(lambda eps: (eps,))

OPTIMIZERS = {
    "adagrad": Optimizer(
        adagrad,
        ("sum",),
        adagrad_scalars,
        adagrad_at_step,
        rule_options(1e-2, lr_decay=0.0, eps=1e-10),
        "Duchi, Hazan & Singer 2011",
    ),
    "adagrad_eps_in_sqrt": Optimizer(
        adagrad_eps_in_sqrt,
        ("sum",),
        _eps_in_sqrt_scalars,
        constant,
        rule_options(1e-3, eps=1e-7, decoupled=True),
        "Duchi, Hazan & Singer 2011; Keras's form",
    ),
    "adagrad_safe": Optimizer(
        adagrad_safe,
        ("sum",),
        _eps_in_sqrt_scalars,
        constant,
        rule_options(1e-2, eps=1e-7),
        "Duchi, Hazan & Singer 2011; optax's form",
    ),
}

_NO_LR_DECAY = {"lr_decay": "give lr as fastopt.schedules.InverseTime"}

ADAGRAD = OptimizerClass(
    "Adagrad",
    {"lr": None, "lr_decay": 0.0, "weight_decay": 0.0, "initial_accumulator_value": None, "eps": None},
    """Adagrad: steps divided by the root of the sum of all squared gradients so far.

        s = s + g^2;  p = p - lr / (1 + (step - 1) lr_decay) g / (sqrt(s) + eps)""",
    {
        "torch": Convention(
            "torch.optim.Adagrad", only("adagrad"), {"lr": 1e-2, "initial_accumulator_value": 0.0, "eps": 1e-10}
        ),
        "keras": Convention(
            "keras.optimizers.Adagrad",
            only("adagrad_eps_in_sqrt"),
            {"lr": 1e-3, "initial_accumulator_value": 0.1, "eps": 1e-7},
            decoupled=True,
            lacks=_NO_LR_DECAY,
        ),
        "optax": Convention(
            "optax.adagrad",
            only("adagrad_safe"),
            {"initial_accumulator_value": 0.1, "eps": 1e-7},
            lacks=_NO_LR_DECAY,
        ),
    },
    order=("lr", "lr_decay", "eps", "weight_decay", "initial_accumulator_value"),
    options={
        "lr_decay": Option(POSITIVE, "at least 0."),
        "initial_accumulator_value": Option(POSITIVE, "of s, at least 0."),
    },
)
