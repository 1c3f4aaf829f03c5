"""Workloads of an epoch: all contestants get the same rows, initial weights and order of batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

import fastopt as fo


class Absent(Exception):
    """A library or data set is not on this machine; the message says how to get it."""


@dataclass(frozen=True)
class Workload:
    """A network and its data. All epochs of all contestants take the rows in the same `order`."""

    name: str
    x: np.ndarray  # (n, inputs) float32
    y: np.ndarray  # (n,) int64 labels, or (n, 1) float32
    hidden: tuple[int, ...]  # widths, ReLU
    outputs: int
    batch_size: int
    optimizer: str  # adam, or momentum (0.9)
    lr: float
    order: np.ndarray  # (n,) int64
    weights: list[np.ndarray]  # [w0, b0, ...], float32: w (inputs, outputs), b (outputs,)
    dtype: str = "float32"  # of the training

    @property
    def classes(self) -> bool:
        return self.y.ndim == 1

    @property
    def parameters(self) -> int:
        return sum(p.size for p in self.weights)

    @property
    def shape(self) -> str:
        """Widths of all layers, and the rows of a batch, in words."""
        return f"{'-'.join(map(str, (self.x.shape[1], *self.hidden, self.outputs)))}, batch {self.batch_size}"

    @property
    def steps(self) -> int:
        return -(-len(self.order) // self.batch_size)

    @property
    def flops(self) -> float:
        """Operations of the matrix products of an epoch: forward, dw, and dx of all layers but the first."""
        sizes = [w.size for w in self.weights[::2]]
        return 2.0 * len(self.order) * (3 * sum(sizes) - sizes[0])

    @property
    def loss(self) -> str:
        return "sparse_categorical_crossentropy" if self.classes else "mean_squared_error"

    def batches(self) -> list[np.ndarray]:
        """Return the rows of every batch; the last one may have fewer."""
        return [self.order[i : i + self.batch_size] for i in range(0, len(self.order), self.batch_size)]

    def mean(self, losses: np.ndarray) -> float:
        """Return the mean loss over the rows of an epoch, from the mean losses of its batches."""
        return float(np.average(losses, weights=[len(rows) for rows in self.batches()]))


def make(
    name: str,
    x: np.ndarray,
    y: np.ndarray,
    hidden: tuple[int, ...],
    batch_size: int,
    optimizer: str = "adam",
    lr: float = 1e-3,
) -> Workload:
    """Return a workload on x and y, with Glorot weights and an order drawn with a fixed seed."""
    rng = np.random.default_rng(0)
    outputs = 10 if y.ndim == 1 else y.shape[1]
    widths = (x.shape[1], *hidden, outputs)
    weights: list[np.ndarray] = []
    for fan_in, fan_out in pairwise(widths):
        bound = np.float32((6 / (fan_in + fan_out)) ** 0.5)
        weights.append((2 * rng.random((fan_in, fan_out), dtype="float32") - 1) * bound)
        weights.append(np.zeros(fan_out, "float32"))
    return Workload(name, x, y, hidden, outputs, batch_size, optimizer, lr, rng.permutation(len(x)), weights)


def random_classes(rows: int, inputs: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    return rng.random((rows, inputs), dtype="float32"), rng.integers(0, 10, rows)


def _rows(name: str) -> tuple[np.ndarray, np.ndarray]:
    try:
        data = fo.datasets.load(name)
    except (OSError, ValueError) as error:
        raise Absent(str(error)) from error
    return data.x_train, data.y_train


def _fashion(batch_size: int) -> Callable[[bool], Workload]:
    def build(short: bool) -> Workload:
        x, y = random_classes(5 * batch_size // 2, 784) if short else _rows("fashion-mnist")
        return make(f"fashion-{batch_size}", x, y, (256, 128), batch_size)

    return build


def _digits(short: bool) -> Workload:
    x, y = _rows("digits")
    rows = 100 if short else len(x)
    return make("digits", x[:rows], y[:rows], (32,), 32)


def _wide(short: bool) -> Workload:
    x, y = random_classes(160 if short else 6400, 1024)
    return make("wide", x, y, (64, 64) if short else (4096, 4096), 64)


def _linear(short: bool) -> Workload:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((2_000 if short else 1_000_000, 32), dtype="float32")
    y = x @ rng.standard_normal((32, 1), dtype="float32") + rng.standard_normal((len(x), 1), dtype="float32") / 10
    return make("linear", x, y, (), 256, "momentum", 1e-2)


TITLES = {
    "fashion-64": "Fashion-MNIST, 784-256-128-10, Adam, batch 64",
    "fashion-256": "Fashion-MNIST, 784-256-128-10, Adam, batch 256",
    "fashion-1024": "Fashion-MNIST, 784-256-128-10, Adam, batch 1024",
    "digits": "digits, 64-32-10, Adam, batch 32",
    "wide": "1024-4096-4096-10 on random data, Adam, batch 64, 100 steps",
    "linear": "linear regression, 1 M x 32, SGD with momentum, batch 256",
}
# The functions' argument `short` asks for a few small batches of random data, for checks of agreement.
WORKLOADS: dict[str, Callable[[bool], Workload]] = {
    **{f"fashion-{batch_size}": _fashion(batch_size) for batch_size in (64, 256, 1024)},
    "digits": _digits,
    "wide": _wide,
    "linear": _linear,
}
