"""Parameters as the kernels see them, and whether they can: the checks that decide who updates what."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..kernels.formulas import OPTIMIZERS
from ..kernels.spec import BufferUpdate
from . import _reach
from ._reach import DEVICE, HOST, lacking
from ._rules import Group, counts_steps, names_of, new_states

PLAIN = (torch.Tensor, torch.nn.Parameter)  # subclasses may mean anything by the same operations
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_COUNTERS: dict[torch.dtype, Any] = {torch.float32: ctypes.c_float, torch.float64: ctypes.c_double}
SHARED = "shares memory with another parameter"


class Slot:
    """One parameter: where it lies, why torch's code must update it ("": it need not), and its states."""

    __slots__ = (
        "address", "addresses", "count", "counter", "dtype", "fresh", "group", "home", "is_cpu", "p", "place", "reason",
        "rule", "shape", "state", "stride", "tensors",
    )  # fmt: skip

    fresh: dict[str, torch.Tensor]  # states that the optimizer does not have yet
    state: Any  # the optimizer's own record of them
    tensors: tuple[tuple[str, torch.Tensor], ...]  # names and tensors; `step`, if there is one, is the last
    addresses: tuple[int, ...]  # of the tensors
    counter: Any  # torch's number of steps so far, in place; None: there is none on the host
    count: torch.Tensor | None  # the number of steps so far, on a GPU

    def __init__(self, p: torch.Tensor, group: int) -> None:
        self.p, self.group = p, group
        self.reason = why_not_parameter(p)
        self.home = _reach.place_of(p)
        self.is_cpu = p.is_cpu
        self.address = _address(p)
        self.shape, self.dtype = p.shape, p.dtype
        self.stride = p.stride() if p.layout == torch.strided else ()
        self.rule = ""  # of the states; "": none are known yet
        self.place = -1  # in the plan of the step; -1: the plan does not know these states
        self.fresh = {}
        self.state = None
        self.tensors = self.addresses = ()

    def moved(self) -> bool:
        """Whether the parameter's memory is no longer what it was, as after `p.data = ...`."""
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
        """First address and the one past the last, where the parameter has memory that kernels reach."""
        p = self.p
        if not self.address or not self.home or not p.numel():
            return None
        last = sum((n - 1) * s for n, s in zip(self.shape, self.stride, strict=True))
        return self.address, self.address + (last + 1) * p.element_size()

    def use(self, state: Mapping[str, Any] | None, rule: str, group: Group, defaults: Mapping[str, Any]) -> str:
        """Take the states that the optimizer has for this parameter now; else say why torch's code is needed.

        Where there are none they are made, and `publish` hands them to the optimizer once a step has used them.
        """
        if self.rule == rule and self._holds(state):
            return ""
        self.rule, self.place = "", -1
        reason = why_not_states(self.p, state, rule)
        if reason:
            return reason
        self.fresh = {} if _begun(state, rule) else new_states(self.p, rule, group, defaults)
        found: Mapping[str, Any] = self.fresh or state or {}
        self.state = state
        self.tensors = tuple((name, found[name]) for name in names_of(rule))
        self.addresses = tuple(tensor.data_ptr() for _, tensor in self.tensors)
        self.counter = self.count = None
        if counts_steps(rule):
            if _reach.place_of(found["step"]) == HOST:
                self.counter = _COUNTERS[found["step"].dtype].from_address(self.addresses[-1])
            else:
                self.count = found["step"]
        elif self.home == DEVICE:
            self.count = torch.full((), 0.0 if self.fresh else 1.0, dtype=torch.float32, device=self.p.device)
        self.rule = rule
        return ""

    def _holds(self, state: Any) -> bool:
        if self.fresh or state is not self.state:  # fresh: the step that made them did not come to its end
            return False
        for (name, tensor), address in zip(self.tensors, self.addresses, strict=True):
            if state is None or state.get(name) is not tensor or tensor.data_ptr() != address:
                return False
        return True

    def steps(self) -> int:
        """The number of the step that is to come. With momentum and no count: 1 for the first, then 2."""
        if self.counter is not None:
            return int(self.counter.value) + 1
        return 1 if self.fresh else 2

    def publish(self, all_states: dict[torch.Tensor, Any]) -> None:
        """Say that a step is done."""
        if self.counter is not None:
            self.counter.value += 1
        if self.fresh:
            self.state = state = all_states[self.p]
            state.update(self.fresh)
            self.fresh = {}


def make_slots(groups: Sequence[Group]) -> list[Slot]:
    """A slot for each of all parameters of an optimizer; those that share memory are left to torch's code."""
    slots = [Slot(p, number) for number, group in enumerate(groups) for p in group["params"]]
    placed = [(extent, slot) for slot in slots if (extent := slot.extent())]
    placed.sort(key=lambda item: item[0])
    for i, ((_, end), slot) in enumerate(placed):
        for (start, _), other in placed[i + 1 :]:
            if start >= end:
                break
            slot.reason, other.reason = slot.reason or SHARED, other.reason or SHARED
    return slots


def targets_of(members: Sequence[Slot]) -> list[BufferUpdate]:
    """What a plan of these parameters is made of; each takes its place in it."""
    for place, slot in enumerate(members):
        slot.place = place
    return [
        BufferUpdate(
            slot.rule, str(slot.dtype).removeprefix("torch."), slot.p.numel(), slot.address,
            slot.addresses[: len(OPTIMIZERS[slot.rule].states)], slot.group,
        )
        for slot in members
    ]  # fmt: skip


def why_not_parameter(p: torch.Tensor) -> str:
    """Why the kernels cannot update a parameter, whatever its gradient."""
    if type(p) not in PLAIN:
        return f"a subclass of Tensor: {type(p).__name__}"
    if p.layout != torch.strided:
        return f"layout {_name(p.layout)}"
    place = _reach.place_of(p)
    if not place:
        return f"on {p.device}"
    if place == DEVICE and lacking():
        return f"on {p.device}: {lacking()}"
    if p.dtype not in DTYPES:
        return f"dtype {_name(p.dtype)}"
    if p.is_neg() or p.is_inference() or not _placed(p):
        return "a tensor that is not plainly its memory"
    return "" if _dense(p.shape, p.stride()) else f"memory with gaps or overlaps: strides {tuple(p.stride())}"


def why_not_gradient(p: torch.Tensor, g: torch.Tensor) -> str:
    """Why the kernels cannot use a gradient."""
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
    """Why the kernels cannot use the states that there are."""
    if not _begun(state, rule):
        return ""
    assert state is not None
    for name in names_of(rule):
        value: Any = state.get(name)
        if type(value) not in PLAIN or not _plain(value) or not _near(p, name, value):
            where = "the CPU" if p.is_cpu else p.device
            return f"state {name} is {'missing' if value is None else f'not a plain tensor on {where}'}"
        if name == "step":
            if value.dtype not in _COUNTERS or value.numel() != 1:
                return "state step is not one number of float32 or float64"
        elif value.dtype != p.dtype or value.shape != p.shape:
            return f"state {name} differs from the parameter in dtype or shape"
        elif not (_same_layout(p, value) and _placed(value)):
            return f"state {name} has other strides than the parameter"
    return ""


def _plain(value: torch.Tensor) -> bool:
    return value.layout == torch.strided and not value.requires_grad


def _near(p: torch.Tensor, name: str, value: torch.Tensor) -> bool:
    """Whether a state is where the kernels that update the parameter look for it; the number of steps may be here."""
    return value.device == p.device or (name == "step" and _reach.place_of(value) == HOST)


def lay_out(p: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    """A gradient whose elements lie in memory as the parameter's do: itself, or else a copy."""
    if _same_layout(p, g) and _placed(g) and not g.is_neg():
        return g
    with torch.no_grad():
        return torch.empty_like(p, requires_grad=False).copy_(g)


def _begun(state: Mapping[str, Any] | None, rule: str) -> bool:
    if rule == "momentum":
        return bool(state) and state.get("momentum_buffer") is not None  # type: ignore[union-attr]
    return bool(state)


def _same_layout(p: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether equal shapes have the same order of elements in memory; strides of single elements do not count."""
    left, right = p.stride(), other.stride()
    return left == right or all(n < 2 or a == b for n, a, b in zip(p.shape, left, right, strict=True))


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
    """Where a tensor's elements begin; 0 where it has none of its own, as under a transform of torch.func."""
    try:
        return t.data_ptr()
    except RuntimeError:
        return 0


def _placed(t: torch.Tensor) -> bool:
    """Whether a tensor's elements lie in memory where elements of its dtype may."""
    address = _address(t)
    return (address != 0 and address % t.element_size() == 0) or t.numel() == 0


def _name(value: torch.dtype | torch.layout) -> str:
    return str(value).removeprefix("torch.")
