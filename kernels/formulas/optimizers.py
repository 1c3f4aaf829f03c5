"""Optimizers: what a step does to one parameter.

A rule is rule(p, g, s, h, tiny) -> (p, s): the parameter, its gradient, the tuple of its states, the step's scalars
in the array's type, and the smallest normal number of that type. h[:5] mean the same in every rule (see `penalise`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf, sqrt
from typing import Any

from .domains import BOUND, FLAG, FRACTION, POSITIVE, Domain

HYPER = 12  # scalars a rule may have


def penalise(p, g, h):
    """What every rule starts from: the parameter after decoupled weight decay, and the gradient it is to use.

    The gradient is scaled (negatively, to maximise), clipped by value, and then joined by the gradients of the L2 and
    the L1 penalty. NaN passes; the sign of 0 is 0.

    One condition on scalars, which LLVM takes out of the loop, decides whether there is anything but the scaling to do:
    with all of it in every loop, Adam in cache took a fifth longer; with a condition each there would be many loops.
    """
    scale, most, coupled, l1, shrink = h[:5]
    g = scale * g
    if (most < type(p)(inf)) | (coupled != 0) | (l1 != 0):
        g = most if g > most else (-most if g < -most else g)
        decayed = g + coupled * p
        g = decayed if coupled != 0 else g  # 0 times infinity would be NaN
        pulled = g + (l1 if p > 0 else (-l1 if p < 0 else type(p)(0)))
        g = pulled if l1 != 0 else g
    return p * shrink, g


def clip_factor(most, norm):
    """What gradients are multiplied by so that their norm is at most `most`, as torch's clip_grad_norm_; in float64.

    NaN where the norm is NaN, 0 where it is infinite.
    """
    factor = most / (norm + 1e-6)
    return 1.0 if factor > 1 else factor


def flush(x, tiny):
    """Zero instead of a denormal number: a state that decays into that range makes every later step slow."""
    return type(x)(0) if abs(x) < tiny else x


def floor(x, tiny):
    """The smallest normal number instead of a positive denormal one: like `flush`, for what is divided by."""
    return tiny if 0 < x and x < tiny else x  # noqa: SIM300 (a chained comparison is not vectorised)


def root(x):
    return type(x)(sqrt(x))


def sgd(p, g, s, h, tiny):
    lr = h[5]
    p, g = penalise(p, g, h)
    return p - lr * g, s


def momentum(p, g, s, h, tiny):
    lr, mu, undamped, nesterov = h[5:9]
    p, g = penalise(p, g, h)
    b = flush(mu * s[0] + undamped * g, tiny)
    d = g + nesterov * b if nesterov != 0 else b
    return p - lr * d, (b,)


def adagrad(p, g, s, h, tiny):
    lr, eps = h[5:7]
    p, g = penalise(p, g, h)
    total = s[0] + g * g
    return p - lr * (g / (root(total) + eps)), (total,)


def mean_square(v, g, h, tiny):
    alpha, rest = h[6:8]
    return floor(alpha * v + rest * (g * g), tiny)


def centred_root(v, a, eps):
    """sqrt(v - a^2) + eps: the standard deviation of the gradient where v and a are its second and first moment."""
    variance = v - a * a
    return root(type(v)(0) if variance < 0 else variance) + eps


def rmsprop(p, g, s, h, tiny):
    lr, eps = h[5], h[8]
    p, g = penalise(p, g, h)
    v = mean_square(s[0], g, h, tiny)
    return p - lr * (g / (root(v) + eps)), (v,)


def rmsprop_momentum(p, g, s, h, tiny):
    lr, eps, mu = h[5], h[8], h[9]
    p, g = penalise(p, g, h)
    v = mean_square(s[0], g, h, tiny)
    b = flush(mu * s[1] + g / (root(v) + eps), tiny)
    return p - lr * b, (v, b)


def rmsprop_centered(p, g, s, h, tiny):
    lr, alpha, rest, eps = h[5:9]
    p, g = penalise(p, g, h)
    v = mean_square(s[0], g, h, tiny)
    a = flush(alpha * s[1] + rest * g, tiny)
    return p - lr * (g / centred_root(v, a, eps)), (v, a)


def rmsprop_centered_momentum(p, g, s, h, tiny):
    lr, alpha, rest, eps, mu = h[5:10]
    p, g = penalise(p, g, h)
    v = mean_square(s[0], g, h, tiny)
    a = flush(alpha * s[1] + rest * g, tiny)
    b = flush(mu * s[2] + g / centred_root(v, a, eps), tiny)
    return p - lr * b, (v, a, b)


def moments(m, v, g, h, tiny):
    beta1, rest1, beta2, rest2 = h[6:10]
    return flush(beta1 * m + rest1 * g, tiny), floor(beta2 * v + rest2 * (g * g), tiny)


def adam(p, g, s, h, tiny):
    lr, correction, eps = h[5], h[10], h[11]
    p, g = penalise(p, g, h)
    m, v = moments(s[0], s[1], g, h, tiny)
    return p - lr * (m / (root(v) * correction + eps)), (m, v)


def amsgrad(p, g, s, h, tiny):
    lr, correction, eps = h[5], h[10], h[11]
    p, g = penalise(p, g, h)
    m, v = moments(s[0], s[1], g, h, tiny)
    top = s[2] if s[2] > v else v
    return p - lr * (m / (root(top) * correction + eps)), (m, v, top)


# The scalars of some steps, in float64 on the host: a column for each element of h, given the numbers of the steps
# (from 1), their learning rates, and the other options. A column is a list of numbers, or one number for all steps.
Column = float | list[float]


def _head(
    rates: list[float],
    weight_decay: float,
    maximize: bool,
    l1: float,
    clip_value: float | None,
    decoupled: bool = False,
) -> tuple[Column, ...]:
    most = float("inf") if clip_value is None else clip_value
    scale = -1.0 if maximize else 1.0
    if decoupled:
        return scale, most, 0.0, l1, [1.0 - lr * weight_decay for lr in rates]
    return scale, most, weight_decay, l1, 1.0


def _sgd_scalars(steps, rates, **common):
    return *_head(rates, **common), rates


def _momentum_scalars(steps, rates, momentum, dampening, nesterov, **common):
    mu = [0.0 if step == 1 else momentum for step in steps]  # the first buffer is the gradient itself
    undamped = [1.0 if step == 1 else 1.0 - dampening for step in steps]
    return *_head(rates, **common), rates, mu, undamped, momentum if nesterov else 0.0


def _adagrad_scalars(steps, rates, lr_decay, eps, **common):
    decayed = [lr / (1.0 + (step - 1) * lr_decay) for step, lr in zip(steps, rates, strict=True)]
    return *_head(rates, **common), decayed, eps


def _rmsprop_scalars(steps, rates, alpha, eps, momentum=0.0, **common):
    return *_head(rates, **common), rates, alpha, 1.0 - alpha, eps, momentum


def _adam_scalars(steps, rates, beta1, beta2, eps, **common):
    unbiased = [lr / (1.0 - beta1**step) for step, lr in zip(steps, rates, strict=True)]
    correction = [1.0 / sqrt(1.0 - beta2**step) for step in steps]
    return *_head(rates, **common), unbiased, beta1, 1.0 - beta1, beta2, 1.0 - beta2, correction, eps


def _adamw_scalars(steps, rates, **options):
    return _adam_scalars(steps, rates, decoupled=True, **options)


DOMAINS = {
    "lr": POSITIVE,
    "weight_decay": POSITIVE,
    "maximize": FLAG,
    "l1": POSITIVE,
    "clip_value": BOUND,
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
    options: Mapping[str, float | None]
    source: str

    @property
    def domains(self) -> dict[str, Domain]:
        return {name: DOMAINS[name] for name in self.options}


def _options(lr: float, **more: float) -> dict[str, float | None]:
    return {"lr": lr, "weight_decay": 0.0, "maximize": False, "l1": 0.0, "clip_value": None, **more}


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
