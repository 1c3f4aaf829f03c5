"""Launches of normalization in the program of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from ... import costs
from ...spec import BatchNormSpec, LayerNormSpec, parameter_shapes
from ..dense.normalization import (
    Arrays,
    Sizes,
    batch_norm,
    batch_norm_backward,
    batch_norm_fixed_backward,
    batch_norm_moving,
    layer_norm,
    layer_norm_backward,
    layer_norm_gradients,
)
from ..dense.products import BYTES, padded
from ..runtime.records import NORMALIZATION


class Normalized(NamedTuple):
    """Arrays of a normalization that its backward pass reads."""

    spec: LayerNormSpec | BatchNormSpec
    x: int
    y: int
    arrays: Arrays
    sizes: Sizes
    parameter: int  # index of its first parameter
    updated: Sequence[bool]  # of each of its parameters
    by_batch: bool  # normalized by the batch, not by the moving averages
    needs_dx: bool


def add_forward(
    program: Any, i: int, spec: LayerNormSpec | BatchNormSpec, x: int, rows: int, dtype: str, parameter: int,
    moves: bool,
) -> Normalized:  # fmt: skip
    """Add y of layer i, by the batch if the program trains; parameter: index of its first one.

    moves: the batch moves the averages.
    """
    columns, training, size = spec.columns, program.seed is not None, program.size
    y, updated = program.rows(("y", i), columns, dtype), program.net.updated_by_layer
    by_columns = isinstance(spec, BatchNormSpec)
    count = columns if by_columns else program.batch
    statistics = program.reserve(("statistics", i), 16 * count) if training else 0
    momentum, by_batch = 0.0, training
    if isinstance(spec, BatchNormSpec):
        momentum, by_batch = spec.momentum if moves else 1.0, training and i not in program.net.fixed
    settings = program.constant(("normalization", i, moves), np.array([(spec.epsilon, momentum)], NORMALIZATION))
    names = parameter_shapes(spec)
    own = {name: program.params[parameter + k] for k, name in enumerate(names)}
    inverse = statistics + 8 * count if training else 0
    arrays = Arrays(
        own.pop("gamma", 0), own.pop("beta", 0), statistics, inverse, settings, *own.values()
    )
    sizes = Sizes(rows, columns, padded(columns), dtype)
    run = layer_norm if not by_columns else batch_norm if by_batch else batch_norm_moving
    program.add(
        costs.normalization(run.__name__, columns, len(names), BYTES[dtype], size), run, program.gpu, program.stream,
        x, y, arrays, sizes,
    )  # fmt: skip
    needs_dx = any(map(any, updated[:i]))
    return Normalized(spec, x, y, arrays, sizes, parameter, updated[i], by_batch, needs_dx)


def add_backward(program: Any, saved: Normalized, dy: int, gradients: Sequence[int]) -> None:
    """Add the gradients of gamma and beta, those that are updated, and dx in the place of dy; gradients: of all."""
    spec, sizes, places = saved.spec, saved.sizes, iter(range(saved.parameter, len(gradients)))
    wanted = dict.fromkeys(("gamma", "beta"), 0)
    for name, place, on in zip(parameter_shapes(spec), places, saved.updated, strict=False):
        if on:
            wanted[name] = gradients[place]
    num_gradients, device = sum(map(bool, wanted.values())), (program.gpu, program.stream, saved.x, dy)
    cost = partial(
        costs.normalization_gradients, columns=spec.columns, updates=0, rule=None, itemsize=BYTES[sizes.dtype],
        parameter_size=program.size,
    )  # fmt: skip
    if isinstance(spec, BatchNormSpec) and not saved.by_batch:
        whole = cost("batch_norm backward", arrays=2, gradients=0)
        program.add(whole, batch_norm_fixed_backward, program.gpu, program.stream, dy, saved.arrays, sizes)
        return
    if isinstance(spec, BatchNormSpec):
        whole = cost("batch_norm backward", arrays=2 + saved.needs_dx, gradients=num_gradients)
        program.add(whole, batch_norm_backward, *device, saved.arrays, *wanted.values(), saved.needs_dx, sizes)
        return
    if num_gradients:
        of_gradients = cost("layer_norm gradients", arrays=2, gradients=num_gradients)
        program.add(of_gradients, layer_norm_gradients, *device, saved.arrays, *wanted.values(), sizes)
    if saved.needs_dx:
        whole = cost("layer_norm backward", arrays=3, gradients=0)
        program.add(whole, layer_norm_backward, *device, saved.arrays, sizes)
