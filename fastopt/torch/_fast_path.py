"""The same step again: all that must be as it was for the plan of the last step to hold, looked at in one loop.

Nothing is decided here. Where anything is otherwise, the step is divided anew, slowly, by `_step`. One loop with few
calls to functions of ours costs 2 us a parameter, the way through the checks of `_slots` twice that.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from ._param_states import Slot
from ._reach import HOST
from ._rules import Group, read_group

_strided = torch.strided


class Step(NamedTuple):
    """What a plan is to be called with, and the slots that it is about to update."""

    gradients: list[int]
    steps: list[int]
    options: list[dict[str, Any]]
    slots: list[Slot]


def same_again(
    peer: type[torch.optim.Optimizer],
    groups: list[Group],
    states: dict[torch.Tensor, Any],
    slots: list[Slot],
    scaled: bool = False,
    place: str = HOST,
) -> Step | None:
    """The step to make if all slots are in the plan, in their order, and nothing has moved; else None."""
    try:
        return _look(peer, groups, states, slots, scaled, place)
    except RuntimeError:  # a tensor without memory
        return None


def _look(
    peer: type[torch.optim.Optimizer],
    groups: list[Group],
    states: dict[torch.Tensor, Any],
    slots: list[Slot],
    scaled: bool,
    place: str,
) -> Step | None:
    gradients: list[int] = []
    steps: list[int] = []
    all_options: list[dict[str, Any]] = []
    used: list[Slot] = []
    at = 0
    for number, group in enumerate(groups):
        rule, options, whole = read_group(peer, group, scaled, place)
        params = group["params"]
        end = at + len(params)
        if whole or end > len(slots):
            return None
        all_options.append(options)
        for p, slot in zip(params, slots[at:end], strict=True):
            if p is not slot.p or slot.group != number or slot.rule != rule or slot.fresh:
                return None
            g = p.grad
            if g is None:
                gradients.append(0)
                steps.append(0)
                continue
            shape, stride = slot.shape, slot.stride
            state: Any = states.get(p)
            if (
                p.data_ptr() != slot.address
                or p.shape != shape
                or p.stride() != stride
                or g.shape != shape
                or type(g) is not torch.Tensor
                or g.layout is not _strided
                or g.stride() != stride
                or g.dtype is not slot.dtype
                or g.is_cpu is not slot.is_cpu
                or g.is_neg()
                or state is not slot.state
            ):
                return None
            for (name, tensor), address in zip(slot.tensors, slot.addresses, strict=True):
                if state is None or state.get(name) is not tensor or tensor.data_ptr() != address:
                    return None
            address = g.data_ptr()
            if not address or address & 7:  # none of its own, or not aligned for every dtype
                return None
            gradients.append(address)
            steps.append(slot.steps())
            used.append(slot)
        at = end
    return Step(gradients, steps, all_options, used) if at == len(slots) else None
