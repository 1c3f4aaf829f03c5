"""The figures of `goals.py`, one a process: medians, with torch's and the copy's in the same run.

python -m fastopt.benchmarks.cuda.headline NAME

Measurements are those of the suites: `turns`, or a contest over epochs. Each one is reported at once, so that a part of
a figure stays if the rest fails or takes too long.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from fastopt.benchmarks.contest import Outcome, contest
from fastopt.benchmarks.cuda.child import device, main, rehearsing, tell
from fastopt.benchmarks.cuda.device import facts
from fastopt.benchmarks.cuda.goals import COPY, FIGURES
from fastopt.benchmarks.cuda.limits import Copies, large
from fastopt.benchmarks.cuda.networks import CASES, PAUSE, ROUNDS, products_alone, small
from fastopt.benchmarks.cuda.peers import PEERS, WAYS
from fastopt.benchmarks.cuda.turns import HostTimer, turns
from fastopt.benchmarks.cuda.updates import Job, steps_by, update_by
from fastopt.benchmarks.cuda.waits import nothing_waits
from fastopt.benchmarks.peers import Build, tolerant
from fastopt.benchmarks.workloads import Absent, Workload
from fastopt.kernels.cuda.runtime.compile import SIMULATED
from fastopt.kernels.spec import MASTER, SAME

UPDATE_ROUNDS = 15
ARRAYS, ELEMENTS = (5, 3) if SIMULATED else (100, 1000)
WIDTHS, BATCH = (64, 32, 10), 32  # of the small network


def pick(full: Any, quick: Any, tiny: Any) -> Any:
    """The size to run: the tiny one under the simulator, the quick one in a rehearsal."""
    return tiny if SIMULATED else quick if rehearsing() else full


def medians(found: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {name: float(np.median(seconds)) for name, seconds in found.items()}


def in_words(seconds: Mapping[str, float]) -> str:
    """Times of contestants in one line.

    >>> in_words({"ours": 0.00312, "theirs": 4.2e-05})
    'ours 3.12 ms, theirs 42 us'
    """
    parts = [f"{name} {s * 1e3:.3g} ms" if s >= 1e-3 else f"{name} {s * 1e6:.3g} us" for name, s in seconds.items()]
    return ", ".join(parts)


# ---------------------------------------------------------------- one array of 100 M
def adam(dtype: str, form: str) -> str:
    """Adam's update of one large array, as a share of a copy's bytes a second."""
    size, rounds = pick(100_000_000, 1_000_000, 64), UPDATE_ROUNDS
    device()
    job, calls, absent = Job("adam", size, dtype, form), {}, {}
    ours = update_by("fastopt", job)
    ours()
    job.check(exactly=True)
    calls["fastopt"] = ours
    # torch has no counterpart with a master copy: its update of float32 weights comes nearest.
    theirs = job if form == SAME else Job("adam", size, "float32")
    names = {"stream": job, "torch-fused": theirs} if form == SAME else {"torch-fused": theirs}
    for name, own in names.items():
        try:
            calls[name] = update_by(name, own)
        except Absent as reason:
            absent[name] = str(reason)
    room = Copies(large())
    calls |= {f"copy by the {name}": call for name, call in room.calls.items()}
    seconds = medians(turns(calls, rounds))
    room.check()
    bandwidth = 2 * room.size / min(taken for name, taken in seconds.items() if name.startswith("copy"))
    rate = job.moved / seconds["fastopt"]
    tell(measured={COPY: rate / bandwidth}, seconds=seconds, absent=absent, copy=bandwidth, moved=job.moved)
    return f"{rate / 1e12:.2f} of {bandwidth / 1e12:.2f} TB/s; {in_words(seconds)}"


def adam_float32() -> str:
    return adam("float32", SAME)


def adam_bfloat16_master() -> str:
    return adam("bfloat16", MASTER)


# ---------------------------------------------------------------- many small arrays
def host_time() -> str:
    """Host time of a step of many small arrays on an idle device."""
    shapes = [(ELEMENTS,)] * ARRAYS
    device()
    calls, absent = {}, {}
    for name in ("fastopt", "fastopt-torch", "torch-fused"):
        try:
            steps = steps_by(name, shapes)
        except Absent as reason:
            absent[name] = str(reason)
            continue
        steps.call()
        steps.done += 1
        steps.check(every=7)
        calls[name] = steps.call
    seconds = medians(turns(calls, UPDATE_ROUNDS, clock=HostTimer))
    base = seconds.get("torch-fused")
    names = {"fo.Adam, of torch fused": "fastopt", "fastopt.torch, of torch fused": "fastopt-torch"}
    measured = {what: seconds[name] / base for what, name in names.items() if base and name in seconds}
    tell(measured=measured, seconds=seconds, absent=absent)
    return f"{ARRAYS} arrays: {in_words(seconds)}"


# ---------------------------------------------------------------- networks
def steps_of(workload: Workload, names: Sequence[str], known: Mapping[str, Build]) -> tuple[dict[str, float], Outcome]:
    """Seconds of a step by contestant, from alternating epochs."""
    found = contest(workload, names, pick(ROUNDS, 2, 1), PAUSE, known)
    return {name: found.median(name) / workload.steps for name in found.seconds}, found


def mlp_64() -> str:
    title, build = CASES["mlp-64"]
    workload = build(pick)
    device()
    seconds, found = steps_of(workload, ["fastopt", "torch-fused", "torch-graph"], PEERS)
    measured = {}
    if "torch-fused" in seconds:
        measured["of torch eager, fused Adam"] = seconds["fastopt"] / seconds["torch-fused"]
    tell(measured=measured, seconds=seconds, absent=found.absent, line=f"{title}: {in_words(seconds)}")
    # Apart, for compiling may fail in unforeseen ways.
    again, others = steps_of(workload, ["fastopt", "torch-compile"], PEERS)
    if "torch-compile" in again:
        measured["of torch compiled, graphs"] = again["fastopt"] / again["torch-compile"]
        seconds["torch-compile"] = again["torch-compile"]
    tell(measured=measured, seconds=seconds, absent=found.absent | others.absent)
    return f"{title}: {in_words(seconds)}"


def mlp_4096() -> str:
    title, build = CASES["mlp-4096x4-bfloat16"]
    workload = build(pick)
    device()
    before = products_alone(workload) / workload.steps
    seconds, found = steps_of(workload, ["fastopt", "torch-fused", "torch-autocast"], PEERS)
    alone = (before + products_alone(workload) / workload.steps) / 2  # in the states before and after
    seconds["products alone"] = alone
    tell(measured={"of its products alone": seconds["fastopt"] / alone}, seconds=seconds, absent=found.absent)
    return f"{title}: {in_words(seconds)}, {workload.flops / workload.steps / seconds['fastopt'] / 1e12:.0f} TFLOP/s"


def small_network() -> str:
    workload = small(WIDTHS, BATCH, pick)
    device()
    seconds, found = steps_of(workload, ["fastopt-fused", "fastopt-graph", "torch-graph"], {**PEERS, **WAYS})
    if "fastopt-fused" in seconds:
        tell(measured={"of its graphs": seconds["fastopt-fused"] / seconds["fastopt-graph"]})
    tell(seconds=seconds, absent=found.absent)
    return f"{workload.shape}: {in_words(seconds)}"


MEASURES: dict[str, Callable[[], str]] = {
    "adam-float32": adam_float32,
    "adam-bfloat16-master": adam_bfloat16_master,
    "host-time": host_time,
    "mlp-64": mlp_64,
    "mlp-4096": mlp_4096,
    "small-network": small_network,
    "nothing-waits": nothing_waits,
}
assert list(MEASURES) == list(FIGURES)


def measure(name: str) -> str:
    """Measure a figure, and the clocks before and after."""

    def measured() -> str:
        with tolerant():
            return MEASURES[name]()

    if rehearsing():
        return measured()
    device()
    tell(before=facts())
    try:
        return measured()
    finally:
        with contextlib.suppress(Exception):  # after an error, which is the one to report
            tell(after=facts())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=FIGURES)
    arguments = parser.parse_args()
    main(lambda: measure(arguments.name))
