"""Steps of a model's prediction, in order: the form in which exports read a model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from .._validation import describe
from ..kernels.formulas import OUTPUTS
from ..kernels.sources import Stage
from ..kernels.spec import DenseSpec, parameter_shapes
from ..layers import Activation, BatchNorm, Dense, Dropout, GaussianNoise, LayerNorm, Trained, kind
from ..models._targets import decision_rule
from ..models.quantized import QuantizedModel
from ..models.sequential import Sequential
from ..preprocessing import stages_of

Step = Dense | LayerNorm | BatchNorm | Activation | Dropout | GaussianNoise


class Integers(NamedTuple):
    """Weights scales codes of a dense layer, and the codes of what comes in: x = input_scale (code - input_zero)."""

    codes: np.ndarray  # (inputs, outputs) int8
    scales: np.ndarray  # (outputs,) float32
    input_scale: float  # 0: what comes in is float32
    input_zero: int


class NamedLayer(NamedTuple):
    """A layer with its name and its arrays: kernel, bias, gamma, beta, moving_mean, moving_variance."""

    name: str
    layer: Step
    arrays: dict[str, np.ndarray]
    inputs: int  # columns that come in
    integers: Integers | None = None  # of which the kernel is made, for those who ask for them

    @property
    def activation(self) -> str:
        """Name of the activation; "linear" for layers that have none."""
        if isinstance(self.layer, Activation):
            return self.layer.name
        return str(self.layer.activation) if isinstance(self.layer, Dense) else "linear"


class Prediction(NamedTuple):
    """All that `predict` and `predict_classes` of a model do.

    Rows pass `stages` in float64, then `layers` in `dtype`; outputs pass `unscale` in float64 and are `dtype` again.
    """

    inputs: int
    outputs: int
    dtype: np.dtype
    stages: tuple[Stage, ...]
    layers: tuple[NamedLayer, ...]
    unscale: Stage | None
    rule: str | None  # of predict_classes: "largest", "above 0.5" or "above 0"
    classes: np.ndarray | None
    feature_names: tuple[str, ...] | None

    def without_noise(self) -> tuple[NamedLayer, ...]:
        """Return the layers that act in predictions."""
        return tuple(entry for entry in self.layers if not isinstance(entry.layer, Dropout | GaussianNoise))

    @property
    def labels(self) -> np.ndarray | None:
        """Labels by class number, of those classes that there are names for."""
        return None if self.rule is None else self.classes


def refusal(call: str, what: str, reason: str) -> ValueError:
    """Return the error for a part that cannot be carried over."""
    return ValueError(f"{call} cannot carry over {what}: {reason}")


def read(call: str, model: Any, integers: bool = False) -> Prediction:
    """Return the prediction of a model, with copies of its arrays; `call` is named in errors.

    integers: dense layers of a quantized model come with the integers that they are made of; else such a model is read
    as one of float32, which it predicts as if weights alone are integers, and refused if not.

    Raises TypeError for what is no Sequential; ValueError for a model without weights, and for what no other program
    computes.
    """
    if not isinstance(model, Sequential):
        raise TypeError(f"model must be a fastopt.Sequential; got {describe(model)}")
    if model.inputs is None:
        raise ValueError(f"{call}: the model has no weights yet: call build, or fit")
    if model.compute_dtype != model.dtype.name:
        reason = f"set model.compute_dtype = None to compute in {model.dtype}"
        raise refusal(call, f"compute_dtype={model.compute_dtype!r}", reason)
    weights, of_dense = _weights_of(call, model, integers)
    learnt, layers, width = model.learnt, [], model.inputs
    for name, layer in zip(model.names, model.layers, strict=True):
        if not isinstance(layer, Step):
            continue
        if isinstance(layer, Dense | Activation) and layer.activation_key() not in OUTPUTS:
            shown = layer.activation if isinstance(layer, Dense) else layer.name
            raise refusal(call, f"the activation {shown!r} of layer {name}", "it is a formula of yours")
        names = layer.arrays if isinstance(layer, Trained) else ()
        own = next(of_dense, None) if isinstance(layer, Dense) else None
        layers.append(NamedLayer(name, layer, {which: weights.pop(0) for which in names}, width, own))
        width = layer.units if isinstance(layer, Dense) else width
    for name, layer, known in zip(model.names, model.preprocessing, learnt.statistics, strict=False):
        if kind(layer) == "normalization" and known is None:
            raise ValueError(f"{call}: layer {name} has no mean and variance yet: call adapt, or fit")
    rule = decision_rule(None if model.loss is None else model.loss.spec, model.last_activation, model.outputs)
    if learnt.classes is not None and model.outputs > 1:
        rule = "largest"
    scale = learnt.target_scale
    return Prediction(
        model.inputs,
        model.outputs,
        model.dtype,
        stages_of(model.preprocessing, learnt.statistics, model.inputs),
        tuple(layers),
        None if scale is None else Stage(False, scale.deviation.copy(), scale.mean.copy()),
        rule,
        learnt.classes,
        learnt.feature_names,
    )


def _weights_of(call: str, model: Sequential, integers: bool) -> tuple[list[np.ndarray], Iterator[Integers | None]]:
    """The float32 weights of a model, and the integers of each dense layer of one that is quantized."""
    if not isinstance(model, QuantizedModel):
        return model.get_averages() or model.get_weights(), iter(())
    if not integers and any(of_layer.input_scale for of_layer in model.quantized):
        reason = "model.dequantize() is a float32 model with the same weights, and to_onnx carries integers over"
        raise refusal(call, "products of integers", reason)
    return model.dequantize().get_weights(), iter(_integers_of(model) if integers else ())


def _integers_of(model: QuantizedModel) -> list[Integers | None]:
    """The integers of each dense layer; None for weights that are no int8 with a scale for each output."""
    assert model.inputs is not None
    arrays, found = iter(model.get_weights()), list[Integers | None]()
    for spec in model.specs(model.inputs):
        own = {name: next(arrays) for name in parameter_shapes(spec)}
        if isinstance(spec, DenseSpec):
            of_layer = spec.quantized
            assert of_layer is not None
            is_whole = of_layer.bits == 8 and not of_layer.group
            scales = (of_layer.input_scale, of_layer.input_zero)
            found.append(Integers(own["codes"], own["scales"][0], *scales) if is_whole else None)
    return found
