"""When each launch of a batch began and ended: for `fastopt.profile`, by events of the device; and ranges for Nsight.

What a batch consists of is then launched one by one, not as a graph: between two events each, in an NVTX range with the
name of the launch, where NVIDIA's package nvtx is installed. FASTOPT_NVTX=1 has the ranges without a profile. What is
computed is the same; what a small batch takes is not, for the device waits for the host between launches.

The first batch of its sort has no marks: kernels are loaded and algorithms chosen while it is launched.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import numpy as np

from ...profile import Cost, Pass, Recorder, recorder
from .launch_costs import Described
from .program import Program

log = logging.getLogger("fastopt")

MARKS = 1 << 26  # bytes of memory for the marks of a pass; batches beyond that are run without
_seen: set[Any] = set()  # sorts of batches that were launched before


@dataclass
class _Sort:
    """Batches with the same launches."""

    costs: tuple[Cost, ...]
    rows: int
    count: int = 0
    total: int = 0  # rows of all of them
    numbers: list[int] = field(default_factory=list)  # of those with marks
    marks: list[np.ndarray] = field(default_factory=list)


class Marks:
    """The marks of one pass."""

    def __init__(self, program: Program, verb: str, listener: Recorder | None) -> None:
        self.gpu, self.stream, self.net, self.verb = program.gpu, program.stream, program.net, verb
        self.batch = program.batch
        self.ranges, self._listener = _nvtx(), listener
        self._events: list[tuple[Any, Any]] = []
        self._costs: list[Cost] = []  # of the launches of this batch so far
        self._sorts: dict[Any, _Sort] = {}
        self._bytes, self._without, self._start = 0, 0, time.perf_counter_ns()
        self._origin = self.gpu.event(timed=True)
        self._described = Described(self.net, self._around)
        self._record(self._origin)
        self._origin.wait()
        self._origin_ns = time.perf_counter_ns()

    def launch(self, number: int, rows: int, launches: Sequence[partial[None]], replay: Any) -> None:
        """Do the launches of a batch, and wait for them; replay: what else does them, when there is no more room."""
        if self._bytes >= MARKS:
            self._without += 1
            replay.launch()
            return
        self._costs.clear()
        with self._range(f"{self.verb} batch"):
            self._described.run(launches)
        if self._listener is None:
            return
        if sort := self._noted(rows, rows, 1):
            self._keep(sort, [number], self._marks().reshape(1, -1))

    def together(self, chunk: range, rows: int, fused: Any) -> None:
        """The launch of many batches as one kernel, of which each gets the same share; rows: of all batches.

        There is nothing to be seen within it: FASTOPT_CUDA_FUSED=0 has the launches instead.
        """
        self._costs.clear()
        cost = self._described.fused(fused.rule)
        with self._range(f"{self.verb} {len(chunk)} batches"):
            self._around(cost, partial(fused, chunk))
        if self._listener is None:
            return
        if self._bytes >= MARKS:
            self._without += len(chunk)
            return
        done = min(chunk.stop * self.batch, rows) - chunk.start * self.batch
        if sort := self._noted(self.batch, done, len(chunk)):
            start, end, _ = self._marks()
            times = np.rint(np.linspace(start, end, len(chunk) + 1)).astype(np.int64)
            self._keep(sort, chunk, np.stack([times[:-1], times[1:], times[1:]], axis=1))

    def _noted(self, rows: int, done: int, count: int) -> _Sort | None:
        """The sort of batches of so many rows that were just launched, `done` rows in all; None for the first."""
        costs = tuple(self._costs)
        sort = self._sorts.setdefault((costs, rows), _Sort(costs, rows))
        sort.count += count
        sort.total += done
        key = self.gpu.name, self.gpu.ordinal, self.net.dtype, rows, costs
        if key in _seen:
            return sort
        _seen.add(key)
        return None

    def _keep(self, sort: _Sort, numbers: Sequence[int], marks: np.ndarray) -> None:
        sort.numbers += numbers
        sort.marks += list(marks)
        self._bytes += marks.nbytes

    def _around(self, cost: Cost, run: Callable[[], None]) -> None:
        with self._range(cost.name):
            if self._listener is None:
                run()
                return
            if len(self._events) == len(self._costs):
                self._events.append((self.gpu.event(timed=True), self.gpu.event(timed=True)))
            start, end = self._events[len(self._costs)]
            self._costs.append(cost)
            self._record(start)
            run()
            self._record(end)

    def _record(self, event: Any) -> None:
        with self.gpu.active():
            event.record(self.stream)

    def _marks(self) -> np.ndarray:
        """When each launch began and ended, and at the end that once more: (1 + 2 launches,) int64, nanoseconds."""
        events = self._events[: len(self._costs)]
        first = events[0][0]
        with self.gpu.active():
            events[-1][1].wait()
            # The device counts in float32: short times are exact, and only the first of a batch may be a long one.
            seconds = [event.since(first) for pair in events for event in pair]
            start = first.since(self._origin)
        times = np.array([*seconds, seconds[-1]]) * 1e9
        return self._origin_ns + round(start * 1e9) + np.rint(np.maximum.accumulate(times)).astype(np.int64)

    @contextlib.contextmanager
    def _range(self, name: str) -> Iterator[None]:
        if self.ranges is None:
            yield
            return
        self.ranges.push_range(name, domain="fastopt")
        try:
            yield
        finally:
            self.ranges.pop_range(domain="fastopt")

    def tell(self) -> None:
        """Hand over what was found."""
        if self._listener is None:
            return
        end, another, without = time.perf_counter_ns(), False, self._without
        for sort in self._sorts.values():
            marked, slots, steps = len(sort.numbers), 1 + 2 * len(sort.costs), sort.count + without
            rows = sort.total + sort.rows * without
            self._listener.record(
                Pass(
                    self.verb, self.net.dtype, sort.costs, sort.rows, rows, steps, self._start, end,
                    np.array(sort.marks, np.int64).reshape(1, marked, slots), sort.numbers, another, self.gpu.name,
                )
            )  # fmt: skip
            another, without = True, 0


@contextlib.contextmanager
def marking(program: Program, verb: str) -> Iterator[Marks | None]:
    """The marks of a pass, where somebody wants them; None."""
    listener, ranges = recorder.get(), os.environ.get("FASTOPT_NVTX", "0") not in ("", "0")
    if listener is None and not ranges:
        yield None
        return
    if ranges and _nvtx() is None:
        log.warning("FASTOPT_NVTX is set, but the package nvtx is not installed: pip install nvtx")
    marks = Marks(program, verb, listener)
    try:
        yield marks
    finally:
        marks.tell()


@cache
def _nvtx() -> Any:
    """NVIDIA's package, where it is installed."""
    try:
        import nvtx
    except ImportError:
        return None
    return nvtx
