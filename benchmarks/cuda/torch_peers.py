"""torch on a GPU: eager with the fused optimizer, whole steps as CUDA graphs, and compiled as well."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from fastopt.benchmarks.cuda.torch_graphs import captured
from fastopt.benchmarks.peers.with_torch import Fused
from fastopt.benchmarks.workloads import Absent, Workload
from fastopt.kernels.cuda.runtime.compile import SIMULATED


class Eager(Fused):
    """The training loop of torch's tutorials, with data and indices on the GPU, and the fused optimizer."""

    device = "cpu" if SIMULATED else "cuda"


class Autocast(Eager):
    """The same in mixed precision: weights and optimizer in float32, products in bfloat16, as ours compute."""

    def __init__(self, workload: Workload) -> None:
        if workload.dtype != "bfloat16":
            raise Absent("of 16 bits alone")
        super().__init__(replace(workload, dtype="float32"))
        exact = self.loss_of

        def loss_of(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            with torch.autocast(self.device, torch.bfloat16):
                return exact(x, y)

        self.loss_of = loss_of


class Captured(Eager):
    """A step, gathering the batch included, as a CUDA graph; one for each length of a batch."""

    def __init__(self, workload: Workload) -> None:
        if SIMULATED:
            raise Absent("CUDA graphs need a GPU")
        if workload.optimizer == "adam":
            self.options = {**self.options, "capturable": True}
        super().__init__(workload)
        self.graphs: dict[int, tuple[Any, torch.Tensor, torch.Tensor]] = {}
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        start = [p.detach().clone() for p in parameters]

        def restore() -> None:
            with torch.no_grad():
                for p, was in zip(parameters, start, strict=True):
                    p.copy_(was)
                for state in self.optimizer.state.values():
                    for value in state.values():
                        value.zero_()

        for rows in self.batches:
            if len(rows) not in self.graphs:
                index, loss = rows.clone(), torch.zeros((), device=self.device)
                self.graphs[len(rows)] = captured(self.step_of(index, loss), restore), index, loss

    def step_of(self, index: torch.Tensor, total: torch.Tensor) -> Any:
        """A step on these rows, whose loss is written to `total`."""

        def step() -> None:
            self.optimizer.zero_grad(set_to_none=True)
            loss = self.loss_of(self.x[index], self.y[index])
            loss.backward()
            self.optimizer.step()
            total.copy_(loss.detach())

        return step

    def epoch(self) -> float:
        total = torch.zeros((), device=self.device)
        for rows in self.batches:
            replay, index, loss = self.graphs[len(rows)]
            index.copy_(rows)
            replay()
            total += loss * len(rows)
        return float(total) / self.rows


class Compiled(Captured):
    """The same with forward, loss and backward compiled by torch.compile."""

    def step_of(self, index: torch.Tensor, total: torch.Tensor) -> Any:
        import torch._dynamo
        import torch._inductor.config

        torch._inductor.config.compile_threads = 1  # no pool of processes that outlives the run
        if not self.graphs:
            torch._dynamo.reset()
            self.loss_of = torch.compile(self.loss_of, dynamic=False)
        return super().step_of(index, total)
