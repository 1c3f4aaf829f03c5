"""`step` of an optimizer on many arrays, through the public API: what a training loop of one's own pays."""

import numpy as np
import pytest

from fastopt.benchmarks.updates import SHAPES, steps
from fastopt.benchmarks.workloads import Absent
from fastopt.kernels.cpu.costs import update_flops


@pytest.mark.parametrize("shapes", SHAPES)
@pytest.mark.parametrize("contestant", ["fastopt", "numpy", "torch-fused", "torch-default"])
def test_step(benchmark, note, contestant, shapes):
    benchmark.group = f"Adam step of {shapes}"
    try:
        call = steps([contestant], SHAPES[shapes])[contestant]
    except Absent as reason:
        pytest.skip(str(reason))
    benchmark(call)
    size = sum(int(np.prod(shape)) for shape in SHAPES[shapes])
    note("step", "adam", contestant, size=size, shape=shapes, moved=28 * size, flops=update_flops("adam") * size)
