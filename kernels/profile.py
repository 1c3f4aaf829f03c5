"""Profiles of passes as plain data: the least cost of each phase, and when it was done.

After every pass, a backend hands a `Pass` to the `recorder` of its thread, if there is one.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from typing import NamedTuple, Protocol

import numpy as np


class Cost(NamedTuple):
    """A phase's name, and the fewest bytes and floating-point operations of a call.

    Some are needed once a call (to read weights), others for every row of its batch (to read inputs).
    """

    name: str
    bytes: int = 0
    flops: int = 0
    row_bytes: int = 0
    row_flops: int = 0
    once_an_epoch: bool = False  # it has a call before the first batch of an epoch only

    def total(self, calls: int, rows: int) -> tuple[int, int]:
        """Bytes and operations of some calls, for so many rows in all.

        >>> Cost("sum", bytes=8, row_bytes=4, row_flops=1).total(calls=2, rows=100)
        (416, 100)
        """
        return calls * self.bytes + rows * self.row_bytes, calls * self.flops + rows * self.row_flops


class Pass(NamedTuple):
    """One run of a program over its batches. All times are in nanoseconds of `time.perf_counter_ns`.

    If batches differ in their phases, as on a GPU, there is a record for each kind of batch.
    """

    verb: str  # "train", "evaluate", "predict"
    dtype: str  # which layers compute in, on the CPU; on a GPU that of the parameters
    costs: Sequence[Cost]  # of the phases of a step, in order
    batch: int  # rows of a full batch
    rows: int  # of all steps
    steps: int  # that were run; the first of them have marks
    start: int
    end: int
    # (ranks, steps with marks, 1 + 2 phases) int64: when a rank began the step and, phase after phase, when it had done
    # its part and when it went on to the next (the same if no barrier follows)
    marks: np.ndarray
    marked_steps: Sequence[int] = ()  # numbers of the steps with marks in the pass; (): the first
    is_continuation: bool = False  # a further record of the same pass
    device: str = ""  # the GPU, whose marks are those of one rank; "": threads of the host
    epoch_rows: int = 0  # of an epoch, the last batch of which may be shorter; 0: of the pass, which is one
    starts: Sequence[int] = ()  # the first row of each step of the only epoch, and one past the last; (): `batch` each

    @property
    def epoch_steps(self) -> int:
        """Steps of an epoch."""
        return max(1, -(-(self.epoch_rows or self.rows) // self.batch), len(self.starts) - 1)

    def rows_of_step(self, step: int) -> int:
        """Rows of a step, counted from 0."""
        if self.starts:
            return self.starts[step + 1] - self.starts[step]
        return min(self.batch, (self.epoch_rows or self.rows) - step % self.epoch_steps * self.batch)

    def rows_of_first(self, steps: int) -> int:
        """Rows of the first steps together."""
        if self.starts:
            return self.starts[steps]
        epochs, rest = divmod(steps, self.epoch_steps)
        return epochs * (self.epoch_rows or self.rows) + min(self.epoch_rows or self.rows, rest * self.batch)


class Recorder(Protocol):
    """Receiver of the records of passes."""

    def record(self, done: Pass) -> None:
        """Receive the record of a pass that has ended, also if it was interrupted."""


recorder: ContextVar[Recorder | None] = ContextVar("recorder", default=None)
