"""Which module of kernels serves which backend; all of them have the same functions."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any

from ._arrays import check_name

DEFAULT = "cpu"
HOST = {
    "numpy": "fastopt.kernels.reference",  # plain NumPy: the specification, and what the others are compared with
    "cpu": "fastopt.kernels.cpu",  # Numba and the vendor BLAS
}
DEVICE = "cuda"
MODULES = {**HOST, DEVICE: "fastopt.kernels.cuda"}  # models run on all, functions of arrays where their arrays are


def check(name: Any) -> str:
    """As `known`, for what only works on NumPy's arrays."""
    return check_name("backend", name, HOST)


def known(name: Any) -> str:
    """The name of any backend, or a ValueError that lists the known ones; imports nothing."""
    return check_name("backend", name, MODULES)


def get(name: Any) -> Any:
    """The kernel module of a backend, imported on first use."""
    return _load(known(name))


@cache
def _load(name: str) -> Any:
    return import_module(MODULES[name])
