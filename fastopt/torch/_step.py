"""The step: whatever the kernels can update is theirs, and torch's own code does the rest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..kernels.cpu import update
from ..kernels.spec import Update
from ._rules import RULES, read_group
from ._slots import Slot, gradient_array, make_slots, why_not_gradient

Optimizer = torch.optim.Optimizer


def peer_of(cls: type) -> type[Optimizer]:
    """The optimizer of torch's that a class is, or is derived from."""
    return next(base for base in cls.__mro__ if base in RULES)


class Accelerated(Optimizer):
    """What comes before torch's own class in the bases of ours: its step, and nothing else."""

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Update the parameters that have gradients.

        Args:
            closure: computes the loss anew, with gradients; called first.

        Returns:
            What `closure` returned.
        """
        if torch.compiler.is_compiling():  # which can look into torch's code, not into ours
            return torch_step(self, closure)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        jobs, left = _divide(self)
        if any(left):
            _step_rest(self, left)
        if jobs and not _skipped(self):
            _run(self, jobs)
        return loss


Job = tuple[Slot, str, dict[str, Any], torch.Tensor]


def _divide(optimizer: Any) -> tuple[list[Job], list[list[torch.Tensor]]]:
    """The parameters with gradients: jobs for the kernels, and for each group the parameters left to torch's code."""
    peer, scaled = peer_of(type(optimizer)), scaling(optimizer)
    states, defaults = optimizer.state, optimizer.defaults
    slots = iter(_slots(optimizer))
    jobs: list[Job] = []
    left: list[list[torch.Tensor]] = []
    for group in optimizer.param_groups:
        rule, options, whole = read_group(peer, group, scaled)
        rest = []
        for p in group["params"]:
            slot = next(slots)
            g = p.grad
            if g is None:
                continue
            if whole or slot.reason or why_not_gradient(p, g) or slot.use(states.get(p), rule, group, defaults):
                rest.append(p)
            else:
                jobs.append((slot, rule, options, g))
        left.append(rest)
    return jobs, left


def _slots(optimizer: Any) -> list[Slot]:
    """A slot for every parameter, in order; made anew where the parameters or their memory are not as they were."""
    slots: list[Slot] | None = optimizer.__dict__.get("_fastopt_slots")
    params = [p for group in optimizer.param_groups for p in group["params"]]
    if slots is not None and len(slots) == len(params):
        for slot, p in zip(slots, params, strict=True):
            if slot.p is not p or slot.moved():
                break
        else:
            return slots
    slots = make_slots(params)
    optimizer._fastopt_slots = slots
    return slots


def _run(optimizer: Any, jobs: list[Job]) -> None:
    scale = getattr(optimizer, "grad_scale", None)
    if scale is not None:  # as torch's fused steps do: who looks at the gradients afterwards finds them unscaled
        with torch.no_grad():
            torch._foreach_div_([g for _, _, _, g in jobs], float(scale))
    update(
        [
            Update(rule, slot.array, gradient_array(slot.p, g), slot.states, options, slot.steps())  # type: ignore[arg-type]
            for slot, rule, options, g in jobs
        ]
    )
    for slot, _, _, _ in jobs:
        slot.publish(optimizer.state)
    # Autograd finds out that a value it has kept was overwritten, as with torch's own updates.
    torch.autograd.graph.increment_version([slot.p for slot, _, _, _ in jobs])


def scaling(optimizer: Any) -> bool:
    """Whether a GradScaler has left word; it does for optimizers that were made with fused=True."""
    found = getattr(optimizer, "grad_scale", None), getattr(optimizer, "found_inf", None)
    return peer_of(type(optimizer)) is not torch.optim.RMSprop and any(value is not None for value in found)


def _skipped(optimizer: Any) -> bool:
    found = getattr(optimizer, "found_inf", None)
    return found is not None and peer_of(type(optimizer)) is not torch.optim.RMSprop and bool(found)


def torch_step(optimizer: Any, closure: Callable[[], Any] | None = None) -> Any:
    """The step of torch's own class, without the hooks that are called around ours."""
    step: Any = peer_of(type(optimizer)).step
    while getattr(step, "hooked", False):
        step = step.__wrapped__
    return step(optimizer, closure)


def _step_rest(optimizer: Any, left: list[list[torch.Tensor]]) -> None:
    """Let torch's own code update some parameters: on a stand-in with the same states, whose groups have only those."""
    stand_in = object.__new__(type(optimizer))
    stand_in.__dict__.update(optimizer.__dict__)
    groups = zip(optimizer.param_groups, left, strict=True)
    stand_in.param_groups = [{**group, "params": params} for group, params in groups if params]
    torch_step(stand_in)
