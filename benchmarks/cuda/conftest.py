"""Fixtures of the suites for a GPU: small sizes for quick runs, and notes in a benchmark's record.

With the environment variable FASTOPT_BENCH_RECORDS, the name of a file, every record is appended to it as soon as it is
made, as a line of JSON.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from fastopt.benchmarks import peers
from fastopt.benchmarks.cuda.child import RECORDS
from fastopt.benchmarks.cuda.records import append
from fastopt.kernels.cuda.runtime.requirements import simulated

TITLES = peers.TITLES | {
    "torch-foreach": "torch, foreach=True",
    "torch-eager": "torch's kernels",
    "torch-autocast": "torch, autocast, fused=True",
    "torch-graph": "torch, fused=True, as a CUDA graph",
    "torch-compile": "torch.compile with CUDA graphs",
    "fastopt-epilogues": "fastopt, activations as cuBLASLt's epilogues",
    "fastopt-torch": "fastopt.torch",
    "fastopt-fused": "fastopt, many batches as one kernel",
    "fastopt-graph": "fastopt, a CUDA graph a batch",
    "cublaslt": "cuBLASLt, products alone",
    "stream": "streaming the same bytes",
    "driver": "copy by the driver",
    "kernel": "copy by a kernel",
}


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    from fastopt.benchmarks.cuda.device import facts

    machine_info["gpu"] = facts()


@pytest.fixture
def pick(quick: bool) -> Callable[..., Any]:
    """pick(full, quick, tiny): the size to run; the tiny one under the simulator."""

    def pick(full: Any, quick_one: Any, tiny: Any) -> Any:
        return tiny if simulated() else quick_one if quick else full

    return pick


@pytest.fixture
def note(benchmark: Any) -> Callable[..., None]:
    """The notes of the CPU's suites, for this GPU: its limits are copies, and products in the record's dtype."""
    from fastopt.benchmarks.cuda.limits import copy_bandwidth, product_peak

    def add(
        kind: str,
        name: str,
        contestant: str,
        *,
        size: int,
        dtype: str = "float32",
        shape: str = "",
        title: str = "",
        moved: float = 0,
        flops: float = 0,
        samples: float = 0,
        limit: float = 0,
    ) -> None:
        if benchmark.disabled or not benchmark.stats:
            return
        seconds, info = benchmark.stats.stats.median, benchmark.extra_info
        peak, bandwidth = product_peak(dtype), copy_bandwidth()
        at_best = limit or max(flops / peak, 0 if kind == "epoch" else moved / bandwidth)
        info |= {"kind": kind, "name": name, "contestant": contestant, "size": int(size), "dtype": dtype}
        info |= {"title": title or name, "contestant_title": TITLES[contestant], "shape": shape}
        info |= {"bytes": float(moved), "flops": float(flops), "samples": float(samples), "limit_seconds": at_best}
        info |= {"stream_bytes_per_second": bandwidth, "gemm_flops_per_second": peak}
        if moved:
            info["GB/s"] = round(moved / seconds / 1e9, 2)
            info["share of copy"] = round(moved / seconds / bandwidth, 3)
        if flops:
            info["TFLOP/s"] = round(flops / seconds / 1e12, 3)
        if samples:
            info["samples/s"] = round(samples / seconds)
        if at_best:
            info["share of limit"] = round(at_best / seconds, 3)

    return add


@pytest.fixture(autouse=True)
def keep(request: pytest.FixtureRequest) -> Iterator[None]:
    """Append the record of a benchmark to the file, if one is set, as soon as it is done: a kill loses at most one."""
    yield
    path, made = os.environ.get(RECORDS), request.node.funcargs.get("benchmark")
    if path and made is not None and made.stats and "kind" in made.extra_info:
        append(path, {"benchmark": record_of(made)})


def record_of(made: Any) -> dict[str, Any]:
    """Return the part of pytest-benchmark's record of a benchmark that reports read."""
    stats = made.stats.stats
    return {
        "fullname": made.fullname,
        "group": made.group,
        "datetime": time.strftime("%Y-%m-%dT%H:%M:%S"),
        "stats": {"median": stats.median, "iqr": stats.iqr, "min": stats.min, "rounds": stats.rounds},
        "extra_info": dict(made.extra_info),
    }
