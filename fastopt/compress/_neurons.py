"""Structured pruning: whole neurons leave a model, which becomes a smaller dense one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .._pruning import Share, check_share
from .._validation import check_name
from ..layers import Dense, Trained
from ..models import _description, _magnitudes
from ..models._masks import PREFIX
from ..models.sequential import Sequential
from ._sparsity import check_model

NORMS = {"l1": 1, "l2": 2}
Cut = tuple[Any, ...]  # indices of the rows and columns of an array that stay


def prune_neurons(
    model: Sequential, share: Share, norm: str = "l2", layers: str | Sequence[str] | None = None
) -> Sequential:
    """Return a smaller model: without the hidden neurons whose incoming weights have the smallest norms.

    share   in [0, 1): the share of the neurons of each layer that leave, rounded down; or a mapping of layers' names to
            shares. One neuron stays at least
    norm    "l2" or "l1", of the weights (inputs,) that lead to a neuron, without its bias
    layers  the name of a hidden dense layer, or a list of names; None: all that are not frozen

    Of equal norms the first neurons leave. With a neuron go its column of the kernel, its bias, its parameters in
    normalization layers behind it, and its row of the next dense layer's kernel. All else comes along: what the model
    knows of its data, masks, averages, loss and metrics, the optimizer with its states and steps. The model that is
    given stays as it is. Train the new one for some epochs more: those that are left have to do the work.

    A LayerNorm behind a neuron goes by fewer outputs from then on.

    Raises TypeError or ValueError for another share or norm, and for layers that have no neurons to lose: the last one,
    whose outputs are the model's. An optimizer must be one that a file can hold, with
    states of 32 bits.

    Li et al. 2017, "Pruning filters for efficient ConvNets".

    >>> import numpy as np, fastopt as fo
    >>> layers = [fo.Dense(3, kernel_initializer=[[1.0, 0.1, -2.0]]), fo.Dense(1, kernel_initializer=np.ones((3, 1)))]
    >>> model = fo.Sequential(layers, inputs=1)
    >>> smaller = fo.compress.prune_neurons(model, 0.5)
    >>> [p.shape for p in smaller.parameters], smaller.predict([[1.0]]).tolist()
    ([(1, 2), (2,), (2, 1), (1,)], [[-1.0]])
    """
    check_model(model)
    share = check_share("share", share)
    check_name("norm", norm, NORMS)
    if isinstance(share, Mapping) and layers is not None:
        raise ValueError("give the names of layers in share or in layers, not in both")
    kernels = _hidden(model, layers, share)
    if model.optimizer is not None and model.optimizer.param_groups[0]["state_bits"] == 8:
        raise ValueError(
            "states of 8 bits lie in blocks, of which no neuron can be taken out: compile the model with state_bits=32"
        )
    with model._use.shared("prune_neurons"):
        stay = {
            name: _staying(model.parameters[i], share[name] if isinstance(share, Mapping) else share, NORMS[norm])
            for name, i in kernels.items()
        }
        description, tensors = _description.describe(model, warns=False)
        made = _description.build_whole(
            type(model), *_cut(model, description, tensors, stay), backend=None, warns=False
        )
    if model.optimizer is not None and made.optimizer is not None:
        made.metric_functions = dict(model.metric_functions)
        made.optimizer.lr = model.optimizer.param_groups[0]["lr"]  # a schedule that a file cannot hold comes along
    return made


def _hidden(model: Sequential, layers: Any, share: Share) -> dict[str, int]:
    """The kernels of the layers that lose neurons."""
    last = model.names[-1]
    if layers is None and not isinstance(share, Mapping):
        pairs = zip(model.layers[:-1], model.names[:-1], strict=True)
        layers = [name for layer, name in pairs if isinstance(layer, Dense) and layer.trainable]
        if not layers:
            raise ValueError("the model has no hidden dense layer that is trained, so none has neurons to lose")
    kernels = _magnitudes.chosen_layers(model, layers, share)
    if last in kernels:
        raise ValueError(f"{last!r} is the last layer, whose outputs are the model's: name hidden layers")
    return kernels


def _staying(kernel: np.ndarray, share: float, order: int) -> np.ndarray:
    """The numbers of the neurons that stay, sorted."""
    norms = np.linalg.norm(kernel.astype(np.float64), order, axis=0)
    leaving = min(math.floor(share * len(norms) + 1e-9), len(norms) - 1)
    return np.sort(np.argsort(norms, kind="stable")[leaving:])


def _cut(
    model: Sequential, description: dict[str, Any], tensors: dict[str, np.ndarray], stay: Mapping[str, np.ndarray]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The description and the tensors of a model's file, with the neurons that stay in each of some layers."""
    cuts, shapes, columns = [], [], slice(None)  # cuts: of all parameters, in their order; columns: that stay
    parameters, names = iter(model.parameters), []
    configs = [dict(config) for config in description["layers"]]
    for i, (layer, name, config) in enumerate(zip(model.layers, model.names, configs, strict=True)):
        if not isinstance(layer, Trained):
            continue
        rows = columns
        if isinstance(layer, Dense):
            columns = stay.get(name, slice(None))  # type: ignore[assignment]
            config["units"] = layer.units if name not in stay else len(stay[name])
        for which in layer.arrays:
            names.append(f"layers.{i}.{which}")
            cuts.append((rows, columns) if which == "kernel" else (columns,))
            shapes.append(next(parameters).shape)
    found = dict(tensors)
    for k, (name, cut, shape) in enumerate(zip(names, cuts, shapes, strict=True)):
        for key in (name, f"averages.{name}", *(key for key in tensors if key.startswith(f"optimizer.{k}."))):
            if key in tensors:
                found[key] = _taken(tensors[key], cut)
        if f"{PREFIX}{name}" in tensors:
            mask = np.unpackbits(tensors[f"{PREFIX}{name}"], count=math.prod(shape)).reshape(shape)
            found[f"{PREFIX}{name}"] = np.packbits(_taken(mask, cut))
    return {**description, "layers": configs}, found


def _taken(array: np.ndarray, cut: Cut) -> np.ndarray:
    """A copy of the rows and columns that stay."""
    for axis, indices in enumerate(cut):
        if not isinstance(indices, slice):
            array = np.take(array, indices, axis)
    return array.copy()
