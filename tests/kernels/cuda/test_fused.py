"""Training of small networks as one kernel: against the reference, and against the same pass launch by launch."""

from __future__ import annotations

import itertools
import signal

import numpy as np
import pytest
from helpers_cuda import SIMULATED, require_device

require_device()
import hypothesis
from helpers_driver import install
from helpers_network import LAYERS, TOLERANCE, Run, assert_agree, compare, data_for
from hypothesis import strategies as st

from fastopt.kernels import cuda, reference
from fastopt.kernels.cuda.fused import kernel, select
from fastopt.kernels.cuda.runtime import gpu as gpu_
from fastopt.kernels.cuda.runtime import memory
from fastopt.kernels.cuda.training import data_feed, network
from fastopt.kernels.formulas import ACTIVATIONS, LOSSES, METRICS, OPTIMIZERS
from fastopt.kernels.spec import DenseSpec, DropoutSpec, LossSpec

pytestmark = pytest.mark.gpu

MSE, LABELS = "mean_squared_error", "sparse_categorical_crossentropy"
SMALL = [DenseSpec(3, 4, "tanh"), DenseSpec(4, 2)]


def each(names, few):
    """All rows of a table, or on a device a few, for each is a kernel that takes 10 s to compile."""
    return list(names) if SIMULATED else few


@pytest.fixture(autouse=True)
def launches(monkeypatch, launch_by_launch):
    """The batches of every launch of such a kernel."""
    made = []
    call = select.Fused.__call__

    def spy(self, chunk):
        made.append(len(chunk))
        call(self, chunk)

    monkeypatch.setattr(select.Fused, "__call__", spy)
    monkeypatch.setenv("FASTOPT_CUDA_FUSED", "1")
    return made


@pytest.fixture
def compared(launches):
    """`compare`, and a check that the kernel trained."""

    def compared(*args, **options):
        compare(*args, **options)
        assert launches
        launches.clear()

    return compared


# ---------------------------------------------------------------- against the reference
@pytest.mark.parametrize(
    ("loss", "last"),
    [
        (loss, last)
        for loss in each(LOSSES, [LABELS, "categorical_crossentropy", "binary_crossentropy", "huber"])
        for last in ["linear", LOSSES[loss].link]
        if last
    ],
)
def test_every_loss(loss, last, compared):
    # counts of classes are for graphs
    metrics = [name for name, row in METRICS.items() if row.goes_with(LOSSES[loss]) and not row.of_counts]
    metrics += ["top_2_accuracy"] if LOSSES[loss].by_row else []
    layers = [DenseSpec(3, 4, "tanh"), DenseSpec(4, 3, last)]
    compared(layers, loss, metrics, "float64", n=10, epochs=1)
    compared(layers, loss, metrics[:1], "float32", n=5, epochs=1)


@pytest.mark.parametrize("loss", ["binary_crossentropy", "hinge", MSE])
def test_one_output(loss, compared):
    layers = [DenseSpec(3, 1, LOSSES[loss].link or "linear")]
    compared(layers, loss, ["accuracy"], "float64", n=9, epochs=1)
    if LOSSES[loss].link:
        compared(layers, loss, ["accuracy", "r2"], "float64", n=9, epochs=1)


@pytest.mark.parametrize("activation", each(ACTIVATIONS, ["relu", "gelu", "tanh"]))
def test_every_activation(activation, compared):
    compared([DenseSpec(3, 5, activation), DenseSpec(5, 4, activation, False)], MSE, [], "float64", n=6, epochs=1)


@pytest.mark.parametrize("rule", each(OPTIMIZERS, ["adam", "sgd", "rmsprop_centered_momentum"]))
def test_every_optimizer(rule, compared):
    compared([DenseSpec(3, 2)], MSE, [], "float64", rule, n=6, weight_decay=0.1)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("depth", [1, 4])
def test_depth_and_dropout(depth, dtype, compared):
    widths = [5, 8, 3, 4][:depth]
    layers = [DropoutSpec(0.2)]
    for width, outputs in zip(widths, [*widths[1:], 3], strict=True):
        layers += [DenseSpec(width, outputs, "silu" if width < 5 else "tanh", width != 3), DropoutSpec(0.4)]
    compared([*layers[:-2], layers[-2]._replace(activation="softmax")], LABELS, ["accuracy"], dtype, n=9)


def test_a_dropout_of_outputs_and_one_of_nothing(compared):
    layers = [DropoutSpec(0.0), DropoutSpec(0.3), DenseSpec(3, 2, "sigmoid"), DropoutSpec(0.5)]
    compared(layers, "binary_crossentropy", [], "float64", n=8, epochs=1)


def test_parameters_of_a_loss(compared, launches):
    x, y = data_for(np.random.default_rng(0), LABELS, 9, 3, 3, "float64")
    totals = []
    for setting in ("0", "1"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("FASTOPT_CUDA_FUSED", setting)
            run = Run(cuda, [DenseSpec(3, 3, "softmax")], LABELS, ["accuracy"], "float64")
            run.net.net = run.net.net._replace(loss=run.net.net.loss._replace(params={"label_smoothing": 0.2}))
            totals.append(run.train(x, y, np.arange(9), 4))
    assert launches == [3]
    assert_agree(*totals, "float64")


sizes = st.integers(1, 18)


@hypothesis.settings(max_examples=15, deadline=None, suppress_health_check=list(hypothesis.HealthCheck))
@hypothesis.given(sizes, sizes, sizes, st.integers(1, 11), st.integers(1, 15))
def test_sizes(launches, inputs, hidden, outputs, batch, rows):
    """Tiles of both sizes, and incomplete ones."""
    layers = [DenseSpec(inputs, hidden, "tanh"), DenseSpec(hidden, outputs)]
    x, y = data_for(np.random.default_rng(0), MSE, rows, inputs, outputs, "float64")
    ours, theirs = (Run(backend, layers, MSE, [MSE], "float64", "momentum") for backend in (cuda, reference))
    launches.clear()
    assert_agree(*(run.train(x, y, np.arange(rows)[::-1].copy(), batch) for run in (ours, theirs)), "float64")
    assert launches == [-(-rows // batch)]
    for a, b in zip(ours.params, theirs.params, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


def test_learning_rates_of_their_own_for_every_step(compared):
    compared(SMALL, MSE, [], "float64", "momentum", n=9, batch_size=4, lr=np.array([0.1, 0.01, 0.2]))


# ---------------------------------------------------------------- against launch by launch
def trained(dtype="float32", layers=LAYERS, epochs=2):
    x, y = data_for(np.random.default_rng(0), LABELS, 14, 3, 3, dtype)
    run, found = Run(cuda, layers, LABELS, ["accuracy"], dtype), []
    for epoch in range(epochs):
        order = np.random.default_rng(epoch).permutation(14)[1:]
        found.append(run.train(x, y, order, 3)[:2])
    return *found, *run.params, *(state for states in run.states for state in states)


def assert_same_bits(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_equal(a, b)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_same_masks_and_nearly_the_same_bits(dtype, monkeypatch):
    ours = trained(dtype)
    monkeypatch.setenv("FASTOPT_CUDA_FUSED", "0")
    for a, b in zip(ours, trained(dtype), strict=True):
        if isinstance(a, tuple):
            np.testing.assert_allclose(a[0], b[0], rtol=TOLERANCE[dtype])
            assert a[1] == b[1]
        else:
            np.testing.assert_allclose(a, b, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def test_the_same_bits_in_every_run_and_however_many_batches_a_launch_has(monkeypatch, launches):
    first = trained()
    assert launches == [5, 5]
    assert_same_bits(trained(), first)
    launches.clear()
    monkeypatch.setattr(data_feed, "FIRST_CHUNK", 1)
    monkeypatch.setattr(data_feed, "SECONDS_AHEAD", 1000)
    assert_same_bits(trained(), first)
    assert launches == [1, 2, 2, 4, 1]


def test_the_same_bits_from_streamed_data(monkeypatch, launches):
    first = trained()
    launches.clear()
    monkeypatch.setattr(data_feed, "MEMORY_SHARE", 0)
    monkeypatch.setattr(data_feed, "PART_BYTES", 200)
    assert_same_bits(trained(), first)
    assert len(launches) > 2


@pytest.mark.skipif(not SIMULATED, reason="a device does not tell what it was asked for")
@pytest.mark.parametrize("loss", [LABELS, MSE])
def test_the_next_batch_is_asked_for(loss, monkeypatch, launches):
    """Every sector of its rows, and no other memory; none in the last batch of a launch."""
    asked, passes, fill = set(), [], select._fill
    monkeypatch.setattr(kernel, "prefetch", asked.add)
    monkeypatch.setattr(select, "_fill", lambda *args: (passes.append(args[2]), fill(*args)))
    monkeypatch.setattr(data_feed, "FIRST_CHUNK", 3)
    x, y = data_for(np.random.default_rng(0), loss, 40, 11, 3, "float32")
    order = np.random.default_rng(1).permutation(40)[:27]
    Run(cuda, [DenseSpec(11, 3)], loss, [], "float32").train(x, y, order, 5)
    (data,) = passes
    assert (launches[0], sum(launches)) == (3, 6)
    followers = set(range(6)) - {0, *np.cumsum(launches).tolist()}
    batches = [order[start : start + 5] for start in range(0, 27, 5)]
    sizes = (data.x, 11 * 4), (data.y, 8 if loss == LABELS else 3 * 4)
    rows = [(first + row * size, size) for first, size in sizes for n in followers for row in batches[n]]
    assert {at // kernel.SECTOR for at in asked} == {
        at // kernel.SECTOR for first, size in rows for at in range(first, first + size)
    }
    assert all(any(first <= at < first + size for first, size in rows) for at in asked)


def test_the_same_bits_with_states_in_the_memory_of_the_device(monkeypatch, launches):
    """States are there if not all fits; with even less shared memory there is no such kernel."""
    first, choose = trained(epochs=1), select.choose
    net = cuda.Network(LAYERS, [], "float32", LossSpec(LABELS), ["accuracy"]).net

    def resident(most):
        choice = choose(net, "adam", True, 3, most)
        return choice and bool(select.split_records(choice.records)[0]["states_resident"])

    most = 1 << 16
    for wanted in (True, False):
        while resident(most) is wanted:
            most -= 16
        monkeypatch.setattr(select, "choose", lambda *args, most=most: choose(*args[:4], most, *args[5:]))
        launches.clear()
        others = trained(epochs=1)
        assert launches == [5] * wanted
        if wanted:
            assert_same_bits(others, first)


# ---------------------------------------------------------------- where it is not used
@pytest.mark.parametrize(
    ("layers", "options"),
    [
        (SMALL, {"accumulate": 2}),
        (SMALL, {"clip_norm": 1.0}),
        ([DropoutSpec(0.3), DropoutSpec(0.2), *SMALL], {}),
    ],
    ids=["accumulate", "clip_norm", "two dropouts"],
)
def test_what_is_done_launch_by_launch(layers, options, launches):
    compare(layers, MSE, [], "float64", n=9, epochs=1, **options)
    assert not launches


def test_turned_off(monkeypatch, launches):
    monkeypatch.setenv("FASTOPT_CUDA_FUSED", "0")
    compare(SMALL, MSE, [], "float64", n=6, epochs=1)
    assert not launches


@pytest.mark.parametrize(
    ("widths", "batch", "wanted"),
    [
        ((64, 32, 10), 32, True),
        ((30, 64, 64, 1), 32, True),
        ((8, 16, 1), 256, True),
        ((784, 256, 128, 10), 64, False),  # does not fit
        ((64, 64, 64, 10), 64, False),  # too much work for one multiprocessor
        ((784, 16, 10), 16, False),
    ],
)
def test_by_the_estimate(widths, batch, wanted, monkeypatch):
    """Real sizes, on the device that the figures are for."""
    monkeypatch.delenv("FASTOPT_CUDA_FUSED")
    layers = [DenseSpec(*pair, "relu") for pair in itertools.pairwise(widths)]
    net = cuda.Network(layers, [], "float32", LossSpec(LABELS), []).net
    assert bool(select.choose(net, "adam", True, batch, 227 << 10)) is wanted


# ---------------------------------------------------------------- progress, interrupts, the driver
@pytest.mark.own_process
def test_progress_and_interrupts(monkeypatch, launches):
    monkeypatch.setattr(network, "REPORT", 0)
    monkeypatch.setattr(data_feed, "FIRST_CHUNK", 2)
    monkeypatch.setattr(data_feed, "SECONDS_AHEAD", 1000)
    x, y = data_for(np.random.default_rng(0), MSE, 13, 3, 2, "float32")
    run, seen = Run(cuda, SMALL, MSE, [], "float32"), []
    totals = run.train(x, y, np.arange(13), 2, progress=lambda steps, loss: seen.append((steps, loss)))
    assert [steps for steps, _ in seen] == [2, 6, 7, 7]
    np.testing.assert_allclose(seen[0][1], totals.losses[:2].mean())
    launches.clear()

    def interrupt(steps, loss):
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(data_feed.Resident, "chunks", lambda *args: iter_chunks())
    with pytest.raises(KeyboardInterrupt):
        run.train(x, y, np.arange(13), 2, progress=interrupt)
    assert run.net.steps_done == sum(launches) < 7


def iter_chunks():
    yield range(3)
    yield range(3, 5)
    yield range(5, 7)


@pytest.mark.skipif(not SIMULATED, reason="where there is a device, the other tests ask the real driver")
def test_by_the_driver(monkeypatch, launches):
    """Launches ask the driver for shared memory, and no memory is freed too early."""
    first = trained()
    fake = install(monkeypatch)
    device = gpu_.Gpu(1)
    monkeypatch.setattr(network, "gpu_of", lambda places: device)
    monkeypatch.setattr(memory, "gpu_of", lambda places: device)
    assert_same_bits(trained(), first)
    assert fake.calls["cuFuncSetAttribute"] == 2
    assert device.shared_bytes == 227 << 10
