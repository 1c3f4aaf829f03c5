"""Limits of the machine's memory, measured in the run whose figures are compared with them; contestants in turns."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import numpy as np

from fastopt.kernels.cpu.optim.loops import MAX_STATES, update_loop
from fastopt.kernels.cpu.optim.streaming_loops import AHEAD_BYTES, streaming_loop
from fastopt.kernels.cpu.optim.updates import TILE, UPDATE_ALL
from fastopt.kernels.cpu.runtime import launch
from fastopt.kernels.cpu.runtime.compile import Kernel
from fastopt.kernels.cpu.runtime.primitives import address_of
from fastopt.kernels.cpu.runtime.records import UPDATE, UPDATES, fill
from fastopt.kernels.cpu.runtime.storage import STORES, name_of
from fastopt.kernels.formulas import NUM_SCALARS

Name = TypeVar("Name", bound=Hashable)


def _stream0(p, g, s, h, tiny):
    return p + g, s


def _stream1(p, g, s, h, tiny):
    return p + g, (s[0] + g,)


def _stream2(p, g, s, h, tiny):
    return p + g, (s[0] + g, s[1] + g)


def _stream3(p, g, s, h, tiny):
    return p + g, (s[0] + g, s[1] + g, s[2] + g)


@cache
def _stream_kernel(states: int, dtype: str, bytes_ahead: int) -> Kernel:
    """The loop of an update with one addition for each array that is written."""
    from numba.extending import register_jitable

    rule, name = register_jitable((_stream0, _stream1, _stream2, _stream3)[states]), f"stream_{states}_{dtype}"
    if bytes_ahead:
        return Kernel(streaming_loop(rule, states, STORES[dtype], bytes_ahead), f"{name}_ahead{bytes_ahead}")
    return Kernel(update_loop(rule, states, STORES[dtype], STORES[dtype]), name)


def stream(
    p: np.ndarray, g: np.ndarray, states: tuple[np.ndarray, ...], *, prefetches: bool = False
) -> Callable[[], None]:
    """Return a call that moves the same bytes as an update of these arrays, with next to no arithmetic.

    prefetches  True: by a loop that prefetches, on any processor; float32 and float64
    """
    bytes_ahead = AHEAD_BYTES["znver5"].get(len(states) + 2, 2048) if prefetches else 0
    code = _stream_kernel(len(states), name_of(p.dtype), bytes_ahead).address
    addresses = [address_of(state) for state in states] + [0] * (MAX_STATES - len(states))
    scalars, tiles = np.zeros(NUM_SCALARS + 1), -(-p.size // TILE)
    row = (code, address_of(p), address_of(g), *addresses, 0, address_of(scalars), p.size, 0, p.itemsize)
    table = np.array([row], UPDATE)
    work = fill(UPDATES, count=1, table=table, tiles=tiles)
    num_ranks = launch.num_threads_for(p.size, launch.UPDATE_ELEMENTS, tiles)

    def call(kept: object = (p, g, states, scalars, table, work)) -> None:
        launch.parallel(UPDATE_ALL, address_of(work), 0, num_ranks)

    return call


def streams(p: np.ndarray, g: np.ndarray, states: tuple[np.ndarray, ...]) -> dict[str, Callable[[], None]]:
    """Return the calls by whose best time the streaming limit goes, by name."""
    return {"limit": stream(p, g, states), "limit, prefetching": stream(p, g, states, prefetches=True)}


def update_bytes(p: np.ndarray, states: int) -> int:
    """Bytes that an update moves: p and the states are read and written, g is read."""
    return (3 + 2 * states) * p.nbytes


def interleaved_times(
    calls: Mapping[str, Callable[[], object]], rounds: int, warm: int = 1, pause: float = 0, count: int = 1
) -> dict[str, list[float]]:
    """Return the seconds of each call in every round; calls are interleaved, so that all find the same machine.

    Their order changes with every round, so that the caches' contents do not always help the same call.

    warm   rounds before the timed ones
    pause  seconds before each turn, in which the threads of the turn before come to rest
    count  calls of a turn, whose mean is returned
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    rng, names = np.random.default_rng(0), list(calls)
    for i in range(rounds + warm):
        for name in [names[k] for k in rng.permutation(len(names))]:
            call = calls[name]
            if pause:
                time.sleep(pause)
            start = time.perf_counter()
            for _ in range(count):
                call()
            if i >= warm:
                times[name].append((time.perf_counter() - start) / count)
    return times


def interleaved_medians(calls: Mapping[str, Callable[[], object]], rounds: int, warm: int = 1) -> dict[str, float]:
    """Return the median of the times of each call."""
    return {name: float(np.median(taken)) for name, taken in interleaved_times(calls, rounds, warm).items()}


def thread_times(
    calls: Mapping[Name, Callable[[int], object]], threads: int, rounds: int
) -> dict[Name, list[list[float]]]:
    """Return the seconds of call(rank) by name, thread and round; in a round the threads begin a call together.

    Each thread times itself. On a busy machine some round of each passes undisturbed, but hardly one of all at once.
    """
    together = threading.Barrier(threads)

    def rounds_of(rank: int) -> dict[Name, list[float]]:
        times: dict[Name, list[float]] = {name: [] for name in calls}
        for _ in range(rounds):
            for name, call in calls.items():
                together.wait()
                start = time.perf_counter()
                call(rank)
                times[name].append(time.perf_counter() - start)
        return times

    with ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(rounds_of, range(threads)))
    return {name: [times[name] for times in found] for name in calls}


@cache
def copy_bandwidth() -> float:
    """Bytes read and written a second when arrays much larger than any cache are streamed, in the better rounds.

    The rate is the fifth best of 25 rounds: a busy machine is slower in most, and once a machine was faster in a few
    (131 GB/s, and 72 to 77 in all other runs). Both arrays are written first: pages that never were are all one page of
    zeros, which is read from the cache (115 GB/s instead of 73 on two cores of Zen 5).
    """
    p, g = np.ones((2, 20_000_000), "float32")
    return 3 * p.nbytes / sorted(interleaved_times({"stream": stream(p, g, ())}, rounds=25)["stream"])[4]
