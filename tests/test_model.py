"""Sequential trains, the same on every backend and however it is interrupted."""

import copy
import dataclasses
import gc
import inspect
import logging
import os
import re
import signal
import sys
import threading
import warnings
import weakref
from pathlib import Path

import numpy as np
import pytest
from helpers_model import CROSS_ENTROPY, assert_same, blobs, classifier

import fastopt as fo
from fastopt import Dense, Dropout, EarlyStopping, Sequential
from fastopt._random_rows import epoch_order, split
from fastopt.kernels.formulas import ACTIVATIONS, LOSSES, METRICS
from fastopt.models import training
from fastopt.models.training import FitOptions
from fastopt.optim import OPTIMIZER_CLASSES

DIGITS = Path(fo.__file__).parent / "datasets" / "data" / "digits.npz"


@pytest.fixture(scope="module")
def digits():
    with np.load(DIGITS) as data:
        return data["x"] / 16.0, data["y"]


def targets_for(loss, y, outputs):
    """Targets of three classes as the loss wants them, for `outputs` outputs."""
    row = LOSSES[loss]
    if row.targets == "labels":
        return y
    one_hot = np.eye(3)[y]
    return (2 * one_hot - 1 if row.signs else one_hot)[:, :outputs]


# ---------------------------------------------------------------- learning


@pytest.mark.slow
def test_learns_digits(backend, digits):
    x, y = digits
    model = Sequential([Dense(64, "relu"), Dropout(0.1), Dense(10, "softmax")], seed=0, backend=backend)
    model.compile(fo.Adam(lr=3e-3), CROSS_ENTROPY, ["accuracy"])
    history = model.fit(x[:1400], y[:1400], epochs=12, validation_split=0.1)
    assert history["loss"][-1] < history["loss"][0] / 4
    scores = model.evaluate(x[1400:], y[1400:])
    assert scores["accuracy"] >= 0.9
    predictions = model.predict(x[1400:])
    assert predictions.dtype == np.float32
    np.testing.assert_allclose(predictions.sum(axis=1), 1, rtol=1e-5)
    assert scores["accuracy"] == np.mean(predictions.argmax(axis=1) == y[1400:])


@pytest.mark.slow
def test_backends_agree_on_digits(digits):
    x, y = digits
    losses, accuracies = [], []
    for backend in ("numpy", "cpu"):
        model = Sequential([Dense(48, "tanh"), Dropout(0.2), Dense(24, "gelu"), Dense(10)], seed=3, backend=backend)
        model.compile("adam", CROSS_ENTROPY, ["accuracy"])
        history = model.fit(x[:1400], y[:1400], epochs=5)
        losses.append(history.step_losses[:100])
        accuracies.append(model.evaluate(x[1400:], y[1400:])["accuracy"])
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
    assert abs(accuracies[1] - accuracies[0]) <= 0.005


def test_accumulated_batches_are_one_large_batch(backend):
    x, y = blobs(110)
    models = [
        Sequential([Dense(12, "tanh"), Dense(3)], seed=1, backend=backend, dtype="float64") for _ in range(2)
    ]
    histories = []
    for model, (batch_size, accumulate) in zip(models, [(8, 4), (32, 1)], strict=True):
        model.compile(fo.SGD(lr=0.1, momentum=0.9, clip_norm=0.5, l1=1e-3), CROSS_ENTROPY, ["accuracy"])
        histories.append(model.fit(x, y, epochs=3, batch_size=batch_size, accumulate=accumulate))
        assert model.optimizer.steps == 3 * 4
        assert len(histories[-1].step_losses) == 12
    np.testing.assert_allclose(histories[0].step_losses, histories[1].step_losses, rtol=1e-12)
    assert histories[0]["loss"] == pytest.approx(histories[1]["loss"], rel=1e-12)
    assert histories[0]["accuracy"] == pytest.approx(histories[1]["accuracy"])
    for a, b in zip(models[0].parameters, models[1].parameters, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


def test_clipping_survives_a_file(backend, tmp_path):
    x, y = blobs()
    model = classifier(backend)
    model.compile(fo.Adam(clip_norm=0.25, l1=1e-3), CROSS_ENTROPY)
    model.fit(x, y)
    model.save(tmp_path / "m.safetensors")
    again = fo.load_model(tmp_path / "m.safetensors")
    assert (again.optimizer.clip_norm, again.optimizer.options["l1"]) == (0.25, 1e-3)
    for one in (model, again):
        one.fit(x, y, epochs=2, initial_epoch=1)
    assert_same(model.get_weights(), again.get_weights())


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("outputs", [1, 3])
def test_every_loss_and_its_metrics(backend, loss, outputs):
    row = LOSSES[loss]
    if row.by_row and outputs == 1:
        pytest.skip("a softmax over one output is constant")
    x, y = blobs()
    targets = targets_for(loss, y, outputs)
    metrics = [name for name, some in METRICS.items() if some.goes_with(row) and some.takes_outputs(row, outputs)]
    model = Sequential([Dense(16, "relu"), Dense(outputs)], seed=0, backend=backend)
    model.compile(fo.Adam(lr=1e-2), loss, metrics)
    history = model.fit(x, targets, epochs=20, batch_size=16)
    assert history["loss"][-1] < history["loss"][0]
    assert list(history.history) == ["loss", *metrics, "lr", "seconds", "samples_per_second"]
    scores = model.evaluate(x, targets)
    assert list(scores) == ["loss", *metrics]
    assert scores["accuracy"] > 0.9
    assert scores["loss"] == pytest.approx(type(model.loss)(backend="numpy")(model.predict(x), targets), rel=1e-5)


@pytest.mark.parametrize("optimizer", OPTIMIZER_CLASSES)
def test_every_optimizer(backend, optimizer):
    model = classifier(backend)
    model.compile(optimizer, CROSS_ENTROPY)
    history = model.fit(*blobs(), epochs=5, batch_size=8)
    assert history["loss"][-1] < history["loss"][0]
    assert model.optimizer.steps == 75


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation(backend, activation):
    model = Sequential([Dense(8, activation), Dense(8, activation, use_bias=False), Dense(3)], seed=0, backend=backend)
    model.compile(fo.Adam(lr=1e-2), CROSS_ENTROPY)
    history = model.fit(*blobs(), epochs=5)
    assert history["loss"][-1] < history["loss"][0]


@pytest.mark.parametrize("loss", ["binary_crossentropy", CROSS_ENTROPY])
def test_link_changes_predictions_only(backend, loss):
    x, y = blobs()
    outputs = 1 if loss == "binary_crossentropy" else 3
    targets = targets_for(loss, y, outputs)
    link = LOSSES[loss].link
    fits = {}
    for last in ("linear", link):
        model = Sequential([Dense(8, "relu"), Dense(outputs, last)], seed=2, backend=backend)
        model.compile("sgd", loss, ["accuracy"])
        losses = model.fit(x, targets, epochs=2).step_losses
        fits[last] = losses, model.evaluate(x, targets), model.predict(x).astype(np.float64)
    assert_same(fits["linear"][:2], fits[link][:2])
    logits, probabilities = fits["linear"][2], fits[link][2]
    expected = np.exp(logits) / (np.exp(logits).sum(axis=1, keepdims=True) if outputs == 3 else 1 + np.exp(logits))
    np.testing.assert_allclose(probabilities, expected, rtol=1e-5)


def test_float64(backend):
    x, y = blobs()
    model = Sequential([Dense(4, "tanh"), Dense(3)], dtype=np.float64, backend=backend)
    model.compile("adam", CROSS_ENTROPY)
    model.fit(x, y)
    assert {p.dtype for p in model.parameters} == {np.dtype(np.float64)}
    assert model.predict(x).dtype == np.float64


# ---------------------------------------------------------------- reproducibility


def test_same_seed_same_bits_other_seed_other_bits(backend):
    def losses(seed):
        return classifier(backend, seed=seed).fit(*blobs(), epochs=3, validation_split=0.2).step_losses

    assert_same(losses(1), losses(1))
    assert not np.array_equal(losses(1), losses(2))


def test_in_parts_as_in_one_go(backend):
    x, y = blobs()
    whole, parts = classifier(backend), classifier(backend)
    expected = whole.fit(x, y, epochs=4, batch_size=50)
    losses = [parts.fit(x, y, epochs=1, batch_size=50).step_losses]
    history = parts.fit(x, y, epochs=4, initial_epoch=parts.epochs_done, batch_size=50)
    assert history.epochs == [2, 3, 4]
    assert_same(expected.step_losses, np.concatenate([*losses, history.step_losses]))
    assert_same(whole.get_weights(), parts.get_weights())
    assert len(parts.fit(x, y, epochs=4, initial_epoch=4)) == 0


def test_interrupted_epoch_counts_its_steps(backend):
    """As after Ctrl-C: the backend stops at a batch boundary, raises, and says how many steps it has done."""
    x, y = blobs(96)
    model, by_hand = classifier(backend), classifier(backend)
    model.fit(x, y, batch_size=16)
    by_hand.fit(x, y, batch_size=16)
    weights, network = model.parameters, model.network()

    class Interrupted:
        def __init__(self):
            self.steps_done = 99  # what an earlier epoch left must not count

        def train(self, batches, steps, seed, *reporting):
            steps = steps._replace(learning_rates=steps.learning_rates[:2])
            batches = batches.epoch(0)
            network.train(batches._replace(order=batches.order[:32]), steps, seed)
            self.steps_done = network.steps_done
            raise KeyboardInterrupt

    model._network_for = lambda training: Interrupted()
    with pytest.raises(KeyboardInterrupt):
        model.fit(x, y, batch_size=16)
    assert model.optimizer.steps == 8
    assert model.epochs_done == 1
    assert len(model.history) == 0
    batches = training.Batches(*by_hand._plan_fit(x, y, FitOptions()).data[:2], None, 16)
    order = epoch_order(np.arange(96), model.seed, 1, True)[:32]
    training.train_epoch(by_hand, by_hand.network(), batches._replace(order=order))
    assert_same(model.get_weights(), by_hand.get_weights())
    assert_same(model.optimizer.state_dict(), by_hand.optimizer.state_dict())
    assert all(a is b for a, b in zip(weights, model.parameters, strict=True))
    del model._network_for
    model.fit(x, y, batch_size=16)
    assert model.optimizer.steps == 14


@pytest.mark.own_process
@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_ctrl_c_stops_between_two_batches(backend):
    """However far the training got: as many steps done by hand give the same bits."""
    if backend == "cpu" and os.environ.get("NUMBA_DISABLE_JIT") == "1":
        pytest.skip("interpreted kernels are Python, which an interrupt stops within a batch")
    x, y = blobs(4000)
    model, by_hand = classifier(backend), classifier(backend)
    model.fit(x, y)  # compiles
    by_hand.fit(x, y)
    alarm = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
    alarm.start()
    with pytest.raises(KeyboardInterrupt):
        model.fit(x, y, epochs=10**9, batch_size=10)
    alarm.join()
    epochs, rest = divmod(model.optimizer.steps - 125, 400)
    assert model.optimizer.steps > 125
    if epochs:
        by_hand.fit(x, y, epochs=epochs, batch_size=10)
    if rest:
        data = by_hand._plan_fit(x, y, FitOptions()).data
        order = epoch_order(np.arange(4000), model.seed, 1 + epochs, True)[: 10 * rest]
        training.train_epoch(by_hand, by_hand.network(), training.Batches(*data[:2], order, 10))
    assert_same(model.get_weights(), by_hand.get_weights())
    assert_same(model.optimizer.state_dict(), by_hand.optimizer.state_dict())
    assert len(model.history) in (epochs, epochs - 1)  # at the very end of an epoch its figures may be lost


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_divergence_is_one_warning_a_fit_with_the_epoch(backend, dtype):
    x, y = blobs()
    model = classifier(backend, dtype=dtype)
    model.compile(fo.SGD(lr=1e30 if dtype == "float32" else 1e300), CROSS_ENTROPY, ["accuracy"])
    for calls in range(1, 3):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            history = model.fit(x, y, epochs=3, validation_data=(x, y), verbose=0)
        figures = zip(history.epochs, history["loss"], strict=True)
        first = next(epoch for epoch, loss in figures if not np.isfinite(loss))
        (warning,) = caught
        assert warning.category is RuntimeWarning
        assert f"the training diverged in epoch {first}, where the loss is " in str(warning.message)
        assert warning.filename == __file__
        assert model.epochs_done == 3 * calls


def test_divergence_as_an_error_leaves_the_model_as_it_is(backend):
    model, other = classifier(backend), classifier(backend)
    stopping = EarlyStopping("loss", 9)
    for each in (model, other):
        each.compile(fo.SGD(lr=1e30), CROSS_ENTROPY)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RuntimeWarning, match="diverged in epoch (?P<epoch>[0-9]+),") as caught:
            model.fit(*blobs(), epochs=5, callbacks=[stopping], verbose=0)
    epochs = int(re.search("epoch ([0-9]+)", str(caught.value)).group(1))
    with pytest.warns(RuntimeWarning, match="diverged"):
        other.fit(*blobs(), epochs=epochs, verbose=0)
    assert_same(model.get_weights(), other.get_weights())
    assert_same(model.optimizer.state_dict(), other.optimizer.state_dict())
    assert (model.epochs_done, len(model.history)) == (epochs, epochs)


def test_what_only_validation_or_metrics_make_of_it_is_no_divergence():
    x, y = blobs()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        history = classifier().fit(x, y, validation_data=(x.astype(np.float64) * 1e37, y), verbose=0)
    assert np.isfinite(history["loss"][-1])


def test_error_before_the_first_step_counts_none():
    class Broken:
        steps_done = 5

        def train(self, *args):
            raise MemoryError

    model = classifier()
    model._network_for = lambda training: Broken()
    with pytest.raises(MemoryError):
        model.fit(*blobs())
    assert model.optimizer.steps == 0


def test_weights_stay_in_place_and_fit_needs_no_unscaled_copy(backend):
    x, y = blobs()
    model = classifier(backend)
    model.build(6)
    before = model.parameters
    x_before, y_before = x.copy(), y.copy()
    model.fit(x, y, epochs=2)
    assert all(a is b for a, b in zip(before, model.parameters, strict=True))
    assert_same([x, y], [x_before, y_before])


# ---------------------------------------------------------------- data


@pytest.mark.parametrize("convert", [np.float64, np.float16, np.int64, np.uint8, bool, list, np.asfortranarray])
def test_features_of_any_type_and_layout(convert, backend):
    x = np.random.default_rng(0).integers(0, 2, (40, 6))
    y = np.arange(40) % 3
    given = convert(x) if convert in (list, np.asfortranarray) else x.astype(convert)
    model, reference = classifier(backend), classifier(backend)
    expected = reference.fit(x.astype(np.float32), y).step_losses
    np.testing.assert_array_equal(model.fit(given, y.astype(float)).step_losses, expected)
    np.testing.assert_array_equal(model.predict(given), reference.predict(x.astype(np.float32)))
    strided = np.repeat(x, 2, axis=0)[::2]
    np.testing.assert_array_equal(model.predict(strided), reference.predict(x.astype(np.float32)))


def test_short_batches_and_batches_larger_than_the_data(backend):
    x, y = blobs(50)
    model = classifier(backend)
    history = model.fit(x, y, batch_size=32)
    assert len(history.step_losses) == 2
    assert history["loss"][0] == pytest.approx((32 * history.step_losses[0] + 18 * history.step_losses[1]) / 50)
    assert len(model.fit(x, y, batch_size=10**9).step_losses) == 1
    assert len(model.fit(x[:1], y[:1]).step_losses) == 1
    scores = model.evaluate(x, y)
    assert model.evaluate(x, y, batch_size=7) == pytest.approx(scores, rel=1e-6)
    np.testing.assert_allclose(model.predict(x, batch_size=7), model.predict(x), rtol=1e-5)


def test_validation_rows_are_not_trained_on(backend):
    x, y = blobs(60)
    spoiled = y.copy()
    rows, held_out = split(60, 0.25, 1, True)
    spoiled[held_out] = (y[held_out] + 1) % 3
    model, other = classifier(backend), classifier(backend)
    history = model.fit(x, y, epochs=2, validation_split=0.25)
    assert_same(history.step_losses, other.fit(x, spoiled, epochs=2, validation_split=0.25).step_losses)
    assert len(rows) == 45
    assert history["val_loss"][-1] == model.evaluate(x[held_out], y[held_out])["loss"]
    assert history["val_loss"] != other.history["val_loss"]


def test_validation_data(backend):
    x, y = blobs(60)
    model = classifier(backend)
    history = model.fit(x, y, validation_data=(x[:20], y[:20]))
    assert history["val_loss"] == [model.evaluate(x[:20], y[:20])["loss"]]
    assert history["val_accuracy"] == [model.evaluate(x[:20], y[:20])["accuracy"]]


def test_without_shuffling_rows_come_in_order(backend):
    x, y = blobs(40)
    model, other = classifier(backend), classifier(backend)
    losses = model.fit(x, y, shuffle=False, validation_split=0.2, batch_size=8).step_losses
    assert_same(losses, other.fit(x[:32], y[:32], shuffle=False, batch_size=8).step_losses)


@pytest.mark.parametrize("where", ["x", "y"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_rows_that_are_not_finite_are_skipped_on_request(where, value, caplog, backend):
    x, y = blobs(40)
    good = np.arange(40) % 13 != 5
    x_bad, y_bad = x.copy(), y.astype(float)
    (x_bad if where == "x" else y_bad)[~good] = value
    model, other = classifier(backend), classifier(backend)
    with caplog.at_level(logging.WARNING):
        history = model.fit(x_bad, y_bad, nan="skip", validation_data=(x_bad, y_bad))
    assert "skipping 3 of 40 rows with NaN or infinity" in caplog.text
    expected = other.fit(x[good], y[good], validation_data=(x[good], y[good]))
    assert_same(history.step_losses, expected.step_losses)
    assert history["val_loss"] == expected["val_loss"]
    assert model.evaluate(x_bad, y_bad, nan="skip") == other.evaluate(x[good], y[good])


def test_row_of_targets_for_one_output(backend):
    x, y = blobs()
    model, other = (Sequential([Dense(1)], backend=backend) for _ in range(2))
    for m in (model, other):
        m.compile("sgd", "mse", ["r2"])
    assert_same(model.fit(x, y).step_losses, other.fit(x, y.reshape(-1, 1)).step_losses)


def test_options_of_fit_are_its_arguments_with_the_same_defaults():
    arguments = list(inspect.signature(Sequential.fit).parameters.values())[3:]
    fields = dataclasses.fields(FitOptions)
    assert [(one.name, one.default) for one in arguments] == [(field.name, field.default) for field in fields]


# ---------------------------------------------------------------- what a model keeps between calls
def _changes(model):
    """Actions between two calls that may change what the model keeps, by name."""
    states = model.optimizer.state_dict()
    return {
        "nothing": lambda: None,
        "compile": lambda: model.compile(fo.Adam(lr=0.01), CROSS_ENTROPY, ["accuracy"]),
        "other metrics": lambda: model.compile(model.optimizer, CROSS_ENTROPY),
        "states": lambda: model.optimizer.load_state_dict(states),
        "weights": lambda: model.set_weights([w + 1 for w in model.get_weights()]),
        "threads": lambda: fo.set_num_threads(1),
        "another fit": lambda: model.fit(*blobs(60), batch_size=7, validation_split=0.5),
        "a prediction": lambda: model.predict(blobs(60)[0]),
    }


@pytest.mark.parametrize(
    "change", ["nothing", "compile", "other metrics", "states", "weights", "threads", "another fit", "a prediction"]
)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_calls_after_the_first_are_those_of_a_copy_that_keeps_nothing(backend, change, accumulate):
    """A kept program is given other data of the same shapes, and is laid out anew where anything else is another."""
    threads = fo.get_num_threads()
    (x, y), model = blobs(90), classifier(backend)
    try:
        model.fit(x, y, accumulate=accumulate)
        model.predict(x)
        _changes(model)[change]()
        other = copy.deepcopy(model)
        more = np.ascontiguousarray(x[::-1] * 1.5), np.ascontiguousarray(y[::-1])
        histories = [one.fit(*more, accumulate=accumulate).history for one in (model, other)]
        assert histories[0]["loss"] == histories[1]["loss"]
        assert_same(model.get_weights(), other.get_weights())
        np.testing.assert_array_equal(model.predict(more[0]), other.predict(more[0]))
        assert model.evaluate(*more) == other.evaluate(*more)
    finally:
        fo.set_num_threads(threads)


def test_kept_programs_hold_no_data(backend):
    x, y = blobs(90)
    data = [x.copy(), y.copy()]
    model = classifier(backend)
    model.fit(*data)
    model.predict(data[0])
    gone = [weakref.ref(array) for array in data]
    del data
    gc.collect()
    assert [ref() for ref in gone] == [None, None]
    assert not copy.deepcopy(model)._kept_networks
