"""Translation of torch's parameter groups for the kernels: rule, options, states."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch

from ..kernels.formulas.optimizers import CLASSES, OPTIMIZERS, OptimizerClass
from . import _devices
from ._devices import DEVICE, HOST

Group = dict[str, Any]


def torch_class(row: OptimizerClass) -> type[torch.optim.Optimizer]:
    """torch's class of a row of CLASSES."""
    return getattr(torch.optim, row.conventions["torch"].peer.rpartition(".")[2])


# The optimizers that there is a class for.
ROWS: dict[type[torch.optim.Optimizer], OptimizerClass] = {
    torch_class(row): row for row in CLASSES.values() if "torch" in row.conventions
}

_peers: dict[type, type[torch.optim.Optimizer]] = {}


def peer_of(cls: type) -> type[torch.optim.Optimizer]:
    """The optimizer of torch's that a class is, or is derived from."""
    if cls not in _peers:
        _peers[cls] = next(base for base in cls.__mro__ if base in ROWS)
    return _peers[cls]


# The numbers that torch keeps beside the states of a rule.
DERIVED = {rule: row.derived for row in ROWS.values() for rule in row.conventions["torch"].rows.values() if row.derived}

# Those with the flag `fused`, which take a GradScaler's scale in their step.
FUSED = {peer for peer in ROWS if "fused" in inspect.signature(peer).parameters}

_FLAGS = {HOST: ("capturable", "differentiable"), DEVICE: ("differentiable",)}
_NUMBERS = (int, float, np.integer, np.floating)
_RATES = (torch.float32, torch.float64)


@cache
def _names(rule: str) -> tuple[str, ...]:
    # A group may have keys of these names, but not torch's: the user's own, without a meaning here.
    others = ("l1", "clip_value", "decoupled", "beta1", "beta2")
    return tuple(name for name in OPTIMIZERS[rule].options if name not in others)


@cache
def _has_betas(rule: str) -> bool:
    return "beta1" in OPTIMIZERS[rule].options


def read_group(
    peer: type[torch.optim.Optimizer], group: Group, scaled: bool, device_kind: str = HOST
) -> tuple[str, dict[str, Any], str]:
    """The rule of a group, its options, and why torch's code is needed ("": it is not).

    scaled: a GradScaler has set `grad_scale` or `found_inf`; device_kind: of the parameters. On a GPU the learning rate
    may be a tensor, and is left as it is.
    """
    for flag in _FLAGS[device_kind]:
        if group.get(flag):
            return "", {}, f"{flag}=True"
    if ROWS[peer].derived and device_kind == DEVICE and group.get("capturable"):
        return "", {}, f"capturable=True, and torch keeps {', '.join(ROWS[peer].derived)} on the GPU"
    if scaled and not group.get("fused"):
        return "", {}, "grad_scale and found_inf are for fused=True"
    row = ROWS[peer]
    rule = row.conventions["torch"].rows[row.variant(group)]
    options: dict[str, Any] = {"l1": 0.0, "clip_value": None, "decoupled": False}
    for name in _names(rule):
        options[name] = group[name]
    if _has_betas(rule):
        options["beta1"], options["beta2"] = group["betas"]
    for name, value in options.items():
        if value is None or isinstance(value, _NUMBERS):
            continue
        is_rate = name == "lr" and device_kind == DEVICE
        on_device = is_rate and _is_number(value, DEVICE) and value.dtype in _RATES
        if not on_device and not _is_number(value, HOST):
            return "", {}, f"{name} is {_describe(value)}"
        if group.get("foreach") and not group.get("capturable"):  # torch refuses it
            return "", {}, f"{name} is a tensor and foreach=True"
        if not on_device:
            options[name] = value.item()
    return rule, options, ""


def _is_number(value: object, device_kind: str) -> bool:
    """True for a tensor of one number on such a device, without a gradient."""
    if not isinstance(value, torch.Tensor) or value.numel() != 1 or value.requires_grad:
        return False
    return _devices.device_kind(value) == device_kind


def _describe(value: object) -> str:
    if not isinstance(value, torch.Tensor):
        return f"a {type(value).__name__}"
    return "a tensor that requires a gradient" if value.requires_grad else f"a tensor on {value.device}"


def counts_steps(rule: str) -> bool:
    """True if torch keeps a number of steps in the states of the optimizer that a rule belongs to."""
    return rule not in ("sgd", "momentum")


@cache
def names_of(rule: str) -> tuple[str, ...]:
    """The states that a rule needs, in its order, and after them torch's number of steps, if it keeps one."""
    return *OPTIMIZERS[rule].states, *(("step",) if counts_steps(rule) else ())


def counts_on_device(p: torch.Tensor, state: Mapping[str, Any] | None, rule: str, group: Group) -> bool:
    """True if the number of steps of a parameter on a GPU is there, too, or torch would make it there.

    SGD keeps none in torch; ours is always on the device.
    """
    if not counts_steps(rule):
        return True
    if state:
        return _devices.device_kind(state["step"]) == DEVICE
    return bool(group.get("fused") or group.get("capturable"))


def why_not_on_device(p: torch.Tensor, options: Mapping[str, Any], scaled: bool, counted: bool) -> str:
    """Reason that kernels on a GPU cannot do a step, whose number is on the device (`counted`) or on the host."""
    lr = options["lr"]
    if isinstance(lr, torch.Tensor) and not (counted and lr.device == p.device):
        return f"lr is {_describe(lr)}" + ("" if counted else " and the state step on the CPU")
    return "" if counted or not scaled else "grad_scale and found_inf are given, and the state step is on the CPU"


def derived_numbers(
    optimizer: torch.optim.Optimizer, params: Sequence[torch.Tensor] | None = None
) -> Iterator[tuple[torch.Tensor, float]]:
    """The numbers that torch keeps in states, each with the one that follows from the steps done.

    params: the parameters whose numbers they are; None: all.
    """
    derived = ROWS[peer_of(type(optimizer))].derived
    chosen = None if params is None else {id(p) for p in params}
    for group in optimizer.param_groups:
        some = group["params"] if chosen is None else [p for p in group["params"] if id(p) in chosen]
        for state in filter(None, map(optimizer.state.get, some)):
            for name, value in derived.items():
                yield state[name], value(int(state["step"]), group)


def new_states(
    p: torch.Tensor, rule: str, group: Group, defaults: Mapping[str, Any],
    coded: Callable[[torch.Tensor, str, float], dict[str, torch.Tensor]] | None = None,
) -> dict[str, torch.Tensor]:  # fmt: skip
    """The states of a parameter before its first step: names, dtypes and layouts as torch makes them.

    coded: makes those of the rule if they are codes of 8 bits, from the number that they begin with.
    """
    states = {}
    if counts_steps(rule):
        is_float64 = torch.get_default_dtype() == torch.float64 and not group.get("fused")
        on_device = _devices.device_kind(p) == DEVICE and counts_on_device(p, None, rule, group)
        dtype = torch.float64 if is_float64 else torch.float32
        states["step"] = torch.zeros((), dtype=dtype, device=p.device if on_device else "cpu")
    states |= {name: torch.ones_like(states["step"]) for name in DERIVED.get(rule, ())}
    fill = defaults["initial_accumulator_value"] if rule == "adagrad" else 0.0
    if coded:
        return {**coded(p, rule, fill), **states}
    for name in OPTIMIZERS[rule].states:
        states[name] = torch.full_like(p, fill, requires_grad=False, memory_format=torch.preserve_format)
    return states
