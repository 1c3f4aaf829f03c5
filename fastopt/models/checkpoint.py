"""Model files: safetensors, never pickle. The weights and the optimizer's states are tensors, the rest is JSON.

Tensors: "layers.<i>.kernel", "layers.<i>.bias", "optimizer.<parameter>.<state>"; since format 2 also what the model
remembers of its data (see `_memory`): "layers.<i>.mean", "layers.<i>.variance", "targets.mean", "targets.deviation".
Metadata: one entry, "fastopt", the JSON text of what `_describe` returns. `fastopt._files` writes a file, whole or not
at all.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterable, Iterator
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _files, schedules
from .._files import Path, Readable, Writable
from .._validation import check_count, check_name, check_number, own
from ..kernels.spec import DenseSpec, LayerSpec
from ..layers import LAYERS, Dense, Layer, to_config
from ..losses import LOSS_CLASSES
from ..optim import OPTIMIZER_CLASSES, Optimizer, get_optimizer
from . import _data_memory

if TYPE_CHECKING:
    from .sequential import Sequential

log = logging.getLogger("fastopt")

FORMAT = 2  # written for models that remember something of their data; of others format 1 says all
KEY = "fastopt"
CLASSES: dict[str, Any] = {cls.__name__: cls for cls in (type(get_optimizer(name)) for name in OPTIMIZER_CLASSES)}

# What reading a file that lies about itself may raise, beside the ValueError that becomes of it.
DAMAGE = (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, RecursionError)

Tensors = dict[str, np.ndarray]


def save(model: Sequential, path: Path | Writable) -> None:
    """Write `model`, which must be built, to `path`, or to a binary file object; see `Sequential.save`.

    A learning rate that is one of `fastopt.schedules` goes with it. Any other schedule is code, which a model file does
    not hold: its present value is saved, and a warning logged, now and when the file is loaded.

    Raises ValueError for a model without weights, TypeError for an optimizer class that `load_model` would not know,
    OSError where the file cannot be written.
    """
    if model.inputs is None:
        raise ValueError("the model has no weights yet: call build, or fit, before save")
    tensors = dict(zip(_names(model.layers), model.parameters, strict=True)) | _data_memory.to_tensors(model)
    description = _describe(model)
    if model.optimizer is not None:
        state = model.optimizer.state_dict()["state"]
        for i, entry in state.items():
            tensors |= {f"optimizer.{i}.{name}": value for name, value in entry.items() if name != "step"}
    from safetensors.numpy import save as to_bytes

    _files.write(path, to_bytes(tensors, {KEY: json.dumps(description, allow_nan=False)}))


def load_model(path: Path | Readable, backend: str | None = None) -> Sequential:
    """Return the model in a file that `Sequential.save` wrote, ready to predict or to go on training.

    `path` is a str, bytes or os.PathLike, or a file object open for reading in binary mode, which is read from where it
    stands to its end; a pipe or a socket's file will do.

    Weights, optimizer with its states and steps, seed and `epochs_done` are those of the saved model, so that further
    training gives the same bits as training without the interruption. `backend` replaces the saved one; where it does
    not compute in the model's `compute_dtype`, a warning is logged, and the model computes in its dtype.

    Raises ValueError for a file that is foreign, damaged or cut short, and for one of a newer format; OSError where it
    cannot be read. Nothing in a file is executed, and no more memory is used than twice what the file is large.

    >>> import os, tempfile
    >>> from fastopt import Dense, Sequential
    >>> model = Sequential([Dense(2)], inputs=3)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "model.safetensors")
    ...     model.save(path)
    ...     again = load_model(path)
    >>> bool((again.parameters[0] == model.parameters[0]).all())
    True
    """
    from .. import _backends

    if backend is not None:
        _backends.known(backend)
    content = _files.read(path)
    with _damage(path):
        description, tensors = _read(content)
        compute: Any = description.get("compute_dtype")
        if backend is not None and backend not in _backends.COMPUTE.get(compute, _backends.MODULES):
            log.warning("the backend %r does not compute in %s: the model now computes in its dtype", backend, compute)
            description["compute_dtype"] = None
        model = _model(description, tensors, backend)
        if description["compile"] is not None:
            _compile(model, description["compile"], tensors)
            _data_memory.know_old_labels(model)
        _check_left_over(tensors)
    return model


def load_weights(model: Sequential, path: Path | Readable) -> None:
    """Copy the weights in `path` into `model`, building it if need be; see `Sequential.load_weights`."""
    content = _files.read(path)
    with _damage(path):
        description, tensors = _read(content)
        saved = _model({**description, "compute_dtype": None}, tensors, model.backend)
    assert saved.inputs is not None
    inputs = saved.inputs if model.inputs is None else model.inputs
    different = _differences(saved.specs(saved.inputs), model.specs(inputs))
    different += _data_memory.differences(saved.preprocessing, model.preprocessing)
    if different:
        raise ValueError(f"{_files.shown(path)} has another architecture than the model: {'; '.join(different)}")
    model.build(inputs)
    model.set_weights(saved.parameters)
    _data_memory.take_over(model, saved)


def _describe(model: Sequential) -> dict[str, Any]:
    compiled = None
    if model.optimizer is not None and model.loss is not None:
        name = type(model.optimizer).__name__
        if CLASSES.get(name) is not type(model.optimizer):
            raise TypeError(f"an optimizer of class {name} cannot be saved; known: {', '.join(CLASSES)}")
        saved = model.optimizer.state_dict()
        group = saved["param_groups"][0]
        compiled = {
            "loss": model.loss.spec.name,
            "loss_params": dict(model.loss.spec.params),
            "metrics": list(model.metrics),
            "optimizer": name,
            "group": {**group, "lr": _rate(model.optimizer, group["lr"])},
            "states": [
                {"step": entry["step"], "tensors": [name for name in entry if name != "step"]}
                for entry in saved["state"].values()
            ],
        }
    remembered = _data_memory.to_config(model)
    return {
        "format": FORMAT if remembered or model.preprocessing or model.target_scale else 1,
        **remembered,
        "layers": [to_config(layer) for layer in model.layers],
        "inputs": model.inputs,
        "seed": model.seed,
        "dtype": model.dtype.name,
        "compute_dtype": model.compute_dtype,
        "backend": model.backend,
        "epochs_done": model.epochs_done,
        "compile": compiled,
    }


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


@contextlib.contextmanager
def _damage(path: Path | Readable) -> Iterator[None]:
    """Turn whatever reading a bad file raises into a ValueError that names the file and the reason."""
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        raise ValueError(f"{_files.shown(path)} is not a whole safetensors file: {error}") from error
    except DAMAGE as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{_files.shown(path)} is not a usable model file: {reason}") from error


def _read(content: bytes) -> tuple[dict[str, Any], Tensors]:
    """The description and the tensors, which are copies, in memory of their own."""
    from safetensors.numpy import load

    found = load(content)  # checks all of it
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    text = header.get("__metadata__", {}).get(KEY)
    if text is None:
        raise ValueError("it is a safetensors file, but not one that fastopt wrote")
    tensors = {name: own(found[name], found.pop(name).dtype) for name in list(found)}
    description = json.loads(text)
    if not isinstance(description, dict):
        raise ValueError("its description is not a JSON object")
    if check_count("its format", description["format"]) > FORMAT:
        raise ValueError(f"it has format {description['format']}, and this version of fastopt reads up to {FORMAT}")
    return description, tensors


def _model(description: dict[str, Any], tensors: Tensors, backend: str | None) -> Sequential:
    """The model that is described, with its weights, which are taken out of `tensors`; `backend` replaces its own."""
    from .sequential import Sequential

    layers = [_layer(config, i, tensors) for i, config in enumerate(description["layers"])]
    model = Sequential(
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
    _check_left_over(name for name in tensors if not name.startswith("optimizer."))
    model._adopt(inputs, parameters)
    model.epochs_done = check_count("epochs_done", description["epochs_done"], least=0)
    return model


def _check_left_over(names: Iterable[str]) -> None:
    left = sorted(names)
    if left:
        raise ValueError(f"it has tensors that belong to nothing: {', '.join(left[:5])}")


def _layer(config: dict[str, Any], index: int, tensors: Tensors) -> Layer:
    """The layer that is described; an initializer that was an array is now the array of the saved weights."""
    fields = dict(config)
    cls = LAYERS[check_name("kind of layer", fields.pop("kind"), LAYERS)]
    for which in ("kernel", "bias"):
        if cls is Dense and fields[f"{which}_initializer"] is None:
            fields[f"{which}_initializer"] = tensors[f"layers.{index}.{which}"]
    return cls(**fields)


def _compile(model: Sequential, saved: dict[str, Any], tensors: Tensors) -> None:
    loss = LOSS_CLASSES[check_name("loss", saved["loss"], LOSS_CLASSES)](**saved["loss_params"])
    group = dict(saved["group"])
    group["lr"] = _loaded_rate(group["lr"])
    make = CLASSES[check_name("optimizer", saved["optimizer"], CLASSES)]
    optimizer = make(lr=group["lr"], convention=group.get("convention", "torch"))
    model.compile(optimizer, loss, saved["metrics"])
    count, states = len(model.parameters), saved["states"]
    if len(states) != count:
        raise ValueError(f"it has the optimizer's states of {len(states)} parameters, but {count} parameters")
    state: dict[int, dict[str, Any]] = {}
    for i, entry in enumerate(states):
        state[i] = {"step": check_count("step", entry["step"], least=0)}
        state[i] |= {name: tensors.pop(f"optimizer.{i}.{name}") for name in entry["tensors"]}
    group["params"] = list(range(count))
    optimizer.load_state_dict({"state": state, "param_groups": [group]})


def _differences(saved: list[LayerSpec], ours: list[LayerSpec]) -> list[str]:
    """What tells the dense layers of two networks apart, in words; dropout has no weights and does not count."""
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
