"""Dense layers of MLPs in float32, TF32, float16 and bfloat16: ours, cuBLASLt's products alone, and torch."""

import pytest

from fastopt.benchmarks.cuda.needs import require_device
from fastopt.benchmarks.interleaved import interleaved, record, shared_result
from fastopt.benchmarks.peers import tolerant
from fastopt.benchmarks.workloads import Absent

require_device()
from fastopt.benchmarks.cuda.dense import PASSES, Dense, dense_by, graph_by
from fastopt.benchmarks.cuda.turns import graph_turns

ROUNDS = 15
CONTESTANTS = ("fastopt", "fastopt-epilogues", "cublaslt", "torch-eager")
KINDS = ("float32", "tf32", "float16", "bfloat16")
# Rows, inputs, outputs, and sizes for a run without a GPU.
SMALL = [(rows, *sizes) for rows in (64, 256) for sizes in ((784, 256), (256, 128), (128, 10))]
LARGE = [(4096, 1024, 4096), (4096, 4096, 4096), (4096, 4096, 10)]
QUICK, TINY = (64, 80, 48), (9, 8, 16)


@interleaved
@pytest.mark.parametrize("contestant", CONTESTANTS)
@pytest.mark.parametrize("sizes", SMALL + LARGE, ids=lambda sizes: "x".join(map(str, sizes)))
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("which", PASSES)
def test_dense(benchmark, note, request, pick, which, kind, sizes, contestant):
    if which == "backward" and contestant == "fastopt-epilogues":
        pytest.skip("slopes as epilogues belong to the layer above: whole networks have them")
    sizes = pick(sizes, QUICK, TINY)
    text = "x".join(map(str, sizes))
    benchmark.group = f"dense {which} {text} {kind}"
    dense = Dense(sizes, "relu", kind)
    if which == "backward":
        dense.forward(None)(0)
    with tolerant():
        try:
            dense_by(contestant, which, dense)(0)
        except Absent as reason:
            pytest.skip(str(reason))
        if contestant != "cublaslt":
            dense.check(which)
        if benchmark.disabled:
            benchmark(lambda: None)  # a run that only checks agreement
            return
        found = shared_result(request, lambda names: measured(which, dense, names))
    record(benchmark, found[contestant])
    rows, inputs, outputs = sizes
    note("dense", f"{which} relu", contestant, size=rows * inputs * outputs, dtype=kind, shape=text,
         moved=dense.moved(which), flops=dense.flops(which))  # fmt: skip


def measured(which, dense, names):
    """Seconds of a pass by contestant, on the same arrays: all as CUDA graphs, for small layers take less time than
    their launches."""
    calls = {}
    for name in names:
        if which == "backward" and name == "fastopt-epilogues":
            continue
        try:
            calls[name] = graph_by(name, dense_by(name, which, dense))
        except Absent:
            continue
    return graph_turns(calls, ROUNDS)
