"""Kinds of devices, and a check that our kernels can run on GPUs."""

from __future__ import annotations

from functools import cache

import torch

from .. import _backends

HOST, DEVICE = "cpu", "cuda"


def device_kind(t: torch.Tensor) -> str:
    """HOST, DEVICE, or "" for a tensor that no kernel of ours can reach."""
    if t.is_cpu:
        return HOST
    return DEVICE if t.is_cuda else ""


@cache
def why_no_cuda() -> str:
    """Reason that kernels cannot run on a GPU; "": they can."""
    try:
        _backends.get(_backends.DEVICE)
        from ..kernels.cuda.installation import require

        require()
    except ImportError as error:
        return str(error)
    return ""
