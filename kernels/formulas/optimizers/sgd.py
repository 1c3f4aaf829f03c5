"""Stochastic gradient descent, with and without momentum."""

from __future__ import annotations

from ..domains import FLAG, Domain
from .common import common_scalars, constant, flush, preprocess_gradient, sign
from .table import Convention, Optimizer, OptimizerClass, Option, row, rule_options, same

# ---------------------------------------------------------------- formulas


def sgd(p, g, s, h, tiny):
    lr = h[5]
    p, g = preprocess_gradient(p, g, h)
    return p - lr * g, s


def momentum(p, g, s, h, tiny):
    lr, mu, undamped, nesterov = h[5:9]
    p, g = preprocess_gradient(p, g, h)
    b = flush(mu * s[0] + undamped * g, tiny)  # momentum buffer
    d = g + nesterov * b if nesterov != 0 else b
    return p - lr * d, (b,)


def velocity(p, g, s, h, tiny):
    """Momentum whose state is the step itself, learning rate and all: another path than `momentum` if lr changes."""
    lr, mu, nesterov = h[5:8]
    p, g = preprocess_gradient(p, g, h)
    v = flush(mu * s[0] - lr * g, tiny)  # velocity
    d = mu * v - lr * g if nesterov != 0 else v
    return p + d, (v,)


def lion(p, g, s, h, tiny):
    lr, beta1, one_minus_beta1, beta2, one_minus_beta2 = h[5:10]
    p, g = preprocess_gradient(p, g, h)
    c = flush(beta1 * s[0] + one_minus_beta1 * g, tiny)
    return p - lr * sign(c), (flush(beta2 * s[0] + one_minus_beta2 * g, tiny),)


# ---------------------------------------------------------------- scalars


def sgd_scalars(steps, rates, **common):
    return *common_scalars(rates, **common), rates


def sgdw_scalars(steps, rates, **common):
    return sgd_scalars(steps, rates, decoupled=True, **common)


def momentum_scalars(steps, rates, momentum, dampening, nesterov, **common):
    mu = [0.0 if step == 1 else momentum for step in steps]  # the first buffer is the gradient itself
    undamped = [1.0 if step == 1 else 1.0 - dampening for step in steps]
    return *common_scalars(rates, **common), rates, mu, undamped, momentum if nesterov else 0.0


def momentum_at_step(step, lr, h):
    _, mu, undamped, nesterov = h[:4]
    return (lr, 0.0 if step == 1 else mu, 1.0 if step == 1 else undamped, nesterov, *h[4:])


def velocity_scalars(steps, rates, momentum, nesterov, **common):
    return *common_scalars(rates, **common), rates, momentum, float(nesterov)


def lion_scalars(steps, rates, beta1, beta2, **common):
    return *common_scalars(rates, decoupled=True, **common), rates, beta1, 1.0 - beta1, beta2, 1.0 - beta2


# ---------------------------------------------------------------- rows

OPTIMIZERS = {
    "sgd": Optimizer(sgd, (), sgd_scalars, constant, rule_options(1e-3), "Robbins & Monro 1951"),
    "momentum": Optimizer(
        momentum,
        ("momentum_buffer",),
        momentum_scalars,
        momentum_at_step,
        rule_options(1e-3, momentum=0.9, dampening=0.0, nesterov=False),
        "Polyak 1964; Nesterov's form after Sutskever et al. 2013; torch's form",
    ),
    "sgdw": Optimizer(
        sgd,
        (),
        sgdw_scalars,
        constant,
        rule_options(1e-2),
        "Loshchilov & Hutter 2019, algorithm 1; Keras's form",
    ),
    "velocity": Optimizer(
        velocity,
        ("velocity",),
        velocity_scalars,
        constant,
        rule_options(1e-2, momentum=0.9, nesterov=False, decoupled=True),
        "Polyak 1964; Nesterov's form after Sutskever et al. 2013; Keras's and scikit-learn's form",
    ),
    "lion": Optimizer(
        lion, ("exp_avg",), lion_scalars, constant, rule_options(1e-4, beta1=0.9, beta2=0.99), "Chen et al. 2023"
    ),
}


def _why_no_nesterov(hyper):
    if not hyper["nesterov"] or (hyper["momentum"] > 0 and hyper["dampening"] == 0):
        return ""
    return (
        f"nesterov needs momentum > 0 and dampening 0; got momentum={hyper['momentum']}, dampening={hyper['dampening']}"
    )


_NO_DAMPENING = {"dampening": ""}

SGD = OptimizerClass(
    "SGD",
    {"lr": None, "momentum": None, "dampening": 0.0, "weight_decay": 0.0, "nesterov": None},
    """Stochastic gradient descent, plain or with (heavy-ball or Nesterov) momentum.

        p = p - lr g                                                        momentum = 0
        b = momentum b + (1 - dampening) g  (first step: b = g)             else
        p = p - lr b, or with nesterov p = p - lr (g + momentum b)""",
    {
        "torch": Convention(
            "torch.optim.SGD",
            same("sgd", "momentum"),
            {"lr": 1e-3, "momentum": 0.0, "nesterov": False},
            check=_why_no_nesterov,
        ),
        "keras": Convention(
            "keras.optimizers.SGD",
            {"sgd": "sgdw", "momentum": "velocity"},
            {"lr": 1e-2, "momentum": 0.0, "nesterov": False},
            decoupled=True,
            lacks=_NO_DAMPENING,
        ),
        "optax": Convention(
            "optax.sgd", same("sgd", "momentum"), {"momentum": 0.0, "nesterov": False}, lacks=_NO_DAMPENING
        ),
        "sklearn": Convention(
            "scikit-learn's solver sgd",
            {"sgd": "sgd", "momentum": "velocity"},
            {"lr": 1e-3, "momentum": 0.9, "nesterov": True},
            lacks=_NO_DAMPENING,
        ),
    },
    variant=lambda hyper: "momentum" if hyper["momentum"] else "sgd",
    example=("lr=0.1, momentum=0.9", (0.7, 2.01)),
    options={
        "dampening": Option(Domain(low=-float("inf")), "of the gradient's entry into the buffer."),
        "nesterov": Option(
            FLAG, "needs momentum > 0 and dampening 0; in other conventions without effect if momentum is 0.", "bool"
        ),
    },
)

LION = OptimizerClass(
    "Lion",
    {"lr": None, "betas": (0.9, 0.99), "weight_decay": None},
    """Lion: steps of one size, lr, by the sign of a momentum.

        p = p (1 - lr weight_decay);  p = p - lr sign(beta1 m + (1 - beta1) g);  m = beta2 m + (1 - beta2) g""",
    {
        "paper": Convention("Lion of Chen et al. 2023", row("lion"), {"lr": 1e-4, "weight_decay": 0.0}, True),
        "keras": Convention("keras.optimizers.Lion", row("lion"), {"lr": 1e-3, "weight_decay": 0.0}, True),
        "optax": Convention("optax.lion", row("lion"), {"weight_decay": 1e-3}, True),
    },
)
