"""Table of the backends and their modules of kernels, which all have the same functions."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any

from ._validation import check_name
from .kernels.interrupts import interrupts_held

DEFAULT = "cpu"
HOST = {
    "numpy": "fastopt.kernels.reference",  # plain NumPy: the specification that the others are compared with
    "cpu": "fastopt.kernels.cpu",  # Numba and the vendor BLAS
}
DEVICE = "cuda"
MODULES = {**HOST, DEVICE: "fastopt.kernels.cuda"}  # all run models; functions of arrays run on the arrays' device
# Dtypes that layers of a float32 model may compute in, with the backends that have them: "cpu" on some processors.
COMPUTE = {"bfloat16": (DEVICE, "cpu", "numpy"), "tf32": (DEVICE,)}


def check(name: Any) -> str:
    """Return the name of a backend of NumPy arrays, or raise a ValueError that lists the known ones."""
    return check_name("backend", name, HOST)


def known(name: Any) -> str:
    """Return the name of any backend, or raise a ValueError that lists the known ones; imports nothing."""
    return check_name("backend", name, MODULES)


def check_compute(compute: Any, dtype: str, backend: str) -> str:
    """Return the dtype that layers compute in: the model's, which None stands for, or one of COMPUTE.

    Raises ValueError for a dtype that this backend, or a model of this dtype, cannot compute in.
    """
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
    refusal = compute_refusal(compute, backend)
    if refusal:
        raise ValueError(f"{refusal}. With compute_dtype=None a model computes in its dtype everywhere")
    return str(compute)


def compute_refusal(compute: str, backend: str) -> str:
    """The reason for which a backend does not compute in one of COMPUTE; "" if it does. A GPU is not asked."""
    refusal, others = f"the backend {backend!r} does not compute in {compute}", COMPUTE[compute]
    if backend == "cpu" and backend in others:
        reason = get(backend).bfloat16_refusal()
        if not reason:
            return ""
        refusal, others = f"{refusal} here, because {reason}", tuple(name for name in others if name != backend)
    elif backend in others:
        return ""
    return f"{refusal}; those that do: {', '.join(others)}"


def get(name: Any) -> Any:
    """Return the kernel module of a backend, imported on first use."""
    return _load(known(name))


def network(name: Any) -> Any:
    """Return the backend's class of networks; ImportError, naming the missing parts, if its kernels cannot run."""
    return get(name).Network


@cache
def _load(name: str) -> Any:
    # An interrupt would leave modules half imported, and the next import would fail.
    with interrupts_held():
        return import_module(MODULES[name])
