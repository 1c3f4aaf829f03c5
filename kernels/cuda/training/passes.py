"""A pass over the data: batch after batch, each a replay of the launches for batches of its kind."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import Any, NamedTuple

import numpy as np

from ..dense.rows import LABEL
from ..runtime.records import CLOCK
from .data_feed import feed
from .marks import marking
from .program import Launches, Program

# Batches of a graph, where many of a kind follow one another: the host gives a graph to the device in some 5 us, and a
# small batch is done in less. A pass must be so many times as long, for making the graph takes milliseconds.
MANY, LONG = 8, 8


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
        self.metrics = len(program.net.sums)
        self.results = gpu.allocate(8 * (self.metrics + self.batches))
        self.outputs = gpu.allocate(self.feed.ring * width) if outputs else None
        self.done = 0  # batches that were launched
        self.marked = False  # launches are timed one by one, so that none is to be beside another
        self._replays: dict[tuple[tuple[Turn, bool], int], Any] = {}
        self._lists: dict[tuple[Turn, bool], Launches] = {}
        self._verb = "train" if ordered else "predict" if outputs else "evaluate"

    @property
    def losses(self) -> int:
        """Address of the sums of the loss, of all batches or of the pass; those for metrics stand before them."""
        return int(self.results.address) + 8 * self.metrics

    @property
    def order(self) -> int:
        """Where the order of rows is; 0: they come in it."""
        return 0 if self._order is None else int(self._order.address)

    @property
    def labels(self) -> bool:
        """True if targets are class numbers."""
        y = self.arrays[1]
        return y is not None and y.ndim == 1 and y.dtype == np.int64

    def gather(self, rows: int) -> tuple[int, int, bool]:
        """Adds the launches that bring the rows of the batch together: x, targets, and whether those are labels."""
        program, (_, y) = self.program, self.arrays
        ring, order = self.feed.ring, self.order
        into = program.gather(self.feed.x, order, rows, program.net.inputs, program.net.compute, ring)
        if y is None:
            return into, 0, False
        columns, kind = (1, LABEL) if self.labels else (program.net.outputs, program.net.dtype)
        return into, program.gather(self.feed.y, order, rows, columns, kind, ring), self.labels

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
        with marking(program, self._verb) as marks, closing(self.feed.chunks(order, self.batches)) as chunks:
            self.marked = marks is not None
            for chunk in chunks:
                if together:
                    if marks:
                        marks.together(chunk, self.rows, together)
                    else:
                        together(chunk)
                    self.done = chunk.stop
                    check()
                while not together and self.done < chunk.stop:
                    number = self.done
                    kind = turn(number, self.rows, program.batch, self.group)
                    many = 1 if marks else self._alike(number, chunk)
                    replay = self._replay(kind, many, list_batch)
                    if marks:
                        marks.launch(number, kind.rows, self._lists[kind, True], replay)
                    else:
                        replay.launch()
                    self.done = number + many
                    if kind.due:
                        check()
                after(chunk)

    def _alike(self, number: int, chunk: range) -> int:
        """Return how many batches from this one on are launched together: MANY of one kind, or 1."""
        full = self.rows // self.program.batch  # batches before the last, which may be short
        long = self.group == 1 and full >= LONG * MANY
        return MANY if long and number + MANY <= min(full, chunk.stop) else 1

    def _replay(self, kind: Turn, many: int, list_batch: Callable[[Turn], None]) -> Any:
        """Return the launches for so many batches of a kind."""
        sort = kind, self.marked
        if sort not in self._lists:
            list_batch(kind)
            self._lists[sort] = self.program.launches()
        if (sort, many) not in self._replays:
            program, launches = self.program, Launches(self._lists[sort] * many)
            self._replays[sort, many] = program.gpu.replay(program.stream, launches)
        return self._replays[sort, many]

    def sums(self) -> tuple[list[float], np.ndarray]:
        """Those for metrics, and of the loss of every batch, or only one. Waits for all that was launched."""
        found = np.zeros(self.metrics + self.batches)
        program = self.program
        program.gpu.copy_out(found, self.results.address, program.stream)
        program.gpu.wait(program.stream)
        return found[: self.metrics].tolist(), found[self.metrics :]


class Collector:
    """Brings the outputs of a pass to the host: those of one chunk of batches while the device works on the next.

    The next but one goes over the same half of the ring, so it is not launched before.
    """

    def __init__(self, running: Pass, into: np.ndarray) -> None:
        gpu = running.program.gpu
        self.running, self.into, self._copies = running, into, gpu.stream()
        self._done = [gpu.event() for _ in range(2)]
        self._open: range | None = None  # launched, and not yet brought

    def launched(self, chunk: range) -> None:
        """These batches were; those before them are brought, when they are done."""
        self._done.reverse()
        self._done[0].record(self.running.program.stream)
        before, self._open = self._open, chunk
        if before:
            self._bring(before, self._done[1])

    def finish(self) -> None:
        """Brings what is left."""
        if self._open:
            self._bring(self._open, self._done[0])

    def _bring(self, chunk: range, done: Any) -> None:
        running, into, copies = self.running, self.into, self._copies.handle
        assert running.outputs is not None
        gpu, batch = running.program.gpu, running.program.batch
        part = into[chunk.start * batch : chunk.stop * batch]
        place = chunk.start * batch % running.feed.ring * (into.nbytes // len(into))
        done.before(copies)
        gpu.copy_out(part, running.outputs.address + place, copies)
        gpu.wait(copies)
