"""Weights of rows on the device, against the reference: every loss with its metrics, steps without weight, parts."""

from __future__ import annotations

import helpers_metrics
import numpy as np
import pytest
from helpers_cuda import require_device

require_device()
from helpers_network import Run, assert_agree, compare, data_for

from fastopt.kernels import cuda, reference
from fastopt.kernels.cuda.training import data_feed, passes, training_pass
from fastopt.kernels.formulas import LOSSES, METRICS, OPTIMIZERS
from fastopt.kernels.spec import Batches, DenseSpec, DropoutSpec, EpochHooks, OptimizerSteps, Shuffle

pytestmark = pytest.mark.gpu

MSE, LABELS = "mean_squared_error", "sparse_categorical_crossentropy"
WEIGHTS = np.array([0.5, 2, 0, 1.25, 0, 0, 0, 0, 3, 0.125, 1])  # in batches of 2 one, in order, has none
CASES = [
    case for case in helpers_metrics.cases() if any(part in str(case.id) for part in ("-3-many-random", "-1-many"))
]


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss(loss):
    row = LOSSES[loss]
    metrics = [name for name, metric in METRICS.items() if metric.goes_with(row) and metric.takes_outputs(row, 3)]
    layers = [DenseSpec(3, 4, "tanh"), DenseSpec(4, 3, row.link or "linear")]
    options = {"n": 11, "batch_size": 4, "epochs": 1}
    compare(layers, loss, metrics, "float64", weights=WEIGHTS, **options)
    compare(layers, loss, metrics[:1], "float32", weights=WEIGHTS.astype(np.float32), **options)


@pytest.mark.parametrize("case", CASES)
def test_metrics_are_scikit_learns(case):
    loss, last, z, y = case
    helpers_metrics.check((loss, last, z[:11], y[:11]), "cuda", "float64", WEIGHTS)


@pytest.mark.parametrize(
    "options", [{"accumulate": 2}, {"clip_norm": 0.05}, {"accumulate": 3, "clip_norm": 0.05}], ids=str
)
def test_steps_of_several_batches_and_clipping(options):
    compare([DropoutSpec(0.2), DenseSpec(3, 3)], MSE, ["r2"], "float64", n=11, batch_size=2, weights=WEIGHTS, **options)


@pytest.mark.parametrize("how", ["together", "layer by layer", "several batches a graph", "streamed"])
@pytest.mark.parametrize("options", [{}, {"accumulate": 2}, {"clip_norm": 0.1}], ids=str)
def test_a_step_without_weight_changes_nothing(options, how, monkeypatch):
    """Nor does weight decay; however batches are launched. Later steps have the scalars of their numbers."""
    if how == "layer by layer":
        monkeypatch.setattr(training_pass, "BY_LAYER", 1)
    elif how == "several batches a graph":
        monkeypatch.setattr(passes, "MANY", 2)
        monkeypatch.setattr(passes, "LONG", 1)
    elif how == "streamed":
        monkeypatch.setattr(data_feed, "MEMORY_SHARE", 0)
        monkeypatch.setattr(data_feed, "PART_BYTES", 200)
    x, y = data_for(np.random.default_rng(0), MSE, 14, 3, 3, "float64")
    layers, weights = [DenseSpec(3, 4, "tanh"), DenseSpec(4, 3)], np.repeat([1.0, 0.0, 2.0], [4, 6, 4])
    ours, theirs = (Run(backend, layers, MSE, [], "float64") for backend in (cuda, reference))
    for order in (np.arange(14), np.arange(4, 10)):
        before = [a.copy() for a in ours.params]
        results = [run.train(x, y, order, 2, weights=weights, weight_decay=0.1, **options) for run in (ours, theirs)]
        assert_agree(*results, "float64")
    assert all(a.tobytes() == b.tobytes() for a, b in zip(before, ours.params, strict=True))
    for a, b in zip(ours.params, theirs.params, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9)


def test_epochs_weigh_rows_in_their_order():
    """The kernel for small networks, which reads no weights, is not chosen."""
    x, y = data_for(np.random.default_rng(0), LABELS, 11, 3, 3, "float64")
    found = []
    for backend in (cuda, reference):
        run, results = Run(backend, [DenseSpec(3, 3, "softmax")], LABELS, ["accuracy"], "float64"), []
        batches = Batches(x, y, np.arange(11), 3, epochs=2, shuffle=Shuffle(5), weights=WEIGHTS)
        steps = OptimizerSteps("adam", run.states, OPTIMIZERS["adam"].options, np.full(2 * batches.steps, 0.1))
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("FASTOPT_CUDA_FUSED", "1")
            run.net.train(batches, steps, 3, None, EpochHooks(results.append, lambda: False))
        found.append(([result.losses for result in results], [result.weights for result in results], run.params))
    for ours, theirs in zip(*found, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9)
