"""An epoch of `fit` with each option, beside one of a bare fit."""

from itertools import pairwise

import pytest

from fastopt.benchmarks.interleaved import interleaved, record, shared_result
from fastopt.benchmarks.limits import interleaved_times
from fastopt.benchmarks.options import BATCH, OPTIONS, WIDTHS, images

ROUNDS, QUICK_ROWS = 9, 2048


def epochs(names, rounds, rows):
    """Return seconds of an epoch by contestant; each goes on from where its turn before has ended."""
    x, y = (array[:rows] for array in images())
    calls = {name: OPTIONS[name].make(x, y) for name in names}
    return interleaved_times(calls, rounds, warm=1)


@interleaved
@pytest.mark.parametrize("contestant", OPTIONS)
def test_option(benchmark, note, request, quick, contestant):
    benchmark.group = f"options of an epoch, {'-'.join(map(str, WIDTHS))}, batch {BATCH}"
    option, (x, y) = OPTIONS[contestant], (array[:QUICK_ROWS] for array in images())
    loss, bare = option.make(x, y)(), OPTIONS["bare"].make(x, y)()
    assert (loss == bare) == option.same_loss
    if benchmark.disabled:
        benchmark(lambda: None)
        return
    rows = QUICK_ROWS if quick else len(images()[0])
    found = shared_result(request, lambda names: epochs(names, 3 if quick else ROUNDS, rows))
    record(benchmark, found[contestant])
    parameters = sum((inputs + 1) * outputs for inputs, outputs in pairwise(WIDTHS))
    shape = f"{'-'.join(map(str, WIDTHS))}, batch {BATCH}"
    note("program", "options", contestant, size=parameters, shape=shape, samples=rows,
         title=f"options of an epoch: {shape}", contestant_title=option.title)  # fmt: skip
