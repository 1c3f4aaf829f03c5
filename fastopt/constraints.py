"""Constraints on the weights of a layer: `fo.Dense(64, "relu", kernel_constraint=fo.constraints.MaxNorm(2))`.

They are applied after the update of every optimizer step, inside the compiled epoch, to weights that the optimizer
changes. The formulas are Keras's, with its 1e-7 in the quotients; norms are summed in float64. The update itself does
not know of them: momenta and other states stay as they are.

Initial weights, and those of `set_weights`, are constrained by the first step.

    >>> import numpy as np, fastopt as fo
    >>> layer = fo.Dense(1, use_bias=False, kernel_initializer=[[3.0], [4.0]], kernel_constraint=MaxNorm(2.0))
    >>> model = fo.Sequential([layer], backend="numpy", inputs=2)
    >>> model.compile(fo.SGD(lr=0.0), "mean_squared_error")
    >>> history = model.fit([[1.0, 1.0]], [0.0])
    >>> print(model.get_weights()[0].round(3))
    [[1.2]
     [1.6]]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np

from ._validation import check_class, check_name, check_number, describe
from .kernels import spec

__all__ = ["CONSTRAINTS", "Constraint", "MaxNorm", "NonNegative", "UnitNorm", "get"]


@dataclass(frozen=True)
class Constraint:
    """Base of the constraints: they compare, print and pickle, and model files hold them."""

    name: ClassVar[str]

    def spec(self, ndim: int) -> spec.Constraint:
        """Return the constraint as backends take it, for an array of so many axes."""
        return spec.Constraint(self.name)

    def config(self) -> dict[str, Any]:
        """Return the constraint as plain values, from which `get` makes it again.

        >>> MaxNorm(3.0).config()
        {'name': 'max_norm', 'max_value': 3.0, 'axis': 0}
        """
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
        return {"name": self.name, **plain}


@dataclass(frozen=True)
class MaxNorm(Constraint):
    """The norm of each column is at most `max_value`: w = w min(norm, max_value) / (1e-7 + norm).

    max_value  the largest norm, at least 0
    axis       the axes that a norm goes over. 0, of a kernel (inputs, units): the weights that lead to a unit, a
               column; 1: those that lead from an input, a row; (0, 1): the whole kernel. A bias has axis 0 alone

    Srebro et al. 2005; Hinton et al. 2012, with dropout.
    """

    name = "max_norm"
    max_value: float = 2.0
    axis: int | tuple[int, ...] = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "max_value", check_number("max_value", self.max_value, 0.0))
        object.__setattr__(self, "axis", _check_axis(self.axis))

    def spec(self, ndim: int) -> spec.Constraint:
        return spec.Constraint(self.name, _axes(self.axis, ndim), self.max_value)


@dataclass(frozen=True)
class UnitNorm(Constraint):
    """The norm of each column is 1: w = w / (1e-7 + norm). A column of zeros stays so.

    axis  the axes that a norm goes over, as of `MaxNorm`
    """

    name = "unit_norm"
    axis: int | tuple[int, ...] = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "axis", _check_axis(self.axis))

    def spec(self, ndim: int) -> spec.Constraint:
        return spec.Constraint(self.name, _axes(self.axis, ndim))


@dataclass(frozen=True)
class NonNegative(Constraint):
    """No weight is below 0: negative ones become 0."""

    name = "non_negative"


CONSTRAINTS: dict[str, type[Constraint]] = {cls.name: cls for cls in (MaxNorm, NonNegative, UnitNorm)}


def get(constraint: Any, what: str = "constraint") -> Constraint | None:
    """Return the constraint that is meant by itself, its name, its class or its `config`; None for None.

    what: the name of the argument, for errors: TypeError and ValueError.

    >>> get("max_norm"), get("NonNeg"), get(NonNegative), get({"name": "unit_norm", "axis": 1})
    (MaxNorm(max_value=2.0, axis=0), NonNegative(), NonNegative(), UnitNorm(axis=1))
    """
    if constraint is None or isinstance(constraint, Constraint):
        return constraint
    if isinstance(constraint, str):
        named: Constraint = check_class(what, constraint, CONSTRAINTS, ("non_neg", "non_negative"))()
        return named
    if isinstance(constraint, Mapping) and "name" in constraint:
        settings = {name: value for name, value in constraint.items() if name != "name"}
        return CONSTRAINTS[check_name(what, constraint["name"], CONSTRAINTS)](**settings)
    if isinstance(constraint, type) and constraint in CONSTRAINTS.values():
        made: Constraint = constraint()
        return made
    known = ", ".join(cls.__name__ for cls in CONSTRAINTS.values())
    raise TypeError(f"{what} must be one of {known}, a name such as 'max_norm', or None; got {describe(constraint)}")


def _check_axis(axis: Any) -> int | tuple[int, ...]:
    """An axis, or several, as Python's own; the number of axes is not known yet."""
    several = tuple(axis) if isinstance(axis, Sequence) and not isinstance(axis, str) else (axis,)
    if not several or any(isinstance(i, bool) or not isinstance(i, int | np.integer) for i in several):
        raise TypeError(f"axis must be a whole number, or several; got {describe(axis)}")
    if any(not -2 <= i <= 1 for i in several):
        raise ValueError(f"axis must be 0 or 1, or both; got {axis}")
    return tuple(map(int, several)) if len(several) > 1 else int(several[0])


def _axes(axis: int | tuple[int, ...], ndim: int) -> tuple[int, ...]:
    """The axes of an array of so many, counted from 0 and sorted."""
    several = axis if isinstance(axis, tuple) else (axis,)
    if any(not -ndim <= i < ndim for i in several):
        raise ValueError(f"axis must be 0 for a bias; got {axis}")
    return tuple(sorted({i % ndim for i in several}))
