"""Passes over the data: kinds of batches, data that do not fit, progress, interrupts."""

from __future__ import annotations

import contextlib
import signal

import numpy as np
import pytest
from helpers_cuda import require_device

require_device()
from helpers_network import Run, compare, data_for

from fastopt.kernels import cuda
from fastopt.kernels.cuda.runtime import memory
from fastopt.kernels.cuda.training import data_feed, network, passes, training_pass
from fastopt.kernels.cuda.training.passes import BatchKind, batch_kind
from fastopt.kernels.formulas import OPTIMIZERS
from fastopt.kernels.spec import Batches, DenseSpec, DropoutSpec, EpochHooks, OptimizerSteps, Shuffle

pytestmark = pytest.mark.gpu

MSE, LABELS = "mean_squared_error", "sparse_categorical_crossentropy"
SMALL = [DenseSpec(3, 2)]


@pytest.mark.parametrize("group", [1, 2, 3])
@pytest.mark.parametrize("rows", [1, 4, 5, 8, 12, 13, 27])
def test_kinds_of_batches(rows, group):
    batches = [range(start, min(start + 4, rows)) for start in range(0, rows, 4)]
    steps = [batches[start : start + group] for start in range(0, len(batches), group)]
    wanted = [
        BatchKind(len(batch), sum(map(len, step)), batch is step[0], batch is step[-1])
        for step in steps
        for batch in step
    ]
    assert [batch_kind(number, rows, 4, group) for number in range(len(batches))] == wanted


# ---------------------------------------------------------------- data that do not fit
@pytest.fixture(params=[1, 200, 10_000])
def streamed(monkeypatch, request):
    """Data are never kept on the device: parts of one batch, of some, of all."""
    monkeypatch.setattr(data_feed, "MEMORY_SHARE", 0)
    monkeypatch.setattr(data_feed, "PART_BYTES", request.param)


def results(n, accumulate):
    x, y = data_for(np.random.default_rng(0), LABELS, n, 3, 3, "float32")
    layers = [DropoutSpec(0.3), DenseSpec(3, 3, "softmax")]
    run, found = Run(cuda, layers, LABELS, ["accuracy"], "float32"), []
    for epoch in range(2):
        order = np.random.default_rng(epoch).permutation(n)[1:]
        found.append(run.train(x, y, order, 3, accumulate=accumulate)[:2])
    return *found, run.net.evaluate(x, y, 4)[:2], run.net.predict(x, 4), run.params


def test_streamed_data_give_the_same_bits():
    for n, accumulate in ((8, 1), (11, 2)):
        kept = results(n, accumulate)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(data_feed, "MEMORY_SHARE", 0)
            patch.setattr(data_feed, "PART_BYTES", 1)
            for a, b in zip(results(n, accumulate), kept, strict=True):
                for left, right in zip(a, b, strict=True):
                    np.testing.assert_equal(left, right)


def test_epochs_in_one_call_give_the_same_bits():
    """Three epochs, the second of which the caller asks to be the last."""
    x, y = data_for(np.random.default_rng(0), LABELS, 9, 3, 3, "float32")
    layers = [DropoutSpec(0.3), DenseSpec(3, 3, "softmax")]
    one, other = (Run(cuda, layers, LABELS, ["accuracy"], "float32") for _ in range(2))
    batches = Batches(x, y, np.arange(1, 9), 3, 2, epochs=3, shuffle=Shuffle(5, 4))
    options, found = OPTIMIZERS["adam"].options, []
    rates = np.linspace(0.1, 0.01, 3 * batches.steps)
    hooks = EpochHooks(found.append, lambda: len(found) == 2)
    last = one.net.train(batches, OptimizerSteps("adam", one.states, options, rates), 3, None, hooks)
    assert one.net.steps_done == 2 * batches.steps
    for epoch, results in enumerate(found):
        own = rates[epoch * batches.steps : (epoch + 1) * batches.steps]
        expected = other.train(x, y, Shuffle(5).order(np.arange(1, 9), 4 + epoch), 3, lr=own, accumulate=2)
        np.testing.assert_array_equal(results.losses, [expected.losses])
        assert results.metrics == {"accuracy": [expected.metrics["accuracy"]]}
        assert results.rates == own[-1:]
    np.testing.assert_array_equal(last.losses, expected.losses)
    for a, b in zip([*one.params, *sum(one.states, ())], [*other.params, *sum(other.states, ())], strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("part", [1, 10_000])
def test_several_batches_a_graph_give_the_same_bits(part, monkeypatch):
    """They are launched together, except the rest of a chunk and the short batch at the end."""
    for name, value in (("MEMORY_SHARE", 0), ("PART_BYTES", part)):
        monkeypatch.setattr(data_feed, name, value)
    alone = {accumulate: results(26, accumulate) for accumulate in (1, 2)}
    monkeypatch.setattr(passes, "MANY", 3)
    monkeypatch.setattr(passes, "LONG", 2)
    launch, launched = passes.Pass._replay, []

    def noting(self, kind, many, list_batch):
        launched.append((self._verb, many))
        return launch(self, kind, many, list_batch)

    monkeypatch.setattr(passes.Pass, "_replay", noting)
    for accumulate, kept in alone.items():
        launched.clear()
        for a, b in zip(results(26, accumulate), kept, strict=True):
            for left, right in zip(a, b, strict=True):
                np.testing.assert_equal(left, right)
        trained = [many for verb, many in launched if verb == "train"]
        assert sum(trained) == 2 * 9  # of 25 rows, in batches of 3
        assert (3 in trained) == (accumulate == 1 and part > 1)


class Order:
    """Record of the work on streams: launches by their kernels' names, and events."""

    def __init__(self, monkeypatch):
        self.told, self.streams = [], iter(range(1, 100))
        gpu, stream, event = (type(x) for x in (cuda.gpu_of(()), cuda.gpu_of(()).stream(), cuda.gpu_of(()).event()))
        launch = gpu.launch

        def launched(gpu, kernel, blocks, stream, *args):
            self.told.append((stream, kernel.name))
            launch(gpu, kernel, blocks, stream, *args)

        def lent(gpu):
            made = stream()
            made.handle = next(self.streams)
            return made

        monkeypatch.setattr(gpu, "launch", launched)
        monkeypatch.setattr(gpu, "stream", lent)
        monkeypatch.setattr(event, "record", lambda event, stream: self.told.append((stream, "record", id(event))))
        monkeypatch.setattr(event, "before", lambda event, stream: self.told.append((stream, "wait", id(event))))


DEEP = [DenseSpec(3, 4, "tanh"), DropoutSpec(0.2), DenseSpec(4, 3, "relu", False), DenseSpec(3, 3)]


@pytest.mark.parametrize("compute", [None, "bfloat16"])
def test_layers_are_updated_during_the_layers_below(monkeypatch, compute):
    """The bits are the same; a layer is updated after its gradients, and all before the batch ends."""

    def trained():
        x, y = data_for(np.random.default_rng(0), LABELS, 11, 3, 3, "float32")
        run = Run(cuda, DEEP, LABELS, ["accuracy"], "float32", "adam", compute=compute)
        totals = [run.train(x, y, np.arange(11), 4) for _ in range(2)]
        return run, [*(t.losses for t in totals), *run.params, *(s for of in run.states for s in of)]

    _, alone = trained()
    monkeypatch.setattr(training_pass, "BY_LAYER", 1)
    order = Order(monkeypatch)
    run, beside = trained()
    for a, b in zip(alone, beside, strict=True):
        np.testing.assert_array_equal(a, b)
    main = run.net.stream.handle
    updates = [i for i, (stream, what, *_) in enumerate(order.told) if what.startswith("update_")]
    assert len(updates) == 2 * 3 * 3  # in two passes of three batches, for each layer
    assert {order.told[i][0] for i in updates} & {main} == set()
    assert len({order.told[i][0] for i in updates}) == 1
    side = order.told[updates[0]][0]
    for i in updates:  # after an event of the main stream
        (_, waits, event), (_, records, recorded) = order.told[i - 1], order.told[i - 2]
        assert (waits, records, event) == ("wait", "record", recorded)
        assert (order.told[i - 1][0], order.told[i - 2][0]) == (side, main)
    ends = [i for i, (_, what, *_) in enumerate(order.told) if what == "finish"]
    for i in ends:  # after an event of the other
        assert [told[:2] for told in order.told[i - 2 : i]] == [(side, "record"), (main, "wait")]
    # The launches of lower layers come between the updates of a batch.
    for batch in range(0, len(updates), 3):
        first, second, third = updates[batch : batch + 3]
        assert all(any(stream == main for stream, *_ in order.told[a + 1 : b - 2]) for a, b in
                   ((first, second), (second, third)))  # fmt: skip


@pytest.mark.parametrize("options", [{"accumulate": 2}, {"clip_norm": 0.5}], ids=str)
def test_all_are_updated_together_where_more_must_be_known(monkeypatch, options):
    monkeypatch.setattr(training_pass, "BY_LAYER", 1)
    order = Order(monkeypatch)
    x, y = data_for(np.random.default_rng(0), LABELS, 11, 3, 3, "float32")
    run = Run(cuda, DEEP, LABELS, [], "float32", "adam")
    run.train(x, y, np.arange(11), 4, **options)
    assert {stream for stream, what, *_ in order.told if what.startswith("update_")} == {run.net.stream.handle}


def test_streamed_targets_of_several_columns(streamed):
    compare(SMALL, MSE, ["r2"], "float64", n=13, batch_size=3, epochs=1)


def test_outputs_are_copied_while_the_next_are_computed(streamed, monkeypatch):
    run, told = Run(cuda, SMALL, MSE, [], "float32"), []
    x = data_for(np.random.default_rng(0), MSE, 23, 3, 2, "float32")[0]
    launch, copy = passes.Pass._replay, passes.Collector._copy

    def launched(self, kind, many, list_batch):
        told.append("launch")
        return launch(self, kind, many, list_batch)

    def copied(self, chunk, done):
        told.extend(["copy"] * len(chunk))
        copy(self, chunk, done)

    monkeypatch.setattr(passes.Pass, "_replay", launched)
    monkeypatch.setattr(passes.Collector, "_copy", copied)
    found = run.net.predict(x, 4)
    np.testing.assert_array_equal(found, np.concatenate([run.net.predict(x[i : i + 4], 4) for i in range(0, 23, 4)]))
    part = data_feed.Streamed(run.net.gpu, 0, x, None, 4).count
    chunks = [min(part, 6 - start) for start in range(0, 6, part)]
    wanted = []
    for before, count in zip([0, *chunks], [*chunks, 0], strict=True):
        wanted += ["launch"] * count + ["copy"] * before
    assert told[:12] == wanted


def test_what_fits(monkeypatch):
    x, y = np.zeros((100, 8), "float32"), np.zeros(100, np.int64)

    class Gpu(type(cuda.gpu_of(()))):
        def __init__(self, free):
            self.free = free

        def free_memory(self):
            return self.free

    monkeypatch.setattr(data_feed, "Resident", lambda *args: "resident")
    monkeypatch.setattr(data_feed, "Streamed", lambda *args: "streamed")
    size = x.nbytes + y.nbytes + 50
    enough = size / data_feed.MEMORY_SHARE
    for free, kind in ((enough + 1, "resident"), (enough - 1, "streamed")):
        assert data_feed.feed(Gpu(free), 0, x, y, 10, 50) == kind
    assert data_feed.feed(Gpu((x.nbytes + 50) / data_feed.MEMORY_SHARE + 1), 0, x, None, 10, 50) == "resident"


def test_how_far_the_host_is_ahead(monkeypatch):
    """Chunks grow until they take a moment, and shrink where they take two."""
    now = [0.0]
    monkeypatch.setattr(data_feed.time, "perf_counter", lambda: now[0])
    rows = data_feed.Resident(cuda.gpu_of(()), 0, np.zeros((4, 2), "float32"), None)

    def sizes(batches, seconds):
        found = []
        for chunk in rows.chunks(None, batches):
            found.append(len(chunk))
            now[0] += seconds * len(chunk)
        assert sum(found) == batches
        return found

    assert sizes(20, 1e-6) == [20]
    assert sizes(300, 1e-6) == [32, 64, 128, 76]
    assert sizes(300, 1e-3) == [256, 44]
    assert sizes(300, 1e-3) == [128, 64, 64, 44]
    assert sizes(100, 1) == [64, 32, 4]
    assert sizes(10, 1) == [8, 2]
    assert sizes(3, 1) == [2, 1]


# ---------------------------------------------------------------- passes one after another
def passes_of(run, hold):
    """Two passes, one with other batches, and the parameters seen between them."""
    x, y = data_for(np.random.default_rng(0), MSE, 12, 3, 2, "float32")
    with run.net.holding() if hold else contextlib.nullcontext():
        before, found = [p.copy() for p in run.params], []
        for batch in (4, 4, 3):
            found += [run.train(x, y, np.arange(12), batch).losses, run.net.evaluate(x, y).losses, run.net.predict(x)]
            if hold and batch == 4:  # other batches need other memory, so the host's is brought up to date first
                assert all((p == q).all() for p, q in zip(run.params, before, strict=True))
    return *found, *run.params, *(state for states in run.states for state in states)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_parameters_may_stay_on_the_device(dtype):
    held, free = (passes_of(Run(cuda, SMALL, MSE, [], dtype), hold) for hold in (True, False))
    for a, b in zip(held, free, strict=True):
        np.testing.assert_array_equal(a, b)


def test_they_come_back_whatever_happens():
    x, y = data_for(np.random.default_rng(0), MSE, 8, 3, 2, "float32")
    run, other = (Run(cuda, SMALL, MSE, [], "float32") for _ in range(2))

    def fails():
        with run.net.holding():
            run.train(x, y, np.arange(8), 4)
            raise ValueError("enough")

    with pytest.raises(ValueError, match="enough"):
        fails()
    other.train(x, y, np.arange(8), 4)
    for _ in range(2):
        for a, b in zip(run.params, other.params, strict=True):
            np.testing.assert_array_equal(a, b)
        for one in (run, other):  # from then on as before
            one.params[0] *= 0.5
            one.train(x, y, np.arange(8), 4)


# ---------------------------------------------------------------- progress and interrupts
def test_progress(monkeypatch):
    monkeypatch.setattr(network, "REPORT", 0)
    monkeypatch.setattr(data_feed, "FIRST_CHUNK", 2)
    monkeypatch.setattr(data_feed, "SECONDS_AHEAD", 1000)
    x, y = data_for(np.random.default_rng(0), MSE, 13, 3, 2, "float32")
    run, seen = Run(cuda, SMALL, MSE, [], "float32"), []
    totals = run.train(x, y, np.arange(13), 2, progress=lambda steps, loss: seen.append((steps, loss)))
    assert [steps for steps, _ in seen] == [2, 6, 7, 7]
    np.testing.assert_allclose(seen[0][1], totals.losses[:2].mean())
    np.testing.assert_allclose(seen[-1][1], np.average(totals.losses, weights=[2] * 6 + [1]))
    seen.clear()
    monkeypatch.setattr(network, "REPORT", 1000)
    run.train(x, y, np.arange(13), 2, progress=lambda steps, loss: seen.append(steps))
    assert seen == [7]


@pytest.mark.own_process
@pytest.mark.parametrize("accumulate", [1, 2])
def test_an_interrupt_ends_a_pass_after_a_step(monkeypatch, accumulate):
    x, y = data_for(np.random.default_rng(0), MSE, 24, 3, 2, "float32")
    run = Run(cuda, SMALL, MSE, [], "float32")
    launch, calls = passes.Pass._replay, []

    def interrupted(self, kind, many, list_batch):
        calls.append(kind)
        if len(calls) == 3:
            signal.raise_signal(signal.SIGINT)
        return launch(self, kind, many, list_batch)

    monkeypatch.setattr(passes.Pass, "_replay", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run.train(x, y, np.arange(24), 2, accumulate=accumulate)
    monkeypatch.undo()
    done = {1: 3, 2: 2}[accumulate]
    assert (len(calls), run.net.steps_done) == (done * accumulate, done)
    again = Run(cuda, SMALL, MSE, [], "float32")
    again.train(x, y, np.arange(done * accumulate * 2), 2, accumulate=accumulate)
    run.train(x, y, np.arange(8), 2)
    again.train(x, y, np.arange(8), 2)
    for a, b in zip(run.params, again.params, strict=True):
        np.testing.assert_array_equal(a, b)


def test_an_error_of_a_callback(monkeypatch):
    monkeypatch.setattr(network, "REPORT", 0)
    monkeypatch.setattr(data_feed, "FIRST_CHUNK", 1)
    monkeypatch.setattr(data_feed, "SECONDS_AHEAD", 0)
    x, y = data_for(np.random.default_rng(0), MSE, 12, 3, 2, "float32")
    run = Run(cuda, SMALL, MSE, [], "float32")

    def progress(steps, loss):
        if steps == 2:
            raise ValueError("enough")

    with pytest.raises(ValueError, match="enough"):
        run.train(x, y, np.arange(12), 2, progress=progress)
    assert run.step == 2
    again = Run(cuda, SMALL, MSE, [], "float32")
    again.train(x, y, np.arange(4), 2)
    for a, b in zip(run.params, again.params, strict=True):
        np.testing.assert_array_equal(a, b)


def test_what_never_came_back_counts_for_nothing(monkeypatch):
    x, y = data_for(np.random.default_rng(0), MSE, 4, 3, 2, "float32")
    run = Run(cuda, SMALL, MSE, [], "float32")
    kept = [p.copy() for p in run.params]

    def lost(self, stream):
        raise OSError("the device has gone")

    monkeypatch.setattr(memory.Mirror, "download", lost)
    with pytest.raises(OSError, match="the device has gone"):
        run.train(x, y, np.arange(4), 2)
    assert run.step == 0
    for a, b in zip(run.params, kept, strict=True):
        np.testing.assert_array_equal(a, b)
