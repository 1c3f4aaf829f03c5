"""The time of a step against the number of ranks, by LogGP (Alexandrov, Ionescu, Schauser, Scheiman, SPAA 1995).

A message of k bytes arrives o + L + k G + o seconds after its send began: o of each processor, the latency L, and G a
byte. LogGP's g, the least time between two messages of a processor, is 2 o at most where processors and not network
cards limit it, as here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from .._validation import check_count
from ._tree import num_pieces, share_of

PAYS = 0.5  # least gain of doubled ranks, as a share of the time that a perfect doubling saves


class Links(NamedTuple):
    """Cost of messages between ranks, as `measure_links` finds it.

    latency: L, seconds from the end of a send to its arrival. overhead: o, seconds that a processor spends on a message
    it sends, or receives. seconds_per_byte: G.

    >>> Links(latency=2e-6, overhead=5e-7, seconds_per_byte=1e-10).message(10_000) * 1e6  # microseconds
    4.0
    """

    latency: float
    overhead: float
    seconds_per_byte: float

    def message(self, nbytes: float) -> float:
        """Seconds from the beginning of a send to the arrival of the last byte."""
        return 2 * self.overhead + self.latency + nbytes * self.seconds_per_byte


class StepCost(NamedTuple):
    """Cost of a training step on one rank, in seconds, and what it would send to others.

    pieces: into which the rows are cut, the most ranks that can share the step. pieces_seconds: forward and backward of
    all of them. update_seconds: of all parameters. sum_seconds: to add one gradient to another. fixed_seconds: what no
    rank is spared. nbytes: of the gradient, and of the parameters. buckets, gathers: calls by which the gradient is
    summed, and parameters are shared.
    """

    pieces: int
    pieces_seconds: float
    update_seconds: float
    sum_seconds: float
    fixed_seconds: float
    nbytes: int
    buckets: int = 1
    gathers: int = 1

    @property
    def seconds(self) -> float:
        """Seconds of the step on one rank."""
        return self.pieces_seconds + self.update_seconds + self.fixed_seconds


class StepTime(NamedTuple):
    """Predicted seconds of a step on so many ranks, and bytes that each of them sends."""

    ranks: int
    compute: float
    communication: float
    sent_bytes: float

    @property
    def seconds(self) -> float:
        """Seconds of the step."""
        return self.compute + self.communication

    @property
    def share(self) -> float:
        """Share of the step that is communication."""
        return self.communication / self.seconds


def step_time(step: StepCost, links: Links, ranks: int) -> StepTime:
    """Predict the time of a step on so many ranks, at most `step.pieces`; ValueError for more.

    With P pieces, of which a rank has p at most, n ranks and B bytes of gradient, the time is

        compute         p / P pieces + update / n + (n - 1) / n sum + fixed
        reduce-scatter  a call: L + 2 (n - 1) o; all calls: (n - 1) / n B G
        all-gather      a call: (n - 1) (L + 2 o), a ring; all calls: (n - 1) / n B G
        agreement       ceil(log2 n) (L + 2 o)

    Communication is taken to hide behind no computation: without threads of its own, MPI moves data in its calls alone.

    >>> links = Links(latency=1e-6, overhead=0.0, seconds_per_byte=1e-9)
    >>> step = StepCost(4, pieces_seconds=8e-3, update_seconds=2e-3, sum_seconds=0.0, fixed_seconds=0.0, nbytes=10**6)
    >>> [round(step_time(step, links, ranks).seconds * 1e3, 3) for ranks in (1, 2, 4)]  # milliseconds
    [10.0, 6.003, 4.006]
    """
    check_count("ranks", ranks, 1)
    if ranks > step.pieces:
        raise ValueError(f"ranks must be at most the {step.pieces} pieces of a step; got {ranks}")
    most = share_of(0, ranks, step.pieces)[1]  # of the first rank, as `share_of` halves ranks downwards
    others = (ranks - 1) / ranks
    compute = step.pieces_seconds * most / step.pieces + step.update_seconds / ranks
    compute += step.sum_seconds * others + step.fixed_seconds
    if ranks == 1:
        return StepTime(1, compute, 0.0, 0.0)
    one = links.message(0)
    scatter = step.buckets * (links.latency + 2 * (ranks - 1) * links.overhead)
    gather = step.gathers * (ranks - 1) * one
    agreement = (ranks - 1).bit_length() * one
    sent_bytes = 2 * others * step.nbytes
    communication = scatter + gather + agreement + sent_bytes * links.seconds_per_byte
    return StepTime(ranks, compute, communication, sent_bytes)


def doublings(most: int) -> list[int]:
    """Powers of two up to a number.

    >>> doublings(10)
    [1, 2, 4, 8]
    """
    return [1 << k for k in range(most.bit_length())]


def best_ranks(step: StepCost, links: Links, most: int = 1024) -> StepTime:
    """The power of two of ranks, at most `most`, by which a step takes the least time.

    >>> step = StepCost(1024, 1e-2, 1e-3, 0.0, 0.0, nbytes=400_000)
    >>> best_ranks(step, Links(1e-5, 1e-6, 1e-10)).ranks
    32
    """
    check_count("most", most, 1)
    return min(_times(step, links, most), key=lambda time: time.seconds)


def ranks_that_pay(step: StepCost, links: Links, most: int = 1024) -> StepTime:
    """The power of two of ranks up to which each doubling saves at least half of what a perfect one would.

    A perfect doubling halves the time; so the time after one that pays is at most 3/4 of that before.

    >>> step = StepCost(1024, 1e-2, 1e-3, 0.0, 0.0, nbytes=400_000)
    >>> ranks_that_pay(step, Links(1e-5, 1e-6, 1e-10)).ranks
    16
    """
    check_count("most", most, 1)
    times = list(_times(step, links, most))
    last = times[0]
    for time in times[1:]:
        if time.seconds > (1 - PAYS / 2) * last.seconds:
            break
        last = time
    return last


def _times(step: StepCost, links: Links, most: int) -> Iterable[StepTime]:
    return (step_time(step, links, ranks) for ranks in doublings(min(most, step.pieces)))


def dense_step(
    parameters: int, rows: int, flops_per_second: float, bytes_per_second: float, fixed_seconds: float = 0.0,
    calls: int = 1,
) -> StepCost:  # fmt: skip
    """The cost of a step of a dense float32 network with Adam, from the rates of a rank.

    A row costs 6 operations a parameter: 2 forward, 4 backward. Each piece writes its gradient, and a sum reads two and
    writes one: 5 times 4 bytes a parameter; Adam reads 4 arrays and writes 3. rows: of all ranks together.

    >>> step = dense_step(10**7, 65_536, flops_per_second=1e11, bytes_per_second=3e10)
    >>> step.pieces, round(step.pieces_seconds, 1), round(step.update_seconds, 4)
    (512, 42.7, 0.0093)
    """
    check_count("parameters", parameters, 1)
    check_count("rows", rows, 1)
    pieces, nbytes = num_pieces(rows), 4 * parameters
    moved = pieces * 5 * nbytes / bytes_per_second
    return StepCost(
        pieces=pieces,
        pieces_seconds=6.0 * parameters * rows / flops_per_second + moved,
        update_seconds=7 * nbytes / bytes_per_second,
        sum_seconds=3 * nbytes / bytes_per_second,
        fixed_seconds=fixed_seconds,
        nbytes=nbytes,
        buckets=calls,
        gathers=calls,
    )
