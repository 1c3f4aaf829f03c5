"""Whole passes over the data on the device, against the reference: every row of the tables, and parts of a pass.

Networks are as small as they can be, for a step takes the simulator half a second.
"""

from __future__ import annotations

import numpy as np
import pytest
from helpers_cuda import require_device

require_device()
from helpers_network import LAYERS, Run, assert_agree, compare, data_for

from fastopt.kernels import cuda, reference
from fastopt.kernels.formulas import ACTIVATIONS, LOSSES, METRICS, OPTIMIZERS
from fastopt.kernels.spec import DenseSpec, DropoutSpec, LossSpec

pytestmark = pytest.mark.gpu

MSE, LABELS = "mean_squared_error", "sparse_categorical_crossentropy"
SMALL = [DenseSpec(3, 4, "tanh"), DenseSpec(4, 2)]


@pytest.mark.parametrize(
    ("loss", "last"), [(loss, last) for loss, row in LOSSES.items() for last in ["linear", row.link] if last]
)
def test_every_loss(loss, last):
    row = LOSSES[loss]
    metrics = [name for name, metric in METRICS.items() if metric.goes_with(row)]
    layers = [DenseSpec(3, 4, "tanh"), DenseSpec(4, 3, last)]
    compare(layers, loss, metrics, "float64", n=10, epochs=1)
    compare(layers, loss, metrics[:1], "float32", n=5, epochs=1)


@pytest.mark.parametrize("loss", ["binary_crossentropy", "hinge", MSE])
def test_one_output(loss):
    """Accuracy is then a matter of boundaries, of outputs and of targets."""
    layers = [DenseSpec(3, 1, LOSSES[loss].link or "linear")]
    compare(layers, loss, ["accuracy"], "float64", n=9, epochs=1)
    if LOSSES[loss].link:
        compare(layers, loss, ["accuracy", "r2"], "float64", n=9, epochs=1)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation(activation):
    compare([DenseSpec(3, 5, activation), DenseSpec(5, 4, activation, False)], MSE, [], "float64", n=6, epochs=1)


@pytest.mark.parametrize("rule", OPTIMIZERS)
def test_every_optimizer(rule):
    compare([DenseSpec(3, 2)], MSE, [], "float64", rule, n=6, weight_decay=0.1)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_depth(depth, dtype):
    widths = [5, 8, 3, 4][:depth]
    layers = [DropoutSpec(0.2)]
    for width, outputs in zip(widths, [*widths[1:], 3], strict=True):
        layers += [DenseSpec(width, outputs, "silu" if depth % 2 else "tanh", width != 3), DropoutSpec(0.4)]
    compare([*layers[:-2], layers[-2]._replace(activation="softmax")], LABELS, ["accuracy"], dtype, n=9)


def test_a_dropout_of_outputs_and_one_of_nothing():
    layers = [DropoutSpec(0.0), DropoutSpec(0.3), DropoutSpec(0.2), DenseSpec(3, 2, "sigmoid"), DropoutSpec(0.5)]
    compare(layers, "binary_crossentropy", [], "float64", n=8, epochs=1)


@pytest.mark.parametrize("clip_norm", [None, 0.05, 1e9])
@pytest.mark.parametrize(("accumulate", "n"), [(1, 11), (2, 14), (3, 9)])
def test_steps_of_several_batches_and_clipping(accumulate, n, clip_norm):
    """The last step has a short batch, or a batch too few, or neither."""
    options = {"accumulate": accumulate, "clip_norm": clip_norm}
    compare([DropoutSpec(0.3), *SMALL], MSE, [], "float64", n=n, batch_size=3, **options)


def test_float32_with_everything():
    compare(LAYERS, LABELS, ["accuracy"], "float32", n=13, batch_size=4, accumulate=2, clip_norm=0.3)


def test_learning_rates_of_their_own_for_every_step():
    rates = np.array([0.1, 0.01, 0.2])
    compare(SMALL, MSE, [], "float64", "momentum", n=9, batch_size=4, lr=rates)


def test_one_pass_after_another():
    """A kept pass must not outlive its arrays; changes on the host between passes count."""
    rng = np.random.default_rng(0)
    ours, theirs = (Run(backend, SMALL, MSE, ["r2"], "float64") for backend in (cuda, reference))
    x, y = data_for(rng, MSE, 12, 3, 2, "float64")
    made = []
    cases = [(12, 4, 1), (12, 4, 1), (11, 4, 1), (12, 3, 1), (12, 4, 2), (12, 4, 2)]
    for i, (n, batch_size, seed) in enumerate(cases):
        if i == 5:
            x, y = data_for(rng, MSE, 12, 3, 2, "float64")
        order = rng.permutation(12)[:n]
        assert_agree(*(run.train(x, y, order, batch_size, seed) for run in (ours, theirs)), "float64")
        made.append(id(ours.net._kept["train"][1]))
        for run in (ours, theirs):
            run.params[0] *= 0.9
            run.states[1][0][...] += 0.01
        assert_agree(ours.net.evaluate(x, y, 5), theirs.net.evaluate(x, y, 5), "float64")
        np.testing.assert_allclose(ours.net.predict(x, 5), theirs.net.predict(x, 5), rtol=1e-10)
    assert made[0] == made[1]


def test_arrays_of_a_backend_are_those_of_another():
    """An epoch on the device, one on the host, on the same parameters and states."""
    x, y = data_for(np.random.default_rng(0), MSE, 8, 3, 2, "float64")
    mixed, theirs = (Run(backend, SMALL, MSE, [], "float64") for backend in (cuda, reference))
    on_device = mixed.net
    on_host = reference.Network(SMALL, mixed.params, "float64", LossSpec(MSE), [])
    for net in (on_device, on_host, on_device):
        mixed.net = net
        assert_agree(*(run.train(x, y, np.arange(8), 4) for run in (mixed, theirs)), "float64")


def test_predict_and_evaluate_leave_everything_alone():
    x, y = data_for(np.random.default_rng(0), MSE, 9, 3, 2, "float32")
    run = Run(cuda, SMALL, MSE, ["r2"], "float32")
    kept = [a.copy() for a in (*run.params, x, y)]
    np.testing.assert_array_equal(run.net.predict(x, 4), run.net.predict(x, 4))
    run.net.evaluate(x, y, 4)
    for a, b in zip(kept, (*run.params, x, y), strict=True):
        np.testing.assert_array_equal(a, b)


def test_no_rows():
    run = Run(cuda, SMALL, MSE, ["r2"], "float32")
    x, y = data_for(np.random.default_rng(0), MSE, 4, 3, 2, "float32")
    assert run.net.predict(x[:0]).shape == (0, 2)
    for totals in (run.train(x, y, np.zeros(0, np.int64), 4), run.net.evaluate(x[:0], y[:0])):
        assert np.isnan([*totals.losses, *totals.metrics.values()]).all()
    assert (run.step, run.net.steps_done) == (0, 0)


def test_a_network_without_a_loss_only_predicts():
    x, y = data_for(np.random.default_rng(0), MSE, 4, 3, 2, "float32")
    layers = [DenseSpec(3, 2, "sigmoid")]
    run = Run(cuda, layers, MSE, [], "float32")
    net, theirs = (backend.Network(layers, run.params, "float32", None, []) for backend in (cuda, reference))
    np.testing.assert_allclose(net.predict(x), theirs.predict(x), rtol=1e-6)
    with pytest.raises(ValueError, match="a network without a loss can only predict"):
        net.evaluate(x, y)
