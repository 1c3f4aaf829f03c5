"""Fast path of a step: a check that everything the last step's plan depends on is unchanged.

Nothing is decided here. If anything differs, `_step` divides the step anew, slowly.

- `HostStep`, for parameters on the CPU: Python only collects the tensors, and one kernel checks and reads them all,
  through DLPack's C exchange API, which torch has from 2.10 on. That takes 0.5 us a parameter.
- `reusable_step`, for GPUs and for an older torch: one loop with few calls of Python functions, 2 us a parameter. The
  checks of `_param_states` take twice that.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from itertools import chain, repeat
from operator import is_, is_not, itemgetter
from typing import Any, NamedTuple

import numpy as np
import torch

from ..kernels.cpu.optim.counters import StepCounters
from ..kernels.cpu.optim.dlpack import ForeignReader
from ..kernels.cpu.optim.plan import Plan
from ..kernels.formulas import clip_factor
from ._devices import HOST
from ._param_states import ParamState
from ._rules import Group, peer_of, read_group

_strided = torch.strided
_is_neg = torch.Tensor.is_neg
_CONSTANT = (int, float, bool, str, type(None))  # values that cannot change in place


def clipped_scale(optimizer: Any, plan: Plan, gradients: Any, clip_norm: float, scale: float = 1.0) -> float:
    """Factor of all gradients: `scale`, and the factor that brings their norm down to `clip_norm`."""
    optimizer.grad_norm = norm = scale * plan.norm(gradients)
    return scale * clip_factor(clip_norm, norm)


class _Addresses(NamedTuple):
    """Addresses of gradients, one for each array of a plan, and their own."""

    array: np.ndarray
    at: int


class _KnownGroup:
    """A group as it was when the plan was made: its parameters, its rule, and the options while they stay the same."""

    def __init__(self, peer: type[torch.optim.Optimizer], members: Sequence[ParamState], names: Sequence[str]) -> None:
        self.peer, self.params = peer, [known.p for known in members]
        self.rules = {known.rule for known in members}
        self.values_of, self.values = itemgetter(*names), None
        self.bits = {known.bits for known in members}
        self.last: tuple[str, dict[str, Any], str] = "", {}, ""

    def _read(self, group: Group) -> tuple[str, dict[str, Any], str]:
        values = self.values_of(group)
        flat = chain.from_iterable(value if isinstance(value, tuple) else (value,) for value in values)
        self.values = values if all(type(value) in _CONSTANT for value in flat) else None
        self.last = read_group(self.peer, group, scaled=False)
        return self.last

    def options(self, group: Group) -> dict[str, Any] | None:
        """The options of the group; None if it has other parameters, or its rule has changed."""
        params = group["params"]
        if len(params) != len(self.params) or not all(map(is_, params, self.params)):
            return None
        if not self.bits <= {group.get("state_bits", 32)}:
            return None
        rule, options, reason = self.last if self.values_of(group) == self.values else self._read(group)
        return None if reason or not self.rules <= {rule} else options


class HostStep:
    """Steps by a plan of all of an optimizer's parameters, which are on the CPU and all count their steps, or none."""

    def __init__(self, optimizer: Any, plan: Plan, members: list[ParamState], num_groups: int) -> None:
        self.plan, peer = plan, peer_of(type(optimizer))
        self.params = [known.p for known in members]
        self.indices = {id(p): i for i, p in enumerate(self.params)}
        by_group: list[list[ParamState]] = [[] for _ in range(num_groups)]
        for known in members:
            by_group[known.group].append(known)
        self.groups = [_KnownGroup(peer, some, list(optimizer.defaults)) for some in by_group]
        # the optimizer's records of the states, in its order and in the plan's, and the tensors in a record
        names = [tuple(name for name, _ in known.tensors) for known in members]
        self.own_records = [known.state for known in members] if names[0] else []
        # by the plan's knowledge: the optimizer may have got other records since, as by load_state_dict
        known_records = {id(known.p): known.state for known in members}
        self.keys = list(optimizer.state)
        self.records = [known_records.get(id(key)) for key in self.keys]
        # states that are codes have other names, and are more: then each record is asked for its own
        self.has_states, self.names = bool(names[0]), names
        self.states_of = itemgetter(*names[0]) if names[0] and len(set(names)) == 1 else None
        self.num_states = len(names[0])
        self.first_states = np.cumsum([0, *map(len, names)])
        # expectations of the kernel: gradients anywhere, parameters and states where they were
        gradients = [(_dtype_name(known.dtype), known.shape, known.stride, 0) for known in members]
        params = [(*row[:3], known.address) for row, known in zip(gradients, members, strict=True)]
        states = [
            (_dtype_name(tensor.dtype), tensor.shape, tensor.stride(), address)
            for known in members
            for (_, tensor), address in zip(known.tensors, known.addresses, strict=True)
        ]
        self.reader = ForeignReader([*gradients, *params, *states], (), ())
        self.usable = self.reader.reads_tensors()
        # the addresses of all gradients, where the kernel writes them, and of some, with 0 for the others
        self.all_gradients = _Addresses(self.reader.into[: len(members)], self.reader.into.ctypes.data)
        some = np.zeros(len(members), np.int64)
        self.some_gradients = _Addresses(some, some.ctypes.data)
        counted = bool(names[0]) and names[0][-1] == "step"
        counters = [
            (known.addresses[-1], known.tensors[-1][1].element_size()) if counted else (0, 0) for known in members
        ]
        self.counters = StepCounters(counters, otherwise=2)  # with momentum and no count: a later step than the first
        # Two steps at once would share the memory of the reader; then the second one is a slow one.
        self.lock = threading.Lock()

    @staticmethod
    def serves(members: Sequence[ParamState], count: int) -> bool:
        """True if a plan of these parameters, of as many as the optimizer has, can be used."""
        if len(members) != count or any(known.unpublished for known in members):
            return False
        return len({bool(known.tensors) and known.tensors[-1][0] == "step" for known in members}) == 1

    def run(self, optimizer: Any, indices: list[int] | None = None) -> bool:
        """Update the parameters that have gradients; return False, with nothing changed, if it must be done otherwise.

        indices: those of parameters with gradients that shall be updated; None: all.
        """
        if not self.lock.acquire(False):
            return False
        try:
            try:
                options = self._options(optimizer.param_groups)
                params = self.params if indices is None else [self.params[i] for i in indices]
                gradients: list[Any] = [p.grad for p in params]
                if indices is None and not all(map(is_not, gradients, repeat(None))):
                    indices = [i for i, g in enumerate(gradients) if g is not None]
                    params, gradients = [params[i] for i in indices], [gradients[i] for i in indices]
                if not params:
                    return True
                located = self._locate(optimizer.state, indices, params, gradients)
            except (KeyError, TypeError, RuntimeError):  # an option or a state is missing, a tensor has no memory
                return False
            if options is None or located is None:
                return False
            addresses, at = located
            scale, clip_norm = 1.0, optimizer._clip_norm
            if clip_norm is not None:
                scale = clipped_scale(optimizer, self.plan, addresses, clip_norm)
            self.plan.update(addresses, self.counters.next_steps(at), options, scale)
            self.counters.advance(at)
            # For autograd, which raises if a value that it has kept was overwritten.
            torch.autograd.graph.increment_version(params)
            return True
        finally:
            self.lock.release()

    def _options(self, groups: list[Group]) -> list[dict[str, Any]] | None:
        """The options of all groups, or None if they are not those of the plan."""
        if len(groups) != len(self.groups):
            return None
        found: list[dict[str, Any]] = []
        for known, group in zip(self.groups, groups):  # noqa: B905 (`strict` takes 0.2 us)
            options = known.options(group)
            if options is None:
                return None
            found.append(options)
        return found

    def _locate(
        self, states: Any, indices: list[int] | None, params: list[Any], gradients: list[Any]
    ) -> _Addresses | None:
        """The address of each array's gradient, or 0 for those left out; None if a tensor is not as expected."""
        if any(map(_is_neg, gradients)):  # the exchange API describes its memory nevertheless
            return None
        flat: Any = ()
        if self.has_states:
            if indices is not None:
                records: Any = map(states.get, params)
            elif len(states) == len(self.keys) and all(map(is_, states, self.keys)):
                if not all(map(is_, states.values(), self.records)):
                    return None
                records = self.own_records
            else:
                return None
            if self.states_of is None:
                names = self.names if indices is None else [self.names[i] for i in indices]
                flat = [record[name] for record, some in zip(records, names, strict=True) for name in some]
            else:
                flat = map(self.states_of, records)
                flat = flat if self.num_states == 1 else chain.from_iterable(flat)
        rows = None if indices is None else self._rows(np.array(indices, np.int64))
        if not self.reader.locate((*gradients, *params, *flat), rows):
            return None
        if indices is None:
            return self.all_gradients
        addresses = self.some_gradients.array
        addresses[:] = 0
        addresses[indices] = self.reader.into[: len(indices)]
        return self.some_gradients

    def _rows(self, indices: np.ndarray) -> np.ndarray:
        """Numbers of the expectations of some parameters: of their gradients, themselves, and their states."""
        count, k = len(self.params), self.num_states
        if self.states_of is None:
            first = self.first_states
            states = np.concatenate([np.arange(first[i], first[i + 1]) for i in indices.tolist()]) + 2 * count
        else:
            states = (2 * count + k * indices[:, None] + np.arange(k)).ravel()
        return np.concatenate([indices, count + indices, states])


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


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
            params, bits = group["params"], group.get("state_bits", 32)
            end = first + len(params)
            if reason or end > len(param_states):
                return None
            all_options.append(options)
            for p, known in zip(params, param_states[first:end], strict=True):
                if p is not known.p or known.group != number or known.rule != rule or known.unpublished:
                    return None
                if known.bits != bits:
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
