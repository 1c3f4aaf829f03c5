"""Conventions: `fo.Adam(params, convention="keras")` has the formulas, defaults and options of Keras's Adam.

Optimizers of the same name differ between libraries. `convention="torch"`, the default, has the formulas given with the
classes in `fastopt.optim`; so has `convention="paper"`, the default of an optimizer that torch lacks. "keras" (Keras
3), "optax" and "sklearn" (the solvers of scikit-learn's MLPs) differ:

              keras                               optax                               sklearn
    SGD       v = momentum v - lr g, p = p + v;   torch's, without dampening          keras's
              nesterov: p = p + momentum v - lr g
    Adagrad   lr g / sqrt(s + eps)                keras's, 0 where s = 0              -
    RMSprop   lr g / sqrt(v + eps), which         keras's                             -
              momentum accumulates
    Adam      lr' m / (sqrt(v) + eps)             sqrt(v / (1 - beta2^step)           keras's, without
              lr' = lr sqrt(1 - beta2^step)       + eps_root) + eps for the           amsgrad
              / (1 - beta1^step)                  denominator of torch's
    amsgrad   the largest v                       the largest v / (1 - beta2^step);   -
                                                  not with AdamW or nesterov
    nesterov  -                                   look-ahead of one step with the     -
    of Adam                                       same g: for m / (1 - beta1^step)
                                                  beta1 m / (1 - beta1^(step + 1))
                                                  + (1 - beta1) g / (1 - beta1^step)
    Adadelta  torch's                             torch's                             -
    NAdam     torch's, with momentum_decay=1      nesterov of Adam                    -
    Lion      the paper's                         the paper's                         -
    weight    every class as in AdamW:            as torch, which is                  as torch, which is the
    decay     p (1 - lr weight_decay) first       add_decayed_weights before          gradient of alpha, by
                                                  the optimizer; AdamW decouples it   alpha = rows weight_decay

Defaults that differ; the argument `None` stands for them:

              torch                 keras                  optax                        sklearn
    SGD       lr=1e-3, momentum=0   lr=1e-2, momentum=0    momentum=0                   lr=1e-3, momentum=0.9, nesterov
    Adagrad   lr=1e-2, eps=1e-10,   lr=1e-3, eps=1e-7,     eps=1e-7,                    -
              from 0                from 0.1               from 0.1
    RMSprop   lr=1e-2, eps=1e-8,    lr=1e-3, eps=1e-7,     eps=1e-8, alpha=0.9          -
              alpha=0.99            alpha=0.9
    Adam      lr=1e-3, eps=1e-8     lr=1e-3, eps=1e-7      eps=1e-8                     lr=1e-3, eps=1e-8
    AdamW     lr=1e-3, eps=1e-8,    lr=1e-3, eps=1e-7,     eps=1e-8,                    -
              weight_decay=0.01     weight_decay=0.004     weight_decay=1e-4
    Adadelta  lr=1, rho=0.9,        lr=1e-3, rho=0.95,     rho=0.9, eps=1e-6            -
              eps=1e-6              eps=1e-7
    NAdam     lr=2e-3, eps=1e-8,    lr=1e-3, eps=1e-7,     -                            -
              momentum_decay=4e-3   momentum_decay=1
    Lion      paper: lr=1e-4        lr=1e-3                weight_decay=1e-3            -

optax has no default lr, so it must be given. "from" is initial_accumulator_value. Options that a library lacks raise
ValueError, except `maximize`, `l1` and clipping, which all conventions have because they change the gradient alone.
Denormal states are cleared in all conventions, and `clip_norm` has the forms that `fastopt.optim` describes.

The names of arguments are the same in all conventions, torch's where torch has the argument. Keras's rho and optax's
decay are `alpha`; Keras's clipvalue, clipnorm and global_clipnorm are `clip_value`, `clip_each` and `clip_norm`. A name
of another library raises a TypeError that gives ours, or the reason why there is none:

    >>> import fastopt as fo
    >>> fo.RMSprop(rho=0.9, convention="keras")
    Traceback (most recent call last):
    ...
    TypeError: RMSprop has no argument rho: RMSprop's is called alpha

    >>> fo.RMSprop(convention="keras")
    RMSprop(lr=0.001, momentum=0.0, alpha=0.9, eps=1e-07, centered=False, weight_decay=0.0, maximize=False,
            convention='keras', backend='cpu')
    >>> fo.Adagrad(convention="sklearn")
    Traceback (most recent call last):
    ...
    ValueError: sklearn has no Adagrad; Adagrad has the conventions torch, keras, optax

A library's form of an optimizer is a `Convention` in the class's row of `fastopt.kernels.formulas.optimizers.CLASSES`:
the row of OPTIMIZERS that does its arithmetic, its defaults, and the options that the library does not have.
"""

from __future__ import annotations

from collections.abc import Mapping

from ._validation import check_name
from .kernels.formulas.optimizers import CLASSES, Convention

__all__ = ["CONVENTIONS", "NAMES", "Convention", "find"]

CONVENTIONS: dict[str, Mapping[str, Convention]] = {name: row.conventions for name, row in CLASSES.items()}
NAMES = ("torch", "keras", "optax", "sklearn")


def find(optimizer: str, known: Mapping[str, Convention], name: str) -> Convention:
    """Return a library's form of an optimizer; ValueError for an unknown library, or one without this optimizer."""
    if check_name("convention", name, list(dict.fromkeys((*NAMES, *known)))) not in known:
        raise ValueError(f"{name} has no {optimizer}; {optimizer} has the conventions {', '.join(known)}")
    return known[name]
