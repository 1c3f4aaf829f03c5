"""Layers describe, initializers draw: the right spread, from the seed alone."""

import numpy as np
import pytest

import fastopt
from fastopt import Activation, Dense, Dropout, Sequential
from fastopt.kernels.formulas import OUTPUTS
from fastopt.kernels.spec import DenseSpec, DropoutSpec
from fastopt.layers import INITIALIZERS

FAN = (400, 100)
SPREAD = {  # standard deviation of a weight
    "glorot_uniform": (2 / 500) ** 0.5,
    "glorot_normal": (2 / 500) ** 0.5,
    "he_uniform": (2 / 400) ** 0.5,
    "he_normal": (2 / 400) ** 0.5,
    "orthogonal": (1 / 400) ** 0.5,
    "zeros": 0.0,
}
LIMIT = {"glorot_uniform": (6 / 500) ** 0.5, "he_uniform": (6 / 400) ** 0.5}


def draw(name, shape=FAN, seed=0):
    return Dense(shape[1], kernel_initializer=name).draw(shape[0], seed, 0)[0]


@pytest.mark.parametrize("name", INITIALIZERS)
def test_spread(name):
    w = draw(name)
    assert w.dtype == np.float64
    assert w.flags.c_contiguous
    assert w.std() == pytest.approx(SPREAD[name], rel=0.02)  # the standard error of 40 000 draws is at most 0.4 %
    assert abs(w.mean()) <= 4 * SPREAD[name] / w.size**0.5
    if name in LIMIT:
        assert abs(w).max() == pytest.approx(LIMIT[name], rel=1e-3)


@pytest.mark.parametrize("shape", [(7, 7), (12, 5), (5, 12), (1, 1), (1, 6)])
def test_orthogonal(shape):
    w = draw("orthogonal", shape)
    gram = w.T @ w if shape[0] >= shape[1] else w @ w.T
    np.testing.assert_allclose(gram, np.eye(min(shape)), atol=1e-14)


@pytest.mark.parametrize("name", sorted(set(INITIALIZERS) - {"zeros"}))
def test_draws_depend_on_seed_and_place(name):
    np.testing.assert_array_equal(draw(name), draw(name))
    assert not np.array_equal(draw(name, seed=1), draw(name))
    layer = Dense(5, kernel_initializer=name)
    assert not np.array_equal(layer.draw(5, 0, 0)[0], layer.draw(5, 0, 1)[0])


def test_weights_do_not_depend_on_backend_dtype_or_other_layers():
    def weights(first="glorot_uniform", **options):
        return Sequential([Dense(4, kernel_initializer=first), Dense(3)], seed=5, inputs=2, **options).get_weights()

    reference = weights(dtype="float64")
    for a, b in zip(weights(backend="numpy"), weights(backend="cpu"), strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(weights(), reference, strict=True):
        np.testing.assert_array_equal(a, b.astype(np.float32))
    np.testing.assert_array_equal(weights("zeros", dtype="float64")[2], reference[2])


@pytest.mark.parametrize(
    ("name", "ours"),
    [("swish", "silu"), ("ReLU", "relu"), ("hard_swish", "hardswish"), ("identity", "linear"), ("LOGISTIC", "sigmoid")],
)
def test_activations_by_the_names_of_other_libraries(name, ours):
    assert Dense(3, name).activation == Activation(name).name == ours
    x, w = np.ones((1, 2)), np.eye(2)
    np.testing.assert_array_equal(
        fastopt.dense_forward(x, w, activation=name), fastopt.dense_forward(x, w, activation=ours)
    )


def test_a_formula_may_have_the_name_of_another_library():
    Activation.define("swish", lambda z: 2 * z, lambda z: 2)
    assert Dense(3, "swish").activation == "swish"
    assert Dense(3, "Swish").activation == "silu"


def test_biases_begin_with_ones():
    model = Sequential([Dense(3, bias_initializer="ones")], inputs=2)
    assert model.parameters[1].tolist() == [1, 1, 1]


def test_array_initializers_are_copied():
    w, b = np.arange(6, dtype=np.float32).reshape(2, 3), [1, 2, 3]
    layer = Dense(3, kernel_initializer=w, bias_initializer=b)
    w[:] = -1
    model = Sequential([layer, layer.__class__(1)], inputs=2)
    np.testing.assert_array_equal(model.parameters[0], np.arange(6).reshape(2, 3))
    np.testing.assert_array_equal(model.parameters[1], [1, 2, 3])
    model.parameters[0][:] = 9
    again = Sequential([layer], inputs=2)
    np.testing.assert_array_equal(again.parameters[0], np.arange(6).reshape(2, 3))


def test_specs():
    assert Dense(3, "tanh", use_bias=False).spec(7) == DenseSpec(7, 3, "tanh", False)
    assert Dropout(0.25).spec(7) == DropoutSpec(0.25)
    assert len(Dense(3, use_bias=False).draw(7, 0, 0)) == 1


def test_layers_are_immutable():
    with pytest.raises(AttributeError):
        Dense(3).units = 4
    with pytest.raises(ValueError, match="read-only"):
        Dense(1, kernel_initializer=[[1.0]]).kernel_initializer[0, 0] = 2


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        (Dense(3), "Dense(3)"),
        (Dense(3, "relu", False), "Dense(3, 'relu', use_bias=False)"),
        (
            Dense(np.int32(1), kernel_initializer=[[1.0]], name="a"),
            "Dense(1, kernel_initializer=<array (1, 1)>, name='a')",
        ),
        (Dropout(0.5, name="b"), "Dropout(0.5, name='b')"),
    ],
)
def test_repr(layer, text):
    assert repr(layer) == text


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Dense(0), ValueError, "units must be at least 1; got 0"),
        (lambda: Dense(2.0), TypeError, "units must be a whole number; got 2.0"),
        (lambda: Dense(True), TypeError, "units must be a whole number; got True"),
        (lambda: Dense(2, "snake"), ValueError, f"unknown activation 'snake'; known: {', '.join(OUTPUTS)}"),
        (lambda: Dense(2, 1), TypeError, "activation must be one of linear, relu.*; got 1"),
        (lambda: Dense(2, use_bias=1), TypeError, "use_bias must be True or False; got 1"),
        (
            lambda: Dense(2, kernel_initializer="uniform"),
            ValueError,
            "unknown kernel_initializer 'uniform'; known: glorot_",
        ),
        (
            lambda: Dense(2, bias_initializer="he_normal"),
            ValueError,
            "unknown bias_initializer 'he_normal'; known: zeros, ones",
        ),
        (
            lambda: Dense(2, kernel_initializer=None),
            TypeError,
            "must be one of glorot_.*, or an array of numbers; got None",
        ),
        (
            lambda: Dense(2, kernel_initializer=[[1, 2], [3]]),
            ValueError,
            "kernel_initializer must be a rectangular array",
        ),
        (lambda: Dense(2, kernel_initializer=[[1j, 2]]), TypeError, "array of numbers"),
        (lambda: Dense(2, kernel_initializer=[1, 2]), ValueError, r"array of 2 dimension\(s\); got shape \(2,\)"),
        (
            lambda: Dense(2, kernel_initializer=np.zeros((4, 3))),
            ValueError,
            r"\(inputs, 2\) for units=2; got shape \(4, 3\)",
        ),
        (lambda: Dense(1, kernel_initializer=[[np.nan]]), ValueError, "kernel_initializer must be finite; got nan"),
        (lambda: Dense(2, bias_initializer=[1]), ValueError, r"array \(2,\) for units=2; got shape \(1,\)"),
        (lambda: Dense(1, "relu", False, bias_initializer=[1]), ValueError, "use_bias=False leaves the bias out"),
        (lambda: Dense(1, name=3), TypeError, "name must be a string; got 3"),
        (lambda: Dense(1, name=""), ValueError, "name must not be empty"),
        (lambda: Dropout(1.0), ValueError, r"rate must be in \[0, 1\); got 1.0"),
        (lambda: Dropout(-0.1), ValueError, r"rate must be in \[0, 1\); got -0.1"),
        (lambda: Dropout(float("nan")), ValueError, r"rate must be in \[0, 1\); got nan"),
        (lambda: Dropout("0.5"), TypeError, "rate must be a number; got '0.5'"),
        (lambda: Dropout(0.5, name=3), TypeError, "name must be a string"),
    ],
)
def test_wrong_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_no_activation_is_linear():
    assert repr(Dense(2, None)) == repr(Dense(2)) == repr(Dense(2, activation="linear"))
