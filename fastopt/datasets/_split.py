"""Rows to train on and rows to test on, where a file does not part them."""

from __future__ import annotations

import numpy as np

HELD_OUT = 5  # one row in five is for the test


def hold_out(rows: int, codes: np.ndarray | None, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of training rows and of the test rows, a fifth, drawn with `seed`.

    A class (of `codes`) that has test rows only gets the first of them in exchange for a training row of another class
    that has several.
    """
    order = np.random.default_rng(seed).permutation(rows)
    test, train = np.split(order, [max(1, rows // HELD_OUT)])
    if codes is None:
        return train, test
    counts = np.bincount(codes[train], minlength=int(codes.max()) + 1)
    for lacking in np.unique(codes[test][counts[codes[test]] == 0]):
        spare = np.flatnonzero(counts[codes[train]] > 1)
        if not len(spare):
            break
        give, take = int(spare[-1]), int(np.argmax(codes[test] == lacking))
        counts[codes[train[give]]] -= 1
        counts[lacking] += 1
        train[give], test[take] = test[take], train[give]
    return train, test
