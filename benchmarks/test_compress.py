"""Compressed networks: bytes, accuracy, and `predict` beside float32 and the int8 of torch and onnxruntime."""

from itertools import pairwise

import numpy as np
import pytest

from fastopt.benchmarks.compress import CONTESTANTS, HIDDEN, images, predictor
from fastopt.benchmarks.interleaved import available, interleaved, record, shared_result
from fastopt.benchmarks.limits import interleaved_times
from fastopt.benchmarks.peers import tolerant
from fastopt.benchmarks.workloads import Absent

ROUNDS, CALLS = 9, {"784-256-128-10": 60, "784-1024-1024-10": 20}  # turns, and calls of a turn
PAUSE = 0.02  # seconds before a turn: threads of other libraries spin for a while after a call
ROWS = (1, 32, 256)


def times(shape, rows, quick, names):
    """Return seconds of a call by contestant."""
    x = images(quick)[2][:rows].copy()

    def turn(name):
        predict = predictor(name, shape, quick).predict

        def calls():
            for _ in range(CALLS[shape]):
                predict(x)

        return calls

    found = interleaved_times(available(turn, names), 3 if quick else ROUNDS, warm=2, pause=PAUSE)
    return {name: np.asarray(seconds) / CALLS[shape] for name, seconds in found.items()}


@interleaved
@pytest.mark.parametrize("shape", HIDDEN)
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("contestant", CONTESTANTS)
def test_compress(benchmark, note, request, quick, shape, rows, contestant):
    benchmark.group = f"predict {rows} rows, {shape}"
    _, _, x, y = images(quick)
    with tolerant():
        try:
            made, whole = (predictor(name, shape, quick) for name in (contestant, "float32"))
        except Absent as reason:
            pytest.skip(str(reason))
        accuracy, exact = (float((p.predict(x).argmax(axis=1) == y).mean()) for p in (made, whole))
        assert accuracy >= exact - CONTESTANTS[contestant].loss - (0.03 if quick else 0)
        if benchmark.disabled:
            benchmark(lambda: None)
            return
        found = shared_result(request, lambda names: times(shape, rows, quick, names))
    record(benchmark, found[contestant])
    widths = 784, *HIDDEN[shape], 10
    parameters = sum((inputs + 1) * outputs for inputs, outputs in pairwise(widths))
    share = made.num_bytes / (4 * parameters)
    benchmark.extra_info |= {"file bytes": made.num_bytes, "share_of_bytes": share, "accuracy": accuracy, "rows": rows}
    note("compressed", shape, contestant, size=parameters, shape=f"{rows} rows",
         contestant_title=CONTESTANTS[contestant].title, samples=rows)  # fmt: skip
