"""Networks with random data as workloads on a GPU, and the time of their matrix products alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from fastopt.benchmarks.cuda.limits import best_product
from fastopt.benchmarks.cuda.turns import as_graph, graph_turns
from fastopt.benchmarks.cuda.work import layer_of
from fastopt.benchmarks.workloads import TITLES, WORKLOADS, Workload, make, random_classes
from fastopt.kernels.cuda.dense.products import forward_product, inputs_product, weights_product

ROUNDS = 10
PAUSE = 0.02  # seconds, after which no thread pool spins
SMALL_STEPS = 2000  # steps of an epoch, which then takes longer than copying parameters to the GPU and back


def mlp(
    rows: int, hidden: tuple[int, ...], inputs: int, batch: int, dtype: str = "float32", passes: int = 1
) -> Workload:
    """A network on random classes; passes: number of times that an epoch goes through the rows."""
    made = make(f"mlp-{batch}-{dtype}", *random_classes(rows, inputs), hidden, batch)
    # With more steps in an epoch its fixed costs count for less: order and rates are uploaded, losses are downloaded.
    # Learning rates are small, for losses of contestants would differ once they learn random labels by heart.
    return replace(made, dtype=dtype, order=np.tile(made.order, passes), lr=made.lr if passes == 1 else 1e-6)


def tiny(dtype: str = "float32") -> Workload:
    return mlp(10, (5, 4), 6, 4, dtype)


# Titles, and functions that make the workload of the size that `pick` chooses. The figure is the time of a step where
# an epoch has a few steps on random rows.
CASES: dict[str, tuple[str, Callable[..., Workload]]] = {
    "mlp-64": (
        "784-256-128-10, Adam, batch 64, 200 steps",
        lambda pick: pick(mlp(12_800, (256, 128), 784, 64), mlp(160, (256, 128), 784, 64), tiny()),
    ),
    "mlp-4096-bfloat16": (
        "1024-4096-4096-10, Adam, batch 4096, bfloat16, 200 steps",
        lambda pick: pick(
            mlp(40_960, (4096, 4096), 1024, 4096, "bfloat16", 20),
            mlp(160, (64, 64), 32, 64, "bfloat16"),
            mlp(10, (5, 4), 6, 4, "bfloat16", 2),
        ),
    ),
    "mlp-4096x4-bfloat16": (
        "4096-4096-4096-4096-4096-10, Adam, batch 4096, bfloat16, 60 steps",
        lambda pick: pick(
            mlp(8192, (4096,) * 4, 4096, 4096, "bfloat16", 30),
            mlp(160, (64,) * 4, 64, 64, "bfloat16"),
            mlp(10, (5,) * 4, 6, 4, "bfloat16", 2),
        ),
    ),
    "mlp-4096": (
        "1024-4096-4096-10, Adam, batch 4096, 100 steps",
        lambda pick: pick(mlp(40_960, (4096, 4096), 1024, 4096, passes=10), mlp(160, (64, 64), 32, 64), tiny()),
    ),
    "rows-256": (
        "60,000 random rows, 784-256-128-10, Adam, batch 256",
        lambda pick: pick(mlp(60_000, (256, 128), 784, 256), mlp(160, (256, 128), 784, 64), tiny()),
    ),
    **{
        name: (TITLES[name], lambda pick, name=name: tiny() if pick(0, 0, 1) else WORKLOADS[name](bool(pick(0, 1, 1))))
        for name in ("fashion-64", "fashion-256")
    },
}


def products_alone(workload: Workload) -> float:
    """Seconds of the products of an epoch, each by the fastest algorithm of cuBLASLt."""
    layers = [layer_of((workload.batch_size, *w.shape), workload.dtype) for w in workload.weights[::2]]
    products = [make(layer) for layer in layers for make in (forward_product, weights_product)]
    products += [inputs_product(layer) for layer in layers[1:]]
    calls = [best_product(product) for product in products]

    def step(stream: int) -> None:
        for call in calls:
            call(stream)

    return float(np.median(graph_turns({"products": as_graph(step)}, ROUNDS)["products"])) * workload.steps


def small(widths: tuple[int, ...], batch: int, pick: Callable[..., Any]) -> Workload:
    """A small network, of widths from the inputs to 10 outputs."""
    steps = pick(SMALL_STEPS, 50, 2)
    if pick(False, False, True):
        widths, batch = (*(min(width, 5) for width in widths[:-1]), 10), min(batch, 4)
    inputs, *hidden, _ = widths
    name = "-".join(map(str, widths))
    return make(f"{name}, batch {batch}", *random_classes(steps * batch, inputs), tuple(hidden), batch)
