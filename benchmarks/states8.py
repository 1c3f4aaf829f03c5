"""States of 8 bits beside whole ones and bitsandbytes' Adam8bit: time of a step, memory, and how well they learn.

    python -m fastopt.benchmarks.states8 times [PARAMETERS ...]    Adam on one float32 array, two threads
    python -m fastopt.benchmarks.states8 fashion [EPOCHS]          784-256-128-10 on Fashion-MNIST, three seeds
    python -m fastopt.benchmarks.states8 transformer [STEPS]       loss of a small transformer, three seeds

Contestants take turns in one process; times are medians.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import fastopt as fo
from fastopt.benchmarks.peers import need

ROUNDS = 9
BITS = (32, 8)


def steps_on_arrays(size: int) -> dict[str, Callable[[], object]]:
    """A step of Adam by contestant, each on parameters of its own; bitsandbytes only where it is installed."""
    rng = np.random.default_rng(0)
    gradient = rng.standard_normal(size, np.float32)
    calls: dict[str, Callable[[], object]] = {}
    for bits in BITS:
        optimizer = fo.Adam(rng.standard_normal(size, np.float32), state_bits=bits)
        calls[f"fastopt, {bits} bits"] = lambda step=optimizer.step: step(gradient)  # type: ignore[misc]
    try:
        need("bitsandbytes")
        import torch
        from bitsandbytes.optim import Adam8bit
    except Exception:  # whatever its import says where it cannot run
        return calls
    p = torch.nn.Parameter(torch.from_numpy(rng.standard_normal(size, np.float32)))
    p.grad = torch.from_numpy(gradient)
    calls["bitsandbytes"] = Adam8bit([p]).step
    return calls


def times(sizes: list[int]) -> None:
    """Print milliseconds of a step, and ratios."""
    fo.set_num_threads(2)
    for size in sizes:
        calls = steps_on_arrays(size)
        found: dict[str, list[float]] = {name: [] for name in calls}
        for turn in range(ROUNDS + 1):
            for name, call in calls.items():
                if name == "bitsandbytes" and turn > 2:
                    continue
                start = time.perf_counter()
                call()
                found[name].append(1e3 * (time.perf_counter() - start))
        medians = {name: statistics.median(values[1:]) for name, values in found.items()}
        ours = medians["fastopt, 8 bits"]
        print(f"{size:,}:", ", ".join(f"{name} {value:.2f} ms ({ours / value:.3f})" for name, value in medians.items()))


def fashion(epochs: int) -> None:
    """Print the test accuracies of both kinds of states, after as many epochs from the same weights."""
    data = fo.datasets.load("fashion-mnist")
    x, test_x = (np.asarray(rows, np.float32).reshape(len(rows), -1) for rows in (data.x_train, data.x_test))
    for bits in BITS:
        accuracies = []
        for seed in range(3):
            model = fo.Sequential([fo.Dense(256, "relu"), fo.Dense(128, "relu"), fo.Dense(10, "softmax")], seed=seed)
            model.compile(fo.Adam(state_bits=bits), "sparse_categorical_crossentropy", ["accuracy"])
            model.fit(x, data.y_train, epochs=epochs, batch_size=64, verbose=False)
            accuracies.append(100 * model.evaluate(test_x, data.y_test)["accuracy"])
        print(f"{bits} bits: {statistics.mean(accuracies):.2f} %", [round(value, 2) for value in accuracies])


def transformer_loss(bits: int, steps: int, seed: int) -> float:
    """Mean loss of the last tenth of the steps of a transformer that repeats what it read three places before."""
    import torch

    from fastopt.torch import AdamW

    torch.manual_seed(seed)
    symbols, length, width = 32, 24, 64
    layer = torch.nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True)
    body = torch.nn.ModuleDict({
        "embedding": torch.nn.Embedding(symbols, width),
        "layers": torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False),
        "head": torch.nn.Linear(width, symbols),
    })
    place = torch.nn.Parameter(0.02 * torch.randn(length, width))
    mask = torch.nn.Transformer.generate_square_subsequent_mask(length)
    optimizer = AdamW([*body.parameters(), place], lr=1e-3, weight_decay=0.01, state_bits=bits)
    losses = []
    for _ in range(steps):
        rows = torch.randint(symbols, (32, length))
        target = torch.roll(rows, 3, dims=1)
        seen: Any = body["layers"](body["embedding"](rows) + place, mask=mask, is_causal=True)
        loss = torch.nn.functional.cross_entropy(body["head"](seen)[:, 4:].flatten(0, 1), target[:, 4:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return statistics.mean(losses[-steps // 10 :])


def transformer(steps: int) -> None:
    """Print the losses of both kinds of states, from the same weights and data."""
    for bits in BITS:
        losses = [transformer_loss(bits, steps, seed) for seed in range(3)]
        print(f"{bits} bits: {statistics.mean(losses):.4f}", [round(value, 4) for value in losses])


if __name__ == "__main__":
    what, *numbers = sys.argv[1:] or ["times"]
    given = [int(float(number)) for number in numbers]
    if what == "times":
        times(given or [10_000_000, 50_000_000])
    elif what == "fashion":
        fashion(*given or [5])
    else:
        transformer(*given or [300])
