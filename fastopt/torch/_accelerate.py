"""Conversion of an optimizer of torch's into one of ours."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Mapping
from typing import Any

import torch

from ._step import Accelerated


def convert(optimizer: torch.optim.Optimizer, classes: Mapping[type, type[Accelerated]]) -> Any:
    """Give an optimizer the class of ours that corresponds to its own; see fastopt.torch.accelerate."""
    if isinstance(optimizer, Accelerated):
        return optimizer
    cls = type(optimizer)
    if cls not in classes:
        known = ", ".join(peer.__name__ for peer in classes)
        base = next((base for base in cls.__mro__ if base in classes), None)
        if base is None:
            raise TypeError(f"optimizer must be one of torch.optim's {known}; got {cls.__module__}.{cls.__qualname__}")
        raise TypeError(
            f"optimizer must be one of torch.optim's {known} itself; {cls.__module__}.{cls.__qualname__} is a class"
            f" derived from {base.__name__}, whose changes would be lost: derive it from fastopt.torch.{base.__name__}"
        )
    own = vars(optimizer).get("step")
    scheduled = getattr(own, "_wrapped_by_lr_sched", False)
    if own is not None and not scheduled:
        raise ValueError("optimizer must not have had its method `step` replaced: it would go on calling torch's")
    optimizer.__class__ = classes[cls]
    optimizer._patch_step_function()  # hooks and profiler, as a constructor does
    if scheduled:
        del optimizer.step
        optimizer.step = _tracked(optimizer)  # type: ignore[method-assign]
    return optimizer


def _tracked(optimizer: Any) -> Any:
    """`step` wrapped as learning-rate schedulers do, which warn if they are called before the optimizer."""
    step, owner = type(optimizer).step, weakref.ref(optimizer)

    @functools.wraps(step)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        target = owner()
        target._opt_called = True  # type: ignore[union-attr]
        return step.__get__(target, type(target))(*args, **kwargs)

    wrapper._wrapped_by_lr_sched = True  # type: ignore[attr-defined]
    return wrapper
