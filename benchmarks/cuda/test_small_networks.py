"""Small networks with their data on the GPU: many batches as one kernel, against a CUDA graph a batch, and torch.

This measures the estimate of `fastopt.kernels.cuda.fused.select.pays_off`: where "as one kernel" beats "a graph a
batch", it should have been chosen ("chosen" in the record).
"""

import pytest

from fastopt.benchmarks.contest import contest, report
from fastopt.benchmarks.cuda.needs import require_device
from fastopt.benchmarks.interleaved import interleaved, shared_result

require_device()
from fastopt.benchmarks.cuda.networks import PAUSE, ROUNDS, small
from fastopt.benchmarks.cuda.peers import PEERS, WAYS, uses_one_kernel

KNOWN = {**WAYS, **{name: build for name, build in PEERS.items() if name != "fastopt"}}
CASES = [  # widths and rows of a batch, the last ones near the limits of shared memory and of the estimate
    ((64, 32, 10), 8),
    ((64, 32, 10), 32),
    ((64, 32, 10), 128),
    ((30, 64, 64, 10), 32),
    ((64, 64, 64, 10), 64),
    ((128, 64, 10), 64),
    ((128, 128, 10), 32),
    ((784, 16, 10), 16),
]


def held(workload, names, rounds):
    return contest(workload, [name for name in names if rounds or name != "torch-compile"], rounds, PAUSE, KNOWN)


@interleaved
@pytest.mark.parametrize("contestant", KNOWN)
@pytest.mark.parametrize(("widths", "batch"), CASES, ids=["-".join(map(str, (*w, b))) for w, b in CASES])
def test_small_network(benchmark, note, request, pick, widths, batch, contestant):
    workload = small(widths, batch, pick)
    benchmark.group = f"{workload.name}, Adam, {workload.steps} steps"
    rounds = 0 if benchmark.disabled else pick(ROUNDS, 2, 1)
    found = shared_result(request, lambda names: held(workload, names, rounds))
    if not report(benchmark, found, contestant):
        return
    note("epoch", workload.name, contestant, size=workload.parameters, title=benchmark.group,
         shape=workload.shape, flops=workload.flops, samples=len(workload.order))  # fmt: skip
    benchmark.extra_info["seconds of a step"] = benchmark.stats.stats.median / workload.steps
    benchmark.extra_info["chosen"] = "fastopt-fused" if uses_one_kernel(workload) else "fastopt-graph"
