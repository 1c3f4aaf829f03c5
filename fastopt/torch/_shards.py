"""Optimizers that torch makes for a share of a model's parameters: those inside of ZeroRedundancyOptimizer."""

from __future__ import annotations

import sys
from typing import Any

import torch


def _is_sharding(thing: Any) -> bool:
    """True of a ZeroRedundancyOptimizer; by its name, for its module takes a while to import."""
    return any(cls.__name__ == "ZeroRedundancyOptimizer" for cls in type(thing).__mro__)


def local_optimizer(optimizer: torch.optim.Optimizer) -> Any:
    """The optimizer that updates this rank's share of the parameters; any other optimizer itself."""
    return optimizer.optim if _is_sharding(optimizer) else optimizer  # type: ignore[attr-defined]


def refuse_shards(clip_norm: float | None) -> None:
    """Raise ValueError if the constructor that calls this one with a bound was called for a share of the parameters."""
    frame = None if clip_norm is None else sys._getframe(1)
    while frame is not None and frame.f_code.co_name == "__init__":
        frame = frame.f_back
    if frame is not None and _is_sharding(frame.f_locals.get("self")):
        raise ValueError(
            f"clip_norm must be None in a ZeroRedundancyOptimizer, each of whose ranks knows the norm of its own share"
            f" alone; got {clip_norm}: call torch.nn.utils.clip_grad_norm_(model.parameters(), {clip_norm}) before its"
            " step() instead"
        )
