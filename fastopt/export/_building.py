"""Models from the layers of other programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from ..layers import Activation, Dense, Layer
from ..models.sequential import Sequential
from ._reading import refusal

FLOATS = ("float32", "float64")


class Found(NamedTuple):
    """A layer of another program as one of fastopt, with its arrays in the order of our parameters."""

    what: str  # the layer in its program's words, for messages
    layer: Layer
    arrays: Sequence[np.ndarray] = ()


def common_dtype(call: str, arrays: Sequence[Any]) -> np.dtype:
    """Return the dtype of all arrays; ValueError for several, and for one that no model has."""
    names = sorted({str(array.dtype).removeprefix("torch.") for array in arrays})
    if len(names) != 1 or names[0] not in FLOATS:
        raise ValueError(f"{call}: weights must be all float32, or all float64; got {', '.join(names) or 'none'}")
    return np.dtype(names[0])


def assemble(call: str, found: Sequence[Found]) -> Sequential:
    """Return a model of these layers, with copies of their arrays.

    An activation behind a linear Dense becomes that of the Dense, as the last layer must be one. Raises ValueError
    for layers that no model has in this order.
    """
    merged: list[Found] = []
    for item in found:
        before = merged[-1].layer if merged else None
        if isinstance(item.layer, Activation) and isinstance(before, Dense) and before.activation == "linear":
            merged[-1] = merged[-1]._replace(layer=replace(before, activation=item.layer.name))
        else:
            merged.append(item)
    dense = [item for item in merged if isinstance(item.layer, Dense)]
    if not dense:
        raise ValueError(f"{call}: the model must have a dense layer; got {len(merged)} layers without one")
    if merged[-1] is not dense[-1]:
        raise refusal(call, merged[-1].what, "the last layer must be dense, with at most one activation behind it")
    arrays = [array for item in merged for array in item.arrays]
    dtype = common_dtype(call, arrays)
    model = Sequential([item.layer for item in merged], dtype=dtype)
    first = next(item for item in merged if item.arrays)
    model.adopt(int(first.arrays[0].shape[0]), arrays)
    return model
