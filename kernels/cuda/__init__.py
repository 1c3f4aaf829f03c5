"""The CUDA backend: numba-cuda kernels on arrays in a GPU's memory. The verbs are those of `fastopt.kernels.reference`.

Importing this loads nothing; asking for a verb does, or says what is missing.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any

from .installation import require
from .rehearsal import rehearsed

_HOMES = {
    "ArrayPlan": "arrays",
    "CountedPlan": "counted",
    "DeviceArray": "memory",
    "Guard": "plan",
    "Network": "network",
    "Number": "counted",
    "Plan": "plan",
    "activate": "losses",
    "all_kernels": "kernels",
    "compiling": "compile",
    "current_stream": "arrays",
    "dense_backward": "dense",
    "dense_forward": "dense",
    "gpu_of": "arrays",
    "gradient_norm": "arrays",
    "loss": "losses",
    "numpy_dtype": "arrays",
    "refuse_capture": "counted",
    "see": "arrays",
    "to_host": "memory",
    "update": "arrays",
    "widened": "memory",
}

_PRODUCTS = ("Network", "dense_backward", "dense_forward")

__all__ = list(_HOMES)


@cache
def _require(products: bool) -> None:
    """Raises ImportError where parts are missing; where they are there, that is looked at once, for it takes long."""
    require(*["cuBLASLt"] * products)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"the backend 'cuda' has no {name}; it has {', '.join(_HOMES)}")
    if rehearsed() is None:
        _require(name in _PRODUCTS)
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
