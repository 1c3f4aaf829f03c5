"""The rows of the optimizers' tables: rules for kernels, classes for users, with their options and conventions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ..domains import BOUND, FLAG, FRACTION, POSITIVE, STATE_BITS, Domain
from .common import Column

Hyper = Mapping[str, Any]


class Option(NamedTuple):
    """A hyper-parameter: its values, its description in docstrings, and its type for type checkers."""

    domain: Domain
    doc: str
    type: str = "float"


# The hyper-parameters that several classes have; a class may have more in its own row.
OPTIONS: dict[str, Option] = {
    "lr": Option(POSITIVE, "learning rate, at least 0, or a schedule; see the module.", "Rate"),
    "momentum": Option(POSITIVE, "at least 0; 0 for none."),
    "betas": Option(FRACTION, "(beta1, beta2), each in [0, 1).", "tuple[float, float]"),
    "eps": Option(POSITIVE, "at least 0."),
    "weight_decay": Option(POSITIVE, "L2 penalty, at least 0; see the module."),
    "maximize": Option(FLAG, "ascend instead of descend.", "bool"),
    "l1": Option(POSITIVE, "L1 penalty, at least 0; see the module."),
    "clip_value": Option(BOUND, "bound of every element of a gradient, above 0, or None; see the module."),
    "clip_each": Option(BOUND, "bound of the norm of each gradient, above 0, or None; see the module."),
    "state_bits": Option(STATE_BITS, "32, or 8 for states as codes of 8 bits; see the module.", "int"),
}
# The hyper-parameters that every class takes by keyword, with their defaults.
COMMON_OPTIONS = {"maximize": False, "l1": 0.0, "clip_value": None, "clip_each": None, "state_bits": 32}


@dataclass(frozen=True)
class Optimizer:
    """A row of OPTIMIZERS: what a kernel does to an array.

    rule: the scalar formula, see `common`.
    states: the names of the arrays that it keeps, in the order of the rule's tuple.
    scalars: scalars(steps, rates, **options) -> columns of h, given step numbers from 1 and their learning rates.
    at_step: at_step(step, lr, h[5:]) -> h[5:], for a device that counts its steps itself: the rule's own scalars at
        a step, from those in the limit of many steps, in which all options are found.
    options: of `scalars`, with their defaults.
    """

    rule: Callable[..., Any]
    states: tuple[str, ...]
    scalars: Callable[..., tuple[Column, ...]]
    at_step: Callable[..., Any]
    options: Mapping[str, float | None]
    source: str


def rule_options(lr: float, **more: float) -> dict[str, float | None]:
    """The options that all rules have, with their defaults, and some more."""
    return {"lr": lr, "weight_decay": 0.0, "maximize": False, "l1": 0.0, "clip_value": None, **more}


@dataclass(frozen=True)
class Convention:
    """A class of ours as one library has it."""

    peer: str  # its name there
    rows: Mapping[str, str]  # variant of the class -> the row of OPTIMIZERS that does it
    defaults: Hyper  # of hyper-parameters whose default is not the same everywhere; lacking: there is none
    decoupled: bool = False  # for rows that can take weight decay both ways
    lacks: Mapping[str, str] = field(default_factory=dict)  # hyper-parameters that must be at their default -> a hint
    check: Callable[[Hyper], str] = lambda hyper: ""  # the reason why hyper-parameters do not go together; "": they do

    def row(self, variant: str, hyper: Hyper) -> str:
        """The row of OPTIMIZERS; ValueError for what the library does not have."""
        for name, hint in self.lacks.items():
            if hyper[name] != self.defaults.get(name, 0):
                raise ValueError(f"{self.peer} has no {name}; got {name}={hyper[name]}{hint and f': {hint}'}")
        if reason := self.check(hyper):
            raise ValueError(reason)
        if variant not in self.rows:  # amsgrad alone, or with nesterov
            also = " with nesterov" if hyper["nesterov"] else ""
            raise ValueError(f"{self.peer} has no amsgrad{also}; got amsgrad=True")
        return self.rows[variant]

    def complete(self, hyper: Hyper) -> dict[str, Any]:
        """The hyper-parameters, with the library's default for each that is None; TypeError if it has none."""
        own = {name: self.defaults.get(name) if value is None else value for name, value in hyper.items()}
        if own["lr"] is None:
            raise TypeError(f"{self.peer} has no default learning rate: give lr")
        return own


def row(name: str) -> dict[str, str]:
    """The rows of a convention if the class has no variants."""
    return {"": name}


def same(*variants: str) -> dict[str, str]:
    """The rows of a convention if each variant is a row of the same name."""
    return {variant: variant for variant in variants}


@dataclass(frozen=True)
class OptimizerClass:
    """A row of CLASSES: the class that users get, as `fastopt.NAME` and, if torch has it, as `fastopt.torch.NAME`.

    arguments: hyper-parameters in the order of the signature, with their defaults; None: that of the convention.
    doc: summary and formulas, the beginning of the docstring.
    conventions: by library; the first one is the default.
    variant: variant(hyper) -> the key of a convention's rows; hyper: hyper-parameters, or a group of torch's.
    keywords: hyper-parameters that torch lacks; by keyword alone.
    example: arguments of a step on w = [1, 2] by the gradient [3, -0.1], and the result.
    order: of the hyper-parameters in groups, if it is not that of the signature: torch's.
    options: hyper-parameters that only this class has.
    base: the row's base class, another row.
    decoupled: the entry decoupled_weight_decay of torch's groups; None: they have none.
    no_rows: the reason why it takes no gradients of some rows; "": it does.
    derived: numbers that torch keeps among the states, as functions of steps done and hyper-parameters.
    """

    name: str
    arguments: Hyper
    doc: str
    conventions: Mapping[str, Convention]
    variant: Callable[[Hyper], str] = lambda hyper: ""
    example: tuple[str, tuple[float, float]] = "lr=0.5", (0.5, 2.5)
    keywords: Hyper = field(default_factory=dict)
    order: tuple[str, ...] = ()
    options: Mapping[str, Option] = field(default_factory=dict)
    base: str = ""
    decoupled: bool | None = None
    no_rows: str = ""
    derived: Mapping[str, Callable[[int, Hyper], float]] = field(default_factory=dict)

    def option(self, name: str) -> Option:
        """A hyper-parameter: the class's own, or the one that all classes share."""
        if name == "weight_decay" and (self.decoupled or all(row.decoupled for row in self.conventions.values())):
            return Option(POSITIVE, "decoupled weight decay, at least 0: it scales the parameter before the step.")
        return self.options.get(name) or OPTIONS[name]

    @property
    def hyper(self) -> tuple[str, ...]:
        """The names of the hyper-parameters, in the order of groups."""
        return *(self.order or self.arguments), *COMMON_OPTIONS, *self.keywords
