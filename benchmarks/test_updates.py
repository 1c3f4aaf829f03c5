"""Optimizer updates: the reference and the compiled kernels on the same arrays, against streaming the same bytes."""

import numpy as np
import pytest

from fastopt.benchmarks.limits import interleave, stream, update_bytes
from fastopt.kernels import reference
from fastopt.kernels.formulas import OPTIMIZERS
from fastopt.kernels.spec import Update

SIZES = [1_000, 100_000, 10_000_000]


def make(rule, size, dtype="float32"):
    rng = np.random.default_rng(0)
    p, g = rng.standard_normal((2, size)).astype(dtype)
    states = tuple(np.abs(rng.standard_normal(size)).astype(dtype) for _ in OPTIMIZERS[rule].states)
    return Update(rule, p, g, states, OPTIMIZERS[rule].options, 10)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("rule", OPTIMIZERS)
def test_update(benchmark, note, backend, rule, size):
    if size == SIZES[-1] and (benchmark.disabled or rule not in ("sgd", "momentum", "adagrad", "adam")):
        pytest.skip("large arrays: when timed, for the rules of the report")
    benchmark.group = f"update of {size:,} float32: {rule}"
    job, twin = make(rule, size), make(rule, size)
    backend.update([job])
    reference.update([twin])
    for ours, theirs in zip((job.p, *job.states), (twin.p, *twin.states), strict=True):
        np.testing.assert_array_equal(ours, theirs)

    def restore():
        for a, b in zip((job.p, *job.states), (twin.p, *twin.states), strict=True):
            np.copyto(a, b)

    # In-cache sizes run several times between two restorations, or the timer would measure itself.
    calls = 20 if size <= 1_000 else 1

    def run():
        for _ in range(calls):
            backend.update([job])

    benchmark.pedantic(run, setup=restore, rounds=25 if size <= 100_000 else 7, warmup_rounds=2)
    bytes_moved = calls * update_bytes(job.p, len(job.states))
    limit = interleave({"limit": stream(job.p.copy(), job.g, tuple(s.copy() for s in job.states))}, rounds=9)["limit"]
    note(moved=bytes_moved, limit=update_bytes(job.p, len(job.states)) / limit)
