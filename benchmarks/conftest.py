"""Fixtures of the suites: backends, quick runs, and the fields that a report needs of a benchmark."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import pytest

from fastopt import _backends, get_num_threads
from fastopt.benchmarks.limits import copy_bandwidth
from fastopt.benchmarks.peaks import fma_peak, product_peak
from fastopt.benchmarks.peers import TITLES
from fastopt.benchmarks.products import label
from fastopt.cli.bench import processor
from fastopt.kernels.cpu.dense.blas import blas

PACKAGES = {name: name for name in ("fastopt", "numpy", "numba", "torch", "jax", "optax", "onnxruntime")}
PACKAGES |= {"sklearn": "scikit-learn"}

collect_ignore = ["cuda"]  # the suites for a GPU run by themselves: fastopt bench --backend cuda


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="small sizes and few rounds: to see that a suite runs")


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """Add threads, BLAS and versions to the machine's description."""
    machine_info["fastopt"] = {
        "threads": get_num_threads(),
        "blas": label(blas()),
        "processor": processor(),
        "quick": config.getoption("--quick"),
        "versions": {name: version(name) for module, name in PACKAGES.items() if find_spec(module)},
    }


@pytest.fixture(params=list(_backends.HOST))
def backend(request: pytest.FixtureRequest) -> ModuleType:
    return _backends.get(request.param)


@pytest.fixture
def quick(request: pytest.FixtureRequest, benchmark: Any) -> bool:
    """True for small sizes and few rounds: with --quick, and where --benchmark-disable asks for agreement alone."""
    return benchmark.disabled or request.config.getoption("--quick")


@pytest.fixture
def note(benchmark: Any) -> Callable[..., None]:
    """Return note(kind, name, contestant, ...), which adds the fields of a report to the benchmark's record.

    For programs, of one call: kind, name (of the rule, activation, loss or workload), contestant (one of PEERS), the
    titles of both, size (parameters or elements), dtype, shape, threads, bytes, flops, samples, limit_seconds (its time
    at the machine's limits), and three limits measured in the same run: stream_bytes_per_second of memory,
    fma_flops_per_second in registers, and gemm_flops_per_second of the fastest products, by the library gemm_by.
    For people: GB/s, GFLOP/s, samples/s, share of limit.

    The limit of an epoch is the time of its products at the rate of the fastest ones. Dense layers and products have
    the arithmetic in registers, whatever else has a size the slower of that and memory, if the caller gives no limit.
    """

    def add(
        kind: str,
        name: str,
        contestant: str | ModuleType,
        *,
        size: int,
        shape: str = "",
        title: str = "",
        contestant_title: str = "",
        moved: float = 0,
        flops: float = 0,
        samples: float = 0,
        limit: float = 0,
        dtype: str = "float32",
        threads: int = 0,
    ) -> None:
        if benchmark.disabled or not benchmark.stats:
            return
        if isinstance(contestant, ModuleType):
            contestant = "numpy" if contestant is _backends.get("numpy") else "fastopt"
        seconds = benchmark.stats.stats.median
        info = benchmark.extra_info
        threads = threads or get_num_threads()
        best, bandwidth = product_peak(dtype, threads), copy_bandwidth()
        peak = max(fma_peak(dtype, threads), best.flops)  # of a machine that was busy
        streaming = 0 if kind in ("dense", "product") else moved / bandwidth
        by_itself = flops / best.flops if kind == "epoch" else max(flops / peak, streaming)
        limit_seconds = limit or by_itself
        info |= {"kind": kind, "name": name, "contestant": contestant, "size": int(size), "dtype": dtype}
        info |= {"title": title or name, "contestant_title": contestant_title or TITLES[contestant]}
        info |= {"shape": shape, "threads": threads, "bytes": float(moved)}
        info |= {"flops": float(flops), "samples": float(samples), "limit_seconds": limit_seconds}
        info |= {"stream_bytes_per_second": bandwidth, "fma_flops_per_second": peak}
        info |= {"gemm_flops_per_second": best.flops, "gemm_by": best.library}
        if moved:
            info["GB/s"] = round(moved / seconds / 1e9, 2)
        if flops:
            info["GFLOP/s"] = round(flops / seconds / 1e9, 2)
        if samples:
            info["samples/s"] = round(samples / seconds)
        if limit_seconds:
            info["share of limit"] = round(limit_seconds / seconds, 3)

    return add
