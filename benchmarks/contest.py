"""Epochs of several contestants, interleaved in one process, so that all find the machine in the same state."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from fastopt.benchmarks.interleaved import record
from fastopt.benchmarks.peers import PEERS, Build, Peer, tolerant
from fastopt.benchmarks.workloads import Absent, Workload

# Seconds before a turn: the threads of NumPy's BLAS spin for 0.1 s after a product (others less), and would take a core
# from the next contestant.
PAUSE = 0.15
TURN_SECONDS = 0.02  # least time of a turn; turns of several epochs begin with one that is not timed
MOST_EPOCHS = 10  # in a turn

# Largest relative differences of the mean loss. The same steps in float32, rounded differently, drift apart if a
# ReLU's input is 0 but for rounding. Measured against float64, with Fashion-MNIST: over 10 steps all were within 7e-5
# (JAX; the others 1e-7), over an epoch of 938 steps within 1.3e-3 on either side. So the first steps show that
# contestants do the same work, and the epoch that none of them diverges later.
FIRST_STEPS = 10
SAME_START = {"float32": 3e-4, "bfloat16": 3e-2}
SAME_EPOCH = 1e-2
SAME_END = 0.1  # for contestants that take other steps: the loss on all rows after the last epoch


@dataclass
class Outcome:
    """Measurements of a contest, by contestant."""

    seconds: dict[str, list[float]] = field(default_factory=dict)  # every timed epoch
    losses: dict[str, list[float]] = field(default_factory=dict)  # mean loss of every epoch, from the first
    absent: dict[str, str] = field(default_factory=dict)  # contestants that cannot take part, with the reasons

    def median(self, name: str) -> float:
        return float(np.median(self.seconds[name]))


def contest(
    workload: Workload,
    names: Iterable[str],
    rounds: int,
    pause: float = PAUSE,
    known: Mapping[str, Build] = PEERS,
) -> Outcome:
    """Train the contestants on the workload for `rounds` turns each and check that they reach the same losses.

    The first epoch of each, in which libraries compile, is not timed. Raises AssertionError if losses differ.
    """
    outcome = Outcome()
    start = replace(workload, order=workload.order[: FIRST_STEPS * workload.batch_size])
    peers: dict[str, Peer] = {}
    with tolerant():
        starts = {}
        for name in names:
            try:
                peer = known[name](start)
                if peer.same_steps:
                    starts[name] = peer.epoch()
                del peer  # frees its memory for the next one
                peers[name] = known[name](workload)
            except Absent as reason:
                outcome.absent[name] = str(reason)
        check(workload, "the first steps' loss", starts, SAME_START[workload.dtype])
        first = {name: timed(peer) for name, peer in peers.items()}
        outcome.losses = {name: [loss] for name, (_, loss) in first.items()}
        outcome.seconds = {name: [] for name in peers}
        lengths = {name: timed(peer) for name, peer in peers.items()} if rounds else {}
        for name, (_, loss) in lengths.items():
            outcome.losses[name].append(loss)
        for _ in range(rounds):
            for name, peer in peers.items():
                time.sleep(pause)
                time_turn(peer, lengths[name][0], outcome.seconds[name], outcome.losses[name])
        exact = {name: losses[0] for name, losses in outcome.losses.items() if peers[name].same_steps}
        check(workload, "the first epoch's loss", exact, SAME_EPOCH)
        others = {name: peer.loss() for name, peer in peers.items() if not peer.same_steps and rounds}
        if exact:
            last = next(iter(exact))
            check(workload, "the final loss", {last: outcome.losses[last][-1], **others}, SAME_END)
    return outcome


def report(benchmark: Any, outcome: Outcome, name: str) -> bool:
    """Record a contestant's epochs with pytest-benchmark; return True if they were timed. Skip if there are none."""
    if name in outcome.absent:
        pytest.skip(outcome.absent[name])
    if name not in outcome.losses:
        pytest.skip("compiles for half a minute: when timed")
    if benchmark.disabled:
        benchmark(lambda: None)  # only agreement is checked
        return False
    record(benchmark, outcome.seconds[name])
    return True


def timed(peer: Peer) -> tuple[float, float]:
    """Train an epoch and return (seconds, mean loss)."""
    start = time.perf_counter()
    loss = peer.epoch()
    return time.perf_counter() - start, loss


def time_turn(peer: Peer, length: float, seconds: list[float], losses: list[float]) -> None:
    """Time epochs for about TURN_SECONDS, at least one; if several, one before them fills the caches again."""
    count = min(MOST_EPOCHS, math.ceil(TURN_SECONDS / length))
    if count > 1:
        losses.append(peer.epoch())
    for _ in range(count):
        took, loss = timed(peer)
        seconds.append(took)
        losses.append(loss)


def check(workload: Workload, what: str, losses: dict[str, float], tolerance: float) -> None:
    """Raise AssertionError if a loss differs from the first one by more than `tolerance` of it, or is NaN."""
    for name, theirs in losses.items():
        first, ours = next(iter(losses.items()))
        if not abs(ours - theirs) <= tolerance * abs(ours):
            raise AssertionError(f"{workload.name}: {what} is {ours} of {first}, but {theirs} of {name}")
