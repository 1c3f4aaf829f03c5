"""Pruned elements of parameters in an optimizer step, in vectorised NumPy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ..spec import OptimizerSteps

Array = np.ndarray


def masked_arrays(
    optimizer: OptimizerSteps, params: Sequence[Array], gradients: Sequence[Array]
) -> Iterator[tuple[Array, Array, tuple[Array, ...]]]:
    """Iterate over the masks of parameters that are updated: a mask, the gradient, and p with its states.

    gradients: of the parameters that are updated.
    """
    given = iter(gradients)
    for p, states, mask in zip(params, optimizer.states, optimizer.masks, strict=False):
        if states is not None:
            g = next(given)
            if mask is not None:
                yield mask, g, (p, *states)


def zero_gradients(optimizer: OptimizerSteps, params: Sequence[Array], gradients: Sequence[Array]) -> None:
    """Set the gradients of pruned elements to zero, before they join a norm.

    >>> g, mask = np.array([1.0, 2.0]), np.array([0, 1], np.uint8)
    >>> zero_gradients(OptimizerSteps("sgd", [()], {}, np.ones(1), masks=[mask]), [np.ones(2)], [g])
    >>> g.tolist()
    [0.0, 2.0]
    """
    for mask, g, _ in masked_arrays(optimizer, params, gradients):
        g[mask == 0] = 0


def zero_pruned(optimizer: OptimizerSteps, params: Sequence[Array], gradients: Sequence[Array]) -> None:
    """Set pruned elements to zero, and their states, after the update of a step."""
    for mask, _, arrays in masked_arrays(optimizer, params, gradients):
        for array in arrays:
            array[mask == 0] = 0
