"""The part of `Optimizer` that a compiled epoch asks for: its next steps, their count, arrays that they leave out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..kernels.spec import WHOLE, OptimizerSteps, ParamSettings
from ._engine import UpdateEngine
from ._param_state import ParamState
from ._settings import Settings


class EpochSteps(Settings):
    """Base of `Optimizer`: steps that kernels of a network do, on its arrays and states."""

    _engine: UpdateEngine
    _param_states: list[ParamState]
    _step_lock: Any
    state_rounding: Any
    _divided = False  # states are those of a part of the parameters: others have been updated by other processes

    @property
    def steps(self) -> int:
        """Steps done; of arrays that have done different numbers of steps, the most."""
        return max((state.steps for state in self._param_states), default=0)

    def check_epochs(self) -> None:
        """Raise ValueError where epochs cannot do the steps of these states."""
        if self.param_groups[0]["state_bits"] == 8 and self.state_rounding != "nearest":
            raise ValueError(
                "fit rounds states of 8 bits to the nearest code: state_rounding must be 'nearest';"
                f" got {self.state_rounding!r}, which the method `step` has"
            )

    def next_steps(self, n: int, settings: Sequence[ParamSettings] = ()) -> OptimizerSteps:
        """Record of all that a compiled epoch of `n` steps needs of the optimizer; for one with a single group.

        settings: of each array, beside the group's; (): none has its own.
        """
        rates = self.rates(n)
        group, done, steps = self._groups[0], self._count, self._engine.steps_done.tolist()
        states = [None if state.frozen else state.user_views for state in group.param_states]
        if steps.count(done) < len(steps):
            late = [0 if state.frozen else done - n for state, n in zip(group.param_states, steps, strict=True)]
            own = settings or [ParamSettings()] * len(states)
            settings = [one._replace(late=behind) for one, behind in zip(own, late, strict=True)]
        storages = [state.storage for state in group.param_states]
        given = OptimizerSteps(group.rule, states, group.options, rates, done, self._clip_norm, settings)
        return given if storages.count(WHOLE) == len(storages) else given._replace(storages=storages)

    def advance(self, n: int) -> None:
        """Counts `n` steps that a compiled epoch did on the arrays and states."""
        self._engine.advance(n)
        self._count += n

    def _freeze(self, frozen: Sequence[bool]) -> None:
        """Leaves some arrays out of all steps from now on, also of `step`; for arrays on the host.

        frozen: for each array, True if it is. Frozen arrays have no states. One that was frozen and is no longer starts
        afresh, at its first step; the others keep states and steps.
        """
        with self._step_lock:
            groups = self._refreshed_groups()  # raises, before anything changes, for a wrong hyper-parameter
            self._engine.freeze(frozen)
            for group in groups:
                group.ensure_states()
            self._step_record = None
