"""Constraints of layers: Keras's formulas after every step, in files, and refusals."""

import copy
import io
import pickle

import hypothesis.strategies as st
import numpy as np
import pytest
from helpers_model import assert_same, blobs
from hypothesis import given, settings

import fastopt as fo
from fastopt import constraints
from fastopt.callbacks import LambdaCallback
from fastopt.constraints import MaxNorm, NonNegative, UnitNorm

X, Y = blobs(40)
EPSILON = 1e-7


def norms(w, axis):
    return np.sqrt(np.sum(np.square(w.astype(np.float64)), axis=axis, keepdims=True))


# Keras's classes of these names, in NumPy.
KERAS = {
    MaxNorm: lambda w, c: w * (np.clip(norms(w, c.axis), 0, c.max_value) / (EPSILON + norms(w, c.axis))),
    UnitNorm: lambda w, c: w / (EPSILON + norms(w, c.axis)),
    NonNegative: lambda w, c: w * (w >= 0),
}
CASES = [MaxNorm(0.5), MaxNorm(0.25, axis=1), MaxNorm(0.5, axis=(0, 1)), UnitNorm(), UnitNorm(axis=1), NonNegative()]


def model_of(kernel, bias, backend, dtype="float64", optimizer=None, seed=1):
    layers = [
        fo.Dense(7, "tanh", kernel_constraint=kernel, bias_constraint=bias), fo.Dropout(0.1), fo.Dense(3, "softmax"),
    ]  # fmt: skip
    model = fo.Sequential(layers, seed, backend, dtype)
    model.compile(optimizer or fo.SGD(lr=0.5), "sparse_categorical_crossentropy")
    return model


@pytest.mark.parametrize("constraint", CASES, ids=str)
def test_each_step_is_the_bare_one_and_then_the_formula(constraint, backend):
    """A bare twin starts each step from the constrained model's weights."""
    of_bias = constraint if getattr(constraint, "axis", 0) == 0 else None
    model, bare = model_of(constraint, of_bias, backend), model_of(None, None, backend)
    for one in (model, bare):
        one.build(X.shape[1])
    for i in range(4):
        rows = slice(10 * i, 10 * i + 10)
        bare.set_weights(model.get_weights())
        for one in (model, bare):
            one.fit(X[rows], Y[rows], batch_size=10, shuffle=False)
        w, b, *others = bare.get_weights()
        expected = [KERAS[type(constraint)](w, constraint), b, *others]
        if of_bias is not None:
            expected[1] = KERAS[type(of_bias)](b, of_bias)
        for ours, theirs in zip(model.get_weights(), expected, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)
        assert np.abs(expected[0] - w).max() > 1e-3  # it has changed something


HOLDS = {
    MaxNorm: lambda w, c: (norms(w, c.axis) <= c.max_value * (1 + 1e-6)).all(),
    UnitNorm: lambda w, c: np.allclose(norms(w, c.axis), 1, atol=1e-6),
    NonNegative: lambda w, c: (w >= 0).all(),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("constraint", CASES, ids=str)
def test_it_holds_after_every_step(constraint, dtype, backend):
    held = []
    look = LambdaCallback(on_step_end=lambda model, step, logs: held.append(model.get_weights()[0]))
    model = model_of(constraint, None, backend, dtype, fo.Adam(lr=0.1))
    model.fit(X, Y, epochs=2, batch_size=8, callbacks=[look], accumulate=2)
    assert len(held) == 6
    assert all(HOLDS[type(constraint)](w, constraint) for w in held)


@settings(max_examples=10, deadline=None)
@given(
    kernel=st.none() | st.sampled_from(CASES), bias=st.none() | st.sampled_from([MaxNorm(0.1), NonNegative()]),
    size=st.integers(1, 40), accumulate=st.integers(1, 3), rows=st.integers(1, 40), clip=st.none() | st.just(0.1),
)  # fmt: skip
def test_backends_agree(kernel, bias, size, accumulate, rows, clip):
    found = []
    for backend in ("cpu", "numpy"):
        model = model_of(kernel, bias, backend, optimizer=fo.SGD(lr=0.1, momentum=0.5, clip_norm=clip))
        model.fit(X[:rows], Y[:rows] % 3, epochs=2, batch_size=size, accumulate=accumulate)
        found.append(model.get_weights())
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


def test_a_constraint_of_another_layer_changes_no_bit(backend):
    """NonNegative of biases that stay near 1. MaxNorm would multiply by norm / (norm + 1e-7), as Keras's does."""
    found = []
    for bias in (None, NonNegative()):
        layers = [fo.Dense(7, "tanh", bias_initializer=np.ones(7), bias_constraint=bias), fo.Dense(3, "softmax")]
        model = fo.Sequential(layers, 1, backend)
        model.compile(fo.SGD(lr=1e-3), "sparse_categorical_crossentropy")
        model.fit(X, Y, epochs=2)
        found.append(model.get_weights())
    assert_same(*found)


def test_frozen_layers_are_not_constrained(backend):
    if not hasattr(fo.Sequential, "freeze"):
        pytest.skip("layers cannot be frozen")
    model = model_of(UnitNorm(), NonNegative(), backend)
    model.build(X.shape[1])
    before = model.get_weights()[0]
    model.freeze(model.names[0])
    model.fit(X, Y)
    np.testing.assert_array_equal(model.get_weights()[0], before)
    model.unfreeze(model.names[0])
    model.fit(X, Y)
    assert HOLDS[UnitNorm](model.get_weights()[0].astype(np.float64), UnitNorm())


# ---------------------------------------------------------------- files and copies


@pytest.mark.parametrize("constraint", CASES, ids=str)
def test_files_pickles_and_copies_keep_it(constraint, backend):
    model = model_of(constraint, NonNegative(), backend)
    model.fit(X, Y)
    file = io.BytesIO()
    model.save(file)
    file.seek(0)
    others = [fo.load_model(file), pickle.loads(pickle.dumps(model)), copy.deepcopy(model)]
    model.fit(X, Y, epochs=2, initial_epoch=1)
    for other in others:
        layer = other.layers[0]
        assert (layer.kernel_constraint, layer.bias_constraint) == (constraint, NonNegative())
        assert repr(layer) == repr(model.layers[0])
        other.fit(X, Y, epochs=2, initial_epoch=1)
        assert_same(other.get_weights(), model.get_weights())


def test_a_file_without_any_is_one_that_older_versions_read(path):
    model = model_of(None, None, "numpy")
    model.fit(X, Y)
    from fastopt.models import _description

    description, _ = _description.describe(model)
    assert not {"kernel_constraint", "bias_constraint"} & set(description["layers"][0])
    assert description["format"] < _description.describe(trained_with(NonNegative()))[0]["format"]


def trained_with(constraint):
    model = model_of(constraint, None, "numpy")
    model.fit(X, Y)
    return model


# ---------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (None, None), ("max_norm", MaxNorm(2.0, 0)), ("unit_norm", UnitNorm()), ("non_negative", NonNegative()),
        (MaxNorm, MaxNorm()), ({"name": "max_norm", "max_value": 3, "axis": [0, 1]}, MaxNorm(3.0, (0, 1))),
        (UnitNorm(-1), UnitNorm(-1)),
    ],
)  # fmt: skip
def test_every_way_to_say_it(given, meant):
    assert fo.Dense(2, kernel_constraint=given).kernel_constraint == meant
    assert constraints.get(given) == meant


@pytest.mark.parametrize("constraint", [*CASES, MaxNorm(1, axis=(0, 1))], ids=str)
def test_config_is_its_inverse(constraint):
    import json

    assert constraints.get(json.loads(json.dumps(constraint.config()))) == constraint
    assert eval(repr(constraint)) == constraint


def test_negative_axes_are_those_from_the_end():
    assert UnitNorm(-1).spec(2).axes == (1,)
    assert UnitNorm((-2, -1)).spec(2).axes == (0, 1)
    assert UnitNorm(-1).spec(1).axes == (0,)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: fo.Dense(2, kernel_constraint="max"), ValueError, "kernel_constraint"),
        (lambda: fo.Dense(2, kernel_constraint=3), TypeError, "kernel_constraint must be one of MaxNorm"),
        (lambda: fo.Dense(2, bias_constraint=UnitNorm(axis=1)), ValueError, "bias_constraint: axis must be 0"),
        (lambda: fo.Dense(2, use_bias=False, bias_constraint="unit_norm"), ValueError, "use_bias=False"),
        (lambda: MaxNorm(-1.0), ValueError, "max_value must be at least 0"),
        (lambda: MaxNorm("2"), TypeError, "max_value must be a number"),
        (lambda: UnitNorm(axis=2), ValueError, "axis must be 0 or 1"),
        (lambda: UnitNorm(axis=True), TypeError, "axis must be a whole number"),
        (lambda: UnitNorm(axis=()), TypeError, "axis must be a whole number"),
    ],
)
def test_refusals(make, error, words):
    with pytest.raises(error, match=words):
        make()


@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("MaxNorm", fo.constraints.MaxNorm()), ("non_neg", fo.constraints.NonNegative()),
        ("NonNeg", fo.constraints.NonNegative()), ("unitnorm", fo.constraints.UnitNorm()),
    ],
)  # fmt: skip
def test_names_are_those_of_keras_however_they_are_written(name, made):
    assert fo.Dense(3, kernel_constraint=name).kernel_constraint == made


@pytest.mark.parametrize(
    ("name", "made"), [("L2", fo.regularizers.L2()), ("L1L2", fo.regularizers.L1L2(0.01, 0.01))]
)
def test_so_are_those_of_regularizers(name, made):
    assert fo.Dense(3, kernel_regularizer=name).kernel_regularizer == made
