"""Checks of hyper-parameters, clipping options, and the scale of gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .. import _backends
from .._validation import check_in_domain, describe
from ..kernels.formulas import DOMAINS, Domain

# Entries of torch's groups that do not change results.
TORCH_ONLY = ("foreach", "fused", "capturable", "differentiable", "decoupled_weight_decay", "param_names")

# Notes of torch's schedulers and SWALR in groups; their effect is in lr, momentum and betas.
SCHEDULERS = ("initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum", "swa_lr")

# Options that groups of a state_dict may lack, as torch's and our first version's do, with their defaults.
EXTRA: dict[str, Any] = {"l1": 0.0, "clip_value": None, "clip_each": None, "clip_norm": None, "state_bits": 32}

# Entries that are the optimizer's, and so the same in all groups of a state_dict.
COMMON = ("clip_norm", "convention", "lr_step", "seed", "state_rounding")

_SCALE = Domain(open_low=True)


def as_plain(value: Any) -> Any:
    """The number in an array of one element, such as a tensor, also within a tuple; any other value as it is."""
    if isinstance(value, tuple | list):
        return tuple(as_plain(part) for part in value)
    if not isinstance(value, type) and hasattr(value, "item") and getattr(value, "shape", None) in ((), (1,)):
        return value.item()
    return value


def check_lr(value: Any) -> Any:
    """A learning rate as Python's own number, or a schedule as it is."""
    if callable(value) and not isinstance(value, type):
        return value
    if isinstance(value, bool | int | float | np.bool_ | np.integer | np.floating):
        return check_in_domain("lr", value, DOMAINS["lr"])
    raise TypeError(f"lr must be {DOMAINS['lr']}, or a schedule(step) that gives one; got {describe(value)}")


def rate(lr: Any, step: int) -> float:
    """The learning rate of a step, counted from 0: a number, or what a schedule gives for the step, checked."""
    if not callable(lr):
        return float(lr)
    try:
        given = lr(step)
    except OverflowError:
        given = float("inf")
    if type(given) is not float:
        given = check_one_number(f"what the schedule {lr!r} gives for step {step}", given)
    if given not in DOMAINS["lr"]:
        raise ValueError(f"what the schedule {lr!r} gives for step {step} must be {DOMAINS['lr']}; got {given}")
    return given


def common(groups: Sequence[Mapping[str, Any]], name: str, default: Any) -> Any:
    """An entry of COMMON out of the groups of a state_dict."""
    values = [group.get(name, default) for group in groups]
    if any(value != values[0] for value in values):
        raise ValueError(f"{name} must be the same in all groups of a state_dict; got {values}")
    return values[0] if values else default


def check_clipping(clip_norm: float | None, groups: Sequence[Mapping[str, Any]], backend: str) -> None:
    """Raise ValueError if gradients would be clipped in several ways, or in one that the backend does not have."""
    for group in groups:
        ways = {"clip_value": group["clip_value"], "clip_each": group["clip_each"], "clip_norm": clip_norm}
        given = [f"{name}={value}" for name, value in ways.items() if value is not None]
        if len(given) > 1:
            raise ValueError(f"gradients are clipped in one way, not in several; got {', '.join(given)}")
        if ways["clip_each"] is not None and backend == _backends.DEVICE:
            raise ValueError(
                f"on the backend {backend!r} gradients are clipped by value (clip_value) or by the norm of all of them"
                f" (clip_norm), not each by its own norm; got {given[0]}"
            )


def check_one_number(name: str, value: Any) -> float:
    """A flag, a number, or an array of one number, such as a GradScaler's tensors."""
    number = np.asarray(value)
    if number.size != 1 or number.dtype.kind not in "biuf":
        raise TypeError(f"{name} must be a number or an array of one; got {describe(value)}")
    return float(number.reshape(()))


def check_scale(value: Any) -> float:
    """The divisor of gradients, checked."""
    scale = check_one_number("grad_scale", value)
    if scale not in _SCALE:
        raise ValueError(f"grad_scale must be {_SCALE}; got {scale}")
    return scale


def all_finite(gradients: Sequence[np.ndarray | None]) -> bool:
    """True if no element is inf or NaN; a norm may be infinite because squares of large float64 numbers overflow."""
    return all(bool(_finite(g).all()) for g in gradients if g is not None)


def _finite(g: np.ndarray) -> np.ndarray:
    infinite = 0x7F80  # the exponent of bfloat16
    return g & infinite != infinite if g.dtype == np.uint16 else np.isfinite(g)
