"""Which of our kernels can reach the memory of a tensor."""

from __future__ import annotations

from functools import cache

import torch

from .. import _backends

HOST, DEVICE = "cpu", "cuda"


def place_of(t: torch.Tensor) -> str:
    """HOST, DEVICE, or "" for what no kernel of ours can reach."""
    if t.is_cpu:
        return HOST
    return DEVICE if t.is_cuda else ""


@cache
def lacking() -> str:
    """Why no kernel can run on a GPU; "": they can."""
    try:
        _backends.get(_backends.DEVICE)
        from ..kernels.cuda.installation import require

        require()
    except ImportError as error:
        return str(error)
    return ""
