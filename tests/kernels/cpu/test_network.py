"""Whole passes over the data: against the reference, for any depth, option and number of threads."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from fastopt.kernels import cpu, reference
from fastopt.kernels.cpu.dense import layer as dense
from fastopt.kernels.cpu.runtime import launch
from fastopt.kernels.cpu.runtime.primitives import INTERPRETED
from fastopt.kernels.cpu.training import network, program
from fastopt.kernels.formulas import ACTIVATIONS, LOSSES, METRICS, OPTIMIZERS
from fastopt.kernels.spec import Batches, DenseSpec, DropoutSpec, LossSpec, OptimizerSteps

# Rounding grows from step to step; float64 shows that nothing else does.
TOLERANCE = {"float32": 2e-4, "float64": 1e-10}


def data_for(rng, loss, n, inputs, outputs, dtype):
    row = LOSSES[loss]
    x = rng.standard_normal((n, inputs)).astype(dtype)
    if row.targets == "labels":
        return x, rng.integers(0, outputs, n)
    y = (rng.random((n, outputs)) > 0.5).astype(dtype)
    if row.signs:
        y = 2 * y - 1
    if row.by_row:
        y = np.eye(outputs, dtype=dtype)[rng.integers(0, outputs, n)]
    return x, y


def params_for(rng, layers, dtype):
    params = []
    for layer in layers:
        if isinstance(layer, DenseSpec):
            params.append((rng.standard_normal((layer.inputs, layer.outputs)) / layer.inputs**0.5).astype(dtype))
            if layer.bias:
                params.append(0.1 * rng.standard_normal(layer.outputs).astype(dtype))
    return params


class Run:
    """A network with its own copies of params and states on one backend."""

    def __init__(self, backend, layers, loss, metrics, dtype, rule="adam", seed=0):
        self.params = params_for(np.random.default_rng(seed), layers, dtype)
        self.states = [tuple(np.zeros_like(p) for _ in OPTIMIZERS[rule].states) for p in self.params]
        self.net = backend.Network(layers, self.params, dtype, LossSpec(loss), metrics)
        self.rule, self.step = rule, 0

    def train(
        self, x, y, order, batch_size, seed=3, lr=1e-2, progress=None, accumulate=1, clip_norm=None, **options
    ):
        batches = Batches(x, y, order, batch_size, accumulate)
        rates = np.full(batches.steps, lr)
        options = {**OPTIMIZERS[self.rule].options, **options}
        steps = OptimizerSteps(self.rule, self.states, options, rates, self.step, clip_norm)
        totals = self.net.train(batches, steps, seed, progress)
        self.step += batches.steps
        return totals


def assert_agree(ours, theirs, dtype):
    np.testing.assert_allclose(ours.losses, theirs.losses, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    assert list(ours.metrics) == list(theirs.metrics)
    for name, value in theirs.metrics.items():
        np.testing.assert_allclose(ours.metrics[name], value, rtol=1e-3, atol=1e-3)


def compare(layers, loss, metrics, dtype, rule="adam", n=50, batch_size=16, seed=0, **options):
    ends = [layer for layer in layers if isinstance(layer, DenseSpec)]
    rng = np.random.default_rng(seed)
    x, y = data_for(rng, loss, n, ends[0].inputs, ends[-1].outputs, dtype)
    ours, theirs = (Run(backend, layers, loss, metrics, dtype, rule, seed) for backend in (cpu, reference))
    for epoch in range(2):
        order = np.random.default_rng(epoch).permutation(n)
        assert_agree(*(run.train(x, y, order, batch_size, **options) for run in (ours, theirs)), dtype)
    for a, b in zip(ours.params, theirs.params, strict=True):
        np.testing.assert_allclose(a, b, rtol=50 * TOLERANCE[dtype], atol=50 * TOLERANCE[dtype])
    assert_agree(ours.net.evaluate(x, y, 24), theirs.net.evaluate(x, y, 24), dtype)
    np.testing.assert_allclose(
        ours.net.predict(x, 24), theirs.net.predict(x, 24), rtol=50 * TOLERANCE[dtype], atol=50 * TOLERANCE[dtype]
    )


LAYERS = [DenseSpec(7, 9, "relu"), DropoutSpec(0.25), DenseSpec(9, 6, "gelu", False), DenseSpec(6, 3)]


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss(loss):
    metrics = [name for name, metric in METRICS.items() if metric.goes_with(LOSSES[loss])]
    compare(LAYERS, loss, metrics, "float64")
    compare(LAYERS, loss, metrics[:1], "float32")
    if LOSSES[loss].link:
        compare([*LAYERS[:-1], DenseSpec(6, 3, LOSSES[loss].link)], loss, metrics, "float64")


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation(activation):
    layers = [DenseSpec(5, 8, activation), DenseSpec(8, 4, activation), DenseSpec(4, 2)]
    compare(layers, "mean_squared_error", ["mean_squared_error"], "float64")


@pytest.mark.parametrize("rule", OPTIMIZERS)
def test_every_optimizer(rule):
    compare(LAYERS, "sparse_categorical_crossentropy", ["accuracy"], "float64", rule, weight_decay=0.1, maximize=False)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_weights_in_splits(data):
    """Layers whose rows of w are split, the last split shorter: every tile once, none twice."""
    inputs, width = data.draw(st.integers(1, 90)), data.draw(st.integers(1, 70))
    batch, dtype = data.draw(st.integers(1, 12)), data.draw(st.sampled_from(["float32", "float64"]))
    activation = data.draw(st.sampled_from(["relu", "silu"]))  # whose slopes need y, and z
    layers = [DenseSpec(inputs, width, activation), DropoutSpec(0.2), DenseSpec(width, 3, bias=False)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dense, "SPLIT_FLOPS", 0)
        patch.setattr(dense, "SPLITS", data.draw(st.integers(2, 4)))
        patch.setattr(dense, "DW_ELEMENTS", data.draw(st.sampled_from([8 * 70, dense.DW_ELEMENTS])))
        compare(layers, "sparse_categorical_crossentropy", ["accuracy"], dtype, n=3 * batch + 1, batch_size=batch)


@pytest.mark.parametrize("batch_size", [64, 100, 256])
def test_products_of_real_size(batch_size, capfd):
    layers = [DenseSpec(784, 256, "relu"), DenseSpec(256, 10)]
    assert dense.splits_of(batch_size, 784, 256)[0] > 1
    compare(layers, "sparse_categorical_crossentropy", ["accuracy"], "float64", "sgd", 2 * batch_size + 9, batch_size)
    assert capfd.readouterr().err == ""  # where a BLAS says what it does not like


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_random_networks(data):
    dtype = data.draw(st.sampled_from(["float32", "float64"]))
    width, layers = data.draw(st.integers(1, 20)), []
    for _ in range(data.draw(st.integers(1, 4))):
        if data.draw(st.booleans()):
            layers.append(DropoutSpec(data.draw(st.sampled_from([0.0, 0.1, 0.5]))))
        wide = data.draw(st.integers(1, 20))
        # Smooth ones: a kink between two roundings of z would be a difference, but no error.
        activation = data.draw(st.sampled_from(["linear", "tanh", "sigmoid", "silu", "softplus"]))
        layers.append(DenseSpec(width, wide, activation, data.draw(st.booleans())))
        width = wide
    n = data.draw(st.integers(1, 70))
    compare(
        layers, "mean_squared_error", ["mean_absolute_error"], dtype, n=n,
        batch_size=data.draw(st.integers(1, 80)), seed=data.draw(st.integers(0, 1000)),
    )  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_bits_do_not_depend_on_the_number_of_threads(dtype, threads):
    widths = (7, 9, 6) if INTERPRETED else (64, 300, 130)
    layers = [
        DropoutSpec(0.1),
        DenseSpec(widths[0], widths[1], "relu"),
        DropoutSpec(0.5),
        DenseSpec(widths[1], widths[2], "silu", False),
        DenseSpec(widths[2], 10),
    ]
    n = 40 if INTERPRETED else 700
    x, y = data_for(np.random.default_rng(0), "sparse_categorical_crossentropy", n, widths[0], 10, dtype)
    results = []
    for count in (1, 2, 4):
        with threads(count):
            run = Run(cpu, layers, "sparse_categorical_crossentropy", ["accuracy"], dtype)
            losses = [run.train(x, y, np.random.default_rng(e).permutation(n), 100) for e in range(2)]
            results.append((run.params, losses, run.net.evaluate(x, y, 300), run.net.predict(x, 300)))
    for params, losses, evaluated, predicted in results[1:]:
        for a, b in zip(params, results[0][0], strict=True):
            np.testing.assert_array_equal(a, b)
        for a, b in zip([*losses, evaluated], [*results[0][1], results[0][2]], strict=True):
            np.testing.assert_array_equal(a.losses, b.losses)
            assert a.metrics == b.metrics
        np.testing.assert_array_equal(predicted, results[0][3])


@pytest.mark.parametrize(("far", "batch_size", "expected"), [(0, 260, 2), (0, 32, 1), (1 << 30, 260, 1)])
def test_rows_from_far_away_are_worth_threads(far, batch_size, expected, monkeypatch):
    seen, original = [], network.num_threads_for
    monkeypatch.setattr(network, "CACHED_BYTES", far)

    def num_threads_for(*work):
        seen.append(original(*work))
        return seen[-1]

    monkeypatch.setattr(network, "num_threads_for", num_threads_for)
    x, y = data_for(np.random.default_rng(0), "mean_squared_error", 600, 3, 1, "float32")
    params = []
    for count in (1, 2):
        monkeypatch.setattr(launch, "_threads", count)
        run = Run(cpu, [DenseSpec(3, 1)], "mean_squared_error", [], "float32", rule="sgd")
        run.train(x, y, np.random.default_rng(0).permutation(600), batch_size)
        params.append(run.params)
    assert seen == [1, expected]
    for one, other in zip(*params, strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_same_program_serves_other_rows_seeds_and_arrays():
    """A program that is kept from epoch to epoch must not be used for other data than it was built for."""
    rng = np.random.default_rng(0)
    loss, layers = "sparse_categorical_crossentropy", LAYERS
    ours, theirs = (Run(backend, layers, loss, ["accuracy"], "float64") for backend in (cpu, reference))
    cases = [(40, 16, 1), (40, 16, 1), (40, 8, 1), (40, 8, 2), (24, 8, 2), (33, 8, 2)]
    for i, (n, batch_size, seed) in enumerate(cases):
        x, y = data_for(np.random.default_rng(i // 2), loss, n, 7, 3, "float64")
        order = rng.permutation(n)[: n - i]
        assert_agree(*(run.train(x, y, order, batch_size, seed) for run in (ours, theirs)), "float64")


def test_one_layer_learns_a_line():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((500, 3))
    y = x @ np.array([[1.0], [-2.0], [0.5]]) + 3
    run = Run(cpu, [DenseSpec(3, 1)], "mean_squared_error", ["r2"], "float64", rule="sgd")
    for epoch in range(30):
        run.train(x, y, np.random.default_rng(epoch).permutation(500), 20, lr=0.05)
    np.testing.assert_allclose(run.params[0].ravel(), [1, -2, 0.5], atol=1e-6)
    np.testing.assert_allclose(run.params[1], 3, atol=1e-6)
    assert run.net.evaluate(x, y).metrics["r2"] > 1 - 1e-9


def test_progress_is_told_and_the_last_call_is_complete(monkeypatch):
    monkeypatch.setattr(program, "WATCHED_FLOPS", 0)
    seen = []
    x, y = data_for(np.random.default_rng(0), "mean_squared_error", 64, 7, 3, "float32")
    run = Run(cpu, LAYERS, "mean_squared_error", [], "float32")
    totals = run.train(x, y, np.arange(64), 8, progress=lambda steps, loss: seen.append((steps, loss)))
    assert seen[-1][0] == 8
    np.testing.assert_allclose(seen[-1][1], totals.losses.mean(), rtol=1e-12)
    assert run.net.steps_done == 8
    assert [steps for steps, _ in seen] == sorted(steps for steps, _ in seen)


def test_an_interrupted_pass_ends_between_two_batches(monkeypatch):
    monkeypatch.setattr(program, "WATCHED_FLOPS", 0)
    n, batch_size = (3_000, 1) if INTERPRETED else (400_000, 4)
    x, y = data_for(np.random.default_rng(0), "mean_squared_error", n, 7, 3, "float32")

    def interrupt(steps, loss):
        raise KeyboardInterrupt

    run = Run(cpu, LAYERS, "mean_squared_error", [], "float32")
    with pytest.raises(KeyboardInterrupt):
        run.train(x, y, np.arange(n), batch_size, progress=interrupt)
    done = run.net.steps_done
    assert 0 < done < n // batch_size
    again = Run(cpu, LAYERS, "mean_squared_error", [], "float32")
    again.train(x, y, np.arange(done * batch_size), batch_size)
    for a, b in zip(run.params, again.params, strict=True):
        np.testing.assert_array_equal(a, b)


def test_predict_and_evaluate_leave_everything_alone():
    x, y = data_for(np.random.default_rng(0), "mean_squared_error", 30, 7, 3, "float32")
    run = Run(cpu, LAYERS, "mean_squared_error", ["r2"], "float32")
    kept = [a.copy() for a in (*run.params, x, y)]
    assert run.net.predict(np.empty((0, 7), "float32")).shape == (0, 3)
    np.testing.assert_array_equal(run.net.predict(x, 7), run.net.predict(x, 7))
    run.net.evaluate(x, y)
    for a, b in zip(kept, (*run.params, x, y), strict=True):
        np.testing.assert_array_equal(a, b)


def test_dropout_masks_differ_between_steps_and_layers_but_not_between_runs():
    layers = [DropoutSpec(0.5), DenseSpec(200, 1, bias=False)]
    x, y = np.ones((2, 200)), np.zeros((2, 1))

    def losses(seed, steps=3):
        run = Run(cpu, layers, "mean_squared_error", [], "float64", rule="sgd")
        run.params[0][...] = 1
        return [run.train(x, y, np.arange(2), 2, seed=seed, lr=0.0).losses[0] for _ in range(steps)]

    assert losses(1) == losses(1)
    assert len(set(losses(1))) == 3
    assert losses(1) != losses(2)
