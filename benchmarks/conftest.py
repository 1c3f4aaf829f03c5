"""What the suites share: backends and the report's extra figures."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest

from fastopt import _backends


@pytest.fixture(params=list(_backends.MODULES))
def backend(request: pytest.FixtureRequest) -> ModuleType:
    return _backends.get(request.param)


@pytest.fixture
def note(benchmark: Any) -> Any:
    """note(...): add the rate reached, and its share of the machine's limit, to the benchmark's report."""

    def add(moved: float = 0, flops: float = 0, samples: float = 0, limit: float = 0) -> None:
        if benchmark.disabled or not benchmark.stats:
            return
        seconds = benchmark.stats.stats.median
        info = benchmark.extra_info
        if moved:
            info["GB/s"] = round(moved / seconds / 1e9, 2)
        if flops:
            info["GFLOP/s"] = round(flops / seconds / 1e9, 2)
        if samples:
            info["samples/s"] = round(samples / seconds)
        if limit:
            info["share of limit"] = round((moved or flops) / seconds / limit, 3)

    return add
