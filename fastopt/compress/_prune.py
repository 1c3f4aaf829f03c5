"""Pruning of single weights, the smallest ones, in a call; `Pruning` does it gradually, in `fit`."""

from __future__ import annotations

from collections.abc import Sequence

from .._pruning import Share, check_scope, check_share
from .._validation import check_number
from ..models import _magnitudes
from ..models._masks import check_states
from ..models.sequential import Sequential
from ._sparsity import check_model


def prune(
    model: Sequential,
    share: Share | None = None,
    threshold: float | None = None,
    scope: str = "layer",
    layers: str | Sequence[str] | None = None,
) -> Sequential:
    """Set the smallest weights of a model to zero, in place, and keep them there; return the model.

    share      in [0, 1): the share of weights that are pruned then; or a mapping of layers' names to shares. It counts
               those that are pruned already, which stay so
    threshold  instead: all weights of a smaller magnitude, at least 0, are pruned
    scope      of a share. "layer": the smallest weights of each layer; "network": of all layers together
    layers     the name of a dense layer, or a list of names; None: all that are not frozen. Kernels alone are pruned,
               not biases or the parameters of normalization

    Of equal magnitudes the first are pruned, layer after layer and row after row. A pruned weight is zero from now on,
    whatever `fit` or `set_weights` do, and so are its average and the states of its optimizer: a mask of a byte a
    weight is read by the update of every step. Its gradient is zero, also in the norm that `clip_norm` is about. Files,
    copies and checkpoints keep the mask, `summary` and `sparsity` show it. `unprune` ends it.

    Where enough weights are zero, `predict` and `evaluate` of the backend "cpu" multiply the others alone; see the
    README of `fastopt.compress`.

    Raises TypeError or ValueError, before anything changes, for another share, scope or name of a layer, and for an
    optimizer with states of 8 bits.

    >>> import numpy as np, fastopt as fo
    >>> layer = fo.Dense(2, kernel_initializer=[[1.0, -4.0], [3.0, 0.5]])
    >>> model = fo.compress.prune(fo.Sequential([layer], inputs=2), share=0.5)
    >>> model.get_weights()[0].tolist()
    [[0.0, -4.0], [3.0, 0.0]]
    >>> model.compile("adam", "mean_squared_error")
    >>> history = model.fit(np.eye(2), np.ones((2, 2)), epochs=10)
    >>> (model.get_weights()[0] == 0).tolist()
    [[True, False], [False, True]]
    """
    check_model(model)
    if (share is None) == (threshold is None):
        raise ValueError("give share or threshold, one of them")
    check_scope(scope, share, layers)
    if share is not None:
        share = check_share("share", share)
    elif scope != "layer":
        raise ValueError("scope is for a share; a threshold is the same for all layers")
    else:
        threshold = check_number("threshold", threshold, 0.0)
    kernels = _magnitudes.chosen_layers(model, layers, share)
    check_states(model)
    with model._use.exclusive("prune"):
        model._bring_back()
        if share is not None:
            masks = _magnitudes.masks_by_share(model, kernels, share, scope)
        else:
            assert threshold is not None
            masks = _magnitudes.masks_by_threshold(model, kernels, threshold)
        _magnitudes.apply_masks(model, masks)
    return model


def unprune(model: Sequential, layers: str | Sequence[str] | None = None) -> Sequential:
    """Let pruned weights be trained again, from zero; return the model.

    layers: the name of a dense layer, or a list of names; None: all.

    >>> import fastopt as fo
    >>> model = fo.compress.prune(fo.Sequential([fo.Dense(2)], inputs=4), share=0.75)
    >>> fo.compress.unprune(model).summary().splitlines()[0]
    'layer    activation  outputs  parameters'
    """
    check_model(model)
    every = list(_magnitudes.kernel_indices(model.layers, model.names))
    kernels = _magnitudes.chosen_layers(model, every if layers is None else layers)
    with model._use.exclusive("unprune"):
        if model._masks is not None:
            model._masks.release(list(kernels.values()))
            if not model._masks.any:
                model._masks = None
    return model
