"""A model takes labels as they are in the data, keeps them, and gives them back."""

import json
from types import MappingProxyType

import numpy as np
import pytest
from helpers_model import CROSS_ENTROPY, assert_same, blobs, snapshot
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file

import fastopt as fo
from fastopt import Dense, Sequential, load_model

BCE = "binary_crossentropy"
X, Y = blobs(60)
X2, Y2 = blobs(60, classes=2, seed=3)
NAMES = np.array(["high", "low", "middle"])


def model_of(outputs=3, loss=CROSS_ENTROPY, backend="numpy", activation="linear", metrics=("accuracy",)):
    model = Sequential([Dense(8, "relu"), Dense(outputs, activation)], seed=0, backend=backend)
    model.compile(fo.Adam(lr=0.05), loss, metrics)
    return model


def fitted(x, y, *args, epochs=3, **options):
    model = model_of(*args, **options)
    model.fit(x, y, epochs=epochs, verbose=0)
    return model


ENCODINGS = {
    "strings": (NAMES[Y], ["high", "low", "middle"]),
    "from 1": (Y + 1, [1, 2, 3]),
    "gaps": (np.array([-7, 3, 900])[Y], [-7, 3, 900]),
    "whole floats": (np.array([-1.0, 0.0, 1.0])[Y], [-1.0, 0.0, 1.0]),
    "objects": (NAMES.astype(object)[Y], ["high", "low", "middle"]),
}


@pytest.mark.parametrize("name", ENCODINGS)
def test_any_labels_train_as_their_numbers_do(backend, name):
    y, classes = ENCODINGS[name]
    plain = fitted(X, Y, backend=backend, epochs=20)
    model = fitted(X, y, backend=backend, epochs=20)
    assert model.classes.tolist() == classes
    assert_same(model.get_weights(), plain.get_weights())
    assert model.evaluate(X, y) == plain.evaluate(X, Y)
    found = model.predict_classes(X)
    assert found.shape == (60,)
    np.testing.assert_array_equal(found, model.classes[plain.predict_classes(X)])
    assert np.mean(found == y) == plain.evaluate(X, Y)["accuracy"] > 0.9


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.int16, np.float32, np.float64])
def test_numbers_of_classes_stay_as_they_are(dtype):
    for y, outputs in ((Y, 3), (Y, 10), (2 * (Y > 0), 3), (np.maximum(Y, 1), 3)):
        model = fitted(X, y.astype(dtype), outputs)
        assert_same(model.get_weights(), fitted(X, y, outputs).get_weights())
        assert model.classes.tolist() == list(range(outputs))
        assert model.classes.dtype == (np.float64 if np.dtype(dtype).kind == "f" else np.int64)
        model.evaluate(X[:3], np.array([0, 1, outputs - 1]))  # labels that the first fit has not seen
        np.testing.assert_array_equal(model.predict_classes(X), model.predict(X).argmax(axis=1))


@given(st.sets(st.integers(-5, 8), min_size=2, max_size=4), st.integers(2, 5))
def test_labels_are_either_numbers_of_classes_or_as_many_as_outputs(labels, outputs):
    y = np.array(sorted(labels))
    model = model_of(outputs)
    if min(labels) >= 0 and max(labels) < outputs:
        model.fit(X[: len(y)], y, verbose=0)
        assert model.classes.tolist() == list(range(outputs))
    elif len(labels) == outputs:
        model.fit(X[: len(y)], y, verbose=0)
        assert model.classes.tolist() == sorted(labels)
    else:
        with pytest.raises(ValueError, match=rf"y has {len(y)} classes .*, but the last layer has {outputs} outputs"):
            model.fit(X[: len(y)], y, verbose=0)
        assert model.classes is None
        assert not model.built


BINARY = {
    "strings": (np.array(["no", "yes"])[Y2], ["no", "yes"]),
    "bools": (Y2 == 1, [False, True]),
    "1 and 2": (Y2 + 1, [1, 2]),
    "-1 and 1": (2 * Y2 - 1, [-1, 1]),
    "0 and 1": (Y2, [0, 1]),
    "0.0 and 1.0": (Y2.astype(float), [0.0, 1.0]),
    "(n, 1)": (Y2[:, None] + 5, [5, 6]),
}
TWO_CLASSES = [
    (BCE, "sigmoid"),
    (BCE, "linear"),
    ("hinge", "linear"),
    ("perceptron", "linear"),
]


@pytest.mark.parametrize("name", BINARY)
@pytest.mark.parametrize(("loss", "activation"), TWO_CLASSES)
def test_two_classes_with_one_output(backend, name, loss, activation):
    y, classes = BINARY[name]
    plain = fitted(X2, Y2, 1, loss, backend, activation, epochs=30)
    model = fitted(X2, y, 1, loss, backend, activation, epochs=30)
    assert model.classes.tolist() == classes
    assert [type(label) for label in model.classes.tolist()] == [type(label) for label in classes]
    assert_same(model.get_weights(), plain.get_weights())
    assert model.evaluate(X2, y) == plain.evaluate(X2, Y2)
    found = model.predict_classes(X2)
    np.testing.assert_array_equal(
        found == classes[1], model.predict(X2)[:, 0] > (0.5 if activation == "sigmoid" else 0)
    )
    assert np.mean(found == np.ravel(y)) == model.evaluate(X2, y)["accuracy"] > 0.9


def test_probabilities_stay_targets():
    soft = np.where(Y2 == 1, 0.9, 0.1)
    model = fitted(X2, soft, 1, BCE, metrics=())
    assert model.classes is None
    assert set(model.predict_classes(X2)) == {0, 1}
    for y in (Y2, Y2 == 1):
        hard = fitted(X2, y, 1, BCE, metrics=())
        assert hard.classes.tolist() == [0, 1]
        hard.fit(X2, soft)
        hard.evaluate(X2, soft)


def test_signs_may_be_0_and_1_or_minus_1_and_1():
    for loss in ("hinge", "perceptron"):
        for first, second in ((Y2, 2 * Y2 - 1), (2 * Y2 - 1, Y2)):
            model = fitted(X2, first, 1, loss)
            assert model.evaluate(X2, first) == model.evaluate(X2, second)
        only = fitted(X2, np.ones(60), 1, loss)
        assert only.classes is None  # of -1 and 1, or of 0 and 1
        assert fitted(X2, np.zeros(60), 1, loss).classes.tolist() == [0, 1]
        assert fitted(X2, -np.ones(60), 1, loss).classes.tolist() == [-1, 1]


@pytest.mark.parametrize(
    ("outputs", "loss", "y", "message"),
    [
        (
            2,
            CROSS_ENTROPY,
            NAMES[Y],
            r"y has 3 classes \('high', 'low', 'middle'\), but the last .*: make it Dense\(3\)$",
        ),
        (4, CROSS_ENTROPY, NAMES[Y], r"has 4 outputs: make it Dense\(3\); or say by model.classes which there are"),
        (3, CROSS_ENTROPY, np.full(60, "a"), r"y has 1 class \('a'\)"),
        (1, BCE, Y + 1, r"y has 3 classes \(1, 2, 3\), but one output tells two apart: use spar.* and Dense\(3\)$"),
        (1, BCE, np.full(60, 2), r"y has 1 class \(2\), but one output tells two apart; or say by model.classes"),
        (1, BCE, np.full(60, 1.5), r"y must be in \[0, 1\]; got 1.5"),
        (1, "hinge", NAMES[Y], r"y has 3 classes"),
        (1, "hinge", np.full(60, 0.5), "y must be -1 and 1, or 0 and 1; got values 0.5"),
        (3, CROSS_ENTROPY, np.full(60, 0.5), "y must be whole class labels; got 0.5 at index 0"),
        (3, CROSS_ENTROPY, np.full(60, np.inf), "y must be finite; got inf at index 0"),
    ],
)
def test_labels_that_do_not_fit(outputs, loss, y, message):
    model = model_of(outputs, loss)
    before = snapshot(model)
    with pytest.raises(ValueError, match=message):
        model.fit(X, y)
    assert model.classes is None
    assert_same(before, snapshot(model))


def test_classes_decide_for_all_later_calls():
    model = fitted(X, NAMES[Y])
    before = snapshot(model)
    for y, message in (
        (
            np.where(Y == 1, "new", NAMES[Y]),
            rf"y must be among the classes 'high', 'low', 'middle'; got 'new' in row {np.argmax(Y == 1)}",
        ),
        (Y, "got 0 in row|got 1 in row|got 2 in row"),
    ):
        for name, call in (
            ("y", lambda y=y: model.fit(X, y)),
            ("validation y", lambda y=y: model.fit(X, NAMES[Y], validation_data=(X, y))),
            ("y", lambda y=y: model.evaluate(X, y)),
        ):
            with pytest.raises(ValueError, match=message) as caught:
                call()
            assert str(caught.value).startswith(name)
    assert_same(before, snapshot(model))
    some = NAMES[:2][Y2]
    model.fit(X2, some)  # that one class is missing there says nothing about the others
    assert model.classes.tolist() == NAMES.tolist()
    first = fitted(X, Y)
    with pytest.raises(ValueError, match="y must be class labels 0 ... 2, .*; got 3"):
        first.fit(X, Y + 1)
    with pytest.raises(ValueError, match="y must be among the classes 0, 1, 2; got "):
        first.fit(X, NAMES[Y])


def test_classes_are_those_of_all_rows(backend):
    y = np.array(["a"] * 40 + ["b"] * 10 + ["c"] * 10)
    model = model_of(backend=backend)
    model.fit(X, y, validation_split=0.3, shuffle=False, verbose=0)  # trains without a row of "c"
    assert model.classes.tolist() == ["a", "b", "c"]
    x = X.copy()
    x[50:] = np.nan
    model = model_of(backend=backend)
    model.fit(x, y, nan="skip", verbose=0)
    assert model.classes.tolist() == ["a", "b", "c"]


def test_rows_are_those_of_the_data_where_some_are_skipped():
    model = fitted(X, NAMES[Y])
    x, y = X.copy(), NAMES[Y].astype(object)
    x[3], y[5], y[40] = np.nan, None, "new"
    with pytest.raises(ValueError, match="got 'new' in row 40$"):
        model.evaluate(x, y, nan="skip")


def test_classes_may_be_set(backend):
    model = model_of(backend=backend)
    model.classes = ["middle", "high", "low"]
    order = np.array([1, 2, 0])  # of "high", "low", "middle"
    model.fit(X, NAMES[Y], epochs=3, verbose=0)
    assert_same(model.get_weights(), fitted(X, order[Y], backend=backend).get_weights())
    assert model.classes.tolist() == ["middle", "high", "low"]
    wide = model_of(4, backend=backend)
    wide.classes = [*NAMES, "unseen"]
    wide.fit(X, NAMES[Y], epochs=20, verbose=0)
    assert "unseen" not in wide.predict_classes(X)
    reverse = model_of(1, BCE, backend)
    reverse.classes = [1, 0]
    reverse.fit(X2, Y2, epochs=3, verbose=0)
    assert_same(reverse.get_weights(), fitted(X2, 1 - Y2, 1, BCE, backend).get_weights())
    reverse.classes = None
    assert reverse.classes is None
    one_hot = model_of(3, "categorical_crossentropy", backend)
    one_hot.classes = NAMES
    one_hot.fit(X, np.eye(3)[Y], epochs=20, verbose=0)
    assert np.mean(one_hot.predict_classes(X) == NAMES[Y]) > 0.9
    for wrong in (["a"], ["a", "b", "c", "d"], ["a", "a", "b"], "abc"):
        with pytest.raises((ValueError, TypeError), match="classes must be"):
            one_hot.classes = wrong
    assert one_hot.classes.tolist() == NAMES.tolist()


@pytest.mark.parametrize(
    ("outputs", "loss", "y"),
    [
        (3, CROSS_ENTROPY, NAMES[Y]),
        (3, CROSS_ENTROPY, np.array(["ä", "", "\U0001f600"])[Y]),
        (3, CROSS_ENTROPY, Y - 1),
        (3, CROSS_ENTROPY, np.array([1.0, 2.0, 2.0**60])[Y]),
        (3, CROSS_ENTROPY, np.array([0, 5, 2**64 - 1], np.uint64)[Y]),
        (3, CROSS_ENTROPY, Y),
        (1, BCE, Y2 == 1),
        (1, "hinge", np.array(["no", "yes"])[Y2]),
    ],
)
def test_classes_come_back_from_a_file(path, outputs, loss, y):
    x = X if outputs == 3 else X2
    model = fitted(x, y, outputs, loss)
    model.save(path)
    again = load_model(path)
    assert again.classes.tolist() == model.classes.tolist()
    assert again.classes.dtype.kind == model.classes.dtype.kind
    assert_same(again.predict_classes(x), model.predict_classes(x))
    assert again.evaluate(x, y) == model.evaluate(x, y)
    other = model_of(outputs, loss)
    other.load_weights(path)
    assert_same(other.predict_classes(x), model.predict_classes(x))


def test_labels_of_several_yes_or_no(backend):
    y = np.eye(3)[Y]
    for loss, activation in TWO_CLASSES:
        model = fitted(X, y, 3, loss, backend, activation, metrics=(), epochs=30)
        assert model.classes is None
        found = model.predict_classes(X)
        assert found.dtype == np.int64
        np.testing.assert_array_equal(found, model.predict(X) > (0.5 if activation == "sigmoid" else 0))
        assert np.mean(found == y) > 0.9
    model.fit(X, y.astype(bool))
    with pytest.raises(TypeError, match="y must hold real numbers; got <U21 .*: row 0, column 0 has '0'"):
        model.fit(X, y.astype(int).astype(str))


def test_predictions_that_are_no_classes():
    for loss in ("mse", "mae", "huber"):
        model = fitted(X, Y, 1, loss, metrics=())
        with pytest.raises(
            ValueError, match=f"trained on classes, and its loss is {model.loss.spec.name}: call predict"
        ):
            model.predict_classes(X)
    bare = Sequential([Dense(3)], backend="numpy", inputs=6)
    with pytest.raises(ValueError, match="and it has no loss yet"):
        bare.predict_classes(X)
    bare.classes = NAMES
    np.testing.assert_array_equal(bare.predict_classes(X), NAMES[bare.predict(X).argmax(axis=1)])
    softmax = Sequential([Dense(3, "softmax")], backend="numpy", inputs=6)
    np.testing.assert_array_equal(softmax.predict_classes(X), softmax.predict(X).argmax(axis=1))
    sigmoid = Sequential([Dense(1, "sigmoid")], backend="numpy", inputs=6)
    np.testing.assert_array_equal(sigmoid.predict_classes(X), sigmoid.predict(X)[:, 0] > 0.5)
    softmax.set_weights([np.full((6, 3), np.nan), np.zeros(3)])
    with pytest.raises(ValueError, match="the model gives NaN, such as in row 0"):
        softmax.predict_classes(X)


def test_evaluate_before_fit():
    model = model_of()
    model.evaluate(X, Y)
    assert model.classes is None
    with pytest.raises(
        ValueError, match=r"y has labels such as '\w+', and the model has no classes yet: call fit, or set"
    ):
        model.evaluate(X, NAMES[Y])
    with pytest.raises(ValueError, match="y must be class labels 0 ... 2, .*; got 3"):
        model.evaluate(X, Y + 1)
    model_of(1, BCE).evaluate(X2, Y2 == 1)


def test_fit_leaves_the_labels_alone():
    y = (Y + 1)[:, None]
    kept = y.copy()
    y.flags.writeable = False
    fitted(X, y)
    np.testing.assert_array_equal(y, kept)


# ---------------------------------------------------------------- what else a file remembers


def test_preparation_is_anything_that_json_holds(path):
    model = fitted(X, Y)
    assert model.preparation is None
    mine = {"columns": ["a", "b"], "means": {"a": 1.5, "b": None}, "sep": ";", "header": True, "n": 3, "pair": (1, 2)}
    model.preparation = mine
    mine["columns"].append("c")
    model.preparation["columns"].append("d")
    expected = {
        "columns": ["a", "b"],
        "means": {"a": 1.5, "b": None},
        "sep": ";",
        "header": True,
        "n": 3,
        "pair": [1, 2],
    }
    assert model.preparation == expected
    model.save(path)
    assert load_model(path).preparation == expected
    other = model_of()
    other.load_weights(path)
    assert other.preparation == expected
    other.preparation = MappingProxyType({"inner": MappingProxyType({"a": []})})
    assert other.preparation == {"inner": {"a": []}}
    model.preparation = None
    model.save(path)
    assert load_model(path).preparation is None


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ([1], TypeError, "preparation must be a mapping, or None; got a list"),
        ({1: 2}, TypeError, "the keys of preparation must be strings; got 1"),
        ({"a": [{"b": {None: 1}}]}, TypeError, "the keys of preparation must be strings; got None"),
        ({"a": np.zeros(2)}, TypeError, "preparation must hold what JSON can; got a float64 array"),
        ({"a": np.float32(2)}, TypeError, "preparation must hold what JSON can"),
        ({"a": {1, 2}}, TypeError, "preparation must hold what JSON can; got a set"),
        ({"a": float("nan")}, ValueError, "JSON"),
    ],
)
def test_preparation_that_json_does_not_hold(value, error, message):
    model = model_of()
    model.preparation = {"a": 1}
    with pytest.raises(error, match=message):
        model.preparation = value
    itself = {}
    itself["a"] = [itself]
    with pytest.raises(ValueError, match="preparation must not be deeper than 100 levels, nor hold itself"):
        model.preparation = itself
    assert model.preparation == {"a": 1}


def rewritten(path, **changes):
    """Change entries of a file's description; None takes one away."""
    with safe_open(path, "numpy") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        description = json.loads(file.metadata()["fastopt"])
    description = {key: value for key, value in {**description, **changes}.items() if value is not None}
    save_file(tensors, path, {"fastopt": json.dumps(description)})


def test_files_of_before_are_read(path):
    model = fitted(X, Y)
    model.save(path)
    rewritten(path, format=1, classes=None)
    again = load_model(path)
    assert again.classes.tolist() == [0, 1, 2]  # no others could be trained on
    assert again.feature_names is again.preparation is again.target_scale is None
    assert again.statistics == {}
    assert_same(again.get_weights(), model.get_weights())
    assert_same(again.predict_classes(X), model.predict_classes(X))
    with pytest.raises(ValueError, match="y must be among the classes 0, 1, 2"):
        again.fit(X, NAMES[Y])
    soft = fitted(X2, Y2, 1, BCE)
    soft.save(path)
    rewritten(path, format=1, classes=None)
    assert load_model(path).classes is None  # probabilities, perhaps


@pytest.mark.parametrize(
    "changes",
    [
        {"classes": ["a", "b"]},
        {"classes": ["a", "a", "b"]},
        {"classes": ["a", 1, "b"]},
        {"classes": [["a", "b", "c"]]},
        {"classes": {"a": 1, "b": 2, "c": 3}},
        {"classes": 3},
        {"classes": "abc"},
        {"classes": [0.5, 1, 2]},
        {"feature_names": ["a"]},
        {"feature_names": "abcdef"},
        {"feature_names": [1, 2, 3, 4, 5, 6]},
        {"feature_names": {"a": 1}},
        {"preparation": [1]},
        {"preparation": "x"},
    ],
)
def test_files_that_lie(path, changes):
    fitted(X, Y).save(path)
    rewritten(path, **changes)
    model = model_of()
    for load in (load_model, model.load_weights):
        with pytest.raises(ValueError, match="is not a usable model file"):
            load(path)
    assert not model.built
