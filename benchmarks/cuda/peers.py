"""Contestants that train a workload with its data on a GPU: this library, and torch in several ways."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from unittest import mock

from fastopt import _backends
from fastopt.benchmarks.peers import Build, Peer, need
from fastopt.benchmarks.peers.own import Reference
from fastopt.benchmarks.workloads import Absent, Workload
from fastopt.kernels.cuda.dense.products import SLOPES


class OnDevice(Reference):
    """This library on its backend "cuda"."""

    backend = "cuda"

    def __init__(self, workload: Workload) -> None:
        if not hasattr(_backends.get(self.backend), "Network"):
            raise Absent("the backend 'cuda' has no networks")
        super().__init__(workload)
        self.hold()

    def hold(self) -> None:
        """Keep parameters on the GPU between epochs, as `fit` does without callbacks."""
        self.held = self.network.holding()
        self.held.__enter__()


class WithEpilogues(OnDevice):
    """The same with every possible activation and slope as an epilogue of a product."""

    def __init__(self, workload: Workload) -> None:
        super().__init__(workload)
        model, fused = self.model, frozenset({"linear", *SLOPES})
        assert model.inputs is not None
        assert model.loss is not None
        given = model.specs(model.inputs), model.parameters, model.dtype, model.loss.spec
        self.network = _backends.get(self.backend).Network(*given, compute=model.compute_dtype, fused=fused)
        self.hold()


class GraphABatch(OnDevice):
    """A CUDA graph a batch, regardless of the estimate."""

    setting = "0"

    def epoch(self) -> float:
        with mock.patch.dict("os.environ", FASTOPT_CUDA_FUSED=self.setting):
            return super().epoch()


class OneKernel(GraphABatch):
    """Many batches as one kernel, regardless of the estimate."""

    setting = "1"

    def __init__(self, workload: Workload) -> None:
        super().__init__(workload)
        if not uses_one_kernel(workload, self.setting):
            raise Absent("does not fit into a multiprocessor's shared memory")


def uses_one_kernel(workload: Workload, setting: str = "") -> bool:
    """True if this library trains the workload by one kernel; setting: FASTOPT_CUDA_FUSED, "" for the estimate."""
    from fastopt.kernels.cuda.fused import select

    network, labels = OnDevice(workload).network, workload.y.ndim == 1
    how = workload.optimizer, labels, workload.batch_size, network.gpu.shared_bytes
    with mock.patch.dict("os.environ", FASTOPT_CUDA_FUSED=setting):
        return select.choose(network.net, *how) is not None


def _torch(name: str) -> Callable[[Workload], Peer]:
    def build(workload: Workload) -> Peer:
        need("torch")
        return getattr(import_module("fastopt.benchmarks.cuda.torch_peers"), name)(workload)

    return build


PEERS: dict[str, Build] = {
    "fastopt": OnDevice,
    "fastopt-epilogues": WithEpilogues,
    "torch-fused": _torch("Eager"),
    "torch-autocast": _torch("Autocast"),
    "torch-graph": _torch("Captured"),
    "torch-compile": _torch("Compiled"),
}
WAYS: dict[str, Build] = {"fastopt-fused": OneKernel, "fastopt-graph": GraphABatch}  # of this library
