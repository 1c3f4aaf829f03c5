"""A pass over the data: batch after batch, each a replay of the launches for batches of its kind."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import Any, NamedTuple

import numpy as np

from .feed import feed
from .layout import CLOCK
from .program import Program
from .rows import LABEL


class Turn(NamedTuple):
    """A kind of batch: all of a kind have the same launches, arguments included."""

    rows: int
    whole: int  # rows of all batches of its step
    first: bool  # of its step
    due: bool  # the step ends with it


def turn(number: int, rows: int, batch: int, group: int) -> Turn:
    """The kind of batch `number` of a pass over so many rows, `group` batches a step.

    >>> turn(0, 10, 4, 2), turn(2, 10, 4, 2)
    (Turn(rows=4, whole=8, first=True, due=False), Turn(rows=2, whole=2, first=True, due=True))
    """
    place, done = number % group, number * batch
    whole = min(rows - done + place * batch, group * batch)
    return Turn(min(batch, rows - done), whole, place == 0, place == group - 1 or done + batch >= rows)


class Pass:
    """One kind of pass over the same arrays, to be run any number of times.

    rows: of a pass; ordered: they come in an order that `run` is given; group: batches of a step; outputs: columns of
    what the pass gives for every row, 0 if nothing.
    """

    def __init__(
        self,
        program: Program,
        x: np.ndarray,
        y: np.ndarray | None,
        rows: int,
        ordered: bool,
        group: int = 1,
        outputs: int = 0,
    ) -> None:
        gpu, stream = program.gpu, program.stream
        self.program, self.rows, self.group = program, rows, group
        self.batches = -(-rows // program.batch)
        self.arrays = x, y  # kept, so that no others can have the same ids
        width = outputs * program.size
        self.feed = feed(gpu, stream, x, y, program.batch, rows * (width + 8 * ordered))
        self._order = gpu.allocate(8 * rows) if ordered and not self.feed.streamed else None
        self.metrics = len(program.net.metrics)
        self.results = gpu.allocate(8 * (self.metrics + self.batches))
        self.outputs = gpu.allocate(self.feed.ring * width) if outputs else None
        self.done = 0  # batches that were launched
        self._replays: dict[Turn, Any] = {}

    @property
    def losses(self) -> int:
        """Where the sums of the loss of all batches are, or that of the pass; those of metrics stand before them."""
        return int(self.results.address) + 8 * self.metrics

    @property
    def order(self) -> int:
        """Where the order of rows is; 0: they come in it."""
        return 0 if self._order is None else int(self._order.address)

    def gather(self, rows: int) -> tuple[int, int, bool]:
        """Adds the launches that bring the rows of the batch together: x, targets, and whether those are labels."""
        program, (_, y) = self.program, self.arrays
        ring, order = self.feed.ring, self.order
        into = program.gather(self.feed.x, order, rows, program.net.inputs, program.net.dtype, ring)
        if y is None:
            return into, 0, False
        labels = y.ndim == 1 and y.dtype == np.int64
        columns, kind = (1, LABEL) if labels else (program.net.outputs, program.net.dtype)
        return into, program.gather(self.feed.y, order, rows, columns, kind, ring), labels

    def run(
        self,
        list_batch: Callable[[Turn], None],
        order: np.ndarray | None = None,
        ever: int = 0,
        check: Callable[[], None] = lambda: None,
        after: Callable[[range], None] = lambda chunk: None,
        together: Callable[[range], None] | None = None,
    ) -> None:
        """Launches all batches; `ever` batches were trained on before.

        list_batch: adds the launches for a kind of batch to the program; called for the first of them.
        check: called after each step; it may raise.
        after: called with batches that were launched, now and then.
        together: launches several batches at once, each a step, and is called instead of `list_batch`.
        """
        program = self.program
        gpu, stream = program.gpu, program.stream
        self.done = 0
        gpu.copy_in(program.clock.address, np.array([(0, ever)], CLOCK), stream)
        gpu.zero(self.results.address, 8 * (self.metrics + self.batches), stream)
        if self._order is not None:
            gpu.copy_in(self._order.address, order, stream)
        with closing(self.feed.chunks(order, self.batches)) as chunks:
            for chunk in chunks:
                if together:
                    together(chunk)
                    self.done = chunk.stop
                    check()
                for number in () if together else chunk:
                    kind = turn(number, self.rows, program.batch, self.group)
                    self._replay(kind, list_batch).launch()
                    self.done = number + 1
                    if kind.due:
                        check()
                after(chunk)

    def _replay(self, kind: Turn, list_batch: Callable[[Turn], None]) -> Any:
        if kind not in self._replays:
            list_batch(kind)
            program = self.program
            self._replays[kind] = program.gpu.replay(program.stream, program.launches())
        return self._replays[kind]

    def sums(self) -> tuple[list[float], np.ndarray]:
        """Of the metrics, and of the loss of every batch, or only one. Waits for all that was launched."""
        found = np.zeros(self.metrics + self.batches)
        program = self.program
        program.gpu.copy_out(found, self.results.address, program.stream)
        program.gpu.wait(program.stream)
        return found[: self.metrics].tolist(), found[self.metrics :]

    def collect(self, chunk: range, into: np.ndarray) -> None:
        """Copies the outputs of these batches into their rows. Waits for them."""
        assert self.outputs is not None
        program, batch = self.program, self.program.batch
        part = into[chunk.start * batch : chunk.stop * batch]
        place = chunk.start * batch % self.feed.ring * (into.nbytes // len(into))
        program.gpu.copy_out(part, self.outputs.address + place, program.stream)
        program.gpu.wait(program.stream)
