"""Profiles of networks on the device: every launch has a name, a cost and a time; nothing else changes."""

from __future__ import annotations

import json
import logging
import types

import helpers_blaslt
import numpy as np
import pytest
from helpers_cuda import SIMULATED, require_device

require_device()
from helpers_driver import install
from helpers_network import LAYERS, Run, data_for

import fastopt
from fastopt.cli import main
from fastopt.kernels import costs, cuda
from fastopt.kernels.cuda.dense import blaslt
from fastopt.kernels.cuda.dense.gemm import Gemm
from fastopt.kernels.cuda.runtime import gpu as gpu_
from fastopt.kernels.cuda.training import marks, network, program
from fastopt.kernels.profile import recorder
from fastopt.kernels.spec import DenseSpec

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore::RuntimeWarning")]

LABELS = "sparse_categorical_crossentropy"
X, Y = data_for(np.random.default_rng(0), LABELS, 11, 3, 3, "float32")
NAMES = [
    "gather 3", "dense0.forward 3x5 linear", "dense0.activate 5 relu", "dropout 5",
    "dense1.forward 5x4 linear", "dense1.activate 4 gelu", "dense2.forward 4x3 linear", f"loss {LABELS}",
    "metric accuracy", "dense2.weights 4x3", "dense2.inputs 4x3", "dense1.slopes 4 gelu", "dense1.weights 5x4",
    "dense1.inputs 5x4", "dropout backward 5", "dense0.slopes 5 relu", "dense0.weights 3x5",
]  # fmt: skip


class Recorder:
    def __init__(self):
        self.passes = []

    def record(self, done):
        self.passes.append(done)


@pytest.fixture
def recorded():
    heard = Recorder()
    token = recorder.set(heard)
    yield heard.passes
    recorder.reset(token)


@pytest.fixture
def ranges(monkeypatch):
    """The ranges that were opened and closed, as if nvtx were there."""
    heard = []
    nvtx = types.SimpleNamespace(
        push_range=lambda name, domain: heard.append((domain, name)),
        pop_range=lambda domain: heard.append((domain, None)),
    )
    monkeypatch.setattr(marks, "_nvtx", lambda: nvtx)
    return heard


def trained(layers=LAYERS, **options):
    """All that comes out of two epochs, in batches of 4, 4 and 3 rows, of an evaluation and of a prediction."""
    run, found = Run(cuda, layers, LABELS, ["accuracy"], "float32"), []
    for _ in range(2):
        found.append(run.train(X, Y, np.arange(11), 4, **options)[:2])
    return *found, run.net.evaluate(X, Y, 5)[:2], run.net.predict(X, 5), *run.params


def assert_same_bits(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_equal(a, b)


def names(done):
    return [cost.name for cost in done.costs]


def test_every_launch_is_named_and_marked(monkeypatch, recorded):
    monkeypatch.setattr(marks, "_seen", set())
    trained()
    assert [(p.verb, p.batch, p.steps, p.is_continuation) for p in recorded] == [
        ("train", 4, 2, False), ("train", 3, 1, True), ("train", 4, 2, False), ("train", 3, 1, True),
        ("evaluate", 5, 2, False), ("evaluate", 1, 1, True), ("predict", 5, 2, False), ("predict", 1, 1, True),
    ]  # fmt: skip
    assert [list(p.marked_steps) for p in recorded] == [[1], [], [0, 1], [2], [1], [], [1], []]
    last = 0
    for done in recorded:
        assert done.device == cuda.gpu_of(()).name
        assert done.marks.shape == (1, len(done.marked_steps), 1 + 2 * len(done.costs))
        assert (np.diff(done.marks, axis=2) >= 0).all()
        assert (done.marks[..., 0] >= done.start).all()
        assert (np.diff(done.marks[0, :, 0]) > 0).all()
        assert last <= done.start <= done.end
        last = done.start
    if SIMULATED:  # elsewhere cuBLASLt may have algorithms for other epilogues
        assert names(recorded[0]) == [*NAMES, "apply adam", "finish"]
        assert names(recorded[6])[-3:] == ["softmax 3", "scatter 3", "finish"] or names(recorded[6])[-1] == "finish"


def test_costs_are_counted(recorded):
    trained([DenseSpec(3, 5, "tanh"), DenseSpec(5, 3)])
    found = {cost.name: cost for cost in recorded[2].costs}
    size = 3 * 5 + 5 + 5 * 3 + 3
    assert found["apply adam"] == costs.apply(size, "adam", 4)
    assert found["gather 3"] == costs.gather(3, 3, True, 4, labels=True)
    assert found[f"loss {LABELS}"] == costs.loss(LABELS, 3, True, 4)
    assert found["dense0.slopes 5 tanh"].row_bytes == 3 * 5 * 4
    assert found["dense1.inputs 5x3"].row_flops == 2 * 5 * 3
    products = [cost for name, cost in found.items() if name.startswith(("dense0.forward", "dense1.forward"))]
    assert sum(cost.row_flops for cost in products) == (2 * 3 + 1) * 5 + (2 * 5 + 1) * 3
    weights = found["dense1.weights 5x3"]
    assert weights.bytes == 4 * (5 * 3 + (3 if weights.row_flops > 2 * 5 * 3 else 0))


def test_steps_of_several_batches(monkeypatch, recorded):
    """Batches that end a step have launches of their own."""
    trained(accumulate=2, clip_norm=0.5)
    first, second, third = recorded[3:6]
    assert [list(p.marked_steps) for p in (first, second, third)] == [[0], [1], [2]]
    assert names(first)[-3:] == ["zero", "accumulate", "finish"]
    assert names(second)[-4:] == names(third)[-4:] == ["accumulate", "squares", "apply adam", "finish"]
    assert ("zero" in names(second), "zero" in names(third)) == (False, True)


def test_the_same_bits(recorded, ranges):
    ours = trained()
    token = recorder.set(None)
    theirs = trained()
    recorder.reset(token)
    assert_same_bits(ours, theirs)
    assert recorded


def test_ranges_have_the_names_of_layers(monkeypatch, ranges):
    trained()
    assert ranges == []
    monkeypatch.setenv("FASTOPT_NVTX", "1")
    trained()
    assert {domain for domain, _ in ranges} == {"fastopt"}
    depth = np.cumsum([1 if name else -1 for _, name in ranges])
    assert (depth.min(), depth.max(), depth[-1]) == (0, 2, 0)
    opened = [name for _, name in ranges if name]
    assert [name.split()[0] for name in opened if name.startswith("dense1") and "activate" not in name][:3] == [
        "dense1.forward", "dense1.slopes", "dense1.weights",
    ]  # fmt: skip
    assert opened.count("train batch") == opened.count("apply adam") == 6
    assert opened.count("evaluate batch") == 3


def test_ranges_without_the_package(monkeypatch, caplog):
    monkeypatch.setattr(marks, "_nvtx", lambda: None)
    monkeypatch.setenv("FASTOPT_NVTX", "1")
    with caplog.at_level(logging.WARNING, "fastopt"):
        trained()
    assert "the package nvtx is not installed" in caplog.messages[0]


def test_small_networks_as_one_kernel(monkeypatch, recorded):
    """The batches of a launch get the same share of its time each."""
    layers = [DenseSpec(3, 5, "relu"), DenseSpec(5, 3)]
    monkeypatch.setenv("FASTOPT_CUDA_FUSED", "1")
    ours = trained(layers)
    trained(layers)
    passes = [done for done in recorded if done.verb == "train"]
    assert [list(done.marked_steps) for done in passes][1:] == [[0, 1, 2]] * 3
    done = passes[-1]
    assert (done.rows, done.steps, names(done)) == (11, 3, ["fused 3-5-3"])
    (times,) = done.marks
    assert times.shape == (3, 3)
    assert (times[1:, 0] == times[:-1, 2]).all()
    np.testing.assert_allclose(np.diff(times[:, :2]), (times[-1, -1] - times[0, 0]) / 3, atol=2)
    (cost,) = done.costs
    assert cost.row_flops == (2 * 3 + 1) * 5 + (2 * 5 + 1) * 3 + 2 * (3 * 5 + 5 * 3) + 2 * 5 * 3
    token = recorder.set(None)
    assert_same_bits(ours, trained(layers))
    recorder.reset(token)


def test_what_does_not_fit_is_left_out(monkeypatch, recorded):
    trained()
    recorded.clear()
    monkeypatch.setattr(marks, "MARKS", 1)
    trained()
    assert [(list(p.marked_steps), p.steps) for p in recorded[:2]] == [([0], 3), ([0], 3)]


@pytest.mark.skipif(not SIMULATED, reason="the device's own driver is asked in the other tests")
def test_events_of_a_driver(monkeypatch, recorded):
    expected = trained()
    fake = install(monkeypatch)
    try:
        library = helpers_blaslt.Library(blaslt.library())
    except blaslt.BlasLtError:
        pytest.skip("needs cuBLASLt: pip install nvidia-cublas")
    monkeypatch.setattr(blaslt, "library", lambda: library)
    device = gpu_.Gpu(1)
    gemm = Gemm(device)
    monkeypatch.setattr(network, "gpu_of", lambda places: device)
    monkeypatch.setattr(program, "gemm_of", lambda gpu: gemm)
    recorded.clear()
    assert_same_bits(trained(), expected)
    assert not fake.calls["cuStreamBeginCapture_v2"]
    done = recorded[2]
    assert (done.device, done.marks.shape[1]) == ("A device", 2)
    # The driver's clock moves by a microsecond with every event that is recorded.
    np.testing.assert_array_equal(np.diff(done.marks[0]), [[1000, 1000] * (len(done.costs) - 1) + [1000, 0]] * 2)


def test_tables_and_traces(tmp_path, capsys):
    path, table = tmp_path / "trace.json", tmp_path / "table.csv"
    rows = np.random.default_rng(0).random((30, 3)).round(3).tolist()
    table.write_text("\n".join(f"{a},{b},{c},{int(a > b)}" for a, b, c in rows))
    arguments = ["profile", str(table), "--backend", "cuda", "--layers", "4", "--epochs", "2", "--batch-size", "8"]
    assert main.main([*arguments, "--trace", str(path)]) == 0
    out = capsys.readouterr().out
    name = cuda.gpu_of(()).name
    for text in ("dense0.forward 3x4", "dense1.weights 4x2", "apply adam", f"float32, {name}", "launched one by one"):
        assert text in out
    events = json.loads(path.read_text())["traceEvents"]
    (tid,) = [e["tid"] for e in events if e["name"] == "thread_name" and e["args"]["name"] == name]
    assert {e["name"] for e in events if e["tid"] == tid} >= {"apply adam", "finish", "step 0"}


def test_both_backends_in_one_profile():
    with fastopt.profile() as p:
        for backend in ("cpu", "cuda"):
            model = fastopt.Sequential([fastopt.Dense(2)], backend=backend, inputs=3)
            model.compile("sgd", "mean_squared_error")
            model.fit(X, X[:, :2], batch_size=4, epochs=2, verbose=0)
    assert [total.device for total in p.totals] == ["", cuda.gpu_of(()).name]
    assert {row.device for row in p.rows if row.kernel == "apply sgd"} == {cuda.gpu_of(()).name}
