"""Which module of kernels serves which backend; all of them have the same functions."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any

from ._validation import check_name
from .kernels.interrupts import interrupts_held

DEFAULT = "cpu"
HOST = {
    "numpy": "fastopt.kernels.reference",  # plain NumPy: the specification, and what the others are compared with
    "cpu": "fastopt.kernels.cpu",  # Numba and the vendor BLAS
}
DEVICE = "cuda"
MODULES = {**HOST, DEVICE: "fastopt.kernels.cuda"}  # models run on all, functions of arrays where their arrays are
# What layers of a float32 model may compute in instead, and on which backends.
COMPUTE = {"bfloat16": (DEVICE, "numpy"), "tf32": (DEVICE,)}


def check(name: Any) -> str:
    """As `known`, for what only works on NumPy's arrays."""
    return check_name("backend", name, HOST)


def known(name: Any) -> str:
    """The name of any backend, or a ValueError that lists the known ones; imports nothing."""
    return check_name("backend", name, MODULES)


def check_compute(compute: Any, dtype: str, backend: str) -> str:
    """What layers compute in: the model's dtype, which None stands for, or one of COMPUTE where that can be."""
    if compute is None or compute == dtype:
        return dtype
    if compute == "float16":
        raise ValueError(
            "compute_dtype='float16' is not supported: its small gradients would be lost without a scaled loss; use"
            " 'bfloat16', which has the range of float32"
        )
    if compute not in COMPUTE:
        raise ValueError(f"compute_dtype must be {dtype}, as dtype is, or {', '.join(COMPUTE)}; got {compute!r}")
    if dtype != "float32":
        raise ValueError(f"compute_dtype={compute!r} goes with dtype='float32'; got {dtype}")
    if backend not in COMPUTE[compute]:
        raise ValueError(
            f"the backend {backend!r} does not compute in {compute}; those that do: {', '.join(COMPUTE[compute])}. With"
            " compute_dtype=None a model computes in its dtype everywhere"
        )
    return str(compute)


def get(name: Any) -> Any:
    """The kernel module of a backend, imported on first use."""
    return _load(known(name))


def network(name: Any) -> Any:
    """The backend's class of networks; ImportError, with what is missing, where its kernels cannot run."""
    return get(name).Network


@cache
def _load(name: str) -> Any:
    # An interrupt would leave modules behind that are imported by half, and the next try would fail.
    with interrupts_held():
        return import_module(MODULES[name])
