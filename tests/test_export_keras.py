"""Keras: its Sequential by stand-ins that have its attributes, and its formulas in NumPy."""

import numpy as np
import pytest
from helpers_export import INPUTS, assert_close, plain, regression, rows

import fastopt as fo
from fastopt.export import from_keras, to_keras_weights


class KerasLayer:
    """The part of a Keras layer that is read: its class's name, get_config and get_weights."""

    def __init__(self, weights=(), **config):
        self.config, self.weights = {"name": None, "trainable": True, "dtype": "float32", **config}, list(weights)

    def get_config(self):
        return dict(self.config)

    def get_weights(self):
        return [w.copy() for w in self.weights]


def layer(cls, weights=(), **config):
    """A stand-in of a class of Keras's with such a name."""
    return type(cls, (KerasLayer,), {})(weights, **config)


class Sequential:
    """The part of keras.Sequential that is read."""

    def __init__(self, layers):
        self.layers = layers

    def get_weights(self):
        return [w for part in self.layers for w in part.get_weights()]


def dense(inputs, units, activation="linear", seed=0, dtype=np.float32, **config):
    rng = np.random.default_rng(seed)
    weights = [rng.normal(size=(inputs, units)).astype(dtype), rng.normal(size=units).astype(dtype)]
    config = {"units": units, "activation": activation, "use_bias": True, **config}
    return layer("Dense", weights if config["use_bias"] else weights[:1], **config)


def vectors(count, width, seed=3):
    return [np.abs(np.random.default_rng(seed + i).normal(size=width)).astype(np.float32) + 0.5 for i in range(count)]


NORM = {"epsilon": 1e-3, "center": True, "scale": True}


def test_all_layers_against_keras_formulas():
    """The formulas of Keras's documentation, in float64."""
    first, last = dense(INPUTS, 6, "swish", seed=1, name="first"), dense(6, 3, seed=2, trainable=False)
    gamma, beta, mean, variance = vectors(4, 6)
    scale, shift = vectors(2, 6, seed=8)
    mu, var = np.full((1, INPUTS), 100.0, np.float32), np.full((1, INPUTS), 9.0, np.float32)
    model = from_keras(
        Sequential(
            [
                layer("InputLayer", batch_shape=(None, INPUTS)),
                layer("Flatten", data_format="channels_last"),
                layer("Normalization", [mu, var, np.int32(0)], axis=[-1], invert=False, mean=None, variance=None),
                layer("Rescaling", scale=0.5, offset=1.0),
                layer("GaussianNoise", stddev=0.1),
                first,
                layer("BatchNormalization", [gamma, beta, mean, variance], axis=-1, momentum=0.9, **NORM),
                layer("ReLU", max_value=None, negative_slope=0.0, threshold=0.0),
                layer("Dropout", rate=0.25),
                layer("LayerNormalization", [scale, shift], axis=[-1], rms_scaling=False, **NORM),
                layer("Activation", activation="tanh"),
                last,
                layer("Softmax", axis=-1),
            ]
        )
    )
    assert repr(model.layers[3]) == "Dense(6, 'silu', name='first')"
    assert repr(model.layers[4:8]) == "(BatchNorm(momentum=0.9), Activation('relu'), Dropout(0.25), LayerNorm())"
    assert repr(model.layers[8:]) == "(Activation('tanh'), Dense(3, 'softmax', trainable=False))"
    x = (rows().astype(np.float64) - 100) / 3 * 0.5 + 1
    z = x @ first.weights[0] + first.weights[1]
    z = z / (1 + np.exp(-z))
    z = np.maximum((z - mean) / np.sqrt(variance + 1e-3) * gamma + beta, 0)
    z = (z - z.mean(1, keepdims=True)) / np.sqrt(z.var(1, keepdims=True) + 1e-3) * scale + shift
    z = np.tanh(z) @ last.weights[0] + last.weights[1]
    wanted = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    model.backend = "numpy"
    np.testing.assert_allclose(model.predict(rows()), wanted, rtol=1e-4, atol=1e-6)


def test_statistics_that_were_given():
    """Such a Normalization has no weights in Keras; a single number stands for all features."""
    norm = layer("Normalization", axis=None, invert=False, mean=100.0, variance=9.0)
    model = from_keras(Sequential([norm, dense(INPUTS, 2)]))
    (found,) = model.statistics.values()
    assert found.mean.tolist() == [100.0] * INPUTS
    assert found.variance.tolist() == [9.0] * INPUTS


def test_weights_go_both_ways():
    model = plain(fo.Dense(4, "relu"), fo.BatchNorm(), fo.LayerNorm(), fo.Dense(2))
    weights = to_keras_weights(model)
    shapes = [(INPUTS, 4), *[(4,)] * 7, (4, 2), (2,)]
    assert [w.shape for w in weights] == shapes
    names = ["first", "norm", "layer_norm", "last"]
    parts = [
        layer("Dense", weights[:2], units=4, activation="relu", use_bias=True, name=names[0]),
        layer("BatchNormalization", weights[2:6], axis=-1, momentum=0.99, name=names[1], **NORM),
        layer("LayerNormalization", weights[6:8], axis=-1, name=names[2], **NORM),
        layer("Dense", weights[8:], units=2, activation="linear", use_bias=True, name=names[3]),
    ]
    again = from_keras(Sequential(parts))
    again.backend = "numpy"
    assert again.names == tuple(names)
    assert_close(again.predict(rows()), model.predict(rows()))


def test_a_scale_of_targets_is_no_weight():
    with pytest.raises(ValueError, match="to_keras_weights cannot carry over target_scale"):
        to_keras_weights(regression())


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (layer("Conv1D", name="conv"), r"layer conv \(Conv1D\): known are Dense, "),
        (layer("LeakyReLU", negative_slope=0.3), r"\(LeakyReLU\): negative_slope must be 0.01; got 0.3"),
        (layer("ReLU", max_value=6.0), "max_value must be None; got 6.0"),
        (layer("ReLU", negative_slope=0.1), "negative_slope must be 0.0; got 0.1"),
        (layer("ELU", alpha=0.5), "alpha must be 1.0; got 0.5"),
        (layer("Activation", activation="leaky_relu"), "activation must be one of linear, relu, .*; got 'leaky_relu'"),
        (layer("Activation", activation={"class_name": "function", "config": "mine"}), "got 'mine'"),
        (layer("Softmax", axis=0), "axis must be -1; got 0"),
        (layer("LayerNormalization", vectors(2, 4), axis=[1, 2], **NORM), r"axis must be -1; got \[1, 2\]"),
        (layer("LayerNormalization", vectors(2, 4), axis=-1, rms_scaling=True, **NORM), "rms_scaling must be False"),
        (layer("Normalization", axis=-1, invert=True, mean=0.0, variance=1.0), "invert must be False; got True"),
        (layer("Normalization", axis=-1, mean=None, variance=None), "it has no mean and variance yet"),
        (dense(4, 4, dtype=np.float16), "weights must be all float32, or all float64; got float16, float32"),
        (
            layer("Dropout", rate=0.1, dtype={"class_name": "DTypePolicy", "config": {"name": "mixed_bfloat16"}}),
            "it computes in mixed_bfloat16",
        ),
    ],
)
def test_layers_without_counterpart_are_named(part, message):
    with pytest.raises(ValueError, match=message):
        from_keras(Sequential([part, dense(4, 2)]))


def test_what_is_no_sequential():
    with pytest.raises(TypeError, match="model must be a Keras Sequential; got Functional"):
        from_keras(type("Functional", (Sequential,), {})([dense(4, 2)]))
    with pytest.raises(ValueError, match=r"\(Dropout\): the last layer must be dense"):
        from_keras(Sequential([dense(4, 2), layer("Dropout", rate=0.1)]))
