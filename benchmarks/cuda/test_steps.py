"""Adam's step on many tensors at once: those of a transformer of 85 M parameters, and 100 small ones."""

import numpy as np
import pytest

from fastopt.benchmarks.cuda.needs import require_device
from fastopt.benchmarks.interleaved import interleaved, record, shared_result
from fastopt.benchmarks.peers import tolerant
from fastopt.benchmarks.updates import transformer
from fastopt.benchmarks.workloads import Absent

require_device()
from fastopt.benchmarks.cuda.turns import turns
from fastopt.benchmarks.cuda.updates import steps_by
from fastopt.kernels.costs import update_flops
from fastopt.kernels.cuda.dense.products import BYTES

ROUNDS = 15
CONTESTANTS = ("fastopt", "fastopt-torch", "torch-fused", "torch-foreach", "torch-graph")
CASES = [("transformer", "float32"), ("transformer", "bfloat16"), ("100 x 1000", "float32")]
CHECKED = 7  # every so-many-th tensor


def shapes_of(name, pick):
    if name == "transformer":
        return pick(transformer(12, 768), transformer(1, 64), [(8, 5), (5,), (), (9,)])
    return [(pick(1000, 1000, 3),)] * pick(100, 100, 5)


def measured(shapes, kind, names):
    """Seconds of a step by contestant, each on tensors of its own."""
    calls = {}
    for name in names:
        try:
            calls[name] = steps_by(name, shapes, kind).call
        except Absent:
            continue
    return turns(calls, ROUNDS)


@interleaved
@pytest.mark.parametrize("contestant", CONTESTANTS)
@pytest.mark.parametrize(("name", "kind"), CASES)
def test_step(benchmark, note, request, pick, name, kind, contestant):
    benchmark.group = f"Adam step of {name}, {kind}"
    shapes = shapes_of(name, pick)
    with tolerant():
        try:
            steps = steps_by(contestant, shapes, kind)
        except Absent as reason:
            pytest.skip(str(reason))
        steps.call()
        steps.done += 1
        steps.check(CHECKED)
        del steps
        if benchmark.disabled:
            benchmark(lambda: None)
            return
        found = shared_result(request, lambda names: measured(shapes, kind, names))
    record(benchmark, found[contestant])
    size = sum(int(np.prod(shape)) for shape in shapes)
    shape = f"{name}, {kind}" if name == "transformer" else name
    note("step", "adam", contestant, size=size, dtype=kind, shape=shape, moved=7 * BYTES[kind] * size,
         flops=update_flops("adam") * size)  # fmt: skip
