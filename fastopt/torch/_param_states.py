"""torch's parameters with their states, and the checks that decide if our kernels can update them."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..kernels.formulas import OPTIMIZERS, dropout_stream
from ..kernels.spec import BLOCKWISE_RANDOM, WHOLE, BufferUpdate
from . import _devices
from ._coded_states import bits_of, coded_names, convert, new_coded_states, storage_of, why_not_coded
from ._devices import DEVICE, HOST, why_no_cuda
from ._rules import Group, counts_steps, names_of, new_states

PLAIN = (torch.Tensor, torch.nn.Parameter)  # subclasses may mean anything by the same operations
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_COUNTERS: dict[torch.dtype, Any] = {torch.float32: ctypes.c_float, torch.float64: ctypes.c_double}
NEW, STEPPED = -1, -2  # states in no plan: in their first step, and after it
SHARED = "shares memory with another parameter"


class ParamState:
    """One parameter with its states: where it lies, and why torch's code must update it ("": it need not)."""

    __slots__ = (
        "address", "addresses", "bits", "device_counter", "device_kind", "dtype", "group", "host_counter", "index",
        "is_cpu", "number", "p", "reason", "rule", "shape", "state", "storage", "stride", "tensors", "unpublished",
    )  # fmt: skip

    unpublished: dict[str, torch.Tensor]  # new states, which the optimizer gets when a step has used them
    state: Any  # the optimizer's own record of them
    tensors: tuple[tuple[str, torch.Tensor], ...]  # names and tensors; `step`, if there is one, is the last
    addresses: tuple[int, ...]  # of the tensors
    host_counter: Any  # torch's number of steps so far, in place; None: there is none on the host
    device_counter: torch.Tensor | None  # the number of steps so far, on a GPU

    def __init__(self, p: torch.Tensor, group: int, number: int = 0) -> None:
        self.p, self.group, self.number = p, group, number  # number: among all of the optimizer's parameters
        self.reason = why_not_parameter(p)
        self.device_kind = _devices.device_kind(p)
        self.is_cpu = p.is_cpu
        self.address = _address(p)
        self.shape, self.dtype = p.shape, p.dtype
        self.stride = p.stride() if p.layout == torch.strided else ()
        self.rule = ""  # of the states; "": none are known yet
        self.storage, self.bits = WHOLE, 32  # of the states, and of the group's when they became known
        self.index = NEW  # in the plan of the step; less than 0: the plan does not know these states
        self.unpublished = {}
        self.state = None
        self.tensors = self.addresses = ()

    def has_moved(self) -> bool:
        """True if the parameter's memory is no longer what it was, as after `p.data = ...`."""
        p = self.p
        if p.layout != torch.strided:
            return bool(self.stride)
        return (
            _address(p) != self.address
            or p.shape != self.shape
            or p.stride() != self.stride
            or p.dtype is not self.dtype
        )

    def extent(self) -> tuple[int, int] | None:
        """First address and the one past the last, if the parameter has memory that kernels reach."""
        p = self.p
        if not self.address or not self.device_kind or not p.numel():
            return None
        last = sum((n - 1) * s for n, s in zip(self.shape, self.stride, strict=True))
        return self.address, self.address + (last + 1) * p.element_size()

    def ensure_states(
        self, state: Any, rule: str, group: Group, defaults: Mapping[str, Any], rounding: str = "nearest"
    ) -> str:
        """Adopt the states that the optimizer has for this parameter now; else return why torch's code is needed.

        If there are none they are made, and `end_step` hands them to the optimizer once a step has used them. States
        that are codes, and should be numbers, or the other way round, are converted.
        """
        storage = storage_of(self.p, rule, group, rounding)
        if (self.rule, self.storage) == (rule, storage) and self._is_current(state):
            self.bits = bits_of(group)
            return ""
        self.rule, self.index = "", NEW
        if state:
            convert(self.p, state, rule, storage)
        coded, present = storage != WHOLE, _has_states(state, rule, storage)
        if present and coded:
            reason = why_not_coded(self.p, state, rule) or _why_not_step(self.p, state, rule)
        else:
            reason = why_not_states(self.p, state, rule)
        if reason:
            return reason
        self.unpublished = {} if present else new_states(
            self.p, rule, group, defaults, new_coded_states if coded else None
        )
        found: Mapping[str, Any] = self.unpublished or state or {}
        self.state, self.storage, self.bits = state, storage, bits_of(group)
        self.tensors = tuple((name, found[name]) for name in (coded_names(rule) if coded else names_of(rule)))
        self.addresses = tuple(tensor.data_ptr() for _, tensor in self.tensors)
        self.host_counter = self.device_counter = None
        if counts_steps(rule):
            if _devices.device_kind(found["step"]) == HOST:
                self.host_counter = _COUNTERS[found["step"].dtype].from_address(self.addresses[-1])
            else:
                self.device_counter = found["step"]
        elif self.device_kind == DEVICE:
            steps_done = 0.0 if self.unpublished else 1.0
            self.device_counter = torch.full((), steps_done, dtype=torch.float32, device=self.p.device)
        self.rule = rule
        return ""

    def _is_current(self, state: Any) -> bool:
        if self.unpublished or state is not self.state:  # unpublished: the step that made them did not end
            return False
        for (name, tensor), address in zip(self.tensors, self.addresses, strict=True):
            if state is None or state.get(name) is not tensor or tensor.data_ptr() != address:
                return False
        return True

    @property
    def num_states(self) -> int:
        """Tensors of the states that kernels take: two of each that is codes."""
        return len(OPTIMIZERS[self.rule].states) * (1 if self.storage == WHOLE else 2)

    def next_step(self) -> int:
        """The number of the next step. With momentum and no count: 1 for the first, then 2."""
        if self.host_counter is not None:
            return int(self.host_counter.value) + 1
        return 1 if self.unpublished else 2

    def end_step(self, all_states: dict[torch.Tensor, Any]) -> None:
        """Count a step, and hand new states to the optimizer."""
        if self.host_counter is not None:
            self.host_counter.value += 1
        if self.unpublished:
            self.state = state = all_states[self.p]
            state.update(self.unpublished)
            self.unpublished = {}


def make_param_states(groups: Sequence[Group]) -> list[ParamState]:
    """A record of every parameter of an optimizer; those that share memory are left to torch's code."""
    params = [(p, number) for number, group in enumerate(groups) for p in group["params"]]
    made = [ParamState(p, group, number) for number, (p, group) in enumerate(params)]
    spans = [(extent, known) for known in made if (extent := known.extent())]
    spans.sort(key=lambda item: item[0])
    for i, ((_, end), known) in enumerate(spans):
        for (start, _), other in spans[i + 1 :]:
            if start >= end:
                break
            known.reason, other.reason = known.reason or SHARED, other.reason or SHARED
    return made


def buffer_updates(members: Sequence[ParamState], seed: int = 0) -> list[BufferUpdate]:
    """Rows of the plan of these parameters, each of which notes its index there; seed: of random rounding of states."""
    for index, known in enumerate(members):
        known.index = index
    return [
        BufferUpdate(
            known.rule, str(known.dtype).removeprefix("torch."), known.p.numel(), known.address,
            known.addresses[: known.num_states], known.group,
            stream=dropout_stream(seed, known.number) if known.storage == BLOCKWISE_RANDOM else 0,
            storage=known.storage,
        )
        for known in members
    ]  # fmt: skip


def why_not_parameter(p: torch.Tensor) -> str:
    """Reason that kernels cannot update a parameter, whatever its gradient; "": they can."""
    if type(p) not in PLAIN:
        return f"a subclass of Tensor: {type(p).__name__}"
    if p.layout != torch.strided:
        return f"layout {_name(p.layout)}"
    device_kind = _devices.device_kind(p)
    if not device_kind:
        return f"on {p.device}"
    if device_kind == DEVICE and why_no_cuda():
        return f"on {p.device}: {why_no_cuda()}"
    if p.dtype not in DTYPES:
        return f"dtype {_name(p.dtype)}"
    if p.is_neg() or p.is_inference() or not _is_aligned(p):
        return "a tensor that is not plainly its memory"
    return "" if _dense(p.shape, p.stride()) else f"memory with gaps or overlaps: strides {tuple(p.stride())}"


def why_not_gradient(p: torch.Tensor, g: torch.Tensor) -> str:
    """Reason that kernels cannot use a gradient; "": they can."""
    if type(g) not in PLAIN:
        return f"gradient of a subclass of Tensor: {type(g).__name__}"
    if g.layout != torch.strided:
        return f"gradient of layout {_name(g.layout)}"
    if g.dtype is not p.dtype:
        return f"gradient of dtype {_name(g.dtype)}"
    if g.device != p.device:
        return f"gradient on {g.device}"
    return "gradient of another shape" if g.shape != p.shape else ""


def why_not_states(p: torch.Tensor, state: Mapping[str, Any] | None, rule: str) -> str:
    """Reason that kernels cannot use the present states; "": they can."""
    if not _has_states(state, rule):
        return ""
    assert state is not None
    for name in names_of(rule):
        value: Any = state.get(name)
        if type(value) not in PLAIN or not _plain(value) or not _is_reachable(p, name, value):
            where = "the CPU" if p.is_cpu else p.device
            return f"state {name} is {'missing' if value is None else f'not a plain tensor on {where}'}"
        if name == "step":
            if reason := _why_not_step(p, state, rule):
                return reason
        elif value.dtype != p.dtype or value.shape != p.shape:
            return f"state {name} differs from the parameter in dtype or shape"
        elif not (_same_layout(p, value) and _is_aligned(value)):
            return f"state {name} has other strides than the parameter"
    return ""


def _plain(value: torch.Tensor) -> bool:
    return value.layout == torch.strided and not value.requires_grad


def _is_reachable(p: torch.Tensor, name: str, value: torch.Tensor) -> bool:
    """True if a state is on the parameter's device; the number of steps may be on the host."""
    return value.device == p.device or (name == "step" and _devices.device_kind(value) == HOST)


def match_layout(p: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    """The gradient if its elements lie in memory in the order of the parameter's, else a copy that does."""
    if _same_layout(p, g) and _is_aligned(g) and not g.is_neg():
        return g
    with torch.no_grad():
        return torch.empty_like(p, requires_grad=False).copy_(g)


def _why_not_step(p: torch.Tensor, state: Mapping[str, Any], rule: str) -> str:
    """Reason that kernels cannot use torch's number of steps; "": they can."""
    value: Any = state.get("step")
    if not counts_steps(rule):
        return ""
    if type(value) not in PLAIN or not _plain(value) or not _is_reachable(p, "step", value):
        return "state step is not a plain tensor"
    is_number = value.dtype in _COUNTERS and value.numel() == 1
    return "" if is_number else "state step is not one number of float32 or float64"


def _has_states(state: Mapping[str, Any] | None, rule: str, storage: str = WHOLE) -> bool:
    if rule == "momentum":
        name = "momentum_buffer" if storage == WHOLE else "state1"
        return bool(state) and state.get(name) is not None  # type: ignore[union-attr]
    return bool(state)


def _same_layout(p: torch.Tensor, other: torch.Tensor) -> bool:
    """True if equal shapes have the same order of elements in memory; strides of single elements do not count."""
    own, its = p.stride(), other.stride()
    return own == its or all(n < 2 or a == b for n, a, b in zip(p.shape, own, its, strict=True))


def _dense(shape: Sequence[int], stride: Sequence[int]) -> bool:
    expected = 1
    for step, size in sorted(zip(stride, shape, strict=True)):
        if size == 0:
            return True
        if size == 1:
            continue
        if step != expected:
            return False
        expected *= size
    return True


def _address(t: torch.Tensor) -> int:
    """Address of a tensor's elements; 0 if it has no memory of its own, as under a transform of torch.func."""
    try:
        return t.data_ptr()
    except RuntimeError:
        return 0


def _is_aligned(t: torch.Tensor) -> bool:
    """True if a tensor has memory that is aligned for its dtype, or no elements."""
    address = _address(t)
    return (address != 0 and address % t.element_size() == 0) or t.numel() == 0


def _name(value: torch.dtype | torch.layout) -> str:
    return str(value).removeprefix("torch.")
