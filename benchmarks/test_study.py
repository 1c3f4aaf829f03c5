"""A study: its models by `fit_many` and by `fit`, and its prediction of the times of sizes that it has not seen."""

import numpy as np
import pytest

from fastopt.benchmarks.interleaved import interleaved, record, shared_result
from fastopt.benchmarks.limits import interleaved_times

pytest.importorskip("scipy")

from fastopt.benchmarks.studies import BATCH, CONTESTANTS, EPOCHS, SEEDS, TITLES, data, grid, prediction

ROWS, FEW_ROWS, TINY = 12_000, 1_500, 300
ROUNDS, REPEATS = 3, 3


def trainings(names, rows, rounds):
    """Return seconds by contestant."""
    own = data(rows)
    return interleaved_times({name: CONTESTANTS[name](own) for name in names}, rounds)


@interleaved
@pytest.mark.parametrize("contestant", CONTESTANTS)
def test_models(benchmark, note, request, quick, contestant):
    models = len(grid().units(ROWS))
    benchmark.group = f"{models} models of a study"
    few = data(TINY)
    np.testing.assert_array_equal(CONTESTANTS[contestant](few)(), CONTESTANTS["fastopt-fit"](few)())
    if benchmark.disabled:
        benchmark(lambda: None)
        return
    rows = FEW_ROWS if quick else ROWS
    found = shared_result(request, lambda names: trainings(names, rows, 1 if quick else ROUNDS))
    record(benchmark, found[contestant])
    own = data(TINY).shape
    units = grid().units(rows)
    shape = f"{models} models of {rows:,} rows at most, batch {BATCH}, {EPOCHS[-1]} epochs"
    note("program", "study", contestant, size=sum(own.parameters(unit.layers) for unit in units), shape=shape,
         title=f"study: {shape}", contestant_title=TITLES[contestant],
         samples=EPOCHS[-1] * sum(unit.rows for unit in units))  # fmt: skip
    assert len(units) == 6 * 3 * SEEDS


@interleaved
def test_prediction(benchmark, note, quick):
    """The time of all measurements of a study; `worst held out` is the error of the worst size of 50,000 parameters."""
    benchmark.group = "times of a study"
    if benchmark.disabled:
        seconds, worst = prediction(data(TINY), 1)
        assert worst is not None
        assert len(seconds) == 6 * 3 * 2
        benchmark(lambda: None)
        return
    rows = FEW_ROWS if quick else ROWS
    seconds, worst = prediction(data(rows), 1 if quick else REPEATS)
    record(benchmark, [sum(seconds)])
    note("program", "times", "fastopt", size=len(seconds), shape=f"{len(seconds)} times of {rows:,} rows at most",
         title="times of a study")  # fmt: skip
    benchmark.extra_info["worst held out"] = round(worst, 3)
