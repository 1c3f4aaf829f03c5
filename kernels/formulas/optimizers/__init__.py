"""Optimizers: the table of the rules, with what makes a rule's scalars out of options and step numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Any

from ..domains import BOUND, FLAG, FRACTION, POSITIVE, Domain
from .common import (
    adagrad,
    adagrad_guarded,
    adagrad_inner,
    adam,
    adam_rooted,
    amsgrad,
    amsgrad_rooted,
    momentum,
    nadam_rooted,
    rmsprop,
    rmsprop_centered,
    rmsprop_centered_momentum,
    rmsprop_inner,
    rmsprop_inner_centered,
    rmsprop_inner_centered_momentum,
    rmsprop_inner_momentum,
    rmsprop_momentum,
    sgd,
    velocity,
)

HYPER = 13  # scalars a rule may have

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
        return scale, most, 0.0, l1, [shrink(lr, weight_decay) for lr in rates]
    return scale, most, weight_decay, l1, 1.0


# What depends on the number of the step, which kernels that count for themselves compute as well.


def decayed(lr, step, lr_decay):
    return lr / (1.0 + (step - 1) * lr_decay)


def unbiased(lr, step, beta1):
    return lr / (1.0 - beta1**step)


def unbiased_by_both(lr, step, beta1, beta2):
    return lr * sqrt(1.0 - beta2**step) / (1.0 - beta1**step)


def square_correction(step, beta2):
    return 1.0 / (1.0 - beta2**step)


def root_correction(step, beta2):
    return 1.0 / sqrt(1.0 - beta2**step)


def share(step, beta2):
    return 1.0 - beta2**step


def mean_to_come(lr, step, beta1, beta2):
    return lr * beta1 / (1.0 - beta1 ** (step + 1)) * sqrt(1.0 - beta2**step)


def news_to_come(lr, step, beta1, beta2):
    return lr * (1.0 - beta1) / (1.0 - beta1**step) * sqrt(1.0 - beta2**step)


def shrink(lr, weight_decay):
    return 1.0 - lr * weight_decay


def _sgd_scalars(steps, rates, **common):
    return *_head(rates, **common), rates


def _sgdw_scalars(steps, rates, **common):
    return _sgd_scalars(steps, rates, decoupled=True, **common)


def _velocity_scalars(steps, rates, momentum, nesterov, **common):
    return *_head(rates, **common), rates, momentum, float(nesterov)


def _momentum_scalars(steps, rates, momentum, dampening, nesterov, **common):
    mu = [0.0 if step == 1 else momentum for step in steps]  # the first buffer is the gradient itself
    undamped = [1.0 if step == 1 else 1.0 - dampening for step in steps]
    return *_head(rates, **common), rates, mu, undamped, momentum if nesterov else 0.0


def _adagrad_scalars(steps, rates, lr_decay, eps, **common):
    less = [decayed(lr, step, lr_decay) for step, lr in zip(steps, rates, strict=True)]
    return *_head(rates, **common), less, eps


def _adagrad_inner_scalars(steps, rates, eps, **common):
    return *_head(rates, **common), rates, eps


def _rmsprop_scalars(steps, rates, alpha, eps, momentum=0.0, **common):
    return *_head(rates, **common), rates, alpha, 1.0 - alpha, eps, momentum


def _adam_scalars(steps, rates, beta1, beta2, eps, **common):
    rate = [unbiased(lr, step, beta1) for step, lr in zip(steps, rates, strict=True)]
    correction = [root_correction(step, beta2) for step in steps]
    return *_head(rates, **common), rate, beta1, 1.0 - beta1, beta2, 1.0 - beta2, correction, eps


def _adamw_scalars(steps, rates, **options):
    return _adam_scalars(steps, rates, decoupled=True, **options)


def _adam_hat_scalars(steps, rates, beta1, beta2, eps, **common):
    """Of `adam` and `amsgrad`: both corrections in the rate, so that eps stands beside the uncorrected root."""
    rate = [unbiased_by_both(lr, step, beta1, beta2) for step, lr in zip(steps, rates, strict=True)]
    return *_head(rates, **common), rate, beta1, 1.0 - beta1, beta2, 1.0 - beta2, 1.0, eps


def _adam_rooted_scalars(steps, rates, beta1, beta2, eps, eps_root, **common):
    rate = [unbiased(lr, step, beta1) for step, lr in zip(steps, rates, strict=True)]
    correction = [square_correction(step, beta2) for step in steps]
    return *_head(rates, **common), rate, beta1, 1.0 - beta1, beta2, 1.0 - beta2, correction, eps, eps_root


def _nadam_rooted_scalars(steps, rates, beta1, beta2, eps, eps_root, **common):
    pairs = list(zip(steps, rates, strict=True))
    means = [mean_to_come(lr, step, beta1, beta2) for step, lr in pairs]
    news = [news_to_come(lr, step, beta1, beta2) for step, lr in pairs]
    inner = [eps_root * share(step, beta2) for step in steps]
    outer = [eps * sqrt(share(step, beta2)) for step in steps]
    return *_head(rates, **common), means, beta1, 1.0 - beta1, beta2, 1.0 - beta2, news, outer, inner


# Of those whose scalars change with the number of the step: how they do, and by which two of the options.
FIRST, DECAYED, UNBIASED, BY_BOTH, SQUARED, TO_COME = range(1, 7)
CHANGING: dict[Callable[..., tuple[Column, ...]], tuple[int, str, str]] = {
    _momentum_scalars: (FIRST, "momentum", "dampening"),
    _adagrad_scalars: (DECAYED, "lr_decay", "eps"),
    _adam_scalars: (UNBIASED, "beta1", "beta2"),
    _adamw_scalars: (UNBIASED, "beta1", "beta2"),
    _adam_hat_scalars: (BY_BOTH, "beta1", "beta2"),
    _adam_rooted_scalars: (SQUARED, "beta1", "beta2"),
    _nadam_rooted_scalars: (TO_COME, "beta1", "beta2"),
}

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
    "eps_root": POSITIVE,
    "decoupled": FLAG,
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
_RMSPROP_INNER = _options(1e-3, alpha=0.9, eps=1e-7, decoupled=True)
_ADAM_HAT = {**_ADAM, "eps": 1e-7, "decoupled": True}
_ADAM_ROOTED = {**_ADAM, "eps_root": 0.0}
_HINTON = "Tieleman & Hinton 2012, lecture 6.5; Keras's and optax's form"
_GRAVES = "Graves 2013; Keras's and optax's form"
_KINGMA = "Kingma & Ba 2015, algorithm 1; torch's form"
_REDDI = "Reddi, Kale & Kumar 2018, algorithm 2; torch's form"

OPTIMIZERS: dict[str, Optimizer] = {
    "sgd": Optimizer(sgd, (), _sgd_scalars, _options(1e-3), "Robbins & Monro 1951"),
    "momentum": Optimizer(
        momentum,
        ("momentum_buffer",),
        _momentum_scalars,
        _options(1e-3, momentum=0.9, dampening=0.0, nesterov=False),
        "Polyak 1964; Nesterov's form after Sutskever et al. 2013; torch's form",
    ),
    "sgdw": Optimizer(sgd, (), _sgdw_scalars, _options(1e-2), "Loshchilov & Hutter 2019, algorithm 1; Keras's form"),
    "velocity": Optimizer(
        velocity,
        ("velocity",),
        _velocity_scalars,
        _options(1e-2, momentum=0.9, nesterov=False, decoupled=True),
        "Polyak 1964; Nesterov's form after Sutskever et al. 2013; Keras's and scikit-learn's form",
    ),
    "adagrad": Optimizer(
        adagrad, ("sum",), _adagrad_scalars, _options(1e-2, lr_decay=0.0, eps=1e-10), "Duchi, Hazan & Singer 2011"
    ),
    "adagrad_inner": Optimizer(
        adagrad_inner,
        ("sum",),
        _adagrad_inner_scalars,
        _options(1e-3, eps=1e-7, decoupled=True),
        "Duchi, Hazan & Singer 2011; Keras's form",
    ),
    "adagrad_guarded": Optimizer(
        adagrad_guarded,
        ("sum",),
        _adagrad_inner_scalars,
        _options(1e-2, eps=1e-7),
        "Duchi, Hazan & Singer 2011; optax's form",
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
    "rmsprop_inner": Optimizer(rmsprop_inner, ("square_avg",), _rmsprop_scalars, _RMSPROP_INNER, _HINTON),
    "rmsprop_inner_momentum": Optimizer(
        rmsprop_inner_momentum,
        ("square_avg", "velocity"),
        _rmsprop_scalars,
        {**_RMSPROP_INNER, "momentum": 0.9},
        _HINTON,
    ),
    "rmsprop_inner_centered": Optimizer(
        rmsprop_inner_centered, ("square_avg", "grad_avg"), _rmsprop_scalars, _RMSPROP_INNER, _GRAVES
    ),
    "rmsprop_inner_centered_momentum": Optimizer(
        rmsprop_inner_centered_momentum,
        ("square_avg", "grad_avg", "velocity"),
        _rmsprop_scalars,
        {**_RMSPROP_INNER, "momentum": 0.9},
        _GRAVES,
    ),
    "adam": Optimizer(adam, ("exp_avg", "exp_avg_sq"), _adam_scalars, _ADAM, _KINGMA),
    "amsgrad": Optimizer(amsgrad, ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"), _adam_scalars, _ADAM, _REDDI),
    "adamw": Optimizer(
        adam, ("exp_avg", "exp_avg_sq"), _adamw_scalars, _ADAMW, "Loshchilov & Hutter 2019; torch's form"
    ),
    "adamw_amsgrad": Optimizer(
        amsgrad, ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"), _adamw_scalars, _ADAMW, f"{_REDDI}, decoupled decay"
    ),
    "adam_hat": Optimizer(
        adam,
        ("exp_avg", "exp_avg_sq"),
        _adam_hat_scalars,
        _ADAM_HAT,
        "Kingma & Ba 2015, end of section 2; Keras's and scikit-learn's form",
    ),
    "amsgrad_hat": Optimizer(
        amsgrad,
        ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"),
        _adam_hat_scalars,
        _ADAM_HAT,
        "Reddi, Kale & Kumar 2018, algorithm 2; Keras's form",
    ),
    "adam_rooted": Optimizer(
        adam_rooted,
        ("exp_avg", "exp_avg_sq"),
        _adam_rooted_scalars,
        {**_ADAM_ROOTED, "decoupled": False},
        "Kingma & Ba 2015, algorithm 1; optax's form",
    ),
    "nadam_rooted": Optimizer(
        nadam_rooted,
        ("exp_avg", "exp_avg_sq"),
        _nadam_rooted_scalars,
        {**_ADAM_ROOTED, "decoupled": False},
        "Dozat 2016, algorithm 2, without its factor beta2 of the second moment; optax's form",
    ),
    "amsgrad_rooted": Optimizer(
        amsgrad_rooted,
        ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"),
        _adam_rooted_scalars,
        _ADAM_ROOTED,
        "Reddi, Kale & Kumar 2018, algorithm 2; optax's form",
    ),
}
