"""Training loops as torch's users write them: forward, backward and the optimizer's step, which is timed by itself too.

An optimizer that is measured alone finds idle cores and its arrays in the cache. In a loop torch's threads are awake
when the step begins, and the forward pass that follows finds what the step has left.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from fastopt.benchmarks.peers import need

LR = 1e-3
WARM = 3  # iterations of a turn that are not timed: they bring back what other contestants have driven out


class Loop:
    """A model with an optimizer, the same at the start for every contestant.

    model: makes the parameters and a function that returns the loss. Raises Absent.
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
        if contestant == "fastopt":
            self.optimizer: Any = fastopt.torch.Adam(parameters, lr=LR)
        else:
            self.optimizer = torch.optim.Adam(parameters, lr=LR, fused=True if contestant == "torch-fused" else None)

    def iterate(self) -> tuple[float, float, Any]:
        """Seconds of the step and of the whole iteration, and the loss, a tensor."""
        start = time.perf_counter()
        self.optimizer.zero_grad()
        loss = self.loss()
        loss.backward()
        before = time.perf_counter()
        self.optimizer.step()
        end = time.perf_counter()
        return end - before, end - start, loss.detach()

    def losses(self, count: int) -> list[float]:
        return [float(self.iterate()[2]) for _ in range(count)]


def mlp(*widths: int, batch: int = 64) -> Callable[[Any], tuple[list[Any], Callable[[], Any]]]:
    """Dense layers with ReLU between them and a softmax cross-entropy, on batches of random data in turn."""

    def make(torch: Any) -> tuple[list[Any], Callable[[], Any]]:
        layers: list[Any] = []
        for inputs, outputs in pairwise(widths):
            layers += [torch.nn.Linear(inputs, outputs), torch.nn.ReLU()]
        model = torch.nn.Sequential(*layers[:-1])
        data, labels = torch.randn(20, batch, widths[0]), torch.randint(0, widths[-1], (20, batch))
        criterion, turn = torch.nn.CrossEntropyLoss(), [0]

        def loss() -> Any:
            turn[0] = (turn[0] + 1) % len(data)
            return criterion(model(data[turn[0]]), labels[turn[0]])

        return list(model.parameters()), loss

    return make


def tensors(count: int, size: int) -> Callable[[Any], tuple[list[Any], Callable[[], Any]]]:
    """Tensors of one size, whose squared distance from others is minimised."""

    def make(torch: Any) -> tuple[list[Any], Callable[[], Any]]:
        parameters = [torch.randn(size, requires_grad=True) for _ in range(count)]
        targets = [torch.randn(size) for _ in range(count)]

        def loss() -> Any:
            pairs = zip(parameters, targets, strict=True)
            return torch.stack([torch.nn.functional.mse_loss(p, t) for p, t in pairs]).sum()

        return parameters, loss

    return make


class Work(NamedTuple):
    """A loop to be measured; the quick one is for seeing that it runs."""

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
    """For each contestant the seconds of its "step" and "iteration", medians of each turn; turns are taken in random
    order, without a pause: whose threads are still awake is part of what is measured."""
    found: dict[str, dict[str, list[float]]] = {name: {"step": [], "iteration": []} for name in loops}
    rng, names = np.random.default_rng(0), list(loops)
    for _ in range(rounds):
        for name in [names[k] for k in rng.permutation(len(names))]:
            taken = [loops[name].iterate()[:2] for _ in range(WARM + iterations)][WARM:]
            for what, median in zip(found[name], np.median(taken, axis=0).tolist(), strict=True):
                found[name][what].append(median)
    return found
