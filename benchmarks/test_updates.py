"""Optimizer updates of one array: every backend, and torch's fused one, against streaming the same bytes."""

import numpy as np
import pytest

from fastopt.benchmarks.limits import interleave, stream, update_bytes
from fastopt.benchmarks.updates import LARGE, REPORTED, job, torch_update
from fastopt.benchmarks.workloads import Absent
from fastopt.kernels import reference
from fastopt.kernels.cpu.costs import update_flops
from fastopt.kernels.formulas import OPTIMIZERS

SIZES = [1_000, 100_000, *LARGE]


def measure(benchmark, note, rule, size, contestant, call, restore):
    # In-cache sizes run several times between two restorations, or the timer would measure itself.
    calls = 20 if size <= 1_000 else 1

    def run():
        for _ in range(calls):
            call()

    rounds = 25 if size <= 100_000 else 7
    benchmark.pedantic(run, setup=restore, rounds=rounds, warmup_rounds=2)
    spare = job(rule, size)
    moved = update_bytes(spare.p, len(spare.states))
    limit = stream(spare.p, spare.g, spare.states)
    note("update", rule, contestant, size=size, moved=moved, flops=update_flops(rule) * size, calls=calls,
         limit=lambda: interleave({"limit": limit}, rounds=9)["limit"])  # fmt: skip


def skip_large(rule, size, quick):
    if size in LARGE and (quick or rule not in REPORTED):
        pytest.skip("large arrays: when timed, for the rules of the report")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("rule", OPTIMIZERS)
def test_update(benchmark, note, backend, quick, rule, size):
    skip_large(rule, size, quick)
    if size == LARGE[-1] and backend is reference:
        pytest.skip("the reference takes its time, and the same per element as on smaller arrays")
    benchmark.group = f"update of {size:,} float32: {rule}"
    ours, twin = job(rule, size), job(rule, size)
    backend.update([ours])
    reference.update([twin])
    for a, b in zip((ours.p, *ours.states), (twin.p, *twin.states), strict=True):
        np.testing.assert_array_equal(a, b)

    def restore():
        for a, b in zip((ours.p, *ours.states), (twin.p, *twin.states), strict=True):
            np.copyto(a, b)

    measure(benchmark, note, rule, size, backend, lambda: backend.update([ours]), restore)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("rule", [rule for rule in REPORTED if rule != "sgd"])
def test_update_by_torch(benchmark, note, quick, rule, size):
    skip_large(rule, size, quick)
    benchmark.group = f"update of {size:,} float32: {rule}"
    ours = job(rule, size)
    before = [a.copy() for a in (ours.p, *ours.states)]
    try:
        call = torch_update(ours)
    except Absent as reason:
        pytest.skip(str(reason))
    twin = job(rule, size)
    call()
    reference.update([twin])
    np.testing.assert_allclose(ours.p, twin.p, rtol=1e-5, atol=1e-7)

    def restore():
        for a, b in zip((ours.p, *ours.states), before, strict=True):
            np.copyto(a, b)

    measure(benchmark, note, rule, size, "torch-fused", call, restore)
