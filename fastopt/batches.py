"""Sizes of batches that change while a model is trained: `model.fit(x, y, batch_size=fo.batches.Growing(32))`.

`batch_size` may also be a whole number, "full" (all rows at once: gradient descent) or "auto" (a number that `fit`
chooses, see `Sequential.fit`).

    >>> import numpy as np, fastopt as fo
    >>> x, y = np.arange(12.0).reshape(12, 1), np.arange(12.0)
    >>> model = fo.Sequential([fo.Dense(1)], seed=3)
    >>> model.compile("sgd", "mean_squared_error")
    >>> history = model.fit(x, y, epochs=3, batch_size=Growing(2, factor=2, most=6))
    >>> len(history.step_losses), history.batch_size  # batches of 2, 4 and 6 rows
    (11, Growing(first=2, factor=2.0, every=1, most=6))
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ._validation import check_count, check_number, describe

__all__ = ["Growing", "Random"]

WORDS = "full", "auto"
STREAM = 3  # random stream of a model's seed, beside those of `_random_rows`


@dataclass(frozen=True)
class Random:
    """A size for every batch, drawn evenly from low, ..., high; the last batch of an epoch takes what is left.

    Draws are a function of the model's seed, of the number of the epoch in its life and of the number of rows: the same
    on all backends. With `accumulate` each batch of a step has a size of its own. "cuda" has a graph for each size and
    takes ranges of at most 64 sizes.

    >>> Random(2, 4).sizes(10, seed=0, epoch=0)
    array([2, 2, 3, 2, 1])
    """

    low: int
    high: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "low", check_count("low", self.low))
        object.__setattr__(self, "high", check_count("high", self.high))
        if self.low > self.high:
            raise ValueError(f"high must be at least low={self.low}; got {self.high}")

    def sizes(self, rows: int, seed: int, epoch: int, drop_last: bool = False) -> np.ndarray:
        """Return the rows of every batch of an epoch, (batches,) int64.

        drop_last  a last batch that would get fewer rows than it drew is left out, unless it is the only one
        """
        bits = np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(STREAM, epoch)))
        rng, parts, drawn = np.random.Generator(bits), [np.zeros(0, np.int64)], 0
        while drawn < rows:
            # some more than are likely to be needed
            count = 2 * (rows - drawn) // (self.low + self.high) + 8
            parts.append(rng.integers(self.low, self.high, count, endpoint=True))
            drawn += int(parts[-1].sum())
        sizes = np.concatenate(parts)
        ends = np.cumsum(sizes)
        last = int(np.searchsorted(ends, rows))
        sizes = sizes[: last + 1]
        left = rows - int(ends[last] - sizes[last])
        if drop_last and last and left < sizes[last]:
            return sizes[:last]
        sizes[last] = left
        return sizes


@dataclass(frozen=True)
class Growing:
    """A size that grows from epoch to epoch: `first` rows, times `factor` after every `every` epochs, at most `most`.

    min(most, floor(first factor^floor(epoch / every))), where `epoch` counts from 0 over the model's life, so that a
    training that goes on takes the sizes that it would have taken. most=None: all rows.

    Source: Smith et al., 2018, "Don't Decay the Learning Rate, Increase the Batch Size".

    >>> [Growing(32, factor=2, every=2, most=100).at(epoch) for epoch in range(6)]
    [32, 32, 64, 64, 100, 100]
    """

    first: int
    factor: float = 2.0
    every: int = 1
    most: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "first", check_count("first", self.first))
        object.__setattr__(self, "factor", check_number("factor", self.factor, 1.0))
        object.__setattr__(self, "every", check_count("every", self.every))
        if self.most is not None:
            object.__setattr__(self, "most", check_count("most", self.most))
            if self.most < self.first:
                raise ValueError(f"most must be at least first={self.first}; got {self.most}")

    def at(self, epoch: int) -> int:
        """Return the rows of a batch of an epoch, counted from 0; 2^62 at most, where there is no `most`."""
        limit = 1 << 62 if self.most is None else self.most
        try:
            return int(min(limit, self.first * self.factor ** (epoch // self.every)))
        except OverflowError:
            return limit


BatchSize = int | str | Random | Growing


def check_steps(size: BatchSize, steps_per_epoch: int | None) -> None:
    """Raise ValueError for sizes that change, where epochs have so many steps of whole batches."""
    if steps_per_epoch is not None and isinstance(size, Random | Growing):
        raise ValueError(
            f"batch_size must be a number with steps_per_epoch, whose epochs go on in the data; got {size}:"
            " leave out steps_per_epoch, or take max_steps"
        )


def check_batch_size(value: Any) -> BatchSize:
    """Return a batch size as `fit` takes it; TypeError or ValueError for anything else."""
    if isinstance(value, Random | Growing) or (isinstance(value, str) and value in WORDS):
        return value
    if isinstance(value, str):
        raise ValueError(f'batch_size must be a whole number, "full", "auto" or one of fastopt.batches; got {value!r}')
    try:
        return check_count("batch_size", value)
    except TypeError:
        raise TypeError(
            f'batch_size must be a whole number, "full", "auto" or one of fastopt.batches; got {describe(value)}'
        ) from None
