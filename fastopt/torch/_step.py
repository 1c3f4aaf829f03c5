"""The step: our kernels update every parameter that they can, and torch's own code the others."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import is_
from typing import Any, NamedTuple, NoReturn

import torch
from torch.optim.optimizer import _global_optimizer_post_hooks as _all_post_hooks
from torch.optim.optimizer import _global_optimizer_pre_hooks as _all_pre_hooks

from .._validation import check_count, check_in_domain, check_name
from ..kernels.cpu.optim.dlpack import tensor_exchange
from ..kernels.cpu.optim.plan import Plan
from ..kernels.formulas import BOUND
from ..kernels.formulas.optimizers import OPTIONS
from ..optim._coded_state import MIN_ELEMENTS, ROUNDINGS
from ._coded_states import BITS, bits_of, has_codes, is_coded_entry, refuse_torch_step, split, with_qmaps
from ._cuda import DeviceJob, DevicePlan, Job, PlanKey, plan_key, repeat_on_device, step_on_device, why_not_step
from ._devices import DEVICE, HOST
from ._fast_path import HostStep, clipped_scale, reusable_step
from ._param_states import NEW, STEPPED, ParamState, buffer_updates, make_param_states, match_layout, why_not_gradient
from ._rules import FUSED, Group, derived_numbers, peer_of, read_group
from ._shards import refuse_shards


def is_watched(optimizer: Any) -> bool:
    """True if a hook or a profiler wants to know of a step."""
    return bool(
        optimizer._optimizer_step_pre_hooks
        or optimizer._optimizer_step_post_hooks
        or _all_pre_hooks
        or _all_post_hooks
        or getattr(torch.autograd.profiler, "_is_profiler_enabled", True)
    )


def _with_clip_norm(init: Callable[..., None]) -> Callable[..., None]:
    """The constructor of a class of torch's, with more keywords."""

    @functools.wraps(init)
    def __init__(
        self: Any, *args: Any, clip_norm: float | None = None, state_bits: int = 32, state_rounding: str = "nearest",
        seed: int = 0, **kwargs: Any,
    ) -> None:  # fmt: skip
        bits = check_in_domain(BITS, state_bits, OPTIONS[BITS].domain)
        rounding = check_name("state_rounding", state_rounding, ROUNDINGS)
        chosen = check_count("seed", seed, least=0)
        refuse_shards(clip_norm)
        init(self, *args, **kwargs)
        self.clip_norm = clip_norm
        if bits != 32 or any(BITS in group for group in self.param_groups):
            self.defaults[BITS] = bits
            for group in self.param_groups:
                group[BITS] = check_in_domain(BITS, group.get(BITS, bits), OPTIONS[BITS].domain)
        if rounding != "nearest":
            self._state_rounding, self._seed = rounding, chosen

    signature = inspect.signature(init)
    keywords = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        for name, annotation, default in KEYWORDS
    ]
    __init__.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*signature.parameters.values(), *keywords]
    )
    return __init__


# Arguments that torch's constructors lack.
KEYWORDS = (
    ("clip_norm", "float | None", None),
    ("state_bits", "int", 32),
    ("state_rounding", "str", "nearest"),
    ("seed", "int", 0),
)


class Accelerated(torch.optim.Optimizer):
    """Mixin before torch's own class in the bases of ours: the step, and the clipping inside it."""

    # Norm before clipping in the last step with `clip_norm`; on a GPU a tensor there, as from clip_grad_norm_.
    grad_norm: float | torch.Tensor | None = None
    _clip_norm: float | None = None  # of the class, for optimizers that `accelerate` has converted
    _in_backward: Any = None  # the StepInBackward that updates parameters, if one does
    _state_rounding = "nearest"  # of states of 8 bits: a key of ROUNDINGS
    _seed = 0  # of random rounding
    _has_derived = False  # True: torch keeps numbers in the states that follow from the steps done

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if Accelerated in cls.__bases__:  # not a class of the user's own
            cls.__init__ = _with_clip_norm(cls.__bases__[1].__init__)  # type: ignore[method-assign,misc]

    @property
    def clip_norm(self) -> float | None:
        """Bound of the norm of all gradients of a step together; None: no bound. In no state_dict."""
        return self._clip_norm

    @clip_norm.setter
    def clip_norm(self, value: float | None) -> None:
        if value is not None and self._in_backward is not None:
            raise ValueError(f"clip_norm must be None while steps are done in backward; got {value}")
        self._clip_norm = check_in_domain("clip_norm", value, BOUND)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters with options of their own, as torch's does."""
        if isinstance(param_group, dict) and BITS in param_group:
            check_in_domain(BITS, param_group[BITS], OPTIONS[BITS].domain)
        super().add_param_group(param_group)
        if self._in_backward is not None:
            self._in_backward.attach()

    def __getstate__(self) -> dict[str, Any]:
        names = ("_clip_norm", "_state_rounding", "_seed")
        return {**super().__getstate__(), **{name: self.__dict__[name] for name in names if name in self.__dict__}}

    def state_dict(self) -> dict[str, Any]:
        """torch's state_dict; states of 8 bits are in it as in that of bitsandbytes' Adam8bit."""
        found = super().state_dict()
        return with_qmaps(self, found) if has_codes(self) else found

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state_dict of torch's optimizer of this name, of ours, or of bitsandbytes'."""
        is_plain = isinstance(state_dict, Mapping) and "state" in state_dict and "param_groups" in state_dict
        if not is_plain or not (has_codes(self) or any(map(is_coded_entry, state_dict["state"].values()))):
            super().load_state_dict(state_dict)
            return
        plain, codes = split(self, state_dict)
        super().load_state_dict(plain)
        for p, tensors in codes:
            self.state[p].update(tensors)

    @staticmethod
    def profile_hook_step(func: Callable[..., Any]) -> Callable[..., Any]:
        """torch's wrapper of a class's `step` for hooks and profilers, called only if there are some.

        It takes 10 us, as much as the update of a thousand parameters.
        """
        around = torch.optim.Optimizer.profile_hook_step(func)

        @functools.wraps(func)
        def step(self: Any, *args: Any, **kwargs: Any) -> Any:
            return (around if is_watched(self) else func)(self, *args, **kwargs)

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
        if self._in_backward is not None:
            self._in_backward.end_step()
        if torch.compiler.is_compiling():  # torch.compile traces torch's code, and cannot trace ours
            step_as_torch(self)
        elif not self._has_derived:
            _update_all(self)
        elif _numbers_follow(derived_numbers(self)):
            _update_all(self)
            _renew(derived_numbers(self))
        else:
            step_as_torch(self)
        return loss


def update_some(optimizer: Any, params: Sequence[torch.Tensor], ids: set[int]) -> None:
    """Update only some parameters, which have gradients, as the step would: without clipping and GradScaler.

    ids: of the parameters.
    """
    if optimizer._has_derived and not _numbers_follow(derived_numbers(optimizer, params)):
        refuse_torch_step(optimizer, "numbers that NAdam keeps have changed with its betas")
        plans = _current_plans(optimizer, params)
        with torch.no_grad():
            _step_torch_params(optimizer, _by_group(optimizer, plans.of_params(params)))
        return
    plans = optimizer.__dict__.get("_fastopt_plans")
    if plans is None or not plans.repeat_some(optimizer, params, ids):
        plans = _current_plans(optimizer, params)
        with torch.no_grad():  # a backward pass may record what it does
            _update(optimizer, plans, plans.of_params(params))
    if optimizer._has_derived:
        _renew(derived_numbers(optimizer, params))


def _numbers_follow(numbers: Iterable[tuple[torch.Tensor, float]]) -> bool:
    """True if the numbers that torch keeps in states are those that follow from the steps done.

    They are not if hyper-parameters have changed between steps: such a step is torch's own.
    """
    return not any(abs(float(number) - value) > 1e-6 + 1e-3 * value for number, value in numbers)


def _renew(numbers: Iterable[tuple[torch.Tensor, float]]) -> None:
    """Write the numbers that follow from the steps done, which our kernels do not write."""
    for number, value in numbers:
        number.fill_(value)


def _update_all(optimizer: Any) -> None:
    """Update all parameters that have gradients."""
    if not _repeat_step(optimizer):
        plans = _current_plans(optimizer)
        _update(optimizer, plans, plans.param_states)


def _update(optimizer: Any, plans: _Plans, param_states: Sequence[ParamState]) -> None:
    """Update those of some parameters that have gradients, each by the code that can."""
    jobs, options, torch_params, device_jobs = _divide(optimizer, param_states)
    clip_norm = optimizer._clip_norm
    # No kernel of ours sees all gradients if several plans, or torch's code, update parameters.
    clip_separately = clip_norm is not None and (any(torch_params) or bool(jobs) + len(device_jobs) > 1)
    skipped = (bool(jobs) or clip_separately) and _has_found_inf(optimizer)
    if clip_separately and not skipped:
        _clip_all(optimizer, clip_norm)
        clip_norm = None
    if any(torch_params):
        _step_torch_params(optimizer, torch_params)
    if jobs and not skipped:
        _step_on_host(optimizer, plans, jobs, options, clip_norm)
    for key, some in device_jobs.items():
        if not skipped:
            step_on_device(optimizer, plans, key, some, clip_norm, has_grad_scaler(optimizer))


def _repeat_step(optimizer: Any) -> bool:
    """Make the step if it is the last one again; else return False, with nothing changed."""
    plans: _Plans | None = optimizer.__dict__.get("_fastopt_plans")
    if plans is None:
        return False
    if plans.host is None and len(plans.devices) == 1:
        return repeat_on_device(optimizer, plans, has_grad_scaler(optimizer))
    if plans.host is None or plans.num_planned != len(plans.param_states) or has_grad_scaler(optimizer):
        return False
    host_step = plans.host_step(optimizer)
    if host_step is not None:
        return host_step.run(optimizer)
    step = reusable_step(peer_of(type(optimizer)), optimizer.param_groups, optimizer.state, plans.param_states)
    if step is None:
        return False
    scale = 1.0
    if optimizer._clip_norm is not None:
        scale = clipped_scale(optimizer, plans.host, step.gradients, optimizer._clip_norm)
    plans.host.update(step.gradients, step.numbers, step.options, scale)
    changed = []
    for param_state in step.param_states:
        changed.append(param_state.p)
        if param_state.host_counter is not None:
            param_state.host_counter.value += 1
    torch.autograd.graph.increment_version(changed)
    return True


class _Plans:
    """Layout of many steps: a record of every parameter, a plan for the host, and one for each device."""

    def __init__(self, groups: Sequence[Group]) -> None:
        self.param_states = make_param_states(groups)
        self.params = [list(group["params"]) for group in groups]
        self.by_id = {id(known.p): known for known in self.param_states}
        self.host: Plan | None = None
        self.num_planned = 0  # parameters in the host's plan
        self._host_step: HostStep | None = None
        self.devices: dict[PlanKey, DevicePlan] = {}

    def plan_host(self, seed: int) -> Plan:
        """Make the host's plan, of all parameters there whose states are known."""
        members = [known for known in self.param_states if known.rule and known.device_kind == HOST]
        self.num_planned, self._host_step = len(members), None
        self.host = Plan(buffer_updates(members, seed), limit=torch.get_num_threads)
        return self.host

    def host_step(self, optimizer: Any) -> HostStep | None:
        """The fast path of the host's plan, if it can be used."""
        if self._host_step is None and self.host is not None and tensor_exchange() is not None:
            members = self.param_states
            if HostStep.serves(members, self.num_planned):
                self._host_step = HostStep(optimizer, self.host, members, len(self.params))
        return self._host_step if self._host_step is not None and self._host_step.usable else None

    def repeat_some(self, optimizer: Any, params: Sequence[torch.Tensor], ids: set[int]) -> bool:
        """Update some parameters by the fast path; return False, with nothing changed, if they need another."""
        host_step = self.host_step(optimizer)
        if host_step is None:
            return False
        if ids == host_step.indices.keys():
            return host_step.run(optimizer)
        indices = [host_step.indices.get(id(p), -1) for p in params]
        return -1 not in indices and host_step.run(optimizer, indices)

    def of_params(self, params: Sequence[torch.Tensor]) -> list[ParamState]:
        """The records of those of some parameters that the optimizer has."""
        return [self.by_id[id(p)] for p in params if id(p) in self.by_id]

    def has_changed(self, groups: Sequence[Group], params: Sequence[torch.Tensor] | None) -> bool:
        """True if groups have other parameters, or the memory of these parameters (None: of any) has moved."""
        if len(groups) != len(self.params):
            return True
        for known, group in zip(self.params, groups, strict=True):
            if len(known) != len(group["params"]) or not all(map(is_, known, group["params"])):
                return True
        param_states = self.param_states if params is None else self.of_params(params)
        return any(known.has_moved() for known in param_states)


def _current_plans(optimizer: Any, params: Sequence[torch.Tensor] | None = None) -> _Plans:
    """The plans of an optimizer; made anew if its parameters, or the memory of these (None: of any), have changed."""
    plans: _Plans | None = optimizer.__dict__.get("_fastopt_plans")
    if plans is None or plans.has_changed(optimizer.param_groups, params):
        plans = optimizer._fastopt_plans = _Plans(optimizer.param_groups)
    return plans


class _Division(NamedTuple):
    """The parameters with gradients, by the code that updates them."""

    jobs: list[Job]  # our kernels on the host
    options: list[dict[str, Any]]  # of each group, for these
    torch_params: list[list[torch.Tensor]]  # torch's own code; of each group
    device_jobs: dict[PlanKey, list[DeviceJob]]  # our kernels on GPUs


def _refuse_codes(reason: str) -> NoReturn:
    raise ValueError(f"state_bits must be 32 for a parameter that torch's code updates: {reason}")


def _divide(optimizer: Any, param_states: Iterable[ParamState]) -> _Division:
    peer, scaled = peer_of(type(optimizer)), has_grad_scaler(optimizer)
    states, defaults, groups = optimizer.state, optimizer.defaults, optimizer.param_groups
    jobs: list[Job] = []
    all_options: list[dict[str, Any]] = [{} for _ in groups]
    torch_params: list[list[torch.Tensor]] = [[] for _ in groups]
    device_jobs: dict[PlanKey, list[DeviceJob]] = {}
    read: dict[tuple[int, str], Any] = {}  # groups, by number and kind of device, when the first parameter comes
    for known in param_states:
        p, number = known.p, known.group
        g, group = p.grad, groups[number]
        if g is None:
            continue
        kind = DEVICE if known.device_kind == DEVICE else HOST
        if (number, kind) not in read:
            read[number, kind] = read_group(peer, group, scaled, kind)
        group_options = rule, options, reason = read[number, kind]
        coded = bits_of(group) == 8 and p.numel() >= MIN_ELEMENTS
        if coded and (why := reason or known.reason or why_not_gradient(p, g)):
            _refuse_codes(why)
        if kind == DEVICE:
            rounding = optimizer._state_rounding
            if why := why_not_step(known, g, group_options, states.get(p), group, defaults, scaled, rounding):
                if coded:
                    _refuse_codes(why)
                torch_params[number].append(p)
            else:
                device_jobs.setdefault(plan_key(known), []).append(((known, g), options))
            continue
        reason = reason or known.reason or why_not_gradient(p, g)
        if reason or known.ensure_states(states.get(p), rule, group, defaults, optimizer._state_rounding):
            torch_params[number].append(p)
        else:
            jobs.append((known, g))
            all_options[number] = options
    return _Division(jobs, all_options, torch_params, device_jobs)


def _by_group(optimizer: Any, param_states: Iterable[ParamState]) -> list[list[torch.Tensor]]:
    """Parameters by the number of their group."""
    found: list[list[torch.Tensor]] = [[] for _ in optimizer.param_groups]
    for known in param_states:
        found[known.group].append(known.p)
    return found


def _clip_all(optimizer: Any, clip_norm: float) -> None:
    """Clip the gradients of all parameters in place, by torch's own code, because it updates some of them."""
    scale = getattr(optimizer, "grad_scale", None)  # the gradients are too large by this factor
    factor = 1.0 if scale is None else float(scale)
    params = [p for group in optimizer.param_groups for p in group["params"]]
    optimizer.grad_norm = float(torch.nn.utils.clip_grad_norm_(params, clip_norm * factor)) / factor


def _step_on_host(
    optimizer: Any, plans: _Plans, jobs: list[Job], options: list[dict[str, Any]], clip_norm: float | None
) -> None:
    members = [known for known, _ in jobs]
    # Parameters of a first step inside a backward pass come one by one: each time, a plan of all would take long.
    is_first = len(jobs) < len(plans.param_states) and all(known.index == NEW for known in members)
    if is_first:
        updates = buffer_updates(members, optimizer._seed)
        plan, count = Plan(updates, limit=torch.get_num_threads), len(members)
    elif plans.host is None or any(known.index < 0 for known in members):
        plan, count = plans.plan_host(optimizer._seed), plans.num_planned
    else:
        plan, count = plans.host, plans.num_planned
    gradients, numbers = [0] * count, [0] * count
    kept = []  # copies must live until the kernels are done
    for known, gradient in jobs:
        g = match_layout(known.p, gradient)
        kept.append(g)
        gradients[known.index], numbers[known.index] = g.data_ptr(), known.next_step()
    grad_scale = getattr(optimizer, "grad_scale", None)
    scale = 1.0 if grad_scale is None else 1.0 / float(grad_scale)
    if clip_norm is not None:
        scale = clipped_scale(optimizer, plan, gradients, clip_norm, scale)
    plan.update(gradients, numbers, options, scale)
    for known in members:
        known.end_step(optimizer.state)
        known.index = STEPPED if is_first else known.index
    if grad_scale is not None:
        # Gradients are left unscaled, as after torch's fused steps. Not before the update: in float16 small ones would
        # be lost.
        with torch.no_grad():
            torch._foreach_div_([g for _, g in jobs], float(grad_scale))
    # For autograd, which raises if a value that it has kept was overwritten, as after torch's own updates.
    torch.autograd.graph.increment_version([known.p for known, _ in jobs])


def has_grad_scaler(optimizer: Any) -> bool:
    """True if a GradScaler has set `grad_scale` or `found_inf` on the optimizer, which it does for fused=True."""
    if getattr(optimizer, "grad_scale", None) is None and getattr(optimizer, "found_inf", None) is None:
        return False
    return peer_of(type(optimizer)) in FUSED


def _has_found_inf(optimizer: Any) -> bool:
    found = getattr(optimizer, "found_inf", None)
    return found is not None and peer_of(type(optimizer)) in FUSED and bool(found)


def step_as_torch(optimizer: Any) -> None:
    """The whole step by torch's own code."""
    refuse_torch_step(optimizer, "torch.compile traces it, or numbers that NAdam keeps have changed with its betas")
    if optimizer._clip_norm is not None:
        _clip_all(optimizer, optimizer._clip_norm)
    torch_step(optimizer)


def torch_step(optimizer: Any) -> None:
    """The step of torch's own class, without the hooks that are called around ours."""
    step: Any = peer_of(type(optimizer)).step
    while getattr(step, "hooked", False):
        step = step.__wrapped__
    step(optimizer)


def _step_torch_params(optimizer: Any, torch_params: list[list[torch.Tensor]]) -> None:
    """Let torch's own code update some parameters: on a stand-in with the same states, whose groups have only those."""
    stand_in = object.__new__(type(optimizer))
    stand_in.__dict__.update(optimizer.__dict__)
    groups = zip(optimizer.param_groups, torch_params, strict=True)
    stand_in.param_groups = [{**group, "params": params} for group, params in groups if params]
    torch_step(stand_in)
