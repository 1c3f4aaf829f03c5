"""`step` of an optimizer on many arrays, through the public API, as in a training loop."""

import numpy as np
import pytest

from fastopt.benchmarks.interleaved import available, interleaved, record, shared_result
from fastopt.benchmarks.limits import interleaved_times, stream
from fastopt.benchmarks.peers import tolerant
from fastopt.benchmarks.updates import SHAPES, job, step_by
from fastopt.benchmarks.workloads import Absent
from fastopt.kernels.costs import update_flops

STEPS = 200  # in a turn: the first of them fill the caches again
ROUNDS = 15
PAUSE = 0.02  # seconds in which the threads of the contestant before come to rest
CONTESTANTS = ("fastopt", "numpy", "torch-fused", "torch-default")


def measured(shapes, names, quick):
    """Return the seconds of a step by contestant, and of streaming as many parameters in one array."""
    flat = job("adam", sum(int(np.prod(shape)) for shape in SHAPES[shapes]))
    with tolerant():
        calls = available(lambda name: step_by(name, SHAPES[shapes]), names)
        calls["limit"] = stream(flat.p, flat.g, flat.states)
        return interleaved_times(calls, 3 if quick else ROUNDS, count=10 if quick else STEPS, pause=PAUSE)


@interleaved
@pytest.mark.parametrize("contestant", CONTESTANTS)
@pytest.mark.parametrize("shapes", SHAPES)
def test_step(benchmark, note, request, quick, contestant, shapes):
    benchmark.group = f"Adam step of {shapes}"
    try:
        with tolerant():
            step_by(contestant, SHAPES[shapes])()
    except Absent as reason:
        pytest.skip(str(reason))
    if benchmark.disabled:
        benchmark(lambda: None)
        return
    found = shared_result(request, lambda names: measured(shapes, names, quick))
    record(benchmark, found[contestant])
    size = sum(int(np.prod(shape)) for shape in SHAPES[shapes])
    note("step", "adam", contestant, size=size, shape=shapes, moved=28 * size, flops=update_flops("adam") * size,
         limit=float(np.median(found["limit"])))  # fmt: skip
