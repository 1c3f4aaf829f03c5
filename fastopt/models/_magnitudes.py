"""Choice of the weights to prune: the smallest of a layer, or of all layers together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .._pruning import Share
from .._validation import describe
from ..layers import Dense, Layer, Trained
from ._masks import Masks, zero_pruned


def kernel_indices(layers: Sequence[Layer], names: Sequence[str]) -> dict[str, int]:
    """Return for each dense layer, by its name, the index of its kernel among the parameters."""
    found, first = {}, 0
    for layer, name in zip(layers, names, strict=True):
        if isinstance(layer, Dense):
            found[name] = first
        if isinstance(layer, Trained):
            first += len(layer.arrays)
    return found


def chosen_layers(model: Any, chosen: Any, share: Any = None) -> dict[str, int]:
    """Return the kernels to prune: the index among the parameters of each, by the layer's name.

    chosen: the name of a dense layer, or a list of names; None: those of `share`, if it is a mapping, else all that are
    not frozen. TypeError or ValueError for names of other layers.
    """
    kernels = kernel_indices(model.layers, model.names)
    if chosen is None and isinstance(share, Mapping):
        chosen = list(share)
    if chosen is None:
        pairs = zip(model.layers, model.names, strict=True)
        trained = {name for layer, name in pairs if isinstance(layer, Dense) and layer.trainable}
        if not trained:
            raise ValueError("all dense layers are frozen, so none is pruned: name some, or call unfreeze")
        return {name: i for name, i in kernels.items() if name in trained}
    listed = [chosen] if isinstance(chosen, str) else chosen
    if not isinstance(listed, Sequence) or not all(isinstance(name, str) for name in listed):
        raise TypeError(f"layers must be the name of a dense layer, or a list of names; got {describe(chosen)}")
    if not listed:
        raise ValueError("layers must name a dense layer; got an empty list")
    for name in listed:
        if name not in kernels:
            raise ValueError(f"{name!r} is no dense layer of the model; those are {', '.join(kernels)}")
    return {name: kernels[name] for name in kernels if name in listed}


def _magnitudes(model: Any, i: int) -> np.ndarray:
    """The magnitudes of the weights of a kernel, (elements,): -1 where they are pruned already."""
    w, mask = np.abs(model._parameters[i]).ravel(), _mask_of(model, i)
    if mask is not None:
        w[mask.ravel() == 0] = -1
    return w


def _mask_of(model: Any, i: int) -> np.ndarray | None:
    return None if model._masks is None else model._masks.arrays[i]


def _smallest(magnitudes: np.ndarray, count: int) -> np.ndarray:
    """A mask (elements,), 0 for so many of the smallest magnitudes; of equal ones those that come first.

    Those that are pruned are among them: left out of the search, which takes ten times as long with many equal numbers.
    """
    left = magnitudes >= 0
    left |= np.isnan(magnitudes)
    mask = left.astype(np.uint8)
    more = count - (len(mask) - int(np.count_nonzero(left)))
    if more > 0:
        limit = np.partition(magnitudes[left], more - 1)[more - 1]
        below = left & (magnitudes < limit)
        mask[below] = 0
        mask[np.flatnonzero(magnitudes == limit)[: more - np.count_nonzero(below)]] = 0
    return mask


def _count(share: float, size: int) -> int:
    """Weights that a share comes to; 0.29 of 100 is 29, whatever the rounding of the product."""
    return math.floor(share * size + 1e-9)


def masks_by_share(model: Any, kernels: Mapping[str, int], share: Share, scope: str) -> dict[int, np.ndarray]:
    """Masks of kernels by which a share of their weights is pruned: of each, or of all together."""
    magnitudes = {name: _magnitudes(model, i) for name, i in kernels.items()}
    if scope == "network":
        whole, ends = np.concatenate([*magnitudes.values()]), np.cumsum([len(w) for w in magnitudes.values()])
        assert not isinstance(share, Mapping)
        parts = np.split(_smallest(whole, _count(share, len(whole))), ends[:-1])
        flat = dict(zip(magnitudes, parts, strict=True))
    else:
        shares = share if isinstance(share, Mapping) else dict.fromkeys(kernels, share)
        flat = {name: _smallest(w, _count(shares[name], len(w))) for name, w in magnitudes.items()}
    return {i: flat[name].reshape(model._parameters[i].shape) for name, i in kernels.items()}


def masks_by_threshold(model: Any, kernels: Mapping[str, int], threshold: float) -> dict[int, np.ndarray]:
    """Masks of kernels by which all weights below a magnitude are pruned."""
    return {i: (np.abs(model._parameters[i]) >= threshold).astype(np.uint8) for i in kernels.values()}


def apply_masks(model: Any, masks: Mapping[int, np.ndarray]) -> None:
    """Prune by these masks, by the index of the parameter, beside what is pruned already."""
    if model._masks is None:
        model._masks = Masks([None] * len(model._parameters))
    model._masks.prune({i: mask for i, mask in masks.items() if not mask.all() or _mask_of(model, i) is not None})
    if not model._masks.any:
        model._masks = None
    zero_pruned(model)
