"""Adam in torch's training loops: the step between a backward and a forward pass, and the whole iteration."""

from functools import cache

import numpy as np
import pytest

from fastopt.benchmarks.interleaved import available, interleaved, record, shared_result
from fastopt.benchmarks.loops import LOOPS, Loop, interleaved_loops
from fastopt.benchmarks.peers import tolerant
from fastopt.benchmarks.workloads import Absent

CONTESTANTS = ("fastopt", "fastopt-in-backward", "torch-fused", "torch-default")
FIRST = 10  # iterations whose losses are compared
SAME_LOSSES = 3e-4  # relative difference of the same steps, rounded differently


def made(name, loop, quick):
    return Loop(name, LOOPS[loop].quick if quick else LOOPS[loop].model)


@cache
def expected(loop, quick):
    return made("torch-default", loop, quick).losses(FIRST)


@cache
def measured(loop, names, quick):
    """Return the seconds of step and iteration by contestant, measured once for both tests."""
    loops = available(lambda name: made(name, loop, quick), names)
    work = LOOPS[loop]
    return interleaved_loops(loops, 3 if quick else work.iterations, 2 if quick else work.rounds)


@interleaved
@pytest.mark.parametrize("contestant", CONTESTANTS)
@pytest.mark.parametrize("timed", ["step", "iteration"])
@pytest.mark.parametrize("loop", LOOPS)
def test_loop(benchmark, note, request, quick, loop, timed, contestant):
    if timed == "step" and contestant == "fastopt-in-backward":
        pytest.skip("its steps are part of the backward pass")
    benchmark.group = f"{timed} of a loop in torch: {loop}"
    try:
        with tolerant():
            ours = made(contestant, loop, quick)
            np.testing.assert_allclose(ours.losses(FIRST), expected(loop, quick), rtol=SAME_LOSSES)
    except Absent as reason:
        pytest.skip(str(reason))
    size = ours.size
    del ours
    if benchmark.disabled:
        benchmark(lambda: None)
        return
    with tolerant():
        found = shared_result(request, lambda names: measured(loop, tuple(names), quick))
    record(benchmark, found[contestant][timed])
    note("loop", f"adam {timed}", contestant, size=size, shape=loop, title=f"{timed} in a loop")
