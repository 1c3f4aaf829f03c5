"""Checkpoints of a training: files from which another process goes on with it, to the bit.

A checkpoint is a model file (see `checkpoint`) with the entry "training" in its description and tensors "training.<i>":
the call of `fit` as far as it determines the steps, the position in it, the history, and the states of callbacks.
Everything drawn at random is a function of the model's seed and of the counts of steps and epochs.
"""

from __future__ import annotations

import logging
import os
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any, NamedTuple

import numpy as np

from .. import _files
from .._validation import check_count, check_flag, check_number, describe
from ..callbacks import Callback
from ..layers import to_config
from . import _description, _gradual, _trainable, checkpoint
from ._data_memory import DataMemory
from ._masks import take_masks
from ._parts import PartialEpoch
from ._state_values import Tensors, packed, unpacked
from .checkpoint import TRAINING
from .history import History
from .training import FitOptions, Plan, next_batches

log = logging.getLogger("fastopt")

VERSION = 1  # of the entry "training"
PREVIOUS = ".previous"  # end of the name of the checkpoint before the last
# Options of `fit` that another call may change: limits, and what does not reach the weights.
FREE = {
    "epochs", "callbacks", "verbose", "max_steps", "max_seconds", "checkpoint", "checkpoint_every", "resume",
    "validation_data", "validation_freq", "shard_states",
}  # fmt: skip
# Options that older files do not have: those that are as by default are left out.
LATER = {"distributed", "reduction", "wire_dtype", "rows"}
SAMPLED_ROWS = 256  # rows of the data, evenly spread, that its fingerprint is taken from


class Saved(NamedTuple):
    """A checkpoint that was read and belongs to the call that goes on with it."""

    path: str
    call: Mapping[str, Any]  # see `call_of`; with the batch size that was chosen for "auto"
    model: Any  # with weights and optimizer as they were, of the same structure
    keeps_lr: bool  # the learning rate is a schedule that the file cannot hold: that of the call goes on
    epoch: int  # number of the epoch to go on with
    first_step: int  # steps that the optimizer had done when the training began
    seconds: float  # that the training has taken
    stopped: bool  # by a callback
    partial: Mapping[str, Any] | None  # state of the epoch that was within; None: between two epochs
    heard: Sequence[tuple[float, float]]  # totals of losses and rows of callbacks that are called within the epoch
    history: Mapping[str, Any]
    callbacks: Sequence[tuple[str, Mapping[str, Any]]]  # class and state of those that have one
    items: Sequence[int] = ()  # of an iterable, trained on in each epoch, that which was within among them


# ---------------------------------------------------------------- the call that a checkpoint belongs to


def call_of(model: Any, options: FitOptions, data: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Everything that must be the same when a training goes on, in plain values.

    data: arrays, and what was learnt from them, by name; names: of the figures of an epoch.
    """
    layers = [{key: value for key, value in to_config(layer).items() if key != "name"} for layer in model.layers]
    for config in layers:
        for key in list(config):
            if key.endswith("_initializer"):
                del config[key]
    call: dict[str, Any] = {
        "layers": _told(layers), "seed": model.seed, "dtype": model.dtype.name,
        "compute_dtype": model.compute_dtype, "loss": _told([model.loss.spec.name, dict(model.loss.spec.params)]),
        "optimizer": f"{type(model.optimizer).__name__} (convention {model.optimizer.convention})",
        "ema": repr(model.ema), "decay_biases": model.decay_biases, "figures": list(names),
    }  # fmt: skip
    if model._quantize is not None:  # older checkpoints say nothing of it
        call["quantize"] = model._quantize
    for field in fields(options):
        value = getattr(options, field.name)
        if field.name not in FREE and not (field.name in LATER and value == field.default):
            call[field.name] = _told(value)
    return call | {name: _told(value) for name, value in data.items()}


def _told(value: Any) -> Any:
    """A value as JSON holds it, so that equal ones are equal there."""
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {str(key): _told(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_told(part) for part in value]
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return fingerprint(value)
    if hasattr(value, "__array__"):
        return fingerprint(np.asarray(value))
    if hasattr(value, "__qualname__"):  # a function or a class
        return value.__qualname__
    has_words = getattr(type(value), "__repr__", None) is not getattr(object, "__repr__", None)
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value)) if has_words else type(value).__name__  # addresses change


def fingerprint(array: Any) -> str:
    """Shape and dtype of an array, with a sum over some of its rows: other data are told from these.

    >>> fingerprint(np.zeros((3, 2), np.float32))
    'float32 of shape (3, 2), a3c1ca20'
    """
    count = array.shape[0] if array.ndim else 0
    sample = array[np.unique(np.linspace(0, count - 1, SAMPLED_ROWS).astype(np.int64))] if count else array
    if hasattr(sample, "toarray"):
        sample = sample.toarray()
    return f"{array.dtype} of shape {tuple(array.shape)}, {zlib.crc32(np.ascontiguousarray(sample).tobytes()):08x}"


def _differences(saved: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    names = [*ours, *(name for name in saved if name not in ours)]
    return [
        f"{name} was {saved.get(name)} and is {ours.get(name)}" for name in names if saved.get(name) != ours.get(name)
    ]


# ---------------------------------------------------------------- callbacks


def stateful(callbacks: Iterable[Callback]) -> list[Callback]:
    """The callbacks whose class defines `state_dict`."""
    return [callback for callback in callbacks if type(callback).state_dict is not Callback.state_dict]


def states_of(callbacks: Iterable[Callback], tensors: Tensors) -> list[list[Any]]:
    """Class and state of each callback that has one, as JSON holds them; TypeError for what a file cannot hold."""
    found = []
    for callback in stateful(callbacks):
        name, state = type(callback).__name__, callback.state_dict()
        if not isinstance(state, Mapping):
            raise TypeError(f"{name}.state_dict must return a mapping; got {describe(state)}")
        try:
            found.append([name, packed(state, tensors, TRAINING)])
        except TypeError as error:
            raise TypeError(f"{name}.state_dict cannot be kept in a checkpoint: {error}") from None
    return found


# ---------------------------------------------------------------- files


def target(options: FitOptions) -> str:
    """Path of the file that checkpoints are written to, whatever the folder of the process becomes."""
    return os.path.abspath(_files.path_of("checkpoint", options.checkpoint))


def source(options: FitOptions) -> str | None:
    """Path of the checkpoint to go on from, as `find`; None to begin."""
    if options.resume_path is None:
        return None
    path = os.path.abspath(_files.path_of("resume", options.resume_path))
    return find(path, options.checkpoint is not None and path == target(options))


def write(path: str, model: DataMemory, state: Mapping[str, Any], callbacks: Iterable[Callback], keeps: bool) -> None:
    """Write a checkpoint; keeps: the one before it goes by the name with PREVIOUS at its end from then on."""
    description, tensors = _description.describe(model, warns=False)
    ours: Tensors = {}
    entry = {"version": VERSION, **packed(state, ours, TRAINING), "callbacks": states_of(callbacks, ours)}
    description |= {"format": max(checkpoint.LAYERED, description["format"]), TRAINING: entry}
    checkpoint.write(path, description, tensors | ours, path + PREVIOUS if keeps else None)


def is_whole(path: str) -> bool:
    """True if a file can be read as one of fastopt's."""
    try:
        with checkpoint.opened(path):
            return True
    except (OSError, ValueError):
        return False


def find(path: str, is_target: bool) -> str | None:
    """Path of the checkpoint to go on from; None to begin a new training, as there is none yet.

    is_target: true if the training writes its checkpoints there, too: a job that is started again and again has none
    at first. Otherwise FileNotFoundError.
    """
    if os.path.exists(path):
        return path
    if os.path.exists(path + PREVIOUS):  # killed while the last one was written, without hard links
        log.warning("resuming from %s, for there is no %s", path + PREVIOUS, path)
        return path + PREVIOUS
    if not is_target:
        raise FileNotFoundError(f"resume: there is no checkpoint {path}")
    log.info("there is no checkpoint %s yet: the training begins", path)
    return None


def plan(model: Any, make: Any, begun: Plan, call: dict[str, Any]) -> Plan:
    """Check the paths of checkpoints, and read the one to go on from, if there is one; nothing is changed.

    make: the model's class; begun: the plan without a checkpoint; call: see `call_of`.
    """
    options = begun.options
    _description.check_class(model.optimizer)
    if options.checkpoint is not None:
        _files.check_writable("checkpoint", target(options))
    path = source(options)
    if path is None:
        return begun._replace(call=call)
    saved = read(path, make, model, begun, call)
    begun = begun._replace(options=_gradual.going_on(options, saved.call))
    return _with_size(begun, saved.call)._replace(call=dict(saved.call), saved=[saved])


def _with_size(begun: Plan, call: Mapping[str, Any]) -> Plan:
    """The plan with the batch size that the checkpoint's training had chosen, if it was to choose one."""
    if begun.options.batch_size != "auto":
        return begun
    size = call["batch_size"]
    return begun._replace(batch_size=size, batch_size_reason=f"{size} rows: the choice when the training began")


def read(path: str, make: Any, model: Any, begun: Plan, call: Mapping[str, Any]) -> Saved:
    """Read a checkpoint, and check that it is of this call; ValueError, with the reason, for any other file.

    Nothing is changed. The message names the checkpoint before it, if there is one.
    """
    try:
        with checkpoint.opened(path, training=True) as (description, tensors):
            saved = _parsed(path, make, model, begun.options, call, description, tensors)
            if saved.partial is not None:  # ValueError for one that does not fit the data
                _epoch_of(saved.model, _with_size(begun, saved.call)).restore(saved.partial)
            return saved
    except ValueError as error:
        before = path.removesuffix(PREVIOUS) + PREVIOUS
        hint = f"; the checkpoint before it is {before}" if before != path and os.path.exists(before) else ""
        raise ValueError(f"{error}{hint}") from None


def _epoch_of(model: Any, plan: Plan) -> PartialEpoch:
    """The model's next epoch by a plan."""
    if plan.source is None:
        return PartialEpoch(next_batches(model, plan))
    epoch: PartialEpoch = plan.source.epoch(model, plan, 1)
    return epoch


def _parsed(
    path: str, make: Any, model: Any, options: FitOptions, call: Mapping[str, Any], description: Any, tensors: Tensors
) -> Saved:
    entry = description.get(TRAINING)
    if not isinstance(entry, dict):
        raise ValueError("it has no training to go on with: it is a model file, not a checkpoint of fit")
    if check_count("the version of its training", entry["version"], least=0) != VERSION:
        raise ValueError(
            f"its training has version {entry['version']}, and this version of fastopt goes on with {VERSION}"
        )
    ours = {name: tensors.pop(name) for name in list(tensors) if name.startswith(f"{TRAINING}.")}
    entry = unpacked(entry, ours)
    if options.batch_size == "auto":
        call = {**call, "batch_size": check_count("batch_size", entry["call"]["batch_size"])}
    if options.pruning is not None:
        call = {**call, "pruning": _told(_gradual.going_on(options, entry["call"]).pruning)}
    if different := _differences(entry["call"], call):
        raise ValueError(f"it is of another training: {'; '.join(different)}")
    partial, position = entry["partial"], entry["position"]
    if partial is not None and position["backend"] != model.backend:
        raise ValueError(
            f"it is within an epoch on the backend {position['backend']!r}, and sums of metrics differ by backend;"
            f" got {model.backend!r}"
        )
    names = [type(callback).__name__ for callback in stateful(options.callbacks)]
    if [name for name, _ in entry["callbacks"]] != names:
        theirs = ", ".join(name for name, _ in entry["callbacks"]) or "none"
        raise ValueError(f"the callbacks with a state must be {theirs}; got {', '.join(names) or 'none'}")
    _check_history(entry["history"])
    foreign = _description.foreign_rate(description)
    if foreign and not callable(model.optimizer.param_groups[0]["lr"]):
        raise ValueError(f"the learning rate must be the schedule {foreign} again, which it cannot hold")
    whole = {**description, "compute_dtype": None}
    return Saved(
        path=path,
        call=call,
        model=_description.build_whole(make, whole, tensors, model.backend, warns=False),
        keeps_lr=bool(foreign),
        epoch=check_count("epoch", position["epoch"]),
        first_step=check_count("first_step", position["first_step"], least=0),
        seconds=check_number("seconds", position["seconds"], 0.0),
        stopped=check_flag("stopped", position["stopped"]),
        partial=partial,
        heard=[(float(total), float(rows)) for total, rows in entry["heard"]],
        history=entry["history"],
        callbacks=entry["callbacks"],
        items=_items_of(entry, int(options.initial_epoch)) if "items" in call else (),
    )


def _items_of(entry: Mapping[str, Any], initial_epoch: int) -> Sequence[int]:
    """Numbers of items of the epochs of a training on an iterable; ValueError unless there is one for each."""
    items = entry["items"]
    epochs = entry["position"]["epoch"] - 1 - initial_epoch + (entry["partial"] is not None)
    if items.shape != (epochs,) or items.dtype != np.int64 or (items < 1).any():
        raise ValueError(f"it must have counts of the items of {epochs} epochs")
    counts: Sequence[int] = items.tolist()
    return counts


def _check_history(saved: Mapping[str, Any]) -> None:
    columns = [saved["epochs"], *saved["figures"].values()]
    if any(column.shape != (len(saved["epochs"]),) for column in columns) or saved["losses"].ndim != 1:
        raise ValueError("the columns of its history must be of one length")


# ---------------------------------------------------------------- going on


def take_model(model: Any, saved: Saved) -> None:
    """Give a model the weights, the optimizer's states and the counts of a checkpoint.

    Layers are frozen as they were, for callbacks may freeze and thaw them.
    """
    theirs, ours = saved.model.optimizer, model.optimizer
    for trainable in (True, False):
        names = _trainable.named(saved.model.layers, model.names, trainable)
        model._set_trainable("fit", names, trainable)
    lr = ours.param_groups[0]["lr"]
    take_masks(model, saved.model._masks)
    model.set_weights(saved.model.parameters, saved.model.averages)
    if model._averages is not None:
        model._averages.steps = saved.model._averages.steps
    # a state_dict of whole states says nothing of bits, for those of torch go into any group
    ours.param_groups[0]["state_bits"] = theirs.param_groups[0]["state_bits"]
    ours.load_state_dict(theirs.state_dict())
    if saved.keeps_lr:
        ours.lr = lr
    model.epochs_done = saved.model.epochs_done


def history_state(history: History) -> dict[str, Any]:
    """The figures of a training so far, as arrays."""
    return {
        "epochs": np.array(history.epochs, np.int64),
        "figures": {name: np.array(values, np.float64) for name, values in history.history.items()},
        "losses": history.step_losses,
    }


def fill_history(history: History, saved: Mapping[str, Any]) -> None:
    """Give an empty history the figures of a checkpoint."""
    history.epochs = saved["epochs"].tolist()
    history.history = {name: values.tolist() for name, values in saved["figures"].items()}
    history._losses = [saved["losses"]]
