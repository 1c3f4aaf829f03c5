"""Files of pytest-benchmark as results; whatever a file holds, it is checked here and nowhere after."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LONGEST = 200  # characters of a text in a file
TEXTS = ("kind", "name", "title", "contestant", "contestant_title", "shape", "dtype")
MORE = {"memory": ("before_bytes", "peak_bytes"), "accuracy": ("accuracy", "fifth_over_first")}  # numbers, by kind


@dataclass(frozen=True)
class Result:
    """A benchmark: what was called, by whom it was done, and what a call took."""

    kind: str  # update, tiny, step, loop, dense, loss, kernel, limit, epoch, memory, program, accuracy
    name: str  # of the rule, layer, loss or workload
    title: str  # the same for people
    contestant: str
    contestant_title: str
    shape: str
    size: int
    dtype: str
    seconds: float  # median
    bytes: float  # moved at least, by a call; 0 where not known
    flops: float
    limit_seconds: float  # what the machine would take at best; 0 where not known
    peak: float  # FLOP/s of large products in its dtype; 0 where not known
    before_bytes: float = 0.0  # of kind memory: resident before training,
    peak_bytes: float = 0.0  # and at most while training
    accuracy: float = 0.0  # of kind accuracy: on the test data,
    fifth_over_first: float = 0.0  # and the time of the fifth epoch over that of the first

    @property
    def work(self) -> tuple[str, str, str, int, str]:
        """What was done, whoever did it."""
        return self.kind, self.name, self.shape, self.size, self.dtype

    @property
    def what(self) -> str:
        """What was done, for people, with the dtype where that is none of the usual."""
        return self.title if self.dtype == "float32" else f"{self.title}, {self.dtype}"

    @property
    def label(self) -> str:
        """A line about what was done."""
        dtype = "" if self.dtype == "float32" else f" {self.dtype}"
        what = self.title if self.kind == "epoch" else f"{self.name} {self.shape or f'{self.size:,}'}{dtype}"
        return f"{self.kind}: {what}"


@dataclass(frozen=True)
class Run:
    """A file: its results, and what they were measured on."""

    path: str
    when: str
    machine: str  # a line about processor, threads and versions
    stream: float  # bytes a second, read and written; 0 where not known
    results: tuple[Result, ...]
    gpu: bool = False  # whether it was measured on one

    @property
    def gemm(self) -> float:
        """FLOP/s of large products; 0 where not known."""
        return max(self.peaks.values(), default=0.0)

    @property
    def peaks(self) -> dict[str, float]:
        """FLOP/s of large products in each dtype, as far as known."""
        found: dict[str, float] = {}
        for result in self.results:
            if result.peak:
                found[result.dtype] = max(result.peak, found.get(result.dtype, 0.0))
        return found

    def of(self, *kinds: str) -> list[Result]:
        """The results of some kinds, in the file's order."""
        return [result for result in self.results if result.kind in kinds]


def read(path: str | os.PathLike[str]) -> Run:
    """Return what a file of `fastopt bench --json` holds; benchmarks of other projects in it are left out.

    Raises OSError for a file that cannot be read, and ValueError, naming the file, for one that is not JSON, not
    pytest-benchmark's, or without a benchmark of fastopt, and for records with fields missing or impossible.
    """
    try:
        data = json.loads(Path(path).read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: must be a JSON file of pytest-benchmark; it cannot be parsed: {error}") from None
    if not isinstance(data, dict) or not isinstance(data.get("benchmarks"), list):
        raise ValueError(f"{path}: must be a JSON file of pytest-benchmark: an object with a list 'benchmarks'")
    results, streams = [], []
    for i, record in enumerate(data["benchmarks"]):
        info = record.get("extra_info") if isinstance(record, dict) else None
        if not isinstance(info, dict) or "kind" not in info:
            continue
        try:
            results.append(_result(info, record.get("stats")))
            streams.append(_number(info, "stream_bytes_per_second"))
        except ValueError as error:
            raise ValueError(f"{path}: benchmarks[{i}]: {error}") from None
    if not results:
        count = len(data["benchmarks"])
        raise ValueError(
            f"{path}: must hold results of `fastopt bench`; got {count} benchmarks, none of fastopt"
        )
    when = data.get("datetime")
    when = when[:16].replace("T", " ") if isinstance(when, str) else "unknown time"
    info = _object(data.get("machine_info"))
    return Run(str(path), when, _machine(info), max(streams), tuple(results), bool(_object(info.get("gpu"))))


def _result(info: Mapping[str, Any], stats: Any) -> Result:
    if not isinstance(stats, dict):
        raise ValueError("'stats' must be an object")
    texts: dict[str, Any] = {name: _text(info, name) for name in TEXTS}
    numbers: dict[str, Any] = {name: _number(info, name) for name in ("bytes", "flops", "limit_seconds")}
    numbers |= {name: _number(info, name) for name in MORE.get(texts["kind"], ())}
    seconds = _number(stats, "median")
    if not seconds > 0:
        raise ValueError(f"'median' must be above 0; got {seconds:g}")
    size, peak = int(_number(info, "size")), _number(info, "gemm_flops_per_second")
    return Result(**texts, **numbers, size=size, seconds=seconds, peak=peak)


def _text(info: Mapping[str, Any], name: str) -> str:
    value = info.get(name)
    if not isinstance(value, str) or len(value) > LONGEST:
        raise ValueError(f"{name!r} must be a text of at most {LONGEST} characters")
    return value


def _number(info: Mapping[str, Any], name: str) -> float:
    value = info.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name!r} must be a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not 0 <= number < 1e300:  # NaN as well
        raise ValueError(f"{name!r} must be a finite number of at least 0")
    return number


def _machine(info: Mapping[str, Any]) -> str:
    """A line about the machine, from whatever is known of it."""
    own, cpu = (_object(info.get(name)) for name in ("fastopt", "cpu"))
    versions = _object(own.get("versions"))
    threads = f"{own['threads']} threads" if isinstance(own.get("threads"), int) else ""
    gpu = _gpu(_object(info.get("gpu")))
    about = [threads, own.get("blas")] if not gpu else []
    parts = [*gpu, cpu.get("brand_raw"), *about, *(f"{name} {value}" for name, value in versions.items())]
    line = ", ".join(part for part in parts if isinstance(part, str) and part) or "unknown machine"
    quick = "; a quick run: sizes and rounds are too small to judge by" if own.get("quick") is True else ""
    return line[: 3 * LONGEST] + quick


def _gpu(info: Mapping[str, Any]) -> list[str]:
    """What is to be said of the GPU that was measured; nothing where there was none."""
    about = {"name": "{}", "capability": "compute capability {}", "driver_version": "driver {}"}
    about |= {"cublas": "cuBLASLt {}", "clock_mhz": "{} MHz at most"}
    return [text.format(info[key]) for key, text in about.items() if isinstance(info.get(key), str | int | float)]


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
