"""Figures of optimizer steps: of one large array, and of many small ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from fastopt.benchmarks.limits import interleave, stream, update_bytes
from fastopt.benchmarks.peers import TITLES, tolerant
from fastopt.benchmarks.updates import LARGE, SHAPES, job, torch_update
from fastopt.benchmarks.updates import steps as calls_of
from fastopt.benchmarks.workloads import Absent
from fastopt.kernels import reference
from fastopt.kernels.cpu.plan import Plan, Target
from fastopt.kernels.cpu.primitives import address_of
from fastopt.kernels.spec import Update

RULES = ("adam", "adagrad", "momentum")
STEPS = 200  # of small arrays in a turn: the first of them bring the caches back
Row = tuple[str, str, str, str]


def updates() -> Iterator[Row]:
    """In-place updates of 10 M float32 parameters: streaming the same bytes, torch's fused one, the reference."""
    yield from _updates(LARGE[0], rounds=15, with_reference=True)


def large_updates() -> Iterator[Row]:
    """The same of 50 M, without the reference."""
    yield from _updates(LARGE[1], rounds=9, with_reference=False)


def planned(one: Update) -> Callable[[], None]:
    """An update laid out once, as an optimizer does."""
    states = [address_of(state) for state in one.states]
    plan = Plan([Target(one.rule, one.p.dtype.name, one.p.size, address_of(one.p), states)])
    gradients, steps, options = np.array([address_of(one.g)]), np.array([one.step]), [one.options]
    return lambda kept=one: plan.update(gradients, steps, options)


def _updates(size: int, rounds: int, with_reference: bool) -> Iterator[Row]:
    for rule in RULES:
        ours = job(rule, size)
        # All work on the same arrays: whichever does, the cost is that of memory.
        calls: dict[str, Callable[[], object]] = {"fastopt": planned(ours)}
        calls["limit"] = stream(ours.p, ours.g, ours.states)
        with tolerant():
            try:
                calls["torch-fused"] = torch_update(ours)
            except Absent as reason:
                print(f"  without torch: {reason}")
            if with_reference:
                calls["numpy"] = lambda ours=ours: reference.update([ours])
            times = interleave(calls, rounds)
        took = times.pop("fastopt")
        rate = update_bytes(ours.p, len(ours.states)) / took / 1e9
        for name, theirs in times.items():
            other = f"{TITLES.get(name, 'streaming limit')} {theirs * 1e3:.2f} ms"
            work = f"{rule} update, {size // 10**6} M float32"
            yield work, f"{took * 1e3:.2f} ms, {rate:.0f} GB/s", other, f"{took / theirs:.2f}"


def steps() -> Iterator[Row]:
    """`step` of Adam on the arrays of a network, and on a hundred small ones."""
    for name, shapes in SHAPES.items():
        calls: dict[str, Callable[[], object]] = {}
        with tolerant():
            for contestant in ("fastopt", "torch-fused", "torch-default", "numpy"):
                try:
                    calls |= {k: _many(call) for k, call in calls_of([contestant], shapes).items()}
                except Absent as reason:
                    print(f"  without {contestant}: {reason}")
            times = interleave(calls, rounds=15, pause=0.02)
        ours = times.pop("fastopt") / STEPS
        for contestant, total in times.items():
            theirs = total / STEPS
            other = f"{TITLES[contestant]} {theirs * 1e6:.0f} us"
            yield f"Adam step of {name}", f"{ours * 1e6:.1f} us", other, f"{ours / theirs:.2f}"


def _many(call: Callable[[], object]) -> Callable[[], None]:
    def run() -> None:
        for _ in range(STEPS):
            call()

    return run
