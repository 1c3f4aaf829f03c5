"""The step: whatever the kernels can update is theirs, and torch's own code does the rest."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch.optim.optimizer import _global_optimizer_post_hooks as _all_post_hooks
from torch.optim.optimizer import _global_optimizer_pre_hooks as _all_pre_hooks

from .._validation import check_in_domain
from ..kernels.cpu.optim.plan import Plan
from ..kernels.formulas import BOUND, clip_factor
from ._cuda import Job, Key, There, key_of, repeated_there, step_there, why_not_step
from ._fast_path import same_again
from ._param_states import Slot, lay_out, make_slots, targets_of, why_not_gradient
from ._reach import DEVICE, HOST
from ._rules import FUSED, peer_of, read_group


def watched(optimizer: Any) -> bool:
    """Whether somebody wants to know of a step: a hook, or a profiler."""
    return bool(
        optimizer._optimizer_step_pre_hooks
        or optimizer._optimizer_step_post_hooks
        or _all_pre_hooks
        or _all_post_hooks
        or getattr(torch.autograd.profiler, "_is_profiler_enabled", True)
    )


def _with_clip_norm(init: Callable[..., None]) -> Callable[..., None]:
    """The constructor of a class of torch's, with one more keyword."""

    @functools.wraps(init)
    def __init__(self: Any, *args: Any, clip_norm: float | None = None, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        self.clip_norm = clip_norm

    signature = inspect.signature(init)
    keyword = inspect.Parameter("clip_norm", inspect.Parameter.KEYWORD_ONLY, default=None, annotation="float | None")
    __init__.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*signature.parameters.values(), keyword]
    )
    return __init__


class Accelerated(torch.optim.Optimizer):
    """What comes before torch's own class in the bases of ours: its step, and the clipping that the step can do."""

    # Of the last step with `clip_norm`, before clipping; on a GPU a tensor there, as from clip_grad_norm_.
    grad_norm: float | torch.Tensor | None = None
    _clip_norm: float | None = None  # of the class, for those that `accelerate` has turned into ours

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if Accelerated in cls.__bases__:  # not a class of the user's own
            cls.__init__ = _with_clip_norm(cls.__bases__[1].__init__)  # type: ignore[method-assign,misc]

    @property
    def clip_norm(self) -> float | None:
        """The largest norm that all gradients of a step together may have; None: any. In no state_dict."""
        return self._clip_norm

    @clip_norm.setter
    def clip_norm(self, value: float | None) -> None:
        self._clip_norm = check_in_domain("clip_norm", value, BOUND)

    def __getstate__(self) -> dict[str, Any]:
        own = {} if self._clip_norm is None else {"_clip_norm": self._clip_norm}
        return {**super().__getstate__(), **own}

    @staticmethod
    def profile_hook_step(func: Callable[..., Any]) -> Callable[..., Any]:
        """What torch puts around the `step` of a class, for hooks and profilers, only where there are some.

        It takes 10 us, as much as the update of a thousand parameters.
        """
        around = torch.optim.Optimizer.profile_hook_step(func)

        @functools.wraps(func)
        def step(self: Any, *args: Any, **kwargs: Any) -> Any:
            return (around if watched(self) else func)(self, *args, **kwargs)

        return step

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
        if torch.compiler.is_compiling():  # which can look into torch's code, not into ours
            if self._clip_norm is not None:
                _clip_all(self, self._clip_norm)
            torch_step(self)
            return loss
        if _repeated(self):
            return loss
        work = _work(self)
        jobs, options, left, there = _divide(self, work.slots)
        clip_norm = self._clip_norm
        apart = clip_norm is not None and (any(left) or bool(jobs) + len(there) > 1)  # no kernel of ours sees them all
        skipped = (bool(jobs) or apart) and _skipped(self)
        if apart and not skipped:
            _clip_all(self, clip_norm)  # type: ignore[arg-type]
            clip_norm = None
        if any(left):
            _step_rest(self, left)
        if jobs and not skipped:
            _run(self, work, jobs, options, clip_norm)
        for key, some in there.items():
            if not skipped:
                step_there(self, work, key, some, clip_norm, scaling(self))
        return loss


def _repeated(optimizer: Any) -> bool:
    """Make the step if it is the last one again; else say that it is not, and change nothing."""
    work: _Work | None = optimizer.__dict__.get("_fastopt_work")
    if work is None:
        return False
    if work.plan is None and len(work.there) == 1:
        return repeated_there(optimizer, work, scaling(optimizer))
    if work.plan is None or work.count != len(work.slots) or scaling(optimizer):
        return False
    again = same_again(peer_of(type(optimizer)), optimizer.param_groups, optimizer.state, work.slots)
    if again is None:
        return False
    scale = _clipping(optimizer, work.plan, again.gradients, optimizer._clip_norm)
    work.plan.update(again.gradients, again.steps, again.options, scale)
    for slot in again.slots:
        if slot.counter is not None:
            slot.counter.value += 1
    torch.autograd.graph.increment_version([slot.p for slot in again.slots])
    return True


class _Work:
    """What is laid out once for many steps: a slot for every parameter, and the plan of those that have states."""

    def __init__(self, slots: list[Slot]) -> None:
        self.slots = slots
        self.count = 0  # of slots in the plan
        self.plan: Plan | None = None
        self.there: dict[Key, There] = {}

    def planned(self) -> Plan:
        """The plan of all slots whose states are known."""
        members = [slot for slot in self.slots if slot.rule and slot.home == HOST]
        self.count = len(members)
        self.plan = Plan(targets_of(members), limit=torch.get_num_threads)
        return self.plan


def _work(optimizer: Any) -> _Work:
    """What is laid out for an optimizer; made anew where its parameters or their memory are not as they were."""
    work: _Work | None = optimizer.__dict__.get("_fastopt_work")
    if work is None or _differs(work.slots, optimizer.param_groups):
        work = optimizer._fastopt_work = _Work(make_slots(optimizer.param_groups))
    return work


def _differs(slots: list[Slot], groups: list[dict[str, Any]]) -> bool:
    at = 0
    for number, group in enumerate(groups):
        params = group["params"]
        if len(slots) < at + len(params):
            return True
        for slot, p in zip(slots[at : at + len(params)], params, strict=True):
            if slot.p is not p or slot.group != number or slot.moved():
                return True
        at += len(params)
    return at != len(slots)


class _Division(NamedTuple):
    """The parameters with gradients, by who is to update them."""

    jobs: list[Job]  # on the host
    options: list[dict[str, Any]]  # of each group, for these
    left: list[list[torch.Tensor]]  # to torch, of each group
    there: dict[Key, list[tuple[Job, dict[str, Any]]]]  # on GPUs


def _divide(optimizer: Any, slots: list[Slot]) -> _Division:
    peer, scaled = peer_of(type(optimizer)), scaling(optimizer)
    states, defaults = optimizer.state, optimizer.defaults
    all_slots = iter(slots)
    jobs: list[Job] = []
    all_options, left = [], []
    there: dict[Key, list[tuple[Job, dict[str, Any]]]] = {}
    for group in optimizer.param_groups:
        rule, options, whole = read_group(peer, group, scaled)
        on_gpu: Any = None
        rest = []
        for p in group["params"]:
            slot = next(all_slots)
            g = p.grad
            if g is None:
                continue
            if slot.home == DEVICE:
                on_gpu = on_gpu or read_group(peer, group, scaled, DEVICE)
                if why_not_step(slot, g, on_gpu, states.get(p), group, defaults, scaled):
                    rest.append(p)
                else:
                    there.setdefault(key_of(slot), []).append(((slot, g), on_gpu[1]))
                continue
            if whole or slot.reason or why_not_gradient(p, g) or slot.use(states.get(p), rule, group, defaults):
                rest.append(p)
            else:
                jobs.append((slot, g))
        all_options.append(options)
        left.append(rest)
    return _Division(jobs, all_options, left, there)


def _clipping(
    optimizer: Any, plan: Plan, gradients: Sequence[int], clip_norm: float | None, scale: float = 1.0
) -> float:
    """What gradients are to be multiplied by: `scale`, and the factor that brings their norm down to `clip_norm`."""
    if clip_norm is None:
        return scale
    optimizer.grad_norm = norm = scale * plan.norm(gradients)
    return scale * clip_factor(clip_norm, norm)


def _clip_all(optimizer: Any, clip_norm: float) -> None:
    """Clip the gradients of all parameters in place, by torch's own code, because it updates some of them."""
    scale = getattr(optimizer, "grad_scale", None)  # by which the gradients are still too large
    factor = 1.0 if scale is None else float(scale)
    params = [p for group in optimizer.param_groups for p in group["params"]]
    optimizer.grad_norm = float(torch.nn.utils.clip_grad_norm_(params, clip_norm * factor)) / factor


def _run(optimizer: Any, work: _Work, jobs: list[Job], options: list[dict[str, Any]], clip_norm: float | None) -> None:
    plan = work.plan
    if plan is None or any(slot.place < 0 for slot, _ in jobs):
        plan = work.planned()
    gradients, steps = [0] * work.count, [0] * work.count
    kept = []  # copies live until the kernels are done
    for slot, gradient in jobs:
        g = lay_out(slot.p, gradient)
        kept.append(g)
        gradients[slot.place], steps[slot.place] = g.data_ptr(), slot.steps()
    grad_scale = getattr(optimizer, "grad_scale", None)
    unscale = 1.0 if grad_scale is None else 1.0 / float(grad_scale)
    plan.update(gradients, steps, options, _clipping(optimizer, plan, gradients, clip_norm, unscale))
    for slot, _ in jobs:
        slot.publish(optimizer.state)
    if grad_scale is not None:
        # As torch's fused steps do: who looks at the gradients afterwards finds them unscaled. Not before the update:
        # in float16 small ones would be lost.
        with torch.no_grad():
            torch._foreach_div_([g for _, g in jobs], float(grad_scale))
    # Autograd finds out that a value it has kept was overwritten, as with torch's own updates.
    torch.autograd.graph.increment_version([slot.p for slot, _ in jobs])


def scaling(optimizer: Any) -> bool:
    """Whether a GradScaler has left word; it does for optimizers that were made with fused=True."""
    found = getattr(optimizer, "grad_scale", None), getattr(optimizer, "found_inf", None)
    return peer_of(type(optimizer)) in FUSED and any(value is not None for value in found)


def _skipped(optimizer: Any) -> bool:
    found = getattr(optimizer, "found_inf", None)
    return found is not None and peer_of(type(optimizer)) in FUSED and bool(found)


def torch_step(optimizer: Any) -> None:
    """The step of torch's own class, without the hooks that are called around ours."""
    step: Any = peer_of(type(optimizer)).step
    while getattr(step, "hooked", False):
        step = step.__wrapped__
    step(optimizer)


def _step_rest(optimizer: Any, left: list[list[torch.Tensor]]) -> None:
    """Let torch's own code update some parameters: on a stand-in with the same states, whose groups have only those."""
    stand_in = object.__new__(type(optimizer))
    stand_in.__dict__.update(optimizer.__dict__)
    groups = zip(optimizer.param_groups, left, strict=True)
    stand_in.param_groups = [{**group, "params": params} for group, params in groups if params]
    torch_step(stand_in)
