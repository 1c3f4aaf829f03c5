"""Gradients of some rows of an array: what `Optimizer.step` does with (indices, values)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from .. import _backends
from .._validation import check_indices
from ..kernels.spec import Update
from ._param_state import Slot
from ._parameters import Memory


class Rows:
    """A checked gradient of some rows: `indices` sorted and each once, with their `values` added up.

    Kernels reach the rows of the array and its states where they lie one behind the other. Where they do not (columns
    first, gaps, foreign byte order) the rows are copied, updated, and written back.
    """

    __slots__ = ("backend", "indices", "slot", "values", "work")

    def __init__(self, slot: Slot, indices: np.ndarray, values: np.ndarray, backend: Any) -> None:
        p = slot.parameter
        self.slot, self.backend = slot, backend
        self.work = p.work if p.axes[0] == 0 else None
        turned = np.require(values, p.dtype, ["C", "A"]) if self.work is None else p.inward(values)
        self.indices, self.values = backend.sum_rows(indices, turned)

    def update(self, rule: str, options: Mapping[str, Any], step: int, scale: float, seed: int) -> None:
        slot, p, rows, states = self.slot, self.slot.parameter, self.indices, self.slot.states
        how = {"form": slot.form, "stream": slot.stream(seed)}
        if self.work is not None:
            self.backend.update_rows(Update(rule, self.work, self.values, states, options, step, **how), rows, scale)
            return
        whole = [p.array, *map(p.outward, states)]
        parts = [np.array(array[rows], array.dtype.newbyteorder("="), order="C") for array in whole]
        self.backend.update([Update(rule, parts[0], self.values, tuple(parts[1:]), options, step, **how)], scale)
        for array, part in zip(whole, parts, strict=True):
            array[rows] = part


def check_rows(slot: Slot, given: tuple[Any, ...], memory: Memory, backend: str, refusal: str) -> Rows:
    """The gradient (indices, values), or the error that says what is wrong with it: `refusal`, if it is not empty."""
    name, p = f"grads{slot.path}", slot.parameter
    if len(given) != 2:
        raise TypeError(
            f"{name} must be an array like {p.name}, or the pair (indices, values) for some of its rows;"
            f" got a tuple of {len(given)}"
        )
    if refusal:
        raise TypeError(f"{name} must be an array like {p.name}; got (indices, values): {refusal}")
    if p.array.ndim == 0:
        raise ValueError(f"{name} is (indices, values), but {p.name} has no rows: its shape is ()")
    indices = check_indices(f"the indices of {name}", given[0], len(p.array), p.name)
    values = p.check_like(f"the values of {name}", given[1], len(indices))
    memory.check_gradient(f"the values of {name}", values)
    return Rows(slot, indices, values, _backends.get(backend))


def joint_norm(norm: float, rows: Mapping[int, Rows], backend: str) -> float:
    """The norm of whole gradients, whose own is `norm`, and of those of rows, laid end to end."""
    if not rows:
        return norm
    more = _backends.get(backend).gradient_norm([some.values for some in rows.values()])
    return math.sqrt(norm * norm + more * more)
