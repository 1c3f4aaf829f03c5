"""CUDA backend: numba-cuda kernels on arrays in a GPU's memory, with the verbs of `fastopt.kernels.reference`.

Importing this loads nothing; asking for a verb loads what it needs, or raises ImportError with what is missing.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any

from .installation import require
from .runtime.rehearsal import rehearsed

_HOMES = {
    "ArrayPlan": "optim.arrays",
    "CountedPlan": "optim.counted",
    "DeviceArray": "runtime.memory",
    "Guard": "optim.plan",
    "Network": "training.network",
    "Number": "optim.counted",
    "Plan": "optim.plan",
    "activate": "dense.losses",
    "all_kernels": "kernels",
    "compiling": "runtime.compile",
    "current_stream": "runtime.array_interface",
    "dense_backward": "dense.layer",
    "dense_forward": "dense.layer",
    "gpu_of": "runtime.array_interface",
    "gradient_norm": "optim.arrays",
    "loss": "dense.losses",
    "numpy_dtype": "runtime.array_interface",
    "refuse_capture": "optim.counted",
    "see": "runtime.array_interface",
    "to_host": "runtime.memory",
    "update": "optim.arrays",
    "widened": "runtime.memory",
}

_PRODUCTS = ("Network", "dense_backward", "dense_forward")

__all__ = list(_HOMES)


@cache
def _require(products: bool) -> None:
    """Raise ImportError if requirements are missing. Checked once if they are not, for it takes long."""
    require(*["cuBLASLt"] * products)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"the backend 'cuda' has no {name}; it has {', '.join(_HOMES)}")
    if rehearsed() is None:
        _require(name in _PRODUCTS)
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
