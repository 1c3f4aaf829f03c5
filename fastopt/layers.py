"""Layers: descriptions of the parts of a network. They hold no weights; the model does.

A layer is immutable, so the same object may be in several models, or several times in one, each time with weights of
its own. Layers that prepare data, Normalization and Rescaling, come before these; see `preprocessing`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import _definitions
from ._frozen import Frozen
from ._layer_parts import INITIALIZERS, VECTOR_INITIALIZERS, check_initializer, draw, layer_repr
from ._normalization_layers import BatchNorm as BatchNorm
from ._normalization_layers import LayerNorm as LayerNorm
from ._validation import check_count, check_flag, check_name, check_number
from .activations import Activation as Activation
from .activations import known, name_of
from .constraints import Constraint
from .constraints import get as get_constraint
from .kernels.formulas import ACTIVATIONS
from .kernels.formulas.defined import key_of
from .kernels.spec import MOVING, DenseSpec, DropoutSpec, GaussianNoiseSpec, LayerSpec, ParamSettings
from .kernels.spec import Constraint as ConstraintSpec
from .preprocessing import Normalization, Preprocessing, Rescaling, check_label
from .regularizers import Regularizer
from .regularizers import get as get_regularizer


@dataclass(frozen=True, eq=False)
class Dense(Frozen):
    """A fully connected layer: y = activation(x w + b), x (batch, inputs), w (inputs, units), b (units,).

    units               number of outputs
    activation          linear, relu, leaky_relu, elu, sigmoid, tanh, softplus, silu, gelu, gelu_tanh, hardswish,
                        mish, in any letters or by the names in `activations.ALIASES` ("swish"), or one of
                        `Activation.define`; for the last layer of a model also softmax. None: linear
    use_bias            False leaves b out
    kernel_initializer  glorot_uniform, glorot_normal, he_uniform, he_normal, orthogonal, zeros, or an array
                        (inputs, units), which is copied
    bias_initializer    zeros, ones, or an array (units,), which is copied
    name                its name in `summary` and error messages; by default dense_1, dense_2, ... in a model
    kernel_regularizer  penalty of the weights in the loss: one of `fastopt.regularizers`, or l1, l2, l1_l2 for a factor
                        of 0.01; see there how it differs from an optimizer's weight_decay and l1
    bias_regularizer    the same of the biases
    lr_scale            factor, at least 0, of the optimizer's learning rate for this layer
    weight_decay        that of this layer, at least 0, in the place of the optimizer's; None: the optimizer's
    trainable           False: the weights stay as they are, at the cost of no gradient, update or state;
                        `Sequential.freeze` and `unfreeze` change it in a model
    kernel_constraint   one of `fastopt.constraints`, such as MaxNorm(2), or its name: what w is made to obey after
                        every update
    bias_constraint     the same of b

    Raises TypeError for an argument of the wrong kind, ValueError for an unknown name or an impossible value.

    >>> Dense(256, "relu")
    Dense(256, 'relu')
    >>> Dense(10, "snake")
    Traceback (most recent call last):
    ...
    ValueError: unknown activation 'snake'; known: linear, relu, leaky_relu, elu, sigmoid, tanh, softplus, silu, gelu,
    gelu_tanh, hardswish, mish, softmax
    """

    units: int
    activation: Any = "linear"  # an Activation, too; once the layer is made, a str
    use_bias: bool = True
    kernel_initializer: str | ArrayLike = "glorot_uniform"
    bias_initializer: str | ArrayLike = "zeros"
    name: str | None = None
    kernel_regularizer: str | Regularizer | type[Regularizer] | None = None
    bias_regularizer: str | Regularizer | type[Regularizer] | None = None
    lr_scale: float = 1.0
    weight_decay: float | None = None
    trainable: bool = True
    kernel_constraint: str | Constraint | None = None
    bias_constraint: str | Constraint | None = None

    def __post_init__(self) -> None:
        set_ = object.__setattr__  # the way to normalise a field of a frozen dataclass
        set_(self, "units", check_count("units", self.units))
        set_(self, "use_bias", check_flag("use_bias", self.use_bias))
        if self.activation is None:  # as in Keras
            set_(self, "activation", "linear")
        set_(self, "activation", check_name("activation", name_of(self.activation), known()))
        set_(self, "_key", key_of("activation", self.activation))  # of the formula that it has now
        check_label(self.name)
        kernel = check_initializer("kernel_initializer", self.kernel_initializer, INITIALIZERS, ndim=2)
        bias = check_initializer("bias_initializer", self.bias_initializer, VECTOR_INITIALIZERS, ndim=1)
        if isinstance(kernel, np.ndarray) and kernel.shape[1] != self.units:
            raise ValueError(
                f"kernel_initializer must be an array (inputs, {self.units}) for units={self.units}; "
                f"got shape {kernel.shape}"
            )
        if isinstance(bias, np.ndarray):
            if not self.use_bias:
                raise ValueError("bias_initializer is an array, but use_bias=False leaves the bias out")
            if bias.shape != (self.units,):
                raise ValueError(
                    f"bias_initializer must be an array ({self.units},) for units={self.units}; got shape {bias.shape}"
                )
        set_(self, "kernel_initializer", kernel)
        set_(self, "bias_initializer", bias)
        for which in ("kernel_regularizer", "bias_regularizer"):
            set_(self, which, get_regularizer(which, getattr(self, which)))
        if self.bias_regularizer is not None and not self.use_bias:
            raise ValueError("bias_regularizer is for a bias, but use_bias=False leaves the bias out")
        set_(self, "lr_scale", check_number("lr_scale", self.lr_scale, 0.0))
        if self.weight_decay is not None:
            set_(self, "weight_decay", check_number("weight_decay", self.weight_decay, 0.0))
        set_(self, "trainable", check_flag("trainable", self.trainable))
        for which in ("kernel_constraint", "bias_constraint"):
            set_(self, which, get_constraint(getattr(self, which), which))
        if self.bias_constraint is not None and not self.use_bias:
            raise ValueError("bias_constraint is given, but use_bias=False leaves the bias out")
        self.constraints()  # refuses axes that a bias has not

    def __repr__(self) -> str:
        return layer_repr(self, 2, self.units, *([repr(self.activation)] if self.activation != "linear" else []))

    @property
    def arrays(self) -> tuple[str, ...]:
        """Names of its parameters, in their order."""
        return ("kernel", "bias")[: 1 + self.use_bias]

    def spec(self, inputs: int) -> DenseSpec:
        """Return the layer as backends take it, for `inputs` features; ValueError if they clash with its arrays."""
        kernel = self.kernel_initializer
        if isinstance(kernel, np.ndarray) and kernel.shape[0] != inputs:
            raise ValueError(
                f"its kernel_initializer must have shape ({inputs}, {self.units}), as {inputs} features come in; "
                f"got {kernel.shape}"
            )
        return DenseSpec(inputs, self.units, self.activation_key(), self.use_bias)

    def activation_key(self) -> str:
        """Row of ACTIVATIONS, or softmax; ValueError for a user's formula that this process does not know."""
        key = getattr(self, "_key", self.activation)
        return key if key == "softmax" else _definitions.check_known("activation", self.activation, key, ACTIVATIONS)

    def settings(self, decay_biases: bool = True) -> list[ParamSettings]:
        """Return what an optimizer does with [kernel, bias] (or [kernel]) beside what it does with all parameters.

        decay_biases: False for no weight decay of the bias.
        """
        if not self.trainable:
            return [ParamSettings()] * (1 + self.use_bias)
        decays = self.weight_decay, self.weight_decay if decay_biases else 0.0
        pairs = zip(decays, (self.kernel_regularizer, self.bias_regularizer), strict=True)
        settings = [
            ParamSettings(self.lr_scale, decay, penalty.l1, penalty.l2)
            if isinstance(penalty, Regularizer)
            else ParamSettings(self.lr_scale, decay)
            for decay, penalty in pairs
        ]
        return settings[: 1 + self.use_bias]

    def constraints(self) -> list[ConstraintSpec | None]:
        """Return the constraints of [kernel, bias] (or [kernel]) as backends take them; None for those without."""
        found: list[ConstraintSpec | None] = []
        for which, ndim in (("kernel_constraint", 2), ("bias_constraint", 1))[: 1 + self.use_bias]:
            constraint = get_constraint(getattr(self, which))
            try:
                found.append(None if constraint is None else constraint.spec(ndim))
            except ValueError as error:
                raise ValueError(f"{which}: {error}") from None
        return found

    def draw(self, inputs: int, seed: int, index: int) -> list[NDArray[np.float64]]:
        """Return the initial [kernel, bias] (or [kernel]) in float64: a function of the arguments alone.

        `index` is that of the layer in its model. Every array has a random stream of its own, so another initializer of
        one changes none of the others.
        """
        arrays = [((inputs, self.units), self.kernel_initializer), ((self.units,), self.bias_initializer)]
        return draw(arrays[: 1 + self.use_bias], seed, index)


@dataclass(frozen=True, eq=False)
class Dropout:
    """Inverted dropout (Srivastava et al. 2014): in training each value is zeroed with probability `rate`, the others
    are divided by 1 - rate; in `evaluate` and `predict` the layer does nothing.

    The mask is a function of the model's seed, the layer's index, the optimizer's step and the element, so it is the
    same on every backend and for any number of threads.

    rate   a number in [0, 1)
    name   its name in `summary` and error messages; by default dropout_1, dropout_2, ... in a model

    Raises TypeError or ValueError for any other rate.

    >>> Dropout(0.2)
    Dropout(0.2)
    """

    rate: float
    name: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "rate", check_number("rate", self.rate, 0.0, 1.0))
        check_label(self.name)

    def __repr__(self) -> str:
        return layer_repr(self, 1, self.rate)

    def spec(self, inputs: int) -> DropoutSpec:
        """Return the layer as backends take it."""
        return DropoutSpec(self.rate)


@dataclass(frozen=True, eq=False)
class GaussianNoise:
    """Noise in training: y = x + stddev z, with z of the normal distribution N(0, 1); in `evaluate` and `predict` the
    layer does nothing. It is Keras's layer of that name.

    z is made from counted random numbers (Box & Muller 1958), a function of the model's seed, the layer's index, the
    optimizer's step and the element, so it is the same on every backend, to rounding, and for any number of threads.

    stddev  a number of at least 0, in the units of what comes in
    name    its name in `summary` and error messages; by default gaussian_noise_1, ... in a model

    Raises TypeError or ValueError for any other stddev.

    >>> GaussianNoise(0.1)
    GaussianNoise(0.1)
    """

    stddev: float
    name: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "stddev", check_number("stddev", self.stddev, 0.0))
        check_label(self.name)

    def __repr__(self) -> str:
        return layer_repr(self, 1, self.stddev)

    def spec(self, inputs: int) -> GaussianNoiseSpec:
        """Return the layer as backends take it."""
        return GaussianNoiseSpec(self.stddev)

    def formula(self) -> str:
        """Return what `summary` says of it."""
        return f"stddev {self.stddev:g}"


Layer = Dense | Dropout | GaussianNoise | LayerNorm | BatchNorm | Activation | Normalization | Rescaling
Trained = Dense | LayerNorm | BatchNorm  # layers that have parameters
LAYERS: dict[str, type[Layer]] = {
    "dense": Dense,
    "dropout": Dropout,
    "gaussian_noise": GaussianNoise,
    "layer_norm": LayerNorm,
    "batch_norm": BatchNorm,
    "activation": Activation,
    "normalization": Normalization,
    "rescaling": Rescaling,
}


# Arguments that files of formats 1 and 2 do not know.
LATER = (
    "kernel_regularizer", "bias_regularizer", "lr_scale", "weight_decay", "trainable", "kernel_constraint",
    "bias_constraint",
)  # fmt: skip


def kind(layer: Layer) -> str:
    """Return the name of the layer's class in LAYERS."""
    return next(name for name, cls in LAYERS.items() if isinstance(layer, cls))


NEW_KINDS = ("gaussian_noise", "layer_norm", "batch_norm", "activation")  # which older versions do not know


def to_config(layer: Layer) -> dict[str, Any]:
    """Return the layer as plain values for a file; None stands for an initializer that is an array.

    Those of LATER are left out where they are at their defaults, for older versions to read the file.
    """
    if isinstance(layer, Preprocessing):
        return {"kind": kind(layer), **layer.config()}
    config: dict[str, Any] = {"kind": kind(layer)}
    for name, field in layer.__dataclass_fields__.items():
        value = getattr(layer, name)
        if name in LATER and value == field.default:
            continue
        if isinstance(value, Regularizer | Constraint):
            value = value.config()
        config[name] = None if isinstance(value, np.ndarray) else value
    return config


def chain(layers: tuple[Layer, ...], names: tuple[str, ...], inputs: int) -> list[LayerSpec]:
    """Return the specs of successive layers, the first of `inputs` features; ValueError where they clash.

    Layers that prepare data have none: backends get data that have passed them.
    """
    specs: list[LayerSpec] = []
    columns = inputs
    for layer, name in zip(layers, names, strict=True):
        try:
            if isinstance(layer, Preprocessing):
                layer.check(columns)
            else:
                specs.append(layer.spec(columns))
        except ValueError as error:
            raise ValueError(f"layer {name}: {error}") from None
        if isinstance(layer, Dense):
            columns = layer.units
    return specs


def updated_params(layers: Sequence[Layer]) -> list[bool]:
    """Return for each parameter of the layers, in their order, True if an optimizer updates it."""
    return [name not in MOVING for layer in layers if isinstance(layer, Trained) for name in layer.arrays]


def preprocessing_of(layers: tuple[Layer, ...]) -> tuple[Preprocessing, ...]:
    """Return the layers that prepare data, which must come first in a model; ValueError for one that does not."""
    front: list[Preprocessing] = []
    for i, layer in enumerate(layers):
        if not isinstance(layer, Preprocessing):
            continue
        if i != len(front):
            raise ValueError(
                f"layers[{i}], a {type(layer).__name__}, must stand before all layers of other kinds: it prepares"
                " the data, and nothing is trained through it"
            )
        front.append(layer)
    return tuple(front)
