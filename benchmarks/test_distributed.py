"""Training on two ranks: weak and strong scaling, bytes, the share of communication, a prediction, and torch's DDP."""

from functools import cache

import numpy as np
import pytest

from fastopt.benchmarks.interleaved import interleaved, record, shared_result
from fastopt.benchmarks.scaling import CONTESTANTS, Task, contest, launcher, predicted, seconds_of
from fastopt.benchmarks.workloads import Absent

TASKS = {
    "784-256-128-10": Task((784, 256, 128, 10), 256, 200),
    "1024-4096-4096-10": Task((1024, 4096, 4096, 10), 256, 4),
}
TINY = Task((20, 16, 4), 64, 4)
ROUNDS = {"784-256-128-10": 9, "1024-4096-4096-10": 5}
SAME_LOSS = 1e-3  # relative: of the first turn, in float32 with other orders of sums
MOST_BYTES = 1.05  # of the least that ranks can send
TWO = ("two-ranks", "two-ranks-weak")


def trainings(names, work, quick):
    """Return the task, and what processes tell, with all that scaling and the prediction go by."""
    names = tuple(CONTESTANTS if any(name in TWO for name in names) else names)
    if quick:
        return TINY, tiny(names)
    return TASKS[work], contest(TASKS[work], names, ROUNDS[work])


@cache
def tiny(names):
    """Return the same of the tiny task, which is one for all."""
    return contest(TINY, names, 2)


@interleaved
@pytest.mark.parametrize("work", TASKS)
@pytest.mark.parametrize("contestant", CONTESTANTS)
def test_ranks(benchmark, note, request, quick, work, contestant):
    """Seconds of a step; of two ranks also what they send, and their efficiency beside one rank of one thread."""
    benchmark.group = f"a step of {work} on two ranks"
    if contestant != "fit" and CONTESTANTS[contestant].kind != "torch":
        _require_mpi()
    task, told = shared_result(request, lambda names: trainings(names, work, quick))
    if contestant not in told:
        pytest.skip("needs torch: pip install 'fastopt[bench]'")
    own, mine = CONTESTANTS[contestant], told[contestant]
    if own.more_rows == 1:
        same = [name for name in told if CONTESTANTS[name].more_rows == 1]
        np.testing.assert_allclose(mine[0][0]["loss"], told[same[0]][0][0]["loss"], rtol=SAME_LOSS)
    if contestant in TWO:
        sent = max(one["bytes"] for one in mine[-1])
        least = 2 * (own.processes - 1) / own.processes * mine[0][0]["cost"][5]
        assert 0 < sent <= MOST_BYTES * least
    if benchmark.disabled:
        benchmark(lambda: None)
        return
    times = seconds_of(mine[1:])
    record(benchmark, times)
    rows = task.rows * own.more_rows
    shape = f"{'-'.join(map(str, task.widths))}, {rows} rows a step"
    note("program", "distributed", contestant, size=task.parameters, shape=shape, threads=own.processes * own.threads,
         title=f"a step of {shape}", contestant_title=own.title, samples=rows)  # fmt: skip
    if contestant in TWO:
        _note_scaling(benchmark.extra_info, told, contestant)


def _require_mpi():
    try:
        launcher()
    except Absent as reason:
        pytest.skip(str(reason))


def _note_scaling(info, told, contestant):
    """Note traffic, efficiency, and for the same rows the prediction from one rank."""
    last = [one for of_ranks in told[contestant][1:] for one in of_ranks]
    ours, alone = np.median(seconds_of(told[contestant][1:])), np.median(seconds_of(told["one-rank-1"][1:]))
    info["bytes a step"] = round(max(one["bytes"] for one in last))
    info["messages a step"] = round(max(one["messages"] for one in last), 2)
    info["share of communication"] = round(float(np.median([one["waiting"] / one["seconds"] for one in last])), 3)
    if contestant == "two-ranks-weak":
        info["weak efficiency"] = round(float(alone / ours), 3)
        return
    info["strong efficiency"] = round(float(alone / ours / 2), 3)
    info["of one rank with 2 threads"] = round(float(ours / np.median(seconds_of(told["one-rank"][1:]))), 3)
    if "torch-ddp" in told:
        info["of torch DDP"] = round(float(ours / np.median(seconds_of(told["torch-ddp"][1:]))), 3)
    time = predicted(told["apart"][1:])
    info["predicted / measured"] = round(time.seconds / min(seconds_of(told[contestant][1:])), 3)
