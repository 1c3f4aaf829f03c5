"""Whose optimizer: `fo.Adam(params, convention="keras")` has Keras's formulas, defaults and options.

Libraries mean different things by the same words. `convention="torch"`, the default, has the formulas given with the
classes in `fastopt.optim`. "keras" (Keras 3), "optax" and "sklearn" (the solvers of scikit-learn's MLPs) have instead

              keras                               optax                               sklearn
    SGD       v = momentum v - lr g, p = p + v;   torch's, without dampening          keras's
              nesterov: p = p + momentum v - lr g
    Adagrad   lr g / sqrt(s + eps)                keras's, 0 where s = 0              -
    RMSprop   lr g / sqrt(v + eps), and momentum  keras's                             -
              adds that up, times lr
    Adam      lr' m / (sqrt(v) + eps)             sqrt(v / (1 - beta2^step)           keras's, without
              lr' = lr sqrt(1 - beta2^step)       + eps_root) + eps for the           amsgrad
              / (1 - beta1^step)                  denominator of torch's
    amsgrad   the largest v                       the largest v / (1 - beta2^step);   -
                                                  not with AdamW or nesterov
    nesterov  -                                   m as it will be after the same      -
    of Adam                                       gradient once more: for m / (1 - beta1^step)
                                                  beta1 m / (1 - beta1^(step + 1))
                                                  + (1 - beta1) g / (1 - beta1^step)
    weight    every class as in AdamW:            as torch, which is                  as torch, which is the
    decay     p (1 - lr weight_decay) first       add_decayed_weights before          gradient of alpha, by
                                                  the optimizer; AdamW decouples it   alpha = rows weight_decay

Their defaults, where they are not the same in all; `None` as an argument stands for them:

              torch                 keras                  optax                        sklearn
    SGD       lr=1e-3, momentum=0   lr=1e-2, momentum=0    momentum=0                   lr=1e-3, momentum=0.9, nesterov
    Adagrad   lr=1e-2, eps=1e-10,   lr=1e-3, eps=1e-7,     eps=1e-7,                    -
              from 0                from 0.1               from 0.1
    RMSprop   lr=1e-2, eps=1e-8,    lr=1e-3, eps=1e-7,     eps=1e-8, alpha=0.9          -
              alpha=0.99            alpha=0.9
    Adam      lr=1e-3, eps=1e-8     lr=1e-3, eps=1e-7      eps=1e-8                     lr=1e-3, eps=1e-8
    AdamW     lr=1e-3, eps=1e-8,    lr=1e-3, eps=1e-7,     eps=1e-8,                    -
              weight_decay=0.01     weight_decay=0.004     weight_decay=1e-4

optax has no default lr, so it must be given. "from" is initial_accumulator_value; Keras's rho and optax's decay are our
alpha. What a library lacks is refused, but `maximize`, `l1` and clipping, which work on the gradient, go with every
convention, as do clearing of denormal states and `clip_norm` in the forms that `fastopt.optim` describes. Keras's
clipvalue, clipnorm and global_clipnorm are `clip_value`, `clip_each` and `clip_norm`. The words are torch's and ours in
all conventions; whoever writes another library's is told which one stands for it, or why there is none:

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

A library's form of an optimizer is a row of CONVENTIONS: which row of `fastopt.kernels.formulas.OPTIMIZERS` does its
arithmetic, with which defaults, and what the library does not have.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ._validation import check_name

Hyper = Mapping[str, Any]


@dataclass(frozen=True)
class Convention:
    """One class of ours as one library has it."""

    peer: str  # its name there
    rows: Mapping[str, str]  # what a class asks for -> the row of OPTIMIZERS that does it
    defaults: Mapping[str, Any]  # of hyper-parameters whose default is not the same everywhere; lacking: there is none
    decoupled: bool = False  # how the rows take weight decay that can take it both ways
    lacks: Mapping[str, str] = field(default_factory=dict)  # hyper-parameters that must be 0 -> what to do instead

    def row(self, kind: str, hyper: Hyper) -> str:
        """The row of OPTIMIZERS; ValueError for what the library does not have."""
        for name, instead in self.lacks.items():
            if hyper[name]:
                raise ValueError(f"{self.peer} has no {name}; got {name}={hyper[name]}{instead and f': {instead}'}")
        if kind not in self.rows:  # amsgrad alone, or with nesterov
            also = " with nesterov" if hyper["nesterov"] else ""
            raise ValueError(f"{self.peer} has no amsgrad{also}; got amsgrad=True")
        return self.rows[kind]

    def complete(self, hyper: Hyper) -> dict[str, Any]:
        """The hyper-parameters, with the library's default for each that is None; TypeError where it has none."""
        own = {name: self.defaults.get(name) if value is None else value for name, value in hyper.items()}
        if own["lr"] is None:
            raise TypeError(f"{self.peer} has no default learning rate: give lr")
        return own


def _same(*kinds: str) -> dict[str, str]:
    return {kind: kind for kind in kinds}


_NO_DAMPENING = {"dampening": ""}
_LR_DECAY = {"lr_decay": "give lr as fastopt.schedules.InverseTime"}
_NO_ROOT = {"eps_root": "", "nesterov": "Adam has it in the convention optax, and so has AdamW"}
_RMSPROP = ("rmsprop", "rmsprop_momentum", "rmsprop_centered", "rmsprop_centered_momentum")
_INNER = {kind: kind.replace("rmsprop", "rmsprop_inner") for kind in _RMSPROP}

# By class, then by library. sgd, momentum, adam, ... on the left are what `_variant` of the classes says.
CONVENTIONS: dict[str, dict[str, Convention]] = {
    "SGD": {
        "torch": Convention(
            "torch.optim.SGD", _same("sgd", "momentum"), {"lr": 1e-3, "momentum": 0.0, "nesterov": False}
        ),
        "keras": Convention(
            "keras.optimizers.SGD",
            {"sgd": "sgdw", "momentum": "velocity"},
            {"lr": 1e-2, "momentum": 0.0, "nesterov": False},
            decoupled=True,
            lacks=_NO_DAMPENING,
        ),
        "optax": Convention(
            "optax.sgd", _same("sgd", "momentum"), {"momentum": 0.0, "nesterov": False}, lacks=_NO_DAMPENING
        ),
        "sklearn": Convention(
            "scikit-learn's solver sgd",
            {"sgd": "sgd", "momentum": "velocity"},
            {"lr": 1e-3, "momentum": 0.9, "nesterov": True},
            lacks=_NO_DAMPENING,
        ),
    },
    "Adagrad": {
        "torch": Convention(
            "torch.optim.Adagrad", _same("adagrad"), {"lr": 1e-2, "initial_accumulator_value": 0.0, "eps": 1e-10}
        ),
        "keras": Convention(
            "keras.optimizers.Adagrad",
            {"adagrad": "adagrad_inner"},
            {"lr": 1e-3, "initial_accumulator_value": 0.1, "eps": 1e-7},
            decoupled=True,
            lacks=_LR_DECAY,
        ),
        "optax": Convention(
            "optax.adagrad",
            {"adagrad": "adagrad_guarded"},
            {"initial_accumulator_value": 0.1, "eps": 1e-7},
            lacks=_LR_DECAY,
        ),
    },
    "RMSprop": {
        "torch": Convention("torch.optim.RMSprop", _same(*_RMSPROP), {"lr": 1e-2, "alpha": 0.99, "eps": 1e-8}),
        "keras": Convention(
            "keras.optimizers.RMSprop", _INNER, {"lr": 1e-3, "alpha": 0.9, "eps": 1e-7}, decoupled=True
        ),
        "optax": Convention("optax.rmsprop", _INNER, {"alpha": 0.9, "eps": 1e-8}),
    },
    "Adam": {
        "torch": Convention("torch.optim.Adam", _same("adam", "amsgrad"), {"lr": 1e-3, "eps": 1e-8}, lacks=_NO_ROOT),
        "keras": Convention(
            "keras.optimizers.Adam",
            {"adam": "adam_hat", "amsgrad": "amsgrad_hat"},
            {"lr": 1e-3, "eps": 1e-7},
            decoupled=True,
            lacks=_NO_ROOT,
        ),
        "optax": Convention(
            "optax.adam", {"adam": "adam_rooted", "amsgrad": "amsgrad_rooted", "nadam": "nadam_rooted"}, {"eps": 1e-8}
        ),
        "sklearn": Convention(
            "scikit-learn's solver adam", {"adam": "adam_hat"}, {"lr": 1e-3, "eps": 1e-8}, lacks=_NO_ROOT
        ),
    },
    "AdamW": {
        "torch": Convention(
            "torch.optim.AdamW",
            _same("adamw", "adamw_amsgrad"),
            {"lr": 1e-3, "eps": 1e-8, "weight_decay": 1e-2},
            lacks=_NO_ROOT,
        ),
        "keras": Convention(
            "keras.optimizers.AdamW",
            {"adamw": "adam_hat", "adamw_amsgrad": "amsgrad_hat"},
            {"lr": 1e-3, "eps": 1e-7, "weight_decay": 4e-3},
            decoupled=True,
            lacks=_NO_ROOT,
        ),
        "optax": Convention(
            "optax.adamw",
            {"adamw": "adam_rooted", "nadamw": "nadam_rooted"},
            {"eps": 1e-8, "weight_decay": 1e-4},
            decoupled=True,
        ),
    },
}
NAMES = ("torch", "keras", "optax", "sklearn")
DEFAULT = NAMES[0]


def find(optimizer: str, known: Mapping[str, Convention], name: str) -> Convention:
    """The library's row of an optimizer; ValueError for an unknown library, and for one that does not have it."""
    if check_name("convention", name, NAMES) not in known:
        raise ValueError(f"{name} has no {optimizer}; {optimizer} has the conventions {', '.join(known)}")
    return known[name]
