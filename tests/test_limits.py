"""Limits of a training, and epochs of a number of steps: they split it between steps, without changing a bit."""

from __future__ import annotations

import math
import time
from itertools import chain

import numpy as np
import pytest
from helpers_model import assert_same, snapshot
from helpers_resume import TARGETS, X, Y, assert_the_same_training, fit, model_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fastopt as fo
from fastopt.callbacks import Callback, CSVLogger, EarlyStopping, ModelCheckpoint, ReduceLROnPlateau
from fastopt.models import _limits, training


def rows_of(backend, **options):
    """The rows of every step of a training, by the target that each row has alone."""
    seen, find = [], training.train_epoch

    def watched(model, network, batches, advance=None):
        own = batches.epoch(0)
        seen.extend(np.split(own.order, np.cumsum(batches.rows_of_steps())[:-1]))
        return find(model, network, batches, advance)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "train_epoch", watched)
        fit(model_of(backend), **options)
    return [step.tolist() for step in seen]


# ---------------------------------------------------------------- steps_per_epoch


def test_an_epoch_of_some_steps_goes_on_in_the_data_where_the_last_one_ended():
    """Each time through the data in the order of that pass, all steps of whole batches."""
    steps = rows_of("numpy", epochs=5, steps_per_epoch=5, batch_size=10)
    assert [len(step) for step in steps] == [10] * 25
    passes = [fo.kernels.spec.Shuffle(1, i).order(np.arange(77)).tolist() for i in range(4)]
    assert list(chain(*steps)) == list(chain(*passes))[:250]
    in_order = rows_of("numpy", epochs=4, steps_per_epoch=3, batch_size=7, accumulate=2, shuffle=False)
    assert list(chain(*in_order)) == (list(range(77)) * 3)[: 4 * 3 * 14]


def test_epochs_of_steps_are_one_call_each_and_have_their_figures(backend, monkeypatch):
    calls, train_epoch = [], training.train_epoch

    def counted(model, network, batches, *rest):
        calls.append(batches.steps)
        return train_epoch(model, network, batches, *rest)

    monkeypatch.setattr(training, "train_epoch", counted)
    model = model_of(backend)
    history = fit(model, epochs=3, steps_per_epoch=9)  # beyond the end of the data, too
    assert calls == [9, 9, 9]
    assert (model.optimizer.steps, len(history), len(history.step_losses)) == (27, 3, 27)
    np.testing.assert_allclose(history["loss"], history.step_losses.reshape(3, 9).mean(axis=1), rtol=1e-12)


def test_epochs_of_as_many_steps_as_the_data_have_are_the_usual_ones(backend):
    # without r2, whose variation of the targets is summed in the order of the rows that are given
    ours, theirs = (model_of(backend, metrics=("accuracy", "f1_macro", "mse")) for _ in range(2))
    fit(ours, batch_size=11, steps_per_epoch=7)
    fit(theirs, batch_size=11, callbacks=[Callback()])
    assert_the_same_training(ours, theirs)


def test_epochs_of_steps_go_on_in_another_fit(backend):
    ours, theirs = model_of(backend), model_of(backend)
    fit(ours, epochs=2, steps_per_epoch=4)
    fit(ours, epochs=5, initial_epoch=2, steps_per_epoch=4)
    whole = fit(theirs, epochs=5, steps_per_epoch=4)
    assert_same(ours.get_weights(), theirs.get_weights())
    assert_same(ours.history.step_losses, whole.step_losses[8:])


# ---------------------------------------------------------------- validation_freq


@pytest.mark.parametrize(
    ("freq", "validated"),
    [(1, [1, 2, 3, 4, 5]), (2, [2, 4]), ([1, 4], [1, 4]), (range(2, 9, 2), [2, 4]), (9, [])],
)
def test_some_epochs_are_validated(backend, freq, validated):
    heard = []

    class Hear(Callback):
        def on_epoch_end(self, model, epoch, logs):
            heard.append("val_loss" in logs)
            assert ("val_accuracy" in logs) == heard[-1]

    model, every = model_of(backend), model_of(backend)
    history = fit(model, epochs=5, validation_split=0.25, validation_freq=freq, callbacks=[Hear()])
    reference = fit(every, epochs=5, validation_split=0.25)
    assert [epoch for epoch, found in enumerate(heard, 1) if found] == validated
    assert list(history.history) == list(reference.history)
    assert len({len(values) for values in history.history.values()}) == 1
    for epoch, (ours, theirs) in enumerate(zip(history["val_loss"], reference["val_loss"], strict=True), 1):
        assert ours == theirs if epoch in validated else math.isnan(ours)
    assert_same(model.get_weights(), every.get_weights())


def test_callbacks_count_validated_epochs_alone(tmp_path):
    model = model_of("numpy", lr=0.5)
    stopper, plateau = EarlyStopping(patience=2), ReduceLROnPlateau(patience=2, factor=0.5)
    saver = ModelCheckpoint(tmp_path / "{epoch}-{val_loss:.2f}", save_freq="epoch")
    best, table = ModelCheckpoint(tmp_path / "best", save_best_only=True), CSVLogger(tmp_path / "figures.csv")
    callbacks = [stopper, plateau, saver, best, table]
    history = fit(model, epochs=60, validation_split=0.5, validation_freq=3, callbacks=callbacks)
    values = np.array(history["val_loss"])[2::3]
    first = next(i for i in range(2, len(values)) if min(values[i - 1 : i + 1]) >= min(values[: i - 1]))
    assert stopper.stopped_epoch == 3 * (first + 1) == len(history)
    assert model.optimizer.lr < 0.5
    assert best.best == np.nanmin(history["val_loss"])
    assert (tmp_path / "1-nan").exists()
    lines = (tmp_path / "figures.csv").read_text().splitlines()
    column = lines[0].split(",").index("val_loss")
    assert_same(np.array([float(line.split(",")[column]) for line in lines[1:]]), np.array(history["val_loss"]))


# ---------------------------------------------------------------- max_steps


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=6)
@given(
    steps=st.integers(1, 30), batch_size=st.sampled_from([7, 11, 40, 100]), accumulate=st.sampled_from([1, 3]),
    of_epoch=st.sampled_from([None, 1, 4]), shuffle=st.booleans(),
)  # fmt: skip
def test_a_training_ends_with_a_step(backend, steps, batch_size, accumulate, of_epoch, shuffle):
    options = {
        "batch_size": batch_size, "accumulate": accumulate, "steps_per_epoch": of_epoch, "shuffle": shuffle,
    }  # fmt: skip
    model, whole, weights = model_of(backend), model_of(backend), {}
    history = fit(model, epochs=None, max_steps=steps, validation_split=0.25, **options)
    keep = fo.callbacks.LambdaCallback(on_step_end=lambda model, step, _: weights.update({step: model.get_weights()}))
    losses = fit(whole, epochs=len(history), validation_split=0.25, callbacks=[keep], **options).step_losses
    assert model.optimizer.steps == len(history.step_losses) == steps
    assert_same(history.step_losses, losses[:steps])
    assert_same(model.get_weights(), weights[steps])
    of_epoch = of_epoch or -(-58 // (min(batch_size, 58) * accumulate))
    assert len(history) == model.epochs_done == -(-steps // of_epoch)
    assert len(history["val_loss"]) == len(history)


def test_the_figures_of_a_cut_epoch_are_those_of_its_rows(backend):
    model, other = model_of(backend), model_of(backend)
    history = fit(model, max_steps=15)
    rows = fo.kernels.spec.Shuffle(1, 1).order(np.arange(77))[: 4 * 7]
    fit(other, epochs=1)
    direct = other.fit(X[rows], TARGETS[rows], batch_size=7, shuffle=False, verbose=0)
    for name in ("loss", "accuracy", "f1_macro", "mse", "lr"):
        assert history[name][1] == direct[name][0], name
    assert history["accuracy"][1] == pytest.approx(round(history["accuracy"][1] * 28) / 28)


def test_the_first_limit_ends_the_training(backend):
    for options, steps in [
        ({"epochs": 1, "max_steps": 99}, 11),
        ({"epochs": 9, "max_steps": 12}, 12),
        ({"epochs": None, "max_steps": 22}, 22),
        ({"epochs": 3, "initial_epoch": 1, "max_steps": 99}, 22),
    ]:
        model = model_of(backend)
        fit(model, **options)
        assert model.optimizer.steps == steps
        fit(model, epochs=9, max_steps=3)  # counted from its own begin
        assert model.optimizer.steps == steps + 3


# ---------------------------------------------------------------- max_seconds


@pytest.fixture
def clock(monkeypatch):
    """A clock that goes on by 10 ms with each step, and the sizes of parts."""
    now, parts, train_epoch = [0.0], [], training.train_epoch

    def timed(model, network, batches, *rest):
        result = train_epoch(model, network, batches, *rest)
        parts.append(batches.steps)
        now[0] += 0.01 * batches.steps
        return result._replace(seconds=0.01 * batches.steps)

    monkeypatch.setattr(training, "train_epoch", timed)
    monkeypatch.setattr(_limits.time, "monotonic", lambda: now[0])
    return now, parts


@pytest.mark.parametrize("seconds", [0.015, 0.5, 3.0])
def test_a_training_ends_with_a_time(clock, backend, seconds):
    _, parts = clock
    ours, theirs = model_of(backend), model_of(backend)
    history = fit(ours, epochs=None, max_seconds=seconds, batch_size=2)
    assert abs(ours.optimizer.steps - seconds / 0.01) <= 1
    assert len(parts) <= 20 * len(history)
    fit(theirs, epochs=None, max_steps=ours.optimizer.steps, batch_size=2)
    assert_the_same_training(ours, theirs)


def test_a_time_far_away_costs_few_parts(clock):
    _, parts = clock
    fit(model_of("numpy"), epochs=30, batch_size=2, max_seconds=1e6)
    assert sum(parts) == 30 * 39
    assert parts == [1, 8, 30, *[39] * 29]  # the first epoch looks for the pace


def test_time_passes_between_epochs_too(clock):
    now, _ = clock

    class Wait(Callback):
        def on_epoch_end(self, model, epoch, logs):
            now[0] += 100

    history = fit(model_of("numpy"), epochs=9, max_seconds=150, callbacks=[Wait()])
    assert history.epochs == [1, 2]


def test_a_real_time():
    start = time.monotonic()
    model = model_of("numpy")
    history = fit(model, epochs=None, max_seconds=0.2)
    assert time.monotonic() - start >= 0.2
    assert sum(history["seconds"]) < 60
    assert model.epochs_done == len(history) > 0


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"steps_per_epoch": 0}, ValueError, "steps_per_epoch must be at least 1; got 0"),
        ({"max_steps": 1.5}, TypeError, "max_steps must be a whole number; got 1.5"),
        ({"max_steps": 0}, ValueError, "max_steps must be at least 1; got 0"),
        ({"max_seconds": 0}, ValueError, "max_seconds must be above 0; got 0"),
        ({"max_seconds": "1 min"}, TypeError, "max_seconds must be"),
        ({"max_seconds": float("nan")}, ValueError, "max_seconds must be"),
        ({"validation_freq": 2}, ValueError, "validation_freq is for validation_split or validation_data"),
        ({"validation_freq": 0, "validation_split": 0.5}, ValueError, "validation_freq must be at least 1; got 0"),
        ({"validation_freq": [1, 0], "validation_split": 0.5}, ValueError, "validation_freq, .* must be at least 1"),
        ({"checkpoint_every": 3}, ValueError, "checkpoint_every needs checkpoint"),
        ({"checkpoint": "c", "checkpoint_every": "soon"}, ValueError, "checkpoint_every must be a number of steps, or"),
        ({"checkpoint": "c", "checkpoint_every": "0 epochs"}, ValueError, "checkpoint_every must be a number of steps"),
        ({"checkpoint": "c", "checkpoint_every": 0}, ValueError, "checkpoint_every must be at least 1; got 0"),
        ({"checkpoint": 3}, TypeError, "checkpoint must be a path"),
        ({"checkpoint": "no-folder/c"}, FileNotFoundError, "checkpoint .*no-folder/c: there is no folder"),
        ({"resume": True}, ValueError, "resume=True goes on from the file of checkpoint"),
        ({"resume": 3}, TypeError, "resume must be a path"),
        ({"resume": "nothing"}, FileNotFoundError, "resume: there is no checkpoint .*nothing"),
        ({"resume": "nothing", "checkpoint": "c"}, FileNotFoundError, "resume: there is no checkpoint .*nothing"),
    ],
)
def test_impossible_options_change_nothing(options, error, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = model_of("numpy")
    model.build(6)
    before = snapshot(model)
    with pytest.raises(error, match=message):
        fit(model, **options)
    assert_same(before, snapshot(model))
    assert list(tmp_path.iterdir()) == []


def test_labels(backend):
    """Limits with labels for targets, and another optimizer than the first tests'."""
    model = fo.Sequential([fo.Dense(3, "softmax")], seed=2, backend=backend)
    model.compile(fo.SGD(lr=0.1, momentum=0.9), "sparse_categorical_crossentropy", ["accuracy"])
    history = model.fit(X, Y, epochs=None, batch_size=16, max_steps=8, steps_per_epoch=3, verbose=0)
    assert (model.optimizer.steps, len(history), history.step_losses.shape) == (8, 3, (8,))
