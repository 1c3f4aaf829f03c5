"""Rows to train on, where epochs are not whole passes over the data."""

from __future__ import annotations

import numpy as np

from ..kernels.spec import Shuffle


class RowStream:
    """Rows to train on that go on from epoch to epoch: all of them, then again all, each time in a new order.

    shuffle: the orders, which are those of whole epochs from number 0 on; None: rows come as they are.
    """

    def __init__(self, rows: np.ndarray, shuffle: Shuffle | None) -> None:
        self._rows, self._shuffle = rows, shuffle
        self._last: tuple[int, np.ndarray] = -1, rows  # number and order of the last pass that was asked for

    def rows(self, first: int, count: int) -> np.ndarray:
        """Return `count` rows from number `first` of the stream on, (count,).

        >>> RowStream(np.array([7, 8, 9]), None).rows(2, 5).tolist()
        [9, 7, 8, 9, 7]
        """
        size, found = len(self._rows), []
        while count:
            number, begin = divmod(first, size)
            found.append(self._order(number)[begin : begin + count])
            first, count = first + len(found[-1]), count - len(found[-1])
        return found[0] if len(found) == 1 else np.concatenate(found)

    def _order(self, number: int) -> np.ndarray:
        if self._shuffle is None:
            return self._rows
        if self._last[0] != number:
            self._last = number, self._shuffle._replace(first_epoch=number).order(self._rows)
        return self._last[1]
