"""Training loops in torch: forward, backward and the optimizer's step, which is also timed by itself.

An optimizer that is measured alone finds idle cores and its arrays in the cache. In a loop, torch's threads are
spinning when the step begins, and the next forward pass finds the caches as the step has left them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from fastopt.benchmarks.peers import need

LR = 1e-3
WARM = 3  # iterations of a turn that are not timed: they fill the caches again after other contestants


class Loop:
    """A model with an optimizer; all contestants start from the same parameters.

    contestant  "fastopt-in-backward" has its step inside the backward pass
    model  function that returns the parameters and a function that computes the loss; raises Absent
    """

    def __init__(self, contestant: str, model: Callable[[Any], tuple[list[Any], Callable[[], Any]]]) -> None:
        need("torch")
        import torch

        import fastopt.torch
        from fastopt.benchmarks.peers.with_torch import use_our_threads

        use_our_threads()
        torch.manual_seed(0)
        parameters, self.loss = model(torch)
        self.size = sum(p.numel() for p in parameters)
        self.in_backward = contestant == "fastopt-in-backward"
        if contestant.startswith("fastopt"):
            self.optimizer: Any = fastopt.torch.Adam(parameters, lr=LR)
        else:
            self.optimizer = torch.optim.Adam(parameters, lr=LR, fused=True if contestant == "torch-fused" else None)
        if self.in_backward:
            fastopt.torch.step_in_backward(self.optimizer)

    def iterate(self) -> tuple[float, float, Any]:
        """Return the seconds of the step and of the whole iteration, and the loss as a tensor."""
        start = time.perf_counter()
        self.optimizer.zero_grad()
        loss = self.loss()
        loss.backward()
        before = time.perf_counter()
        if not self.in_backward:
            self.optimizer.step()
        end = time.perf_counter()
        return end - before, end - start, loss.detach()

    def losses(self, count: int) -> list[float]:
        return [float(self.iterate()[2]) for _ in range(count)]


def mlp(*widths: int, batch: int = 64) -> Callable[[Any], tuple[list[Any], Callable[[], Any]]]:
    """Dense layers with ReLU and a softmax cross-entropy, on 20 batches of random data."""

    def make(torch: Any) -> tuple[list[Any], Callable[[], Any]]:
        layers: list[Any] = []
        for inputs, outputs in pairwise(widths):
            layers += [torch.nn.Linear(inputs, outputs), torch.nn.ReLU()]
        model = torch.nn.Sequential(*layers[:-1])
        data, labels = torch.randn(20, batch, widths[0]), torch.randint(0, widths[-1], (20, batch))
        criterion, index = torch.nn.CrossEntropyLoss(), [0]

        def loss() -> Any:
            index[0] = (index[0] + 1) % len(data)
            return criterion(model(data[index[0]]), labels[index[0]])

        return list(model.parameters()), loss

    return make


def tensors(count: int, size: int) -> Callable[[Any], tuple[list[Any], Callable[[], Any]]]:
    """Tensors of one size; the loss is their squared distance from random ones."""

    def make(torch: Any) -> tuple[list[Any], Callable[[], Any]]:
        parameters = [torch.randn(size, requires_grad=True) for _ in range(count)]
        targets = [torch.randn(size) for _ in range(count)]

        def loss() -> Any:
            pairs = zip(parameters, targets, strict=True)
            return torch.stack([torch.nn.functional.mse_loss(p, t) for p, t in pairs]).sum()

        return parameters, loss

    return make


class Work(NamedTuple):
    """A loop to measure; `quick` is a small model, which shows that the loop runs."""

    model: Callable[[Any], tuple[list[Any], Callable[[], Any]]]
    quick: Callable[[Any], tuple[list[Any], Callable[[], Any]]]
    iterations: int  # in a turn
    rounds: int


LOOPS = {
    "MLP 784-256-256-10, batch 64": Work(mlp(784, 256, 256, 10), mlp(20, 16, 16, 10), 100, 15),
    "MLP 784-1024-1024-10, batch 64": Work(mlp(784, 1024, 1024, 10), mlp(20, 32, 32, 10), 30, 15),
    "100 tensors of 1,000": Work(tensors(100, 1_000), tensors(5, 100), 60, 15),
    "one tensor of 10 M": Work(tensors(1, 10_000_000), tensors(1, 70_000), 8, 15),
}


def interleaved_loops(loops: dict[str, Loop], iterations: int, rounds: int) -> dict[str, dict[str, list[float]]]:
    """Return the seconds of "step" and "iteration" by contestant: the median of every turn.

    Turns have a random order and no pause between them: threads that still spin are part of the measurement.
    """
    found: dict[str, dict[str, list[float]]] = {name: {"step": [], "iteration": []} for name in loops}
    rng, names = np.random.default_rng(0), list(loops)
    for _ in range(rounds):
        for name in [names[k] for k in rng.permutation(len(names))]:
            taken = [loops[name].iterate()[:2] for _ in range(WARM + iterations)][WARM:]
            for part, median in zip(found[name], np.median(taken, axis=0).tolist(), strict=True):
                found[name][part].append(median)
    return found
