"""Random split into training and test rows, for data without a test part."""

from __future__ import annotations

import numpy as np

HELD_OUT = 5  # one row in five is a test row


def hold_out(rows: int, codes: np.ndarray | None, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of the training rows and of the test rows, a fifth of all, drawn with `seed`.

    codes  class of each row, (rows,) int64: a class without a training row gets its first test row, in exchange for a
           training row of a class that has several; None for targets that are not classes
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
        # Exchange two rows.
        i, j = int(spare[-1]), int(np.argmax(codes[test] == lacking))
        counts[codes[train[i]]] -= 1
        counts[lacking] += 1
        train[i], test[j] = test[j], train[i]
    return train, test
