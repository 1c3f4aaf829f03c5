"""Trainings within one another, and threads that want the same model: each gets its own, or a RuntimeError."""

from __future__ import annotations

import copy
import os
import pickle
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from helpers_model import assert_same, blobs, classifier, snapshot, trained

import fastopt as fo
from fastopt import Callback, EarlyStopping
from fastopt._exclusive import Exclusive
from fastopt.models.epoch_loop import run_epochs
from fastopt.models.training import FitOptions

X, Y = blobs(60)
WAIT = 60  # seconds after which something hangs


class At(Callback):
    """Does something at the end of an epoch."""

    def __init__(self, epoch, action):
        self.epoch, self.action, self.found = epoch, action, None

    def on_epoch_end(self, model, epoch, logs):
        if epoch == self.epoch:
            self.found = self.action(model)


# ---------------------------------------------------------------- a training within another
def test_both_return_their_own_history(backend):
    model = classifier(backend)
    inner = At(2, lambda model: (model.fit(X, Y, epochs=2), model.history))
    outer = model.fit(X, Y, epochs=3, callbacks=[inner])
    history, seen_after = inner.found
    assert (outer.epochs, history.epochs) == ([1, 2, 3], [1, 2])
    assert seen_after is outer
    assert model.history is outer
    assert outer is not history
    assert model.epochs_done == 5


def test_the_same_weights_as_one_after_the_other(backend):
    nested, flat = classifier(backend), classifier(backend)
    nested.fit(X, Y, epochs=2, callbacks=[At(1, lambda model: model.fit(X[:30], Y[:30], batch_size=8))])
    flat.fit(X, Y)
    flat.fit(X[:30], Y[:30], batch_size=8)
    flat.fit(X, Y)
    assert_same(nested.get_weights(), flat.get_weights())
    assert_same(nested.optimizer.state_dict(), flat.optimizer.state_dict())


def stop(model):
    model.stop_training = True


@pytest.mark.parametrize("inner_stops", [True, False])
def test_the_end_of_one_is_not_the_end_of_the_other(inner_stops):
    model, found = classifier(), []

    def both(model):
        if not inner_stops:
            stop(model)
        found.append(len(model.fit(X, Y, epochs=4, callbacks=[At(1, stop)] if inner_stops else [])))
        found.append(model.stop_training)

    outer = model.fit(X, Y, epochs=3, callbacks=[At(2, both)])
    assert found == ([1, False] if inner_stops else [4, True])
    assert len(outer) == (3 if inner_stops else 2)
    assert model.stop_training is not inner_stops


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_an_error_within_gives_back_what_is_the_outer_ones(error):
    model = classifier()

    def fail(model):
        raise error

    def survive(model):
        ours = model.history
        with pytest.raises(error):
            model.fit(X, Y, callbacks=[At(1, fail)])
        with pytest.raises(ValueError, match="epochs must be at least 1"):
            model.fit(X, Y, epochs=0)
        return ours is model.history

    watch = At(1, survive)
    history = model.fit(X, Y, epochs=2, callbacks=[watch])
    assert watch.found
    assert (len(history), model.history) == (2, history)
    with pytest.raises(error):
        model.fit(X, Y, callbacks=[At(1, fail)])
    in_thread(lambda: model.fit(X, Y))  # nobody is in any more


def test_three_deep():
    model, histories = classifier(), []

    def again(model):
        if len(histories) < 2:
            histories.append(None)
            histories.append(model.fit(X, Y, epochs=len(histories), callbacks=[At(1, again)]))

    outer = model.fit(X, Y, epochs=3, callbacks=[At(1, again)])
    assert [len(h) for h in histories if h is not None] == [2, 1]
    assert (len(outer), model.history) == (3, outer)


def test_epochs_asked_for_one_by_one():
    """Epochs as the command line takes them, with two models in turn; an abandoned training holds nothing."""
    model = classifier()
    epochs = run_epochs(model, model._plan_fit(X, Y, FitOptions(epochs=3)))
    next(epochs)
    outer = model.history
    assert len(model.fit(X, Y, epochs=2)) == 2
    assert model.history is outer
    next(epochs)
    assert outer.epochs == [1, 2]
    epochs.close()
    in_thread(lambda: model.fit(X, Y))
    assert model.history is not outer


def test_one_early_stopping_watches_one_training(backend):
    model, stopper = classifier(backend), EarlyStopping("loss", patience=9, restore_best_weights=True)

    def share(model):
        before = snapshot(model)
        for other in (model, trained(backend)):
            with pytest.raises(RuntimeError, match="watching another training already: give each `fit` its own"):
                other.fit(X, Y, callbacks=[stopper])
        assert_same(before, snapshot(model))
        return stopper.best

    watch = At(1, share)
    history = model.fit(X, Y, epochs=2, callbacks=[stopper, watch])
    assert watch.found == history["loss"][0]
    with pytest.raises(RuntimeError, match="watching another"):
        model.fit(X, Y, callbacks=[stopper, stopper])
    with pytest.raises(ZeroDivisionError):
        model.fit(X, Y, callbacks=[stopper, At(1, lambda model: 1 / 0)])
    copied = pickle.loads(pickle.dumps(stopper))
    model.fit(X, Y, callbacks=[stopper, copied, copy.deepcopy(stopper)])  # and it is free again


# ---------------------------------------------------------------- two threads
def in_thread(call):
    """The call's result, or its error, from a thread of its own."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result(WAIT)


CALLS = {
    "fit": lambda model: model.fit(X, Y),
    "evaluate": lambda model: model.evaluate(X, Y),
    "predict": lambda model: model.predict(X),
    "set_weights": lambda model: model.set_weights([w * 0 for w in model.parameters]),
    "get_weights": lambda model: model.get_weights(),
    "compile": lambda model: model.compile("sgd", model.loss),
    "save": lambda model: model.save(os.devnull + "/none"),
    "load_weights": lambda model: model.load_weights(os.devnull + "/none"),
}


@pytest.mark.parametrize("call", CALLS)
def test_another_thread_has_no_part_in_a_training(call, backend):
    model, alone = classifier(backend), classifier(backend)

    def other(model):
        before = snapshot(model)
        with pytest.raises(RuntimeError, match=f"another thread is training this model: {call} would work on weights"):
            in_thread(lambda: CALLS[call](model))
        assert_same(before, snapshot(model))

    model.fit(X, Y, epochs=2, callbacks=[At(1, other)])
    alone.fit(X, Y, epochs=2)
    assert_same(model.get_weights(), alone.get_weights())
    assert model.history.epochs == [1, 2]
    if call not in ("save", "load_weights"):
        in_thread(lambda: CALLS[call](model))


@pytest.mark.parametrize("built", [True, False])
def test_of_two_threads_at_once_one_trains(built, backend):
    """Whichever is first, the result is that of one training, and the other says so."""
    model, alone = classifier(backend), classifier(backend)
    for one in (model, alone):
        if built:
            one.build(X.shape[1])
    start, inside = threading.Barrier(2), threading.Barrier(2)

    class Meet(Callback):
        def on_train_begin(self, model):
            inside.wait(WAIT)  # until the other has been refused

    def fit():
        start.wait(WAIT)
        try:
            return model.fit(X, Y, epochs=3, callbacks=[Meet()])
        except RuntimeError as error:
            inside.wait(WAIT)
            return error

    with ThreadPoolExecutor(2) as pool:
        results = [future.result(WAIT) for future in [pool.submit(fit) for _ in range(2)]]
    errors = [result for result in results if isinstance(result, RuntimeError)]
    assert ["another thread is training" in str(error) for error in errors] == [True]
    alone.fit(X, Y, epochs=3)
    assert_same(model.get_weights(), alone.get_weights())
    assert model.epochs_done == 3


def test_threads_predict_together(backend):
    model = classifier(backend)
    start = threading.Barrier(4)

    def predict():
        start.wait(WAIT)
        return [model.predict(X) for _ in range(20)]

    with ThreadPoolExecutor(4) as pool:  # of an unbuilt model, which one of them builds
        results = [future.result(WAIT) for future in [pool.submit(predict) for _ in range(4)]]
    expected = classifier(backend)
    expected.build(X.shape[1])
    for result in (one for some in results for one in some):
        np.testing.assert_array_equal(result, expected.predict(X))


def test_a_training_waits_for_those_who_read(monkeypatch):
    model, alone = trained(), trained()
    reading, go_on = threading.Event(), threading.Event()
    network = model.network(training=False)

    class Slow:
        def predict(self, rows, batch_size):
            reading.set()
            assert go_on.wait(WAIT)
            return network.predict(rows, batch_size)

    real = model.network
    monkeypatch.setattr(model, "network", lambda training=True, *rest: real(training) if training else Slow())
    with ThreadPoolExecutor(2) as pool:
        predicted = pool.submit(model.predict, X)
        assert reading.wait(WAIT)
        fitted = pool.submit(model.fit, X, Y)
        threading.Timer(0.05, go_on.set).start()
        assert len(fitted.result(WAIT)) == 1
        np.testing.assert_array_equal(predicted.result(WAIT), alone.predict(X))


def test_short_calls_wait_for_one_another():
    model = trained()
    low, high = ([np.full_like(w, value) for w in model.parameters] for value in (0.25, 0.75))

    def change(weights):
        for _ in range(200):
            model.set_weights(weights)

    def look():
        return [{float(w.flat[i]) for w in model.get_weights() for i in (0, -1)} for _ in range(200)]

    model.set_weights(low)
    with ThreadPoolExecutor(3) as pool:
        jobs = [pool.submit(change, low), pool.submit(change, high), pool.submit(look)]
        assert all(seen in ({0.25}, {0.75}) for seen in jobs[2].result(WAIT))
        for job in jobs:
            job.result(WAIT)


def test_copies_are_free():
    model = classifier()

    def copies(model):
        for duplicate in (copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))):
            other = duplicate(model)
            in_thread(lambda other=other: other.fit(X, Y))
            assert len(other.history) == 1

    model.fit(X, Y, callbacks=[At(1, copies)])


@pytest.mark.skipif(not hasattr(os, "fork") or sys.platform == "darwin", reason="forks")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_child_has_none_of_the_threads():
    use, inside, out = Exclusive(), threading.Event(), threading.Event()

    def hold():
        with use.exclusive("fit", trains=True):
            inside.set()
            out.wait(WAIT)

    thread = threading.Thread(target=hold)
    thread.start()
    assert inside.wait(WAIT)
    child = os.fork()
    if not child:
        signal.alarm(WAIT)
        with use.exclusive("fit", trains=True), use.shared("predict"):
            os._exit(7)
    _, status = os.waitpid(child, 0)
    out.set()
    thread.join(WAIT)
    assert os.waitstatus_to_exitcode(status) == 7
    assert not use.trainings


@pytest.mark.skipif(not hasattr(os, "fork") or sys.platform == "darwin", reason="forks")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_child_forked_while_a_thread_steps_does_steps_of_its_own():
    p = np.zeros(3)
    optimizer, inside, out = fo.SGD(p, lr=1.0, backend="numpy"), threading.Event(), threading.Event()

    def hold():
        with optimizer._step_lock:
            inside.set()
            out.wait(WAIT)

    thread = threading.Thread(target=hold)
    thread.start()
    assert inside.wait(WAIT)
    child = os.fork()
    if not child:
        signal.alarm(WAIT)  # ends it where it would wait for ever
        optimizer.step(np.ones(3))
        os._exit(7 if p[0] == -1 else 8)
    _, status = os.waitpid(child, 0)
    out.set()
    thread.join(WAIT)
    assert os.waitstatus_to_exitcode(status) == 7
    assert optimizer.steps == 0


def test_two_models_train_at_once(backend):
    alone = trained(backend)
    with ThreadPoolExecutor(2) as pool:
        models = [future.result(WAIT) for future in [pool.submit(trained, backend) for _ in range(2)]]
    for model in models:
        assert_same(model.get_weights(), alone.get_weights())
    assert isinstance(models[0].history, fo.History)


# ---------------------------------------------------------------- two threads and one optimizer
def test_steps_of_two_threads_come_one_after_the_other(backend):
    interpreted = os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0")
    p = np.zeros(2_000 if interpreted else 200_000)
    optimizer = fo.SGD(p, lr=1.0, backend=backend)

    def steps():
        for _ in range(25):
            optimizer.step(np.ones_like(p))

    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(steps) for _ in range(2)]
        saved = [optimizer.state_dict() for _ in range(5)]
        for job in jobs:
            job.result(WAIT)
    assert optimizer.steps == 50
    np.testing.assert_array_equal(p, -50)
    assert all(state["param_groups"][0]["lr_step"] == state["state"][0]["step"] for state in saved)


def test_states_of_a_model_in_training_are_read_between_its_epochs(backend):
    model, seen, go_on = classifier(backend), [], threading.Event()
    model.build(X.shape[1])

    def look():
        while not go_on.wait(0.001):
            saved = model.optimizer.state_dict()
            seen.append({entry["step"] for entry in saved["state"].values()} | {saved["param_groups"][0]["lr_step"]})

    with ThreadPoolExecutor(1) as pool:
        looking = pool.submit(look)
        model.fit(X, Y, epochs=30, batch_size=10)
        go_on.set()
        looking.result(WAIT)
    assert all(len(steps) == 1 and not steps & set(range(1, 180)) - set(range(6, 180, 6)) for steps in seen)
