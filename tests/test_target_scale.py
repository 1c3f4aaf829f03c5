"""Targets in units of their deviation: learnt at the first fit, undone by `predict`, kept in files."""

import numpy as np
import pandas as pd
import pytest
from helpers_model import CROSS_ENTROPY, assert_same, snapshot
from hypothesis import given
from hypothesis import strategies as st

import fastopt as fo
from fastopt import Dense, Sequential, load_model

RNG = np.random.default_rng(0)
X = RNG.standard_normal((60, 3)).astype(np.float32)
PRICES = 250_000 + 40_000 * X[:, 0].astype(float) - 10_000 * X[:, 1] ** 2
TWO = np.stack([PRICES, 1e-3 * X[:, 2] - 5], axis=1)
LOSSES = ("mean_squared_error", "mean_absolute_error", "huber", "quantile")


def model_of(outputs=1, loss="mse", backend="numpy", dtype="float32", metrics=(), activation="linear"):
    model = Sequential([Dense(16, "tanh"), Dense(outputs, activation)], seed=2, backend=backend, dtype=dtype)
    model.compile(fo.Adam(lr=0.02), loss, metrics)
    return model


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("y", [PRICES, TWO], ids=["one", "two"])
def test_it_is_training_on_scaled_targets(backend, loss, y):
    outputs = 1 if y.ndim == 1 else 2
    model = model_of(outputs, loss, backend, metrics=["mean_absolute_error"])
    history = model.fit(X, y, epochs=5, validation_split=0.25, shuffle=False, standardize_targets=True, verbose=0)
    mean, deviation = y[:45].mean(axis=0, keepdims=True), y[:45].std(axis=0, keepdims=True)
    np.testing.assert_allclose(model.target_scale.mean, np.ravel(mean), rtol=1e-14)
    np.testing.assert_allclose(model.target_scale.deviation, np.ravel(deviation), rtol=1e-12)
    by_hand = model_of(outputs, loss, backend, metrics=["mean_absolute_error"])
    scaled = (y - model.target_scale.mean.reshape(mean.shape)) / model.target_scale.deviation.reshape(mean.shape)
    expected = by_hand.fit(X, scaled, epochs=5, validation_split=0.25, shuffle=False, verbose=0)
    assert_same(model.get_weights(), by_hand.get_weights())
    for name in ("loss", "val_loss", "mean_absolute_error", "val_mean_absolute_error"):
        assert history[name] == expected[name]
    assert model.evaluate(X, y) == by_hand.evaluate(X, scaled)
    np.testing.assert_allclose(
        model.predict(X), by_hand.predict(X) * model.target_scale.deviation + model.target_scale.mean, rtol=1e-6
    )
    assert model.predict(X).dtype == np.float32


def test_it_learns_what_it_does_not_learn_otherwise(backend):
    plain, scaled = (model_of(backend=backend) for _ in range(2))
    plain.fit(X, PRICES, epochs=100, verbose=0)
    scaled.fit(X, PRICES, epochs=100, standardize_targets=True, verbose=0)
    errors = [np.abs(model.predict(X)[:, 0] - PRICES).mean() for model in (plain, scaled)]
    assert errors[1] < 0.1 * PRICES.std() < 0.1 * errors[0]


@given(st.floats(-1e9, 1e9), st.floats(1e-3, 1e6), st.sampled_from(["float32", "float64"]))
def test_any_units_train_alike(offset, unit, dtype):
    y = X[:, 0].astype(np.float64)
    model, other = model_of(dtype=dtype), model_of(dtype=dtype)
    model.fit(X, y, standardize_targets=True, verbose=0)
    other.fit(X, y * unit + offset, standardize_targets=True, verbose=0)
    resolution = 1e-4 + np.spacing(abs(offset) + unit) / unit  # of y in those units
    for a, b in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=10 * resolution)


def test_constant_targets(backend):
    model = model_of(2, backend=backend)
    model.fit(X, np.full((60, 2), 0.1), epochs=2, standardize_targets=True, verbose=0)
    assert model.target_scale.mean.tolist() == [0.1, 0.1]
    assert model.target_scale.deviation.tolist() == [1, 1]
    assert np.isfinite(model.predict(X)).all()


def test_it_is_kept_once_learnt(path):
    model = model_of()
    model.fit(X, PRICES, epochs=2, standardize_targets=True, verbose=0)
    scale = model.target_scale
    model.save(path)
    again = load_model(path)
    assert_same(list(again.target_scale), list(scale))
    assert_same(again.predict(X), model.predict(X))
    for one, option in ((model, {}), (again, {"standardize_targets": True})):
        one.fit(X, 2 * PRICES, epochs=4, initial_epoch=2, verbose=0, **option)
        assert_same(list(one.target_scale), list(scale))
    assert_same(model.get_weights(), again.get_weights())
    other = model_of()
    other.load_weights(path)
    assert_same(list(other.target_scale), list(scale))
    plain = model_of()
    plain.build(3)
    plain.save(path)
    other.load_weights(path)
    assert other.target_scale is None


def test_it_may_be_set():
    model = model_of(2)
    model.build(3)
    raw = model.predict(X)
    model.target_scale = ([1, 2], 10)
    assert_same(model.predict(X), (raw.astype(np.float64) * 10 + [1, 2]).astype(np.float32))
    assert_same(list(model.target_scale), [np.array([1.0, 2.0]), np.array([10.0, 10.0])])
    model.target_scale = None
    assert_same(model.predict(X), raw)
    for wrong, error, message in (
        (3, TypeError, r"target_scale must be None or \(mean, deviation\)"),
        ((1, 2, 3), TypeError, "target_scale must be None"),
        ((1, 0), ValueError, "the deviation of target_scale must be positive; got 0"),
        ((np.nan, 1), ValueError, "the mean of target_scale must be finite"),
        (([1, 2, 3], 1), ValueError, r"the mean of target_scale must have shape \(2,\); got \(3,\)"),
        (("a", 1), TypeError, "the mean of target_scale must hold real numbers"),
    ):
        with pytest.raises(error, match=message):
            model.target_scale = wrong


@pytest.mark.parametrize(
    ("loss", "outputs", "activation", "y", "message"),
    [
        (
            CROSS_ENTROPY,
            3,
            "linear",
            np.arange(60) % 3,
            "standardize_targets is for losses of real-valued targets; got sp",
        ),
        ("binary_crossentropy", 1, "linear", np.arange(60) % 2, "for losses of real-valued targets; got binary_cross"),
        ("hinge", 1, "linear", np.arange(60) % 2, "for losses of real-valued targets; got hinge"),
        ("categorical_crossentropy", 2, "linear", np.eye(2)[np.arange(60) % 2], "for losses of real-valued targets"),
        ("mse", 1, "relu", PRICES, "standardize_targets needs a last layer that gives any number, .*; got relu"),
        ("mse", 1, "sigmoid", PRICES, "needs a last layer that gives any number, .*; got sigmoid"),
        ("mse", 2, "linear", PRICES, r"y must have shape \(n, outputs\)"),
        ("mse", 1, "linear", np.where(PRICES > 260_000, np.nan, PRICES), "y must be finite; got nan"),
        ("mse", 1, "linear", 1e100 * PRICES, "y is too large for a model of float32: use dtype='float64'"),
    ],
)
def test_what_cannot_be_scaled(loss, outputs, activation, y, message):
    model = model_of(outputs, loss, activation=activation)
    before = snapshot(model)
    with pytest.raises(ValueError, match=message):
        model.fit(X, y, standardize_targets=True)
    assert_same(before, snapshot(model))
    assert model.target_scale is None
    with pytest.raises(TypeError, match="standardize_targets must be True or False; got 'yes'"):
        model.fit(X, y, standardize_targets="yes")


def test_there_is_no_accuracy_of_scaled_targets():
    model = model_of(metrics=["accuracy"])
    with pytest.raises(
        ValueError, match="standardize_targets is for real-valued targets, of which there is no accuracy"
    ):
        model.fit(X, np.arange(60) % 2, standardize_targets=True)
    assert not model.built


def test_it_comes_before_training():
    model = model_of()
    model.fit(X, PRICES / 1e5, verbose=0)
    with pytest.raises(
        ValueError, match="must be given to the first fit: the model has been trained on targets as they"
    ):
        model.fit(X, PRICES, standardize_targets=True)
    model.compile("adam", "hinge")
    model.target_scale = (0, 2)
    for call in (model.fit, model.evaluate):
        with pytest.raises(ValueError, match="those of hinge are classes: set model.target_scale = None first"):
            call(X, np.sign(X[:, 0]))


def test_tables_and_gaps():
    model, expected = model_of(), model_of()
    y = pd.Series(np.round(PRICES), dtype="Int64")
    y[[3, 8]] = pd.NA
    keep = ~y.isna().to_numpy()
    model.fit(X, y, standardize_targets=True, nan="skip", verbose=0)
    expected.fit(X[keep], np.round(PRICES)[keep], standardize_targets=True, verbose=0)
    assert_same(list(model.target_scale), list(expected.target_scale))
    assert_same(model.get_weights(), expected.get_weights())


def test_with_normalization(backend, path):
    model = Sequential([fo.Normalization(), Dense(16, "tanh"), Dense(1)], seed=2, backend=backend)
    model.compile(fo.Adam(lr=0.02), "huber", ["r2"])
    model.fit(1e6 + 100 * X.astype(float), PRICES, epochs=60, standardize_targets=True, verbose=0)
    assert model.evaluate(1e6 + 100 * X.astype(float), PRICES)["r2"] > 0.95
    model.save(path)
    assert_same(load_model(path).predict(X), model.predict(X))


def test_the_users_targets_are_left_alone():
    y = PRICES.copy()
    y.flags.writeable = False
    model_of().fit(X, y, standardize_targets=True, verbose=0)
    assert_same(y, PRICES)
