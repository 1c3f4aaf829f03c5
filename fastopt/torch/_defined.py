"""torch's kind of optimizer for rules that users have defined: its groups and gradients, our steps."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
import torch

from .. import _backends
from ..optim import Optimizer
from ..optim._hyperparameters import as_plain
from ..optim.rules import class_named, is_defined, reference_to
from ._shards import refuse_shards

_made: dict[type[Optimizer], type[RuleOptimizer]] = {}


class RuleOptimizer(torch.optim.Optimizer):
    """Base of the classes of `class_of`: an optimizer of ours on the arrays of torch's parameters.

    It is made in the first step, and again when parameters have moved to other memory, with the same states.
    """

    rule: ClassVar[Any]  # a class of ours
    _optimizer: Optimizer | None = None
    _saved: Mapping[str, Any] | None = None  # a state_dict that the next optimizer of ours loads
    _places: tuple[int, ...] = ()  # addresses of the parameters that it has
    clip_norm: float | None = None

    def __init__(self, params: Any, clip_norm: float | None = None, **hyper: Any) -> None:
        refuse_shards(clip_norm)
        defaults = self.rule(clip_norm=clip_norm, **hyper).defaults  # checked
        self.clip_norm = clip_norm
        super().__init__(params, defaults)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Update the parameters that have gradients.

        Args:
            closure: computes the loss anew, with gradients; called first.

        Returns:
            What `closure` returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.no_grad():
            self._current().step([[p.grad for p in group["params"]] for group in self.param_groups])
        return loss

    def _current(self) -> Optimizer:
        """Our optimizer of the parameters where they are now, with the hyper-parameters of the groups."""
        places = tuple(p.data_ptr() for group in self.param_groups for p in group["params"])
        if self._optimizer is None or places != self._places:
            saved = self._saved if self._optimizer is None else self._optimizer.state_dict()
            self._optimizer, self._places, self._saved = self._make(), places, None
            if saved is not None:
                self._optimizer.load_state_dict(saved)
        self._optimizer.clip_norm = self.clip_norm
        for group, own in zip(self.param_groups, self._optimizer.param_groups, strict=True):
            for name in self.rule._hyper:
                own[name] = as_plain(group[name])
        return self._optimizer

    def _make(self) -> Optimizer:
        kinds = {p.device.type for group in self.param_groups for p in group["params"]}
        if len(kinds) > 1:
            raise ValueError(f"the parameters of a rule must be on devices of one kind; got {', '.join(sorted(kinds))}")
        backend = _backends.DEVICE if "cuda" in kinds else _backends.DEFAULT
        groups = [
            {"params": list(group["params"]), **{name: as_plain(group[name]) for name in self.rule._hyper}}
            for group in self.param_groups
        ]
        return self.rule(groups, backend=backend)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters with options of their own, as torch's does."""
        if self._optimizer is not None:
            self._current()  # of the parameters where they are now
        super().add_param_group(param_group)
        if self._optimizer is not None:
            added = self.param_groups[-1]
            own = {name: as_plain(added[name]) for name in self.rule._hyper}
            self._optimizer.add_param_group({"params": list(added["params"]), **own})
            self._places += tuple(p.data_ptr() for p in added["params"])

    def state_dict(self) -> dict[str, Any]:
        """Groups, and the states of every parameter as tensors, in torch's layout."""
        described = super().state_dict()
        saved = self._saved if self._optimizer is None else self._optimizer.state_dict()
        state = {} if saved is None else saved["state"]
        return {**described, "state": {i: _as_tensors(entry) for i, entry in state.items()}}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:  # type: ignore[override]
        """Load groups and states from a `state_dict`."""
        super().load_state_dict({**state_dict, "state": {}})
        groups = [{name: as_plain(group[name]) for name in self.rule._hyper} for group in self.param_groups]
        numbers = iter(range(sum(len(group["params"]) for group in self.param_groups)))
        groups = [
            {**own, "params": [next(numbers) for _ in group["params"]]}
            for own, group in zip(groups, self.param_groups, strict=True)
        ]
        convention = self.rule._default_convention()
        self._saved = {
            "state": dict(state_dict["state"]),
            "param_groups": [{**own, "convention": convention, "clip_norm": self.clip_norm} for own in groups],
        }
        self._optimizer = None

    def __getstate__(self) -> dict[str, Any]:
        saved = self._saved if self._optimizer is None else self._optimizer.state_dict()
        return {**super().__getstate__(), "_saved": saved, "clip_norm": self.clip_norm}

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _restored, reference_to(self.rule), self.__getstate__()


def _as_tensors(entry: Mapping[str, Any]) -> dict[str, Any]:
    """An entry of a state_dict with tensors, the number of steps among them."""
    return {
        name: torch.tensor(float(value)) if name == "step" else torch.from_numpy(np.array(value))
        for name, value in entry.items()
    }


def _restored(name: str, key: str) -> RuleOptimizer:
    """An optimizer of torch's kind, for pickle; ValueError if its rule is not defined here."""
    cls = class_of(class_named(name, key))
    return cls.__new__(cls)


def class_of(rule: type[Optimizer]) -> Any:
    """Return torch's kind of class for a rule that `fo.OptimizerRule.define` has made.

    Its arguments are the parameters of a model (or groups), the rule's hyper-parameters and `clip_norm`. Gradients are
    those of the parameters; closures, hooks, schedulers, GradScaler, pickling and copying are as with torch's own.
    Parameters are all on the CPU or all on GPUs; those of 16 bits have a float32 master copy, see `fastopt.optim`.
    States are in `state_dict()`, and not in the attribute `state`.

    Raises TypeError for what is no such class.

    Example:
        >>> import torch, fastopt as fo, fastopt.torch
        >>> def update(p, g, s, lr, beta):
        ...     velocity = beta * s[0] + g
        ...     return p - lr * velocity, velocity
        >>> rule = fo.OptimizerRule.define("HeavyBall", update, ["velocity"], {"beta": 0.9})
        >>> HeavyBall = fastopt.torch.class_of(rule)
        >>> w = torch.ones(2, requires_grad=True)
        >>> optimizer = HeavyBall([w], lr=0.5)
        >>> w.sum().backward()
        >>> optimizer.step()
        >>> w.tolist(), optimizer.state_dict()["state"][0]["velocity"].tolist()
        ([0.5, 0.5], [1.0, 1.0])
    """
    if not (isinstance(rule, type) and is_defined(rule)):
        raise TypeError(f"rule must be a class of fo.OptimizerRule.define; got {rule!r}")
    if rule not in _made:
        members = {"rule": rule, "__doc__": inspect.getdoc(rule), "__module__": __name__}
        _made[rule] = type(rule.__name__, (RuleOptimizer,), members)
    return _made[rule]
