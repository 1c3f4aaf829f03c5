"""History of a training: loss and metrics of every epoch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._metrics import among
from ..batches import BatchSize


class History:
    """Loss and metrics of every epoch of a `fit`, which returns it; also `model.history`.

    history      dict of name -> list with one float an epoch: "loss" and the metrics on the training rows (taken while
                 the weights move and dropout is on), "val_loss" and "val_..." on the validation rows after the epoch,
                 "lr" (the learning rate of the epoch's last step), "seconds" (the training pass alone) and
                 "samples_per_second"
    epochs       numbers of the epochs, from 1
    step_losses  float64 array: the mean loss of every step's rows before its update, in order, over all epochs
    batch_size   rows of a batch: the number that was given, or that "full" and "auto" came to, or the
                 `fastopt.batches.Random` or `Growing`; `fit(batch_size=history.batch_size)` takes it. None before a fit
    batch_size_reason  a sentence on the choice of "auto"; "" for others
    traffic      of a `fit` with distributed="mpi": (steps, sent_bytes, messages, seconds) of this rank; else None

    >>> history = History()
    >>> history.append(1, {"loss": 0.5, "seconds": 0.25}, np.array([0.6, 0.4]))
    >>> history["loss"], history.step_losses  # and history["mae"] for "mean_absolute_error"
    ([0.5], array([0.6, 0.4]))
    >>> history
    History(1 epoch, loss=0.5, seconds=0.25)
    >>> history.to_dict()
    {'epoch': [1], 'loss': [0.5], 'seconds': [0.25]}
    """

    batch_size: BatchSize | None = None
    batch_size_reason = ""  # also of an older pickle
    traffic: Any = None

    def __init__(self, batch_size: BatchSize | None = None, batch_size_reason: str = "") -> None:
        self.batch_size, self.batch_size_reason = batch_size, batch_size_reason
        self.history: dict[str, list[float]] = {}
        self.epochs: list[int] = []
        self._losses: list[NDArray[np.float64]] = []

    @property
    def step_losses(self) -> NDArray[np.float64]:
        """The mean loss of every optimizer step, (steps,) float64; a new array each time."""
        return np.concatenate(self._losses) if self._losses else np.empty(0)

    def append(self, epoch: int, logs: Mapping[str, float], losses: NDArray[np.float64]) -> None:
        """Add an epoch: its number, its loss and metrics by name, and the losses of its steps."""
        self.epochs.append(epoch)
        for name, value in logs.items():
            self.history.setdefault(name, []).append(float(value))
        self._losses.append(np.array(losses, np.float64))

    def extend(
        self, first: int, columns: Mapping[str, Sequence[float]], losses: NDArray[np.float64]
    ) -> None:
        """Add successive epochs: the number of the first, a figure of each by name, and losses of (epochs, steps)."""
        self.epochs.extend(range(first, first + len(losses)))
        for name, values in columns.items():
            self.history.setdefault(name, []).extend(map(float, values))
        self._losses.append(np.array(losses, np.float64).ravel())

    def to_dict(self) -> dict[str, list[int] | list[float]]:
        """Return columns of equal length, "epoch" first, as `pandas.DataFrame` takes them. The lists are copies."""
        columns: dict[str, list[int] | list[float]] = {"epoch": list(self.epochs)}
        return columns | {name: list(values) for name, values in self.history.items()}

    def __getitem__(self, name: str) -> list[float]:
        try:
            return self.history[among(name, self.history)]
        except (KeyError, AttributeError):
            raise KeyError(f"{name!r}; known: {', '.join(self.history) or 'nothing yet'}") from None

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names of the figures."""
        return iter(self.history)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and among(name, self.history) in self.history

    def __len__(self) -> int:
        return len(self.epochs)

    def __repr__(self) -> str:
        count = f"{len(self)} epoch{'s' * (len(self) != 1)}"
        return f"History({', '.join([count, *(f'{name}={values[-1]:.4g}' for name, values in self.history.items())])})"
