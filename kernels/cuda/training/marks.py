"""Times of each launch of a batch, for `fastopt.profile`, by events of the device; and ranges for Nsight.

A batch is then launched kernel by kernel, not as a graph: each launch between two events, in an NVTX range with its
name, if NVIDIA's package nvtx is installed. FASTOPT_NVTX=1 makes the ranges without a profile. Results are the same; a
small batch takes longer, for the device waits for the host between launches.

The first batch of its kind has no marks: kernels are loaded and algorithms chosen while it is launched.
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
from .program import Launches, Program

log = logging.getLogger("fastopt")

MARKS = 1 << 26  # bytes of memory for the marks of a pass; later batches have none
_seen: set[Any] = set()  # kinds of batches that were launched before


@dataclass
class _Kind:
    """Batches with the same launches."""

    costs: tuple[Cost, ...]
    rows: int
    count: int = 0
    total: int = 0  # rows of all of them
    numbers: list[int] = field(default_factory=list)  # of batches with marks
    marks: list[np.ndarray] = field(default_factory=list)


class Marks:
    """The marks of one pass."""

    def __init__(self, program: Program, verb: str, listener: Recorder | None) -> None:
        self.gpu, self.stream, self.net, self.verb = program.gpu, program.stream, program.net, verb
        self.batch = program.batch
        self.ranges, self._listener = _nvtx(), listener
        self._events: list[tuple[Any, Any]] = []
        self._costs: list[Cost] = []  # of the launches of this batch so far
        self._kinds: dict[Any, _Kind] = {}
        self._bytes, self._without, self._start = 0, 0, time.perf_counter_ns()
        self._origin = self.gpu.event(timed=True)
        self._record(self._origin)
        self._origin.wait()
        self._origin_ns = time.perf_counter_ns()

    def launch(self, number: int, rows: int, launches: Launches, replay: Any) -> None:
        """Do the launches of a batch, and wait for them; replay: does them when there is no more memory for marks."""
        if self._bytes >= MARKS:
            self._without += 1
            replay.launch()
            return
        self._costs.clear()
        with self._range(f"{self.verb} batch"):
            for launch in launches:
                self._around(launch.cost, launch.run)
        if self._listener is None:
            return
        if kind := self._count_batches(rows, rows, 1):
            self._keep(kind, [number], self._marks().reshape(1, -1))

    def together(self, chunk: range, rows: int, fused: Any) -> None:
        """Launch many batches as one kernel, and give each the same share of its time; rows: of the pass.

        FASTOPT_CUDA_FUSED=0 makes separate launches instead.
        """
        self._costs.clear()
        with self._range(f"{self.verb} {len(chunk)} batches"):
            self._around(fused.cost, partial(fused, chunk))
        if self._listener is None:
            return
        if self._bytes >= MARKS:
            self._without += len(chunk)
            return
        done = min(chunk.stop * self.batch, rows) - chunk.start * self.batch
        if kind := self._count_batches(self.batch, done, len(chunk)):
            start, end, _ = self._marks()
            times = np.rint(np.linspace(start, end, len(chunk) + 1)).astype(np.int64)
            self._keep(kind, chunk, np.stack([times[:-1], times[1:], times[1:]], axis=1))

    def _count_batches(self, rows: int, done: int, count: int) -> _Kind | None:
        """Count batches that were just launched, `done` rows in all; return their kind, None for the first of it."""
        costs = tuple(self._costs)
        kind = self._kinds.setdefault((costs, rows), _Kind(costs, rows))
        kind.count += count
        kind.total += done
        key = self.gpu.name, self.gpu.ordinal, self.net.dtype, rows, costs
        if key in _seen:
            return kind
        _seen.add(key)
        return None

    def _keep(self, kind: _Kind, numbers: Sequence[int], marks: np.ndarray) -> None:
        kind.numbers += numbers
        kind.marks += list(marks)
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
        """Begin and end of each launch, and the last end again: (1 + 2 launches,) int64, nanoseconds."""
        events = self._events[: len(self._costs)]
        first = events[0][0]
        with self.gpu.active():
            events[-1][1].wait()
            # The device counts in float32, so times are taken from the batch's first event: short ones are exact.
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

    def report(self) -> None:
        """Hand the marks to the listener."""
        if self._listener is None:
            return
        end, another, without = time.perf_counter_ns(), False, self._without
        for kind in self._kinds.values():
            marked, slots, steps = len(kind.numbers), 1 + 2 * len(kind.costs), kind.count + without
            rows = kind.total + kind.rows * without
            self._listener.record(
                Pass(
                    self.verb, self.net.dtype, kind.costs, kind.rows, rows, steps, self._start, end,
                    np.array(kind.marks, np.int64).reshape(1, marked, slots), kind.numbers, another, self.gpu.name,
                )
            )  # fmt: skip
            another, without = True, 0


@contextlib.contextmanager
def marking(program: Program, verb: str) -> Iterator[Marks | None]:
    """The marks of a pass; None where neither a profile nor ranges are wanted."""
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
        marks.report()


@cache
def _nvtx() -> Any:
    """NVIDIA's package nvtx, or None."""
    try:
        import nvtx
    except ImportError:
        return None
    return nvtx
