"""Optimizers of DeepSpeed for the CPU, which it compiles by g++ and ninja when they are first made (a minute)."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch

from fastopt.benchmarks.workloads import Absent


@cache
def _classes() -> dict[str, Any]:
    """DeepSpeed's optimizers by our rules, compiled. Raises Absent."""
    for tool in ("g++", "ninja"):
        if shutil.which(tool) is None:
            raise Absent(f"DeepSpeed compiles its optimizers by {tool}, which is not on the path")
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # it would use a GPU's compiler where there is one
    from deepspeed.ops.adagrad import DeepSpeedCPUAdagrad
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    return {"adam": DeepSpeedCPUAdam, "adagrad": DeepSpeedCPUAdagrad}


def optimizer(
    rule: str, p: np.ndarray, g: np.ndarray, states: Sequence[np.ndarray], lr: float, steps_before: int
) -> Any:
    """Return DeepSpeed's optimizer of one parameter, on the memory of its arrays. Raises Absent."""
    parameter = torch.nn.Parameter(torch.from_numpy(p))
    parameter.grad = torch.from_numpy(g)
    try:
        made = _classes()[rule]([parameter], lr=lr)
    except RuntimeError as error:
        raise Absent(f"DeepSpeed could not compile its optimizers: {error}") from error
    names = ("exp_avg", "exp_avg_sq") if rule == "adam" else ("exp_avg_sq",)
    state = made.state[parameter]
    state["step"] = steps_before
    for name, values in zip(names, states, strict=True):
        state[name] = torch.from_numpy(values)
    return made
