"""Masks of the parameters of a training program."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...spec import DenseSpec, LayerSpec, parameter_shapes


def complete(
    masks: Sequence[np.ndarray | None], layers: Sequence[LayerSpec], params: Sequence[np.ndarray]
) -> list[np.ndarray | None]:
    """Return the masks of all parameters, with one of ones for the bias of a layer whose kernel has a mask.

    Both are updated by the same loop. Without masks there are none.
    """
    if not masks:
        return []
    found, first = list(masks), 0
    for layer in layers:
        if isinstance(layer, DenseSpec):
            pair = slice(first, first + 1 + layer.bias)
            if any(mask is not None for mask in found[pair]):
                found[pair] = [
                    np.ones(p.shape, np.uint8) if mask is None else mask
                    for mask, p in zip(found[pair], params[pair], strict=True)
                ]
        first += len(parameter_shapes(layer))
    return found
