"""Many small models on the same data: `fit_many`, `fit` of one after the other, and JAX's `vmap`."""

from itertools import pairwise

import numpy as np
import pytest

from fastopt.benchmarks.interleaved import available, interleaved, record, shared_result
from fastopt.benchmarks.limits import interleaved_times
from fastopt.benchmarks.many import BATCH, CONTESTANTS, EPOCHS, MODELS, ROWS, TITLES, WIDTHS, digits
from fastopt.benchmarks.peers import tolerant
from fastopt.benchmarks.workloads import Absent

ROUNDS = 9
SAME_LOSS = 1e-3  # relative: after 1120 steps of the same rows in float32, with other orders of sums
PAUSE = 0.15  # seconds before a turn: threads of other libraries spin for a while after a call


def trainings(names, rounds):
    """Return seconds by contestant; each goes on from where its turn before has ended."""
    x, y = digits()
    calls = available(lambda name: CONTESTANTS[name](x, y, True), names)
    return interleaved_times(calls, rounds, warm=2, pause=PAUSE)


@interleaved
@pytest.mark.parametrize("contestant", CONTESTANTS)
def test_many(benchmark, note, request, quick, contestant):
    benchmark.group = f"{MODELS} models of {'-'.join(map(str, WIDTHS))}"
    x, y = digits()
    with tolerant():
        try:
            losses = CONTESTANTS[contestant](x, y, False)()
        except Absent as reason:
            pytest.skip(str(reason))
        np.testing.assert_allclose(losses, CONTESTANTS["fastopt-fit"](x, y, False)(), rtol=SAME_LOSS)
        if benchmark.disabled:
            benchmark(lambda: None)
            return
        found = shared_result(request, lambda names: trainings(names, 3 if quick else ROUNDS))
    record(benchmark, found[contestant])
    sizes = [(inputs + 1) * outputs for inputs, outputs in pairwise(WIDTHS)]
    shape = f"{MODELS} of {'-'.join(map(str, WIDTHS))}, batch {BATCH}, {EPOCHS} epochs"
    note("program", "many models", contestant, size=MODELS * sum(sizes), shape=shape, title=f"many models: {shape}",
         contestant_title=TITLES[contestant], samples=MODELS * ROWS * EPOCHS)  # fmt: skip
