"""Helpers of the optimizers' tests: a class with arguments for every rule, arrays in every layout, snapshots."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

import fastopt as fo
from fastopt.kernels.formulas import OPTIMIZERS
from fastopt.kernels.spec import FORMS

DTYPES = ("float32", "float64")

KERAS, OPTAX = {"convention": "keras"}, {"convention": "optax"}

# Every row of OPTIMIZERS: the class that runs it, and with which arguments.
MAKE: dict[str, tuple[type[fo.Optimizer], dict[str, Any]]] = {
    "sgd": (fo.SGD, {}),
    "momentum": (fo.SGD, {"momentum": 0.9}),
    "sgdw": (fo.SGD, KERAS),
    "velocity": (fo.SGD, {"momentum": 0.9, **KERAS}),
    "lion": (fo.Lion, {}),
    "adagrad": (fo.Adagrad, {}),
    "adagrad_eps_in_sqrt": (fo.Adagrad, KERAS),
    "adagrad_safe": (fo.Adagrad, {"lr": 1e-2, **OPTAX}),
    "adadelta": (fo.Adadelta, {}),
    "rmsprop": (fo.RMSprop, {}),
    "rmsprop_momentum": (fo.RMSprop, {"momentum": 0.9}),
    "rmsprop_centered": (fo.RMSprop, {"centered": True}),
    "rmsprop_centered_momentum": (fo.RMSprop, {"centered": True, "momentum": 0.9}),
    "rmsprop_eps_in_sqrt": (fo.RMSprop, KERAS),
    "rmsprop_eps_in_sqrt_momentum": (fo.RMSprop, {"momentum": 0.9, **KERAS}),
    "rmsprop_eps_in_sqrt_centered": (fo.RMSprop, {"centered": True, **KERAS}),
    "rmsprop_eps_in_sqrt_centered_momentum": (fo.RMSprop, {"centered": True, "momentum": 0.9, **KERAS}),
    "adam": (fo.Adam, {}),
    "amsgrad": (fo.Adam, {"amsgrad": True}),
    "adamw": (fo.AdamW, {}),
    "adamw_amsgrad": (fo.AdamW, {"amsgrad": True}),
    "adam_hat": (fo.Adam, KERAS),
    "amsgrad_hat": (fo.Adam, {"amsgrad": True, **KERAS}),
    "adam_eps_root": (fo.Adam, {"lr": 1e-3, **OPTAX}),
    "nadam_eps_root": (fo.Adam, {"lr": 1e-3, "nesterov": True, **OPTAX}),
    "amsgrad_eps_root": (fo.Adam, {"lr": 1e-3, "amsgrad": True, **OPTAX}),
    "nadam": (fo.NAdam, {}),
}
assert list(MAKE) == list(OPTIMIZERS)

# Values at which a wrong placement of an option shows.
OTHER_OPTIONS = {
    "weight_decay": 0.1,
    "maximize": True,
    "l1": 0.05,
    "clip_value": 0.4,
    "momentum": 0.7,
    "dampening": 0.3,
    "nesterov": True,
    "lr_decay": 0.2,
    "eps": 1e-2,
    "eps_root": 0.05,
    "alpha": 0.8,
    "rho": 0.8,
    "beta1": 0.6,
    "momentum_decay": 2.0,
    "decoupled_weight_decay": True,
    "beta2": 0.7,
    "lr": 0.3,
}


def other(rule: str, option: str) -> Any:
    """Another value of an option than the rule's own."""
    return not OPTIMIZERS[rule].options[option] if option == "decoupled" else OTHER_OPTIONS[option]


def draw_rule(data: st.DataObject) -> tuple[str, dict[str, Any]]:
    """Draw a row of OPTIMIZERS with options, each at its default or at another value."""
    rule = data.draw(st.sampled_from(list(OPTIMIZERS)))
    options = OPTIMIZERS[rule].options.items()
    return rule, {name: other(rule, name) if data.draw(st.booleans()) else value for name, value in options}


CASES = [(rule, option) for rule, row in OPTIMIZERS.items() for option in (None, *row.options)]

# Updates of 16 bits have 144 loops: a rule's formula, for each way in which two dtypes are read and written, in three
# forms. Formulas and ways do not know of each other, so a loop repeats what others show, unless its rule is the first
# with so many states.
_FIRST = {len(row.states): rule for rule, row in reversed(OPTIMIZERS.items())}
_KINDS = "float16", "bfloat16"


def first_of_its_kind(rule: str) -> bool:
    """True of the first rule with so many states: what surrounds a formula differs in their number alone."""
    return rule in _FIRST.values()


def repeats(rule: str, kind: str, form: str) -> bool:
    """True of a loop for 16 bits that only --thorough runs."""
    return not first_of_its_kind(rule) and kind in _KINDS and form in FORMS


def make(rule: str, params: Any = None, **more: Any) -> fo.Optimizer:
    cls, arguments = MAKE[rule]
    return cls(params, **{**arguments, **more})


def _with_gaps(a: np.ndarray) -> np.ndarray:
    return np.repeat(a, 2, axis=-1)[..., ::2]


def _misaligned(a: np.ndarray) -> np.ndarray:
    view = np.frombuffer(bytearray(a.nbytes + 1), np.uint8)[1:].view(a.dtype).reshape(a.shape)
    view[...] = a
    return view


# Copies of the values in another layout.
LAYOUTS = {
    "contiguous": lambda a: a.copy(),
    "fortran": lambda a: a.copy(order="F"),
    "permuted": lambda a: np.ascontiguousarray(np.moveaxis(a, 0, 1)).swapaxes(0, 1),
    "gaps": _with_gaps,
    "reversed": lambda a: a[::-1].copy()[::-1],
    "byte-swapped": lambda a: a.astype(a.dtype.newbyteorder()),
    "misaligned": _misaligned,
    "memory not NumPy's": lambda a: np.frombuffer(bytearray(a.tobytes()), a.dtype).reshape(a.shape),
    "part of a larger array": lambda a: np.concatenate([a, a])[: len(a)],
}


def drawn(shape: tuple[int, ...], dtype: str, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def snapshot(optimizer: fo.Optimizer, *arrays: Any) -> bytes:
    """Everything that a refused call must leave alone."""
    states = b"".join(state.tobytes() for states in optimizer.states for state in states)
    hyper = repr([{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups])
    return states + repr(optimizer.state_dict()).encode() + hyper.encode() + b"".join(a.tobytes() for a in arrays)
