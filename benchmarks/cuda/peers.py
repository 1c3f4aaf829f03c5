"""Whoever can train a workload on a GPU, with its data there: this library, and torch in several ways."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from unittest import mock

from fastopt import _backends
from fastopt.benchmarks.peers import Build, Peer, need
from fastopt.benchmarks.peers.own import Reference
from fastopt.benchmarks.workloads import Absent, Workload


class OnDevice(Reference):
    """This library on its backend "cuda"."""

    backend = "cuda"

    def __init__(self, workload: Workload) -> None:
        if not hasattr(_backends.get(self.backend), "Network"):
            raise Absent("the backend 'cuda' has no networks")
        if workload.dtype != "float32":
            raise Absent(f"networks have no {workload.dtype}")
        super().__init__(workload)


class GraphABatch(OnDevice):
    """A CUDA graph a batch, whatever the estimate says."""

    setting = "0"

    def epoch(self) -> float:
        with mock.patch.dict("os.environ", FASTOPT_CUDA_FUSED=self.setting):
            return super().epoch()


class OneKernel(GraphABatch):
    """Many batches as one kernel, whatever the estimate says."""

    setting = "1"

    def __init__(self, workload: Workload) -> None:
        super().__init__(workload)
        if not chosen(workload, self.setting):
            raise Absent("does not fit into a multiprocessor's shared memory")


def chosen(workload: Workload, setting: str = "") -> bool:
    """Whether this library trains on the workload by one kernel, by its own estimate or by a setting of it."""
    from fastopt.kernels.cuda import fused_pass

    network, labels = OnDevice(workload).network, workload.y.ndim == 1
    how = workload.optimizer, labels, workload.batch_size, network.gpu.shared_bytes
    with mock.patch.dict("os.environ", FASTOPT_CUDA_FUSED=setting):
        return fused_pass.chosen(network.net, *how) is not None


def _torch(name: str) -> Callable[[Workload], Peer]:
    def build(workload: Workload) -> Peer:
        need("torch")
        return getattr(import_module("fastopt.benchmarks.cuda.torch_peers"), name)(workload)

    return build


PEERS: dict[str, Build] = {
    "fastopt": OnDevice,
    "torch-fused": _torch("Eager"),
    "torch-graph": _torch("Captured"),
    "torch-compile": _torch("Compiled"),
}
WAYS: dict[str, Build] = {"fastopt-fused": OneKernel, "fastopt-graph": GraphABatch}  # of this library
