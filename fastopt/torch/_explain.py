"""Which code updates each parameter, and why."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from . import _devices
from ._devices import DEVICE, HOST
from ._param_states import make_param_states, why_not_gradient, why_not_states
from ._rules import ROWS, counts_on_device, peer_of, read_group, why_not_on_device
from ._shards import local_optimizer
from ._step import Accelerated, has_grad_scaler


@dataclass(frozen=True)
class Placement:
    """The code that updates a parameter.

    Attributes:
        group, index: of the parameter, as in `optimizer.param_groups[group]["params"][index]`.
        name: the parameter's, if the optimizer has named parameters; else "".
        shape, dtype: of the parameter.
        where: "fastopt" (our kernels) or "torch" (torch's own code).
        reason: why it is torch's own code; "" for "fastopt".
    """

    group: int
    index: int
    name: str
    shape: tuple[int, ...]
    dtype: str
    where: str
    reason: str

    def __str__(self) -> str:
        shape = "x".join(map(str, self.shape)) or "()"
        name = f" {self.name}" if self.name else ""
        why = f": {self.reason}" if self.reason else ""
        return f"group {self.group}, parameter {self.index}{name} ({shape} {self.dtype}): {self.where}{why}"


class Explanation(list[Placement]):
    """The placement of every parameter; as a string, a line for each after a summary."""

    def __str__(self) -> str:
        ours = sum(placement.where == "fastopt" for placement in self)
        head = f"{ours} of {len(self)} parameters are updated by fastopt, {len(self) - ours} by torch"
        return "\n".join([head, *map(str, self)])


def explain(optimizer: torch.optim.Optimizer) -> Explanation:
    """Tell which parameters the next step updates by our kernels, and which by torch's own code, and why.

    The answer takes the present gradients into account. Nothing is changed.

    Args:
        optimizer: one of this module's, or any other of torch's, all of whose parameters are torch's. Of a
            ZeroRedundancyOptimizer, the one inside of it, which updates this rank's share.

    Returns:
        A list with a record for each parameter, in the order of the groups; print it to read it.

    Example:
        >>> import torch, fastopt.torch
        >>> w, z = torch.zeros(2, 3, requires_grad=True), torch.zeros(4, dtype=torch.complex64, requires_grad=True)
        >>> print(fastopt.torch.explain(fastopt.torch.Adam([w, z])))
        1 of 2 parameters are updated by fastopt, 1 by torch
        group 0, parameter 0 (2x3 float32): fastopt
        group 0, parameter 1 (4 complex64): torch: dtype complex64
    """
    optimizer = local_optimizer(optimizer)
    param_states = iter(make_param_states(optimizer.param_groups))
    ours = isinstance(optimizer, Accelerated)
    result = Explanation()
    for number, group in enumerate(optimizer.param_groups):
        if ours:
            peer, scaled = peer_of(type(optimizer)), has_grad_scaler(optimizer)
            options_on = {kind: read_group(peer, group, scaled, kind) for kind in (HOST, DEVICE)}
        else:
            options_on = dict.fromkeys((HOST, DEVICE), ("", {}, _stranger(type(optimizer))))
        names = group.get("param_names") or [""] * len(group["params"])
        for index, (p, name) in enumerate(zip(group["params"], names, strict=True)):
            on_device, state = _devices.device_kind(p) == DEVICE, optimizer.state.get(p)
            rule, options, group_reason = options_on[DEVICE if on_device else HOST]
            reason = group_reason or next(param_states).reason
            if not reason and p.grad is not None:
                reason = why_not_gradient(p, p.grad)
            reason = reason or why_not_states(p, state, rule)
            if not reason and on_device:
                reason = why_not_on_device(p, options, scaled, counts_on_device(p, state, rule, group))
            where, dtype = "torch" if reason else "fastopt", str(p.dtype).removeprefix("torch.")
            result.append(Placement(number, index, name, tuple(p.shape), dtype, where, reason))
    return result


def _stranger(cls: type) -> str:
    known = " (fastopt.torch.accelerate would change that)" if cls in ROWS else ""
    return f"the optimizer is {cls.__module__}.{cls.__qualname__}{known}"
