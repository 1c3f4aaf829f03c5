"""Contestants that take turns on one GPU, timed by the device's clock."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np

from fastopt.benchmarks.cuda.device import the_gpu
from fastopt.kernels.cuda.runtime.compile import SIMULATED
from fastopt.kernels.cuda.runtime.timing import Timer

WARM = 2  # calls before the first turn: the first of all loads kernels, and chooses algorithms
INNER = 1 if SIMULATED else 20  # runs in a CUDA graph, which take longer than launching it
LEAST, MOST = 2e-3, 500  # a turn is as many calls as take so many seconds, but no more than this


class HostTimer:
    """A clock of the host, with the interface of `Timer`: time of launches, without the work itself."""

    def __init__(self, gpu: Any) -> None:
        self.gpu = gpu

    def seconds(self, run: Callable[[], None], stream: int) -> float:
        """Seconds of `run` on an idle stream. Waits for its work afterwards."""
        with self.gpu.active():
            self.gpu.wait(stream)
            start = time.perf_counter()
            run()
            taken = time.perf_counter() - start
            self.gpu.wait(stream)
        return taken


def turns(
    calls: Mapping[str, Callable[[], object]], rounds: int, stream: int = 0, clock: Callable[[Any], Any] = Timer
) -> dict[str, list[float]]:
    """Seconds of a call in every round, the calls taken in turn so that all see the same device.

    clock: Timer, by the device's own events, or HostTimer.

    A turn is a number of calls given one after the other to the stream, between two events; its mean counts.
    Where the host takes longer to give the work than the device to do it, that is what is measured, as whoever calls
    them so would see it. In another order every round, as on the CPU.
    """
    gpu = the_gpu()
    timer, counts = clock(gpu), {}
    times: dict[str, list[float]] = {name: [] for name in calls}
    rng, names = np.random.default_rng(0), list(calls)
    with gpu.active():  # capture and replay need a current device
        for name, call in calls.items():
            for _ in range(WARM):
                call()
            counts[name] = 1 if SIMULATED else _count(timer.seconds(lambda call=call: _several(call, 3), stream) / 3)
        for _ in range(1 if SIMULATED else rounds):
            for name in [names[k] for k in rng.permutation(len(names))]:
                call, count = calls[name], counts[name]
                call()  # refills caches, the host's as well, after the contestant before
                taken = timer.seconds(lambda call=call, count=count: _several(call, count), stream)
                times[name].append(taken / count)
    return times


def _several(call: Callable[[], object], count: int) -> None:
    for _ in range(count):
        call()


def _count(seconds: float) -> int:
    return max(1, min(MOST, math.ceil(LEAST / max(seconds, 1e-9))))


def interleave(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """The medians of `turns`."""
    return {name: float(np.median(taken)) for name, taken in turns(calls, rounds).items()}


@cache
def graph_stream() -> Any:
    """The stream of `graph_turns`."""
    return the_gpu().stream()


def as_graph(run: Callable[[int], object]) -> Callable[[], None]:
    """INNER runs as one CUDA graph; `run` is given the stream. The second call captures."""
    stream = graph_stream().handle

    def several() -> None:
        for _ in range(INNER):
            run(stream)

    return the_gpu().replay(stream, several).launch


def graph_turns(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """`turns` for calls of INNER runs on the stream of graphs: the device's time of one run, without the host."""
    taken = turns(calls, rounds, graph_stream().handle)
    return {name: [seconds / INNER for seconds in times] for name, times in taken.items()}
