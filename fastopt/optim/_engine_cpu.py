"""A step on arrays in the host's memory: NumPy's, and those that speak `__dlpack__`."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import cached_property
from typing import Any

import numpy as np

from .. import _backends
from ..kernels.formulas import clip_factor
from ._clipping import by_scale, own_scales
from ._dlpack_gradients import Lent
from ._engine import Leaves, Place
from ._hyperparameters import all_finite, check_one_number, check_scale
from ._param_state import Slot
from ._parameters import Memory, Parameter
from ._settings import Settings
from ._sparse_gradients import Rows, check_rows, joint_norm


class OnHost(Place):
    """The arrays of an optimizer on the host."""

    of_array, of_all, of_slot = Parameter, Memory, Slot

    def __init__(self, groups: list[Leaves], master_weights: bool) -> None:
        super().__init__(groups, master_weights)
        self.copied = [i for i, slot in enumerate(self.slots) if slot.parameter.work is None]

    def step(
        self, settings: Settings, leaves: tuple[Any, ...], grad_scale: Any, found_inf: Any, skip_nonfinite: bool
    ) -> bool:
        scale = 1.0 if grad_scale is None else 1.0 / check_scale(grad_scale)
        skip = found_inf is not None and check_one_number("found_inf", found_inf) != 0
        groups, plan, clip_norm = settings._refreshed_groups(), self.plan(settings), settings.clip_norm
        options = [group.at(settings._count) for group in groups]
        gradients, others = plan.read(leaves)
        arrays = list(leaves)  # as kernels take them
        rows: dict[int, Rows] = {}
        rest = [i for i in others if arrays[i] is not None]
        if rest and settings.backend == _backends.DEFAULT:
            rest, _alive = self._lent.take(gradients, leaves, rest)
        for i in rest:
            slot = self.slots[i]
            if slot.parameter.lender is not None:
                slot.parameter.lender.check_place()
            if isinstance(arrays[i], tuple):
                refusal = settings._why_not_sparse(groups[self.of[i]])
                rows[i] = check_rows(slot, arrays[i], self.memory, settings.backend, refusal)
                arrays[i] = rows[i].values
            else:
                arrays[i] = self._check(slot, arrays[i])
                plan.put(gradients, i, arrays[i])
        if skip:
            return False
        if clip_norm is not None or skip_nonfinite:
            self.grad_norm = scale * joint_norm(plan.norm(gradients), rows, settings.backend)
            if skip_nonfinite and not math.isfinite(self.grad_norm) and not all_finite(self._readable(arrays)):
                return False
            if clip_norm is not None:
                scale *= clip_factor(clip_norm, self.grad_norm)
        scales = None
        if any(group.clip_each for group in groups):
            most = [groups[i].clip_each for i in self.of]
            scales = own_scales(plan, gradients, rows, most, scale, settings.backend)
        copies = {i: self.slots[i].parameter.load() for i in self.copied if arrays[i] is not None and i not in rows}
        done = self.done
        numbers = done - self.origins + 1
        for factor, some in [(scale, gradients)] if scales is None else by_scale(gradients, scales):
            plan.update(some, numbers, options, factor, copies)
        for i, work in copies.items():
            self.slots[i].parameter.store(work)
        for i, listed in rows.items():
            own = scale if scales is None else scales[i]
            listed.update(groups[self.of[i]].rule, options[self.of[i]], int(numbers[i]), own, settings.seed)
        done += [g is not None for g in arrays] if others else 1
        if others:  # as all gradients of other libraries' arrays are
            self.changed(arrays)
        return True

    @cached_property
    def _lent(self) -> Lent:
        return Lent(self.slots, self.memory)

    def _readable(self, arrays: Iterable[Any]) -> list[np.ndarray]:
        """The gradients of a step as NumPy's, also those that only kernels have looked at."""
        pairs = zip(self.slots, arrays, strict=True)
        return [g if isinstance(g, np.ndarray) else self._check(slot, g) for slot, g in pairs if g is not None]

    def _check(self, slot: Slot, g: Any) -> np.ndarray:
        """Any gradient as kernels take it, or the error that says what is wrong with it."""
        name = f"grads{slot.path}"
        g = slot.parameter.check_like(name, g)
        self.memory.check_gradient(name, g)
        return slot.parameter.inward(g)
