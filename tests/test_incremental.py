"""Training by a loop of the user's, a batch or some rows at a time; and probabilities of classes."""

from __future__ import annotations

import numpy as np
import pytest
from helpers_model import CROSS_ENTROPY, assert_same, blobs, classifier, snapshot

import fastopt as fo
from fastopt import Dense, Dropout, Sequential
from fastopt.kernels.cpu.training import network as cpu_network

X, Y = blobs(61)


def regressor(backend, **options):
    model = Sequential([Dense(5, "tanh"), Dense(2)], seed=2, backend=backend, dtype="float64", **options)
    model.compile(fo.Adam(lr=fo.schedules.Cosine(0.05, 20)), "mean_squared_error", ["r2", "mae"])
    return model


# ---------------------------------------------------------------- train_on_batch
def test_batches_of_a_loop_are_those_of_fit(backend):
    """The same steps as of an epoch in order, dropout included, and figures of each batch alone."""
    ours, theirs = classifier(backend), classifier(backend)
    figures = [ours.train_on_batch(X[i : i + 16], Y[i : i + 16]) for i in range(0, 61, 16)]
    history = theirs.fit(X, Y, batch_size=16, shuffle=False, verbose=0)
    assert_same(ours.get_weights(), theirs.get_weights())
    assert_same(ours.optimizer.state_dict(), theirs.optimizer.state_dict())
    assert [figure["loss"] for figure in figures] == history.step_losses.tolist()
    mean = np.average([figure["accuracy"] for figure in figures], weights=[16, 16, 16, 13])
    assert mean == pytest.approx(history["accuracy"][0], rel=1e-12)
    assert (ours.epochs_done, ours.history) == (0, None)
    assert list(figures[0]) == ["loss", "accuracy"]


def test_a_step_of_the_textbook(backend):
    x, y = np.array([[1.0, 2.0], [3.0, -1.0], [0.5, 0.5]]), np.array([1.0, 2.0, 3.0])
    model = Sequential([Dense(1)], backend=backend, dtype="float64", inputs=2)
    model.compile(fo.SGD(lr=0.1), "mean_squared_error", ["mae"])
    w, b = (p.copy() for p in model.parameters)
    error = x @ w[:, 0] + b - y
    figures = model.train_on_batch(x, y)
    assert figures == pytest.approx({"loss": (error**2).mean(), "mean_absolute_error": abs(error).mean()}, rel=1e-12)
    np.testing.assert_allclose(model.parameters[0][:, 0], w[:, 0] - 0.1 * 2 * x.T @ error / 3, rtol=1e-12)


def test_programs_of_a_few_numbers_of_rows_are_kept():
    model = classifier("cpu")
    model.train_on_batch(X[:16], Y[:16])
    net = model._network_for(training=True)
    model.train_on_batch(X[:13], Y[:13])
    made = [kept.program for kept in net._steps]
    for rows in (16, 13, 16):
        model.train_on_batch(X[:rows], Y[:rows])
    assert [kept.program for kept in net._steps] == made
    for rows in range(1, 9):
        model.train_on_batch(X[:rows], Y[:rows])
    assert len(net._steps) == cpu_network.STEP_PROGRAMS


def test_an_error_changes_nothing(backend):
    model = classifier(backend)
    model.train_on_batch(X, Y)
    before = snapshot(model)
    for x, y in ((X[:, :3], Y), (X, Y + 7), (X, Y[:5]), (X[:0], Y[:0])):
        with pytest.raises(ValueError, match="must"):
            model.train_on_batch(x, y)
    assert_same(snapshot(model), before)


# ---------------------------------------------------------------- partial_fit
def test_partial_fit_is_an_epoch(backend):
    ours, theirs = classifier(backend), classifier(backend)
    assert ours.partial_fit(X[:40], Y[:40]).partial_fit(X[40:], Y[40:]) is ours
    theirs.fit(X[:40], Y[:40], epochs=1, verbose=0)
    theirs.fit(X[40:], Y[40:], epochs=2, initial_epoch=1, verbose=0)
    assert_same(ours.get_weights(), theirs.get_weights())
    assert ours.epochs_done == 2


def test_classes_are_given_at_the_first_call():
    labels = np.array(["c", "a", "b"])[Y]
    ours, theirs = classifier("numpy"), classifier("numpy")
    ours.partial_fit(X[:3], np.array(["c", "c", "a"]), classes=["b", "c", "a"])
    assert ours.classes.tolist() == ["a", "b", "c"]
    theirs.classes = ["a", "b", "c"]
    theirs.fit(X[:3], ["c", "c", "a"], verbose=0)
    assert_same(ours.get_weights(), theirs.get_weights())
    ours.partial_fit(X, labels).partial_fit(X, labels, classes=["c", "b", "a"])
    with pytest.raises(ValueError, match=r"classes must be those of the first call, \['a', 'b', 'c'\]; got \['a'"):
        ours.partial_fit(X, labels, classes=["a", "d", "c"])
    with pytest.raises(ValueError, match="y must be among the classes"):
        ours.partial_fit(X[:1], ["d"])


def test_a_first_call_that_fails_leaves_no_classes():
    model = classifier("numpy")
    with pytest.raises(ValueError, match="as many rows"):
        model.partial_fit(X, Y[:4], classes=[0, 1, 2])
    assert model.classes is None


# ---------------------------------------------------------------- predict_proba
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_probabilities_of_logits_are_those_of_the_activation(backend, dtype):
    """The same weights with and without the activation of the loss; rows sum to 1."""
    binary = "binary_crossentropy", "sigmoid"
    for loss, link, outputs in ((CROSS_ENTROPY, "softmax", 3), (*binary, 1), (*binary, 2)):
        found = []
        for last in (link, "linear"):
            model = Sequential([Dense(4, "tanh"), Dense(outputs, last)], 3, backend, dtype, inputs=6)
            model.compile("adam", loss)
            found.append(model.predict_proba(X))
        assert found[0].dtype == found[1].dtype == dtype
        assert found[0].shape == (61, 3 if outputs == 3 else 2)
        np.testing.assert_allclose(found[1], found[0], rtol=1e-5 if dtype == "float32" else 1e-12)
        if outputs != 2:
            np.testing.assert_allclose(found[0].sum(axis=1), 1, rtol=1e-6)


def test_probabilities_by_formula():
    x = np.array([[1.0], [-800.0], [800.0]])
    model = Sequential([Dense(1, kernel_initializer=np.array([[1.0]]))], inputs=1, dtype="float64")
    model.compile("adam", "binary_crossentropy")
    sigmoid = 1 / (1 + np.exp(-1.0))
    expected = [[1 - sigmoid, sigmoid], [1, 0], [0, 1]]
    np.testing.assert_allclose(model.predict_proba(x), expected, atol=1e-300, rtol=1e-15)
    model = Sequential([Dense(2, kernel_initializer=np.array([[1.0, 0.0]]))], inputs=1, dtype="float64")
    model.compile("adam", CROSS_ENTROPY)
    np.testing.assert_allclose(model.predict_proba(x), [[sigmoid, 1 - sigmoid], [0, 1], [1, 0]], rtol=1e-15)


def test_probabilities_and_classes_agree(backend):
    model = classifier(backend)
    model.fit(X, np.array(["c", "a", "b"])[Y], epochs=3, verbose=0)
    assert model.classes[model.predict_proba(X).argmax(axis=1)].tolist() == model.predict_classes(X).tolist()


@pytest.mark.parametrize(
    ("last", "loss"), [("linear", "mse"), ("linear", "hinge"), ("tanh", "mse"), ("linear", None)]
)
def test_what_has_no_probabilities(last, loss):
    model = Sequential([Dense(1, last)], inputs=6)
    if loss:
        model.compile("adam", loss)
    with pytest.raises(ValueError, match="predict_proba is for models that end in softmax or sigmoid"):
        model.predict_proba(X)


def test_dropout_draws_anew_for_every_batch(backend):
    model = Sequential([Dropout(0.5), Dense(1)], seed=1, backend=backend, inputs=6)
    model.compile(fo.SGD(lr=0.0), "mean_squared_error")
    losses = {model.train_on_batch(X, Y.astype(float))["loss"] for _ in range(4)}
    assert len(losses) == 4


def test_metrics_of_values(backend):
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((9, 3)), rng.standard_normal((9, 2))
    model = regressor(backend)
    model.build(3)
    predicted = model.predict(x)
    figures = model.train_on_batch(x, y)
    variation = ((y - y.mean(axis=0)) ** 2).sum()
    assert figures["r2"] == pytest.approx(1 - ((predicted - y) ** 2).sum() / variation, rel=1e-9)
