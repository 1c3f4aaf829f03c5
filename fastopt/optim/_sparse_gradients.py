"""Sparse gradients, of some rows of an array: the pair (indices, values) given to `Optimizer.step`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from .. import _backends
from .._validation import check_indices
from ..kernels.spec import Update
from ._param_state import ParamState
from ._parameters import Memory


class SparseGradient:
    """A checked gradient of some rows: `indices` sorted and each once, with their `values` added up.

    If the rows of the array lie one after the other in memory, kernels update them there. For others (columns first,
    gaps, foreign byte order) the rows are copied, updated, and written back.
    """

    __slots__ = ("backend", "indices", "kernel_view", "state", "values")

    def __init__(self, state: ParamState, indices: np.ndarray, values: np.ndarray, backend: Any) -> None:
        p = state.parameter
        self.state, self.backend = state, backend
        self.kernel_view = p.kernel_view if p.axes[0] == 0 else None
        values = np.require(values, p.dtype, ["C", "A"]) if self.kernel_view is None else p.to_kernel_layout(values)
        self.indices, self.values = backend.sum_rows(indices, values)

    def update(self, rule: str, options: Mapping[str, Any], step: int, scale: float, seed: int) -> None:
        p, states, stream = self.state.parameter, self.state.states, self.state.random_stream(seed)
        common = options, step, self.state.form, stream
        if self.kernel_view is not None:
            update = Update(rule, self.kernel_view, self.values, states, *common)
            self.backend.update_rows(update, self.indices, scale)
            return
        arrays = [p.array, *map(p.to_user_layout, states)]
        rows = [np.array(array[self.indices], array.dtype.newbyteorder("="), order="C") for array in arrays]
        self.backend.update([Update(rule, rows[0], self.values, tuple(rows[1:]), *common)], scale)
        for array, updated in zip(arrays, rows, strict=True):
            array[self.indices] = updated


def check_sparse_gradient(
    state: ParamState, given: tuple[Any, ...], memory: Memory, backend: str, refusal: str
) -> SparseGradient:
    """The gradient (indices, values), or the error that says what is wrong with it.

    refusal: why the array has no sparse gradients; "": it may have.
    """
    name, p = f"grads{state.path}", state.parameter
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
    return SparseGradient(state, indices, values, _backends.get(backend))


def joint_norm(norm: float, sparse: Mapping[int, SparseGradient], backend: str) -> float:
    """Norm of dense gradients, whose own is `norm`, and of sparse ones, laid end to end."""
    if not sparse:
        return norm
    more = _backends.get(backend).gradient_norm([gradient.values for gradient in sparse.values()])
    return math.sqrt(norm * norm + more * more)
