"""Peers of this library: its backends numpy and cpu."""

from __future__ import annotations

import fastopt as fo
from fastopt.benchmarks.workloads import Absent, Workload
from fastopt.kernels.spec import Batches
from fastopt.models.training import train_epoch


class Reference:
    """`Sequential` on the NumPy reference. Epochs are trained as `fit` does, but in the workload's order of rows."""

    same_steps = True
    backend = "numpy"

    def __init__(self, workload: Workload) -> None:
        layers = [*(fo.Dense(width, "relu") for width in workload.hidden), fo.Dense(workload.outputs)]
        try:
            self.model = fo.Sequential(
                layers, backend=self.backend, inputs=workload.x.shape[1], compute_dtype=workload.dtype
            )
        except ValueError as reason:
            raise Absent(str(reason)) from None
        self.model.set_weights(workload.weights)
        self.model.compile(fo.get_optimizer(workload.optimizer, lr=workload.lr), workload.loss)
        self.workload = workload
        self.network = self.model.network()
        self.batches = Batches(workload.x, workload.y, workload.order, workload.batch_size)

    def epoch(self) -> float:
        return self.workload.mean(train_epoch(self.model, self.network, self.batches).losses)


class Compiled(Reference):
    """`Sequential` on the compiled kernels."""

    backend = "cpu"
