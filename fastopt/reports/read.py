"""Reading of pytest-benchmark's files. Their contents are checked here, and trusted in the other modules."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LONGEST = 200  # characters of a text in a file
TEXTS = ("kind", "name", "title", "contestant", "contestant_title", "shape", "dtype")
EXTRA_NUMBERS = {  # by kind
    "memory": ("before_bytes", "peak_bytes"),
    "accuracy": ("accuracy", "fifth_over_first"),
    "compressed": ("accuracy", "rows", "share_of_bytes"),
}


@dataclass(frozen=True)
class Result:
    """A benchmark: the work, its contestant (the library that did it), and the cost of a call."""

    kind: str  # update, tiny, step, loop, dense, product, loss, kernel, limit, epoch, memory, program, accuracy or
    # compressed
    name: str  # rule, layer, loss or workload
    title: str  # the name in words
    contestant: str
    contestant_title: str
    shape: str
    size: int
    dtype: str
    seconds: float  # median of a call
    bytes: float  # that a call must move at least; 0 if not known
    flops: float
    limit_seconds: float  # time of a call at the speed limit of the machine; 0 if not known
    peak: float  # FLOP/s of the fastest products in its dtype, with its threads; 0 if not known
    peak_by: str = ""  # the library that reached them
    fma: float = 0.0  # FLOP/s of multiplications and additions in registers, likewise
    before_bytes: float = 0.0  # kind memory: resident memory before training
    peak_bytes: float = 0.0  # kind memory: the largest while training
    accuracy: float = 0.0  # kinds accuracy, compressed: on the test data
    fifth_over_first: float = 0.0  # kind accuracy: time of the fifth epoch / time of the first
    rows: float = 0.0  # kind compressed: of the batch
    share_of_bytes: float = 0.0  # kind compressed: of the file, those of the parameters in float32 being 1

    @property
    def work(self) -> tuple[str, str, str, int, str]:
        """Key of the work, the same for all contestants."""
        return self.kind, self.name, self.shape, self.size, self.dtype

    @property
    def titled_work(self) -> str:
        """The title, with the dtype if that is not float32."""
        return self.title if self.dtype == "float32" else f"{self.title}, {self.dtype}"

    @property
    def label(self) -> str:
        """Kind, name and size of the work on one line."""
        dtype = "" if self.dtype == "float32" else f" {self.dtype}"
        work = self.title if self.kind == "epoch" else f"{self.name} {self.shape or f'{self.size:,}'}{dtype}"
        return f"{self.kind}: {work}"


@dataclass(frozen=True)
class Run:
    """One file: its results, and the machine that they were measured on."""

    path: str
    when: str
    machine: str  # processor, threads and versions on one line
    stream: float  # bytes read and written a second, at best; 0 if not known
    results: tuple[Result, ...]
    gpu: bool = False  # True if measured on a GPU
    processor: str = ""  # its short name, for the heading of a column

    @property
    def roof(self) -> float:
        """FLOP/s that no kernel exceeds: in registers, else of the fastest products; 0 if neither is known."""
        fmas = [result.fma for result in self.results]
        return max(fmas, default=0.0) or max(self.peaks.values(), default=0.0)

    @property
    def peaks(self) -> dict[str, float]:
        """FLOP/s of the fastest products by dtype, as far as known."""
        found: dict[str, float] = {}
        for result in self.results:
            if result.peak:
                found[result.dtype] = max(result.peak, found.get(result.dtype, 0.0))
        return found

    @property
    def peak_by(self) -> dict[str, str]:
        """The libraries of the fastest products by dtype, as far as known."""
        best = [result for result in self.results if result.peak_by and result.peak == self.peaks[result.dtype]]
        return {result.dtype: result.peak_by for result in best}

    def of(self, *kinds: str) -> list[Result]:
        """Return the results of some kinds, in the file's order."""
        return [result for result in self.results if result.kind in kinds]


def read(path: str | os.PathLike[str]) -> Run:
    """Return the results of a file of `fastopt bench --json`, without benchmarks of other projects.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not JSON of pytest-benchmark, has no benchmark of fastopt, or has a record with a field that
            is missing or impossible. The message names the file.
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
    is_gpu = bool(_object(info.get("gpu")))
    return Run(str(path), when, _machine(info), max(streams), tuple(results), is_gpu, _processor(info, Path(path).stem))


def _result(info: Mapping[str, Any], stats: Any) -> Result:
    if not isinstance(stats, dict):
        raise ValueError("'stats' must be an object")
    texts: dict[str, Any] = {name: _text(info, name) for name in TEXTS}
    numbers: dict[str, Any] = {name: _number(info, name) for name in ("bytes", "flops", "limit_seconds")}
    numbers |= {name: _number(info, name) for name in EXTRA_NUMBERS.get(texts["kind"], ())}
    seconds = _number(stats, "median")
    if not seconds > 0:
        raise ValueError(f"'median' must be above 0; got {seconds:g}")
    size, peak = int(_number(info, "size")), _number(info, "gemm_flops_per_second")
    by = _text(info, "gemm_by") if "gemm_by" in info else ""
    fma = _number(info, "fma_flops_per_second") if "fma_flops_per_second" in info else 0.0
    return Result(**texts, **numbers, size=size, seconds=seconds, peak=peak, peak_by=by, fma=fma)


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
    """The machine on one line, as far as known."""
    own, cpu = (_object(info.get(name)) for name in ("fastopt", "cpu"))
    versions = _object(own.get("versions"))
    threads = f"{own['threads']} threads" if isinstance(own.get("threads"), int) else ""
    gpu = _gpu(_object(info.get("gpu")))
    about = [threads, own.get("blas")] if not gpu else []
    parts = [*gpu, cpu.get("brand_raw"), *about, *(f"{name} {value}" for name, value in versions.items())]
    line = ", ".join(part for part in parts if isinstance(part, str) and part) or "unknown machine"
    quick = "; a quick run: sizes and rounds are too small to judge by" if own.get("quick") is True else ""
    return line[: 3 * LONGEST] + quick


def _processor(info: Mapping[str, Any], stem: str) -> str:
    """Short name of the processor, with threads, from the file or from its name.

    >>> _processor({"fastopt": {"processor": "zen5", "threads": 2}}, "run")
    'zen5, 2 threads'
    >>> _processor({}, "cpu-zen4-2-cores")
    'zen4, 2 threads'
    >>> _processor({}, "run")
    'run'
    """
    own = _object(info.get("fastopt"))
    name, threads = own.get("processor"), own.get("threads")
    if isinstance(name, str) and 0 < len(name) <= LONGEST and isinstance(threads, int):
        return f"{name}, {threads} threads"
    by_name = re.fullmatch(r"cpu-(.+)-(\d+)-cores", stem)
    return f"{by_name[1]}, {by_name[2]} threads" if by_name else stem[:LONGEST]


def _gpu(info: Mapping[str, Any]) -> list[str]:
    """Name and versions of the GPU that was measured; an empty list if there was none."""
    about = {"name": "{}", "capability": "compute capability {}", "driver_version": "driver {}"}
    about |= {"cublas": "cuBLASLt {}", "clock_mhz": "{} MHz at most"}
    return [text.format(info[key]) for key, text in about.items() if isinstance(info.get(key), str | int | float)]


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
