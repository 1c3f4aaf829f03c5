"""How much arithmetic a kernel does, and how much memory it has to move at least."""

from __future__ import annotations

from functools import cache
from typing import Any

from fastopt.kernels.formulas import HYPER, LOSSES, OPTIMIZERS


class Counted:
    """A number that counts what is done with it: an operation for each + - * / and each function of `math`."""

    done = 0

    def __init__(self, value: Any) -> None:
        self.value = value.value if isinstance(value, Counted) else value

    def __float__(self) -> float:  # what the functions of `math` ask for
        Counted.done += 1
        return float(self.value)

    def __neg__(self) -> Counted:
        return Counted(-self.value)

    def __abs__(self) -> Counted:
        return Counted(abs(self.value))

    def __eq__(self, other: object) -> bool:
        return self.value == Counted(other).value

    def __lt__(self, other: Any) -> bool:
        return self.value < Counted(other).value

    def __le__(self, other: Any) -> bool:
        return self.value <= Counted(other).value

    def __gt__(self, other: Any) -> bool:
        return self.value > Counted(other).value

    def __ge__(self, other: Any) -> bool:
        return self.value >= Counted(other).value

    def __hash__(self) -> int:
        return hash(self.value)

    def _operation(self, value: float) -> Counted:
        Counted.done += 1
        return Counted(value)

    def __add__(self, other: Any) -> Counted:
        return self._operation(self.value + Counted(other).value)

    def __sub__(self, other: Any) -> Counted:
        return self._operation(self.value - Counted(other).value)

    def __mul__(self, other: Any) -> Counted:
        return self._operation(self.value * Counted(other).value)

    def __truediv__(self, other: Any) -> Counted:
        return self._operation(self.value / Counted(other).value)


def _count(function: Any, *arguments: Any) -> int:
    before = Counted.done
    function(*arguments)
    return Counted.done - before


@cache
def update_flops(rule: str) -> int:
    """Operations for one parameter with the default options, sign and weight decay included as they are computed.

    >>> update_flops("sgd")  # p shrink - lr (sign g)
    4
    """
    row = OPTIMIZERS[rule]
    columns = row.scalars([2], [row.options["lr"]], **{k: v for k, v in row.options.items() if k != "lr"})
    h = [Counted(column[0] if isinstance(column, list) else column) for column in columns]
    h += [Counted(0.0)] * (HYPER - len(h))
    states = tuple(Counted(0.5) for _ in row.states)
    return _count(row.rule, Counted(0.5), Counted(0.5), states, h, Counted(1e-38))


@cache
def loss_flops(name: str) -> int:
    """Operations for the loss and the gradient of one output; of a softmax also its exponential, sum and division."""
    row = LOSSES[name]
    z, t = Counted(0.25), Counted(0.75)
    if row.by_row:
        return 4 + _count(row.value, z, t, Counted(2.0)) + _count(row.slope, z, t)
    a = Counted(0.5)
    return _count(row.value, z, t, a) + _count(row.slope, z, t, a)


def dense_bytes(rows: int, inputs: int, outputs: int, backward: bool, itemsize: int = 4) -> int:
    """Each array once: x, w, b, y; backward dy, x, w, y and the three gradients."""
    x, w, y = rows * inputs, inputs * outputs, rows * outputs
    return itemsize * (2 * x + 2 * w + 2 * y + outputs if backward else x + w + y + outputs)
