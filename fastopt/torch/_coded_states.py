"""States of 8 bits of torch's parameters (`state_bits=8`): tensors `state1`, `absmax1`, ... instead of torch's own.

In a state_dict they are in bitsandbytes' layout, see `fastopt.optim._coded_state`, so that its Adam8bit reads them, and
ours reads its. Those of small parameters are torch's own here, and have bitsandbytes' names there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch

from ..kernels.formulas import OPTIMIZERS
from ..kernels.formulas.blockwise import blocks_of, codebook_of
from ..kernels.spec import WHOLE
from ..optim._coded_state import (
    FOREIGN_HYPER,
    MIN_ELEMENTS,
    ORDER,
    ROUNDINGS,
    CodedState,
    decode,
    encode,
    is_coded,
    loaded,
    new_coded,
    saved_states,
    unwrapped,
)
from ._rules import ROWS, Group, counts_steps, peer_of

BITS = "state_bits"


def bits_of(group: Group) -> int:
    """Bits of a group's states: 8 or 32."""
    return int(group.get(BITS, 32))


def storage_of(p: torch.Tensor, rule: str, group: Group, rounding: str) -> str:
    """Storage of a parameter's states, one of `spec.STORAGES`."""
    if bits_of(group) != 8 or p.numel() < MIN_ELEMENTS or not OPTIMIZERS[rule].states:
        return WHOLE
    return ROUNDINGS[rounding]


@cache
def coded_names(rule: str) -> tuple[str, ...]:
    """The states of a rule that are codes, with their magnitudes, in kernels' order, and torch's number of steps."""
    numbers = range(1, len(OPTIMIZERS[rule].states) + 1)
    found = [f"{word}{k}" for k in numbers for word in ("state", "absmax")]
    return *found, *(("step",) if counts_steps(rule) else ())


def _in_memory(p: torch.Tensor, tensor: torch.Tensor) -> np.ndarray:
    """The elements of a state, which lies as its parameter does, in the order of memory: float32 or float64."""
    flat = tensor.as_strided((p.numel(),), (1,))
    return (flat.float() if flat.element_size() == 2 else flat).cpu().numpy()


def _as_tensors(p: torch.Tensor, k: int, state: CodedState) -> dict[str, torch.Tensor]:
    """The tensors of state k of a parameter; codes: in the order of memory."""
    codes = torch.empty_like(p, dtype=torch.uint8, requires_grad=False, memory_format=torch.preserve_format)
    codes.as_strided((p.numel(),), (1,)).copy_(torch.from_numpy(state.codes.ravel()))
    return {f"state{k}": codes, f"absmax{k}": torch.from_numpy(state.largest.copy()).to(p.device)}


def new_coded_states(p: torch.Tensor, rule: str, fill: float) -> dict[str, torch.Tensor]:
    """The states of a rule before the first step; fill: of all elements."""
    found: dict[str, torch.Tensor] = {}
    for k, name in enumerate(OPTIMIZERS[rule].states, 1):
        found |= _as_tensors(p, k, new_coded((p.numel(),), name, fill))
    return found


def convert(p: torch.Tensor, state: dict[str, Any], rule: str, storage: str) -> None:
    """Convert the states of a parameter to codes or back, in place, if they are kept otherwise than `storage` says."""
    if not state or is_coded(state) != (storage == WHOLE):
        return
    for k, name in enumerate(OPTIMIZERS[rule].states, 1):
        if storage == WHOLE:
            coded = CodedState(_in_memory_codes(p, state.pop(f"state{k}")), state.pop(f"absmax{k}").cpu().numpy())
            dtype = np.dtype(np.float64 if p.dtype == torch.float64 else np.float32)
            numbers = torch.from_numpy(decode(coded, name, dtype))
            state[name] = torch.empty_like(p, requires_grad=False, memory_format=torch.preserve_format)
            state[name].as_strided((p.numel(),), (1,)).copy_(numbers)
        elif state.get(name) is not None:
            state |= _as_tensors(p, k, encode(_in_memory(p, state.pop(name)), name))


def _in_memory_codes(p: torch.Tensor, codes: torch.Tensor) -> np.ndarray:
    return codes.as_strided((p.numel(),), (1,)).cpu().numpy()


def why_not_coded(p: torch.Tensor, state: Mapping[str, Any], rule: str) -> str:
    """Reason that kernels cannot use present codes; "": they can."""
    for k in range(1, len(OPTIMIZERS[rule].states) + 1):
        codes: Any = state.get(f"state{k}")
        largest: Any = state.get(f"absmax{k}")
        fits = type(codes) is torch.Tensor and type(largest) is torch.Tensor
        fits = fits and codes.device == largest.device == p.device
        fits = fits and codes.dtype == torch.uint8 and largest.dtype == torch.float32
        fits = fits and codes.shape == p.shape and codes.stride() == p.stride()
        if not (fits and largest.is_contiguous() and largest.shape == (blocks_of(p.numel()),)):
            return f"state{k} and absmax{k} are not codes of the parameter's shape and strides, with their magnitudes"
    return ""


def refuse_torch_step(optimizer: Any, reason: str) -> None:
    """Raise ValueError if states of an optimizer are codes, which torch's code cannot read."""
    if any(is_coded(state) for state in optimizer.state.values()):
        raise ValueError(f"state_bits must be 32 for steps of torch's own code, which this one would be: {reason}")


# ---------------------------------------------------------------- state_dict
def has_codes(optimizer: Any) -> bool:
    """True if a group of an optimizer has states of 8 bits."""
    return any(bits_of(group) == 8 for group in optimizer.param_groups)


def is_coded_entry(entry: Any) -> bool:
    """True for a parameter's entry of a state_dict in bitsandbytes' layout."""
    return isinstance(entry, Mapping) and is_coded(unwrapped(entry))


def _rule(optimizer: Any, group: Group) -> str:
    row = ROWS[peer_of(type(optimizer))]
    return row.conventions["torch"].rows[row.variant(group)]


def with_qmaps(optimizer: Any, state_dict: dict[str, Any]) -> dict[str, Any]:
    """A state_dict of torch's with the states of groups of 8 bits in bitsandbytes' layout."""
    states = dict(state_dict["state"])
    for group, saved in zip(optimizer.param_groups, state_dict["param_groups"], strict=True):
        if bits_of(group) != 8:
            continue
        names = OPTIMIZERS[_rule(optimizer, group)].states
        for p, number in zip(group["params"], saved["params"], strict=True):
            if number in states:
                states[number] = _exported(p, states[number], names)
    return {**state_dict, "state": states}


def _exported(p: torch.Tensor, state: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {"step": int(state["step"])} if "step" in state else {}
    for k, name in enumerate(names, 1):
        if f"state{k}" in state:
            qmap = torch.from_numpy(codebook_of(name).values.copy()).to(state[f"state{k}"].device)
            found |= {f"state{k}": state[f"state{k}"], f"qmap{k}": qmap, f"absmax{k}": state[f"absmax{k}"]}
        elif state.get(name) is not None:
            found[f"state{k}"] = state[name]
    if is_coded(found) and "qmap1" in found and not p.is_contiguous():
        found[ORDER] = torch.tensor(_order(p))
    derived = {name: value for name, value in state.items() if name not in (*names, "step") and not _is_ours(name)}
    return found | derived


def _is_ours(name: str) -> bool:
    return name.rstrip("0123456789") in ("state", "absmax", "qmap")


def _order(p: torch.Tensor) -> list[int]:
    """The axes of a dense tensor in the order of memory."""
    strides = p.stride()
    return sorted(range(p.dim()), key=lambda axis: (-strides[axis], axis))


def split(optimizer: Any, state_dict: Mapping[str, Any]) -> tuple[dict[str, Any], list[tuple[torch.Tensor, Any]]]:
    """A state_dict that torch's code loads, and the codes of parameters, which it would make numbers of.

    Hyper-parameters that a group lacks are the present ones: bitsandbytes' groups have fewer, torch's have no bits.
    """
    groups, states, codes = [], dict(state_dict["state"]), []
    if len(state_dict["param_groups"]) != len(optimizer.param_groups):
        return dict(state_dict), []  # torch refuses it
    for present, saved in zip(optimizer.param_groups, state_dict["param_groups"], strict=True):
        own = {name: value for name, value in present.items() if name not in ("params", "param_names")}
        foreign = FOREIGN_HYPER if "t_alpha" in saved else ()
        group = {**own, **{name: value for name, value in saved.items() if name not in foreign}}
        groups.append(group)
        rule = _rule(optimizer, group)
        for p, number in zip(present["params"], saved["params"], strict=False):
            entry = states.get(number)
            if entry is None or not is_coded_entry(entry):
                continue
            states[number], coded = _imported(p, unwrapped(entry), rule, f"the state of parameter {number}")
            codes.append((p, coded))
    return {**state_dict, "state": states, "param_groups": groups}, codes


def _imported(p: torch.Tensor, entry: dict[str, Any], rule: str, where: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """An entry in bitsandbytes' layout: what torch's code loads of it, and the tensors that it must not touch."""
    names, order = OPTIMIZERS[rule].states, entry.pop(ORDER, None)
    derived = {name: entry.pop(name) for name in [name for name in entry if not _is_ours(name) and name != "step"]}
    found = {"step": torch.tensor(float(entry["step"]))} if counts_steps(rule) and "step" in entry else {}
    coded: dict[str, Any] = dict(derived)  # which torch's code would round to the parameter's dtype
    entry = {name: value.cpu() if isinstance(value, torch.Tensor) else value for name, value in entry.items()}
    plain: dict[str, Any] = {}
    for k, (name, saved) in enumerate(saved_states(entry, names, where, p.numel()).items(), 1):
        if saved.values is None:
            plain[name] = saved.state
            continue
        codes = np.asarray(saved.state)
        if codes.shape != tuple(p.shape):
            raise ValueError(f"state{k} of {where} must have the shape {tuple(p.shape)}; got {codes.shape}")
        own = _order(p)
        axes = list(range(p.dim())) if order is None else [int(axis) for axis in order]
        state = loaded(saved, codes.transpose(axes), name)
        if axes != own and not (p.is_contiguous() and order is None):
            numbers = state if isinstance(state, np.ndarray) else decode(state, name, np.dtype(np.float32))
            numbers = numbers.transpose([axes.index(i) for i in range(p.dim())]).transpose(own)
            state = encode(np.ascontiguousarray(numbers), name)
        coded |= _as_tensors(p, k, state if isinstance(state, CodedState) else encode(state, name))
    return {**found, **plain, **derived}, coded
