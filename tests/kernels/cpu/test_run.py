"""The loop that runs programs, and its twin with marks: complete marks, exact counts, the same bits."""

import re
import subprocess
import sys
import time

import numpy as np
import pytest

from fastopt.kernels import costs, cpu
from fastopt.kernels.cpu.runtime.compile import Kernel
from fastopt.kernels.cpu.runtime.primitives import INTERPRETED
from fastopt.kernels.cpu.training import program, run
from fastopt.kernels.formulas import OPTIMIZERS
from fastopt.kernels.profile import Cost, recorder
from fastopt.kernels.spec import Batches, DenseSpec, DropoutSpec, LossSpec, OptimizerSteps

LAYERS = [DenseSpec(7, 9, "relu"), DropoutSpec(0.25), DenseSpec(9, 6, "gelu", False), DenseSpec(6, 3)]
NAMES = [
    "gather 7",
    "forward 7x9 relu",
    "dropout 9",
    "forward 9x6 gelu",
    "forward 6x3 linear",
    "loss sparse_categorical_crossentropy",
    "metric accuracy",
    "total",
    "total",
    "slopes 3 linear",
    "inputs 6x3 gelu",
    "weights+adam 6x3",
    "inputs 9x6",
    "weights+adam 9x6",
    "dropout backward 9",
    "slopes 9 relu",
    "weights+adam 7x9",
    "finish",
]
ROWS, BATCH = 50, 16
STEPS = 4  # the last of 2 rows


class Recorder(list):
    """The passes that were recorded."""

    def record(self, done):
        self.append(done)


@pytest.fixture
def passes():
    recorded = Recorder()
    token = recorder.set(recorded)
    yield recorded
    recorder.reset(token)


def network_and_data():
    rng = np.random.default_rng(0)
    params = []
    for layer in LAYERS:
        if isinstance(layer, DenseSpec):
            params.append(rng.standard_normal((layer.inputs, layer.outputs)).astype("float32"))
            params += [np.zeros(layer.outputs, "float32")] * layer.bias
    return params, rng.standard_normal((ROWS, 7)).astype("float32"), rng.integers(0, 3, ROWS)


def train(progress=None, rows=ROWS):
    """One epoch and an evaluation; params, states and figures."""
    params, x, y = network_and_data()
    states = [(np.zeros_like(p), np.zeros_like(p)) for p in params]
    net = cpu.Network(LAYERS, params, "float32", LossSpec("sparse_categorical_crossentropy"), ["accuracy"])
    batches = Batches(x, y, np.arange(rows)[::-1].copy(), BATCH)
    rates, options = np.full(batches.steps, 1e-2), OPTIMIZERS["adam"].options
    totals = net.train(batches, OptimizerSteps("adam", states, options, rates), 3, progress)
    return [*params, *sum(states, ()), totals.losses], net.evaluate(x, y), net.predict(x)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_marks_are_complete_and_in_order(count, threads, passes):
    before = time.perf_counter_ns()
    with threads(count):
        train()
    after = time.perf_counter_ns()
    assert [done.verb for done in passes] == ["train", "evaluate", "predict"]
    assert [done.steps for done in passes] == [STEPS, 1, 1]
    assert [(done.rows, done.batch) for done in passes] == [(ROWS, BATCH), (ROWS, ROWS), (ROWS, ROWS)]
    for done in passes:
        assert done.dtype == "float32"
        assert done.marks.shape == (count, done.steps, 1 + 2 * len(done.costs))
        for rank in done.marks:  # one step follows the other
            times = rank.ravel()
            assert (np.diff(times) >= 0).all()
            assert before <= done.start <= times[0]
            assert times[-1] <= done.end <= after
    assert [cost.name for cost in passes[0].costs] == NAMES
    assert [cost.name for cost in passes[2].costs][-3:] == ["forward 6x3 linear", "scatter 3", "finish"]


def test_ranks_meet_where_the_marks_say_so(threads, passes):
    with threads(2):
        train()
    marks = passes[0].marks
    done, left = marks[:, :, 1::2], marks[:, :, 2::2]
    meets = np.array([not name.startswith(("loss", "total", "weights")) for name in NAMES])
    assert (left[:, :, ~meets] == done[:, :, ~meets]).all()
    # Nobody goes on before all have arrived.
    assert (left[:, :, meets].min(axis=0) >= done[:, :, meets].max(axis=0)).all()


def test_what_does_not_fit_is_left_out(monkeypatch, threads, passes):
    with threads(2):
        monkeypatch.setattr(run, "MARKS", 2 * 3 * (1 + 2 * len(NAMES)) * run.MARK)
        train()
        assert passes[0].marks.shape[:2] == (2, 3)
        assert (passes[0].steps, passes[0].rows) == (STEPS, ROWS)
        monkeypatch.setattr(run, "MARKS", 1)
        train()
        assert passes[3].marks.shape[:2] == (2, 1)  # never nothing
        assert (passes[3].marks > 0).all()


def test_the_same_bits(threads):
    results = []
    for recorded in (None, Recorder()):
        token = recorder.set(recorded)
        with threads(2):
            results.append(train())
        recorder.reset(token)
    (arrays, totals, outputs), (others, other_totals, other_outputs) = results
    for a, b in zip([*arrays, totals.losses, outputs], [*others, other_totals.losses, other_outputs], strict=True):
        np.testing.assert_array_equal(a, b)


def test_an_interrupted_pass_is_recorded(monkeypatch, passes):
    monkeypatch.setattr(program, "WATCHED_FLOPS", 0)

    def interrupt(steps, loss):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(interrupt)
    (done,) = passes
    assert done.marks.shape[1] == done.steps <= STEPS
    assert done.rows == min(ROWS, done.steps * BATCH)


def test_a_smaller_team_has_no_empty_ranks(monkeypatch, threads, passes):
    monkeypatch.setattr(program, "run_team", lambda kernel, work, num_ranks, watch, stop: kernel(work, 0, 0, 1))
    with threads(4):
        train()
    assert passes[0].marks.shape[0] == 1


@pytest.mark.skipif(INTERPRETED, reason="nothing is compiled")
def test_a_process_that_profiles_nothing_has_no_kernel_with_marks():
    code = (
        "import numpy as np, fastopt\nfrom fastopt.kernels.cpu.training.run import MARKED_PROGRAM, RUN_PROGRAM\n"
        "model = fastopt.Sequential([fastopt.Dense(1)])\nmodel.compile('sgd', 'mean_squared_error')\n"
        "fit = lambda: model.fit(np.ones((4, 2)), np.ones(4))\nfit()\n"
        "assert RUN_PROGRAM._address and not MARKED_PROGRAM._address\n"
        "with fastopt.profile(): fit()\nassert MARKED_PROGRAM._address\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=240)
    assert result.returncode == 0, result.stderr


@pytest.mark.skipif(INTERPRETED, reason="nothing is compiled")
@pytest.mark.parametrize("marked", [False, True])
def test_the_kernel_without_marks_has_no_code_for_them(monkeypatch, tmp_path, marked):
    monkeypatch.setattr(Kernel, "names", {})
    monkeypatch.setenv("FASTOPT_CACHE_DIR", str(tmp_path))  # what is loaded from the cache cannot be looked into
    kernel = Kernel(run._run_program(marked), f"test_program_{marked}")
    assert kernel.address
    looks_at_the_clock = re.findall(r"call i32 %\S+\(i64", kernel.llvm())
    assert bool(looks_at_the_clock) == marked


@pytest.mark.parametrize(
    ("frequency", "words", "expected"),
    [(1, (3, 7), 3 * 10**9 + 7), (10_000_000, (31, 0), 3100), (24_000_000, (10**15 + 12, 0), 41666666666666666 + 500)],
)
def test_the_clocks_of_all_systems(frequency, words, expected):
    """Seconds and nanoseconds, or ticks: of a clock that has run for longer than a year."""
    clock = run._Clock(0, frequency)
    np.testing.assert_array_equal(clock.nanoseconds(np.array([words])), [expected])


# ---------------------------------------------------------------- counts, by hand for a batch of 16 rows in float32
@pytest.mark.parametrize(
    ("cost", "name", "moved", "operations"),
    [
        # 16 rows of 7 floats and a label read and written, 16 row numbers read
        (costs.gather(7, 0, True, 4, labels=True), "gather 7", 2 * 16 * (28 + 8) + 16 * 4, 0),
        # bytes read, floats written
        (costs.gather(7, 3, False, 4, stored=1), "gather 7", 16 * (7 + 28 + 2 * 12), 0),
        (costs.gather(7, 3, False, 4), "gather 7", 2 * 16 * (28 + 12), 0),
        (costs.scatter(3, 4), "scatter 3", 2 * 16 * 12, 0),
        (costs.dropout(9, 4, backward=False), "dropout 9", 2 * 16 * 36, 0),
        # x (16, 7), w (7, 9), b (9,) and y (16, 9); 2 m n k and 16 x 9 biases
        (costs.forward(7, 9, "relu", True, False, 4), "forward 7x9 relu", 4 * (112 + 63 + 9 + 144), 2016 + 144),
        # without bias, with z
        (costs.forward(7, 9, "gelu", False, True, 4), "forward 7x9 gelu", 4 * (112 + 63 + 2 * 144), 2016),
        # dz read and written, y read; b and two states read and written; slopes, sums, and 15 operations a bias
        (costs.slopes(9, "relu", True, "adam", 4), "slopes 9 relu", 4 * (3 * 144 + 6 * 9), 2 * 144 + 15 * 9),
        (costs.slopes(9, "linear", False, "adam", 4), "slopes 9 linear", 4 * 2 * 144, 144),
        # dz (16, 9), w (7, 9), dx (16, 7)
        (costs.inputs_gradient(7, 9, 4), "inputs 7x9", 4 * (144 + 63 + 112), 2016),
        # y (16, 7) read as well; slopes and sums
        (costs.inputs_gradient(7, 9, 4, "relu"), "inputs 7x9 relu", 4 * (144 + 63 + 2 * 112), 2016 + 2 * 112),
        (costs.inputs_gradient(7, 9, 4, "linear"), "inputs 7x9 linear", 4 * (144 + 63 + 112), 2016 + 2 * 112),
        # x (16, 7), dz (16, 9); w and two states read and written
        (costs.weights(7, 9, "adam", 4), "weights+adam 7x9", 4 * (112 + 144 + 6 * 63), 2016 + 15 * 63),
        # and b
        (costs.weights(7, 9, "adam", 4, True), "weights+adam 7x9", 4 * (112 + 144 + 6 * 72), 2016 + 15 * 72),
        (costs.weights(7, 9, "sgd", 8), "weights+sgd 7x9", 8 * (112 + 144 + 2 * 63), 2016 + 4 * 63),
        (costs.loss("hinge", 3, False, 4), "loss hinge", 4 * 3 * 48, 0),
        (costs.loss("x", 3, True, 4), "loss x", 4 * 2 * 48 + 16 * 8, 0),
        (costs.metric("r2", 3, False, 4), "metric r2", 4 * 2 * 48, 0),
        (costs.metric("accuracy", 3, True, 4), "metric accuracy", 4 * 48 + 16 * 8, 0),
        (costs.link("softmax", 3, 4), "softmax 3", 4 * 2 * 48, 0),
    ],
    ids=lambda value: value.name if isinstance(value, Cost) else "",
)
def test_counts(cost, name, moved, operations):
    assert cost.name == name
    assert cost.total(1, 16) == (moved, operations)


# Counted in the formulas; sgd is the sign, the decay, lr g, and the difference.
RULES = {
    "sgd": 4,
    "momentum": 7,
    "lion": 10,
    "adagrad": 9,
    "rmsprop": 11,
    "rmsprop_momentum": 13,
    "rmsprop_centered": 16,
    "rmsprop_centered_momentum": 18,
    "adam": 15,
    "amsgrad": 15,
    "adamw": 15,
    "adamw_amsgrad": 15,
    "sgdw": 4,
    "velocity": 6,
    "adagrad_eps_in_sqrt": 9,
    "adagrad_safe": 9,
    "adadelta": 18,
    "rmsprop_eps_in_sqrt": 11,
    "rmsprop_eps_in_sqrt_momentum": 13,
    "rmsprop_eps_in_sqrt_centered": 16,
    "rmsprop_eps_in_sqrt_centered_momentum": 18,
    "adam_hat": 15,
    "amsgrad_hat": 15,
    "adam_eps_root": 16,
    "nadam_eps_root": 17,
    "amsgrad_eps_root": 16,
    "nadam": 16,
}


@pytest.mark.parametrize("rule", OPTIMIZERS)
def test_operations_of_rules(rule):
    assert costs.update_flops(rule) == RULES[rule]
