"""Layers that normalize what comes in: each row by itself, or each column over the batch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ._frozen import Frozen
from ._layer_parts import VECTOR_INITIALIZERS, check_initializer, draw, layer_repr
from ._validation import check_flag, check_number
from .kernels.spec import MOVING, BatchNormSpec, LayerNormSpec, ParamSettings
from .preprocessing import check_label


@dataclass(frozen=True, eq=False)
class LayerNorm(Frozen):
    """Layer normalization (Ba, Kiros & Hinton 2016): y = gamma (x - mean) / sqrt(variance + epsilon) + beta, with the
    mean and the biased variance of each row; gamma and beta, (columns,), are trained. Keras's LayerNormalization.

    An optimizer's weight decay applies to gamma and beta as to all parameters, as in Keras, but with
    `compile(decay_biases=False)`, as is usual, it leaves them alone.

    epsilon            a number of at least 0; torch's default is 1e-5
    center             False leaves beta out
    scale              False leaves gamma out
    beta_initializer   zeros, ones, or an array (columns,), which is copied
    gamma_initializer  the same
    name               its name in `summary` and error messages; by default layer_norm_1, ... in a model
    trainable          False: gamma and beta stay as they are; `Sequential.freeze` and `unfreeze` change it

    Raises TypeError for an argument of the wrong kind, ValueError for an impossible value.

    >>> LayerNorm(epsilon=1e-5)
    LayerNorm(epsilon=1e-05)
    """

    epsilon: float = 1e-3
    center: bool = True
    scale: bool = True
    beta_initializer: str | ArrayLike = "zeros"
    gamma_initializer: str | ArrayLike = "ones"
    name: str | None = None
    trainable: bool = True

    def __post_init__(self) -> None:
        _check_normalization(self)

    def __repr__(self) -> str:
        return layer_repr(self, 0)

    @property
    def arrays(self) -> tuple[str, ...]:
        """Names of its parameters, in their order."""
        return _scale_and_center(self)

    def settings(self, decay_biases: bool = True) -> list[ParamSettings]:
        """Return what an optimizer does with the parameters beside what it does with all."""
        return _settings(self, decay_biases)

    def spec(self, inputs: int) -> LayerNormSpec:
        """Return the layer as backends take it, for `inputs` features; ValueError if they clash with its arrays."""
        _check_columns(self, inputs)
        return LayerNormSpec(inputs, self.epsilon, self.center, self.scale)

    def draw(self, inputs: int, seed: int, index: int) -> list[NDArray[np.float64]]:
        """Return the initial parameters in float64: those of [gamma, beta] that there are."""
        return draw([((inputs,), getattr(self, f"{name}_initializer")) for name in self.arrays], seed, index)

    def formula(self) -> str:
        """Return what `summary` says of it."""
        return f"epsilon {self.epsilon:g}"


@dataclass(frozen=True, eq=False)
class BatchNorm(Frozen):
    """Batch normalization (Ioffe & Szegedy 2015): y = gamma (x - mean) / sqrt(variance + epsilon) + beta. It is Keras's
    BatchNormalization.

    In training, mean and biased variance are those of each column of the batch, and move the averages, (columns,):
    average = momentum average + (1 - momentum) of the batch. `evaluate`, `predict` and validation use the averages.
    They are parameters that no optimizer updates; files keep them, and `get_weights` has them behind gamma and beta,
    which are trained. With `fit(accumulate=k)` every batch has statistics of its own. torch's `momentum` is 1 less this
    one, and its moving variance the unbiased one.

    An optimizer's weight decay applies to gamma and beta as to all parameters that it updates, as in Keras, but with
    `compile(decay_biases=False)`, as is usual, it leaves them alone. Rows count alike in mean and variance, whatever
    their `sample_weight`; a step whose weights sum to 0 moves no average.

    momentum                     a number in [0, 1)
    epsilon                      a number of at least 0
    center                       False leaves beta out, and so may use_bias=False in the layer before be worth it
    scale                        False leaves gamma out
    beta_initializer             zeros, ones, or an array (columns,), which is copied
    gamma_initializer            the same, and so are the next two
    moving_mean_initializer
    moving_variance_initializer
    name                         its name in `summary` and error messages; by default batch_norm_1, ... in a model
    trainable                    False: gamma, beta and the averages stay as they are, and training goes by the
                                 averages, too, as in Keras; `Sequential.freeze` and `unfreeze` change it

    Raises TypeError for an argument of the wrong kind, ValueError for an impossible value.

    >>> import fastopt as fo
    >>> model = fo.Sequential([fo.Dense(3), BatchNorm(momentum=0.9), fo.Dense(1)], inputs=2)
    >>> [p.shape for p in model.get_weights()[2:6]]  # gamma, beta, moving mean and variance
    [(3,), (3,), (3,), (3,)]
    """

    momentum: float = 0.99
    epsilon: float = 1e-3
    center: bool = True
    scale: bool = True
    beta_initializer: str | ArrayLike = "zeros"
    gamma_initializer: str | ArrayLike = "ones"
    moving_mean_initializer: str | ArrayLike = "zeros"
    moving_variance_initializer: str | ArrayLike = "ones"
    name: str | None = None
    trainable: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "momentum", check_number("momentum", self.momentum, 0.0, 1.0))
        _check_normalization(self)

    def __repr__(self) -> str:
        return layer_repr(self, 0)

    @property
    def arrays(self) -> tuple[str, ...]:
        """Names of its parameters, in their order."""
        return *_scale_and_center(self), *MOVING

    def settings(self, decay_biases: bool = True) -> list[ParamSettings]:
        """Return what an optimizer does with the parameters beside what it does with all."""
        return _settings(self, decay_biases)

    def spec(self, inputs: int) -> BatchNormSpec:
        """Return the layer as backends take it, for `inputs` features; ValueError if they clash with its arrays."""
        _check_columns(self, inputs)
        return BatchNormSpec(inputs, self.epsilon, self.center, self.scale, self.momentum)

    def draw(self, inputs: int, seed: int, index: int) -> list[NDArray[np.float64]]:
        """Return the initial parameters in float64: those of [gamma, beta] that there are, and the averages."""
        return draw([((inputs,), getattr(self, f"{name}_initializer")) for name in self.arrays], seed, index)

    def formula(self) -> str:
        """Return what `summary` says of it."""
        return f"momentum {self.momentum:g}"


def _scale_and_center(layer: LayerNorm | BatchNorm) -> tuple[str, ...]:
    return ("gamma",) * layer.scale + ("beta",) * layer.center


def _check_normalization(layer: LayerNorm | BatchNorm) -> None:
    """Check the arguments that both kinds of normalization have, and normalise them."""
    set_ = object.__setattr__
    set_(layer, "epsilon", check_number("epsilon", layer.epsilon, 0.0))
    for which, name in (("center", "beta"), ("scale", "gamma")):
        set_(layer, which, check_flag(which, getattr(layer, which)))
        if not getattr(layer, which) and not isinstance(getattr(layer, f"{name}_initializer"), str):
            raise ValueError(f"{name}_initializer is an array, but {which}=False leaves {name} out")
    for name in ("beta", "gamma", *(MOVING if isinstance(layer, BatchNorm) else ())):
        field, initial = f"{name}_initializer", getattr(layer, f"{name}_initializer")
        set_(layer, field, check_initializer(field, initial, VECTOR_INITIALIZERS, ndim=1))
    set_(layer, "trainable", check_flag("trainable", layer.trainable))
    check_label(layer.name)


def _settings(layer: LayerNorm | BatchNorm, decay_biases: bool) -> list[ParamSettings]:
    """Settings of each parameter; decay_biases: False for no weight decay of gamma and beta."""
    own = ParamSettings() if decay_biases or not layer.trainable else ParamSettings(weight_decay=0.0)
    return [ParamSettings() if name in MOVING else own for name in layer.arrays]


def _check_columns(layer: LayerNorm | BatchNorm, inputs: int) -> None:
    """Raise ValueError where an initializer is an array for another number of features."""
    for name in layer.arrays:
        initial = getattr(layer, f"{name}_initializer")
        if isinstance(initial, np.ndarray) and initial.shape != (inputs,):
            raise ValueError(
                f"its {name}_initializer must have shape ({inputs},), as {inputs} features come in; "
                f"got {initial.shape}"
            )
