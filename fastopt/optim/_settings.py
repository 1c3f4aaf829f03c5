"""What users set of an optimizer, now or between steps: convention, hyper-parameters, learning rates, clipping."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import itemgetter
from typing import Any, ClassVar

import numpy as np

from .. import conventions
from .._validation import check_count, check_flag, check_in_domain
from ..conventions import Convention
from ..kernels.formulas import BOUND, DOMAINS
from ._aliases import reasons, refuse
from ._hyperparameters import EXTRA, check_clipping, check_lr, rate
from ._param_state import Group, Hyper


class Settings:
    """The part of `Optimizer` that knows of hyper-parameters, and not of arrays."""

    _hyper: ClassVar[tuple[str, ...]]  # the names of the hyper-parameters, in torch's order
    _optional_defaults: ClassVar[Mapping[str, Any]] = EXTRA
    _conventions: ClassVar[Mapping[str, Convention]]  # by convention: the libraries that have such an optimizer
    _sparse_refusal: ClassVar[str] = ""  # why gradients must not be of some rows only; "": they may
    _groups: list[Group]
    param_groups: list[Hyper]
    backend: str

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        refuse(cls, kwargs)  # before `__init__` says no more than that it does not know them
        return super().__new__(cls)

    def __init__(
        self,
        hyper: Hyper,
        clip_norm: float | None,
        convention: str,
        master_weights: bool,
        seed: int,
        capturable: bool = False,
    ) -> None:
        self._convention = conventions.find(type(self).__name__, self._conventions, convention)
        self.defaults = self._checked(self._convention.complete(hyper))
        self._clip_norm = check_in_domain("clip_norm", clip_norm, BOUND)
        self._count = 0  # steps done, which schedules go by: that an array without a gradient was left out is no matter
        self._values = itemgetter(*self._hyper)
        self._master_weights = check_flag("master_weights", master_weights)
        self._seed = check_count("seed", seed, least=0)
        self._capturable = check_flag("capturable", capturable)

    def _drop_plan(self) -> None:
        """Before states change: the next step makes another plan."""
        raise NotImplementedError

    def _variant(self, hyper: Hyper) -> str:
        """What these hyper-parameters ask for, as a row of OPTIMIZERS in torch's convention."""
        raise NotImplementedError

    def _rule(self, hyper: Hyper) -> str:
        """The row of OPTIMIZERS that does it in this convention."""
        return self._convention.row(self._variant(hyper), hyper)

    @classmethod
    def _checked(cls, hyper: Mapping[str, Any]) -> Hyper:
        """The hyper-parameters, complete, in order, and each within its domain, as plain Python values."""
        missing = [name for name in cls._hyper if name not in hyper]
        unknown = [name for name in hyper if name not in cls._hyper]
        if missing or unknown:
            raise ValueError(
                f"{cls.__name__} takes the hyper-parameters {', '.join(cls._hyper)};"
                f" missing: {missing}, unknown: {unknown}{reasons(unknown)}"
            )
        return {name: cls._checked_one(name, hyper[name]) for name in cls._hyper}

    @classmethod
    def _checked_one(cls, name: str, value: Any) -> Any:
        if name == "lr":
            return check_lr(value)
        if name != "betas":
            return check_in_domain(name, value, DOMAINS[name])
        if not isinstance(value, tuple | list) or len(value) != 2:
            raise TypeError(f"betas must be two numbers; got {value!r}")
        return tuple(check_in_domain(f"betas[{i}]", value[i], DOMAINS[f"beta{i + 1}"]) for i in (0, 1))

    def _refreshed_groups(self) -> list[Group]:
        """The groups with the hyper-parameters of this moment: all are checked before any is taken over."""
        values, size = self._values, 1 + len(self._hyper)
        stale = [g for g in self._groups if len(g.public) != size or values(g.public) != g.values]
        checked = [self._checked({k: v for k, v in g.public.items() if k != "params"}) for g in stale]
        check_clipping(self._clip_norm, checked, self.backend)
        rules = [self._rule(hyper) for hyper in checked]
        for group, rule, hyper in zip(stale, rules, checked, strict=True):
            if rule != group.rule:
                self._drop_plan()
            group.take(rule, hyper)
        return self._groups

    def _why_not_sparse(self, group: Group) -> str:
        """Why the gradient of an array of a group must not be of some rows only; "": it may."""
        if self._convention.decoupled and group.public["weight_decay"]:
            return f"weight decay of {self._convention.peer} is for all rows in every step, so it must be 0"
        return self._sparse_refusal

    @property
    def convention(self) -> str:
        """Whose formulas, defaults and options these are."""
        return next(name for name, row in self._conventions.items() if row is self._convention)

    @property
    def master_weights(self) -> bool:
        """Whether 16-bit arrays have a master copy; if not, they are rounded stochastically."""
        return self._master_weights

    @property
    def capturable(self) -> bool:
        """Whether steps may be captured into a CUDA graph."""
        return self._capturable

    @property
    def seed(self) -> int:
        """Of stochastic rounding."""
        return self._seed

    @property
    def lr(self) -> float:
        """The learning rate of the next step, also where a schedule gives it; to be set as a number or a schedule.

        With several groups that of the first; those of the others are read and set through `param_groups`.
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
        """The largest norm that the gradients of a step may have, all groups together; None: any."""
        return self._clip_norm

    @clip_norm.setter
    def clip_norm(self, value: float | None) -> None:
        checked = check_in_domain("clip_norm", value, BOUND)
        check_clipping(checked, self.param_groups, self.backend)
        self._clip_norm = checked

    @property
    def rule(self) -> str:
        """The row of `fastopt.kernels.formulas.OPTIMIZERS` in use (by the first group)."""
        return self._refreshed_groups()[0].rule

    @property
    def options(self) -> dict[str, Any]:
        """The options of that row, with their values for the next step."""
        return dict(self._refreshed_groups()[0].at(self._count))

    def rates(self, n: int) -> np.ndarray:
        """The learning rates of the next `n` steps, (n,) float64 (those of the first group)."""
        lr = self._refreshed_groups()[0].options["lr"]
        return np.array([rate(lr, self._count + i) for i in range(n)]) if callable(lr) else np.full(n, lr)

    def __repr__(self) -> str:
        hyper = {name: self.param_groups[0][name] for name in self._hyper} | {"clip_norm": self._clip_norm}
        defaults = self._optional_defaults
        shown = [f"{name}={value!r}" for name, value in hyper.items() if defaults.get(name, ...) != value]
        if self.convention != conventions.DEFAULT:
            shown.append(f"convention={self.convention!r}")
        if not self.master_weights:
            shown.append(f"master_weights=False, seed={self.seed}")
        if self.capturable:
            shown.append("capturable=True")
        return f"{type(self).__name__}({', '.join(shown)}, backend={self.backend!r})"
