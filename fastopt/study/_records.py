"""Records of a study: trained models with their errors, measured times, and the work that a training is."""

from __future__ import annotations

import math
from typing import NamedTuple


class Run(NamedTuple):
    """A model after some epochs.

    layers   widths of the hidden layers
    rows     number of rows that it is trained on
    seconds  of the training passes, on one thread beside other models
    train_error, test_error  share of wrong classes, or mean squared error; None if the training diverged
    """

    layers: tuple[int, ...]
    rows: int
    batch_size: int
    seed: int
    epochs: int
    seconds: float
    train_error: float | None = None
    test_error: float | None = None
    train_loss: float | None = None
    test_loss: float | None = None

    @property
    def has_diverged(self) -> bool:
        """True if there are no figures."""
        return self.test_error is None


class Timing(NamedTuple):
    """Seconds of one `fit` that had the machine to itself. machine: its name, the backend and the number of threads."""

    layers: tuple[int, ...]
    rows: int
    batch_size: int
    epochs: int
    seconds: float
    machine: str


class Work(NamedTuple):
    """The numbers that the time of a training depends on.

    parameters  weights and biases of all layers
    units       outputs of all layers together
    layers      number of layers, with the last one
    """

    parameters: int
    units: int
    layers: int
    rows: int
    epochs: int
    batch_size: int

    @property
    def steps(self) -> int:
        """Number of updates."""
        return math.ceil(self.rows / self.batch_size) * self.epochs


class Shape(NamedTuple):
    """Widths of the data: inputs and outputs of a network, and the bytes of a parameter."""

    inputs: int
    outputs: int
    item_bytes: int

    def parameters(self, layers: tuple[int, ...]) -> int:
        """Number of weights and biases.

        >>> Shape(4, 3, 4).parameters((8,))
        67
        """
        widths = (self.inputs, *layers, self.outputs)
        return sum((widths[i] + 1) * widths[i + 1] for i in range(len(widths) - 1))

    def bytes(self, layers: tuple[int, ...]) -> int:
        """Bytes of all parameters."""
        return self.parameters(layers) * self.item_bytes

    def work(self, layers: tuple[int, ...], rows: int, epochs: int, batch_size: int) -> Work:
        """The work of a training."""
        units = sum(layers) + self.outputs
        return Work(self.parameters(layers), units, len(layers) + 1, rows, epochs, min(batch_size, rows))

    def name(self, layers: tuple[int, ...]) -> str:
        """All widths of a network.

        >>> Shape(4, 3, 4).name((8, 8))
        '4-8-8-3'
        """
        return "-".join(map(str, (self.inputs, *layers, self.outputs)))
