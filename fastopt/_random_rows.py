"""Random choices of rows: pure functions of the seed, so that a resumed training repeats an uninterrupted one."""

from __future__ import annotations

import numpy as np

from .kernels.spec import Shuffle, row_numbers

SPLIT = 2  # random stream of a model's seed; 0 draws the weights, spec.SHUFFLE_STREAM the order of rows


def split(rows: int, fraction: float, seed: int, shuffle: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return (training rows, validation rows), two sorted arrays that share out range(rows), as of `row_numbers`.

    int(rows * fraction) rows go to validation: drawn by the seed where `shuffle` is set, the last ones otherwise.
    Raises ValueError where either part would be empty.

    >>> [part.tolist() for part in split(5, 0.4, seed=0, shuffle=False)]
    [[0, 1, 2], [3, 4]]
    """
    held_out = int(rows * fraction)
    if not 0 < held_out < rows:
        raise ValueError(
            f"validation_split={fraction:g} of {rows} rows leaves {held_out} for validation and {rows - held_out} for "
            "training: both need at least one"
        )
    bits = np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(SPLIT,)))
    order = row_numbers(rows)
    if shuffle:
        np.random.Generator(bits).shuffle(order)
    return np.sort(order[:-held_out]), np.sort(order[-held_out:])


def epoch_order(rows: np.ndarray, seed: int, epoch: int, shuffle: bool) -> np.ndarray:
    """Return the order in which epoch number `epoch` of the model's life goes through `rows`: a new array.

    >>> sorted(epoch_order(np.arange(6), seed=0, epoch=0, shuffle=True).tolist())
    [0, 1, 2, 3, 4, 5]
    >>> epoch_order(np.arange(6), seed=0, epoch=1, shuffle=False)
    array([0, 1, 2, 3, 4, 5])
    """
    return Shuffle(seed, epoch).order(rows) if shuffle else rows.copy()
