"""Phases of the layers, forward: dense layers, dropout and noise, and the calls of what has a module of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ... import costs
from ...formulas import ACTIVATIONS, dropout_stream
from ...spec import ActivationSpec, DenseSpec, DropoutSpec, GaussianNoiseSpec, parameter_shapes
from ..dense.layer import activate_kernel, dense_kernel, shape_fields
from ..dense.losses import activate_rows_kernel
from ..dense.rows import rows_kernel
from ..runtime.records import ACTIVATE, DENSE, DROPOUT, NOISE, fill
from .activation import Activated, add_activation
from .normalization import Normalized, add_forward
from .phases import PhaseList
from .quantized import add_fake, add_quantized
from .sparse import add_sparse, precedes_sparse


class SavedDense(NamedTuple):
    """A dense layer of the forward pass, saved for backward."""

    x: np.ndarray
    y: np.ndarray
    spec: DenseSpec
    activation: str  # linear where the network's link follows
    fields: dict[str, Any]  # of its record
    multiplied: np.ndarray  # w, or what products read in its place


class SavedDropout(NamedTuple):
    x: np.ndarray
    y: np.ndarray
    compute: str
    fields: dict[str, Any]


Saved = SavedDense | SavedDropout | Normalized | Activated


def add_layers(
    program: PhaseList, x: np.ndarray, seed: int | None, fixed: Sequence[int] = ()
) -> tuple[np.ndarray, list[Saved]]:
    """Add the layers; return the outputs (logits, where a link follows), and what is saved for backward.

    seed: of the dropout masks; None: no dropout, and no layer is split, as nothing is updated. fixed: indices of
    BatchNorms that go by their averages in training, too.
    """
    saved_for_backward: list[Saved] = []
    net, params = program.net, iter(program.net.params)
    last = max(i for i, layer in enumerate(net.layers) if isinstance(layer, DenseSpec))
    for i, layer in enumerate(net.layers):
        compute = net.compute if i < last else net.dtype  # of outputs: the network's are not rounded
        if isinstance(layer, DenseSpec) and layer.quantized is not None:
            x = add_quantized(program, i, x, [next(params) for _ in parameter_shapes(layer)])
            continue
        if isinstance(layer, DenseSpec):
            w, b = next(params), next(params) if layer.bias else None
            activation = "linear" if i == last and net.link else layer.activation
            if i in program.sparse:  # nothing is trained, so nothing is saved
                x = add_sparse(program, program.sparse[i], activation, x, precedes_sparse(program, i))
                continue
            saved = _add_dense(program, layer, activation, compute, x, w, b, whole=seed is None)
            saved_for_backward.append(saved)
        elif isinstance(layer, DropoutSpec | GaussianNoiseSpec):
            if seed is None or not any(layer):
                continue
            stream = dropout_stream(seed, i)
            if isinstance(layer, GaussianNoiseSpec):  # whose slope is 1, so nothing is saved
                x = _add_noise(program, layer, x, stream, compute)
                continue
            saved_for_backward.append(_add_dropout(program, layer, x, stream, compute))
        elif isinstance(layer, ActivationSpec):
            if layer.activation == "linear":
                continue
            saved_for_backward.append(add_activation(program, layer, x, compute))
        else:
            own = {name: next(params) for name in parameter_shapes(layer)}
            by_batch = seed is not None and i not in fixed
            saved_for_backward.append(add_forward(program, layer, x, own, compute, by_batch))
        x = saved_for_backward[-1].y
    return x, saved_for_backward


def _add_dropout(program: PhaseList, layer: DropoutSpec, x: np.ndarray, stream: int, compute: str) -> SavedDropout:
    columns, y = x.shape[1], program.zeros(*x.shape)
    fields = {
        "run": program.run, "columns": columns, "threshold": int(layer.rate * 2**53), "scale": 1 / (1 - layer.rate),
        "stream": stream,
    }  # fmt: skip
    cost = costs.dropout(columns, program.net.itemsize, backward=False)
    kernel = rows_kernel("dropout", compute)
    program.add(kernel, fill(DROPOUT, x=x, y=y, **fields), barrier=True, cost=cost)
    return SavedDropout(x, y, compute, fields)


def _add_noise(program: PhaseList, layer: GaussianNoiseSpec, x: np.ndarray, stream: int, compute: str) -> np.ndarray:
    columns, y = x.shape[1], program.zeros(*x.shape)
    record = fill(NOISE, run=program.run, x=x, y=y, columns=columns, stddev=layer.stddev, stream=stream)
    program.add(rows_kernel("noise", compute), record, barrier=True, cost=costs.noise(columns, program.net.itemsize))
    return y


def _add_dense(
    program: PhaseList, layer: DenseSpec, activation: str, compute: str, x: np.ndarray, w: np.ndarray,
    b: np.ndarray | None, whole: bool,
) -> SavedDense:  # fmt: skip
    dtype, itemsize, sizes = program.net.dtype, program.net.itemsize, (layer.inputs, layer.outputs)
    x, multiplied = (x, w) if whole or layer.fake is None else add_fake(program, layer, x, w)
    y = program.zeros(program.batch_size, layer.outputs)
    z = y if ACTIVATIONS[activation].uses == "y" else program.zeros(program.batch_size, layer.outputs)
    fields: dict[str, Any] = {
        "run": program.run, "x": x, "w": w, "b": b, "z": z, "y": y, "uses_y": int(z is y),
        **shape_fields(program.batch_size, *sizes, dtype, whole, program.net.compute),
    }  # fmt: skip
    if x.ndim == 3:  # the columns of each split together
        fields |= {"x_stride": x.shape[2], "x_split": x.shape[1] * x.shape[2]}
    num_splits, keeps_z = fields["num_splits"], z is not y
    split_products = program.zeros(num_splits, program.batch_size, layer.outputs) if num_splits > 1 else None
    activate = activate_kernel(activation, compute).address
    record = fill(DENSE, activate=activate, split_products=split_products, **{**fields, "w": multiplied})
    if split_products is None:
        cost = costs.forward(*sizes, activation, layer.bias, keeps_z, itemsize)
        program.add(dense_kernel("forward", dtype), record, barrier=True, cost=cost)
    else:
        cost = costs.products(*sizes, num_splits, itemsize)
        program.add(dense_kernel("forward", dtype), record, barrier=True, cost=cost)
        cost = costs.combine(layer.outputs, activation, layer.bias, keeps_z, num_splits, itemsize)
        program.add(dense_kernel("combine", dtype), record, barrier=True, cost=cost)
    return SavedDense(x, y, layer, activation, fields, multiplied)


def add_link(program: PhaseList, z: np.ndarray, y: np.ndarray) -> None:
    """Add the network's last activation: logits z -> outputs y."""
    net = program.net
    assert net.link is not None
    code = 0 if net.link == "softmax" else activate_kernel(net.link, net.dtype).address
    record = fill(ACTIVATE, run=program.run, z=z, y=y, columns=net.outputs, activate=code)
    cost = costs.link(net.link, net.outputs, net.itemsize)
    program.add(activate_rows_kernel(net.dtype), record, barrier=True, cost=cost)
