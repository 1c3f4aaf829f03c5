"""Optimizers on arrays in a GPU's memory with `capturable=True`: the device counts the steps, the host asks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..kernels.spec import ArrayUpdate
from ._engine import Leaves, Place
from ._engine_cuda import OnDevice, _kernels
from ._settings import Settings


class Counting(OnDevice):
    """The arrays of an optimizer in a GPU's memory, whose steps are counted there.

    A launch of a CUDA graph with a step in it is a step that the host knows nothing of. So `done` is as it was when
    `settle` last asked.
    """

    def __init__(self, groups: list[Leaves], master_weights: bool) -> None:
        super().__init__(groups, master_weights)
        self.counts = _kernels().DeviceArray(self.memory.parameters[0].gpu, self.done.shape, "float64")
        self.captured: list[Any] = [self.counts]  # what graphs need, which may outlive plans

    def stream(self) -> int:
        return int(_kernels().current_stream(self.memory.parameters[0].array))

    @property
    def capturing(self) -> bool:
        return bool(self.memory.parameters[0].gpu.capturing(self.stream()))

    def made(self, kernels: Any, planned: list[ArrayUpdate]) -> Any:
        kernels.refuse_capture(self.memory.parameters[0].gpu, self.stream())
        self.counts.write((self.done - self.origins).astype(np.float64), self.stream())
        at = [kernels.Number(self.counts.address + 8 * i, 8) for i in range(len(planned))]
        return kernels.ArrayPlan(planned, self.memory.owners, at, self.captured)

    def replace(self, other: Place) -> None:
        super().replace(other)
        if isinstance(other, Counting):
            self.captured += other.captured

    def advance(self, n: int) -> None:
        self.drop_plan()
        super().advance(n)

    def settle(self) -> None:
        if self._plan is None:
            return
        self.done[:] = self.counts.copy_to_host(self.stream()).astype(np.int64) + self.origins
        if self.measured:
            self.grad_norm = self._plan[1].plan.last_norm(self.stream())

    def step(
        self, settings: Settings, leaves: tuple[Any, ...], grad_scale: Any, found_inf: Any, skip_nonfinite: bool
    ) -> bool:
        if any(group.scheduled for group in settings._refreshed_groups()) and self.capturing:
            raise RuntimeError("a step with a schedule cannot be captured into a CUDA graph, where no rate changes")
        return super().step(settings, leaves, grad_scale, found_inf, skip_nonfinite)

    def give(
        self,
        plan: Any,
        gradients: np.ndarray,
        leaves: Sequence[Any],
        options: Sequence[Mapping[str, Any]],
        scale: float,
        guard: Any,
    ) -> None:
        plan.update_counted(gradients, [g is not None for g in leaves], options, scale, guard)
