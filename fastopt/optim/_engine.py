"""Backend-specific half of `Optimizer.step`: one subclass of `UpdateEngine` updates host arrays, others GPU arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np

from .. import _backends
from ..kernels.spec import ArrayUpdate
from ._param_state import ParamState

Leaves = list[tuple[str, Any]]  # arrays with their paths in the user's structure


class StepSettings(NamedTuple):
    """Settings of an optimizer for one step; sequences have one entry a group."""

    backend: str
    rules: Sequence[str]  # rows of OPTIMIZERS
    options: Sequence[Mapping[str, Any]]  # of the rules, with this step's learning rate
    has_schedule: bool  # a learning rate is computed anew for every step
    clip_norm: float | None
    clip_each: Sequence[float | None] | None  # None: no group clips gradients one by one
    sparse_refusals: Sequence[str]  # why gradients must not be sparse; "": they may
    seed: int  # of stochastic rounding


class UpdateEngine:
    """The arrays of an optimizer: checked, with their states, the plan of their updates, and the step itself.

    groups: for each group its arrays. If one of them is refused, nothing has changed.
    """

    parameter_class: ClassVar[Any]  # one array
    memory_class: ClassVar[Any]  # the memory of all of them
    state_class: ClassVar[Any]  # one array with its states

    def __init__(self, groups: Sequence[Leaves], master_weights: bool) -> None:
        parameters = [[self.parameter_class(f"params{path}", array) for path, array in leaves] for leaves in groups]
        self.memory = self.memory_class(parameter for members in parameters for parameter in members)
        counts = np.zeros((2, sum(map(len, groups))), np.int64)
        self.steps_done, self.origins = counts  # the `steps` and `origin` of all arrays
        numbered = enumerate(counts.T)
        self.groups: list[list[ParamState]] = [
            [
                self.state_class(path, parameter, self.memory.has_foreign, *next(numbered), master_weights)
                for (path, _), parameter in zip(leaves, members, strict=True)
            ]
            for leaves, members in zip(groups, parameters, strict=True)
        ]
        self.param_states = [state for group in self.groups for state in group]
        self.group_of = [i for i, group in enumerate(self.groups) for _ in group]
        arrays = enumerate(state.parameter.foreign for state in self.param_states)
        self.foreign_arrays = [(i, foreign) for i, foreign in arrays if foreign]
        self.has_frozen = False  # True: some arrays are frozen
        self.grad_norm: float | None = None  # of the last step that computed it
        self._plan: Any = None
        self._plan_backend = ""  # "": there is no plan, or states have changed since

    def plan(self, settings: StepSettings) -> Any:
        """The backend's plan for the arrays with their present states, made anew if need be."""
        if self._plan_backend != settings.backend:
            pairs = zip(self.group_of, self.param_states, strict=True)
            updates = [state.array_update(settings.rules[i], i, settings.seed) for i, state in pairs]
            self._plan = self.make_plan(_backends.get(settings.backend), updates)
            self._plan_backend = settings.backend
        return self._plan

    def make_plan(self, kernels: Any, updates: list[ArrayUpdate]) -> Any:
        return kernels.ArrayPlan(updates, self.memory.owners)

    def drop_plan(self) -> None:
        """Before states change: the next step makes another plan."""
        self._plan, self._plan_backend = None, ""

    def inherit(self, other: UpdateEngine) -> None:
        """Replaces another engine, whose arrays are the first here."""
        other.drop_plan()
        self.grad_norm = other.grad_norm

    def advance(self, n: int) -> None:
        """Counts steps that were done elsewhere."""
        self.steps_done += n
        if self.has_frozen:
            self.steps_done[[state.frozen for state in self.param_states]] = 0

    def freeze(self, frozen: Sequence[bool]) -> None:
        """Freezes and thaws arrays. Those that change lose their states, so that a thawed one starts afresh."""
        self.drop_plan()
        for state, now in zip(self.param_states, frozen, strict=True):
            if state.frozen != now:
                state.frozen, state.states_by_name = now, {}
                state.counts[:] = 0
        self.has_frozen = any(frozen)

    def settle(self) -> None:
        """Waits until `steps_done` and `grad_norm` are exact."""

    def step(
        self, settings: StepSettings, gradients: tuple[Any, ...], grad_scale: Any, found_inf: Any, skip_nonfinite: bool
    ) -> bool:
        """`Optimizer.step` with one gradient, or None, an array. True: done, or given to the device, and counted."""
        raise NotImplementedError

    def report_changes(self, gradients: Sequence[Any]) -> None:
        """Tells other libraries which of their arrays were written to: those that had a gradient."""
        for i, foreign in self.foreign_arrays:
            if gradients[i] is not None:
                foreign.report_change()
