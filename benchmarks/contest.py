"""Epochs of several contestants, taken in turn in one process, so that all see the machine in the same state."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from fastopt.benchmarks.peers import PEERS, Peer, tolerant
from fastopt.benchmarks.workloads import Absent, Workload

# The threads of NumPy's BLAS look for more work for 0.1 s after a product (those of other libraries for less), and
# would take a core from whoever is next.
PAUSE = 0.15
TURN_SECONDS = 0.02  # a turn of at least so long, after an epoch that is not timed where epochs are shorter than that
MOST_EPOCHS = 10  # in a turn

# Relative to the loss of the reference: the same steps in float32, rounded differently. Fashion-MNIST's epoch of 938
# steps stays within 1e-4; what diverges by more has taken other steps.
SAME_LOSS = 1e-3
SAME_END = 0.1  # of those that take other steps: the loss on all rows after the last epoch


@dataclass
class Outcome:
    """What a contest has measured, by contestant."""

    seconds: dict[str, list[float]] = field(default_factory=dict)  # of every timed epoch
    losses: dict[str, list[float]] = field(default_factory=dict)  # mean loss of every epoch, from the first
    absent: dict[str, str] = field(default_factory=dict)  # why those that are not there are not

    def median(self, name: str) -> float:
        return float(np.median(self.seconds[name]))


def contest(workload: Workload, names: Iterable[str], rounds: int, pause: float = PAUSE) -> Outcome:
    """Train the contestants on the workload for `rounds` turns each and check that they reach the same losses.

    The first epoch of each, in which libraries compile, is not timed. AssertionError where losses differ.
    """
    outcome = Outcome()
    peers: dict[str, Peer] = {}
    with tolerant():
        for name in names:
            try:
                peers[name] = PEERS[name](workload)
            except Absent as reason:
                outcome.absent[name] = str(reason)
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
        check(workload, peers, outcome.losses)
    return outcome


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


def check(workload: Workload, peers: dict[str, Peer], losses: dict[str, list[float]]) -> None:
    """AssertionError where contestants have not done the same work: compared are the losses of their first epoch."""
    exact = [name for name, peer in peers.items() if peer.same_steps]
    for name in exact[1:]:
        ours, theirs = losses[exact[0]][0], losses[name][0]
        if not abs(ours - theirs) <= SAME_LOSS * abs(ours):
            raise AssertionError(f"{workload.name}: the first epoch's loss is {ours} of {exact[0]}, {theirs} of {name}")
    for name, peer in peers.items():
        if peer.same_steps or not exact or len(losses[name]) < 2:
            continue
        ours, theirs = losses[exact[0]][-1], peer.loss()
        if not abs(ours - theirs) <= SAME_END * abs(ours):
            raise AssertionError(f"{workload.name}: the final loss is {ours} of {exact[0]}, {theirs} of {name}")
