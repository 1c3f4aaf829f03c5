"""Latency, overhead and bandwidth between two ranks, measured by messages that go to and fro."""

from __future__ import annotations

import time
from statistics import median
from typing import Any

import numpy as np

from .._validation import check_count
from ._model import Links
from ._world import World, mpi
from ._world import world as all_ranks

ROUNDS = 15  # medians of so many
SHORT_MESSAGES = 200  # of a round: one takes less than a microsecond in the memory of one machine
LARGE_BYTES = 4 << 20


def measure_links(world: World | None = None, nbytes: int = LARGE_BYTES) -> Links:
    """Measure what messages cost between the first two ranks; all ranks call it, and get the same.

    nbytes: of the large message, by which seconds_per_byte goes: as many as a rank sends another in one call. Both
    ranks send at once, as in an exchange of gradients, so on one machine each has half of the memory's bandwidth.
    Latency is that of a ping-pong of 8 bytes. ValueError if there is one rank.
    """
    check_count("nbytes", nbytes, 8)
    world = all_ranks() if world is None else world
    if world.ranks < 2:
        raise ValueError(f"links need 2 ranks at least (mpirun -n 2); got {world.ranks}")
    found = None
    if world.rank < 2:
        small, large = np.zeros((2, 1)), np.zeros((2, nbytes // 8))
        large[1] = 1.0  # pages that were never written are all one page of zeros
        round_trip = median(_ping_pong(world, small) for _ in range(ROUNDS)) / 2
        overhead = min(median(_send(world, small) for _ in range(ROUNDS)), round_trip / 2)
        both = median(_exchange(world, large) for _ in range(ROUNDS))
        found = Links(round_trip - 2 * overhead, overhead, max(both - round_trip, 0.0) / (large[0].nbytes))
    return Links(*world.agree(found))


def _ping_pong(world: World, buffers: np.ndarray) -> float:
    """Seconds of a message to the other rank and back."""
    comm, other = world.comm, 1 - world.rank
    begun = time.perf_counter()
    for _ in range(SHORT_MESSAGES):
        if world.rank == 0:
            comm.Send(buffers[0], other)
            comm.Recv(buffers[1], other)
        else:
            comm.Recv(buffers[1], other)
            comm.Send(buffers[0], other)
    return (time.perf_counter() - begun) / SHORT_MESSAGES


def _send(world: World, buffers: np.ndarray) -> float:
    """Seconds that a processor spends on a message which nobody waits for; the other rank receives it."""
    comm, other = world.comm, 1 - world.rank
    _ping_pong(world, buffers)
    into = np.zeros((SHORT_MESSAGES, 1))
    requests: list[Any] = [comm.Irecv(one, other) for one in into]
    begun = time.perf_counter()
    for _ in range(SHORT_MESSAGES):
        comm.Send(buffers[0], other)
    taken = (time.perf_counter() - begun) / SHORT_MESSAGES
    mpi().Request.Waitall(requests)
    return taken


def _exchange(world: World, buffers: np.ndarray) -> float:
    """Seconds of a large message each way, both at once, of numbers that have just been computed."""
    comm, other = world.comm, 1 - world.rank
    buffers[0] += 1  # else they may lie in the other processor's cache from the time before
    _ping_pong(world, buffers[:, :1].copy())  # both begin together
    begun = time.perf_counter()
    comm.Sendrecv(buffers[0], other, 0, buffers[1], other, 0)
    return time.perf_counter() - begun
