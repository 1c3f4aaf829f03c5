"""A pass over the data: batch after batch, each a replay of the launches for batches of its kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any, NamedTuple

import numpy as np

from ...sources import Source, stages_table
from ..runtime.records import CLOCK
from .data_feed import feed
from .marks import marking
from .program import Launches, Program
from .row_weights import RowWeights

# Batches of a graph, where many of a kind follow one another: the host launches a graph in some 5 us, and a small batch
# takes less. A pass must be LONG times as long, for making the graph takes milliseconds.
MANY, LONG = 8, 8
ROW_NUMBER = np.dtype(np.uint32)  # of rows on the device


class BatchKind(NamedTuple):
    """Size of a batch and position in its step: all batches of a kind have the same launches, arguments included."""

    rows: int
    step_rows: int  # of all batches of its step
    starts_step: bool
    ends_step: bool
    updates: bool = True  # False: the weights of the step sum to 0


class OnlyOnce(NamedTuple):
    """Launches that are done one by one, with the interface of a graph."""

    launch: Launches


def batch_kind(number: int, rows: int, batch: int, group: int) -> BatchKind:
    """The kind of batch `number` of a pass over so many rows, in batches of `batch` rows, `group` of them a step.

    >>> batch_kind(0, 10, 4, 2)
    BatchKind(rows=4, step_rows=8, starts_step=True, ends_step=False, updates=True)
    >>> batch_kind(2, 10, 4, 2)
    BatchKind(rows=2, step_rows=2, starts_step=True, ends_step=True, updates=True)
    """
    position, done = number % group, number * batch
    step_rows = min(rows - done + position * batch, group * batch)
    return BatchKind(min(batch, rows - done), step_rows, position == 0, position == group - 1 or done + batch >= rows)


def kinds_of(sizes: np.ndarray, group: int) -> list[BatchKind]:
    """The kinds of batches of these rows, (batches,), `group` of them a step.

    >>> [(kind.rows, kind.step_rows, kind.ends_step) for kind in kinds_of(np.array([3, 1, 2]), 2)]
    [(3, 4, False), (1, 4, True), (2, 2, True)]
    """
    last, steps = len(sizes) - 1, np.add.reduceat(sizes, np.arange(0, len(sizes), group)).tolist()
    return [
        BatchKind(rows, steps[i // group], i % group == 0, i % group == group - 1 or i == last)
        for i, rows in enumerate(sizes.tolist())
    ]


class Pass:
    """One kind of pass over the same arrays, to be run any number of times.

    rows: of a pass, or of the longest if `run` is given sizes of batches; ordered: `run` is given their order; group:
    batches of a step; outputs: columns of the outputs that are kept for every row, 0 for none; weighted: `run` is given
    weights. chosen: numbers of the rows of a pass that goes through them as they are; None: all rows.
    """

    def __init__(
        self,
        program: Program,
        x: np.ndarray | Source,
        y: np.ndarray | None,
        rows: int,
        ordered: bool,
        group: int = 1,
        outputs: int = 0,
        weighted: bool = False,
        chosen: np.ndarray | None = None,
    ) -> None:
        gpu, stream = program.gpu, program.stream
        self.program, self.rows, self.group = program, rows, group
        self.batches = -(-rows // program.batch)
        self.arrays = x, y, chosen  # kept alive, so that no other array can have the same id
        width = outputs * program.size
        other_bytes = rows * (width + ROW_NUMBER.itemsize * ordered + 16 * weighted)
        dtype = np.dtype(program.net.dtype)
        self.feed = feed(gpu, stream, x, y, program.batch, other_bytes, dtype, chosen)
        self.layout = self.feed.layout  # of x on the device, where that is not the network's dtype
        table = stages_table(x) if self.layout else None
        self.stages = 0 if table is None else program.constant("stages", table)
        self._order = gpu.allocate(ROW_NUMBER.itemsize * rows) if ordered and not self.feed.streamed else None
        self._weights = gpu.allocate(16 * rows) if weighted else None
        self._row_weights: RowWeights | None = None  # of the pass that is running
        self.metrics = program.net.num_sums
        self.results = gpu.allocate(8 * (self.metrics + self.batches))
        self.outputs = gpu.allocate(self.feed.ring * width) if outputs else None
        self.done = 0  # batches that were launched
        self.marked = False  # launches are timed one by one, so that no two run at the same time
        self._replays: dict[tuple[tuple[BatchKind, bool], int], Any] = {}
        self._lists: dict[tuple[BatchKind, bool], Launches] = {}
        self._verb = "train" if ordered else "predict" if outputs else "evaluate"

    @property
    def losses(self) -> int:
        """Address of the sums of the loss, of all batches or of the pass; those for metrics stand before them."""
        return int(self.results.address) + 8 * self.metrics

    @property
    def order(self) -> int:
        """Address of the order of rows; 0: they come in it."""
        return 0 if self._order is None else int(self._order.address)

    @property
    def labels(self) -> bool:
        """True if targets are class numbers."""
        y = self.arrays[1]
        return y is not None and y.ndim == 1 and y.dtype == np.int64

    def gather(self, rows: int) -> tuple[int, int, bool]:
        """Add the launches that gather the rows of a batch; return addresses of x and targets, and True for labels."""
        feed, stored = self.feed, (self.layout, self.stages) if self.layout else None
        return *self.program.gather(feed.x, feed.y, self.labels, self.order, rows, feed.ring, stored), self.labels

    def gather_weights(self, rows: int) -> int:
        """Add the launch that gathers the weights of a batch; return their address, 0 where rows have none."""
        if self._weights is None:
            return 0
        return self.program.gather_weights(self._weights.address, rows, self.rows)

    def run(
        self,
        list_batch: Callable[[BatchKind], None],
        order: np.ndarray | None = None,
        ever: int = 0,
        check: Callable[[], None] = lambda: None,
        after: Callable[[range], None] = lambda chunk: None,
        together: Callable[[range], None] | None = None,
        carried: Sequence[float] = (),
        weights: RowWeights | None = None,
        sizes: np.ndarray | None = None,
    ) -> None:
        """Launch all batches; `ever` batches were trained on before.

        list_batch: adds the launches for a kind of batch to the program; called once for each kind.
        check: called after each step; it may raise.
        after: called with the batches of each chunk that was launched.
        together: launches several batches as one kernel, each a step; called instead of `list_batch`.
        carried: sums for metrics that these batches are added to; by default 0.
        weights: of the rows, in the order of the pass.
        sizes: rows of every batch, of which `order` and `weights` have the rows `apart`; None: full batches, and what
        is left.
        """
        program = self.program
        kinds = None if sizes is None else kinds_of(sizes, self.group)
        batches = self.batches if kinds is None else len(kinds)
        gpu, stream = program.gpu, program.stream
        self.done = 0
        gpu.copy_in(program.clock.address, np.array([(0, ever)], CLOCK), stream)
        gpu.zero(self.results.address, 8 * (self.metrics + self.batches), stream)
        if len(carried):
            gpu.copy_in(self.results.address, np.array(carried, np.float64), stream)
        if self._order is not None:
            gpu.copy_in(self._order.address, np.asarray(order, ROW_NUMBER), stream)
        self._row_weights = weights
        if self._weights is not None and weights is not None:
            gpu.copy_in(self._weights.address, weights.rows, stream)
        with marking(program, self._verb) as marks, closing(self.feed.chunks(order, batches)) as chunks:
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
                    if kinds is None:
                        kind = batch_kind(number, self.rows, program.batch, self.group)
                        count = 1 if marks else self._num_alike(number, chunk)
                    else:
                        kind, count = kinds[number], 1
                    if weights is not None:
                        kind = kind._replace(updates=bool(weights.updates[number]))
                    if kinds is not None and number == batches - 1:
                        # what is left for it is of another size in each epoch: a graph would not be used again
                        replay = OnlyOnce(self._listed(kind, list_batch))
                    else:
                        replay = self._replay(kind, count, list_batch)
                    if marks:
                        marks.launch(number, kind.rows, self._lists[kind, True], replay)
                    else:
                        replay.launch()
                    self.done = number + count
                    if kind.ends_step:
                        check()
                after(chunk)

    def _num_alike(self, number: int, chunk: range) -> int:
        """Number of batches from this one on that are launched together: MANY of one kind, or 1."""
        full = self.rows // self.program.batch  # batches before the last, which may be short
        long = self.group == 1 and full >= LONG * MANY
        if self._row_weights is not None:
            long = long and bool(self._row_weights.updates[number : number + MANY].all())
        return MANY if long and number + MANY <= min(full, chunk.stop) else 1

    def _listed(self, kind: BatchKind, list_batch: Callable[[BatchKind], None]) -> Launches:
        """The launches for a batch of a kind, one by one."""
        key = kind, self.marked
        if key not in self._lists:
            list_batch(kind)
            self._lists[key] = self.program.launches()
        return self._lists[key]

    def _replay(self, kind: BatchKind, count: int, list_batch: Callable[[BatchKind], None]) -> Any:
        """The launches for so many batches of a kind."""
        launches, key = self._listed(kind, list_batch), ((kind, self.marked), count)
        if key not in self._replays:
            program = self.program
            self._replays[key] = program.gpu.replay(program.stream, Launches(launches * count))
        return self._replays[key]

    def sums(self) -> tuple[list[float], np.ndarray]:
        """Sums for metrics, and of the loss of every batch or of the pass. Waits for all launches."""
        found = np.zeros(self.metrics + self.batches)
        program = self.program
        program.gpu.copy_out(found, self.results.address, program.stream)
        program.gpu.wait(program.stream)
        return found[: self.metrics].tolist(), found[self.metrics :]


class Collector:
    """Copies the outputs of a pass to the host: those of one chunk of batches while the device works on the next.

    The next chunk but one writes to the same half of the ring, so it is launched after the copy.
    """

    def __init__(self, running: Pass, into: np.ndarray) -> None:
        gpu = running.program.gpu
        self.running, self.into, self._copies = running, into, gpu.stream()
        self._done = [gpu.event() for _ in range(2)]
        self._pending: range | None = None  # launched, and not copied yet

    def launched(self, chunk: range) -> None:
        """These batches were launched; copy those before them, when they are done."""
        self._done.reverse()
        self._done[0].record(self.running.program.stream)
        before, self._pending = self._pending, chunk
        if before:
            self._copy(before, self._done[1])

    def finish(self) -> None:
        """Copy the last batches."""
        if self._pending:
            self._copy(self._pending, self._done[0])

    def _copy(self, chunk: range, done: Any) -> None:
        running, into, copies = self.running, self.into, self._copies.handle
        assert running.outputs is not None
        gpu, batch = running.program.gpu, running.program.batch
        part = into[chunk.start * batch : chunk.stop * batch]
        offset = chunk.start * batch % running.feed.ring * (into.nbytes // len(into))
        done.before(copies)
        gpu.copy_out(part, running.outputs.address + offset, copies)
        gpu.wait(copies)
