"""Callbacks that watch a figure, given values by hand, and beside Keras's; each option is honoured on each backend."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers_model import assert_same, blobs, classifier

import fastopt as fo
from fastopt import EarlyStopping
from fastopt.callbacks import Callback, LambdaCallback, ModelCheckpoint, MonitorCallback, ReduceLROnPlateau

NAN = float("nan")


class Model:
    """The part of a model that monitors use."""

    def __init__(self, lr=1.0):
        self.optimizer = fo.SGD(np.zeros(1), lr=lr, backend="numpy")
        self.stop_training, self.epoch = False, 0

    def get_weights(self):
        return [np.full(1, self.epoch)]

    def set_weights(self, weights):
        self.restored = int(weights[0][0])


def driven(callback, values, lr=1.0, name="val_loss"):
    """Call a callback with these values of its figure; return the model and the rate of each epoch."""
    model, rates = Model(lr), []
    with callback.used():
        callback.on_train_begin(model)
        for model.epoch, value in enumerate(values, 1):
            rates.append(model.optimizer.lr)
            callback.on_epoch_begin(model, model.epoch)
            callback.on_epoch_end(model, model.epoch, {name: value})
            if model.stop_training:
                break
        callback.on_train_end(model)
    return model, rates


def test_verbose_callbacks_say_what_they_do(capsys, tmp_path):
    driven(EarlyStopping(patience=2, restore_best_weights=True, verbose=1), [0.5, 0.6, 0.75, 1])
    driven(EarlyStopping(patience=2, restore_best_weights=True), [0.5, 0.6, 0.75, 1])
    driven(ReduceLROnPlateau(patience=1, verbose=True), [0.5, 0.6], lr=0.5)
    assert capsys.readouterr().out.splitlines() == [
        "epoch 3: the training stops, val_loss is 0.75, the best was 0.5 of epoch 1",
        "epoch 1: its weights are put back",
        "epoch 2: the learning rate is 0.05 from now on",
    ]
    path = str(tmp_path / "m")
    classifier().fit(*blobs(60), callbacks=[ModelCheckpoint(path, "loss", verbose=1)], epochs=2, verbose=0)
    assert capsys.readouterr().out.splitlines() == [f"epoch {epoch}: the model is in {path}" for epoch in (1, 2)]


# ---------------------------------------------------------------- EarlyStopping


@pytest.mark.parametrize(
    ("options", "values", "epochs", "best"),
    [
        # a threshold is reached from either side, alone or before patience ends
        ({"threshold": 0.5}, [3, 4, 5, 0.5, 0.1], 4, 4),
        ({"threshold": 0.5}, [3, 4, 5, 0.51], None, 4),
        ({"threshold": 0.5, "mode": "max"}, [0.1, 0.4, 0.5, 0.9], 3, 3),
        ({"threshold": 0.5, "patience": 2}, [3, 4, 5, 0.5], 3, 1),
        ({"threshold": 0.5, "patience": 2}, [3, 0.4], 2, 2),
        ({"threshold": 0.5}, [NAN, 0.2], 2, 2),
        ({"threshold": -0.5, "mode": "max"}, [-1, -0.75, -0.5], 3, 3),
        ({"threshold": 0.5, "start_from_epoch": 2}, [0.1, 0.1, 0.9, 0.2], 4, 4),
        # epochs that are not looked at
        ({"start_from_epoch": 3}, [1, 2, 3, 4, 5], 5, 4),
        ({"start_from_epoch": 3, "patience": 2}, [0, 0, 0, 4, 3, 5, 6], 7, 5),
        # improvements below the baseline do not end the waiting
        ({"baseline": 1.0, "patience": 2}, [3, 2.5, 2.75, 0], 3, 2),
        ({"baseline": 1.0, "patience": 2}, [0.9, 0.8, 2, 0.7], None, 4),
        ({"baseline": 1.0, "patience": 3}, [3, 0.5, 0.6, 0.7, 0.8], 5, 2),
        ({"baseline": 1.0, "mode": "max", "patience": 2}, [0.5, 0.75, 0.6, 2], 3, 2),
    ],
)
def test_early_stopping(options, values, epochs, best):
    stopper = EarlyStopping(restore_best_weights=True, **options)
    model, rates = driven(stopper, values)
    assert stopper.stopped_epoch == epochs
    assert len(rates) == (epochs or len(values))
    assert (stopper.best_epoch, stopper.best, model.restored) == (best, values[best - 1], best)


def test_patience_without_a_threshold_is_that_of_keras():
    assert EarlyStopping().patience == 0
    assert EarlyStopping(threshold=0.5).patience is None
    assert EarlyStopping(threshold=0.5, patience=3).patience == 3


# ---------------------------------------------------------------- ReduceLROnPlateau


@pytest.mark.parametrize(
    ("options", "values", "rates"),
    [
        ({"patience": 1, "factor": 0.5}, [3, 3, 3, 2, 2], [1, 1, 0.5, 0.25, 0.25]),
        ({"patience": 2, "factor": 0.5}, [3, 3, 3, 3, 3], [1, 1, 1, 0.5, 0.5]),
        ({"patience": 0, "factor": 0.5}, [3, 3, 2], [1, 1, 0.5]),
        ({"patience": 1, "factor": 0.5, "min_lr": 0.4}, [3, 3, 3, 3], [1, 1, 0.5, 0.4]),
        ({"patience": 1, "factor": 0.5, "min_lr": 2.0}, [3, 3, 3], [1, 1, 1]),
        ({"patience": 1, "factor": 0.5, "cooldown": 2}, [3, 3, 3, 3, 3], [1, 1, 0.5, 0.5, 0.25]),
        ({"patience": 1, "factor": 0.5, "mode": "max"}, [3, 4, 4, 5], [1, 1, 1, 0.5]),
        ({"patience": 1, "factor": 0.5, "min_delta": 0.5}, [3, 2.75, 2.25, 2], [1, 1, 0.5, 0.5]),
        ({"patience": 1, "factor": 0.5}, [3, 3 - 1e-5, 2], [1, 1, 0.5]),  # min_delta is 1e-4
        ({"patience": 1, "factor": 0.5}, [NAN, NAN, 2], [1, 0.5, 0.25]),
        ({"patience": 1, "factor": 0.0}, [3, 3, 3], [1, 1, 0]),
    ],
)
def test_reduce_lr_on_plateau(options, values, rates):
    plateau = ReduceLROnPlateau(**options)
    assert driven(plateau, values)[1] == rates
    assert driven(plateau, values)[1] == rates  # it starts afresh


def test_a_lower_rate_is_what_the_next_epoch_trains_with(backend):
    """Step for step as if the rate had been set by hand."""
    x, y = blobs(40)
    ours, by_hand = classifier(backend), classifier(backend)
    plateau = ReduceLROnPlateau("loss", factor=0.5, patience=1, min_delta=99)  # every epoch is a plateau
    history = ours.fit(x, y, epochs=3, callbacks=[plateau], verbose=0)
    for epoch, rate in enumerate(history["lr"], 1):
        by_hand.optimizer.lr = rate
        by_hand.fit(x, y, epochs=epoch, initial_epoch=epoch - 1, verbose=0)
    lr = history["lr"][0]
    assert history["lr"] == [lr, lr, lr / 2]
    assert ours.optimizer.lr == lr / 4
    by_hand.optimizer.lr = lr / 4
    assert_same(ours.get_weights(), by_hand.get_weights())


def test_a_schedule_is_not_for_plateaus(backend):
    model = classifier(backend)
    model.optimizer.lr = fo.schedules.Cosine(0.1, steps=10)
    with pytest.raises(ValueError, match=r"lowers a constant learning rate; got an .* whose lr is Cosine\(lr=0.1"):
        model.fit(*blobs(), callbacks=[ReduceLROnPlateau("loss")], verbose=0)
    assert model.optimizer.steps == 0


# ---------------------------------------------------------------- beside Keras

KERAS = """
import json, os, sys
os.environ["KERAS_BACKEND"] = "torch"
import keras

class Model:
    def __init__(self):
        self.stop_training, self.epoch = False, 0
        self.optimizer = keras.optimizers.SGD(learning_rate=1.0)
    def get_weights(self):
        return self.epoch
    def set_weights(self, weights):
        self.restored = weights

found = []
for kind, options, values in json.load(sys.stdin):
    model, rates = Model(), []
    callback = getattr(keras.callbacks, kind)("val_loss", **options)
    callback.set_model(model)
    callback.on_train_begin()
    for epoch, value in enumerate(values):
        model.epoch = epoch + 1
        rates.append(round(float(model.optimizer.learning_rate), 6))
        callback.on_epoch_end(epoch, {"val_loss": value})
        if model.stop_training:
            break
    callback.on_train_end()
    found.append([rates, model.stop_training, getattr(model, "restored", None)])
print(json.dumps(found))
"""


def drawn_cases(count=120):
    rng = np.random.default_rng(3)
    for i in range(count):
        values = np.round(rng.random(25), 1).tolist()
        mode = str(rng.choice(["min", "max"]))
        if i % 2:
            options = {"patience": int(rng.integers(0, 4)), "min_delta": float(rng.choice([0, 0.25])), "mode": mode}
            options |= {"start_from_epoch": int(rng.integers(0, 5)), "restore_best_weights": True}
            options |= {"baseline": 0.25} if rng.random() < 0.5 else {}
            yield "EarlyStopping", options, values
        else:
            options = {"patience": int(rng.integers(0, 4)), "min_delta": float(rng.choice([0, 0.25])), "mode": mode}
            options |= {"cooldown": int(rng.integers(0, 3)), "factor": 0.5, "min_lr": float(rng.choice([0, 0.1]))}
            yield "ReduceLROnPlateau", options, values


def test_keras_does_the_same():
    for module in ("keras", "torch"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")
    cases = list(drawn_cases())
    done = subprocess.run(
        [sys.executable, "-c", KERAS], input=json.dumps(cases), capture_output=True, text=True, check=False, timeout=240
    )
    assert done.returncode == 0, done.stderr
    for (kind, options, values), (rates, stopped, restored) in zip(cases, json.loads(done.stdout), strict=True):
        model, ours = driven(getattr(fo.callbacks, kind)(**options), values)
        assert [round(rate, 6) for rate in ours] == rates, (kind, options, values)
        assert model.stop_training == stopped
        assert getattr(model, "restored", None) == restored, (options, values)


# ---------------------------------------------------------------- ModelCheckpoint


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("filepath", "options", "written"),
    [
        ("last.safetensors", {}, ["last.safetensors"]),
        ("new/{epoch:02d}.safetensors", {}, [f"new/0{i}.safetensors" for i in range(1, 6)]),
        ("{epoch}.safetensors", {"save_freq": "2 epochs"}, ["2.safetensors", "4.safetensors"]),
        ("{epoch}.safetensors", {"save_freq": "1 epoch"}, [f"{i}.safetensors" for i in range(1, 6)]),
        ("{epoch}.safetensors", {"save_freq": "9 epochs"}, []),
        (Path("p.safetensors"), {}, ["p.safetensors"]),
    ],
)
def test_files_of_epochs(filepath, options, written, folder, backend):
    model = classifier(backend)
    checkpoint = ModelCheckpoint(filepath, **options)
    model.fit(*blobs(40), epochs=5, callbacks=[checkpoint], verbose=0)
    assert names(folder) == written
    assert (checkpoint.path is None) == (not written)


def test_a_file_is_the_model_as_it_was(folder, backend):
    """Training goes on from it, bit for bit."""
    model, weights = classifier(backend), []
    keep = LambdaCallback(on_epoch_end=lambda model, epoch, logs: weights.append(model.get_weights()))
    x, y = blobs(40)
    checkpoint = ModelCheckpoint("{epoch}-{loss:.3f}-{val_acc:.2f}.safetensors")
    history = model.fit(x, y, epochs=3, validation_split=0.25, callbacks=[checkpoint, keep], verbose=0)
    assert names(folder) == [
        f"{i + 1}-{history['loss'][i]:.3f}-{history['val_accuracy'][i]:.2f}.safetensors" for i in range(3)
    ]
    assert checkpoint.path == names(folder)[2]
    for i, name in enumerate(names(folder)):
        assert_same(fo.load_model(name).get_weights(), weights[i])
    again = fo.load_model(names(folder)[0])
    again.fit(x, y, epochs=3, initial_epoch=1, validation_split=0.25, verbose=0)
    assert_same(again.get_weights(), model.get_weights())


@pytest.mark.parametrize(
    ("options", "values", "saved"),
    [
        ({}, [3, 2, 4, 1, 1], [1, 2, 4]),
        ({"mode": "max"}, [3, 2, 4, 1, 5], [1, 3, 5]),
        ({"initial_value_threshold": 2.5}, [3, 2, 4, 1, 1], [2, 4]),
        ({"save_freq": "2 epochs"}, [0, 2, 1, 3, 0], [2]),
        ({}, [NAN, 2, NAN, 1, 1], [2, 4]),
    ],
)
def test_the_best_ones(options, values, saved, monkeypatch):
    found = []
    checkpoint = ModelCheckpoint("m", save_best_only=True, **options)
    monkeypatch.setattr(Model, "save", lambda self, path: found.append(self.epoch), raising=False)
    driven(checkpoint, values)
    assert found == saved
    assert checkpoint.best == values[saved[-1] - 1]


@pytest.mark.parametrize(
    ("filepath", "options", "error", "message"),
    [
        ("{epochs}.s", {}, ValueError, r"fields of filepath must be among epoch, loss, accuracy.*; got '\{epochs\}.s'"),
        ("{val_loss}.s", {}, ValueError, "must be among epoch, loss, accuracy, lr, seconds"),
        ("{}.s", {}, ValueError, "fields of filepath must be"),
        ("{epoch:x.3q}.s", {}, ValueError, "fields of filepath must be"),
        ("{epoch.s", {}, ValueError, "fields of filepath must be"),
        ("{accuracy}.s", {"save_freq": 2}, ValueError, "must be among epoch, step, loss, lr"),
        ("m.s", {"save_best_only": True}, ValueError, "ModelCheckpoint cannot monitor 'val_loss'"),
    ],
)
def test_what_a_file_cannot_be_called_is_refused_before_training(filepath, options, error, message, folder):
    model = classifier()
    with pytest.raises(error, match=message):
        model.fit(*blobs(), callbacks=[ModelCheckpoint(filepath, **options)])
    assert model.optimizer.steps == 0
    assert not names(folder)


# ---------------------------------------------------------------- arguments

WRONG = [
    (lambda: EarlyStopping(threshold="1"), TypeError, "threshold must be a number; got '1'"),
    (lambda: EarlyStopping(baseline=NAN), ValueError, "baseline must be"),
    (lambda: EarlyStopping(start_from_epoch=-1), ValueError, "start_from_epoch must be at least 0"),
    (lambda: ReduceLROnPlateau(factor=1.0), ValueError, r"factor must be in \[0, 1\); got 1.0"),
    (lambda: ReduceLROnPlateau(patience=1.5), TypeError, "patience must be a whole number"),
    (lambda: ReduceLROnPlateau(cooldown=-1), ValueError, "cooldown must be at least 0"),
    (lambda: ReduceLROnPlateau(min_lr=-1), ValueError, "min_lr must be at least 0"),
    (lambda: ReduceLROnPlateau(mode="best"), ValueError, "unknown mode 'best'; known: auto, min, max"),
    (lambda: ModelCheckpoint(3), TypeError, "filepath must be a str or a path; got 3"),
    (lambda: ModelCheckpoint(b"m"), TypeError, "filepath must be a str or a path"),
    (lambda: ModelCheckpoint("m", save_best_only=1), TypeError, "save_best_only must be True or False"),
    (lambda: ModelCheckpoint("m", save_freq=0), ValueError, "save_freq must be at least 1"),
    (lambda: ModelCheckpoint("m", save_freq="5 steps"), ValueError, 'save_freq must be "epoch", "n epochs" or a n'),
    (lambda: ModelCheckpoint("m", save_freq=5, save_best_only=True), ValueError, "save_freq must be epochs; got 5"),
    (lambda: ModelCheckpoint("m", initial_value_threshold="x"), TypeError, "initial_value_threshold must be a number"),
    (lambda: MonitorCallback(3), TypeError, "monitor must be a string; got 3"),
    (
        lambda: LambdaCallback(on_epoch_end=lambda epoch, logs: 0),
        TypeError,
        r"on_epoch_end must take \(model, epoch, logs\); got a function of \(epoch, logs\)",
    ),
    (lambda: EarlyStopping(verbose=2), ValueError, "verbose must be 0 or 1; got 2"),
    (lambda: LambdaCallback(3), TypeError, "on_epoch_begin must be a function; got 3"),
    (lambda: LambdaCallback(every_steps=3), ValueError, "every_steps is for on_step_end, which must be given"),
    (lambda: LambdaCallback(on_step_end=print, every_steps=0), ValueError, "every_steps must be at least 1"),
    (lambda: LambdaCallback(reads_weights=1), TypeError, "reads_weights must be True or False"),
]


@pytest.mark.parametrize(("make", "error", "message"), WRONG)
def test_wrong_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()


# ---------------------------------------------------------------- functions, and what callbacks say of themselves


def test_functions_as_a_callback():
    heard = []
    functions = {
        name: lambda *args, name=name: heard.append((name, *args[1:-1], len(args)))
        for name in ("on_train_begin", "on_epoch_begin", "on_epoch_end", "on_train_end")
    }
    classifier().fit(*blobs(40), epochs=2, callbacks=[LambdaCallback(**functions)])
    epochs = [call for i in (1, 2) for call in (("on_epoch_begin", 2), ("on_epoch_end", i, 3))]
    assert heard == [("on_train_begin", 1), *epochs, ("on_train_end", 1)]


def test_an_interrupt_reaches_a_function():
    heard = []

    def stop(model, epoch, logs):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        classifier().fit(*blobs(40), callbacks=[LambdaCallback(on_epoch_end=stop, on_interrupt=heard.append)])
    assert len(heard) == 1


@pytest.mark.parametrize("make", [EarlyStopping, ReduceLROnPlateau, lambda name: ModelCheckpoint("m", name, True)])
def test_a_monitor_watches_one_training_at_a_time(make, folder):
    monitor = make("loss")

    class Nested(Callback):
        def on_epoch_end(self, model, epoch, logs):
            classifier().fit(*blobs(40), callbacks=[monitor])

    with pytest.raises(RuntimeError, match=f"this {type(monitor).__name__} is watching another training already"):
        classifier().fit(*blobs(40), callbacks=[monitor, Nested()])


def test_a_monitor_of_your_own():
    class Highest(MonitorCallback):
        def on_epoch_end(self, model, epoch, logs):
            if self.improves(logs[self.monitor]):
                self.best = logs[self.monitor]

    highest, x, y = Highest("acc"), *blobs(60)
    history = classifier().fit(x, y, epochs=5, callbacks=[highest])
    assert (highest.monitor, highest.mode, highest.best) == ("accuracy", "max", max(history["accuracy"]))


def test_modes_of_all_metrics():
    for name in ("accuracy", "acc", "r2", "val_r2_score", "top_k_categorical_accuracy"):
        assert EarlyStopping(name).mode == "max"
    for name in ("loss", "val_loss", "mse", "val_mae", "something"):
        assert EarlyStopping(name).mode == "min"


def test_only_callbacks_that_may_look_at_arrays_read_weights():
    reading = {
        "EarlyStopping": False, "ReduceLROnPlateau": False, "ModelCheckpoint": False, "MonitorCallback": False,
        "CSVLogger": False, "TensorBoard": False, "Callback": True, "LambdaCallback": True,
    }  # fmt: skip
    classes = {name: cls for name in fo.callbacks.__all__ if isinstance(cls := getattr(fo.callbacks, name), type)}
    found = {name: cls.reads_weights for name, cls in classes.items() if issubclass(cls, Callback)}
    assert found == reading
    assert LambdaCallback(reads_weights=False).reads_weights is False


def test_figures_are_finite_where_thresholds_are():
    assert EarlyStopping(threshold=-1e300).threshold == -1e300
    for wrong in (math.inf, -math.inf * 0):
        with pytest.raises(ValueError, match="threshold must be"):
            EarlyStopping(threshold=wrong)
    assert os.fspath(ModelCheckpoint(Path("a/b")).filepath) == os.path.join("a", "b")
