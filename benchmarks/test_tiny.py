"""Tiny work: a fit of 100 epochs on 150 rows, and predictions of 1 and 32 rows, beside other libraries."""

import numpy as np
import pytest

from fastopt.benchmarks.interleaved import available, interleaved, record, shared_result
from fastopt.benchmarks.limits import interleaved_times
from fastopt.benchmarks.peers import tolerant
from fastopt.benchmarks.tiny import FITS, PREDICTIONS, ROWS, TITLES, WIDE, WIDTHS, clouds, model_of, weights_of
from fastopt.benchmarks.workloads import Absent

EPOCHS = 100
FIT_ROUNDS, PREDICT_ROUNDS = 15, 21
CALLS = 50  # predictions of a turn
SAME_LOSS = 2e-3  # relative difference of the loss after all epochs: MLPClassifier adds eps elsewhere
SAME_PROBABILITIES = 1e-5
# Seconds before a turn: threads of other libraries spin for a while after a call, and would take a core from the next.
PAUSE = 0.15


def expected_loss():
    """The loss after all epochs of the NumPy reference."""
    model = model_of(WIDTHS, "numpy")
    model.compile("adam", "sparse_categorical_crossentropy")
    model.optimizer.lr = 0.01
    return model.fit(*clouds(), epochs=EPOCHS, batch_size=ROWS, verbose=0)["loss"][-1]


def fits(names, rounds):
    """Return seconds by contestant; each goes on from where its turn before has ended."""
    x, y = clouds()
    made = available(lambda name: FITS[name](x, y), names)
    calls = {name: lambda fit=fit: fit(EPOCHS) for name, fit in made.items()}
    return interleaved_times(calls, rounds, warm=2, pause=PAUSE)


@interleaved
@pytest.mark.parametrize("contestant", FITS)
def test_fit(benchmark, note, request, quick, contestant):
    benchmark.group = f"fit of {EPOCHS} epochs, {ROWS} x {WIDTHS[0]}"
    with tolerant():
        try:
            loss = FITS[contestant](*clouds())(EPOCHS)
        except Absent as reason:
            pytest.skip(str(reason))
        np.testing.assert_allclose(loss, expected_loss(), rtol=SAME_LOSS)
        if benchmark.disabled:
            benchmark(lambda: None)
            return
        found = shared_result(request, lambda names: fits(names, 3 if quick else FIT_ROUNDS))
    record(benchmark, found[contestant])
    shape = f"{'-'.join(map(str, WIDTHS))}, batch {ROWS}, {EPOCHS} epochs"
    note("program", f"fit {ROWS}", contestant, size=sum(w.size for w in weights_of(WIDTHS)), shape=shape,
         title=f"whole fit: {shape}", contestant_title=TITLES[contestant], samples=ROWS * EPOCHS)  # fmt: skip


def rows_of(count):
    return np.random.default_rng(2).random((count, WIDE[0]), np.float32)


def expected_probabilities(x):
    """The network's outputs in float64."""
    arrays = [w.astype(np.float64) for w in weights_of(WIDE)]
    for w, b in zip(arrays[:-2:2], arrays[1:-2:2], strict=True):
        x = np.maximum(x @ w + b, 0)
    z = x @ arrays[-2] + arrays[-1]
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def predictions(names, count, rounds):
    """Return seconds of a prediction by contestant."""
    x = rows_of(count)
    calls = available(lambda name: PREDICTIONS[name](x), names)
    for call in calls.values():
        call()
    return interleaved_times(calls, rounds, warm=2, pause=PAUSE, count=CALLS)


@interleaved
@pytest.mark.parametrize("contestant", PREDICTIONS)
@pytest.mark.parametrize("count", [1, 32])
def test_predict(benchmark, note, request, quick, count, contestant):
    benchmark.group = f"predict of {count} rows"
    x = rows_of(count)
    with tolerant():
        try:
            found = PREDICTIONS[contestant](x)()
        except Absent as reason:
            pytest.skip(str(reason))
        np.testing.assert_allclose(found, expected_probabilities(x), rtol=1e-3, atol=SAME_PROBABILITIES)
        if benchmark.disabled:
            benchmark(lambda: None)
            return
        times = shared_result(request, lambda names: predictions(names, count, 5 if quick else PREDICT_ROUNDS))
    record(benchmark, times[contestant])
    arrays = weights_of(WIDE)
    flops, moved = 2.0 * count * sum(w.size for w in arrays[::2]), sum(w.nbytes for w in arrays)
    shape = f"{'-'.join(map(str, WIDE))}, {count} row{'s' * (count > 1)}"
    note("program", f"predict {count}", contestant, size=sum(w.size for w in arrays), shape=shape, samples=count,
         flops=flops, moved=moved, title=f"predict: {shape}", contestant_title=TITLES[contestant])  # fmt: skip
