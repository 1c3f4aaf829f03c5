"""Whoever can train a workload: this library, its reference, and the libraries that one could use instead.

PEERS is a table of name -> build(workload), which returns a `Peer`. Building one whose library (or whose compiler) is
not there raises `workloads.Absent` with the reason. Nothing is imported before it is built.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Protocol
from warnings import catch_warnings, simplefilter

from fastopt.benchmarks.workloads import Absent, Workload


class Peer(Protocol):
    """A contestant, on the workload's rows and from its initial weights."""

    same_steps: bool  # whether it takes exactly the workload's steps, so that its losses must be those of the others

    def epoch(self) -> float:
        """Train for an epoch and return its mean loss (of one that takes other steps: nan; see `loss`)."""

    def loss(self) -> float:
        """The loss on all rows as the weights are now; only of peers that take other steps."""


Build = Callable[[Workload], Peer]
MISSING = "{} is not installed: it is in the extra `bench` (pip install 'fastopt[bench]')"


def need(*packages: str) -> None:
    """Raise Absent where one of the packages is not installed; imports nothing."""
    for package in packages:
        if find_spec(package) is None:
            raise Absent(MISSING.format(package))


def _lazily(module: str, name: str, *packages: str) -> Build:
    def build(workload: Workload) -> Peer:
        need(*packages)
        return getattr(import_module(f"fastopt.benchmarks.peers.{module}"), name)(workload)

    return build


PEERS: dict[str, Build] = {
    "fastopt": _lazily("own", "Compiled"),
    "numpy": _lazily("own", "Reference"),
    "torch-fused": _lazily("with_torch", "Fused", "torch"),
    "torch-default": _lazily("with_torch", "Default", "torch"),
    "torch-compile": _lazily("with_torch", "Inductor", "torch"),
    "jax-step": _lazily("with_jax", "Step", "jax", "optax"),
    "jax-scan": _lazily("with_jax", "Scan", "jax", "optax"),
    "sklearn": _lazily("with_sklearn", "Regressor", "sklearn"),
}
TITLES = {
    "fastopt": "fastopt",
    "numpy": "NumPy reference",
    "torch-fused": "torch, fused=True",
    "torch-default": "torch, default",
    "torch-compile": "torch.compile",
    "jax-step": "JAX, jitted step",
    "jax-scan": "JAX, scan over the epoch",
    "sklearn": "scikit-learn SGDRegressor",
}


@contextmanager
def tolerant() -> Iterator[None]:
    """While open, warnings pass unheard: what other libraries warn of is not for their users' users."""
    with catch_warnings():
        simplefilter("ignore")
        yield
