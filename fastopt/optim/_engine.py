"""Where an optimizer's arrays lie, on the host or in a GPU's memory: what differs in a step is behind one `Place`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from .. import _backends
from ..kernels.spec import ArrayUpdate
from ._param_state import Slot
from ._settings import Settings

Leaves = list[tuple[str, Any]]  # arrays with their paths in what the user gave


class Place:
    """The arrays of an optimizer: checked, with their states, the plan of their updates, and how a step is done there.

    groups: for each group its arrays. Raises, and nothing has changed, where one of them does not do.
    """

    # What stands for one array, for the memory of all, and for an array with its states.
    of_array: ClassVar[Any]
    of_all: ClassVar[Any]
    of_slot: ClassVar[Any]

    def __init__(self, groups: Sequence[Leaves], master_weights: bool) -> None:
        parameters = [[self.of_array(f"params{path}", array) for path, array in leaves] for leaves in groups]
        self.memory = self.of_all(parameter for some in parameters for parameter in some)
        counted = np.zeros((2, sum(map(len, groups))), np.int64)
        self.done, self.origins = counted  # the `steps` and `origin` of all slots
        numbers = enumerate(counted.T)
        self.groups: list[list[Slot]] = [
            [
                self.of_slot(path, parameter, self.memory.foreign, *next(numbers), master_weights)
                for (path, _), parameter in zip(leaves, some, strict=True)
            ]
            for leaves, some in zip(groups, parameters, strict=True)
        ]
        self.slots = [slot for group in self.groups for slot in group]
        self.of = [i for i, group in enumerate(self.groups) for _ in group]  # the group of each
        self.lenders = [(i, lender) for i, slot in enumerate(self.slots) if (lender := slot.parameter.lender)]
        self.grad_norm: float | None = None  # of the last step that found it out
        self._plan: tuple[str, Any] | None = None  # with the backend whose it is; none after a change of states

    def plan(self, settings: Settings) -> Any:
        """The plan of the backend for the arrays with their present states."""
        if self._plan is None or self._plan[0] != settings.backend:
            rules = [group.rule for group in settings._groups]
            pairs = zip(self.of, self.slots, strict=True)
            planned = [slot.planned(rules[i], i, settings.seed) for i, slot in pairs]
            self._plan = settings.backend, self.made(_backends.get(settings.backend), planned)
        return self._plan[1]

    def made(self, kernels: Any, planned: list[ArrayUpdate]) -> Any:
        return kernels.ArrayPlan(planned, self.memory.owners)

    def drop_plan(self) -> None:
        """Before states change: the next step makes another plan."""
        self._plan = None

    def replace(self, other: Place) -> None:
        """Comes in the place of another one, whose arrays are the first here."""
        other.drop_plan()
        self.grad_norm = other.grad_norm

    def advance(self, n: int) -> None:
        """Counts steps that were done elsewhere."""
        self.done += n

    def settle(self) -> None:
        """Makes `done` and `grad_norm` what they are once all steps that were given are done."""

    def step(
        self, settings: Settings, leaves: tuple[Any, ...], grad_scale: Any, found_inf: Any, skip_nonfinite: bool
    ) -> bool:
        """`Optimizer.step`, of gradients one for each array. Says whether it was done, or may be; counts it then."""
        raise NotImplementedError

    def changed(self, leaves: Sequence[Any]) -> None:
        """Tells other libraries of what was written to their arrays: those that had a gradient."""
        for i, lender in self.lenders:
            if leaves[i] is not None:
                lender.changed()
