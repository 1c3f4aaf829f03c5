"""Optimizers on arrays in a GPU's memory with `capturable=True`: the device counts the steps, and the host asks it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..kernels.formulas import OPTIMIZERS, defined
from ..kernels.formulas.optimizers import AT_STEP
from ..kernels.spec import ArrayUpdate
from ._engine import Leaves, StepSettings, UpdateEngine
from ._engine_cuda import CudaEngine, _kernels


def check_counted(rule: str) -> None:
    """ValueError for a rule whose scalars a device that counts its steps cannot compute: some of the user's."""
    if OPTIMIZERS[rule].at_step not in AT_STEP:
        raise ValueError(
            f"capturable=True must be left out for {defined.name_of(rule)}: its update depends on the step or the"
            " learning rate by a formula of yours, which only the host computes"
        )


class CapturableEngine(CudaEngine):
    """The arrays of an optimizer in a GPU's memory, whose steps the device counts.

    The host does not see steps inside a launched CUDA graph, so `steps_done` dates from the last `settle`.
    """

    def __init__(self, groups: list[Leaves], master_weights: bool) -> None:
        super().__init__(groups, master_weights)
        self.counts = _kernels().DeviceArray(self.memory.parameters[0].gpu, self.steps_done.shape, "float64")
        self.captured: list[Any] = [self.counts]  # memory of graphs, which may outlive plans

    def stream(self) -> int:
        return int(_kernels().current_stream(self.memory.parameters[0].array))

    @property
    def capturing(self) -> bool:
        return bool(self.memory.parameters[0].gpu.is_capturing(self.stream()))

    def make_plan(self, kernels: Any, updates: list[ArrayUpdate]) -> Any:
        kernels.refuse_capture(self.memory.parameters[0].gpu, self.stream())
        self.counts.write((self.steps_done - self.origins).astype(np.float64), self.stream())
        counters = [kernels.Number(self.counts.address + 8 * i, 8) for i in range(len(updates))]
        return kernels.ArrayPlan(updates, self.memory.owners, counters, self.captured)

    def inherit(self, other: UpdateEngine) -> None:
        super().inherit(other)
        if isinstance(other, CapturableEngine):
            self.captured += other.captured

    def advance(self, n: int) -> None:
        self.drop_plan()
        super().advance(n)

    def settle(self) -> None:
        if self._plan is None:
            return
        self.steps_done[:] = self.counts.copy_to_host(self.stream()).astype(np.int64) + self.origins
        if self.has_norm:
            self.grad_norm = self._plan.plan.last_norm(self.stream())

    def step(
        self, settings: StepSettings, gradients: tuple[Any, ...], grad_scale: Any, found_inf: Any, skip_nonfinite: bool
    ) -> bool:
        if settings.has_schedule and self.capturing:
            raise RuntimeError("a step with a schedule cannot be captured into a CUDA graph, where no rate changes")
        return super().step(settings, gradients, grad_scale, found_inf, skip_nonfinite)

    def launch(
        self,
        plan: Any,
        addresses: np.ndarray,
        gradients: Sequence[Any],
        options: Sequence[Mapping[str, Any]],
        scale: float,
        guard: Any,
    ) -> None:
        plan.update_counted(addresses, [g is not None for g in gradients], options, scale, guard)
