"""Settings of an optimizer, also those that users change between steps: hyper-parameters, learning rates, clipping."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import itemgetter
from typing import Any, ClassVar

import numpy as np

from .. import conventions
from .._validation import check_count, check_flag, check_in_domain, check_name
from ..conventions import Convention
from ..kernels.formulas import BOUND, DOMAINS, Domain
from ._aliases import hints_for, refuse_foreign
from ._coded_state import ROUNDINGS
from ._engine import StepSettings
from ._hyperparameters import EXTRA, check_clipping, check_lr, rate
from ._param_state import Hyper, ParamGroup


class Settings:
    """The part of `Optimizer` that deals with hyper-parameters, and not with arrays."""

    _hyper: ClassVar[tuple[str, ...]]  # the names of the hyper-parameters, in torch's order
    _optional_defaults: ClassVar[Mapping[str, Any]] = EXTRA
    _conventions: ClassVar[Mapping[str, Convention]]  # the libraries that have such an optimizer, by name
    _domains: ClassVar[Mapping[str, Domain]] = DOMAINS
    _derived: ClassVar[Mapping[str, Callable[[int, Hyper], float]]] = {}  # numbers of torch's states, by steps done
    _sparse_refusal: ClassVar[str] = ""  # why gradients must not be of some rows only; "": they may
    _groups: list[ParamGroup]
    param_groups: list[Hyper]
    backend: str

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        refuse_foreign(cls, kwargs)  # with a hint; `__init__` would only call them unexpected
        return super().__new__(cls)

    def __init__(
        self,
        hyper: Hyper,
        clip_norm: float | None,
        convention: str,
        master_weights: bool,
        seed: int,
        capturable: bool = False,
        state_rounding: str = "nearest",
    ) -> None:
        self._convention = conventions.find(type(self).__name__, self._conventions, convention)
        self.defaults = self._checked(self._convention.complete(hyper))
        self._clip_norm = check_in_domain("clip_norm", clip_norm, BOUND)
        self._count = 0  # calls of `step` that were done: the step number of schedules, for all arrays alike
        self._values = itemgetter(*self._hyper)
        self._step_record: StepSettings | None = None
        self._master_weights = check_flag("master_weights", master_weights)
        self._seed = check_count("seed", seed, least=0)
        self._capturable = check_flag("capturable", capturable)
        self._state_rounding = check_name("state_rounding", state_rounding, ROUNDINGS)

    def _drop_plan(self) -> None:
        """Before states change: the next step makes another plan."""
        raise NotImplementedError

    def _variant(self, hyper: Hyper) -> str:
        """Row of OPTIMIZERS that these hyper-parameters select in torch's convention."""
        raise NotImplementedError

    def _rule(self, hyper: Hyper) -> str:
        """Row of OPTIMIZERS that they select in this optimizer's convention."""
        return self._convention.row(self._variant(hyper), hyper)

    @classmethod
    def _checked(cls, hyper: Mapping[str, Any]) -> Hyper:
        """The hyper-parameters, complete, in order, and each within its domain, as plain Python values."""
        missing = [name for name in cls._hyper if name not in hyper]
        unknown = [name for name in hyper if name not in cls._hyper]
        if missing or unknown:
            raise ValueError(
                f"{cls.__name__} takes the hyper-parameters {', '.join(cls._hyper)};"
                f" missing: {missing}, unknown: {unknown}{hints_for(unknown)}"
            )
        return {name: cls._checked_one(name, hyper[name]) for name in cls._hyper}

    @classmethod
    def _checked_one(cls, name: str, value: Any) -> Any:
        if name == "lr":
            return check_lr(value)
        if name != "betas":
            return check_in_domain(name, value, cls._domains[name])
        if not isinstance(value, tuple | list) or len(value) != 2:
            raise TypeError(f"betas must be two numbers; got {value!r}")
        return tuple(check_in_domain(f"betas[{i}]", value[i], DOMAINS[f"beta{i + 1}"]) for i in (0, 1))

    def _refreshed_groups(self) -> list[ParamGroup]:
        """The groups with the users' present hyper-parameters: all are checked before any is applied."""
        values, size = self._values, 1 + len(self._hyper)
        stale = [g for g in self._groups if len(g.user_options) != size or values(g.user_options) != g.values]
        if stale:
            checked = [self._checked({k: v for k, v in g.user_options.items() if k != "params"}) for g in stale]
            check_clipping(self._clip_norm, checked, self.backend)
            rules = [self._rule(hyper) for hyper in checked]
            if self._derived:
                for group, hyper in zip(stale, checked, strict=True):
                    self._check_derived(group, hyper)
            for group, rule, hyper in zip(stale, rules, checked, strict=True):
                if (rule, hyper["state_bits"]) != (group.rule, group.state_bits):
                    self._drop_plan()
                group.apply(rule, hyper)
            self._step_record = None
        return self._groups

    def _check_derived(self, group: ParamGroup, hyper: Hyper) -> None:
        """ValueError if a number that follows from all steps done, such as NAdam's product, would be another now."""
        before = dict(zip(hyper, group.values, strict=False))
        steps = {state.steps for state in group.param_states if state.steps} if before else set()
        for name, value in self._derived.items():
            if any(value(n, hyper) != value(n, before) for n in steps):
                changed = ", ".join(key for key, old in before.items() if hyper[key] != old)
                raise ValueError(
                    f"hyper-parameters of which {type(self).__name__} keeps {name} must be those of the first step; got"
                    f" other values of: {changed}"
                )

    def _step_settings(self) -> StepSettings:
        """The settings for the next step, from one record as long as nobody changes any."""
        record, values, size = self._step_record, self._values, 1 + len(self._hyper)
        if record is not None and record.backend == self.backend:
            for group in self._groups:  # as in `_refreshed_groups`, without a frame of Python's
                if len(group.user_options) != size or values(group.user_options) != group.values:
                    break
            else:
                return self._with_rates(record) if record.has_schedule else record
        groups = self._refreshed_groups()
        clip_each = [group.clip_each for group in groups]
        self._step_record = record = StepSettings(
            backend=self.backend,
            rules=[group.rule for group in groups],
            options=[group.options for group in groups],
            has_schedule=any(group.has_schedule for group in groups),
            clip_norm=self._clip_norm,
            clip_each=clip_each if any(clip_each) else None,
            sparse_refusals=[self._why_not_sparse(group) for group in groups],
            seed=self._seed,
        )
        return self._with_rates(record) if record.has_schedule else record

    def _with_rates(self, record: StepSettings) -> StepSettings:
        return record._replace(options=[group.options_at_step(self._count) for group in self._groups])

    def _why_not_sparse(self, group: ParamGroup) -> str:
        """Reason that gradients of a group's arrays must not be of some rows only; "": they may."""
        if self._convention.decoupled and group.user_options["weight_decay"]:
            return f"weight decay of {self._convention.peer} is for all rows in every step, so it must be 0"
        if group.user_options["state_bits"] == 8:
            return "the codes of states are of blocks of elements, and not of rows: give the group state_bits=32"
        return self._sparse_refusal

    @property
    def convention(self) -> str:
        """The library whose formulas, defaults and options these are."""
        return next(name for name, row in self._conventions.items() if row is self._convention)

    @classmethod
    def _default_convention(cls) -> str:
        return next(iter(cls._conventions))

    @property
    def master_weights(self) -> bool:
        """True if 16-bit arrays have a master copy; if not, they are rounded stochastically."""
        return self._master_weights

    @property
    def capturable(self) -> bool:
        """True if steps may be captured into a CUDA graph."""
        return self._capturable

    @property
    def state_rounding(self) -> str:
        """Rounding of states of 8 bits: "nearest" or "stochastic"."""
        return self._state_rounding

    @property
    def seed(self) -> int:
        """Seed of stochastic rounding."""
        return self._seed

    @property
    def lr(self) -> float:
        """The learning rate of the next step, also of a schedule; set it to a number or a schedule.

        Of several groups it is the first one's; `param_groups` has those of the others.
        """
        return rate(self.param_groups[0]["lr"], self._count)

    @lr.setter
    def lr(self, value: float | Callable[[int], float]) -> None:
        if len(self.param_groups) > 1:
            raise ValueError(
                f"there are {len(self.param_groups)} groups, each with its own learning rate:"
                " set opt.param_groups[i]['lr']"
            )
        self.param_groups[0]["lr"] = self._checked_one("lr", value)

    @property
    def clip_norm(self) -> float | None:
        """Bound of the norm of a step's gradients, all groups together; None: no bound."""
        return self._clip_norm

    @clip_norm.setter
    def clip_norm(self, value: float | None) -> None:
        checked = check_in_domain("clip_norm", value, BOUND)
        check_clipping(checked, self.param_groups, self.backend)
        self._clip_norm, self._step_record = checked, None

    @property
    def rule(self) -> str:
        """The row of `fastopt.kernels.formulas.OPTIMIZERS` in use (by the first group)."""
        return self._refreshed_groups()[0].rule

    @property
    def options(self) -> dict[str, Any]:
        """The options of that row, with their values for the next step."""
        return dict(self._refreshed_groups()[0].options_at_step(self._count))

    def rates(self, n: int) -> np.ndarray:
        """The learning rates of the next `n` steps, (n,) float64 (those of the first group)."""
        lr, first = self._refreshed_groups()[0].options["lr"], self._count
        return np.array([rate(lr, first + i) for i in range(n)]) if callable(lr) else np.full(n, lr)

    def __repr__(self) -> str:
        hyper = {name: self.param_groups[0][name] for name in self._hyper} | {"clip_norm": self._clip_norm}
        defaults = self._optional_defaults
        shown = [f"{name}={value!r}" for name, value in hyper.items() if defaults.get(name, ...) != value]
        if self.convention != self._default_convention():
            shown.append(f"convention={self.convention!r}")
        if not self.master_weights:
            shown.append(f"master_weights=False, seed={self.seed}")
        if self.state_rounding != "nearest":
            shown.append(f"state_rounding={self.state_rounding!r}, seed={self.seed}")
        if self.capturable:
            shown.append("capturable=True")
        return f"{type(self).__name__}({', '.join(shown)}, backend={self.backend!r})"
