"""Parameters on GPUs: one plan for each device, on torch's current stream; nothing waits.

There are two kinds of plan, by where torch keeps the number of steps. If it is on the host, torch's default, the host
computes the scalars of a step, and results are those of the CPU's kernels, bit for bit. If it is on the device, as with
`fused` and `capturable`, the device computes them, and reads there what a GradScaler has found.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .. import _backends
from ._devices import DEVICE
from ._fast_path import reusable_step
from ._param_states import NEW, STEPPED, ParamState, buffer_updates, match_layout, why_not_gradient
from ._rules import Group, peer_of, why_not_on_device

Job = tuple[ParamState, torch.Tensor]  # a parameter and its gradient
DeviceJob = tuple[Job, dict[str, Any]]  # with the options of its group
PlanKey = tuple[torch.device, bool]  # the GPU, and True if it counts the steps


def plan_key(known: ParamState) -> PlanKey:
    return known.p.device, known.device_counter is not None


def why_not_step(
    known: ParamState,
    g: torch.Tensor,
    group_options: tuple[str, dict[str, Any], str],
    state: Mapping[str, Any] | None,
    group: Group,
    defaults: Mapping[str, Any],
    scaled: bool,
    rounding: str = "nearest",
) -> str:
    """Reason to leave a parameter on a GPU to torch's code; "": there is none, and its states are adopted.

    group_options: of `read_group`. rounding: of states of 8 bits.
    """
    rule, options, reason = group_options
    reason = reason or known.reason or why_not_gradient(known.p, g)
    reason = reason or known.ensure_states(state, rule, group, defaults, rounding)
    return reason or why_not_on_device(known.p, options, scaled, known.device_counter is not None)


class DevicePlan:
    """The plan of the parameters on one GPU whose steps are counted in the same way."""

    def __init__(self, param_states: Sequence[ParamState], key: PlanKey, captured: list[Any], seed: int) -> None:
        kernels = _backends.get(_backends.DEVICE)
        self.is_counted = key[1]
        planned = [known for known in param_states if known.rule and known.device_kind == DEVICE]
        self.members = [known for known in planned if plan_key(known) == key]
        updates = buffer_updates(self.members, seed)
        self.gpu = kernels.gpu_of({known.address for known in self.members})
        kernels.refuse_capture(self.gpu, _stream(self.members[0].p))
        if self.is_counted:
            counters = [known.device_counter for known in self.members if known.device_counter is not None]
            self.counters = counters  # alive as long as the plan that writes to them
            numbers = [kernels.Number(counter.data_ptr(), counter.element_size()) for counter in counters]
            self.plan = kernels.CountedPlan(updates, numbers, self.gpu, captured)
        else:
            self.plan = kernels.Plan(updates, self.gpu)


def step_on_device(
    optimizer: Any,
    plans: Any,
    key: PlanKey,
    jobs: Sequence[DeviceJob],
    clip_norm: float | None,
    scaled: bool,
) -> None:
    """Update the parameters of one plan, made anew if it does not know all of their states."""
    device_plan, members = plans.devices.get(key), [known for (known, _), _ in jobs]
    # Parameters of a first step inside a backward pass come one by one: each time, a plan of all would take long.
    is_first = len(jobs) < len(plans.param_states) and all(known.index == NEW for known in members)
    if is_first or device_plan is None or any(known.index < 0 for known in members):
        captured = optimizer.__dict__.setdefault("_fastopt_captured", [])  # memory of all graphs; outlives the plan
        device_plan = DevicePlan(members if is_first else plans.param_states, key, captured, optimizer._seed)
        if not is_first:
            plans.devices[key] = device_plan
    count = len(device_plan.members)
    gradients, numbers, present = [0] * count, [0] * count, [False] * count
    options: list[dict[str, Any]] = [{} for _ in optimizer.param_groups]
    kept, originals = [], []  # copies must live until the kernels have been given to the stream
    for (known, g), own in jobs:
        copy = match_layout(known.p, g)
        kept.append(copy)
        if copy is not g:
            originals.append(g)
        i = known.index
        gradients[i], numbers[i], present[i] = copy.data_ptr(), known.next_step(), True
        options[known.group] = own
    _launch(optimizer, device_plan, gradients, numbers, present, options, members, clip_norm, scaled, originals)
    if is_first:
        for known in members:
            known.index = STEPPED


def repeat_on_device(optimizer: Any, plans: Any, scaled: bool) -> bool:
    """Make the step if it is the last one again, of one plan; else return False, with nothing changed."""
    device_plan: DevicePlan = next(iter(plans.devices.values()))
    if len(device_plan.members) != len(plans.param_states):
        return False
    peer = peer_of(type(optimizer))
    step = reusable_step(peer, optimizer.param_groups, optimizer.state, plans.param_states, scaled, DEVICE)
    if step is None or not step.param_states or (scaled and not device_plan.is_counted):
        return False
    for options in step.options:
        lr = options["lr"]
        on_device = isinstance(lr, torch.Tensor)
        if on_device and not (device_plan.is_counted and lr.device == step.param_states[0].p.device):
            return False
    clip_norm = optimizer._clip_norm
    gradients, numbers, all_options, changed = step
    _launch(optimizer, device_plan, gradients, numbers, None, all_options, changed, clip_norm, scaled)
    return True


def _launch(
    optimizer: Any,
    device_plan: DevicePlan,
    gradients: Sequence[int],
    numbers: Sequence[int],
    present: Sequence[bool] | None,
    options: Sequence[dict[str, Any]],
    changed: Sequence[ParamState],
    clip_norm: float | None,
    scaled: bool,
    originals: Sequence[torch.Tensor] = (),
) -> None:
    """Give a step of one plan to the device; `changed` are the parameters with gradients.

    originals: gradients of which kernels have copies.
    """
    kernels = _backends.get(_backends.DEVICE)
    first = changed[0].p
    device_options = [_device_options(kernels, group) for group in options]
    names = ("grad_scale", "found_inf")
    scale, found = (_device_number(getattr(optimizer, n, None) if scaled else None, first.device) for n in names)
    addresses = (0 if n is None else n.data_ptr() for n in (scale, found))
    # Gradients are left unscaled for whoever reads them next, as torch's are, unless the step was skipped.
    guard = kernels.Guard(clip_norm, *addresses, unscales=scale is not None)
    stream = _stream(first)
    if device_plan.is_counted:
        device_plan.plan.update(gradients, device_options, 1.0, guard, stream, present)
    else:
        device_plan.plan.update(gradients, numbers, device_options, 1.0, None, guard, stream)
    for known in changed:
        known.end_step(optimizer.state)
    if clip_norm is not None:
        optimizer.grad_norm = norm = torch.empty((), dtype=torch.float64, device=first.device)
        with device_plan.gpu.active():
            device_plan.gpu.copy(norm.data_ptr(), device_plan.plan.norm_address, 8, stream)
    if scale is not None and originals:
        divisor = scale if found is None else torch.where(found != 0, 1.0, scale)
        with torch.no_grad():
            torch._foreach_div_(list(originals), divisor)
    torch.autograd.graph.increment_version([known.p for known in changed])


def _device_options(kernels: Any, options: dict[str, Any]) -> dict[str, Any]:
    """The options of a group, with the address of a learning rate that is on the device."""
    lr = options.get("lr")
    if not isinstance(lr, torch.Tensor):
        return options
    return {**options, "lr": kernels.Number(lr.data_ptr(), lr.element_size())}


def _device_number(value: Any, device: torch.device) -> torch.Tensor | None:
    """A number that a GradScaler has set, as one float32 on the device."""
    if value is None:
        return None
    return torch.as_tensor(value).to(device, torch.float32, non_blocking=True).reshape(())


def _stream(p: torch.Tensor) -> int:
    """The handle of torch's current stream; in the simulator there is one, and tensors are on the CPU."""
    return int(torch.cuda.current_stream(p.device).cuda_stream) if p.is_cuda else 0
