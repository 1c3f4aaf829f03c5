"""Parameters on GPUs: a plan for each device, on torch's current stream; nothing waits.

Where the number of steps is decides the plan. On the host, as torch keeps it by default, the host makes the scalars of
a step, and the numbers are those of the CPU's kernels, bit for bit. On the device, as with `fused` and `capturable`,
the device does, and a GradScaler's verdict is read there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .. import _backends
from ._fast_path import same_again
from ._param_states import Slot, lay_out, targets_of, why_not_gradient
from ._reach import DEVICE
from ._rules import Group, peer_of, why_not_there

Job = tuple[Slot, torch.Tensor]
Key = tuple[torch.device, bool]  # of a plan: which GPU, and whether it counts steps


def key_of(slot: Slot) -> Key:
    return slot.p.device, slot.count is not None


def why_not_step(
    slot: Slot,
    g: torch.Tensor,
    read: tuple[str, dict[str, Any], str],
    state: Mapping[str, Any] | None,
    group: Group,
    defaults: Mapping[str, Any],
    scaled: bool,
) -> str:
    """Why torch's code is needed for a parameter on a GPU; "": it is not, and the slot has the states."""
    rule, options, whole = read
    reason = whole or slot.reason or why_not_gradient(slot.p, g) or slot.use(state, rule, group, defaults)
    return reason or why_not_there(slot.p, options, scaled, slot.count is not None)


class There:
    """The plan of the parameters on one GPU whose steps are counted in one way."""

    def __init__(self, slots: Sequence[Slot], key: Key, captured: list[Any]) -> None:
        kernels = _backends.get(_backends.DEVICE)
        self.counted = key[1]
        self.members = [slot for slot in slots if slot.rule and slot.home == DEVICE and key_of(slot) == key]
        targets = targets_of(self.members)
        self.gpu = kernels.gpu_of({slot.address for slot in self.members})
        kernels.refuse_capture(self.gpu, _stream(self.members[0].p))
        if self.counted:
            counts = [slot.count for slot in self.members if slot.count is not None]
            self.steps = counts  # alive as long as the plan that writes to them
            numbers = [kernels.Number(count.data_ptr(), count.element_size()) for count in counts]
            self.plan = kernels.CountedPlan(targets, numbers, self.gpu, captured)
        else:
            self.plan = kernels.Plan(targets, self.gpu)


def step_there(
    optimizer: Any,
    work: Any,
    key: Key,
    some: Sequence[tuple[Job, dict[str, Any]]],
    clip_norm: float | None,
    scaled: bool,
) -> None:
    """Update the parameters of one plan, made anew where it does not know all of their states."""
    there = work.there.get(key)
    if there is None or any(slot.place < 0 for (slot, _), _ in some):
        captured = optimizer.__dict__.setdefault("_fastopt_captured", [])  # of all graphs, whatever becomes of the plan
        there = work.there[key] = There(work.slots, key, captured)
    count = len(there.members)
    gradients, steps, present = [0] * count, [0] * count, [False] * count
    options: list[dict[str, Any]] = [{} for _ in optimizer.param_groups]
    kept, originals = [], []  # copies live until the kernels have been given to the stream
    for (slot, g), own in some:
        laid = lay_out(slot.p, g)
        kept.append(laid)
        if laid is not g:
            originals.append(g)
        gradients[slot.place], steps[slot.place], present[slot.place] = laid.data_ptr(), slot.steps(), True
        options[slot.group] = own
    slots = [slot for (slot, _), _ in some]
    _give(optimizer, there, gradients, steps, present, options, slots, clip_norm, scaled, originals)


def repeated_there(optimizer: Any, work: Any, scaled: bool) -> bool:
    """Make the step if it is the last one again, of one plan; else say that it is not, and change nothing."""
    there: There = next(iter(work.there.values()))
    if len(there.members) != len(work.slots):
        return False
    again = same_again(peer_of(type(optimizer)), optimizer.param_groups, optimizer.state, work.slots, scaled, DEVICE)
    if again is None or not again.slots or (scaled and not there.counted):
        return False
    for options in again.options:
        lr = options["lr"]
        if isinstance(lr, torch.Tensor) and not (there.counted and lr.device == again.slots[0].p.device):
            return False
    _give(
        optimizer, there, again.gradients, again.steps, None, again.options, again.slots, optimizer._clip_norm, scaled
    )
    return True


def _give(
    optimizer: Any,
    there: There,
    gradients: Sequence[int],
    steps: Sequence[int],
    present: Sequence[bool] | None,
    options: Sequence[dict[str, Any]],
    slots: Sequence[Slot],
    clip_norm: float | None,
    scaled: bool,
    originals: Sequence[torch.Tensor] = (),
) -> None:
    """A step of one plan to the device, with all that belongs to it; `slots` are those with gradients.

    originals: gradients that kernels have copies of.
    """
    kernels = _backends.get(_backends.DEVICE)
    first = slots[0].p
    own = [_on_device(kernels, group) for group in options]
    left = [getattr(optimizer, name, None) if scaled else None for name in ("grad_scale", "found_inf")]
    scale, found = (_number(value, first.device) for value in left)
    places = (0 if n is None else n.data_ptr() for n in (scale, found))
    # Gradients are left unscaled for whoever looks at them next, as torch's do, unless the step was skipped.
    guard = kernels.Guard(clip_norm, *places, unscales=scale is not None)
    stream = _stream(first)
    if there.counted:
        there.plan.update(gradients, own, 1.0, guard, stream, present)
    else:
        there.plan.update(gradients, steps, own, 1.0, None, guard, stream)
    for slot in slots:
        slot.publish(optimizer.state)
    if clip_norm is not None:
        optimizer.grad_norm = norm = torch.empty((), dtype=torch.float64, device=first.device)
        with there.gpu.active():
            there.gpu.copy(norm.data_ptr(), there.plan.norm_address, 8, stream)
    if scale is not None and originals:
        divisor = scale if found is None else torch.where(found != 0, 1.0, scale)
        with torch.no_grad():
            torch._foreach_div_(list(originals), divisor)
    torch.autograd.graph.increment_version([slot.p for slot in slots])


def _on_device(kernels: Any, options: dict[str, Any]) -> dict[str, Any]:
    """The options of a group, with the place of a learning rate that is on the device."""
    lr = options.get("lr")
    if not isinstance(lr, torch.Tensor):
        return options
    return {**options, "lr": kernels.Number(lr.data_ptr(), lr.element_size())}


def _number(value: Any, device: torch.device) -> torch.Tensor | None:
    """What a GradScaler leaves, as one float32 on the device."""
    if value is None:
        return None
    return torch.as_tensor(value).to(device, torch.float32, non_blocking=True).reshape(())


def _stream(p: torch.Tensor) -> int:
    """The handle of torch's current stream; in the simulator there is one, and tensors are on the CPU."""
    return int(torch.cuda.current_stream(p.device).cuda_stream) if p.is_cuda else 0
