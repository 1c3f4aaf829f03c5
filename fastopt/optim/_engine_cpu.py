"""A step on arrays in the host's memory: NumPy's, and those of other libraries that have `__dlpack__`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from .. import _backends
from ..kernels.formulas import clip_factor
from ._clipping import by_scale, own_scales
from ._dlpack_gradients import GradientReader
from ._engine import Leaves, StepSettings, UpdateEngine
from ._hyperparameters import all_finite, check_one_number, check_scale
from ._param_state import ParamState
from ._parameters import Memory, Parameter
from ._sparse_gradients import SparseGradient, check_sparse_gradient, joint_norm

Sparse = dict[int, SparseGradient]  # by the number of their array
NO_COPIES: dict[int, np.ndarray] = {}


class CpuEngine(UpdateEngine):
    """The arrays of an optimizer on the host."""

    parameter_class, memory_class, state_class = Parameter, Memory, ParamState

    def __init__(self, groups: list[Leaves], master_weights: bool) -> None:
        super().__init__(groups, master_weights)
        states = enumerate(self.param_states)
        self.copied = [i for i, state in states if state.parameter.kernel_view is None]  # updated by way of a copy

    def step(
        self, settings: StepSettings, gradients: tuple[Any, ...], grad_scale: Any, found_inf: Any, skip_nonfinite: bool
    ) -> bool:
        scale = 1.0 if grad_scale is None else 1.0 / check_scale(grad_scale)
        skipped = found_inf is not None and check_one_number("found_inf", found_inf) != 0
        plan = self._plan if self._plan_backend == settings.backend else self.plan(settings)
        # One kernel call reads all plain NumPy gradients; the unread ones are checked one by one.
        addresses, unread = plan.read(gradients)
        sparse: Sparse = {}
        if unread:
            gradients, sparse, _alive = self._read_others(settings, plan, gradients, addresses, unread)
        if skipped:
            return False
        if settings.clip_norm is not None or skip_nonfinite:
            self.grad_norm = scale * joint_norm(plan.norm(addresses), sparse, settings.backend)
            if skip_nonfinite and not math.isfinite(self.grad_norm) and not all_finite(self._readable(gradients)):
                return False
            if settings.clip_norm is not None:
                scale *= clip_factor(settings.clip_norm, self.grad_norm)
        numbers = self.steps_done - self.origins + 1  # of this step for each array, from 1
        copies = self._load_copies(gradients, sparse) if self.copied else NO_COPIES
        if settings.clip_each is None:
            plan.update(addresses, numbers, settings.options, scale, copies)
            scales: Sequence[float] | None = None
        else:
            bounds = [settings.clip_each[i] for i in self.group_of]
            scales = own_scales(plan, addresses, sparse, bounds, scale, settings.backend)
            for factor, members in by_scale(addresses, scales):
                plan.update(members, numbers, settings.options, factor, copies)
        for i, kernel_view in copies.items():
            self.param_states[i].parameter.store(kernel_view)
        for i, gradient in sparse.items():
            group = self.group_of[i]
            own = scale if scales is None else scales[i]
            gradient.update(settings.rules[group], settings.options[group], int(numbers[i]), own, settings.seed)
        if unread:  # None, and all gradients of other libraries' arrays
            self.steps_done += [g is not None for g in gradients]
            self.report_changes(gradients)
        else:
            self.steps_done += 1
        return True

    def _read_others(
        self,
        settings: StepSettings,
        plan: Any,
        gradients: tuple[Any, ...],
        addresses: np.ndarray,
        unread: list[int],
    ) -> tuple[tuple[Any, ...], Sparse, Any]:
        """Writes the addresses of gradients that `plan.read` has not read, or raises the error that says why not.

        Returns the gradients as kernels receive them, the sparse ones, and an object that keeps memory alive.
        """
        arrays, sparse, alive = list(gradients), {}, None
        rest = [i for i in unread if gradients[i] is not None]
        if rest and settings.backend == _backends.DEFAULT:
            rest, alive = self._reader.read(addresses, gradients, rest)
        for i in rest:
            state = self.param_states[i]
            if state.parameter.foreign is not None:
                state.parameter.foreign.check_unmoved()
            if isinstance(arrays[i], tuple):
                refusal = settings.sparse_refusals[self.group_of[i]]
                sparse[i] = check_sparse_gradient(state, arrays[i], self.memory, settings.backend, refusal)
                arrays[i] = sparse[i].values
            else:
                arrays[i] = self._check(state, arrays[i])
                plan.put(addresses, i, arrays[i])
        return tuple(arrays), sparse, alive

    @cached_property
    def _reader(self) -> GradientReader:
        return GradientReader(self.param_states, self.memory)

    def _load_copies(self, gradients: Sequence[Any], sparse: Mapping[int, Any]) -> dict[int, np.ndarray]:
        """Contiguous copies of the arrays that kernels cannot update in place, by their numbers."""
        used = [i for i in self.copied if gradients[i] is not None and i not in sparse]
        return {i: self.param_states[i].parameter.load() for i in used}

    def _readable(self, gradients: Sequence[Any]) -> list[np.ndarray]:
        """The gradients of a step as NumPy arrays, also those of which only kernels have read the addresses."""
        pairs = zip(self.param_states, gradients, strict=True)
        return [g if isinstance(g, np.ndarray) else self._check(state, g) for state, g in pairs if g is not None]

    def _check(self, state: ParamState, g: Any) -> np.ndarray:
        """Any gradient in the layout of kernels, or the error that says what is wrong with it."""
        name = f"grads{state.path}"
        g = state.parameter.check_like(name, g)
        self.memory.check_gradient(name, g)
        return state.parameter.to_kernel_layout(g)
