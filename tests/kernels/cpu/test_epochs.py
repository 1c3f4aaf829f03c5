"""Passes of several epochs: the compiled order of rows is NumPy's, and the bits are those of epoch by epoch."""

import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastopt.kernels import cpu, reference
from fastopt.kernels.cpu.runtime.primitives import INTERPRETED, address_of
from fastopt.kernels.cpu.runtime.records import RUN, SHUFFLE, fill
from fastopt.kernels.cpu.training import network, program
from fastopt.kernels.cpu.training.shuffle import shuffle_kernel
from fastopt.kernels.formulas import OPTIMIZERS
from fastopt.kernels.profile import recorder
from fastopt.kernels.spec import Batches, DenseSpec, DropoutSpec, EpochHooks, LossSpec, OptimizerSteps, Shuffle

LAYERS = [DenseSpec(6, 9, "relu"), DropoutSpec(0.3), DenseSpec(9, 3)]
COUNTED = "f1_macro", "accuracy", "top_2_accuracy", "recall_macro"  # metrics of counts of classes among others
BACKENDS = {"cpu": cpu, "numpy": reference}


def drawn(rows, seed, epoch):
    """The order that the compiled phase draws."""
    order = np.empty_like(rows)
    run = fill(RUN, num_rows=len(rows), order=order)
    record = fill(SHUFFLE, run=run, rows=rows, count=len(rows), first_epoch=epoch)
    record["seed"] = seed
    shuffle_kernel(rows.dtype.name, False)(address_of(record), 0, 0, 1)
    return order


# the ends of ranges of random bits, and numbers that need another word of 32 bits
SIZES = [0, 1, 2, 3, 4, 5, 31, 32, 33, 150, 1023, 1025]
WORDS = [0, 1, 2**31, 2**32 - 1, 2**32, 2**32 + 1, 2**63 - 1]


@pytest.mark.parametrize("seed", [*WORDS, 2**63, 2**64 - 1])
@pytest.mark.parametrize("size", SIZES)
def test_order_is_numpys(size, seed):
    rows = np.arange(size)[::-1] * 3
    for epoch in WORDS:
        np.testing.assert_array_equal(drawn(rows, seed, epoch), Shuffle(seed, epoch).order(rows))


@given(size=st.integers(0, 300), seed=st.integers(0, 2**64 - 1), epoch=st.integers(0, 2**63 - 1))
def test_random_orders_are_numpys(size, seed, epoch):
    rows = np.arange(size)
    np.testing.assert_array_equal(drawn(rows, seed, epoch), Shuffle(seed, epoch).order(rows))


@pytest.mark.skipif(INTERPRETED, reason="too many rows for interpreted kernels")
def test_order_of_many_rows_is_numpys():
    rows = np.arange(200_003)
    np.testing.assert_array_equal(drawn(rows, 7, 3), Shuffle(7, 3).order(rows))


class Training:
    """Parameters, states and a network of a backend; epochs are trained at once or one by one."""

    def __init__(self, backend, rows=23, dtype="float32", metrics=("accuracy",), rule="adam"):
        rng = np.random.default_rng(0)
        self.params = [rng.standard_normal(shape).astype(dtype) for shape in [(6, 9), (9,), (9, 3), (3,)]]
        self.states = [tuple(np.zeros_like(p) for _ in OPTIMIZERS[rule].states) for p in self.params]
        loss = LossSpec("sparse_categorical_crossentropy")
        self.net = BACKENDS[backend].Network(LAYERS, self.params, dtype, loss, list(metrics))
        self.x, self.y = rng.standard_normal((rows, 6)).astype(dtype), rng.integers(0, 3, rows)
        self.rows, self.rule, self.steps, self.results = np.arange(rows), rule, 0, []

    def pass_of(self, epochs, first, size=8, accumulate=1, clip_norm=None, shuffle=True, rates=None, hooks=None):
        """Train in one call; hooks: (stop, until_diverged)."""
        order = Shuffle(5, first) if shuffle else None
        batches = Batches(self.x, self.y, self.rows, size, accumulate, epochs, order)
        count = epochs * batches.steps
        rates = np.full(count, 1e-2) if rates is None else rates[self.steps : self.steps + count]
        steps = OptimizerSteps(self.rule, self.states, OPTIMIZERS[self.rule].options, rates, self.steps, clip_norm)
        hooks = EpochHooks(self.results.append, *(hooks or (lambda: False,)))
        try:
            return self.net.train(batches, steps, 3, None, hooks)
        finally:
            self.steps += self.net.steps_done

    def state(self):
        losses = np.concatenate([result.losses for result in self.results])
        metrics = {
            name: [value for result in self.results for value in result.metrics[name]]
            for name in self.results[0].metrics
        }
        states = [state for of_param in self.states for state in of_param]
        return [*self.params, *states, losses, np.array(list(metrics.values()))]


def assert_same_state(one, other):
    for a, b in zip(one.state(), other.state(), strict=True):
        np.testing.assert_array_equal(a, b)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("backend", BACKENDS)
def test_at_once_as_one_by_one(backend, data):
    rows, epochs = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 5))
    options = {
        "size": data.draw(st.integers(1, 45)), "accumulate": data.draw(st.integers(1, 12)),
        "clip_norm": data.draw(st.sampled_from([None, 0.05])), "shuffle": data.draw(st.booleans()),
        "rates": data.draw(st.sampled_from([None, np.linspace(0.05, 0.001, 400)])),
    }  # fmt: skip
    more = {
        "dtype": data.draw(st.sampled_from(["float32", "float64"])), "rows": rows,
        "metrics": data.draw(st.sampled_from([(), ("accuracy",), COUNTED])),
        "rule": data.draw(st.sampled_from(["sgd", "adam"])),
    }  # fmt: skip
    options["size"] = min(rows, options["size"])
    whole, parts, mixed = (Training(backend, **more) for _ in range(3))
    whole.pass_of(epochs, 4, **options)
    for epoch in range(epochs):
        parts.pass_of(1, 4 + epoch, **options)
    cut = data.draw(st.integers(0, epochs))
    for first, count in ((0, cut), (cut, epochs - cut)):
        if count:
            mixed.pass_of(count, 4 + first, **options)
    assert_same_state(whole, parts)
    assert_same_state(mixed, parts)
    assert len(whole.results) == (1 if backend == "cpu" else epochs)
    assert whole.steps == parts.steps == epochs * -(-rows // (options["size"] * options["accumulate"]))


@pytest.mark.parametrize("how", [{}, {"accumulate": 2}, {"clip_norm": 0.05}])
def test_bits_do_not_depend_on_threads(how, threads):
    one, two = Training("cpu"), Training("cpu")
    with threads(1):
        one.pass_of(4, 0, **how)
    with threads(2):
        two.pass_of(4, 0, **how)
    assert_same_state(one, two)


def test_backends_agree():
    ours, theirs = Training("cpu", dtype="float64"), Training("numpy", dtype="float64")
    for training in (ours, theirs):
        training.pass_of(3, 2, accumulate=2)
    for a, b in zip(ours.state(), theirs.state(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_returns_the_last_epoch(backend):
    training = Training(backend)
    last = training.pass_of(3, 0)
    (*_, results) = training.results
    np.testing.assert_array_equal(last.losses, results.losses[-1])
    assert last.metrics == {name: values[-1] for name, values in results.metrics.items()}
    assert last.seconds == results.seconds[-1]


@pytest.mark.parametrize("backend", BACKENDS)
def test_seconds_of_epochs_add_up(backend):
    training, start = Training(backend), time.perf_counter()
    training.pass_of(5, 0)
    elapsed = time.perf_counter() - start
    seconds = np.concatenate([result.seconds for result in training.results])
    assert len(seconds) == 5
    assert (seconds > 0).all()
    assert seconds.sum() <= elapsed


@pytest.mark.parametrize("backend", BACKENDS)
def test_ends_with_the_epoch_that_diverges(backend):
    """Rates of infinity from the third epoch on: its losses, but for the first, are not finite."""
    rates = np.full(5 * 3, 1e-2)
    rates[6:] = np.inf
    training, whole = Training(backend, rule="sgd"), Training(backend, rule="sgd")
    training.pass_of(5, 0, rates=rates, hooks=(lambda: False, True))
    assert training.steps == training.net.steps_done == 9
    losses = np.concatenate([result.losses for result in training.results])
    assert np.isfinite(losses).all(axis=1).tolist() == [True, True, False]
    training.pass_of(2, 3, rates=rates)  # goes on if it is not told to end
    whole.pass_of(5, 0, rates=rates)
    assert_same_state(training, whole)


@pytest.mark.parametrize("backend", BACKENDS)
def test_ends_with_an_epoch_when_asked_to(backend, monkeypatch):
    monkeypatch.setattr(program, "WATCHED_FLOPS", 0)
    asked = threading.Event()
    training, again = Training(backend), Training(backend)
    timer = threading.Timer(0.3, asked.set)
    timer.start()
    epochs = 300 if INTERPRETED and backend == "cpu" else 100_000
    training.pass_of(epochs, 0, hooks=(asked.is_set,))
    timer.join()
    done = sum(len(result.losses) for result in training.results)
    assert 0 < done < epochs
    assert training.steps == done * 3
    again.pass_of(done, 0)
    assert_same_state(training, again)


class Recorder(list):
    def record(self, done):
        self.append(done)


def test_marks_and_rows_of_a_pass_of_epochs(threads):
    passes, training = Recorder(), Training("cpu")
    token = recorder.set(passes)
    try:
        with threads(2):
            training.pass_of(4, 0)
    finally:
        recorder.reset(token)
    plain = Training("cpu")
    plain.pass_of(4, 0)
    assert_same_state(training, plain)
    (done,) = passes
    assert (done.steps, done.rows, done.epoch_rows, done.batch) == (12, 92, 23, 8)
    assert [done.rows_of_step(i) for i in range(4)] == [8, 8, 7, 8]
    assert [done.rows_of_first(n) for n in (0, 2, 3, 4, 12)] == [0, 16, 23, 31, 92]
    assert done.marks.shape == (2, 12, 1 + 2 * len(done.costs))
    assert (np.diff(done.marks.reshape(2, -1)) >= 0).all()
    assert [cost.name for cost in done.costs if cost.once_an_epoch] == ["shuffle"]


def test_a_smaller_pass_uses_the_program_of_a_larger_one(monkeypatch):
    training = Training("cpu")
    training.pass_of(4, 0)
    program_of_four = training.net._trained.program
    training.pass_of(2, 4)
    assert training.net._trained.program is program_of_four
    training.pass_of(5, 6)
    assert training.net._trained.program is not program_of_four
    monkeypatch.setattr(network, "SPARE_BYTES", 0)  # tables of many epochs are not kept
    training.pass_of(5, 11)
    assert training.net._trained is None
    training.pass_of(1, 16)
    assert training.net._trained is not None
