"""Profiling: the kernels of a training step, the time of each, and its share of the machine's limits."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextvars import Token
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np

from . import _files
from ._text import aligned, in_bytes, rounded
from ._validation import check_count
from .kernels.profile import Cost, Pass, Recorder, recorder

PROFILED = ("cpu", "cuda")  # backends


class Limits(NamedTuple):
    """Best rates of the machine, with the threads that kernels may use, or of a GPU."""

    bandwidth: float  # bytes a second, streamed to and from memory
    flops: float  # operations a second, in registers; of a GPU: in large products
    products: float = 0.0  # operations a second of the fastest matrix products; 0 if that is `flops`, or unknown
    library: str = ""  # name and version of the library that reached them


@dataclass
class Row:
    """A kernel with the shapes of a layer, and the sums of all its calls. Times are those of the average thread."""

    verb: str  # the pass it belongs to: "train", "evaluate" or "predict"
    dtype: str
    device: str  # name of the GPU; "": the host
    kernel: str
    calls: int = 0  # a call of all threads together counts once
    seconds: float = 0.0  # at work
    waiting: float = 0.0  # seconds for the other threads at the barrier after it; of a GPU: for the next launch
    bytes: int = 0  # moved at least
    flops: int = 0  # floating-point operations
    of_step: float = 0.0  # share of the step's time, waiting not counted
    of_limit: float | None = None  # share of the machine's limit; None if that or the work is unknown

    @property
    def bandwidth(self) -> float:
        """Bytes moved per second."""
        return self.bytes / self.seconds if self.seconds else 0.0

    @property
    def rate(self) -> float:
        """Operations per second."""
        return self.flops / self.seconds if self.seconds else 0.0


@dataclass
class Total:
    """Sums of all passes of one kind, with the share of them that the rows account for."""

    verb: str
    dtype: str
    device: str
    threads: int = 0  # of the host
    passes: int = 0
    steps: int = 0  # steps run; on a GPU every batch counts
    marked: int = 0  # steps that have marks, which the rows sum up
    seconds: float = 0.0  # of the marked steps by the average thread's marks, work and waiting
    wall: float = 0.0  # from before the threads start to the last mark, or to the end of the threads

    @property
    def step(self) -> float:
        """Seconds per step."""
        return self.seconds / self.marked if self.marked else 0.0

    @property
    def coverage(self) -> float:
        """Share of the wall time that the marks account for; the rest goes to starting and ending threads."""
        return self.seconds / self.wall if self.wall else 0.0


Key = tuple[str, str, str]  # verb, dtype, device


class profile:
    """Record what the kernels of models do while open: `with fastopt.profile() as p: model.fit(...)`.

    trace_steps  number of steps, from the first, that `save_trace` writes

    Only passes of models on the backends cpu and cuda that this thread runs are recorded: training, evaluation,
    prediction; models on other backends refuse to run. Results are the same bits as without. A pass whose marks do not
    fit into 64 MB is recorded as far as they do (some 60,000 steps of three layers on two threads).

    On a GPU a batch is then launched kernel by kernel, not as CUDA graphs, and waited for, so an epoch of small
    batches takes longer than without; in the table that is waiting, and the kernels' own times hold, but for those of a
    few microseconds. The first batch of its shape is left out: kernels are loaded while it runs. A small network that
    is trained by one kernel has one row, for all batches of a launch alike; FASTOPT_CUDA_FUSED=0 shows it in parts.

    >>> from fastopt import Dense, Sequential
    >>> model = Sequential([Dense(8, "relu"), Dense(1)])
    >>> model.compile("adam", "mean_squared_error")
    >>> with profile() as p:
    ...     _ = model.fit(np.ones((64, 4)), np.ones(64), batch_size=16)
    >>> for row in p.rows:
    ...     print(row.kernel, row.calls, row.bytes, row.flops)
    shuffle 1 512 0
    gather 4 4 3840 0
    forward 4x8 relu 4 3712 4608
    forward 8x1 linear 4 2448 1088
    loss mean_squared_error 4 768 0
    ...
    """

    def __init__(self, trace_steps: int = 1000) -> None:
        self._trace_steps = check_count("trace_steps", trace_steps, least=0)
        self._rows: dict[tuple[Key, str], Row] = {}
        self._totals: dict[Key, Total] = {}
        self._limits: dict[tuple[str, str], Limits | None] = {}
        self._traced: list[Pass] = []  # with the marks of the steps that are written down
        self._token: Token[Recorder | None] | None = None

    def __enter__(self) -> profile:
        if self._token is not None:
            raise RuntimeError("this profile is open already")
        self._token = recorder.set(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._token is not None
        recorder.reset(self._token)
        self._token = None

    def record(self, done: Pass) -> None:
        """Add a pass; called by the backend."""
        if not done.steps:
            return
        ranks, marked, _ = done.marks.shape
        key = done.verb, done.dtype, done.device
        total = self._totals.setdefault(key, Total(*key))
        total.steps += done.steps
        total.passes += not done.is_continuation
        if not marked:
            return
        spans = np.diff(done.marks, axis=2).mean(axis=0).sum(axis=0) / 1e9  # work, waiting, work, ...
        end = done.end if marked == done.steps else int(done.marks[:, -1, -1].max())
        total.threads = max(total.threads, ranks)
        total.marked += marked
        total.seconds += float(spans.sum())
        total.wall += (end - done.start) / 1e9
        rows = min(done.rows, done.rows_of_first(marked))
        for i, cost in enumerate(done.costs):
            row = self._rows.setdefault((key, cost.name), Row(*key, cost.name))
            calls = -(-marked // done.epoch_steps) if cost.once_an_epoch else marked
            moved, operations = cost.total(calls, rows)
            row.calls += calls
            row.seconds += float(spans[2 * i])
            row.waiting += float(spans[2 * i + 1])
            row.bytes += moved
            row.flops += operations
        keep = min(marked, self._trace_steps - sum(kept.marks.shape[1] for kept in self._traced))
        if keep > 0:
            self._traced.append(done._replace(marks=done.marks[:, :keep].copy()))

    # -- results

    @property
    def totals(self) -> list[Total]:
        """A `Total` for each kind of pass."""
        return list(self._totals.values())

    @property
    def rows(self) -> list[Row]:
        """A `Row` for each kernel, in the order of the step. The first call measures the machine's limits."""
        for (key, _), row in self._rows.items():
            row.of_step = row.seconds / (self._totals[key].seconds or 1.0)
            limits = self.limits(row.dtype, row.device)
            if limits and row.seconds and (row.bytes or row.flops):
                row.of_limit = max(row.bytes / limits.bandwidth, row.flops / limits.flops) / row.seconds
        return list(self._rows.values())

    def limits(self, dtype: str, device: str = "") -> Limits | None:
        """Best rates of the machine, or of its first GPU if `device` is a GPU's name; measured once, within seconds.

        None in interpreted mode and under the simulator.
        """
        key = dtype, device
        if key not in self._limits:
            self._limits[key] = _limits_of_gpu(dtype) if device else _limits_of_host(dtype)
        return self._limits[key]

    def table(self) -> str:
        """Return a table for each kind of pass, with the limits below.

        Time and waiting are those of the average thread, so that they add up to the time of the step; a kernel's rates
        are those of all threads while they work. "of limit" is the larger of bytes / bandwidth and operations / peak,
        divided by the time: what memory or arithmetic would take at best. The peak is that of multiplications and
        additions in registers, which no product exceeds; the fastest products of any library stand beside it. The share
        says how much a better kernel could gain, if its operands come from memory; operands that stay in a cache come
        faster, so it may exceed 100 %.
        """
        rows = self.rows
        parts = [
            _section(total, [row for row in rows if (row.verb, row.dtype, row.device) == key])
            for key, total in self._totals.items()
        ]
        parts += [_limits_line(*key, limits) for key, limits in self._limits.items() if limits]
        return "\n\n".join(parts) if parts else "nothing was recorded"

    def save_trace(self, path: _files.Path | _files.Writable) -> None:
        """Write the first steps as JSON trace events, which ui.perfetto.dev and chrome://tracing show.

        `path` is as in `Sequential.save`.

        The first row is what was called, below it is a row for each thread: a step, in it the kernels, each followed by
        the waiting for the other threads.
        """
        trace = {"traceEvents": _events(self._traced), "displayTimeUnit": "ns"}
        _files.write(path, json.dumps(trace, separators=(",", ":")).encode())


def check_backend(name: str) -> None:
    """Raise ValueError for a backend that records nothing while a profile is open."""
    if name not in PROFILED and recorder.get() is not None:
        raise ValueError(f"only the backends {' and '.join(PROFILED)} can be profiled; this model's is {name}")


def _limits_of_host(dtype: str) -> Limits | None:
    from .benchmarks.limits import copy_bandwidth
    from .benchmarks.peaks import fma_peak, has_peak, product_peak
    from .kernels.cpu.runtime.launch import get_num_threads

    if not has_peak(dtype):
        return None
    threads = get_num_threads()
    best = product_peak(dtype, threads)
    # on a busy machine the registers may have had the worse moments
    return Limits(copy_bandwidth(), max(fma_peak(dtype, threads), best.flops), best.flops, best.library)


def _limits_of_gpu(dtype: str) -> Limits | None:
    from .kernels.cuda.runtime.requirements import simulated

    if simulated():
        return None
    from .benchmarks.cuda.limits import copy_bandwidth, product_peak

    return Limits(copy_bandwidth(), product_peak(dtype))


# ---------------------------------------------------------------- as text
HEAD = ("kernel", "calls", "time", "a call", "moved", "GB/s", "operations", "GFLOP/s", "of limit", "of step", "waiting")


def _section(total: Total, rows: list[Row]) -> str:
    seconds = total.seconds or 1.0
    waiting = sum(row.waiting for row in rows)
    lines: list[tuple[str, ...]] = [HEAD]
    for row in rows:
        lines.append((
            row.kernel, f"{row.calls:,}", _time(row.seconds), _time(row.seconds / row.calls),
            in_bytes(row.bytes) if row.bytes else "-", rounded(row.bandwidth / 1e9) if row.bytes else "-",
            _count(row.flops), rounded(row.rate / 1e9) if row.flops else "-",
            "-" if row.of_limit is None else f"{row.of_limit:.0%}", f"{row.of_step:.1%}",
            f"{row.waiting / seconds:.1%}",
        ))  # fmt: skip
    moved, flops = sum(row.bytes for row in rows), sum(row.flops for row in rows)
    work = seconds - waiting
    lines.append((
        "all", f"{total.marked:,}", _time(seconds), _time(total.step), in_bytes(moved), rounded(moved / seconds / 1e9),
        _count(flops), rounded(flops / seconds / 1e9), "", f"{work / seconds:.1%}", f"{waiting / seconds:.1%}",
    ))  # fmt: skip
    where = total.device or f"{total.threads} thread{'s' * (total.threads > 1)}"
    passes = f"{total.passes} pass{'es' * (total.passes > 1)}"
    left_out = f"; {total.steps - total.marked:,} more without marks" if total.steps > total.marked else ""
    share = "launched one by one" if total.device else f"{total.coverage:.1%} of the time of the passes"
    title = (
        f"{total.verb}: {total.marked:,} steps in {passes}, {total.dtype}, {where}{left_out}; "
        f"{_time(total.step)} a step, {share}"
    )
    return f"{title}\n{aligned(lines, gap=2)}"


def _limits_line(dtype: str, device: str, limits: Limits) -> str:
    bandwidth, flops = rounded(limits.bandwidth / 1e9), rounded(limits.flops / 1e9)
    if device:
        return f"limits, measured now on {device}: {bandwidth} GB/s from memory, {flops} GFLOP/s in {dtype} products"
    line = f"limits, measured now: {bandwidth} GB/s from memory, {flops} GFLOP/s in {dtype} registers"
    return line + (f"; products at best {rounded(limits.products / 1e9)} ({limits.library})" if limits.products else "")


def _time(seconds: float) -> str:
    unit, size = next((u for u in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)) if seconds >= u[1]), ("us", 1e-6))
    return f"{rounded(seconds / size)} {unit}"


def _count(operations: int) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if operations >= size:
            return f"{rounded(operations / size)} {unit}"
    return str(operations or "-")


# ---------------------------------------------------------------- as a trace
def _events(passes: list[Pass]) -> list[dict[str, Any]]:
    """Trace events: times in microseconds from the start of the first pass, rank r as thread r + 1."""
    if not passes:
        return []
    origin = min(done.start for done in passes)
    events: list[dict[str, Any]] = [
        {"ph": "M", "name": "process_name", "pid": 0, "tid": 0, "args": {"name": "fastopt"}}
    ]
    ranks = max((len(done.marks) for done in passes if not done.device), default=0)
    devices = list(dict.fromkeys(done.device for done in passes if done.device))
    names = ["calls", *(f"rank {rank}" for rank in range(ranks)), *devices]
    events += [
        {"ph": "M", "name": "thread_name", "pid": 0, "tid": tid, "args": {"name": name}}
        for tid, name in enumerate(names)
    ]

    def add(tid: int, name: str, category: str, start: int, end: int, **args: Any) -> None:
        events.append({
            "ph": "X", "name": name, "cat": category, "pid": 0, "tid": tid,
            "ts": (start - origin) / 1e3, "dur": (end - start) / 1e3, "args": args,
        })  # fmt: skip

    shown = set()
    for done in passes:
        if done.start not in shown:
            shown.add(done.start)
            add(0, done.verb, "pass", done.start, done.end, dtype=done.dtype, rows=done.rows, steps=done.steps)
        for rank, steps in enumerate(done.marks.tolist()):
            tid = names.index(done.device) if done.device else rank + 1
            for step, times in enumerate(steps):
                number = done.marked_steps[step] if done.marked_steps else step
                begins = step % done.epoch_steps == 0
                costs = [cost if begins or not cost.once_an_epoch else None for cost in done.costs]
                _step_events(add, costs, tid, number, done.rows_of_step(step), times)
    return events


def _step_events(
    add: Callable[..., None], costs: Sequence[Cost | None], tid: int, number: int, rows: int, times: list[int]
) -> None:
    add(tid, f"step {number}", "step", times[0], times[-1], rows=rows)
    for i, cost in enumerate(costs):
        if cost is None:  # this step has no call of it
            continue
        start, end, met = times[2 * i : 2 * i + 3]
        moved, operations = cost.total(1, rows)
        add(tid, cost.name, "kernel", start, end, bytes=moved, flops=operations)
        if met > end:
            add(tid, "waiting", "waiting", end, met)
