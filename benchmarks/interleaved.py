"""Interleaved contestants in pytest-benchmark, which by itself would measure one after the other.

Contestants that alternate find the machine in the same state. So the test of the first contestant measures all of them,
and each test records its contestant's times by a clock that only `record` advances.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import pytest

from fastopt.benchmarks.workloads import Absent

Outcome = TypeVar("Outcome")


class Clock:
    """A clock that advances only when it is told to."""

    now = 0.0

    def read(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


CLOCK = Clock()
interleaved = pytest.mark.benchmark(timer=CLOCK.read)  # for every test that calls `record`
_results: dict[Any, Any] = {}


def shared_result(request: pytest.FixtureRequest, contest: Callable[[list[str]], Outcome]) -> Outcome:
    """Return the result of `contest`, called once with all contestants that share this test's other parameters.

    Tests that were deselected do not count.
    """

    def work(params: dict[str, Any]) -> list[tuple[str, Any]]:
        return sorted((name, value) for name, value in params.items() if name != "contestant")

    own_work = work(request.node.callspec.params)
    key = request.function, *own_work
    if key not in _results:
        items = [item for item in request.session.items if getattr(item, "function", None) is request.function]
        selected = [item.callspec.params for item in items if work(item.callspec.params) == own_work]  # type: ignore[attr-defined]
        _results[key] = contest([params["contestant"] for params in selected])
    return _results[key]


def available(make: Callable[[str], Callable[[], Any]], names: Iterable[str]) -> dict[str, Callable[[], Any]]:
    """Return the calls that `make` returns, without the contestants for which it raises Absent."""
    calls = {}
    for name in names:
        with suppress(Absent):
            calls[name] = make(name)
    return calls


def record(benchmark: Any, seconds: Sequence[float]) -> None:
    """Record measured times with pytest-benchmark."""
    times = iter(seconds)
    benchmark.pedantic(lambda: CLOCK.advance(next(times)), rounds=len(seconds))
