"""Fast path of a step: one loop checks that everything the last step's plan depends on is unchanged.

Nothing is decided here. If anything differs, `_step` divides the step anew, slowly. One loop with few calls of Python
functions costs 2 us a parameter, the checks of `_param_states` twice that.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from ._devices import HOST
from ._param_states import ParamState
from ._rules import Group, read_group

_strided = torch.strided


class ReusableStep(NamedTuple):
    """The arguments of a plan's `update`, and the parameters that it will change."""

    gradients: list[int]  # addresses; 0: no gradient
    numbers: list[int]  # of this step, for each parameter
    options: list[dict[str, Any]]  # of each group
    param_states: list[ParamState]  # those with gradients


def reusable_step(
    peer: type[torch.optim.Optimizer],
    groups: list[Group],
    states: dict[torch.Tensor, Any],
    param_states: list[ParamState],
    scaled: bool = False,
    device_kind: str = HOST,
) -> ReusableStep | None:
    """The step to make if all parameters are in the plan, in its order, and nothing has moved; else None."""
    gradients: list[int] = []
    numbers: list[int] = []
    all_options: list[dict[str, Any]] = []
    used: list[ParamState] = []
    first = 0
    try:
        for number, group in enumerate(groups):
            rule, options, reason = read_group(peer, group, scaled, device_kind)
            params = group["params"]
            end = first + len(params)
            if reason or end > len(param_states):
                return None
            all_options.append(options)
            for p, known in zip(params, param_states[first:end], strict=True):
                if p is not known.p or known.group != number or known.rule != rule or known.unpublished:
                    return None
                g = p.grad
                if g is None:
                    gradients.append(0)
                    numbers.append(0)
                    continue
                # the memory of the parameter, and the layout of its gradient
                shape, stride = known.shape, known.stride
                state: Any = states.get(p)
                if (
                    p.data_ptr() != known.address
                    or p.shape != shape
                    or p.stride() != stride
                    or g.shape != shape
                    or type(g) is not torch.Tensor
                    or g.layout is not _strided
                    or g.stride() != stride
                    or g.dtype is not known.dtype
                    or g.is_cpu is not known.is_cpu
                    or g.is_neg()
                    or state is not known.state
                ):
                    return None
                # the memory of the states
                for (name, tensor), address in zip(known.tensors, known.addresses, strict=True):
                    if state is None or state.get(name) is not tensor or tensor.data_ptr() != address:
                        return None
                address = g.data_ptr()
                if not address or address & 7:  # none of its own, or not aligned for every dtype
                    return None
                gradients.append(address)
                counter = known.host_counter
                numbers.append(known.next_step() if counter is None else int(counter.value) + 1)
                used.append(known)
            first = end
    except RuntimeError:  # a tensor without memory
        return None
    return ReusableStep(gradients, numbers, all_options, used) if first == len(param_states) else None
