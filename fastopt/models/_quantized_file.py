"""Files of quantized models: those of `_description`, with codes and scales for the weights of dense layers.

The entry "quantized" of the description has, for each dense layer, "bits", "group", "input_scale" and "input_zero", and
the loss and the metrics of `evaluate`. Tensors: "layers.<i>.codes", "layers.<i>.scales", "layers.<i>.bias", and those
of other layers and of the data as in `checkpoint`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from .._metrics import FUNCTIONS
from .._validation import check_count, check_name, check_number
from ..kernels.spec import DenseSpec, LayerSpec, Quantized, parameter_shapes
from ..layers import LAYERS, Dense, Layer, Trained, to_config
from ..losses import LOSS_CLASSES
from . import _data_memory, _description
from ._data_memory import DataMemory
from .checkpoint import QUANTIZED, Description, Tensors

BITS = {8: np.int8, 4: np.uint8, 16: np.uint16}  # dtypes of codes


class Parts(NamedTuple):
    """Structure of a model by its description."""

    layers: list[Layer]
    quantized: list[Quantized]
    inputs: int
    seed: int


def names_of(layers: Iterable[Layer], specs: Sequence[LayerSpec]) -> list[str]:
    """Return the tensors' names, in the order of the model's parameters; layers: all, specs: of those that have one."""
    indices = [i for i, layer in enumerate(layers) if hasattr(layer, "spec")]
    return [f"layers.{i}.{name}" for i, spec in zip(indices, specs, strict=True) for name in parameter_shapes(spec)]


def describe(model: DataMemory, quantized: Sequence[Quantized], weights_only: bool) -> tuple[Description, Tensors]:
    """Return what a file keeps of a quantized model. weights_only: neither loss nor metrics."""
    assert model.inputs is not None
    names = names_of(model.layers, model.specs(model.inputs))
    tensors = dict(zip(names, model.parameters, strict=True)) | _data_memory.to_tensors(model)
    entry: dict[str, Any] = {"dense": [of_layer._asdict() for of_layer in quantized]}
    if model.loss is not None and not weights_only:
        metrics = _description.metrics_of(model, warns=True)
        entry |= {"loss": model.loss.name, "loss_params": dict(model.loss.spec.params), "metrics": metrics}
    description = {
        "format": QUANTIZED,
        **_data_memory.to_config(model),
        "layers": [to_config(layer) for layer in model.layers],
        "inputs": model.inputs,
        "seed": model.seed,
        "dtype": "float32",
        "compute_dtype": "float32",
        "backend": model.backend,
        "epochs_done": model.epochs_done,
        "compile": None,
        "quantized": entry,
    }
    if formulas := _description.defined_in(model):
        description["formulas"] = formulas
    return description, tensors


def parts_of(description: Mapping[str, Any]) -> Parts:
    """Return the checked structure of the model that is described."""
    _description.check_defined(dict(description))
    layers = [_layer(config) for config in description["layers"]]
    quantized = [_quantized(entry) for entry in description["quantized"]["dense"]]
    num_dense = sum(isinstance(layer, Dense) for layer in layers)
    if len(quantized) != num_dense:
        raise ValueError(f"it has {num_dense} dense layers, and says of {len(quantized)} what their weights are")
    return Parts(layers, quantized, check_count("inputs", description["inputs"]), description["seed"])


def _layer(config: Mapping[str, Any]) -> Layer:
    fields = {name: value for name, value in config.items() if name != "kind"}
    made: Layer = LAYERS[check_name("kind of layer", config["kind"], LAYERS)](**fields)
    return made


def _quantized(entry: Mapping[str, Any]) -> Quantized:
    found = Quantized(**entry)
    if found.bits not in BITS or (found.bits == 16 and (found.group or found.input_scale)):
        raise ValueError(f"its layers must have {', '.join(map(str, BITS))} bits; got {found}")
    check_count("group", found.group, least=0)
    check_number("input_scale", found.input_scale, 0.0)
    if check_count("input_zero", found.input_zero, least=0) > 255:
        raise ValueError(f"input_zero must be at most 255; got {found.input_zero}")
    if found.input_scale and (found.bits, found.group) != (8, 0):
        raise ValueError(f"a layer with codes of its inputs must have 8 bits and one group; got {found}")
    return found


def arrays_of(layers: Sequence[Layer], specs: Sequence[LayerSpec], tensors: Tensors) -> list[np.ndarray]:
    """Return the checked arrays of all layers, in order, taken out of `tensors`."""
    expected = [(spec, name, shape) for spec in specs for name, shape in parameter_shapes(spec).items()]
    arrays = []
    for (spec, name, shape), key in zip(expected, names_of(layers, specs), strict=True):
        array = tensors.pop(key)
        dtype: np.dtype[Any] = np.dtype(np.float32)
        if name == "codes":
            assert isinstance(spec, DenseSpec)
            assert spec.quantized is not None
            dtype = np.dtype(BITS[spec.quantized.bits])
        if array.shape != shape or array.dtype != dtype:
            raise ValueError(f"{key} must be {dtype} of shape {shape}; got {array.dtype} of shape {array.shape}")
        if array.dtype == np.int8 and array.size and int(array.min()) < -127:  # whose sums might not fit in an int32
            raise ValueError(f"{key} must have codes of -127 to 127; got {int(array.min())}")
        arrays.append(array)
    return arrays


def restore(model: DataMemory, description: Mapping[str, Any], tensors: Tensors) -> None:
    """Give a new model what a file has of its data, its loss and its metrics."""
    _data_memory.restore(model, description["inputs"], description, tensors)
    _description.check_left_over(tensors)
    model.epochs_done = check_count("epochs_done", description["epochs_done"], least=0)
    entry = description["quantized"]
    if "loss" in entry:
        model.loss = LOSS_CLASSES[check_name("loss", entry["loss"], LOSS_CLASSES)](**entry["loss_params"])
        functions = {name: FUNCTIONS[name] for name in entry["metrics"] if name in FUNCTIONS}
        model.metric_functions = functions
        model.metrics = tuple(name for name in entry["metrics"] if name not in functions)


def plain(layer: Layer) -> Layer:
    """Return the layer without what training alone needs: initializers, penalties, rates and constraints."""
    if not isinstance(layer, Trained):
        return layer
    fields = layer.__dataclass_fields__
    training = [name for name in fields if name.endswith(("_initializer", "_regularizer", "_constraint"))]
    training += [name for name in ("lr_scale", "weight_decay") if name in fields]
    changed: dict[str, Any] = {name: fields[name].default for name in training}
    return replace(layer, **changed)
