"""Whole epochs: the compiled kernels, the reference, and the libraries one could use instead, from the same weights.

The contestants of a workload take turns in one process (see `contest`), and what was measured then is handed to
pytest-benchmark through a clock of its own: one contestant after the other would see the machine in different states.
"""

import pytest

from fastopt.benchmarks.contest import contest
from fastopt.benchmarks.peers import PEERS
from fastopt.benchmarks.workloads import TITLES, WORKLOADS, Absent

ROUNDS = {"fashion-64": 5, "fashion-256": 7, "fashion-1024": 7, "digits": 15, "wide": 3, "linear": 5}


class Clock:
    """Time that goes on only when it is told to."""

    now = 0.0

    def read(self):
        return self.now

    def advance(self, seconds):
        self.now += next(seconds)


CLOCK = Clock()
OUTCOMES = {}


def outcome(request, name, quick, timed):
    """What a contest on the workload gave: of those contestants that were selected, and held once."""
    if name not in OUTCOMES:
        wanted = [item.callspec.params for item in request.session.items if item.function is request.function]
        names = [params["contestant"] for params in wanted if params["workload"] == name]
        if not timed and "torch-compile" in names:
            names.remove("torch-compile")  # it compiles for half a minute
        # The reference first, that the others are compared with, whether or not it is to be reported.
        names = sorted({*names, "numpy"}, key=list(PEERS).index)
        try:
            workload = WORKLOADS[name](quick)
        except Absent as reason:
            OUTCOMES[name] = None, str(reason)
        else:
            rounds = 0 if not timed else 2 if quick else ROUNDS[name]
            OUTCOMES[name] = workload, contest(workload, names, rounds)
    return OUTCOMES[name]


@pytest.mark.parametrize("contestant", PEERS)
@pytest.mark.parametrize("workload", WORKLOADS)
@pytest.mark.benchmark(timer=CLOCK.read)
def test_epoch(benchmark, note, request, quick, workload, contestant):
    if contestant == "sklearn" and workload != "linear":
        pytest.skip("SGDRegressor is for the linear regression only")
    benchmark.group = f"epoch of {workload}"
    made, found = outcome(request, workload, quick, not benchmark.disabled)
    if made is None:
        pytest.skip(found)
    if contestant in found.absent:
        pytest.skip(found.absent[contestant])
    if contestant not in found.seconds:
        pytest.skip("compiles for half a minute: when timed")
    if benchmark.disabled:
        benchmark(lambda: None)  # agreement was what mattered
        return
    seconds = iter(found.seconds[contestant])
    benchmark.pedantic(CLOCK.advance, (seconds,), rounds=len(found.seconds[contestant]))
    widths = "-".join(map(str, (made.x.shape[1], *made.hidden, made.outputs)))
    note("epoch", workload, contestant, size=sum(p.size for p in made.weights),
         shape=f"{widths}, batch {made.batch_size}", title=TITLES[workload], flops=made.flops,
         samples=len(made.order))  # fmt: skip
    benchmark.extra_info["loss"] = found.losses[contestant][0] if contestant != "sklearn" else None
