"""Contestants that can train a workload: this library, its reference, and other libraries.

PEERS maps names to functions build(workload), which return a `Peer`, or raise `workloads.Absent` if a library or a
compiler is missing. Nothing is imported before a peer is built.
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

    same_steps: bool  # True if it takes exactly the workload's steps, so that its losses must equal those of the others

    def epoch(self) -> float:
        """Train for an epoch and return its mean loss; NaN from a peer that takes other steps."""

    def loss(self) -> float:
        """Return the loss on all rows with the present weights; only peers that take other steps have it."""


Build = Callable[[Workload], Peer]
MISSING = "{} is not installed: it is in the extra `bench` (pip install 'fastopt[bench]')"


def need(*packages: str, message: str = MISSING) -> None:
    """Raise Absent, with the message, if one of the packages is not installed; imports nothing."""
    for package in packages:
        if find_spec(package) is None:
            raise Absent(message.format(package))


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
    """While open, warnings are ignored: those of other libraries do not concern users of the benchmarks."""
    with catch_warnings():
        simplefilter("ignore")
        yield
