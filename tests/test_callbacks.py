"""Callbacks are called in order and may stop or steer; EarlyStopping keeps the best epoch."""


import numpy as np
import pytest
from helpers_interrupts import handled, press
from helpers_model import assert_same, blobs, classifier, snapshot

from fastopt import Callback, EarlyStopping


class Recorder(Callback):
    def __init__(self):
        self.calls = []

    def check(self, names):
        self.calls.append(("check", tuple(names)))

    def on_train_begin(self, model):
        self.calls.append("begin")

    def on_epoch_begin(self, model, epoch):
        self.calls.append(("epoch begins", epoch, model.epochs_done))

    def on_epoch_end(self, model, epoch, logs):
        self.calls.append(("epoch ends", epoch, model.epochs_done, len(model.history)))
        self.logs = dict(logs)

    def on_train_end(self, model):
        self.calls.append("end")


class Script(Callback):
    """Pretends that the validation loss took these values, and makes every epoch's weights recognisable."""

    def __init__(self, stopper, values):
        self.stopper, self.values = stopper, values

    def check(self, names):
        self.stopper.check(names)

    def on_train_begin(self, model):
        self.stopper.on_train_begin(model)

    def on_epoch_end(self, model, epoch, logs):
        model.set_weights([np.full(p.shape, epoch) for p in model.parameters])
        self.stopper.on_epoch_end(model, epoch, {**logs, self.stopper.monitor: self.values[epoch - 1]})

    def on_train_end(self, model):
        self.stopper.on_train_end(model)


def scripted(values, **options):
    model, stopper = classifier(), EarlyStopping(**options)
    x, y = blobs(40)
    history = model.fit(x, y, epochs=len(values), validation_split=0.25, callbacks=[Script(stopper, values)])
    return model, stopper, history


def test_order_of_calls():
    model, recorder = classifier(), Recorder()
    model.fit(*blobs(40), epochs=5, initial_epoch=3, validation_split=0.25, callbacks=[recorder])
    names = recorder.calls[0][1]
    assert recorder.calls == [
        ("check", ("loss", "accuracy", "val_loss", "val_accuracy", "lr", "seconds", "samples_per_second")),
        "begin",
        ("epoch begins", 4, 0),
        ("epoch ends", 4, 1, 1),
        ("epoch begins", 5, 1),
        ("epoch ends", 5, 2, 2),
        "end",
    ]
    assert tuple(recorder.logs) == names


def test_learning_rate_changed_between_epochs():
    class Freeze(Callback):
        def on_epoch_end(self, model, epoch, logs):
            model.optimizer.lr = 0.0
            self.weights = model.get_weights()

    model, freeze = classifier(), Freeze()
    model.fit(*blobs(40), callbacks=[freeze])
    frozen = freeze.weights
    model.fit(*blobs(40), epochs=2)
    assert_same(frozen, model.get_weights())


@pytest.mark.parametrize(
    ("options", "values", "epochs", "best"),
    [
        ({}, [3, 2, 2.5, 1], 3, 2),
        ({"patience": 1}, [3, 2, 2.5, 1], 3, 2),
        ({"patience": 2}, [3, 2, 2.5, 1], 4, 4),
        ({"patience": 2}, [3, 2, 2.5, 2.25, 1], 4, 2),
        ({"patience": 3, "min_delta": 0.5}, [3, 2.6, 2.5, 2.4], 4, 4),
        ({"patience": 2, "min_delta": 0.5}, [3, 2.6, 2.5, 1.9], 3, 1),
        ({"monitor": "val_accuracy"}, [0.5, 0.75, 0.75, 1], 3, 2),
        ({"monitor": "val_accuracy", "min_delta": 0.25}, [0.5, 0.75, 1], 2, 1),
        ({"monitor": "val_accuracy", "mode": "min"}, [0.5, 0.75], 2, 1),
        ({"monitor": "loss", "mode": "max"}, [1, 2, 1.5, 3], 3, 2),
        ({"patience": 2}, [float("nan"), float("nan"), 1], 2, None),
        ({"patience": 2}, [2, float("nan"), 1, 0.5], 4, 4),
    ],
)
@pytest.mark.parametrize("restore", [False, True])
def test_early_stopping(options, values, epochs, best, restore):
    model, stopper, history = scripted(values, restore_best_weights=restore, **options)
    assert len(history) == model.epochs_done == epochs
    assert stopper.best_epoch == best
    assert stopper.best == (None if best is None else values[best - 1])
    # Where the last epoch is the best one too, nothing has stopped the training but its end.
    assert stopper.stopped_epoch == (epochs if best != epochs else None)
    kept = best if restore and best else epochs
    assert all((p == kept).all() for p in model.parameters)


def test_best_weights_return_to_the_same_arrays_though_all_epochs_ran():
    model, stopper = classifier(), EarlyStopping("loss", patience=99, restore_best_weights=True)
    x, y = blobs(40)
    model.build(x.shape[1])
    before = model.parameters
    model.fit(x, y, epochs=3, callbacks=[Script(stopper, [1, 2, 3])])
    assert all(a is b for a, b in zip(before, model.parameters, strict=True))
    assert all((p == 1).all() for p in model.parameters)
    assert stopper.stopped_epoch is None


def test_early_stopping_on_real_figures():
    model, stopper = classifier(), EarlyStopping("val_loss", patience=1, restore_best_weights=True)
    x, y = blobs(60)
    model.compile("adam", model.loss, ["accuracy"])
    model.optimizer.lr = 0.5  # far too high: the loss soon rises
    history = model.fit(x, y, epochs=60, validation_data=(x, y), callbacks=[stopper])
    assert len(history) < 60
    assert stopper.best == min(history["val_loss"])
    assert model.evaluate(x, y)["loss"] == stopper.best


def test_used_again_it_starts_afresh():
    model, stopper = classifier(), EarlyStopping("loss")
    x, y = blobs(40)
    model.fit(x, y, epochs=2, callbacks=[Script(stopper, [1, 2])])
    assert stopper.best == 1
    assert len(model.fit(x, y, epochs=2, callbacks=[Script(stopper, [5, 4])])) == 2


@pytest.mark.parametrize(
    ("monitor", "message"),
    [
        ("val_loss", "cannot monitor 'val_loss'; known: loss, accuracy, lr, seconds.*needs validation_split"),
        ("r2", "cannot monitor 'r2'; known: loss, accuracy"),
    ],
)
def test_unknown_figure_is_refused_before_anything_changes(monitor, message):
    model = classifier()
    before = snapshot(model)
    with pytest.raises(ValueError, match=message):
        model.fit(*blobs(), callbacks=[EarlyStopping(monitor)])
    assert_same(before, snapshot(model))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"monitor": 3}, TypeError, "monitor must be a string; got 3"),
        ({"patience": -1}, ValueError, "patience must be at least 0; got -1"),
        ({"patience": 1.5}, TypeError, "patience must be a whole number; got 1.5"),
        ({"min_delta": -1}, ValueError, "min_delta must be at least 0, and finite; got -1"),
        ({"min_delta": float("nan")}, ValueError, "min_delta must be at least 0"),
        ({"mode": "best"}, ValueError, "unknown mode 'best'; known: auto, min, max"),
        ({"restore_best_weights": 1}, TypeError, "restore_best_weights must be True or False; got 1"),
    ],
)
def test_wrong_arguments(options, error, message):
    with pytest.raises(error, match=message):
        EarlyStopping(**options)


def test_an_exception_leaves_a_consistent_model():
    class Fail(Callback):
        def on_epoch_end(self, model, epoch, logs):
            raise RuntimeError("from a callback")

    model = classifier()
    with pytest.raises(RuntimeError, match="from a callback"):
        model.fit(*blobs(64), batch_size=32, callbacks=[Fail()])
    assert model.epochs_done == len(model.history) == 1
    assert model.optimizer.steps == 2


# ---------------------------------------------------------------- interrupts


class Ending(Callback):
    """Ends the training at the end of an epoch by raising an error, and notes what is called."""

    def __init__(self, epoch, error):
        self.epoch, self.error, self.heard, self.weights = epoch, error, [], []

    def on_epoch_end(self, model, epoch, logs):
        self.weights.append(model.get_weights())
        if epoch == self.epoch:
            raise self.error

    def on_interrupt(self, model):
        self.heard.append("interrupt")

    def on_train_end(self, model):
        self.heard.append("end")


def interrupted(backend, error, restore, epochs=4):
    """A model whose loss rises from the first epoch on, and the callbacks of its fit, which `error` has ended."""
    model = classifier(backend)
    stopping = EarlyStopping("loss", patience=9, mode="max", restore_best_weights=restore)
    ending = Ending(epochs, error)
    with pytest.raises(type(error)):
        model.fit(*blobs(), epochs=9, callbacks=[stopping, ending], verbose=0)
    return model, stopping, ending


def test_an_interrupt_puts_the_best_weights_back(backend):
    model, stopping, ending = interrupted(backend, KeyboardInterrupt(), True)
    assert stopping.best_epoch == 1
    assert_same(model.get_weights(), ending.weights[0])
    assert ending.heard == ["interrupt"]
    assert (model.epochs_done, len(model.history)) == (4, 4)
    model.fit(*blobs(), verbose=0)
    assert model.epochs_done == 5


@pytest.mark.parametrize(("error", "restore"), [(ValueError("no"), True), (KeyboardInterrupt(), False)])
def test_otherwise_weights_stay_as_they_were_at_the_moment(backend, error, restore):
    model, _, ending = interrupted(backend, error, restore)
    assert_same(model.get_weights(), ending.weights[-1])
    assert ending.heard == ["interrupt"] * isinstance(error, KeyboardInterrupt)


def test_a_second_interrupt_waits_until_the_weights_are_back(monkeypatch):
    class Pressing(Callback):
        def on_interrupt(self, model):
            press()
            self.done = True

        def on_epoch_end(self, model, epoch, logs):
            raise KeyboardInterrupt

    first = Pressing()
    with handled(), pytest.raises(KeyboardInterrupt):
        classifier().fit(*blobs(), callbacks=[first], verbose=0)
    assert first.done


def test_an_interrupt_leaves_the_best_figure_with_its_weights(monkeypatch):
    """Also one that comes while the next best weights are copied."""
    model, stopping = classifier(), EarlyStopping("loss", 9, restore_best_weights=True)
    model.build(6)
    stopping.on_epoch_end(model, 1, {"loss": 2.0})
    first = model.get_weights()
    model.set_weights([w + 1 for w in first])
    monkeypatch.setattr(type(model), "get_weights", lambda _: press())
    with handled(), pytest.raises(KeyboardInterrupt):
        stopping.on_epoch_end(model, 2, {"loss": 1.0})
    monkeypatch.undo()
    stopping.on_interrupt(model)
    assert (stopping.best, stopping.best_epoch) == (2.0, 1)
    assert_same(model.get_weights(), first)


def test_one_callback_and_none():
    (x, y), stop = blobs(40), EarlyStopping("loss", threshold=1e9)
    assert len(classifier().fit(x, y, epochs=3, callbacks=stop, verbose=0)) == 1
    assert len(classifier().fit(x, y, epochs=3, callbacks=None, verbose=0)) == 3
