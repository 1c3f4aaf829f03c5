"""Building, compiling, weights in and out, and how a model shows itself."""

import copy
from contextlib import contextmanager

import numpy as np
from helpers_model import CROSS_ENTROPY, assert_same, blobs, classifier

import fastopt as fo
from fastopt import Dense, Dropout, Sequential


def test_build_once():
    model = classifier()
    assert (model.built, model.inputs, model.parameters, model.outputs) == (False, None, [], 3)
    model.build(6)
    weights = model.get_weights()
    model.build(6)
    assert_same(weights, model.get_weights())
    assert [w.shape for w in weights] == [(6, 12), (12,), (12, 3), (3,)]
    assert_same(weights, classifier(inputs=6).get_weights())
    assert model.optimizer.bound


def test_predict_and_evaluate_build_from_the_data(backend):
    x, y = blobs()
    model = classifier(backend)
    assert model.evaluate(x, y)["loss"] > 0
    uncompiled = Sequential([Dense(3)], backend=backend)
    assert uncompiled.predict(x).shape == (120, 3)
    assert uncompiled.inputs == 6


def test_one_layer_object_in_two_places_has_weights_of_its_own_in_each():
    layer = Dense(4)
    model = Sequential([layer, layer], inputs=4)
    assert len(model.parameters) == 4
    assert not np.array_equal(model.parameters[0], model.parameters[2])
    assert model.names == ("dense_1", "dense_2")


def test_set_weights():
    model = classifier(inputs=6)
    parameters, new = model.parameters, [np.full(p.shape, i) for i, p in enumerate(model.parameters)]
    model.set_weights(new)
    assert all(a is b for a, b in zip(parameters, model.parameters, strict=True))
    assert all((p == i).all() for i, p in enumerate(parameters))
    model.get_weights()[0][:] = 7
    assert (model.parameters[0] == 0).all()


def test_compile_again():
    x, y = blobs()
    model = classifier()
    model.fit(x, y)
    weights, optimizer = model.get_weights(), model.optimizer
    model.compile(optimizer, fo.losses.SparseCategoricalCrossentropy(label_smoothing=0.1))
    assert model.optimizer is optimizer
    assert model.metrics == ()
    assert_same(weights, model.get_weights())
    model.compile("sgd", CROSS_ENTROPY)
    assert model.optimizer.steps == 0
    model.fit(x, y)
    assert not np.array_equal(weights[0], model.parameters[0])


def test_summary():
    layers = [Dense(1200, "relu", name="wide"), Dropout(0.2), Dense(3, use_bias=False)]
    assert Sequential(layers).summary().splitlines()[1:] == [
        "wide       relu          1,200           ?",
        "dropout_1  rate 0.2      1,200           0",
        "dense_2    linear            3       3,600",
        "not built: inputs unknown, float32",
    ]
    text = Sequential(layers, inputs=784, dtype="float64").summary()
    assert text.splitlines()[-1] == "total: 945,600 parameters, 784 inputs, float64"
    assert "942,000" in text


def test_repr_gives_the_model_again():
    model = Sequential([Dense(4, "relu"), Dropout(0.5), Dense(1)], 3, "numpy", "float64", inputs=2)
    again = eval(repr(model), {"Sequential": Sequential, "Dense": Dense, "Dropout": Dropout})
    assert repr(again) == repr(model)
    assert_same(again.get_weights(), model.get_weights())


def test_deep_copy_trains_on_its_own(backend):
    x, y = blobs()
    model = classifier(backend)
    model.fit(x, y)
    twin = copy.deepcopy(model)
    assert_same(model.fit(x, y).step_losses, twin.fit(x, y).step_losses)
    assert_same(model.get_weights(), twin.get_weights())


def test_bar_hears_of_compilations(monkeypatch, capsys):
    """A backend that compiles has `compiling`, a context in which it names every kernel it is about to compile."""

    @contextmanager
    def compiling(listener):
        listener("some_kernel")
        yield

    monkeypatch.setattr(fo.kernels.reference, "compiling", compiling, raising=False)
    classifier().fit(*blobs(), verbose=1)
    assert "Epoch 1/1 (compiling some_kernel)" in capsys.readouterr().err
