"""Structure and weights of a model: its layers, the arrays that they need, and the backend that they run on."""

from __future__ import annotations

import contextlib
import copy
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from .. import _backends, profiling
from .._exclusive import Exclusive
from .._metrics import Function
from .._validation import FLOATS, as_numbers, check_count, describe, own
from ..averaging import EMA
from ..kernels.spec import LayerSpec, ParamSettings
from ..layers import LAYERS, Activation, Dense, Layer, Trained, chain, kind, preprocessing_of, updated_params
from ..losses import Loss
from ..optim import Optimizer
from . import _quantized_training, _summary, _trainable
from ._averages import Averages
from ._masks import Masks
from .history import History

Self = TypeVar("Self", bound="LayerStack")


class LayerStack:
    """Base of `Sequential`: layers with their weights, and the settings that training needs; see there."""

    # Settings of each of `parameters` beside the optimizer's: rates, decay, regularizers; () if there are none.
    param_settings: tuple[ParamSettings, ...]
    # The network of a training whose weights and states may be newer on a device than here, and the training's thread.
    _holder: tuple[Any, int] | None = None
    _quantize: str | None = None  # how training rounds weights, one of `_quantized_training.WAYS`
    _ema: EMA | None = None
    _averages: Averages | None = None  # of a built model with `_ema`
    _masks: Masks | None = None  # of a built model whose weights are pruned

    def __init__(
        self, layers: Sequence[Layer], seed: int, backend: str, dtype: DTypeLike, compute_dtype: str | None
    ) -> None:
        self.layers = _check_layers(layers)
        self.names = _names_of(self.layers)
        self.preprocessing = preprocessing_of(self.layers)
        last = self.layers[-1]
        assert isinstance(last, Dense)
        self.outputs, self.last_activation = last.units, last.activation
        self.seed = check_count("seed", seed, least=0)
        if self.seed >= 2**64:
            raise ValueError(f"seed must be below 2^64; got {seed}")
        self.dtype = _check_dtype(dtype)
        self._backend = _backends.known(backend)
        self.compute_dtype = compute_dtype
        self.inputs: int | None = None
        self.optimizer: Optimizer | None = None
        self.loss: Loss | None = None
        self.metrics: tuple[str, ...] = ()
        self.metric_functions: dict[str, Function] = {}
        self.decay_biases = True
        self._renew_settings()
        self.epochs_done = 0
        self.history: History | None = None
        self.stop_training = False
        self._use = Exclusive()
        self._specs: list[LayerSpec] = []
        self._parameters: list[np.ndarray] = []

    @property
    def backend(self) -> str:
        """The name of the backend that runs the kernels."""
        return self._backend

    @backend.setter
    def backend(self, name: str) -> None:
        name = _backends.known(name)
        _backends.check_compute(self._compute, self.dtype.name, name)
        _quantized_training.check(self._quantize, self.dtype.name, self._compute, name)
        self._backend = name

    @property
    def compute_dtype(self) -> str:
        """The dtype that layers compute in.

        >>> from fastopt import Dense, Sequential
        >>> model = Sequential([Dense(2)], backend="numpy", compute_dtype="bfloat16", inputs=3)
        >>> model.compute_dtype, model.parameters[0].dtype.name
        ('bfloat16', 'float32')
        >>> model.compute_dtype = None
        >>> model.compute_dtype
        'float32'
        """
        return self._compute

    @compute_dtype.setter
    def compute_dtype(self, name: str | None) -> None:
        compute = _backends.check_compute(name, self.dtype.name, self._backend)
        _quantized_training.check(self._quantize, self.dtype.name, compute, self._backend)
        self._compute = compute

    @property
    def built(self) -> bool:
        """True once the model has weights."""
        return self.inputs is not None

    @property
    def parameters(self) -> list[np.ndarray]:
        """The weights themselves, [w0, b0, w1, b1, ...]: w (inputs, outputs), b (outputs,). Training changes them.

        In the place of a LayerNorm there are gamma and beta, of a BatchNorm also its moving mean and variance.
        """
        self._bring_back()
        return list(self._parameters)

    def specs(self, inputs: int) -> list[LayerSpec]:
        """Specs of the layers for `inputs` features, as backends take them; ValueError where layers clash."""
        return chain(self.layers, self.names, inputs)

    def build(self, inputs: int) -> None:
        """Make the weights for `inputs` features, from the seed. Once built, only the same number is accepted.

        >>> from fastopt import Dense, Sequential
        >>> model = Sequential([Dense(2)])
        >>> model.build(3)
        >>> [p.shape for p in model.parameters]
        [(3, 2), (2,)]
        """
        inputs = check_count("inputs", inputs)
        if self.inputs is None:
            with self._use.exclusive("build"):
                self._draw(inputs)
        if inputs != self.inputs:
            raise ValueError(f"the model is built for {self.inputs} features; got {inputs}")

    def _draw(self, inputs: int) -> None:
        """Make the weights, unless another thread has come first."""
        if self.inputs is not None:
            return
        self.specs(inputs)  # refuses layers that clash before a weight is drawn
        drawn: list[np.ndarray] = []
        width = inputs
        for index, layer in enumerate(self.layers[len(self.preprocessing) :]):
            if isinstance(layer, Trained):
                drawn += layer.draw(width, self.seed, index)
            if isinstance(layer, Dense):
                width = layer.units
        self._adopt(inputs, [own(array, self.dtype) for array in drawn])

    def adopt(self, inputs: int, parameters: list[np.ndarray]) -> None:
        """Copy arrays of the right shapes, of any dtype and layout, as the weights of a model that has none yet."""
        self._adopt(inputs, [own(p, self.dtype) for p in parameters])

    def _adopt(self, inputs: int, parameters: list[np.ndarray]) -> None:
        """Take arrays that nobody else has, as `own` makes them, as the weights."""
        if self.optimizer is not None:
            # fails, before anything has changed, where another model has bound it
            self.optimizer.bind(parameters, _trainable.frozen_params(self.layers))
        self.inputs, self._specs, self._parameters = inputs, self.specs(inputs), parameters
        self._masks = None
        self._average_by(self._ema)

    def freeze(self, names: str | Sequence[str]) -> None:
        """Train the layers of these names no longer: they keep their weights, and cost no gradient, update or state.

        names: those of `summary`, one or a list. Optimizer states of these layers are dropped; other layers keep
        theirs. Layers below the lowest one that is trained cost no backward pass at all. It is the same as
        `Dense(trainable=False)`, stays in files, and may be called by a callback between epochs.

        Raises TypeError or ValueError, before anything changes, for a name that is none of a layer with weights.

        >>> from fastopt import Dense, Sequential
        >>> model = Sequential([Dense(2, "relu", name="features"), Dense(1)], inputs=3)
        >>> model.freeze("features")
        >>> model.layers
        (Dense(2, 'relu', name='features', trainable=False), Dense(1))
        """
        self._set_trainable("freeze", names, False)

    def unfreeze(self, names: str | Sequence[str]) -> None:
        """Train the layers of these names again; their optimizer states start afresh, at a first step of their own.

        names: as in `freeze`.

        >>> from fastopt import Dense, Sequential
        >>> model = Sequential([Dense(1, trainable=False)])
        >>> model.unfreeze(["dense_1"])
        >>> model.layers[0].trainable
        True
        """
        self._set_trainable("unfreeze", names, True)

    def _set_trainable(self, call: str, names: str | Sequence[str], trainable: bool) -> None:
        changed = _trainable.check_names(names, self.layers, self.names)
        with self._use.exclusive(call):
            self._bring_back()
            layers = _trainable.with_trainable(self.layers, self.names, changed, trainable)
            if self.optimizer is not None and self.optimizer.bound:
                self.optimizer._freeze(_trainable.frozen_params(layers))
            self.layers = layers
            self._renew_settings()

    def _renew_settings(self) -> None:
        """Work out what layers have for themselves, after a change of `layers` or `decay_biases`."""
        self.param_settings = _trainable.settings_of(self.layers, self.decay_biases)
        self._all_frozen = all(_trainable.frozen_params(self.layers))
        self._fixed_layers = _trainable.fixed_layers(self.layers)
        self._constraints = _trainable.constraints_of(self.layers)

    def get_weights(self) -> list[np.ndarray]:
        """Return copies of the weights, in the order of `parameters`."""
        with self._use.shared("get_weights"):
            self._bring_back()
            return [p.copy() for p in self._parameters]

    def set_weights(self, weights: Sequence[ArrayLike], averages: Sequence[ArrayLike] | None = None) -> None:
        """Copy `weights`, in the order and shapes of `parameters`, into the model. The optimizer stays as it is.

        averages: those that belong to the weights, of a model with an EMA, as `get_averages` gave them. None: an
        average over steps begins again, with these weights.

        Weights that are pruned stay zero, whatever is given for them; `fastopt.compress.unprune` ends that.
        """
        if not self.built:
            raise ValueError("the model has no weights yet: call build, or fit")
        if averages is not None and self._averages is None:
            raise ValueError("averages are for models that are compiled with an EMA, and this one is not")
        arrays = self._weights("weights", weights)
        averaged = None if averages is None else self._weights("averages", averages)
        with self._use.exclusive("set_weights"):
            self._bring_back()
            for p, w in zip(self._parameters, arrays, strict=True):
                p[...] = w
            if self._averages is not None and averaged is None:
                self._averages.restart(self._parameters)
            elif self._averages is not None and averaged is not None:
                self._averages.copy(averaged)
            if self._masks is not None:
                self._masks.zero(self._parameters)
                if self._averages is not None:
                    self._masks.zero(self._averages.arrays)

    def _weights(self, what: str, arrays: Any) -> list[np.ndarray]:
        """Arrays of the parameters' shapes and dtype, checked."""
        if isinstance(arrays, np.ndarray | str) or not isinstance(arrays, Sequence):
            raise TypeError(f"{what} must be a list of arrays; got {describe(arrays)}")
        if len(arrays) != len(self._parameters):
            raise ValueError(f"{what} must be {len(self._parameters)} arrays; got {len(arrays)}")
        found = [as_numbers(f"{what}[{i}]", w, self.dtype) for i, w in enumerate(arrays)]
        for i, (p, w) in enumerate(zip(self._parameters, found, strict=True)):
            if p.shape != w.shape:
                raise ValueError(f"{what}[{i}] must have shape {p.shape}; got {w.shape}")
        return found

    # -- averages of the weights

    @property
    def ema(self) -> EMA | None:
        """The average over steps that the model was compiled with; None: there is none."""
        return self._ema

    @property
    def averages(self) -> list[np.ndarray] | None:
        """The averages themselves, in the order of `parameters`; None without an EMA, or before there are weights."""
        self._bring_back()
        return None if self._averages is None else list(self._averages.arrays)

    def get_averages(self) -> list[np.ndarray] | None:
        """Return copies of `averages`."""
        with self._use.shared("get_averages"):
            self._bring_back()
            return None if self._averages is None else [average.copy() for average in self._averages.arrays]

    def use_averages(self) -> None:
        """Copy the averages over steps into the weights. The optimizer, and the averages, stay as they are.

        Raises ValueError for a model without an EMA, or without weights.

        >>> import numpy as np, fastopt as fo
        >>> x = np.linspace(-1, 1, 8).reshape(-1, 1)
        >>> model = fo.Sequential([fo.Dense(1)], backend="numpy")
        >>> model.compile(fo.SGD(lr=0.1), "mean_squared_error", ema=fo.EMA(0.9))
        >>> history = model.fit(x, 3 * x, epochs=20)
        >>> before = model.predict(x)
        >>> model.use_averages()
        >>> bool((model.get_weights()[0] == model.averages[0]).all() and (model.predict(x) == before).all())
        True
        """
        with self._use.exclusive("use_averages"):
            self._bring_back()
            if self._averages is None:
                raise ValueError("the model has no averages: call compile with ema=fo.EMA(), and fit")
            for p, average in zip(self._parameters, self._averages.arrays, strict=True):
                p[...] = average

    def _average_by(self, ema: EMA | None) -> None:
        """Average the weights so from now on; an average of the same settings goes on."""
        self._ema = ema
        if ema is None or not self.built:
            self._averages = None
        elif self._averages is None or self._averages.ema != ema:
            self._averages = Averages(ema, self._parameters, updated_params(self.layers))

    def summary(self) -> str:
        """Return a table of the layers: what they give, how many parameters they have, and how many are pruned.

        >>> from fastopt import Dense, Dropout, Sequential
        >>> print(Sequential([Dense(16, "relu"), Dropout(0.2), Dense(3)], inputs=4).summary())
        layer      activation  outputs  parameters
        dense_1    relu             16          80
        dropout_1  rate 0.2         16           0
        dense_2    linear            3          51
        total: 131 parameters, 4 inputs, float32
        """
        return _summary.of(self)

    def __repr__(self) -> str:
        layers = ", ".join(map(repr, self.layers))
        settings = [f"seed={self.seed}", f"backend={self.backend!r}", f"dtype={self.dtype.name!r}"]
        settings += [f"inputs={self.inputs}"] * self.built + [f"compute_dtype={self._compute!r}"] * self._mixed
        return f"{type(self).__name__}([{layers}], {', '.join(settings)})"

    # -- running

    def _reading(self, call: str) -> AbstractContextManager[None]:
        """While open, no other thread changes the weights; the first call makes them."""
        return self._use.shared(call) if self.built else self._use.exclusive(call)

    def network(self, training: bool = True, averaged: bool = False) -> Any:
        """Return a new network of the backend over the model's own weights; without a loss unless for training.

        averaged: over their averages, where there are any.
        """
        profiling.check_backend(self.backend)
        self._bring_back()
        spec = None if self.loss is None or not training else self.loss.spec
        metrics = self.metrics if training else ()
        network = _backends.network(self.backend)
        # unpickled, the model may have come from another processor
        _backends.check_compute(self._compute, self.dtype.name, self._backend)
        options: dict[str, Any] = {"compute": self._compute} if self._mixed else {}
        if self._masks is not None and getattr(network, "multiplies_sparse", False):
            options["masks"] = self._masks.arrays
        parameters = self._averages.arrays if averaged and self._averages is not None else self._parameters
        specs = self._specs
        if training and self._quantize:
            specs = _quantized_training.rounded_specs(specs, self._quantize)
        return network(specs, parameters, self.dtype, spec, metrics, **options)

    def _bring_back(self) -> None:
        """Update weights and states from the device of a training that holds them there, for a callback's call."""
        if self._holder is not None and self._holder[1] == threading.get_ident():
            self._holder[0].bring_back()

    @property
    def _mixed(self) -> bool:
        """True if layers compute in another dtype than that of the weights."""
        return self._compute != self.dtype.name

    # -- copies

    def __copy__(self: Self) -> Self:
        """Return a deep copy: models that shared weights or an optimizer would change each other."""
        return copy.deepcopy(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the model from pickle or copy, with copies of the weights."""
        self.__dict__.update(state)
        for name, default in (("metric_functions", {}), ("decay_biases", True)):  # of models of before there were any
            self.__dict__.setdefault(name, default)
        self._renew_settings()
        self._parameters = [np.require(p, None, ["C", "A", "W", "O", "E"]) for p in self._parameters]
        if self._averages is not None:
            self._averages.share(self._parameters, updated_params(self.layers))
        if self.optimizer is not None and self.optimizer.bound:
            arrays = [array for group in self.optimizer.param_groups for array in group["params"]]
            if any(a is not p for a, p in zip(arrays, self._parameters, strict=False)):
                self.optimizer.move([*self._parameters, *arrays[len(self._parameters) :]])


_WHY_NOT_LAST = {
    "dropout": "Dropout would zero outputs at random",
    "gaussian_noise": "GaussianNoise would make outputs random",
    "layer_norm": "LayerNorm would fix the scale of the outputs",
    "batch_norm": "BatchNorm would fix the scale of the outputs",
    "activation": "give it the activation",
}


def _check_layers(layers: Any) -> tuple[Layer, ...]:
    *known, last = (cls.__name__ for cls in LAYERS.values())
    if isinstance(layers, Layer | str) or not isinstance(layers, Sequence):
        raise TypeError(f"layers must be a list of {', '.join(known)} and {last}; got {describe(layers)}")
    for i, layer in enumerate(layers):
        if not isinstance(layer, Layer):
            raise TypeError(f"layers[{i}] must be {', '.join(known)} or {last}; got {describe(layer)}")
    if not layers:
        raise ValueError("layers must hold at least one Dense")
    if not isinstance(layers[-1], Dense):
        why = _WHY_NOT_LAST.get(kind(layers[-1]), "the others only prepare data")
        raise ValueError(f"the last layer must be Dense: {why}")
    for i, layer in enumerate(layers[:-1]):
        if isinstance(layer, Dense | Activation) and layer.activation_key() == "softmax":
            raise ValueError(f"only the last layer may have the activation softmax; got it in layers[{i}]")
    return tuple(layers)


def _names_of(layers: tuple[Layer, ...]) -> tuple[str, ...]:
    """The layers' names: their own, else dense_1, dropout_1, dense_2, ..."""
    counts: dict[str, int] = {}
    names: list[str] = []
    for layer in layers:
        counts[kind(layer)] = counts.get(kind(layer), 0) + 1
        own = layer.label if isinstance(layer, Activation) else layer.name
        names.append(own or f"{kind(layer)}_{counts[kind(layer)]}")
    twice = [name for i, name in enumerate(names) if name in names[:i]]
    if twice:
        raise ValueError(f"two layers have the name {twice[0]!r}")
    return tuple(names)


def _check_dtype(dtype: Any) -> np.dtype:
    with contextlib.suppress(TypeError):
        if dtype is not None and np.dtype(dtype) in FLOATS:  # None would be float64
            return np.dtype(dtype)
    raise ValueError(f"dtype must be float32 or float64; got {dtype!r}")
