"""Fits and searches of `fastopt.sklearn` and of scikit-learn, with scikit-learn's defaults."""

import numpy as np
import pytest

from fastopt.benchmarks.estimators import TASKS, TITLES, run
from fastopt.benchmarks.interleaved import interleaved, record, shared_result
from fastopt.benchmarks.limits import interleaved_times
from fastopt.benchmarks.workloads import Absent

ROUNDS = {"fashion-float64": 5, "fashion-float32": 5, "iris": 15, "grid": 3}
SAME_LOSS = {"float64": 1e-9, "float32": 1e-3}  # relative, of three iterations in the same order of rows
PAUSE = 0.15  # seconds before a turn: threads of NumPy's BLAS spin for 0.1 s after a product


def turns(name, names, rounds):
    """Return seconds of a call by contestant."""
    calls = {contestant: run(name, contestant) for contestant in names}
    return interleaved_times(calls, rounds, warm=1, pause=PAUSE, count=TASKS[name].calls)


@interleaved
@pytest.mark.parametrize("contestant", TITLES)
@pytest.mark.parametrize("task", TASKS)
def test_estimators(benchmark, note, request, quick, task, contestant):
    benchmark.group = TASKS[task].title
    try:
        if task != "grid":
            options = {"max_iter": 3, "shuffle": False}
            ours, theirs = (np.array(run(task, name, **options)().loss_curve_) for name in TITLES)
            dtype = "float32" if task.endswith("float32") else "float64"
            np.testing.assert_allclose(ours, theirs, rtol=SAME_LOSS[dtype])
        elif quick:
            pytest.skip("146 fits: when timed")
    except Absent as reason:
        pytest.skip(str(reason))
    if benchmark.disabled:
        benchmark(lambda: None)
        return
    found = shared_result(request, lambda names: turns(task, names, 2 if quick else ROUNDS[task]))
    record(benchmark, found[contestant])
    note("program", f"estimator, {task}", contestant, size=0, title=TASKS[task].title,
         contestant_title=TITLES[contestant])  # fmt: skip
