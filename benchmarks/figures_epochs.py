"""Figures of training: epochs against every peer, whether they stay as fast, memory, and accuracy."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np

import fastopt as fo
from fastopt.benchmarks import memory as measuring
from fastopt.benchmarks.contest import PAUSE, contest
from fastopt.benchmarks.peers import PEERS, TITLES
from fastopt.benchmarks.workloads import TITLES as WORK
from fastopt.benchmarks.workloads import WORKLOADS, Absent, Workload

ROUNDS = {"fashion-64": 7, "fashion-256": 9, "fashion-1024": 9, "digits": 25, "wide": 3, "linear": 5}
Row = tuple[str, str, str, str]


def contestants(workload: Workload) -> list[str]:
    """Those that can take part; the reference, which is slow, not where it would take most of the time."""
    names = [name for name in PEERS if name != "sklearn" or not workload.classes]
    return [name for name in names if name != "numpy" or workload.name != "wide"]


def in_unit(seconds: float) -> str:
    if seconds >= 0.1:
        return f"{seconds:.3f} s"
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3g} us"


def epochs(name: str) -> Iterator[Row]:
    """Median epochs of a workload, ours over each peer's, and our fifth epoch against our first."""
    workload = WORKLOADS[name](False)
    outcome = contest(workload, contestants(workload), ROUNDS[name])
    for other, reason in outcome.absent.items():
        print(f"  without {other}: {reason}")
    ours = outcome.median("fastopt")
    peak = workload.flops / ours / 1e9
    print(f"  {peak:.0f} GFLOP/s in the matrix products; first loss {outcome.losses['fastopt'][0]:.5f}")
    for other in outcome.seconds:
        if other != "fastopt":
            theirs = outcome.median(other)
            yield WORK[name], in_unit(ours), f"{TITLES[other]} {in_unit(theirs)}", f"{ours / theirs:.2f}"
    first, later = (np.median(part) for part in (outcome.seconds["fastopt"][:2], outcome.seconds["fastopt"][-2:]))
    count = len(outcome.losses["fastopt"])
    yield f"{WORK[name]}: epoch {count} against epoch 3", in_unit(later), in_unit(first), f"{later / first:.2f}"


def memory() -> Iterator[Row]:
    """What training takes of memory above what was resident before, each contestant in a process of its own."""
    found = {}
    for name in measuring.CONTESTANTS:
        try:
            found[name] = measuring.measure(name)
        except Absent as reason:
            print(f"  without {name}: {reason}")
    taken = {name: (peak["peak"] - peak["before"]) / 1e6 for name, peak in found.items()}
    for name, theirs in taken.items():
        if name != "fastopt":
            ours = taken["fastopt"]
            work = "memory for training 1024-4096-4096-10 (weight gradients: 84 MB)"
            yield work, f"{ours:.0f} MB", f"{TITLES[name]} {theirs:.0f} MB", f"{ours / theirs:.2f}"


def accuracy() -> Iterator[Row]:
    """Test accuracy after ten epochs of Fashion-MNIST through `fit`, and whether the last are as fast as the first."""
    try:
        data = fo.datasets.load("fashion-mnist")
    except (OSError, ValueError) as error:
        raise Absent(str(error)) from error
    scores, seconds = {}, {}
    for backend in ("cpu", "numpy"):
        model = fo.Sequential([fo.Dense(256, "relu"), fo.Dense(128, "relu"), fo.Dense(10)], seed=0, backend=backend)
        model.compile("adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
        time.sleep(PAUSE)
        seconds[backend] = model.fit(data.x_train, data.y_train, epochs=10, batch_size=64, verbose=0)["seconds"]
        scores[backend] = 100 * model.evaluate(data.x_test, data.y_test)["accuracy"]
    work = "Fashion-MNIST, 784-256-128-10, batch 64: test accuracy after 10 epochs"
    yield work, f"{scores['cpu']:.2f} %", f"NumPy {scores['numpy']:.2f} %", ""
    first, fifth = seconds["cpu"][0], seconds["cpu"][4]
    yield "its epoch 5 against epoch 1", f"{fifth:.3f} s", f"{first:.3f} s", f"{fifth / first:.2f}"
