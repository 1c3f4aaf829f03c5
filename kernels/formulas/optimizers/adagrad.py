"""Adagrad: steps divided by the root of the sum of all squared gradients so far."""

from __future__ import annotations

from ..domains import FRACTION, POSITIVE
from .common import common_scalars, constant, constant_scalars, floor, preprocess_gradient, root
from .table import Convention, Optimizer, OptimizerClass, Option, row, rule_options

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


def adadelta(p, g, s, h, tiny):
    lr, rho, one_minus_rho, eps = h[5:9]
    p, g = preprocess_gradient(p, g, h)
    v = floor(rho * s[0] + one_minus_rho * (g * g), s[0], g, tiny)  # mean of squared gradients
    d = root(s[1] + eps) / root(v + eps) * g
    return p - lr * d, (v, floor(rho * s[1] + one_minus_rho * (d * d), s[1], d, tiny))  # mean of squared steps


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
    "adadelta": Optimizer(
        adadelta, ("square_avg", "acc_delta"), constant_scalars(lambda rho, eps: (rho, 1.0 - rho, eps)), constant,
        rule_options(1.0, rho=0.9, eps=1e-6, decoupled=False), "Zeiler 2012, algorithm 1",
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
            "torch.optim.Adagrad", row("adagrad"), {"lr": 1e-2, "initial_accumulator_value": 0.0, "eps": 1e-10}
        ),
        "keras": Convention(
            "keras.optimizers.Adagrad",
            row("adagrad_eps_in_sqrt"),
            {"lr": 1e-3, "initial_accumulator_value": 0.1, "eps": 1e-7},
            decoupled=True,
            lacks=_NO_LR_DECAY,
        ),
        "optax": Convention(
            "optax.adagrad",
            row("adagrad_safe"),
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

ADADELTA = OptimizerClass(
    "Adadelta",
    {"lr": None, "rho": None, "eps": None, "weight_decay": 0.0},
    """Adadelta: gradients in units of the parameter, by the running mean squares of the steps and of the gradients.

        v = rho v + (1 - rho) g^2;  d = sqrt(u + eps) / sqrt(v + eps) g;  u = rho u + (1 - rho) d^2;  p = p - lr d""",
    {
        "torch": Convention("torch.optim.Adadelta", row("adadelta"), {"lr": 1.0, "rho": 0.9, "eps": 1e-6}),
        "keras": Convention("keras.optimizers.Adadelta", row("adadelta"), {"lr": 1e-3, "rho": 0.95, "eps": 1e-7}, True),
        "optax": Convention("optax.adadelta", row("adadelta"), {"rho": 0.9, "eps": 1e-6}),
    },
    example=("lr=0.5, rho=0.0, eps=16.0", (-0.2, 2.05)),
    options={"rho": Option(FRACTION, "smoothing of both means, in [0, 1).")},
    no_rows="Adadelta has no form for some rows, here as in torch; SGD, Adagrad and Adam have",
)
