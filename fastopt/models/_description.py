"""Description of a model in a file: plain values and tensors from a model, and a model from them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from itertools import zip_longest
from typing import Any, TypeVar

from .. import schedules
from .._metrics import FUNCTIONS
from .._validation import check_count, check_name, check_number
from ..averaging import EMA
from ..kernels.spec import DenseSpec, LayerSpec
from ..layers import LATER, LAYERS, Dense, Layer, to_config
from ..losses import LOSS_CLASSES, Loss
from ..optim import OPTIMIZER_CLASSES, Optimizer, get_optimizer
from . import _data_memory
from ._data_memory import DataMemory
from .checkpoint import FORMAT, Description, Tensors

log = logging.getLogger("fastopt")

CLASSES: dict[str, Any] = {cls.__name__: cls for cls in (type(get_optimizer(name)) for name in OPTIMIZER_CLASSES)}
Model = TypeVar("Model", bound=DataMemory)


def describe(model: DataMemory) -> tuple[Description, Tensors]:
    """Return what a file keeps of a model, which must be built.

    Raises ValueError for a model without weights, TypeError for an optimizer class that `load_model` would not know.
    """
    if model.inputs is None:
        raise ValueError("the model has no weights yet: call build, or fit, before save")
    names = _names(model.layers)
    tensors = dict(zip(names, model.parameters, strict=True)) | _data_memory.to_tensors(model)
    compiled = None
    if model.optimizer is not None and model.loss is not None:
        compiled, states = _describe_training(model.optimizer, model.loss, _metrics_of(model), len(model.parameters))
        tensors |= states
        if not model.decay_biases:
            compiled["decay_biases"] = False
        if model._averages is not None:
            compiled["ema"] = {**model._averages.ema.config(), "steps": model._averages.steps}
            tensors |= {f"averages.{name}": array for name, array in zip(names, model._averages.arrays, strict=True)}
    remembered, layers = _data_memory.to_config(model), [to_config(layer) for layer in model.layers]
    description = {
        "format": _format(model, bool(remembered), layers, compiled or {}),
        **remembered,
        "layers": layers,
        "inputs": model.inputs,
        "seed": model.seed,
        "dtype": model.dtype.name,
        "compute_dtype": model.compute_dtype,
        "backend": model.backend,
        "epochs_done": model.epochs_done,
        "compile": compiled,
    }
    return description, tensors


def _format(model: DataMemory, remembers: bool, layers: Iterable[Description], compiled: Description) -> int:
    """The oldest format that can say all of a model, of which these are parts of the description."""
    if {"ema", "decay_biases"}.intersection(compiled) or any(set(LATER).intersection(layer) for layer in layers):
        return FORMAT
    return 2 if remembers or model.preprocessing or model.target_scale else 1


def _metrics_of(model: DataMemory) -> list[str]:
    """Names of the metrics that a file can hold."""
    names = {name for name, function in model.metric_functions.items() if FUNCTIONS.get(name) is function}
    if foreign := [name for name in model.metric_functions if name not in names]:
        # Not refused: weights are worth more than figures.
        log.warning(
            "the metrics %s are functions, which a file cannot hold: call compile after loading, to have them",
            ", ".join(foreign),
        )
    return [*model.metrics, *sorted(names)]


def _describe_training(
    optimizer: Optimizer, loss: Loss, metrics: Iterable[str], num_parameters: int
) -> tuple[Description, Tensors]:
    name = type(optimizer).__name__
    if CLASSES.get(name) is not type(optimizer):
        raise TypeError(f"an optimizer of class {name} cannot be saved; known: {', '.join(CLASSES)}")
    saved = optimizer.state_dict()
    group, states = saved["param_groups"][0], saved["state"]
    arrays = {i: {key: value for key, value in entry.items() if key != "step"} for i, entry in states.items()}
    compiled = {
        "loss": loss.spec.name,
        "loss_params": dict(loss.spec.params),
        "metrics": list(metrics),
        "optimizer": name,
        "group": {**group, "lr": _rate(optimizer, group["lr"])},
        # frozen parameters have none
        "states": [
            {"step": states[i]["step"], "tensors": list(arrays[i])} if i in states else {"step": 0, "tensors": []}
            for i in range(num_parameters)
        ],
    }
    return compiled, {f"optimizer.{i}.{key}": value for i, entry in arrays.items() for key, value in entry.items()}


def _rate(optimizer: Optimizer, lr: Any) -> Any:
    """The learning rate as JSON holds it."""
    if not callable(lr) or type(lr) in schedules.SCHEDULES.values():
        return schedules.to_config(lr)
    # Not refused: who trained for hours with such a schedule wants the weights.
    log.warning(
        "the learning rate is %r, a schedule that a file cannot hold: what is saved is its present value, %g. "
        "Set model.optimizer.lr after loading, to go on with the schedule",
        lr, optimizer.lr,
    )  # fmt: skip
    return {"foreign": repr(lr), "value": optimizer.lr}


def _loaded_rate(saved: Any) -> Any:
    if isinstance(saved, dict) and "foreign" in saved:
        value = check_number("its learning rate", saved["value"], 0.0)
        log.warning(
            "the learning rate was %s, a schedule that a file cannot hold: now it stays at %g. "
            "Set model.optimizer.lr to go on with the schedule",
            saved["foreign"], value,
        )  # fmt: skip
        return value
    return schedules.from_config(saved)


def _names(layers: Iterable[Layer]) -> list[str]:
    """The tensors' names, in the order of the model's parameters."""
    dense = [(i, layer) for i, layer in enumerate(layers) if isinstance(layer, Dense)]
    return [f"layers.{i}.{which}" for i, layer in dense for which in ("kernel", "bias")[: 1 + layer.use_bias]]


def build_model(make: Callable[..., Model], description: Description, tensors: Tensors, backend: str | None) -> Model:
    """Make the model that is described, not compiled, with its weights, which are taken out of `tensors`.

    `make` is its class; `backend` replaces the described one.
    """
    layers = [_layer(config, i, tensors) for i, config in enumerate(description["layers"])]
    model = make(
        layers, description["seed"], backend or description["backend"], description["dtype"],
        compute_dtype=description.get("compute_dtype"),
    )  # fmt: skip
    inputs = check_count("inputs", description["inputs"])
    shapes: list[tuple[int, ...]] = []
    for spec in model.specs(inputs):
        if isinstance(spec, DenseSpec):
            shapes += [(spec.inputs, spec.outputs), (spec.outputs,)][: 1 + spec.bias]
    parameters = []
    for name, shape in zip(_names(layers), shapes, strict=True):
        tensor = tensors.pop(name)
        if tensor.shape != shape or tensor.dtype != model.dtype:
            raise ValueError(
                f"{name} must be {model.dtype} of shape {shape}; got {tensor.dtype} of shape {tensor.shape}"
            )
        parameters.append(tensor)
    _data_memory.restore(model, inputs, description, tensors)
    check_left_over(name for name in tensors if not name.startswith(("optimizer.", "averages.")))
    model._adopt(inputs, parameters)
    model.epochs_done = check_count("epochs_done", description["epochs_done"], least=0)
    return model


def check_left_over(names: Iterable[str]) -> None:
    """Raise ValueError where a file has more tensors than its description."""
    left = sorted(names)
    if left:
        raise ValueError(f"it has tensors that belong to nothing: {', '.join(left[:5])}")


def _layer(config: dict[str, Any], index: int, tensors: Tensors) -> Layer:
    """Make the layer that is described; an initializer that was an array is now the array of the saved weights."""
    fields = dict(config)
    cls = LAYERS[check_name("kind of layer", fields.pop("kind"), LAYERS)]
    for which in ("kernel", "bias"):
        if cls is Dense and fields[f"{which}_initializer"] is None:
            fields[f"{which}_initializer"] = tensors[f"layers.{index}.{which}"]
    return cls(**fields)


def build_training(
    saved: Description, tensors: Tensors, num_parameters: int
) -> tuple[Optimizer, Loss, list[str], dict[str, Any]]:
    """Make the optimizer, the loss and the metrics that are described, with a state_dict for the bound optimizer."""
    loss = LOSS_CLASSES[check_name("loss", saved["loss"], LOSS_CLASSES)](**saved["loss_params"])
    group = dict(saved["group"])
    group["lr"] = _loaded_rate(group["lr"])
    make = CLASSES[check_name("optimizer", saved["optimizer"], CLASSES)]
    optimizer = make(lr=group["lr"], convention=group.get("convention", "torch"))
    states = saved["states"]
    if len(states) != num_parameters:
        raise ValueError(
            f"it has the optimizer's states of {len(states)} parameters, but {num_parameters} parameters"
        )
    state: dict[int, dict[str, Any]] = {}
    for i, entry in enumerate(states):
        state[i] = {"step": check_count("step", entry["step"], least=0)}
        state[i] |= {name: tensors.pop(f"optimizer.{i}.{name}") for name in entry["tensors"]}
    group["params"] = list(range(num_parameters))
    return optimizer, loss, saved["metrics"], {"state": state, "param_groups": [group]}


def build_ema(saved: Description) -> EMA | None:
    """Make the average over steps that is described."""
    settings = {name: value for name, value in saved.get("ema", {}).items() if name != "steps"}
    return EMA(**settings) if settings else None


def restore_averages(model: DataMemory, saved: Description, tensors: Tensors) -> None:
    """Give a compiled model the averages of a file, and remove them from `tensors`; ValueError for damaged ones."""
    if model._averages is not None:
        arrays = [tensors.pop(f"averages.{name}") for name in _names(model.layers)]
        model._averages.restore(saved["ema"]["steps"], arrays)


def take_weights(model: DataMemory, saved: DataMemory, source: str) -> None:
    """Give a model the weights of a saved one, with their meaning; ValueError, with the differences, if they clash.

    source: where the saved model is from, for the message.
    """
    assert saved.inputs is not None
    inputs = saved.inputs if model.inputs is None else model.inputs
    different = _layer_differences(saved.specs(saved.inputs), model.specs(inputs))
    different += _data_memory.differences(saved.preprocessing, model.preprocessing)
    if different:
        raise ValueError(f"{source} has another architecture than the model: {'; '.join(different)}")
    model.build(inputs)
    model.set_weights(saved.parameters)
    _data_memory.take_over(model, saved)


def _layer_differences(saved: list[LayerSpec], ours: list[LayerSpec]) -> list[str]:
    """Differences of the dense layers; dropout has no weights and does not count."""
    pairs = zip_longest(*([spec for spec in some if isinstance(spec, DenseSpec)] for some in (saved, ours)))
    return [
        f"dense layer {i}: the file has {_words(theirs)}, the model {_words(own)}"
        for i, (theirs, own) in enumerate(pairs, 1)
        if theirs != own
    ]


def _words(spec: DenseSpec | None) -> str:
    if spec is None:
        return "none"
    return f"{spec.inputs} -> {spec.outputs} {spec.activation}" + " without bias" * (not spec.bias)
