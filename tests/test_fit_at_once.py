"""A fit whose epochs nobody looks at is one call of the backend, with the bits of one call an epoch."""

import gc
import os
import signal
import sys
import threading
import tracemalloc
import warnings

import numpy as np
import pytest
from helpers_model import CROSS_ENTROPY, assert_same, blobs
from hypothesis import given, settings
from hypothesis import strategies as st

import fastopt as fo
from fastopt import Dense, Dropout, Sequential
from fastopt.callbacks import Callback
from fastopt.kernels.cpu.runtime.primitives import INTERPRETED
from fastopt.kernels.profile import recorder
from fastopt.models import training

COUNTED = "f1_macro", "accuracy", "top_2_accuracy", "recall_macro"  # metrics of counts of classes among others
ALONE = ["seconds", "samples_per_second"]  # figures that differ from run to run
RATES = [0.01, fo.schedules.Cosine(0.02, steps=30), fo.schedules.Exponential(0.02, gamma=0.9, steps=3)]


def model_of(backend, rate=0.01, clip_norm=None, dropout=True, metrics=("accuracy",), dtype="float32", rule=fo.Adam):
    layers = [Dense(7, "relu"), *[Dropout(0.25)] * dropout, Dense(3, "softmax")]
    model = Sequential(layers, seed=4, backend=backend, dtype=dtype)
    model.compile(rule(lr=rate, clip_norm=clip_norm), CROSS_ENTROPY, list(metrics))
    return model


def calls_of(model):
    """A list that grows with every call of the network's `train`: the epochs that were done by it."""
    calls, make = [], model._network_for

    def watched(training):
        network = make(training)
        train = getattr(network, "_train_unwatched", network.train)

        def counted(batches, *args):
            calls.append(batches.epochs)
            return train(batches, *args)

        network._train_unwatched, network.train = train, counted
        return network

    model._network_for = watched
    return calls


def everything(model, *histories):
    figures = [{k: np.array(v) for k, v in h.to_dict().items() if k not in ALONE} for h in histories]
    losses = [h.step_losses for h in histories]
    counts = [model.epochs_done, model.optimizer.steps]
    return [model.get_weights(), model.optimizer.state_dict(), figures, losses, counts]


@settings(max_examples=20, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("backend", ["cpu", "numpy"])
def test_same_bits_as_epoch_by_epoch(backend, data):
    x, y = blobs(data.draw(st.integers(3, 50)))
    of_model = {
        "rate": data.draw(st.sampled_from(RATES)), "clip_norm": data.draw(st.sampled_from([None, 0.05])),
        "dropout": data.draw(st.booleans()), "metrics": data.draw(st.sampled_from([(), ("accuracy",), COUNTED])),
        "dtype": data.draw(st.sampled_from(["float32", "float64"])),
        "rule": data.draw(st.sampled_from([fo.Adam, fo.SGD])),
    }  # fmt: skip
    of_fit = {
        "batch_size": data.draw(st.integers(1, 60)), "accumulate": data.draw(st.integers(1, 11)),
        "shuffle": data.draw(st.booleans()), "verbose": 0,
    }  # fmt: skip
    epochs = data.draw(st.integers(1, 6))
    found = []
    for callbacks in ([], [Callback()]):
        model = model_of(backend, **of_model)
        first = model.fit(x, y, epochs=epochs, callbacks=callbacks, **of_fit)
        second = model.fit(x, y, epochs=2 * epochs, initial_epoch=epochs, callbacks=callbacks, **of_fit)
        found.append(everything(model, first, second))
    assert_same(*found)


def test_r2_is_the_same_as_epoch_by_epoch(backend):
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((31, 5)), rng.standard_normal((31, 2))
    found = []
    for callbacks in ([], [Callback()]):
        model = Sequential([Dense(2)], seed=1, backend=backend)
        model.compile("adam", "mean_squared_error", ["r2", "mean_absolute_error"])
        found.append(everything(model, model.fit(x, y, epochs=4, batch_size=8, callbacks=callbacks, verbose=0)))
    assert_same(*found)


class Watching(fo.EarlyStopping):
    """An early stopping that hears of each epoch at once, as it is no plain one."""


STOPPING = [
    {"patience": 1}, {"patience": 2, "min_delta": 0.02}, {"patience": 4}, {"min_delta": 1e9, "patience": 3},
    {"patience": 0, "min_delta": 0.001},
]  # fmt: skip


@pytest.mark.parametrize("more", [{}, {"sample_weight": np.linspace(0, 1, 40)}, {"accumulate": 2}, {"rate": 30.0}])
def test_early_stopping_by_the_loss_is_judged_within_the_call(backend, more):
    x, y = blobs(40)
    rate, of_fit = more.get("rate", 0.05), {name: value for name, value in more.items() if name != "rate"}
    for stopping in STOPPING:
        found, passes = [], []
        for cls in (fo.EarlyStopping, Watching):
            model, callback = model_of(backend, rate), cls("loss", **stopping)
            calls = calls_of(model)
            model.fit(x, y, epochs=12, batch_size=8, callbacks=[callback], verbose=0, **of_fit)
            state = callback.best, callback.best_epoch, callback.stopped_epoch, model.stop_training
            found.append([*everything(model, model.history), state])
            passes.append(calls)
        assert_same(*found)
        assert all(count == 1 for count in passes[1])
        assert sum(passes[0]) > 1
        assert len(passes[0]) <= 1 if rate < 1 else len(passes[0]) < len(passes[1])


@pytest.mark.parametrize(
    "own",
    [
        {"monitor": "accuracy"}, {"restore_best_weights": True}, {"threshold": 0.1, "patience": 2}, {"baseline": 0.5},
        {"start_from_epoch": 3}, {"mode": "max"},
    ],
)  # fmt: skip
def test_other_early_stopping_hears_of_each_epoch(own):
    x, y = blobs(40)
    model, callback = model_of("cpu"), fo.EarlyStopping(**{"monitor": "loss", "patience": 2, **own})
    calls = calls_of(model)
    model.fit(x, y, epochs=3, batch_size=8, callbacks=[callback], verbose=0)
    assert calls == [1] * len(model.history)


class Recorder(list):
    def record(self, done):
        self.append((done.verb, done.steps))


def test_a_fit_is_one_compiled_call_unless_somebody_looks(tmp_path):
    x, y = blobs(40)
    model, passes = model_of("cpu"), Recorder()
    ways = {
        (): [("train", 35)],
        ("callbacks",): [("train", 5)] * 7,
        ("validation_split",): [("train", 4), ("evaluate", 1)] * 7,
        ("verbose",): [("train", 5)] * 7,
        ("steps_per_epoch",): [("train", 3)] * 7,
        ("validation_split", "validation_freq"): [*[("train", 4)] * 3, ("evaluate", 1)] * 2 + [("train", 4)],
        ("checkpoint",): [("train", 5)] * 7,
        ("max_steps",): [("train", 5)] * 3 + [("train", 3)],
    }
    values = {"callbacks": [Callback()], "validation_split": 0.25, "verbose": 1, "steps_per_epoch": 3}
    values |= {"validation_freq": 3, "checkpoint": tmp_path / "c", "max_steps": 18}
    for given_options, expected in ways.items():
        passes.clear()
        token = recorder.set(passes)
        try:
            model.fit(x, y, epochs=7, batch_size=8, **{"verbose": 0} | {name: values[name] for name in given_options})
        finally:
            recorder.reset(token)
        assert passes == expected


def test_many_epochs_are_calls_of_so_many_steps(backend, monkeypatch):
    x, y = blobs(40)
    whole, parts = model_of(backend), model_of(backend)
    expected = whole.fit(x, y, epochs=7, batch_size=8, verbose=0)
    calls = calls_of(parts)
    monkeypatch.setattr(training, "STEPS_OF_A_CALL", 17)
    found = parts.fit(x, y, epochs=7, batch_size=8, verbose=0)
    assert calls == [3, 3, 1]
    assert_same(everything(whole, expected), everything(parts, found))
    monkeypatch.setattr(training, "STEPS_OF_A_CALL", 1)  # less than an epoch has
    calls.clear()
    parts.fit(x, y, epochs=3, batch_size=8, verbose=0)
    assert calls == [1, 1, 1]


@pytest.mark.skipif(INTERPRETED, reason="ten thousand epochs of interpreted kernels")
def test_ten_thousand_epochs_take_bounded_memory(monkeypatch):
    x, y = blobs(12)
    model = model_of("cpu")
    model.fit(x, y, batch_size=12, verbose=0)
    monkeypatch.setattr(training, "STEPS_OF_A_CALL", 1000)
    gc.collect()
    tracemalloc.start()
    history = model.fit(x, y, epochs=10_000, batch_size=12, verbose=0)
    _, peak = tracemalloc.get_traced_memory()
    kept = 10_000 * 260  # figures of an epoch: five floats in lists, its number, its loss
    assert peak < kept + 1000 * 200
    tracemalloc.stop()
    assert len(history) == 10_000 == len(history["seconds"])


def test_divergence_is_told_at_once_and_training_goes_on(backend):
    x, y = blobs(40)
    found = []
    for callbacks in ([], [Callback()]):
        model = model_of(backend, rule=fo.SGD)
        model.fit(x, y, epochs=2, batch_size=8, verbose=0)
        model.optimizer.lr = 1e30
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            history = model.fit(x, y, epochs=4, batch_size=8, callbacks=callbacks, verbose=0)
        found.append([everything(model, history), [str(warning.message) for warning in caught]])
        assert len(caught) == 1
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            other = model_of(backend, rule=fo.SGD)
            other.optimizer.lr = 1e30
            with pytest.raises(RuntimeWarning, match="diverged in epoch 1,"):
                other.fit(x, y, epochs=4, batch_size=8, callbacks=callbacks, verbose=0)
        assert (other.epochs_done, len(other.history), other.optimizer.steps) == (1, 1, 5)
    assert_same(*found)


def test_stop_training_of_another_thread_ends_the_fit(backend):
    x, y = blobs(200)
    model, again = model_of(backend), model_of(backend)
    model.fit(x, y, batch_size=4, verbose=0)

    def stop():
        model.stop_training = True

    timer = threading.Timer(0.3, stop)
    timer.start()
    history = model.fit(x, y, epochs=10**8, batch_size=4, verbose=0)
    timer.join()
    done = len(history)
    assert 0 < done == model.epochs_done - 1
    again.fit(x, y, epochs=1 + done, batch_size=4, verbose=0)
    assert_same(model.get_weights(), again.get_weights())
    assert_same(model.optimizer.state_dict(), again.optimizer.state_dict())


@pytest.mark.own_process
@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize("batch_size", [200, pytest.param(3, marks=pytest.mark.repeats)])
def test_interrupt_leaves_whole_epochs_in_the_history(backend, batch_size):
    if backend == "cpu" and INTERPRETED:
        pytest.skip("interpreted kernels are Python, which an interrupt stops within a batch")
    x, y = blobs(200)
    model, again = model_of(backend), model_of(backend)
    model.fit(x, y, batch_size=batch_size, verbose=0)
    again.fit(x, y, batch_size=batch_size, verbose=0)
    timer = threading.Timer(0.15, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        model.fit(x, y, epochs=10**9, batch_size=batch_size, verbose=0)
    timer.join()
    steps = -(-200 // batch_size)
    epochs, rest = divmod(model.optimizer.steps - steps, steps)
    assert len(model.history) == model.epochs_done - 1 == epochs > 0
    again.fit(x, y, epochs=epochs, batch_size=batch_size, verbose=0)
    assert_same(model.history.step_losses, again.history.step_losses)
    if not rest:
        assert_same(model.get_weights(), again.get_weights())
