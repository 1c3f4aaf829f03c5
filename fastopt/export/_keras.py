"""Keras: weights in its layout, and models from its Sequential. Keras itself is not imported."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..layers import (
    Activation,
    BatchNorm,
    Dense,
    Dropout,
    GaussianNoise,
    LayerNorm,
)
from ..models.sequential import Sequential
from ..preprocessing import Normalization, Rescaling
from ._building import Found, assemble
from ._reading import read, refusal

Config = dict[str, Any]
# Keras's names of activations with the same formula here; its leaky_relu has the slope 0.2, ours 0.01
ACTIVATIONS = {
    **{name: name for name in ("linear", "relu", "elu", "sigmoid", "tanh", "softplus", "silu", "gelu", "mish")},
    "softmax": "softmax",
    "swish": "silu",
    "hard_silu": "hardswish",
    "hard_swish": "hardswish",
}
SKIPPED = ("InputLayer", "Flatten")  # rows are flattened anyway


def to_keras_weights(model: Sequential) -> list[np.ndarray]:
    """Return copies of the weights as `set_weights` of a Keras model with the same layers takes them.

    The order is that of Keras's `get_weights`: kernel (inputs, outputs) and bias of a Dense, gamma, beta, moving mean
    and moving variance of a normalization. Give Keras's Normalization the numbers of `model.statistics` as mean and
    variance: it has no weights then. The other way is `model.set_weights(keras_model.get_weights())`.

    Raises ValueError for a model whose outputs are scaled to the units of standardized targets, and as all exports do.

    >>> import fastopt as fo
    >>> model = fo.Sequential([fo.Dense(4, "relu"), fo.BatchNorm(), fo.Dense(2)], inputs=3)
    >>> [w.shape for w in to_keras_weights(model)]
    [(3, 4), (4,), (4,), (4,), (4,), (4,), (4, 2), (2,)]
    """
    found = read("to_keras_weights", model)
    if found.unscale is not None:
        raise refusal("to_keras_weights", "target_scale", "it is no weight; scale the outputs of Keras's model by it")
    return [array for entry in found.layers for array in entry.arrays.values()]


def from_keras(model: Any) -> Sequential:
    """Return a fastopt model with the layers and weights of a Keras Sequential, which must be built.

    It may have Dense, Activation, ReLU, LeakyReLU with the slope 0.01, ELU, Softmax, Dropout, GaussianNoise,
    BatchNormalization, LayerNormalization, Rescaling, Normalization, and Flatten at first. Names and `trainable` are
    kept; regularizers, constraints, optimizer and loss are not.

    Raises TypeError for what is no Keras Sequential; ValueError, by name, for a layer or an argument that has no
    counterpart.
    """
    if type(model).__name__ != "Sequential" or not hasattr(model, "get_weights") or not hasattr(model, "layers"):
        raise TypeError(f"model must be a Keras Sequential; got {type(model).__name__}")
    found: list[Found] = []
    for position, layer in enumerate(model.layers):
        config, cls = layer.get_config(), type(layer).__name__
        what = f"layer {config.get('name', position)} ({cls})"
        if cls == "InputLayer" or (cls == "Flatten" and not found):
            continue
        if cls not in LAYERS:
            raise refusal("from_keras", what, f"known are {', '.join([*LAYERS, *SKIPPED])}")
        _check_policy(what, config)
        weights = [np.asarray(array) for array in layer.get_weights()]
        try:
            made = LAYERS[cls](config, weights)
        except ValueError as error:
            raise refusal("from_keras", what, str(error)) from None
        found.append(Found(what, made, () if isinstance(made, Normalization) else weights))
    return assemble("from_keras", found)


def _check_policy(what: str, config: Config) -> None:
    """Raise ValueError for a layer that computes in another dtype than its weights have."""
    policy = config.get("dtype")
    if isinstance(policy, dict):
        policy = policy.get("config", {}).get("name")
    if isinstance(policy, str) and policy.startswith("mixed"):
        raise refusal("from_keras", what, f"it computes in {policy}")


def _must(config: Config, **values: Any) -> None:
    """Raise ValueError where an argument that has one meaning here has another value."""
    for name, value in values.items():
        if config.get(name, value) != value:
            raise ValueError(f"{name} must be {value!r}; got {config[name]!r}")


def _activation(name: Any) -> str:
    if not isinstance(name, str) or name not in ACTIVATIONS:
        shown = name.get("config", name) if isinstance(name, dict) else name
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}; got {shown!r}")
    return ACTIVATIONS[name]


def _common(config: Config) -> Config:
    return {"name": config.get("name"), "trainable": bool(config.get("trainable", True))}


def _dense(config: Config, weights: list[np.ndarray]) -> Dense:
    if config.get("quantization_config") or config.get("lora_rank"):
        raise ValueError("it is quantized, or has LoRA weights")
    return Dense(config["units"], _activation(config["activation"]), bool(config["use_bias"]), **_common(config))


def _check_axis(config: Config) -> None:
    axis = config.get("axis", -1)
    if isinstance(axis, list | tuple) and len(axis) == 1:
        axis = axis[0]
    if axis not in (-1, 1):
        raise ValueError(f"axis must be -1; got {axis!r}")


def _batch_norm(config: Config, weights: list[np.ndarray]) -> BatchNorm:
    _check_axis(config)
    _must(config, renorm=False)
    return BatchNorm(config["momentum"], config["epsilon"], config["center"], config["scale"], **_common(config))


def _layer_norm(config: Config, weights: list[np.ndarray]) -> LayerNorm:
    _check_axis(config)
    _must(config, rms_scaling=False)
    return LayerNorm(config["epsilon"], config["center"], config["scale"], **_common(config))


def _activation_layer(config: Config, weights: list[np.ndarray]) -> Activation:
    return Activation(_activation(config["activation"]), config.get("name"))


def _relu(config: Config, weights: list[np.ndarray]) -> Activation:
    if config.get("max_value") is not None:
        raise ValueError(f"max_value must be None; got {config['max_value']!r}")
    _must(config, negative_slope=0.0, threshold=0.0)
    return Activation("relu", config.get("name"))


def _leaky_relu(config: Config, weights: list[np.ndarray]) -> Activation:
    slope = config.get("negative_slope", config.get("alpha"))
    if slope is None or not np.isclose(float(slope), 0.01, rtol=1e-6, atol=0):
        raise ValueError(f"negative_slope must be 0.01; got {slope!r}")
    return Activation("leaky_relu", config.get("name"))


def _elu(config: Config, weights: list[np.ndarray]) -> Activation:
    _must(config, alpha=1.0)
    return Activation("elu", config.get("name"))


def _softmax(config: Config, weights: list[np.ndarray]) -> Activation:
    _check_axis(config)
    return Activation("softmax", config.get("name"))


def _normalization(config: Config, weights: list[np.ndarray]) -> Normalization:
    """Numbers that were given are in the configuration, learnt ones are weights: mean, variance and a count."""
    axis = config.get("axis", -1)
    if axis is not None and axis != [] and axis != ():
        _check_axis(config)
    _must(config, invert=False)
    mean, variance = (config.get("mean"), config.get("variance")) if len(weights) < 2 else weights[:2]
    if mean is None or variance is None:
        raise ValueError("it has no mean and variance yet: call its adapt")
    mean, variance = (np.asarray(array, np.float64) for array in (mean, variance))
    if mean.size > 1:
        mean, variance = mean.reshape(-1), variance.reshape(-1)
    else:
        mean, variance = mean.reshape(()), variance.reshape(())
    return Normalization(mean=mean, variance=variance, name=config.get("name"))


def _rescaling(config: Config, weights: list[np.ndarray]) -> Rescaling:
    return Rescaling(config["scale"], config.get("offset", 0.0), name=config.get("name"))


LAYERS: dict[str, Callable[[Config, list[np.ndarray]], Any]] = {
    "Dense": _dense,
    "Activation": _activation_layer,
    "ReLU": _relu,
    "LeakyReLU": _leaky_relu,
    "ELU": _elu,
    "Softmax": _softmax,
    "Dropout": lambda config, weights: Dropout(config["rate"], config.get("name")),
    "GaussianNoise": lambda config, weights: GaussianNoise(config["stddev"], config.get("name")),
    "BatchNormalization": _batch_norm,
    "LayerNormalization": _layer_norm,
    "Normalization": _normalization,
    "Rescaling": _rescaling,
}
