"""Users' formulas: their names, and the check of compiled code against the reference when one is defined."""

from __future__ import annotations

import keyword
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from . import _backends
from ._validation import check_number, describe
from .kernels.formulas import ACTIVATIONS, FLAG, OPTIMIZERS, Domain, defined
from .kernels.formulas.defined import Option
from .kernels.spec import LossSpec, Update

CALLS = {  # by which a formula is defined
    "activation": "fo.Activation.define({!r}, value, slope)",
    "loss": "fo.Loss.define({!r}, value, gradient)",
    "optimizer": "fo.OptimizerRule.define({!r}, update, states, options)",
}
WITHIN = 1e-3  # of the largest value: compiled float32 beside NumPy's; a wrong formula is farther off


def check_new_name(kind: str, name: Any, taken: Iterable[str]) -> str:
    """A name for a formula: one that Python could give to a function, and none of those that fastopt has."""
    if not isinstance(name, str):
        raise TypeError(f"the name of a formula must be a str; got {describe(name)}")
    if not (name.isascii() and name.isidentifier()) or keyword.iskeyword(name):
        raise ValueError(f"the name of a formula must be letters, digits and _, as that of a function; got {name!r}")
    if name.lower() in {other.lower() for other in taken}:
        raise ValueError(f"fastopt has the {kind} {name!r} itself: give the formula another name")
    return name


def options_of(what: str, given: Mapping[str, Any] | None, reserved: Iterable[str]) -> dict[str, Option]:
    """Options by name, from a default each, or (default, least, most); of a bool a flag."""
    if given is not None and not isinstance(given, Mapping):
        raise TypeError(f"{what} must be a mapping of names to defaults; got {describe(given)}")
    options = {}
    for name, value in (given or {}).items():
        if not isinstance(name, str) or not name.isidentifier() or keyword.iskeyword(name):
            raise ValueError(f"a name in {what} must be that of an argument; got {name!r}")
        if name in reserved:
            raise ValueError(f"{what} must have names of their own; got {name!r}, which has a meaning already")
        options[name] = _option(f"{what}[{name!r}]", value)
    return options


def _option(what: str, value: Any) -> Option:
    if isinstance(value, bool):
        return Option(value, FLAG)
    if isinstance(value, tuple | list):
        if len(value) != 3:
            raise ValueError(f"{what} must be a default or (default, least, most); got {len(value)} values")
        default, low, high = value
        number, least = check_number(what, default, -np.inf), check_number(f"the least of {what}", low, -np.inf)
        domain = Domain(low=least, high=float(high))
        if number not in domain:
            raise ValueError(f"the default of {what} must be {domain}; got {number:g}")
        return Option(number, domain)
    return Option(check_number(what, value, -np.inf))


def check_known(kind: str, name: str, key: str, known: Mapping[str, Any]) -> str:
    """The key of a formula, if it is defined here; ValueError with the call that defines it, if not."""
    if key in known:
        return key
    call = CALLS[kind].format(name)
    if defined.key_of(kind, name) in known:
        raise ValueError(
            f"the {kind} {name!r} is defined here by another formula than where this was made: call {call} with that"
        )
    raise ValueError(not_defined(kind, name))


def not_defined(kind: str, name: str) -> str:
    """The message for a name that a file or a pickle has, and this process has not."""
    return f"the {kind} {name!r} is not defined here: call {CALLS[kind].format(name)} before it is loaded"


# ---------------------------------------------------------------- compiled code
def check_activation(name: str, key: str) -> None:
    """FormulaError if compiled kernels of an activation give other numbers than the reference."""
    from .kernels.language.checks import POINTS

    z = np.array(POINTS, np.float32)[:, None]
    found = []
    for backend in ("cpu", "numpy"):
        kernels, one = _backends.get(backend), np.ones((1, 1), np.float32)
        y, pre = np.empty_like(z), np.empty_like(z)
        kernels.dense_forward(z, one, None, key, y, pre)
        s = pre if ACTIVATIONS[key].uses == "z" else y
        dx, dw, db = np.empty_like(z), np.empty_like(one), np.empty(1, np.float32)
        kernels.dense_backward(np.ones_like(z), z, one, s, key, dx, dw, db)
        found.append((y, dx))
    _compare("activation", name, found)


def check_loss(name: str, spec: LossSpec, targets: str) -> None:
    """FormulaError if compiled kernels of a loss give other numbers than the reference."""
    from .kernels.language.checks import POINTS, TARGETS

    z: np.ndarray
    t: np.ndarray
    if targets == "labels":
        z = np.resize(np.array(POINTS, np.float32) / 2, (len(POINTS), 3))
        t = np.arange(len(z)) % 3
    else:
        z = np.repeat(np.array(POINTS, np.float32), len(TARGETS[targets]))[:, None]
        t = np.tile(np.array(TARGETS[targets], np.float32), len(POINTS))[:, None]
    found = []
    for backend in ("cpu", "numpy"):
        gradient = np.empty_like(z)
        value = _backends.get(backend).loss(spec, z, t, gradient)
        found.append((np.array([value], np.float32), gradient))
    _compare("loss", name, found)


def check_rule(name: str, key: str) -> None:
    """FormulaError if compiled kernels of an optimizer's rule give other numbers than the reference."""
    row, found = OPTIMIZERS[key], []
    for backend in ("cpu", "numpy"):
        rng = np.random.default_rng(0)
        p, g, *states = rng.uniform(0.1, 1.0, (2 + len(row.states), 33)).astype(np.float32)
        states = [np.ascontiguousarray(state) for state in states]
        for step in (1, 2):
            _backends.get(backend).update([Update(key, p, g, tuple(states), row.options, step)])
        found.append((p, *states))
    _compare("optimizer", name, found)


def _compare(kind: str, name: str, found: Sequence[tuple[np.ndarray, ...]]) -> None:
    from .kernels.language.source import FormulaError

    for compiled, expected in zip(*found, strict=True):
        size = np.abs(expected[np.isfinite(expected)]).max(initial=1e-30)
        wrong = ~np.isclose(compiled, expected, rtol=WITHIN, atol=WITHIN * size, equal_nan=True)
        if wrong.any():
            first = int(np.argmax(wrong))
            raise FormulaError(
                f"the {kind} {name!r} must give the same numbers compiled and interpreted; got"
                f" {compiled.flat[first]:g} and {expected.flat[first]:g}"
            )
