"""Metrics that need all rows at once: ROC AUC beside scikit-learn's, and functions of the user."""

from __future__ import annotations

import io
import logging
import pickle

import numpy as np
import pytest
from helpers_model import assert_same, blobs

import fastopt as fo
from fastopt import Dense, EarlyStopping, Sequential
from fastopt._metrics import FUNCTIONS, roc_auc
from fastopt.callbacks import ModelCheckpoint


def share_of_ones(y_true, y_pred):
    return (y_true == 1).mean()


def largest(y_true, y_pred):
    return y_pred.max()


def model_of(backend, outputs=3, last="softmax", loss="scce", metrics=("roc_auc",), **options):
    model = Sequential([Dense(8, "tanh"), Dense(outputs, last)], seed=1, backend=backend, **options)
    model.compile(fo.Adam(lr=0.01), loss, metrics)
    return model


# ---------------------------------------------------------------- ROC AUC


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("decimals", [0, 1, 8])
def test_it_is_scikit_learns(seed, decimals):
    score = pytest.importorskip("sklearn.metrics").roc_auc_score
    rng = np.random.default_rng(seed)
    y, z = rng.integers(0, 2, 50), np.round(rng.standard_normal(50), decimals)  # with ties
    assert roc_auc(y, z) == pytest.approx(score(y, z), rel=1e-12)
    assert roc_auc(2.0 * y - 1, z) == pytest.approx(score(y, z), rel=1e-12)
    two = np.stack([-z, z], axis=1)
    assert roc_auc(y, two) == pytest.approx(score(y, z), rel=1e-12)
    y, z = rng.integers(0, 4, 50), np.round(rng.random((50, 4)), decimals)
    hot = np.eye(4)[y]
    assert roc_auc(y, z) == roc_auc(hot, z) == pytest.approx(score(hot, z), rel=1e-12)
    p = z + 1e-3
    p /= p.sum(axis=1, keepdims=True)
    assert roc_auc(y, p) == pytest.approx(score(y, p, multi_class="ovr"), rel=1e-12)
    labels = rng.integers(0, 2, (50, 3))
    assert roc_auc(labels, z[:, :3]) == pytest.approx(score(labels, z[:, :3]), rel=1e-12)


def test_where_there_is_nothing_to_order():
    z = np.array([0.1, 0.2, 0.3])
    assert np.isnan(roc_auc(np.ones(3), z))
    assert np.isnan(roc_auc(np.array([0, 1, 0]), np.array([0.1, np.nan, 0.2])))
    y, scores = np.array([0, 0, 2, 2]), np.random.default_rng(0).random((4, 3))
    present = np.mean([roc_auc(y == k, scores[:, k]) for k in (0, 2)])
    assert roc_auc(y, scores) == pytest.approx(present)  # nobody is of class 1
    assert roc_auc(np.array([0, 1]), np.array([0.5, 0.5])) == 0.5


# ---------------------------------------------------------------- in a training


def test_once_an_epoch_on_the_validation_data(backend):
    x, y = blobs(60)
    calls = []

    def told(y_true, y_pred):
        calls.append((y_true, y_pred))
        return 0.25 + len(calls)

    model = model_of(backend, metrics=["accuracy", told, "AUC"])
    assert model.metrics == ("accuracy",)
    assert list(model.metric_functions) == ["told", "roc_auc"]
    history = model.fit(x[:40], y[:40], epochs=3, validation_data=(x[40:], y[40:]), verbose=0)
    assert list(history.history)[:6] == ["loss", "accuracy", "val_loss", "val_accuracy", "val_told", "val_roc_auc"]
    assert history["val_told"] == [1.25, 2.25, 3.25]
    np.testing.assert_array_equal(calls[-1][0], y[40:])
    np.testing.assert_allclose(calls[-1][1], model.predict(x[40:]), rtol=1e-6)
    assert history["val_auc"][-1] == pytest.approx(roc_auc(y[40:], model.predict(x[40:])), rel=1e-6)
    scores = model.evaluate(x[40:], y[40:])
    assert list(scores) == ["loss", "accuracy", "told", "roc_auc"]
    assert scores["roc_auc"] == history["val_roc_auc"][-1]


def test_they_change_nothing(backend):
    """The same training with and without, also where a function writes to its arguments."""

    def greedy(y_true, y_pred):
        y_true[:], y_pred[:] = 0, 0
        return 1

    x, y = blobs(60)
    plain, counted = model_of(backend, metrics=["accuracy"]), model_of(backend, metrics=["accuracy", greedy, "auc"])
    for model in (plain, counted):
        model.fit(x, y, epochs=3, validation_split=0.5, verbose=0)
    assert_same(plain.get_weights(), counted.get_weights())
    assert plain.history["val_accuracy"] == counted.history["val_accuracy"]


@pytest.mark.parametrize(
    ("loss", "outputs", "last", "y"),
    [
        ("bce", 1, "sigmoid", np.array([0, 1, 1, 0])),
        ("hinge", 1, "linear", np.array([-1, 1, 1, -1])),
        ("mse", 1, "linear", np.array([0.5, 1.5, 2.5, 0.0])),
        ("bce", 2, "sigmoid", np.array([[0, 1], [1, 1], [0, 0], [1, 0]])),
        ("scce", 2, "softmax", np.array([0, 1, 1, 0])),
    ],
)
def test_one_output_is_a_vector(loss, outputs, last, y, backend):
    x, seen = np.random.default_rng(0).random((4, 3)), {}

    def look(y_true, y_pred):
        seen["y_true"], seen["y_pred"] = y_true, y_pred
        return 0

    model = model_of(backend, outputs, last, loss, [look])
    model.evaluate(x, y)
    np.testing.assert_allclose(seen["y_true"], y)
    predicted = model.predict(x)
    np.testing.assert_allclose(seen["y_pred"], predicted if outputs > 1 else predicted[:, 0], rtol=1e-6)


def test_functions_see_the_units_of_the_targets(backend):
    rng = np.random.default_rng(0)
    x, y, seen = rng.random((30, 3)), 1000 + 50 * rng.standard_normal(30), []

    def mean_of(y_true, y_pred):
        seen.append(y_true)
        return y_pred.mean()

    model = model_of(backend, 1, "linear", "mse", mean_of, dtype="float64")
    history = model.fit(x, y, epochs=40, validation_data=(x, y), standardize_targets=True, verbose=0)
    np.testing.assert_allclose(seen[-1], y, rtol=1e-12)
    assert history["val_mean_of"][-1] == pytest.approx(model.predict(x).mean())
    assert history["val_mean_of"][-1] == pytest.approx(1000, abs=30)


def test_callbacks_watch_them(backend, tmp_path):
    x, y = blobs(60)
    model = model_of(backend, metrics=["auc", largest])
    best = ModelCheckpoint(tmp_path / "{val_auc:.2f}.safetensors", "val_auc", save_best_only=True)
    assert (best.monitor, best.mode) == ("val_roc_auc", "max")
    stop = EarlyStopping("val_largest", patience=1, mode="min")
    history = model.fit(x, y, epochs=9, validation_split=0.5, callbacks=[best, stop], verbose=0)
    assert best.best == max(history["val_roc_auc"])
    with pytest.raises(ValueError, match="cannot monitor 'val_largest'; known: .*needs validation_split"):
        model.fit(x, y, callbacks=[EarlyStopping("val_largest")])


@pytest.mark.parametrize("name", ["r2_score", "roc_auc_score", "MSE"])
def test_functions_may_have_other_names_of_our_metrics(name):
    """Such as those of scikit-learn; the history and callbacks tell them apart from the metric itself."""
    values = iter([3.0, 2.0, 1.0, 0.5])

    def function(y_true, y_pred):
        return next(values)

    function.__name__ = name
    (x, y), ours = blobs(40), ["accuracy", "roc_auc", function]
    model, stop = model_of("numpy", metrics=ours), EarlyStopping(f"val_{name}", patience=9, mode="min")
    history = model.fit(x, y, epochs=3, validation_split=0.5, callbacks=[stop], verbose=0)
    assert history[f"val_{name}"] == [3, 2, 1]
    assert history["val_auc"] == history["val_roc_auc"] != history[f"val_{name}"]
    assert (stop.monitor, stop.best) == (f"val_{name}", 1)
    assert model.evaluate(x, y)[name] == 0.5


def test_errors_of_functions_say_what_they_were_given():
    def classes_only(y_true, y_pred):
        raise ValueError("multiclass and continuous")

    (x, y), model = blobs(40), model_of("numpy", metrics=[classes_only])
    message = r"classes_only cannot be taken of targets \(20,\) and predictions \(20, 3\), .*: multiclass and"
    with pytest.raises(ValueError, match=message):
        model.fit(x, y, validation_split=0.5, verbose=0)


# ---------------------------------------------------------------- files, copies, and what is refused


def test_files_keep_names_and_say_which_they_cannot_keep(caplog):
    model, file = model_of("numpy", metrics=["accuracy", "roc_auc", largest]), io.BytesIO()
    model.build(4)
    with caplog.at_level(logging.WARNING, "fastopt"):
        model.save(file)
    assert "the metrics largest are functions, which a file cannot hold: call compile after loading" in caplog.text
    file.seek(0)
    again = fo.load_model(file)
    assert (again.metrics, again.metric_functions) == (("accuracy",), FUNCTIONS)
    twin = pickle.loads(pickle.dumps(model))
    assert twin.metric_functions == model.metric_functions


def test_pickles_of_models_without_functions():
    model = model_of("numpy", metrics=["accuracy"])
    state = model.__getstate__()
    del state["metric_functions"]
    again = Sequential.__new__(Sequential)
    again.__setstate__(state)
    assert again.metric_functions == {}


def named(name):
    def function(y_true, y_pred):
        return 0

    function.__name__ = name
    return function


@pytest.mark.parametrize(
    ("metrics", "loss", "error", "message"),
    [
        ([lambda t, y: 0], "scce", ValueError, "a function that is a metric must have a name, as `def` gives it; "),
        ([named("accuracy")], "scce", ValueError, "function that is a metric must be a new one; got accuracy"),
        ([named("roc_auc")], "scce", ValueError, "must be a new one; got roc_auc"),
        ([named("loss")], "scce", ValueError, "must be a new one; got loss"),
        ([named("val_x")], "scce", ValueError, "must be a new one; got val_x"),
        ([named("x"), named("x")], "scce", ValueError, "the metric x is given twice"),
        (["auc", "roc_auc"], "scce", ValueError, "the metric roc_auc is given twice"),
        ([roc_auc, "roc_auc"], "scce", ValueError, "the metric roc_auc is given twice"),
        (["roc_auc"], "mse", ValueError, "the metric roc_auc is for losses of classes: binary_cr"),
        ([3], "scce", TypeError, "metric must be one of accuracy, .*, roc_auc, top_K_accuracy of any K; got 3"),
        (3, "scce", TypeError, "metrics must be a list of names; got 3"),
    ],
)
def test_what_is_no_metric(metrics, loss, error, message):
    with pytest.raises(error, match=message):
        model_of("numpy", 3, "linear", loss, metrics)


def test_a_function_must_return_a_number():
    def several(y_true, y_pred):
        return [1, 2]

    model = model_of("numpy", metrics=[several])
    with pytest.raises(TypeError, match="the metric several must return a number; got a list"):
        model.evaluate(*blobs(20))
