"""Epochs of several contestants, taken in turn in one process, so that all see the machine in the same state."""

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

# The threads of NumPy's BLAS look for more work for 0.1 s after a product (those of other libraries for less), and
# would take a core from whoever is next.
PAUSE = 0.15
TURN_SECONDS = 0.02  # a turn of at least so long, after an epoch that is not timed where epochs are shorter than that
MOST_EPOCHS = 10  # in a turn

# Relative differences of the mean loss. The same steps in float32, rounded differently, drift apart where a ReLU's
# input is 0 but for rounding. Measured against float64, with Fashion-MNIST: over 10 steps all were within 7e-5 (JAX;
# the others 1e-7); over an epoch of 938 steps all scatter around it, by up to 1.3e-3 on either side. So the first steps
# tell whether contestants do the same work, and the epoch only that none of them goes astray later.
FIRST_STEPS = 10
SAME_START = {"float32": 3e-4, "bfloat16": 3e-2}
SAME_EPOCH = 1e-2
SAME_END = 0.1  # of those that take other steps: the loss on all rows after the last epoch


@dataclass
class Outcome:
    """What a contest has measured, by contestant."""

    seconds: dict[str, list[float]] = field(default_factory=dict)  # of every timed epoch
    losses: dict[str, list[float]] = field(default_factory=dict)  # mean loss of every epoch, from the first
    absent: dict[str, str] = field(default_factory=dict)  # why those that are not there are not

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

    The first epoch of each, in which libraries compile, is not timed. AssertionError where losses differ.
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
                del peer  # before the memory is needed again
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
                take_turn(peer, lengths[name][0], outcome.seconds[name], outcome.losses[name])
        exact = {name: losses[0] for name, losses in outcome.losses.items() if peers[name].same_steps}
        check(workload, "the first epoch's loss", exact, SAME_EPOCH)
        others = {name: peer.loss() for name, peer in peers.items() if not peer.same_steps and rounds}
        if exact:
            last = next(iter(exact))
            check(workload, "the final loss", {last: outcome.losses[last][-1], **others}, SAME_END)
    return outcome


def report(benchmark: Any, outcome: Outcome, name: str) -> bool:
    """Hand a contestant's epochs to pytest-benchmark, if they were timed; skip the test where there are none."""
    if name in outcome.absent:
        pytest.skip(outcome.absent[name])
    if name not in outcome.losses:
        pytest.skip("compiles for half a minute: when timed")
    if benchmark.disabled:
        benchmark(lambda: None)  # agreement was what mattered
        return False
    record(benchmark, outcome.seconds[name])
    return True


def timed(peer: Peer) -> tuple[float, float]:
    """(seconds, mean loss) of an epoch."""
    start = time.perf_counter()
    loss = peer.epoch()
    return time.perf_counter() - start, loss


def take_turn(peer: Peer, length: float, seconds: list[float], losses: list[float]) -> None:
    """Epochs for about TURN_SECONDS, at least one; where that is several, one before them brings the caches back."""
    count = min(MOST_EPOCHS, math.ceil(TURN_SECONDS / length))
    if count > 1:
        losses.append(peer.epoch())
    for _ in range(count):
        took, loss = timed(peer)
        seconds.append(took)
        losses.append(loss)


def check(workload: Workload, what: str, losses: dict[str, float], tolerance: float) -> None:
    """AssertionError where a loss differs from the first one by more than `tolerance` of it, or is not a number."""
    for name, theirs in losses.items():
        first, ours = next(iter(losses.items()))
        if not abs(ours - theirs) <= tolerance * abs(ours):
            raise AssertionError(f"{workload.name}: {what} is {ours} of {first}, but {theirs} of {name}")
