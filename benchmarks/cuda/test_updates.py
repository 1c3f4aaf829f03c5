"""In-place updates of one array by every rule: ours and torch's, compared with streaming the same bytes and copying."""

import numpy as np
import pytest

from fastopt.benchmarks.cuda.needs import require_device
from fastopt.benchmarks.interleaved import interleaved, record, shared_result
from fastopt.benchmarks.peers import tolerant
from fastopt.benchmarks.updates import REPORTED
from fastopt.benchmarks.workloads import Absent

require_device()
from fastopt.benchmarks.cuda.device import the_gpu
from fastopt.benchmarks.cuda.turns import turns
from fastopt.benchmarks.cuda.updates import Job, update_by
from fastopt.kernels.costs import update_flops
from fastopt.kernels.cuda.optim.updates import update_kernel
from fastopt.kernels.cuda.runtime.float16 import DTYPES_16BIT
from fastopt.kernels.formulas import OPTIMIZERS
from fastopt.kernels.spec import FORMS, SAME

SIZES = (1_000_000, 10_000_000, 100_000_000)
ROUNDS = 15
CONTESTANTS = ("fastopt", "stream", "torch-fused", "torch-foreach", "torch-graph")
SETS = 16  # sets of arrays, at most: small ones alternate, so that they come from memory and not from the cache
RULES = list({update_kernel(rule, "float32"): rule for rule in reversed(OPTIMIZERS)}.values())[::-1]


def left_out(rule, dtype, contestant):
    """Reason why a contestant does not take part, or ""."""
    others = contestant in ("torch-foreach", "torch-graph") and (rule not in REPORTED or dtype == "float64")
    return "for the rules of the report, in float32" if others else ""


def agree(rule, size, dtype, name, form=SAME):
    """True if a contestant's update is the reference's. Raises Absent."""
    job = Job(rule, size, dtype, form)
    update_by(name, job)()
    job.check(exactly=name in ("fastopt", "stream"), updated=name != "stream")


def measured(rule, size, dtype, names, form=SAME):
    """Seconds of an update by contestant; all work on the same arrays."""
    first, calls = Job(rule, size, dtype, form), {}
    sets = min(SETS, -(-2 * the_gpu().cache_bytes // sum(array.nbytes for array in first.arrays)))
    jobs = [first, *(Job(rule, size, dtype, form) for _ in range(sets - 1))]
    for name in [name for name in names if not left_out(rule, dtype, name)]:
        try:
            each = [update_by(name, job) for job in jobs]
        except Absent:
            continue
        calls[name] = in_turn(each)
    return {name: [seconds / sets for seconds in taken] for name, taken in turns(calls, ROUNDS).items()}


def in_turn(calls):
    def call():
        for one in calls:
            one()

    return call


@interleaved
@pytest.mark.parametrize("contestant", CONTESTANTS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("rule", RULES)
def test_update(benchmark, note, request, pick, rule, dtype, size, contestant):
    if reason := left_out(rule, dtype, contestant):
        pytest.skip(reason)
    size = pick(size, size // 100, size // 200_000 * 4)
    width, states = np.dtype(dtype).itemsize, len(OPTIMIZERS[rule].states)
    if (2 + states) * width * size * 1.2 > the_gpu().free_memory():
        pytest.skip("more than the device's memory holds")
    benchmark.group = f"update of {size:,} {dtype}: {rule}"
    with tolerant():
        try:
            agree(rule, size, dtype, contestant)
        except Absent as reason:
            pytest.skip(str(reason))
        if benchmark.disabled:
            benchmark(lambda: None)  # a run that only checks agreement
            return
        found = shared_result(request, lambda names: measured(rule, size, dtype, names))
    record(benchmark, found[contestant])
    limit = float(np.median(found["stream"])) if "stream" in found else 0.0
    flops = 0 if contestant == "stream" else update_flops(rule) * size
    note("update", rule, contestant, size=size, dtype=dtype, moved=(3 + 2 * states) * width * size, flops=flops,
         limit=limit)  # fmt: skip


@interleaved
@pytest.mark.parametrize("contestant", ["fastopt", "torch-fused", "torch-foreach"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", DTYPES_16BIT)
@pytest.mark.parametrize("rule", REPORTED)
def test_update_of_16_bits(benchmark, note, request, pick, rule, dtype, form, size, contestant):
    """States of 16 bits, or of float32 with a master copy, or of float32 with stochastic rounding."""
    size = pick(size, size // 100, size // 200_000 * 8)
    states = len(OPTIMIZERS[rule].states)
    if (8 + 4 * states) * size * 1.2 > the_gpu().free_memory():
        pytest.skip("more than the device's memory holds")
    benchmark.group = f"update of {size:,} {dtype}, {form}: {rule}"
    with tolerant():
        try:
            agree(rule, size, dtype, contestant, form)
        except Absent as reason:
            pytest.skip(str(reason))
        if benchmark.disabled:
            benchmark(lambda: None)
            return
        found = shared_result(request, lambda names: measured(rule, size, dtype, names, form))
    record(benchmark, found[contestant])
    moved = Job(rule, 8, dtype, form).moved * size // 8
    note("update", f"{rule}, {form}", contestant, size=size, dtype=dtype, moved=moved, flops=update_flops(rule) * size)
