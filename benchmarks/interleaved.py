"""Contestants that take turns in one process, and how pytest-benchmark is told what was measured then.

One contestant after the other, as benchmarks usually go, would see the machine in different states.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import pytest

from fastopt.benchmarks.workloads import Absent

Outcome = TypeVar("Outcome")


class Clock:
    """Time that goes on only when it is told to."""

    now = 0.0

    def read(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


CLOCK = Clock()
interleaved = pytest.mark.benchmark(timer=CLOCK.read)  # for every test that calls `record`
_held: dict[Any, Any] = {}


def shared_result(request: pytest.FixtureRequest, contest: Callable[[list[str]], Outcome]) -> Outcome:
    """What `contest` gave, called with the contestants that were selected for this test's other parameters.

    The test of the first of them holds it, for all.
    """

    def work(params: dict[str, Any]) -> list[tuple[str, Any]]:
        return sorted((name, value) for name, value in params.items() if name != "contestant")

    mine = work(request.node.callspec.params)
    key = request.function, *mine
    if key not in _held:
        items = [item for item in request.session.items if getattr(item, "function", None) is request.function]
        wanted = [item.callspec.params for item in items if work(item.callspec.params) == mine]  # type: ignore[attr-defined]
        _held[key] = contest([params["contestant"] for params in wanted])
    return _held[key]


def available(make: Callable[[str], Callable[[], Any]], names: Iterable[str]) -> dict[str, Callable[[], Any]]:
    """What `make` gives for each contestant that is there: it raises Absent for the others."""
    calls = {}
    for name in names:
        with suppress(Absent):
            calls[name] = make(name)
    return calls


def record(benchmark: Any, seconds: Sequence[float]) -> None:
    """Hand what was measured to pytest-benchmark."""
    times = iter(seconds)
    benchmark.pedantic(lambda: CLOCK.advance(next(times)), rounds=len(seconds))
