"""Description of a model in a file: plain values and tensors from a model, and a model from them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from itertools import zip_longest
from typing import Any, TypeVar

from .. import schedules
from .._definitions import not_defined
from .._metrics import FUNCTIONS
from .._validation import check_count, check_name, check_number
from ..averaging import EMA
from ..kernels.formulas import defined
from ..kernels.spec import DenseSpec, DropoutSpec, GaussianNoiseSpec, LayerSpec, parameter_shapes
from ..layers import LATER, LAYERS, NEW_KINDS, Activation, Dense, Layer, Trained, to_config
from ..losses import LOSS_CLASSES, Loss
from ..optim import OPTIMIZER_CLASSES, Optimizer, get_optimizer
from . import _data_memory
from ._data_memory import DataMemory
from ._masks import from_tensors, take_masks
from .checkpoint import CODED, LAYERED, PRUNED, QUANTIZED, Description, Tensors

log = logging.getLogger("fastopt")

Model = TypeVar("Model", bound=DataMemory)
RANDOM = DropoutSpec | GaussianNoiseSpec


def _classes() -> dict[str, Any]:
    """The optimizers that a file may have, by their names."""
    return {cls.__name__: cls for cls in (type(get_optimizer(name)) for name in list(OPTIMIZER_CLASSES))}


def describe(
    model: DataMemory, warns: bool = True, weights_only: bool = False
) -> tuple[Description, Tensors]:
    """Return what a file keeps of a model, which must be built.

    warns: log what a file cannot keep. weights_only: nothing of `compile`.

    Raises ValueError for a model without weights, TypeError for an optimizer class that `load_model` would not know.
    """
    if model.inputs is None:
        raise ValueError("the model has no weights yet: call build, or fit, before save")
    names = _names(model.layers)
    tensors = dict(zip(names, model.parameters, strict=True)) | _data_memory.to_tensors(model)
    if model._masks is not None:
        tensors |= model._masks.to_tensors(names)
    compiled = None
    if model.optimizer is not None and model.loss is not None and not weights_only:
        metrics = metrics_of(model, warns)
        compiled, states = _describe_training(model.optimizer, model.loss, metrics, len(model.parameters), warns)
        tensors |= states
        if not model.decay_biases:
            compiled["decay_biases"] = False
        if model._quantize is not None:
            compiled["quantize"] = model._quantize
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
    if formulas := defined_in(model):
        description["formulas"] = formulas
    return description, tensors


def defined_in(model: DataMemory) -> list[dict[str, str]]:
    """The user's formulas that a model has."""
    keys = [("activation", layer.activation_key()) for layer in model.layers if isinstance(layer, Dense | Activation)]
    if model.optimizer is not None and model.loss is not None:
        keys += [("loss", model.loss._key or model.loss.name), ("optimizer", model.optimizer.rule)]
    used = {key: kind for kind, key in keys if defined.name_of(key) != key}
    return [{"kind": kind, "name": defined.name_of(key), "key": key} for key, kind in used.items()]


def check_defined(description: Description) -> None:
    """ValueError for a file with a user's formula that this process does not have; a warning if it has another."""
    for formula in description.get("formulas", ()):
        kind, name = check_name("kind of formula", formula["kind"], defined.KINDS), formula["name"]
        present = defined.present(kind, name)
        if present is None:
            raise ValueError(not_defined(kind, name))
        if present != formula["key"]:
            log.warning("the %s %r is defined here by another formula than the file's: the model has ours", kind, name)


def _format(model: DataMemory, remembers: bool, layers: Sequence[Description], compiled: Description) -> int:
    """The oldest format that can say all of a model, of which these are parts of the description."""
    if "quantize" in compiled:
        return QUANTIZED
    if compiled.get("group", {}).get("state_bits") == 8:
        return CODED
    if model._masks is not None:
        return PRUNED
    is_new = any(layer["kind"] in NEW_KINDS or set(LATER).intersection(layer) for layer in layers)
    if is_new or {"ema", "decay_biases"}.intersection(compiled):
        return LAYERED
    return 2 if remembers or model.preprocessing or model.target_scale else 1


def metrics_of(model: DataMemory, warns: bool) -> list[str]:
    """Names of the metrics that a file can hold."""
    names = {name for name, function in model.metric_functions.items() if FUNCTIONS.get(name) is function}
    foreign = [name for name in model.metric_functions if name not in names]
    if foreign and warns:
        # Not refused: weights are worth more than figures.
        log.warning(
            "the metrics %s are functions, which a file cannot hold: call compile after loading, to have them",
            ", ".join(foreign),
        )
    return [*model.metrics, *sorted(names)]


def check_class(optimizer: Optimizer) -> str:
    """The name of an optimizer's class; TypeError if files cannot hold it."""
    name, classes = type(optimizer).__name__, _classes()
    if classes.get(name) is not type(optimizer):
        raise TypeError(f"an optimizer of class {name} cannot be saved; known: {', '.join(classes)}")
    return name


def _describe_training(
    optimizer: Optimizer, loss: Loss, metrics: Iterable[str], num_parameters: int, warns: bool
) -> tuple[Description, Tensors]:
    name = check_class(optimizer)
    saved = optimizer.state_dict()
    group, states = saved["param_groups"][0], saved["state"]
    arrays = {i: {key: value for key, value in entry.items() if key != "step"} for i, entry in states.items()}
    compiled = {
        "loss": loss.name,
        "loss_params": dict(loss.spec.params),
        "metrics": list(metrics),
        "optimizer": name,
        "group": {**group, "lr": _rate(optimizer, group["lr"], warns)},
        # frozen parameters have none
        "states": [
            {"step": states[i]["step"], "tensors": list(arrays[i])} if i in states else {"step": 0, "tensors": []}
            for i in range(num_parameters)
        ],
    }
    return compiled, {f"optimizer.{i}.{key}": value for i, entry in arrays.items() for key, value in entry.items()}


def _rate(optimizer: Optimizer, lr: Any, warns: bool) -> Any:
    """The learning rate as JSON holds it."""
    if not callable(lr) or type(lr) in schedules.SCHEDULES.values():
        return schedules.to_config(lr)
    # Not refused: who trained for hours with such a schedule wants the weights.
    if warns:
        log.warning(
            "the learning rate is %r, a schedule that a file cannot hold: what is saved is its present value, %g. "
            "Set model.optimizer.lr after loading, to go on with the schedule",
            lr, optimizer.lr,
        )  # fmt: skip
    return {"foreign": repr(lr), "value": optimizer.lr}


def foreign_rate(description: Description) -> str:
    """The schedule of a file's learning rate that it cannot hold, in words; "" if it holds the rate."""
    lr = description["compile"]["group"]["lr"]
    return str(lr["foreign"]) if isinstance(lr, dict) and "foreign" in lr else ""


def _loaded_rate(saved: Any, warns: bool) -> Any:
    if isinstance(saved, dict) and "foreign" in saved:
        value = check_number("its learning rate", saved["value"], 0.0)
        if warns:
            log.warning(
                "the learning rate was %s, a schedule that a file cannot hold: now it stays at %g. "
                "Set model.optimizer.lr to go on with the schedule",
                saved["foreign"], value,
            )  # fmt: skip
        return value
    return schedules.from_config(saved)


def _names(layers: Iterable[Layer]) -> list[str]:
    """The tensors' names, in the order of the model's parameters."""
    trained = [(i, layer) for i, layer in enumerate(layers) if isinstance(layer, Trained)]
    return [f"layers.{i}.{which}" for i, layer in trained for which in layer.arrays]


def build_whole(
    make: Callable[..., Model], description: Description, tensors: Tensors, backend: str | None, warns: bool = True
) -> Model:
    """Make the model that is described, with its optimizer and states: all of `tensors`, which are taken out."""
    check_defined(description)
    model = build_model(make, description, tensors, backend)
    if description["compile"] is not None:
        optimizer, loss, metrics, state = build_training(
            description["compile"], tensors, len(model.parameters), warns
        )
        compiled = description["compile"]
        settings = build_ema(compiled), compiled.get("decay_biases", True), compiled.get("quantize")
        model.compile(optimizer, loss, metrics, *settings)  # type: ignore[attr-defined]
        optimizer.load_state_dict(state)
        restore_averages(model, description["compile"], tensors)
        _data_memory.know_old_labels(model)
    check_left_over(tensors)
    return model


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
    shapes = [shape for spec in model.specs(inputs) for shape in parameter_shapes(spec).values()]
    parameters = []
    for name, shape in zip(_names(layers), shapes, strict=True):
        tensor = tensors.pop(name)
        if tensor.shape != shape or tensor.dtype != model.dtype:
            raise ValueError(
                f"{name} must be {model.dtype} of shape {shape}; got {tensor.dtype} of shape {tensor.shape}"
            )
        parameters.append(tensor)
    masks = from_tensors(tensors, _names(layers), parameters)
    _data_memory.restore(model, inputs, description, tensors)
    check_left_over(name for name in tensors if not name.startswith(("optimizer.", "averages.")))
    model._adopt(inputs, parameters)
    model._masks = masks
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
    for field, value in fields.items():
        if field.endswith("_initializer") and value is None:
            fields[field] = tensors[f"layers.{index}.{field.removesuffix('_initializer')}"]
    return cls(**fields)


def build_training(
    saved: Description, tensors: Tensors, num_parameters: int, warns: bool = True
) -> tuple[Optimizer, Loss, list[str], dict[str, Any]]:
    """Make the optimizer, the loss and the metrics that are described, with a state_dict for the bound optimizer."""
    loss = LOSS_CLASSES[check_name("loss", saved["loss"], LOSS_CLASSES)](**saved["loss_params"])
    group = dict(saved["group"])
    group["lr"] = _loaded_rate(group["lr"], warns)
    classes = _classes()
    make = classes[check_name("optimizer", saved["optimizer"], classes)]
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
    take_masks(model, saved._masks)
    model.set_weights(saved.parameters)
    _data_memory.take_over(model, saved)


def _layer_differences(saved: list[LayerSpec], ours: list[LayerSpec]) -> list[str]:
    """Differences of the layers; dropout and noise, which do nothing in a trained model, do not count."""
    pairs = zip_longest(*([spec for spec in some if not isinstance(spec, RANDOM)] for some in (saved, ours)))
    kind = "dense layer" if all(isinstance(spec, DenseSpec | RANDOM) for spec in (*saved, *ours)) else "layer"
    return [
        f"{kind} {i}: the file has {_words(theirs)}, the model {_words(own)}"
        for i, (theirs, own) in enumerate(pairs, 1)
        if theirs != own
    ]


def _words(spec: LayerSpec | None) -> str:
    if spec is None:
        return "none"
    if isinstance(spec, DenseSpec):
        return f"{spec.inputs} -> {spec.outputs} {spec.activation}" + " without bias" * (not spec.bias)
    assert not isinstance(spec, RANDOM)
    fields = ", ".join(f"{name}={value!r}" for name, value in spec._asdict().items() if name != "columns")
    return f"{type(spec).__name__.removesuffix('Spec')}({fields}) of {spec.columns} columns"
