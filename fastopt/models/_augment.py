"""Epochs of rows that a function of the user's changes, batch after batch, in a thread that is a batch ahead."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from .._validation import describe
from ..kernels.sources import SparseRows
from ..kernels.spec import Batches
from ._intake import Data
from ._streams import Reader, StreamedEpoch

AUGMENT = 4  # random stream of a model's seed, beside those of `_random_rows` and `fastopt.batches`
Augment = Callable[[np.ndarray, np.ndarray, np.random.Generator], tuple[Any, Any]]


class AugmentedSource(NamedTuple):
    """Epochs of augmented batches.

    x, y: all rows of the user's, before anything is prepared; weights: of the rows, if they have any; shape: of a row
    of x. make(model, plan): the batches of the next epoch.
    """

    augment: Augment
    x: np.ndarray | SparseRows
    y: np.ndarray
    weights: np.ndarray | None
    shape: tuple[int, ...]
    reader: Reader
    make: Callable[[Any, Any], Batches]

    @property
    def taken(self) -> None:
        """Numbers of items of the epochs so far: batches follow from the number of the epoch alone."""

    def epoch(self, model: Any, plan: Any, number: int) -> AugmentedEpoch:
        """Return the next epoch."""
        batches, seed, epoch = self.make(model, plan).epoch(0), model.seed, model.epochs_done

        def made(first: int) -> Iterator[Data]:
            ends = np.cumsum(batches.rows_of_batches())
            rows = np.split(batches.order[: batches.num_rows], ends[:-1])
            return ahead(self._batch(rows[i], seed, epoch, i) for i in range(first, len(rows)))

        return AugmentedEpoch(made, batches, self.weights is not None, number, model)

    def _batch(self, rows: np.ndarray, seed: int, epoch: int, number: int) -> Data:
        """Batch `number` of an epoch, counted from 0: a function of the rows, the seed and both numbers."""
        bits = np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(AUGMENT, epoch, number)))
        x = self.x[rows].reshape(len(rows), *self.shape)
        found = self.augment(x, self.y[rows], np.random.Generator(bits))
        if not isinstance(found, tuple) or len(found) != 2:
            raise TypeError(f"augment must return a tuple (x, y); got {describe(found)} for batch {number + 1}")
        data = self.reader.read(number + 1, *found)
        if self.weights is None:
            return data
        if len(data.x) != len(rows) or data.rows is not None:
            raise ValueError(
                f"augment must return as many rows as it is given where rows have weights; got {len(data.x)} for"
                f" {len(rows)} in batch {number + 1}"
            )
        return data._replace(weights=self.weights[rows])


class AugmentedEpoch(StreamedEpoch):
    """An epoch of augmented batches, whose position a checkpoint can keep.

    made(first): the batches from number `first` on, counted from 0; given: the batches before they are changed.
    """

    def __init__(
        self, made: Callable[[int], Iterator[Data]], given: Batches, weighted: bool, number: int, model: Any
    ) -> None:
        super().__init__(made(0), given.accumulate, given.steps, number, model)
        self._made, self._weighted = made, weighted

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on after the steps that `to_state` was called after; ValueError for a state of another epoch."""
        super().restore(state)
        self._items = self._made(self.steps * self._accumulate)


def ahead(made: Iterator[Data]) -> Iterator[Data]:
    """Iterate over what a thread makes, which is one further than whoever takes it; its errors are raised here."""
    with ThreadPoolExecutor(1, "fastopt-augment") as pool:
        following = pool.submit(next, made, None)
        while (data := following.result()) is not None:
            following = pool.submit(next, made, None)
            yield data
