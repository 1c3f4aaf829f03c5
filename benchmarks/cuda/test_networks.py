"""Whole networks with their data on the GPU: steps of MLPs, epochs of Fashion-MNIST, against torch in several ways."""

import pytest

from fastopt.benchmarks.contest import contest, report
from fastopt.benchmarks.cuda.needs import require_device
from fastopt.benchmarks.interleaved import interleaved, record, shared_result
from fastopt.benchmarks.workloads import Absent, Workload

require_device()
from fastopt.benchmarks.cuda.networks import CASES, PAUSE, ROUNDS, products_alone
from fastopt.benchmarks.cuda.peers import PEERS

CONTESTANTS = (*PEERS, "cublaslt")


def held(workload, names, rounds):
    names = [name for name in names if name in PEERS and (rounds or name != "torch-compile")]
    return contest(workload, names, rounds, PAUSE, PEERS)


@interleaved
@pytest.mark.parametrize("contestant", CONTESTANTS)
@pytest.mark.parametrize("name", CASES)
def test_network(benchmark, note, request, pick, name, contestant):
    title, build = CASES[name]
    benchmark.group = title
    try:
        workload = hold_workload(name, build, pick)
    except Absent as reason:
        pytest.skip(str(reason))
    if contestant == "cublaslt":
        if benchmark.disabled:
            pytest.skip("nothing to agree on")
        record(benchmark, [products_alone(workload)])
    else:
        rounds = 0 if benchmark.disabled else pick(ROUNDS, 2, 1)
        found = shared_result(request, lambda names: held(workload, names, rounds))
        if not report(benchmark, found, contestant):
            return
    note("epoch", name, contestant, size=workload.parameters, dtype=workload.dtype, title=title,
         shape=workload.shape, flops=workload.flops, samples=len(workload.order))  # fmt: skip
    benchmark.extra_info["seconds of a step"] = benchmark.stats.stats.median / workload.steps


_workloads: dict[str, Workload] = {}


def hold_workload(name, build, pick):
    """Run a workload, with the same arguments for all contestants."""
    if name not in _workloads:
        _workloads[name] = build(pick)
    return _workloads[name]
