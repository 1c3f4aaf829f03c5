"""Layers that prepare data: Keras' formulas, numbers of the training rows, the same bits on every backend."""

import copy
import json
import pickle

import numpy as np
import pandas as pd
import pytest
from helpers_model import CROSS_ENTROPY, assert_same, blobs, snapshot
from helpers_model import prepared as prepared_by
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from safetensors import safe_open
from safetensors.numpy import save_file

import fastopt as fo
from fastopt import Dense, Dropout, Normalization, Rescaling, Sequential, load_model
from fastopt import preprocessing as prep
from fastopt.kernels import sources

X, Y = blobs(60)
F64 = np.dtype(np.float64)


def model_of(*front, backend="numpy", dtype="float32", loss=CROSS_ENTROPY, outputs=3):
    model = Sequential([*front, Dense(8, "tanh"), Dropout(0.25), Dense(outputs)], seed=1, backend=backend, dtype=dtype)
    model.compile(fo.Adam(lr=0.02), loss)
    return model


def through(layers, x, inputs):
    known = prep.known_statistics(layers, [None] * len(layers), inputs)
    return prepared_by(layers, known, np.asarray(x), F64)


# ---------------------------------------------------------------- formulas


def test_normalization_by_hand():
    """The mean of 1, 2 and 6 is 3, and the variance (4 + 1 + 9) / 3."""
    layer = Normalization().adapt([[1.0, 10.0], [2.0, 10.0], [6.0, 10.0]])
    np.testing.assert_array_equal(layer.mean, [3, 10])
    np.testing.assert_allclose(layer.variance, [14 / 3, 0], rtol=1e-15)
    out = through([layer], [[3.0, 10.0], [1.0, 11.0]], 2)
    np.testing.assert_allclose(out, [[0, 0], [-2 / (14 / 3) ** 0.5, 1e7]], rtol=1e-14)


def test_normalization_with_given_numbers():
    layer = Normalization(mean=3.0, variance=4.0)
    np.testing.assert_array_equal(through([layer], [[1, 3, 5]], 3), [[-1, 0, 1]])
    layer = Normalization(mean=[1, 2], variance=[0.25, 0.0])
    np.testing.assert_allclose(through([layer], [[2, 2.5]], 2), [[2, 0.5 / 1e-7]], rtol=1e-15)


def test_normalization_of_all_numbers_together():
    layer = Normalization(axis=None).adapt([[0.0, 2.0], [4.0, 6.0]])
    assert (layer.mean, layer.variance) == (3.0, 5.0)
    model = model_of(Normalization(axis=None))
    model.adapt([[0.0, 2.0], [4.0, 6.0]])
    (numbers,) = model.statistics.values()
    assert_same(list(numbers), [np.full(2, 3.0), np.full(2, 5.0)])


def test_rescaling_by_hand():
    np.testing.assert_array_equal(through([Rescaling(1 / 255)], [[0, 255, 51]], 3), [[0, 1, 0.2]])
    np.testing.assert_array_equal(through([Rescaling(2, offset=-1)], [[0, 1]], 2), [[-1, 1]])
    np.testing.assert_array_equal(through([Rescaling([2, 3], [1, 0])], [[1, 1]], 2), [[3, 3]])


def test_layers_follow_each_other():
    layers = (Rescaling(0.5), Normalization(), Rescaling(10, 1))
    data = np.array([[0.0], [8.0]])
    statistics = prep.learn(layers, [None] * 3, data, None)
    assert statistics[0] is statistics[2] is None
    assert (statistics[1].mean, statistics[1].variance) == (2.0, 4.0)  # of 0 and 4
    np.testing.assert_array_equal(prepared_by(layers, statistics, data, F64), [[-9], [11]])


FINITE = st.floats(-1e6, 1e6, width=32)


@given(arrays(np.float32, st.tuples(st.integers(1, 30), st.integers(1, 4)), elements=FINITE), st.floats(-1e9, 1e9))
def test_statistics_are_sound_whatever_the_offset(x, offset):
    data = x.astype(np.float64) + offset
    mean, variance = prep.moments(lambda: iter([data[:7], *([data[7:]] if len(data) > 7 else [])]))
    exact = data - data[0]  # exact to one rounding, and small
    np.testing.assert_allclose(mean, data[0] + exact.mean(axis=0), rtol=1e-14, atol=1e-9)
    np.testing.assert_allclose(variance, exact.var(axis=0), rtol=1e-9, atol=1e-9 * (1 + np.abs(exact).max()) ** 2)
    constant = (data == data[0]).all(axis=0)
    assert (variance[constant] == 0).all()
    np.testing.assert_array_equal(mean[constant], data[0][constant])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_large_offsets_and_constants(backend, dtype):
    """Seconds since 1970 in float64: in float32, before they are prepared, all would be one number."""
    rng = np.random.default_rng(0)
    x = np.stack([1.7e9 + rng.standard_normal(50), np.full(50, 0.1), np.full(50, 16777217.0)], axis=1)
    model = model_of(Normalization(), backend=backend, dtype=dtype)
    model.fit(x, np.arange(50) % 3)
    prepared = prepared_by(model.preprocessing, model.learnt.statistics, x, model.dtype)
    np.testing.assert_allclose(prepared[:, 0].mean(), 0, atol=1e-6)
    np.testing.assert_allclose(prepared[:, 0].std(), 1, rtol=1e-5)
    assert (prepared[:, 1:] == 0).all()
    assert np.isfinite(model.predict(x)).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float16, np.float32, bool, ">f8"])
def test_blocks_give_what_the_whole_gives(dtype, monkeypatch):
    x = (np.random.default_rng(0).random((37, 3)) * 200 - (100 if dtype is bool else 0)).clip(0).astype(dtype)
    layers = (Normalization(),)
    whole = prepared_by(layers, prep.learn(layers, [None], x, None), x, F64)
    expected = (x.astype(float) - x.astype(float).mean(0)) / x.astype(float).std(0)
    np.testing.assert_allclose(whole, expected, rtol=1e-9, atol=1e-12)
    monkeypatch.setattr(sources, "BLOCK", 15)
    np.testing.assert_allclose(prepared_by(layers, prep.learn(layers, [None], x, None), x, F64), whole, atol=1e-12)


# ---------------------------------------------------------------- in a model


def scaled(x, rows=slice(None)):
    return (x - x[rows].mean(axis=0)) / x[rows].std(axis=0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_fit_learns_from_the_rows_that_it_trains_on(backend, dtype):
    x = X.astype(np.float64) * 100 + 1000
    model = model_of(Normalization(), backend=backend, dtype=dtype)
    history = model.fit(x, Y, epochs=3, validation_split=0.4, shuffle=False, verbose=0)
    (numbers,) = model.statistics.values()
    np.testing.assert_allclose(numbers.mean, x[:36].mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(numbers.variance, x[:36].var(axis=0), rtol=1e-12)
    by_hand = model_of(backend=backend, dtype=dtype)
    prepared = prepared_by(model.preprocessing, model.learnt.statistics, x, model.dtype)
    np.testing.assert_allclose(prepared, scaled(x, slice(36)), rtol=1e-4, atol=1e-5)
    expected = by_hand.fit(prepared, Y, epochs=3, validation_split=0.4, shuffle=False, verbose=0)
    assert_same(model.get_weights(), by_hand.get_weights())  # the same initial weights, batches and masks, too
    assert history["val_loss"] == expected["val_loss"]
    assert_same(model.predict(x), by_hand.predict(prepared))
    assert model.evaluate(x, Y) == by_hand.evaluate(prepared, Y)
    model.fit(x[:10] * 2, Y[:10], verbose=0)  # keeps what it has learnt
    assert_same(list(model.statistics.values()), [numbers])


def test_every_backend_is_given_the_same_bits():
    models = [model_of(Rescaling(0.1), Normalization(), backend=backend) for backend in ("numpy", "cpu")]
    for model in models:
        model.fit(X, Y, epochs=2, verbose=0)
    a, b = (prepared_by(m.preprocessing, m.learnt.statistics, X, m.dtype) for m in models)
    assert_same(a, b)
    np.testing.assert_allclose(models[0].predict(X), models[1].predict(X), rtol=1e-4, atol=1e-5)


def test_validation_data_are_not_learnt_from(backend):
    model = model_of(Normalization(), backend=backend)
    model.fit(X, Y, validation_data=(X + 100, Y), verbose=0)
    np.testing.assert_allclose(model.statistics["normalization_1"].mean, X.astype(float).mean(axis=0), rtol=1e-12)


def test_the_users_arrays_are_left_alone(backend):
    x = X.copy()
    x.flags.writeable = False
    model = model_of(Normalization(), Rescaling(2), backend=backend)
    model.fit(x, Y, verbose=0)
    model.predict(x)
    assert_same(x, X)


def test_tables_and_images_are_prepared(backend):
    images = np.random.default_rng(0).integers(0, 256, (60, 2, 3), np.uint8)
    model, flat = model_of(Rescaling(1 / 255), backend=backend), model_of(backend=backend)
    model.fit(images, Y)
    flat.fit((images.reshape(60, 6) / 255), Y)
    np.testing.assert_allclose(model.predict(images), flat.predict(images.reshape(60, 6) / 255), rtol=1e-6)
    frame = pd.DataFrame(X, columns=list("abcdef"))
    frame["a"] = pd.Series(np.round(X[:, 0]), dtype="Int64")
    model = model_of(Normalization(), backend=backend)
    model.fit(frame, Y)
    np.testing.assert_allclose(model.statistics["normalization_1"].mean, frame.astype(float).mean(), rtol=1e-6)
    frame.loc[3, "a"] = pd.NA
    with pytest.raises(ValueError, match="x: column 'a' has a missing value in row 3"):
        model.fit(frame, Y)
    again = model_of(Normalization(), backend=backend)
    again.fit(frame, Y, nan="skip")
    np.testing.assert_allclose(again.statistics["normalization_1"].mean, frame.drop(3).astype(float).mean(), rtol=1e-6)


def test_accumulation_clipping_and_early_stopping_work_behind_them(backend):
    model = model_of(Normalization(), backend=backend)
    model.compile(fo.Adam(clip_norm=1.0), CROSS_ENTROPY)
    stop = fo.EarlyStopping("val_loss", patience=1, restore_best_weights=True)
    model.fit(X, Y, epochs=5, accumulate=2, validation_split=0.2, callbacks=[stop], verbose=0)
    assert len(model.get_weights()) == len(model.parameters) == 4


# ---------------------------------------------------------------- whose numbers they are


def test_layers_may_be_adapted_as_in_keras():
    layer = Normalization()
    assert layer.adapt(X) is layer
    model = model_of(layer)
    model.fit(X[:20] + 5, Y[:20], verbose=0)
    np.testing.assert_allclose(model.statistics["normalization_1"].mean, X.astype(float).mean(axis=0), rtol=1e-12)
    later = model_of(other := Normalization())
    other.adapt(X)  # before the model is built, as in Keras
    later.predict(X)
    assert_same(later.statistics, model.statistics)
    layer.adapt(X[:5])  # anew
    np.testing.assert_allclose(layer.mean, X[:5].astype(float).mean(axis=0), rtol=1e-12)
    built = model_of(Normalization())
    built.build(6)
    built.preprocessing[0].adapt(X)
    built.predict(X)
    assert_same(built.statistics, model.statistics)


def test_a_layer_in_two_models_leaks_nothing():
    layer = Normalization()
    first, second = model_of(layer), model_of(layer)
    first.fit(X, Y, verbose=0)
    assert layer.mean is None
    second.fit(X + 100, Y, verbose=0)
    mean = X.astype(float).mean(axis=0)
    np.testing.assert_allclose(first.statistics["normalization_1"].mean, mean, rtol=1e-5)
    np.testing.assert_allclose(second.statistics["normalization_1"].mean, mean + 100, rtol=1e-6)
    before = first.predict(X)
    layer.adapt(X * 1000)
    assert_same(first.predict(X), before)
    third = model_of(layer)
    third.predict(X)
    np.testing.assert_allclose(third.statistics["normalization_1"].mean, mean * 1000, rtol=1e-5)
    third.statistics["normalization_1"].mean[:] = 7  # a copy
    np.testing.assert_allclose(third.statistics["normalization_1"].mean, mean * 1000, rtol=1e-5)


def test_a_layer_twice_in_one_model():
    layer = Normalization()
    model = model_of(layer, Rescaling(3, 1), layer)
    model.fit(X, Y, verbose=0)
    first, second = model.statistics.values()
    np.testing.assert_allclose(first.mean, X.astype(float).mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(second.mean, np.ones(6), rtol=1e-6)
    np.testing.assert_allclose(second.variance, np.full(6, 9.0), rtol=1e-6)


def test_adapting_a_model():
    model = model_of(Rescaling(2), Normalization(), Normalization(mean=0.5, variance=1.0))
    model.adapt(X)
    assert model.built
    assert list(model.statistics) == ["normalization_1", "normalization_2"]
    np.testing.assert_allclose(model.statistics["normalization_1"].mean, 2 * X.astype(float).mean(axis=0), rtol=1e-12)
    assert_same(model.statistics["normalization_2"].mean, np.full(6, 0.5))
    weights = model.get_weights()
    model.adapt(X * 10)
    np.testing.assert_allclose(model.statistics["normalization_1"].mean, 20 * X.astype(float).mean(axis=0), rtol=1e-6)
    assert_same(model.get_weights(), weights)
    kept = model.statistics
    model.fit(X, Y, verbose=0)
    assert_same(model.statistics, kept)
    for one in (model_of(), model_of(Rescaling(2)), model_of(Normalization(mean=0, variance=1))):
        with pytest.raises(ValueError, match="adapt is for models that have a Normalization without mean and variance"):
            one.adapt(X)
    bad = X.astype(float).copy()
    bad[3, 2] = np.nan
    for adapt in (model.adapt, Normalization().adapt):
        with pytest.raises(ValueError, match=r"must be finite; got nan at index \(3, 2\)"):
            adapt(bad)
        with pytest.raises(ValueError, match=r"must have shape \(batch, features\)"):
            adapt(bad[0])
    with pytest.raises(ValueError, match="here .any, 6.; got shape"):
        model.adapt(X[:, :4])
    assert_same(model.statistics, kept)
    with pytest.raises(ValueError, match="replace the mean and variance that the layer was made with"):
        Normalization(mean=0, variance=1).adapt(X)
    with pytest.raises(ValueError, match="the variance of feature 1 is too large for float64"):
        Normalization().adapt([[0, 1e300], [0, -1e300]])


def test_before_the_numbers_are_known(path):
    model = model_of(Normalization())
    for built in (False, True):
        if built:
            model.build(6)
        before = snapshot(model)
        for call in (lambda: model.predict(X), lambda: model.evaluate(X, Y), lambda: model.predict_classes(X)):
            with pytest.raises(
                ValueError, match="layer normalization_1 has no mean and variance yet: call fit, or adapt"
            ):
                call()
        assert_same(before, snapshot(model))
        assert model.statistics == {}
    model.save(path)
    again = load_model(path)
    with pytest.raises(ValueError, match="layer normalization_1 has no mean and variance yet"):
        again.predict(X)
    again.fit(X, Y, verbose=0)
    model.fit(X, Y, verbose=0)
    assert_same(again.get_weights(), model.get_weights())
    assert_same(again.statistics, model.statistics)


def test_a_fit_that_fails_teaches_nothing(backend):
    model = model_of(Normalization(), backend=backend)
    for wrong in ({"batch_size": 0}, {"validation_data": (X[:, :3], Y)}, {"validation_split": 0.001}):
        with pytest.raises(ValueError, match="must|leaves"):
            model.fit(X, Y, **wrong)
    with pytest.raises(ValueError, match="must be finite"):
        model.fit(np.where(X > 3, np.nan, X), Y)
    assert model.statistics == {}
    assert not model.built


def test_a_backend_that_cannot_run_learns_nothing(monkeypatch):
    def network(name):
        raise ImportError("lacks a driver")

    model = model_of(Normalization())
    monkeypatch.setattr("fastopt._backends.network", network)
    with pytest.raises(ImportError, match="lacks a driver"):
        model.fit(X, Y)
    assert model.statistics == {}
    assert model.classes is None
    assert not model.built


def test_values_that_leave_the_range_of_the_dtype():
    model = model_of(Rescaling(1e30))
    with pytest.raises(ValueError, match="x must be finite; got -?inf at index"):
        model.predict(np.full((2, 6), 1e30))
    model_of(Rescaling(1e-300)).predict(np.full((2, 6), 1e300))  # beyond float32 before, within it after


# ---------------------------------------------------------------- places, words, files


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (
            [Dense(2), Normalization(), Dense(2)],
            r"layers\[1\], a Normalization, must stand before all layers of other kinds",
        ),
        (
            [Dropout(0.5), Rescaling(2), Dense(2)],
            r"layers\[1\], a Rescaling, must stand before all layers of other kinds",
        ),
        ([Rescaling(2)], "the last layer must be Dense: the others only prepare data"),
        ([Dense(2), Rescaling(2)], "the last layer must be Dense: the others only prepare data"),
    ],
)
def test_places(layers, message):
    with pytest.raises(ValueError, match=message):
        Sequential(layers)


def test_dropout_may_follow(backend):
    model = Sequential([Rescaling(2), Dropout(0.5), Dense(3)], backend=backend, seed=3)
    plain = Sequential([Dropout(0.5), Dense(3)], backend=backend, seed=3)
    for one, x in ((model, X), (plain, 2 * X)):
        one.compile("sgd", CROSS_ENTROPY)
        one.fit(x, Y, epochs=2, verbose=0)
    assert_same(model.get_weights(), plain.get_weights())


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Normalization(axis=0), ValueError, r"axis must be -1 \(feature by feature\) or None .*; got 0"),
        (lambda: Normalization(axis=(1, 2)), ValueError, r"axis must be .*; got \(1, 2\)"),
        (lambda: Normalization(axis=True), ValueError, "axis must be .*; got True"),
        (lambda: Normalization(mean=1), ValueError, "give mean and variance both, or neither"),
        (lambda: Normalization(variance=1), ValueError, "give mean and variance both, or neither"),
        (lambda: Normalization(mean="a", variance=1), TypeError, "mean must hold real numbers"),
        (lambda: Normalization(mean=np.nan, variance=1), ValueError, "mean must be finite"),
        (lambda: Normalization(mean=0, variance=-1), ValueError, "variance must not be negative; got -1"),
        (lambda: Normalization(mean=[[0]], variance=1), ValueError, r"mean must be a number, or an array \(inputs,\)"),
        (lambda: Normalization(mean=[], variance=1), ValueError, r"mean must be a number, or an array"),
        (lambda: Normalization(mean=[1, 2], variance=[1, 2, 3]), ValueError, r"one shape; got \(2,\) and \(3,\)"),
        (lambda: Normalization(name=""), ValueError, "name must not be empty"),
        (lambda: Rescaling("a"), TypeError, "scale must hold real numbers"),
        (lambda: Rescaling(None), TypeError, "scale must hold real numbers"),
        (lambda: Rescaling(np.inf), ValueError, "scale must be finite"),
        (lambda: Rescaling(1, [[2]]), ValueError, r"offset must be a number, or an array \(inputs,\)"),
        (lambda: Rescaling([1, 2], [1, 2, 3]), ValueError, "scale and offset must have one shape"),
        (lambda: Rescaling(1, name=3), TypeError, "name must be a string"),
    ],
)
def test_wrong_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("layer", "what"),
    [
        (Normalization(mean=[1, 2], variance=[1, 1]), "normalization_1: its mean"),
        (Normalization().adapt([[1, 2]]), "normalization_1: its mean"),
        (Rescaling([1, 2]), "rescaling_1: its scale"),
        (Rescaling(1, [1, 2]), "rescaling_1: its offset"),
    ],
)
def test_numbers_of_other_features(layer, what):
    with pytest.raises(ValueError, match=f"layer {what} is of 2 features, but 6 come in"):
        Sequential([layer, Dense(1)], inputs=6)
    model = model_of(layer)
    for call in (lambda: model.fit(X, Y), lambda: model.predict(X), lambda: model.evaluate(X, Y)):
        with pytest.raises(ValueError, match=f"layer {what} is of 2 features, but 6 come in"):
            call()
    assert not model.built


def test_a_layer_that_is_adapted_to_others_later():
    model = model_of(layer := Normalization())
    model.build(6)
    layer.adapt(X[:, :2])
    for call in (lambda: model.fit(X, Y), lambda: model.predict(X), lambda: model.statistics):
        with pytest.raises(ValueError, match="layer normalization_1: its mean is of 2 features, but 6 come in"):
            call()
    layer.adapt(X)
    model.fit(X, Y, verbose=0)


LAYOUTS = {
    "columns first": lambda a: np.asfortranarray(a),
    "reversed": lambda a: a[..., ::-1].copy()[..., ::-1],
    "strided": lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
    "foreign": lambda a: a.astype(a.dtype.newbyteorder()),
    "misaligned": lambda a: np.frombuffer(b" " + a.tobytes(), a.dtype, offset=1).reshape(a.shape),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_layout_of_memory(backend, layout, dtype):
    """Data, the layers' own arrays, targets and labels: nothing depends on where numbers lie."""
    x, six = X.astype(dtype), np.arange(1.0, 7.0)
    results = []
    for lay in (lambda a: a, LAYOUTS[layout]):
        front = [
            Rescaling(lay(six), lay(six[::-1].copy())),
            Normalization(mean=lay(six), variance=lay(six)),
            Normalization(),
        ]
        model = model_of(*front, backend=backend)
        model.fit(lay(x), lay(Y.astype(np.int64) + 1), validation_data=(lay(x), lay(Y + 1)), verbose=0)
        targets = model_of(*front, backend=backend, loss="mse", outputs=2)
        targets.fit(lay(x), lay(x[:, :2].copy()), standardize_targets=True, verbose=0)
        model.adapt(lay(2 * x))
        results.append([
            model.get_weights(), model.predict(lay(x)), model.predict_classes(lay(x)), model.statistics,
            targets.get_weights(), list(targets.target_scale), Normalization().adapt(lay(x)).mean,
        ])  # fmt: skip
    assert_same(*results)


def test_arrays_of_layers_are_copies_that_stay():
    scale = np.array([1.0, 2.0])
    layer = Rescaling(scale)
    scale[0] = 5
    assert layer.scale.tolist() == [1, 2]
    with pytest.raises(ValueError, match="read-only"):
        layer.scale[0] = 3
    with pytest.raises(AttributeError):
        layer.scale = 3


def test_words():
    layers = [Normalization(), Normalization(mean=[1, 2], variance=1, name="n"), Rescaling(1 / 255), Rescaling(2, -1)]
    assert repr(layers) == (
        "[Normalization(), Normalization(mean=<array (2,)>, variance=1, name='n'), Rescaling(0.00392157), "
        "Rescaling(2, offset=-1)]"
    )
    assert repr(Normalization(axis=None).adapt(X)) == "Normalization(axis=None)"
    model = Sequential([*layers, Rescaling([1, 2], [3, 4]), Dense(3)], inputs=2)
    assert model.names == ("normalization_1", "n", "rescaling_1", "rescaling_2", "rescaling_3", "dense_1")
    assert model.summary().splitlines()[1:6] == [
        "normalization_1  (x - mean) / deviation        2           0",
        "n                (x - mean) / deviation        2           0",
        "rescaling_1      x * 0.00392157                2           0",
        "rescaling_2      x * 2 -1                      2           0",
        "rescaling_3      x * scale + offset            2           0",
    ]
    assert [type(spec).__name__ for spec in model.specs(2)] == ["DenseSpec"]


FRONTS = {
    "learnt": lambda: [Normalization(name="mine")],
    "together": lambda: [Normalization(axis=None)],
    "adapted": lambda: [Normalization().adapt(X)],
    "given": lambda: [Normalization(mean=0.5, variance=[1, 2, 3, 4, 5, 6])],
    "rescaling": lambda: [Rescaling(1 / 3, [1, 2, 3, 4, 5, 6])],
    "several": lambda: [Rescaling(2), Normalization(), Rescaling(1, -1), Normalization()],
}


@pytest.mark.parametrize("front", FRONTS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_files(path, front, dtype):
    model = model_of(*FRONTS[front](), dtype=dtype)
    model.fit(X, Y, epochs=2, verbose=0)
    model.save(path)
    again = load_model(path)
    assert repr(again) == repr(model)
    assert again.names == model.names
    assert_same(again.statistics, model.statistics)
    assert_same(again.predict(X), model.predict(X))
    for one in (model, again):
        one.fit(X, Y, epochs=3, initial_epoch=2, verbose=0)
    assert_same(again.get_weights(), model.get_weights())
    with safe_open(path, "numpy") as file:
        names = {name for name in file.keys() if not name.startswith("optimizer.")}  # noqa: SIM118
        assert json.loads(file.metadata()["fastopt"])["format"] == 2
    learning = [i for i, layer in enumerate(model.layers) if isinstance(layer, Normalization)]
    learnt = {f"layers.{i}.{what}" for i in learning for what in ("mean", "variance")}
    first = len(model.preprocessing)
    assert names == learnt | {f"layers.{i}.{w}" for i in (first, first + 2) for w in ("kernel", "bias")}


@pytest.mark.parametrize("front", FRONTS)
def test_weights_of_files(path, front):
    model = model_of(*FRONTS[front]())
    model.fit(X, Y, epochs=2, verbose=0)
    model.save(path)
    for inputs in (None, 6):
        other = Sequential([*FRONTS[front](), Dense(8, "tanh"), Dropout(0.5), Dense(3)], backend="numpy", inputs=inputs)
        other.load_weights(path)
        assert_same(other.predict(X), model.predict(X))
    plain = model_of()
    with pytest.raises(
        ValueError, match="another architecture.*the file's data go through .*, the model's through noth"
    ):
        plain.load_weights(path)
    assert not plain.built


def test_weights_for_a_model_that_prepares_its_data(path):
    model = model_of()
    model.build(6)
    model.save(path)
    other = model_of(Rescaling(1 / 255))
    with pytest.raises(
        ValueError, match=r"file's data go through nothing, the model's through Rescaling\(0.00392157\)"
    ):
        other.load_weights(path)
    other.build(6)
    other.set_weights(load_model(path).get_weights())


@pytest.mark.parametrize("front", FRONTS)
def test_copies(front):
    model = model_of(*FRONTS[front]())
    model.fit(X, Y, verbose=0)
    for again in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert repr(again) == repr(model)
        assert_same(again.predict(X), model.predict(X))
        again.fit(X + 1, Y, verbose=0)
        assert_same(again.statistics, model.statistics)
    for layer in model.preprocessing:
        again = pickle.loads(pickle.dumps(layer))
        assert repr(again) == repr(layer)
        assert again.config() == layer.config()


def test_what_is_remembered_cannot_be_written_to():
    model = model_of(Normalization(), loss="mse")
    model.fit(X, X[:, :3], standardize_targets=True, verbose=0)
    model.classes = ["a", "b", "c"]
    for one in (model, pickle.loads(pickle.dumps(model))):
        for array in (one.classes, *one.target_scale):
            with pytest.raises(ValueError, match="read-only"):
                array[0] = 1


def test_set_weights_leaves_the_numbers():
    model, other = model_of(Normalization()), model_of(Normalization())
    model.fit(X, Y, verbose=0)
    other.adapt(X + 3)
    kept = other.statistics
    other.set_weights(model.get_weights())
    assert_same(other.statistics, kept)


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("layers.0.mean", None),
        ("layers.0.variance", None),
        ("layers.0.mean", np.zeros(5)),
        ("layers.0.mean", np.zeros(6, np.float32)),
        ("layers.0.mean", np.full(6, np.nan)),
        ("layers.0.variance", np.full(6, -1.0)),
        ("layers.1.mean", np.zeros(6)),
        ("targets.mean", np.zeros(3)),
        ("targets.deviation", np.ones(3)),
    ],
)
def test_files_whose_numbers_are_damaged(path, name, tensor):
    model = model_of(Normalization(), Rescaling(2))
    model.fit(X, Y, verbose=0)
    model.save(path)
    with safe_open(path, "numpy") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    tensors.pop(name, None)
    if tensor is not None:
        tensors[name] = tensor
    save_file(tensors, path, metadata)
    other = model_of(Normalization(), Rescaling(2))
    for load in (load_model, other.load_weights):
        with pytest.raises(ValueError, match="is not a usable model file"):
            load(path)
    assert not other.built
