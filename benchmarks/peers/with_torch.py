"""Peers in torch, on the CPU: eager with the default or the fused optimizer, and torch.compile."""

from __future__ import annotations

import os
import shutil
from typing import Any

import torch

import fastopt as fo
from fastopt.benchmarks.workloads import Absent, Workload


def optimizer(rule: str, parameters: Any, lr: float, **options: Any) -> torch.optim.Optimizer:
    """Return torch's optimizer for a rule of ours."""
    if rule in ("sgd", "momentum"):
        return torch.optim.SGD(parameters, lr, momentum=0.9 if rule == "momentum" else 0.0, **options)
    return {"adam": torch.optim.Adam, "adagrad": torch.optim.Adagrad}[rule](parameters, lr, **options)


def use_our_threads() -> None:
    torch.set_num_threads(fo.get_num_threads())


class Default:
    """The training loop of torch's tutorials: `Linear` and `ReLU`, rows gathered by index, the optimizer's defaults."""

    same_steps = True
    options: dict[str, Any] = {}  # noqa: RUF012
    device = "cpu"

    def __init__(self, workload: Workload) -> None:
        use_our_threads()
        modules: list[torch.nn.Module] = []
        for w, b in zip(workload.weights[::2], workload.weights[1::2], strict=True):
            modules += [torch.nn.Linear(*w.shape), torch.nn.ReLU()]
            with torch.no_grad():
                modules[-2].weight.copy_(torch.from_numpy(w).T)
                modules[-2].bias.copy_(torch.from_numpy(b))
        dtype = getattr(torch, workload.dtype)
        model = torch.nn.Sequential(*modules[:-1]).to(self.device, dtype)
        criterion = torch.nn.CrossEntropyLoss() if workload.classes else torch.nn.MSELoss()
        self.loss_of = lambda x, y: criterion(model(x), y)
        self.optimizer = optimizer(workload.optimizer, model.parameters(), workload.lr, **self.options)
        self.x = torch.from_numpy(workload.x).to(self.device, dtype)
        self.y = torch.from_numpy(workload.y).to(self.device, None if workload.classes else dtype)
        self.rows = len(workload.order)
        self.batches = [torch.from_numpy(rows).to(self.device) for rows in workload.batches()]

    def epoch(self) -> float:
        total = torch.zeros((), device=self.device)
        for rows in self.batches:
            self.optimizer.zero_grad(set_to_none=True)
            loss = self.loss_of(self.x[rows], self.y[rows])
            loss.backward()
            self.optimizer.step()
            total += loss.detach() * len(rows)
        return float(total) / self.rows


class Fused(Default):
    """The same with `fused=True`: the optimizer computes in one pass over the parameters."""

    options = {"fused": True}  # noqa: RUF012


class Inductor(Fused):
    """The same with forward, loss and backward compiled by torch.compile."""

    def __init__(self, workload: Workload) -> None:
        compiler = os.environ.get("CXX", "").split(" ")[0]
        if not any(map(shutil.which, filter(None, (compiler, "g++", "clang++", "c++")))):
            raise Absent("torch.compile needs a C++ compiler (g++ or clang++, or the one that CXX names)")
        super().__init__(workload)
        import torch._dynamo
        import torch._inductor.config

        torch._inductor.config.compile_threads = 1  # without a pool of processes that would outlive the run
        torch._dynamo.reset()  # else, after too many recompilations, functions silently run uncompiled
        self.loss_of = torch.compile(self.loss_of, dynamic=False)
