"""Masks of a model's pruned weights: zero in training, in files and after `set_weights`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Tensors = dict[str, np.ndarray]
PREFIX = "masks."  # of the names of tensors in a file


class Masks:
    """The masks of a model: uint8 arrays of the shapes of its parameters, 0 where they are pruned.

    arrays: of each parameter; None: nothing of it is pruned. They are changed in place.
    left: elements of each parameter that are not pruned, a new tuple after every change; None: all.
    """

    def __init__(self, arrays: Sequence[np.ndarray | None]) -> None:
        self.arrays = list(arrays)
        self.left: tuple[int | None, ...] = ()
        self._count()

    def _count(self) -> None:
        self.left = tuple(None if mask is None else int(np.count_nonzero(mask)) for mask in self.arrays)

    def prune(self, masks: Mapping[int, np.ndarray]) -> None:
        """Prune more: masks of some parameters, by their index."""
        for i, mask in masks.items():
            own = self.arrays[i]
            if own is None:
                self.arrays[i] = np.ascontiguousarray(mask, np.uint8)
            else:
                own &= mask
        self._count()

    def release(self, indices: Sequence[int]) -> None:
        """Let all weights of some parameters be trained again."""
        for i in indices:
            self.arrays[i] = None
        self._count()

    @property
    def any(self) -> bool:
        """True if a parameter has a mask."""
        return any(mask is not None for mask in self.arrays)

    def zero(self, arrays: Sequence[np.ndarray]) -> None:
        """Set the pruned elements of arrays of all parameters to zero, in place."""
        for array, mask in zip(arrays, self.arrays, strict=True):
            if mask is not None:
                np.copyto(array, 0, where=mask == 0)

    def to_tensors(self, names: Sequence[str]) -> Tensors:
        """Return the masks for a file, a bit an element; names: of all parameters."""
        pairs = zip(names, self.arrays, strict=True)
        return {f"{PREFIX}{name}": np.packbits(mask) for name, mask in pairs if mask is not None}


def from_tensors(tensors: Tensors, names: Sequence[str], parameters: Sequence[np.ndarray]) -> Masks | None:
    """Take the masks of a model's parameters out of the tensors of a file; None: it has none.

    Raises ValueError for damaged ones.
    """
    found: list[np.ndarray | None] = []
    for name, p in zip(names, parameters, strict=True):
        packed = tensors.pop(f"{PREFIX}{name}", None)
        if packed is None:
            found.append(None)
            continue
        if packed.dtype != np.uint8 or packed.shape != (-(-p.size // 8),):
            raise ValueError(
                f"the mask of {name} must be {-(-p.size // 8)} bytes; got {packed.dtype} of shape {packed.shape}"
            )
        mask = np.unpackbits(packed, count=p.size).reshape(p.shape)
        if p[mask == 0].any():
            raise ValueError(f"{name} must be zero where its mask says that it is pruned")
        found.append(np.ascontiguousarray(mask))
    return Masks(found) if any(mask is not None for mask in found) else None


def zero_pruned(model: Any) -> None:
    """Set the pruned weights of a model to zero, with their states and averages."""
    optimizer, averages = model.optimizer, model._averages
    has_states = optimizer is not None and optimizer.bound
    for i, mask in enumerate(model._masks.arrays if model._masks is not None else ()):
        if mask is not None:
            gone, p = mask == 0, model._parameters[i]
            states = [s for s in optimizer.states[i] if (s.shape, s.dtype) == (p.shape, p.dtype)] if has_states else []
            for array in [p, *states, *([] if averages is None else [averages.arrays[i]])]:
                np.copyto(array, 0, where=gone)


def check_states(model: Any) -> None:
    """Raise ValueError for a model whose optimizer keeps states that cannot be zero element by element."""
    if model.optimizer is not None and model.optimizer.param_groups[0].get("state_bits", 32) == 8:
        raise ValueError(
            "the states of pruned weights are zero, which those of 8 bits, a code an element, do not hold: compile the"
            " model with state_bits=32"
        )


def take_masks(model: Any, masks: Masks | None) -> None:
    """Give a model masks as another one has them; None: nothing is pruned."""
    model._masks = None if masks is None else Masks([None if mask is None else mask.copy() for mask in masks.arrays])
    zero_pruned(model)
