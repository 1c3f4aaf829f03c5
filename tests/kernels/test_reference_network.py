"""The NumPy reference's network: gradients by finite differences, batches, dropout, metrics, interrupts."""

import math
import signal
import threading

import numpy as np
import pytest

from fastopt.kernels import reference
from fastopt.kernels.reference import Network, maths
from fastopt.kernels.reference.metrics import Rule
from fastopt.kernels.spec import (
    MOVING,
    ActivationSpec,
    Batches,
    BatchNormSpec,
    DenseSpec,
    DropoutSpec,
    GaussianNoiseSpec,
    LayerNormSpec,
    LossSpec,
    OptimizerSteps,
    parameter_shapes,
)

SGD = {"weight_decay": 0.0, "maximize": False, "l1": 0.0, "clip_value": None}
ADAM = {**SGD, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8}
MSE = LossSpec("mean_squared_error")
SPARSE = LossSpec("sparse_categorical_crossentropy")


def parameters(layers, dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    params = []
    for layer in layers:
        for name, shape in parameter_shapes(layer).items():
            drawn = rng.normal(size=shape)
            params.append((np.abs(drawn) if name == "moving_variance" else drawn).astype(dtype))
    return params


def sgd(network, batches, lr, step=0, seed=0, clip_norm=None, states=None, **more):
    states = states or [() for _ in network.params]
    steps = OptimizerSteps("sgd", states, SGD, np.full(batches.steps, lr), step, clip_norm)
    return network.train(batches, steps, seed, **more)


def data(n=10, inputs=3, outputs=2, loss=MSE, dtype=np.float64):
    rng = np.random.default_rng(7)
    x = rng.normal(size=(n, inputs)).astype(dtype)
    if loss.name.startswith("sparse"):
        return x, rng.integers(0, outputs, n)
    t = rng.normal(size=(n, outputs))
    if "crossentropy" in loss.name:
        t = np.exp(t) / np.exp(t).sum(axis=1, keepdims=True)
    return x, t.astype(dtype)


NETWORKS = {
    **{name: ([DenseSpec(3, 4, name), DenseSpec(4, 2)], MSE) for name in reference.ACTIVATIONS},
    **{f"{name} output": ([DenseSpec(3, 2, name)], MSE) for name in reference.ACTIVATIONS},
    "deep": (
        [DenseSpec(3, 5, "tanh"), DenseSpec(5, 4, "gelu"), DenseSpec(4, 3, "elu"), DenseSpec(3, 2)],
        MSE,
    ),
    "no bias": ([DenseSpec(3, 4, "silu", bias=False), DenseSpec(4, 2, bias=False)], MSE),
    "softmax": ([DenseSpec(3, 4, "tanh"), DenseSpec(4, 2, "softmax")], SPARSE),
    "logits": ([DenseSpec(3, 4, "tanh"), DenseSpec(4, 2)], SPARSE),
    "soft targets": (
        [DenseSpec(3, 2, "softmax")],
        LossSpec("categorical_crossentropy", {"label_smoothing": 0.1}),
    ),
    "fused sigmoid": ([DenseSpec(3, 2, "sigmoid")], LossSpec("binary_crossentropy")),
    "dropout first": ([DropoutSpec(0.3), DenseSpec(3, 4, "tanh"), DenseSpec(4, 2)], MSE),
    "dropout between": ([DenseSpec(3, 4, "gelu"), DropoutSpec(0.5), DenseSpec(4, 2)], MSE),
    "dropout last": ([DenseSpec(3, 2, "tanh"), DropoutSpec(0.5)], MSE),
    "activations": (
        [DenseSpec(3, 4), BatchNormSpec(4, 0.1), ActivationSpec(4, "tanh"), ActivationSpec(4, "gelu"), DenseSpec(4, 2)],
        MSE,
    ),
    "batch norm": ([DenseSpec(3, 4, "tanh"), BatchNormSpec(4, 0.1), DenseSpec(4, 2)], MSE),
    "layer norm": ([DenseSpec(3, 4, "tanh"), LayerNormSpec(4, 0.1), DenseSpec(4, 2)], MSE),
    "normalization first": ([BatchNormSpec(3, scale=False), LayerNormSpec(3, center=False), DenseSpec(3, 2)], MSE),
    "normalization with dropout and noise": (
        [
            GaussianNoiseSpec(0.1), DenseSpec(3, 4), BatchNormSpec(4), DropoutSpec(0.2), LayerNormSpec(4),
            DenseSpec(4, 2),
        ],
        SPARSE,
    ),
    "dropout twice": ([DropoutSpec(0.2), DropoutSpec(0.2), DenseSpec(3, 2)], MSE),
}


@pytest.mark.parametrize(("layers", "loss"), NETWORKS.values(), ids=NETWORKS)
def test_gradients_by_finite_differences(layers, loss):
    params = parameters(layers)
    start = [p.copy() for p in params]
    x, y = data(loss=loss)
    batches = Batches(x, y, np.array([4, 1, 7, 2, 0]), 5)
    network = Network(layers, params, np.float64, loss, [])
    names = [name for layer in layers for name in parameter_shapes(layer)]
    more = {"step": 3, "seed": 5, "states": [None if name in MOVING else () for name in names]}
    sgd(network, batches, lr=1.0, **more)
    gradients = [a - b for a, b in zip(start, params, strict=True)]
    for p, a in zip(params, start, strict=True):
        p[...] = a

    h = 1e-3
    for name, p, gradient in zip(names, params, gradients, strict=True):
        for i in np.ndindex(p.shape) if name not in MOVING else ():
            values = []
            for k in (-2, -1, 1, 2):
                was, p[i] = p[i], p[i] + k * h
                values.append(sgd(network, batches, lr=0.0, **more).losses[0])
                p[i] = was
            expected = (8 * (values[2] - values[1]) - (values[3] - values[0])) / (12 * h)
            assert gradient[i] == pytest.approx(expected, rel=1e-8, abs=1e-10)


def test_two_steps_by_hand():
    # z = 2 w, loss (2 w - t)^2, gradient 4 (2 w - t)
    # w = 1, t = 1: loss 1, gradient 4, w - 0.1 * 4 = 0.6; t = 3: loss 1.8^2, gradient -7.2, w + 0.05 * 7.2
    w = np.array([[1.0]])
    network = Network([DenseSpec(1, 1, bias=False)], [w], np.float64, MSE, ["mean_absolute_error"])
    batches = Batches(np.array([[2.0], [2.0]]), np.array([[3.0], [1.0]]), np.array([1, 0]), 1)
    totals = network.train(batches, OptimizerSteps("sgd", [()], SGD, np.array([0.1, 0.05])), 0)
    np.testing.assert_allclose(totals.losses, [1.0, 3.24], rtol=1e-14)
    np.testing.assert_allclose(w, [[0.6 + 0.36]], rtol=1e-14)
    assert totals.metrics == {"mean_absolute_error": pytest.approx((1 + 1.8) / 2)}
    assert totals.seconds > 0
    assert network.steps_done == 2


def test_the_last_batch_may_be_short():
    layers = [DenseSpec(3, 4, "tanh"), DenseSpec(4, 2)]
    x, y = data()
    order = np.random.default_rng(1).permutation(10)
    together, apart = parameters(layers), parameters(layers)
    totals = sgd(Network(layers, together, np.float64, MSE, ["r2"]), Batches(x, y, order, 4), lr=0.1)
    assert totals.losses.shape == (3,)
    network = Network(layers, apart, np.float64, MSE, [])
    for i, rows in enumerate((order[:4], order[4:8], order[8:])):
        batch = Batches(x[rows], y[rows], np.arange(len(rows)), len(rows))
        assert sgd(network, batch, lr=0.1).losses[0] == totals.losses[i]
    assert all(np.array_equal(a, b) for a, b in zip(together, apart, strict=True))


def test_no_batches():
    layers = [DenseSpec(3, 2)]
    network = Network(layers, parameters(layers), np.float64, MSE, ["r2", "accuracy"])
    totals = sgd(network, Batches(*data(), np.zeros(0, np.int64), 4), lr=0.1)
    assert totals.losses.shape == (0,)
    assert all(math.isnan(value) for value in totals.metrics.values())


@pytest.mark.parametrize("loss", [MSE, SPARSE])
def test_float32_stays_float32(loss, monkeypatch):
    layers = [DropoutSpec(0.1), *(DenseSpec(3, 3, name) for name in reference.ACTIVATIONS), DenseSpec(3, 2)]
    params = parameters(layers, np.float32)
    jobs = []
    monkeypatch.setattr(reference.network, "update", lambda some, scale: jobs.extend(some))
    x, y = data(loss=loss, dtype=np.float32)
    network = Network(layers, params, np.float32, loss, ["accuracy"])
    totals = sgd(network, Batches(x, y, np.arange(10), 4), lr=0.1)
    assert {job.g.dtype for job in jobs} == {np.dtype(np.float32)}
    assert all(np.isfinite(job.g).all() for job in jobs)
    assert network.predict(x).dtype == np.float32
    assert totals.losses.dtype == np.float64


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-6), (np.float64, 1e-14)])
def test_batch_size_does_not_matter_to_evaluate_and_predict(dtype, tolerance):
    layers = [DenseSpec(3, 4, "gelu"), DropoutSpec(0.5), DenseSpec(4, 2, "softmax")]
    network = Network(layers, parameters(layers, dtype), dtype, SPARSE, ["accuracy"])
    x, y = data(50, loss=SPARSE, dtype=dtype)
    whole, parts = network.evaluate(x, y), network.evaluate(x, y, batch_size=7)
    assert whole.losses.shape == (1,)
    np.testing.assert_allclose(whole.losses, parts.losses, rtol=tolerance)
    assert whole.metrics == parts.metrics
    predictions = network.predict(x)
    np.testing.assert_allclose(network.predict(x, batch_size=7), predictions, rtol=10 * tolerance)
    np.testing.assert_allclose(predictions.sum(axis=1), 1, rtol=1e-6)
    assert whole.losses[0] == pytest.approx(-np.log(predictions[np.arange(50), y]).mean(), rel=1e-6)
    assert whole.metrics["accuracy"] == np.mean(predictions.argmax(axis=1) == y)


def test_a_network_without_a_loss_predicts():
    layers = [DenseSpec(3, 2, "softmax")]
    network = Network(layers, parameters(layers), np.float64, None, [])
    x, y = data()
    np.testing.assert_allclose(network.predict(x).sum(axis=1), 1)
    assert network.predict(x[:0]).shape == (0, 2)
    with pytest.raises(ValueError, match="only predict"):
        network.evaluate(x, y)


ROWS = Rule(by_output=False)


def metric(name, outputs, targets, rule=ROWS, batch=3):
    row = reference.METRICS[name](rule)
    for i in range(0, len(outputs), batch):
        row.add(outputs[i : i + batch], targets[i : i + batch])
    return row.result()


def test_accuracy():
    outputs = np.array([[0.0, 1], [1, 1], [2, 1], [0, 3]])  # argmax 1, 0 (the first of a tie), 0, 1
    assert metric("accuracy", outputs, np.array([1, 0, 1, 1])) == 3 / 4
    assert metric("accuracy", outputs, np.array([[0, 1], [0, 1], [1, 0], [0.4, 0.6]])) == 3 / 4
    logits = np.array([[0.0], [0.1], [-1], [2]])
    assert metric("accuracy", logits, np.array([[0.0], [1], [1], [1]]), Rule(True, (0, 0.5))) == 3 / 4
    assert metric("accuracy", logits, np.array([[-1.0], [1], [1], [1]]), Rule(True, (0, 0))) == 3 / 4
    signs = np.array([[-1.0, 1], [1, 1], [1, -1], [-1, 1]])
    assert metric("accuracy", outputs - 0.5, signs, Rule(True, (0, 0))) == 7 / 8
    outputs[1, 0] = np.nan  # never right, whatever it is compared with
    assert metric("accuracy", outputs, np.array([1, 0, 1, 1])) == 2 / 4
    assert metric("accuracy", outputs, np.array([[0.0, 1], [0, 1], [1, 1], [0, 0]]), Rule(True)) == 6 / 8


@pytest.mark.parametrize("loss", reference.LOSSES)
def test_one_output_accuracy_of_every_loss(loss):
    if reference.LOSSES[loss].link == "softmax":
        pytest.skip("has no use for one output")
    low, high = (-1, 1) if loss in ("hinge", "perceptron") else (0, 1)
    x = np.array([[-0.2], [0.2], [0.4], [0.6]])
    y = np.array([[low], [low], [high], [high]], float)
    activation = "linear" if loss != "binary_crossentropy" else "sigmoid"
    network = Network(
        [DenseSpec(1, 1, activation, bias=False)], [np.ones((1, 1))], np.float64, LossSpec(loss), ["accuracy"]
    )
    above_zero = loss in ("hinge", "perceptron", "binary_crossentropy")  # else above 0.5
    assert network.evaluate(x, y).metrics["accuracy"] == 3 / 4
    assert network.evaluate(x, np.where(x > (0 if above_zero else 0.5), high, low).astype(float)).metrics == {
        "accuracy": 1
    }


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_regression_metrics(dtype):
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(3)
    t = (1e3 + rng.normal(size=(100, 3))).astype(dtype)  # far from 0: sums of squares would cancel
    z = (t + 0.3 * rng.normal(size=t.shape)).astype(dtype)
    exact = [a.astype(np.float64) for a in (t, z)]
    rtol = 1e-3 if dtype == np.float32 else 1e-9  # float32 holds 1000 to 6e-5
    for name, expected in [
        ("mean_squared_error", metrics.mean_squared_error(*exact)),
        ("mean_absolute_error", metrics.mean_absolute_error(*exact)),
        ("r2", metrics.r2_score(*exact, multioutput="variance_weighted")),
    ]:
        got = metric(name, z, t, batch=17)
        assert type(got) is float
        assert got == pytest.approx(expected, rel=rtol)


def test_r2_of_constant_targets():
    t = np.full((5, 2), 0.1)  # whose mean is not 0.1 to the bit
    assert metric("r2", t, t) == 1
    assert metric("r2", t + 1, t) == 0
    assert metric("r2", t + np.array([0, 1]), t) == 0.5
    assert math.isnan(metric("r2", t + np.array([0, np.nan]), t))
    t[:, 1] = range(5)
    assert metric("r2", t + np.array([7, 0]), t) == 1  # the first output has no weight beside the second
    assert metric("r2", t[:1] + 1, t[:1]) == 0


def splitmix_kept(seed, index, step, element, rate):
    """The rule for one element in Python's integers."""

    def mix(z):
        z ^= z >> 30
        z = z * 0xBF58476D1CE4E5B9 % 2**64
        z ^= z >> 27
        z = z * 0x94D049BB133111EB % 2**64
        return z ^ z >> 31

    golden = 0x9E3779B97F4A7C15
    key = mix((mix((seed + (index + 1) * golden) % 2**64) + step) % 2**64)
    return mix((key + (element + 1) * golden) % 2**64) >> 11 >= int(rate * 2**53)


@pytest.mark.parametrize("seed", [0, 12345, 2**63 + 11, -1])
def test_masks_follow_the_rule(seed):
    mask = maths.kept(seed, 2, 9, (5, 7), 0.4)
    expected = [splitmix_kept(seed, 2, 9, e, 0.4) for e in range(35)]
    assert mask.ravel().tolist() == expected


def test_splitmix64():
    # the first outputs of splitmix64 from seed 1234567, as published with the generator (rosettacode.org)
    state = np.array([1234567 + (i + 1) * maths.GOLDEN for i in range(3)], dtype=object) % 2**64
    outputs = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert maths.mix(state.astype(np.uint64)).tolist() == outputs


def test_mask_statistics():
    masks = np.array([maths.kept(3, 0, step, (64, 100), 0.3) for step in range(1, 51)])
    n = masks.size
    assert abs(masks.mean() - 0.7) < 5 * math.sqrt(0.21 / n)
    flat = masks.reshape(50, -1).astype(float) - 0.7
    for a, b in [(flat[:, 1:], flat[:, :-1]), (flat[1:], flat[:-1]), (flat[:, 100:], flat[:, :-100])]:
        assert abs((a * b).mean()) < 5 * 0.21 / math.sqrt(a.size)  # neighbours, steps, rows: uncorrelated
    assert maths.kept(3, 0, 1, (64, 100), 0.0).all()
    assert (
        maths.kept(3, 0, 1, (64, 100), 0.3) != maths.kept(4, 0, 1, (64, 100), 0.3)
    ).any()
    assert (
        maths.kept(3, 0, 1, (64, 100), 0.3) != maths.kept(3, 1, 1, (64, 100), 0.3)
    ).any()


def test_dropout_is_inverted_and_zero_where_dropped():
    layer = reference.dense.Dropout(DropoutSpec(0.75), 0)
    x = np.full((50, 40), -2, np.float32)
    x[0] = np.inf
    y = layer.forward(x, seed=0, step=1)
    assert y.dtype == np.float32
    assert set(np.unique(y)) == {-8, 0, np.inf}
    assert not np.signbit(y[y == 0]).any()


def test_training_repeats_itself_exactly_and_resumes():
    layers = [DropoutSpec(0.2), DenseSpec(3, 8, "relu"), DropoutSpec(0.5), DenseSpec(8, 2)]
    x, y = data(20)
    order = np.random.default_rng(0).permutation(20)

    def train(parts, seed=1):
        params = parameters(layers)
        states = [(np.zeros_like(p), np.zeros_like(p)) for p in params]
        network, losses, step = Network(layers, params, np.float64, MSE, []), [], 0
        for part in np.split(order, parts):
            batches = Batches(x, y, part, 4)
            steps = OptimizerSteps("adam", states, ADAM, np.full(batches.steps, 0.1), step)
            totals = network.train(batches, steps, seed)
            step += batches.steps
            losses.extend(totals.losses)
        return losses, np.concatenate([p.ravel() for p in params]).tobytes()

    once = train([])
    assert train([]) == once
    assert train([8, 12]) == once
    assert train([], seed=2) != once


def test_training_learns():
    layers = [DenseSpec(2, 16, "tanh"), DenseSpec(16, 2, "softmax")]
    params = parameters(layers, np.float32)
    states = [(np.zeros_like(p), np.zeros_like(p)) for p in params]
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (400, 2)).astype(np.float32)
    y = (x[:, 0] * x[:, 1] > 0).astype(np.int64)
    network = Network(layers, params, np.float32, SPARSE, ["accuracy"])
    batches = Batches(x, y, np.tile(np.arange(400), 40), 32)
    network.train(batches, OptimizerSteps("adam", states, ADAM, np.full(batches.steps, 0.01)), 0)
    assert network.evaluate(x, y).metrics["accuracy"] > 0.95


def linear(n=12):
    layers = [DenseSpec(3, 2)]
    x, y = data(n)
    network = Network(layers, parameters(layers), np.float64, MSE, [])
    return network, Batches(x, y, np.arange(n), 2)


def test_progress_comes_now_and_then(monkeypatch):
    clock = iter(np.arange(0, 100, 0.06))
    monkeypatch.setattr(reference.network.time, "perf_counter", lambda: float(next(clock)))
    network, batches = linear()
    calls = []
    losses = sgd(network, batches, lr=0.1, progress=lambda *call: calls.append(call)).losses
    assert [done for done, _ in calls] == [2, 4, 6]
    np.testing.assert_allclose([mean for _, mean in calls], [losses[:k].mean() for k in (2, 4, 6)])


def interrupt_in_the_third_batch(monkeypatch):
    calls, loss = [], reference.loss

    def interrupting(*arguments):
        calls.append(None)
        if len(calls) == 3:
            signal.raise_signal(signal.SIGINT)
        return loss(*arguments)

    monkeypatch.setattr(reference.network, "loss", interrupting)


@pytest.mark.own_process
def test_an_interrupt_waits_for_the_end_of_the_batch(monkeypatch):
    network, batches = linear()
    before = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        interrupt_in_the_third_batch(patch)
        with pytest.raises(KeyboardInterrupt):
            sgd(network, batches, lr=0.1)
    assert network.steps_done == 3
    assert signal.getsignal(signal.SIGINT) is before
    whole, _ = linear()
    sgd(whole, batches._replace(order=batches.order[:6]), lr=0.1)
    assert all(np.array_equal(a, b) for a, b in zip(network.params, whole.params, strict=True))


@pytest.mark.own_process
def test_an_ignored_interrupt_stays_ignored(monkeypatch):
    network, batches = linear()
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        interrupt_in_the_third_batch(monkeypatch)
        sgd(network, batches, lr=0.1)
    finally:
        signal.signal(signal.SIGINT, before)
    assert network.steps_done == 6


def test_training_in_another_thread():
    network, batches = linear()
    thread = threading.Thread(target=sgd, args=(network, batches, 0.1))
    thread.start()
    thread.join()
    assert network.steps_done == 6


def test_an_interrupt_from_progress_leaves_whole_steps(monkeypatch):
    monkeypatch.setattr(reference.network, "PROGRESS_SECONDS", 0.0)
    network, batches = linear()

    def stop(done, mean):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sgd(network, batches, lr=0.1, progress=stop)
    assert network.steps_done == 2
