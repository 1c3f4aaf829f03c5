"""Optimizer updates of one array: ours, the reference's, torch's fused and DeepSpeed's, against streaming the bytes."""

from functools import cache

import numpy as np
import pytest

from fastopt.benchmarks.interleaved import available, interleaved, record, shared_result
from fastopt.benchmarks.limits import interleaved_times, streams, update_bytes
from fastopt.benchmarks.peers import tolerant
from fastopt.benchmarks.updates import DEEPSPEED, LARGE, REPORTED, TINY, job, tiny_by, update_by
from fastopt.benchmarks.workloads import Absent
from fastopt.kernels import reference
from fastopt.kernels.costs import update_flops
from fastopt.kernels.formulas import OPTIMIZERS

CALLS = {1_000: 100, 100_000: 20, LARGE[0]: 1, LARGE[1]: 1}  # in a turn
ROUNDS = {1_000: 25, 100_000: 25, LARGE[0]: 15, LARGE[1]: 9}
CONTESTANTS = ("fastopt", "numpy", "torch-fused", "deepspeed")


def left_out(rule, size, contestant, quick):
    """Return the reason why a contestant does not take part, or ""."""
    if size in LARGE and (quick or rule not in REPORTED):
        return "large arrays: when timed, for the rules of the report"
    if contestant == "numpy" and size == LARGE[1]:
        return "the reference takes its time, and the same per element as on smaller arrays"
    if contestant == "deepspeed" and rule not in DEEPSPEED:
        return "DeepSpeed has no such optimizer for the CPU"
    return "torch's: for the rules of the report" if contestant == "torch-fused" and rule not in REPORTED else ""


def assert_agreement(rule, size, name):
    """Assert that a contestant's first update equals the reference's. Raises Absent."""
    if name == "deepspeed":  # it corrects bias in float32: of 50 M elements 4, whose v is nearly 0, differ by more
        size = min(size, LARGE[0])
    ours, twin = job(rule, size), job(rule, size)
    with tolerant():
        update_by(name, ours)()
    reference.update([twin])
    for a, b in zip((ours.p, *ours.states), (twin.p, *twin.states), strict=True):
        if name == "fastopt":
            np.testing.assert_array_equal(a, b)
        else:
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def measured(rule, size, names):
    """Return the seconds of an update by contestant, and of the limits; all work on the same arrays."""
    ours, count = job(rule, size), CALLS[size]
    with tolerant():
        allowed = [name for name in names if not left_out(rule, size, name, quick=False)]
        calls = available(lambda name: update_by(name, ours), allowed)
        calls |= streams(ours.p, ours.g, ours.states)
        return interleaved_times(calls, ROUNDS[size], count=count)


@interleaved
@pytest.mark.parametrize("contestant", CONTESTANTS)
@pytest.mark.parametrize("size", CALLS)
@pytest.mark.parametrize("rule", OPTIMIZERS)
def test_update(benchmark, note, request, quick, rule, size, contestant):
    if reason := left_out(rule, size, contestant, quick):
        pytest.skip(reason)
    benchmark.group = f"update of {size:,} float32: {rule}"
    try:
        assert_agreement(rule, size, contestant)
    except Absent as reason:
        pytest.skip(str(reason))
    if benchmark.disabled:
        benchmark(lambda: None)  # only agreement is checked
        return
    found = shared_result(request, lambda names: measured(rule, size, names))
    record(benchmark, found[contestant])
    moved = update_bytes(job(rule, 1).p, len(OPTIMIZERS[rule].states)) * size
    limit = min(float(np.median(found[name])) for name in found if name.startswith("limit"))
    title = "DeepSpeed, CPU" if contestant == "deepspeed" else ""
    note("update", rule, contestant, size=size, contestant_title=title, moved=moved,
         flops=update_flops(rule) * size, limit=limit)  # fmt: skip


# ---------------------------------------------------------------- tiny gradients
TINY_SIZE, TINY_ROUNDS = 4_000_000, 15
TINY_CONTESTANTS = ("fastopt", "torch-fused")


@cache
def tiny_measured(names, size):
    """Return the seconds of an update by contestant, gradient and training before it; all are interleaved."""
    calls = {}
    for gradient in TINY:
        for trained in (False, True):
            some = available(lambda name, case=(gradient, trained): tiny_by(name, size, *case), names)
            calls |= {(name, gradient, trained): call for name, call in some.items()}
    return interleaved_times(calls, TINY_ROUNDS)


@interleaved
@pytest.mark.parametrize("contestant", TINY_CONTESTANTS)
@pytest.mark.parametrize("trained", [False, True], ids=["fresh", "trained"])
@pytest.mark.parametrize("gradient", TINY)
def test_tiny_gradients(benchmark, note, request, quick, gradient, trained, contestant):
    size = 40_000 if quick else TINY_SIZE
    benchmark.group = f"Adam of {size:,} float32, gradients of {gradient:g}"
    try:
        with tolerant():
            call = tiny_by(contestant, 1_000, gradient, trained)
            call()
    except Absent as reason:
        pytest.skip(str(reason))
    if benchmark.disabled:
        benchmark(lambda: None)
        return
    with tolerant():
        found = shared_result(request, lambda names: tiny_measured(tuple(names), size))
    record(benchmark, found[contestant, gradient, trained])
    shape = f"gradients of {gradient:g}, {'after training' if trained else 'new states'}"
    note("tiny", "adam", contestant, size=size, shape=shape, moved=28 * size)
