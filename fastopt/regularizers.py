"""Regularizers: penalties of the weights of one layer, with Keras's names and meaning.

    Dense(64, "relu", kernel_regularizer=fastopt.regularizers.L2(1e-4))
    Dense(64, "relu", kernel_regularizer="l2", bias_regularizer=fastopt.regularizers.L1(1e-5))

They are a part of the loss: that of `fit`, `evaluate` and `val_loss` has them, and so has the gradient. An optimizer's
`weight_decay` and `l1` act on all parameters in the update and are in no loss. An L2 penalty c equals a coupled
`weight_decay` of 2 c (as in SGD and torch's Adam), and no decoupled one (AdamW): its gradient passes through momentum
and the division by the root of the second moment, as that of the data does. Penalties join the gradient after clipping
(Keras clips the sum), and once a step, also of several batches (`accumulate`). Those of frozen layers do not count, as
in Keras.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from ._validation import check_class, check_name, check_number, describe

__all__ = ["L1", "L1L2", "L2", "Regularizer", "get"]


class Regularizer:
    """Base of the regularizers: the loss has l1 sum |w| + l2 sum w^2 more, the gradient l1 sign(w) + 2 l2 w."""

    name: ClassVar[str]
    l1: float
    l2: float

    def config(self) -> dict[str, Any]:
        """Return the regularizer as plain values, from which `get` makes it again.

        >>> L2(0.5).config()
        {'name': 'l2', 'l2': 0.5}
        """
        factors = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        return {"name": self.name, **factors}


@dataclass(frozen=True, repr=False)
class L1(Regularizer):
    """The loss has l1 sum |w| more (lasso): weights of no use tend to 0.

    l1  at least 0

    >>> L1(1e-4)
    L1(0.0001)
    """

    name = "l1"
    l1: float = 0.01

    l2 = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "l1", check_number("l1", self.l1, 0.0))

    def __repr__(self) -> str:
        return f"L1({self.l1:g})"


@dataclass(frozen=True, repr=False)
class L2(Regularizer):
    """The loss has l2 sum w^2 more (ridge), not half of it: the gradient is 2 l2 w.

    l2  at least 0

    >>> L2()
    L2(0.01)
    >>> L2(-1)
    Traceback (most recent call last):
    ...
    ValueError: l2 must be at least 0, and finite; got -1
    """

    name = "l2"
    l2: float = 0.01

    l1 = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "l2", check_number("l2", self.l2, 0.0))

    def __repr__(self) -> str:
        return f"L2({self.l2:g})"


@dataclass(frozen=True, repr=False)
class L1L2(Regularizer):
    """The loss has l1 sum |w| + l2 sum w^2 more (the elastic net).

    l1, l2  at least 0

    >>> L1L2(l1=1e-5, l2=1e-4)
    L1L2(l1=1e-05, l2=0.0001)
    """

    name = "l1_l2"
    l1: float = 0.0
    l2: float = 0.0

    def __post_init__(self) -> None:
        for name in ("l1", "l2"):
            object.__setattr__(self, name, check_number(name, getattr(self, name), 0.0))

    def __repr__(self) -> str:
        return f"L1L2(l1={self.l1:g}, l2={self.l2:g})"


CLASSES: dict[str, type[Regularizer]] = {cls.name: cls for cls in (L1, L2, L1L2)}


def get(what: str, value: Any) -> Regularizer | None:
    """Return the regularizer that an argument `what` stands for; None for None.

    value  one of the classes, an object of one, a name (factors are then 0.01, as Keras's), or what `config` returns

    TypeError or ValueError for anything else.

    >>> get("kernel_regularizer", "l1_l2")
    L1L2(l1=0.01, l2=0.01)
    """
    if value is None or isinstance(value, Regularizer):
        return value
    if isinstance(value, type) and issubclass(value, Regularizer):
        return value()
    if isinstance(value, str):
        cls = check_class(what, value, CLASSES)
        named: Regularizer = cls(*[0.01] * len(fields(cls)))
        return named
    if isinstance(value, Mapping) and "name" in value:
        factors = {name: factor for name, factor in value.items() if name != "name"}
        return CLASSES[check_name(what, value["name"], CLASSES)](**factors)
    raise TypeError(f"{what} must be one of fastopt.regularizers, {', '.join(CLASSES)}, or None; got {describe(value)}")
