"""Weights of the rows of a program: phases that gather them and add them up, and the sums that a pass leaves."""

from __future__ import annotations

from typing import Any

import numpy as np

from ... import costs
from ..dense.row_weights import WEIGHED_KERNEL, gather_weights_kernel, sum_weights_kernel
from ..runtime.compile import Kernel
from ..runtime.primitives import address_of
from ..runtime.records import WEIGHED, WEIGHTS, fill


class RowWeights:
    """The weights of a program, whose record WEIGHTS losses and metrics read.

    batch_weights: memory for the weights of a batch; accumulate: batches of a step; order: the dtype of row numbers.
    """

    def __init__(self, run: np.ndarray, batch_weights: np.ndarray, accumulate: int, order: str) -> None:
        self.record = fill(WEIGHTS, run=run, batch_weights=batch_weights, accumulate=accumulate)
        self.dtype, self.itemsize, self.accumulate = batch_weights.dtype.name, batch_weights.itemsize, accumulate
        self.order = order
        self.batch_sums = self._step_sums = np.zeros((0, 0))  # of a pass: (epochs, batches)
        self._phases: list[np.ndarray] = []  # records

    def add_sums_to(self, program: Any) -> None:
        """Add the sums of an epoch: a phase that runs before its first batch only."""
        cost = costs.sum_weights(self.itemsize)
        program.add(sum_weights_kernel(self.dtype, self.order), self.record, barrier=True, cost=cost)

    def add_gather_to(self, program: Any) -> None:
        """Add the copy of the weights of the batch; a phase with a barrier must follow before they are read."""
        cost = costs.gather_weights(self.itemsize)
        program.add(gather_weights_kernel(self.dtype, self.order), self.record, barrier=False, cost=cost)

    def weighed(self, kernel: Kernel, record: np.ndarray, otherwise: Kernel | None) -> tuple[Kernel, np.ndarray]:
        """Return a phase that does the given one, or `otherwise` if the weights of the step sum to 0."""
        code = otherwise.address if otherwise else 0
        work = fill(
            WEIGHED, weights=self.record, phase=kernel.address, phase_work=address_of(record), otherwise=code
        )  # fmt: skip
        self._phases += [record, work]
        return WEIGHED_KERNEL, work

    def begin(self, weights: np.ndarray, num_epochs: int, num_batches: int) -> None:
        """Read these weights, (n,) of all rows of the data, which the caller keeps alive for a pass.

        num_batches: numbers from the first batch of an epoch to that of the next.
        """
        self.batch_sums = np.zeros((num_epochs, num_batches))
        self._step_sums = self.batch_sums if self.accumulate == 1 else np.zeros_like(self.batch_sums)
        arrays = {"w": weights, "batch_sums": self.batch_sums, "step_sums": self._step_sums}
        for name, array in arrays.items():
            self.record[name] = address_of(array)
        self.record["num_weights"] = len(weights)


def sum_in_order(sums: np.ndarray, start: float = 0.0) -> float:
    """Return start + sums[0] + sums[1] ..., one after the other, as the sums of metrics are added up.

    >>> sum_in_order(np.array([1.0, 1.0]), start=1e16)
    1e+16
    """
    return float(np.add.accumulate([start, *sums])[-1])
