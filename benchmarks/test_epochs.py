"""Whole epochs: the compiled kernels, the reference, and other libraries, from the same weights."""

import pytest

from fastopt.benchmarks.contest import contest, report
from fastopt.benchmarks.interleaved import interleaved, shared_result
from fastopt.benchmarks.peers import PEERS
from fastopt.benchmarks.workloads import TITLES, WORKLOADS, Absent

ROUNDS = {"fashion-64": 7, "fashion-256": 9, "fashion-1024": 9, "digits": 25, "wide": 3, "linear": 5}


def run_contest(name, names, quick, timed):
    """Return the workload, or the reason why it is absent, and the outcome of a contest on it."""
    if not timed and "torch-compile" in names:
        names.remove("torch-compile")  # it compiles for half a minute
    if name != "wide" or not timed:  # there the reference takes most of the time
        # The reference comes first, even if it is not reported: the others are compared with it.
        names = sorted({*names, "numpy"}, key=list(PEERS).index)
    try:
        workload = WORKLOADS[name](quick)
    except Absent as reason:
        return str(reason), None
    return workload, contest(workload, names, 0 if not timed else 2 if quick else ROUNDS[name])


@interleaved
@pytest.mark.parametrize("contestant", PEERS)
@pytest.mark.parametrize("workload", WORKLOADS)
def test_epoch(benchmark, note, request, quick, workload, contestant):
    if contestant == "sklearn" and workload != "linear":
        pytest.skip("SGDRegressor is for the linear regression only")
    benchmark.group = f"epoch of {workload}"
    made, found = shared_result(request, lambda names: run_contest(workload, names, quick, not benchmark.disabled))
    if found is None:
        pytest.skip(made)
    if not report(benchmark, found, contestant):
        return
    note("epoch", workload, contestant, size=made.parameters, shape=made.shape, title=TITLES[workload],
         flops=made.flops, samples=len(made.order))  # fmt: skip
    benchmark.extra_info["loss"] = found.losses[contestant][0] if contestant != "sklearn" else None
