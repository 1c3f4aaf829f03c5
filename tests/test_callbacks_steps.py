"""Callbacks within an epoch: it is trained in parts, with the bits of a single pass."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from helpers_model import assert_same, blobs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fastopt as fo
from fastopt.callbacks import Callback, LambdaCallback, ModelCheckpoint, TensorBoard
from fastopt.models import epoch_loop, training

X, Y = blobs(77)
TARGETS = np.eye(3)[Y % 3]


def model_of(backend, lr=None, metrics=("accuracy", "f1_macro", "r2", "mse"), **options):
    layers = [fo.Dense(8, "relu"), fo.Dropout(0.3), fo.Dense(3, "softmax")]
    model = fo.Sequential(layers, seed=1, backend=backend)
    model.compile(fo.Adam(lr=lr or fo.schedules.Cosine(0.05, 30), **options), "cce", list(metrics))
    return model


def listener(every=1):
    """A callback, and the list of (step, logs) that it hears."""
    heard = []
    return LambdaCallback(on_step_end=lambda model, step, logs: heard.append((step, logs)), every_steps=every), heard


def fit(model, *callbacks, epochs=2, batch_size=7, **options):
    return model.fit(X, TARGETS, epochs=epochs, batch_size=batch_size, callbacks=callbacks, verbose=0, **options)


def assert_the_same_training(ours, theirs):
    assert_same(ours.get_weights(), theirs.get_weights())
    for mine, other in zip(ours.optimizer.states, theirs.optimizer.states, strict=True):
        assert_same(mine, other)
    assert (ours.optimizer.steps, ours.epochs_done) == (theirs.optimizer.steps, theirs.epochs_done)
    np.testing.assert_array_equal(ours.history.step_losses, theirs.history.step_losses)
    for name, values in theirs.history.history.items():
        if name not in ("seconds", "samples_per_second"):
            assert ours.history[name] == values, name


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=15)
@given(
    every=st.lists(st.integers(1, 30), min_size=1, max_size=3),
    batch_size=st.sampled_from([1, 7, 11, 40, 77, 100]),
    accumulate=st.sampled_from([1, 2, 3]),
    clip=st.booleans(),
    shuffle=st.booleans(),
    validation=st.sampled_from([0.0, 0.25]),
)
def test_no_bit_changes(backend, every, batch_size, accumulate, clip, shuffle, validation):
    whole, parts = (model_of(backend, clip_norm=0.5 if clip else None) for _ in range(2))
    options = {
        "batch_size": batch_size, "accumulate": accumulate, "shuffle": shuffle, "validation_split": validation,
        "epochs": 2,
    }  # fmt: skip
    fit(whole, Callback(), **options)
    heard = [listener(n) for n in every]
    fit(parts, *(callback for callback, _ in heard), **options)
    assert_the_same_training(parts, whole)
    for n, (_, calls) in zip(every, heard, strict=True):
        assert [step for step, _ in calls] == list(range(n, whole.optimizer.steps + 1, n))


def test_it_hears_losses_and_rates(backend):
    """The mean loss is that over the rows since the call before, or the begin of the epoch."""
    model, (callback, heard) = model_of(backend), listener(4)
    history = fit(model, callback)  # 77 rows: 11 steps an epoch, all of 7 rows
    schedule, losses = fo.schedules.Cosine(0.05, 30), history.step_losses
    assert [step for step, _ in heard] == [4, 8, 12, 16, 20]
    since = [(0, 4), (4, 8), (11, 12), (12, 16), (16, 20)]
    for (step, logs), (begin, end) in zip(heard, since, strict=True):
        assert logs["lr"] == schedule(step - 1)
        assert logs["loss"] == pytest.approx(losses[begin:end].mean(), rel=1e-12)
    model, (callback, heard) = model_of(backend), listener(2)
    losses = fit(model, callback, epochs=1, batch_size=50).step_losses  # 50 and 27 rows
    assert heard[0][1]["loss"] == pytest.approx((50 * losses[0] + 27 * losses[1]) / 77, rel=1e-12)


def test_steps_are_those_of_the_optimizers_life(backend):
    model, (callback, heard) = model_of(backend), listener(10)
    fit(model, epochs=1)
    fit(model, callback, epochs=1)
    assert [step for step, _ in heard] == [20]


def test_an_epoch_is_one_call_without_listeners_and_as_many_as_needed_with_them(monkeypatch):
    calls = []
    train_epoch = training.train_epoch

    def counted(model, network, batches, *rest):
        calls.append(len(batches.order))
        return train_epoch(model, network, batches, *rest)

    monkeypatch.setattr(training, "train_epoch", counted)
    fit(model_of("numpy"), Callback())
    assert calls == [77, 77]
    calls.clear()
    fit(model_of("numpy"), listener(5)[0], listener(4)[0], epochs=1)
    assert calls == [28, 7, 21, 14, 7]  # steps 4, 5, 8, 10 and 11


def test_a_rate_set_within_an_epoch_holds_from_the_next_step_on(backend):
    rates = [0.1, 0.2, 0.05, 0.01, 0.3]

    def steer(model, step, logs):
        model.optimizer.lr = rates[step % 5]

    ours, theirs = model_of(backend, lr=0.1), model_of(backend, lr=lambda step: rates[step % 5])
    for model, callback in ((ours, LambdaCallback(on_step_end=steer)), (theirs, Callback())):
        fit(model, callback)
    assert_same(ours.get_weights(), theirs.get_weights())
    assert ours.history["lr"] == theirs.history["lr"] == [rates[0], rates[1]]


def test_weights_set_within_an_epoch_are_trained_on(backend):
    def halve(model, step, logs):
        if step == 5:
            model.set_weights([w * 0.5 for w in model.get_weights()])

    ours, plain = model_of(backend), model_of(backend)
    fit(ours, LambdaCallback(on_step_end=halve), epochs=1)
    fit(plain, epochs=1)
    np.testing.assert_array_equal(ours.history.step_losses[:5], plain.history.step_losses[:5])
    assert ours.history.step_losses[5] != plain.history.step_losses[5]


def test_an_error_leaves_a_consistent_model(backend):
    class Fail(Callback):
        every_steps = 3

        def on_step_end(self, model, step, logs):
            raise RuntimeError("from a callback")

    model = model_of(backend)
    with pytest.raises(RuntimeError, match="from a callback"):
        fit(model, Fail())
    assert (model.optimizer.steps, model.epochs_done, len(model.history)) == (3, 0, 0)
    again = model_of(backend)
    fit(again, epochs=1)
    fit(model, epochs=1)  # it goes on
    assert model.optimizer.steps == 14


def test_the_training_ends_with_the_step_and_its_epoch_is_validated(backend):
    """As in Keras: the epoch has the figures of the steps that were done, and `on_epoch_end` follows."""
    ended = []

    def stop(model, step, logs):
        model.stop_training = step == 14

    def end(model, epoch, logs):
        ended.append((epoch, dict(logs)))

    model, whole = model_of(backend), model_of(backend)
    callback = LambdaCallback(on_step_end=stop, on_epoch_end=end, every_steps=2)
    history = fit(model, callback, epochs=5, validation_data=(X, TARGETS))
    assert (model.optimizer.steps, model.epochs_done, history.epochs) == (14, 2, [1, 2])
    losses = fit(whole, epochs=2).step_losses
    assert_same(history.step_losses, losses[:14])
    assert history["loss"][1] == pytest.approx(losses[11:14].mean(), rel=1e-12)
    assert [epoch for epoch, _ in ended] == [1, 2]
    assert ended[1][1]["val_loss"] == model.evaluate(X, TARGETS)["loss"] == history["val_loss"][1]


def test_files_of_steps(backend, tmp_path):
    weights = {}
    keep = LambdaCallback(on_step_end=lambda model, step, logs: weights.update({step: model.get_weights()}))
    checkpoint = ModelCheckpoint(tmp_path / "{epoch}-{step}-{loss:.1f}.safetensors", save_freq=8)
    fit(model_of(backend), checkpoint, keep)
    names = sorted(path.name.rsplit("-", 1)[0] for path in tmp_path.iterdir())
    assert names == ["1-8", "2-16"]
    for path in tmp_path.iterdir():
        model = fo.load_model(path)
        assert_same(model.get_weights(), weights[model.optimizer.steps])


def test_losses_of_steps_for_tensorboard(monkeypatch, tmp_path):
    scalars = []

    class Writer:
        def __init__(self, logdir):
            pass

        def add_scalar(self, tag, value, global_step):
            scalars.append((tag, value, global_step))

        def flush(self):
            pass

        close = flush

    module = type(sys)("tensorboardX")
    module.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "tensorboardX", module)
    callback, heard = listener(5)
    fit(model_of("numpy"), TensorBoard(tmp_path, update_freq=5), callback)
    found = [(value, step) for tag, value, step in scalars if tag == "batch_loss"]
    assert found == [(logs["loss"], step) for step, logs in heard]
    assert [step for tag, _, step in scalars if tag == "batch_lr"] == [5, 10, 15, 20]


def test_the_bar_counts_on(monkeypatch, capsys):
    seen = []

    def train(model, network, batches, advance):
        advance(len(batches.order) // batches.batch_size, 0.5)
        return train_epoch(model, network, batches)

    train_epoch = training.train_epoch
    monkeypatch.setattr(training, "train_epoch", train)
    monkeypatch.setattr(epoch_loop.Bar, "advance", lambda self, steps, loss: seen.append(steps))
    model_of("numpy").fit(X, TARGETS, batch_size=7, callbacks=[listener(4)[0]], verbose=1)
    assert seen == [4, 8, 11]
    capsys.readouterr()
