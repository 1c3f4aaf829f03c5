"""Numbers of steps that another library keeps, one for each array, as a float32 or float64 in its memory.

torch has one in the states of every parameter. Read and written one by one in Python, a hundred take 15 us.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..runtime.compile import Kernel
from ..runtime.primitives import address_of, view
from ..runtime.records import COUNTERS, fill, read


def _count_steps(work):
    """The number of the step to come for each array that has a gradient; or, with `advances`, count that step."""
    a = read(work, COUNTERS)
    gradients, numbers = view(a.gradients, a.count, np.int64), view(a.numbers, a.count, np.int64)
    counters, sizes = view(a.counters, a.count, np.int64), view(a.sizes, a.count, np.int64)
    for i in range(a.count):
        if gradients[i] == 0 or counters[i] == 0:
            continue
        if sizes[i] == 4:
            single = view(counters[i], 1, np.float32)
            if a.advances:
                single[0] += np.float32(1)
            else:
                numbers[i] = np.int64(single[0]) + 1
        else:
            double = view(counters[i], 1, np.float64)
            if a.advances:
                double[0] += 1.0
            else:
                numbers[i] = np.int64(double[0]) + 1


COUNT_STEPS = Kernel(_count_steps, "count_steps")


class StepCounters:
    """The counters of some arrays.

    counters: address and bytes of each; an address of 0 stands for an array without a counter, whose step is always
        number `otherwise`.
    """

    def __init__(self, counters: Sequence[tuple[int, int]], otherwise: int) -> None:
        count = len(counters)
        self.numbers = np.full(count, otherwise, np.int64)
        self.table = np.array(counters, np.int64).reshape(count, 2).T.copy()
        self.record = fill(
            COUNTERS, count=count, counters=self.table[0], sizes=self.table[1], numbers=self.numbers
        )  # fmt: skip
        self.gradients, self.advances = self.record["gradients"], self.record["advances"]
        self.address = address_of(self.record)

    def next_steps(self, gradients: int) -> np.ndarray:
        """The number of the next step of each array, from 1: (n,) int64, overwritten by the next call.

        gradients: the address of (n,) addresses; the numbers of arrays without a gradient (0) are undefined.
        """
        self.gradients[0], self.advances[0] = gradients, 0
        COUNT_STEPS.run(self.address)
        return self.numbers

    def advance(self, gradients: int) -> None:
        """Count a step of each array that has a gradient."""
        self.gradients[0], self.advances[0] = gradients, 1
        COUNT_STEPS.run(self.address)
