"""Random choices of rows: pure functions of the seed, so that a resumed training repeats an uninterrupted one."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .kernels.spec import Shuffle

SPLIT = 2  # random stream of a model's seed; 0 draws the weights, spec.SHUFFLE_STREAM the order of rows


def split(rows: int, fraction: float, seed: int, shuffle: bool) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return (training rows, validation rows), two sorted int64 arrays that share out range(rows).

    int(rows * fraction) rows go to validation: drawn by the seed where `shuffle` is set, the last ones otherwise.
    Raises ValueError where either part would be empty.

    >>> split(5, 0.4, seed=0, shuffle=False)
    (array([0, 1, 2]), array([3, 4]))
    """
    held_out = int(rows * fraction)
    if not 0 < held_out < rows:
        raise ValueError(
            f"validation_split={fraction:g} of {rows} rows leaves {held_out} for validation and {rows - held_out} for "
            "training: both need at least one"
        )
    bits = np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(SPLIT,)))
    order = np.random.Generator(bits).permutation(rows) if shuffle else np.arange(rows)
    return np.sort(order[:-held_out]), np.sort(order[-held_out:])


def epoch_order(rows: NDArray[np.int64], seed: int, epoch: int, shuffle: bool) -> NDArray[np.int64]:
    """Return the order in which epoch number `epoch` of the model's life goes through `rows`: a new int64 array.

    >>> sorted(epoch_order(np.arange(6), seed=0, epoch=0, shuffle=True).tolist())
    [0, 1, 2, 3, 4, 5]
    >>> epoch_order(np.arange(6), seed=0, epoch=1, shuffle=False)
    array([0, 1, 2, 3, 4, 5])
    """
    return Shuffle(seed, epoch).order(rows) if shuffle else rows.copy()
