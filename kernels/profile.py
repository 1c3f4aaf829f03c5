"""What kernels tell whoever profiles them, as plain data: what a phase has to do at least, and when it was done.

A backend that can be profiled hands a `Pass` to the `recorder` of its thread, if there is one, after every pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from typing import NamedTuple, Protocol

import numpy as np


class Cost(NamedTuple):
    """A phase's name, and the bytes and floating-point operations that a call of it needs at least.

    Some are needed once a call (weights are read), others for every row of its batch (inputs are).
    """

    name: str
    bytes: int = 0
    flops: int = 0
    row_bytes: int = 0
    row_flops: int = 0

    def total(self, calls: int, rows: int) -> tuple[int, int]:
        """Bytes and operations of some calls with so many rows together.

        >>> Cost("sum", bytes=8, row_bytes=4, row_flops=1).total(calls=2, rows=100)
        (416, 100)
        """
        return calls * self.bytes + rows * self.row_bytes, calls * self.flops + rows * self.row_flops


class Pass(NamedTuple):
    """One run of a program over its batches. All times are in nanoseconds of `time.perf_counter_ns`.

    Where batches differ in their phases, as on a GPU, there is a record for each sort of batch.
    """

    verb: str  # "train", "evaluate", "predict"
    dtype: str
    costs: Sequence[Cost]  # of the phases of a step, in order
    batch: int  # rows of a full batch
    rows: int  # in the steps that were run
    steps: int  # that were run; the first of them have marks
    start: int
    end: int
    # (ranks, steps with marks, 1 + 2 phases) int64: when a rank began the step; and, phase after phase, when it had
    # done its part, and when it went on to the next (the same, where the ranks do not meet).
    marks: np.ndarray
    numbers: Sequence[int] = ()  # which steps of the pass those with marks are; none: the first
    another: bool = False  # record of the same pass
    device: str = ""  # the GPU that it ran on, whose marks are those of one rank; "": the host's threads


class Recorder(Protocol):
    """Whoever wants to know of passes."""

    def record(self, done: Pass) -> None:
        """Take note of a pass that has ended, also if it was interrupted."""


recorder: ContextVar[Recorder | None] = ContextVar("recorder", default=None)
