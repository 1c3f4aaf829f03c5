"""Smaller models: weights, or whole neurons, that are pruned.

    fo.compress.prune(model, share=0.9)         # the smallest weights become zero, and stay so in `fit`
    model.fit(x, y, pruning=fo.compress.Pruning(0.9))    # gradually, while the model is trained
    fo.compress.sparsity(model)                 # the share of zero weights of each dense layer, and of all
    fo.compress.unprune(model)                  # pruned weights are trained again
    smaller = fo.compress.prune_neurons(model, share=0.5)    # a dense model without the weakest neurons
"""

from .._pruning import Pruning
from ._neurons import prune_neurons
from ._prune import prune, unprune
from ._sparsity import sparsity

__all__ = [
    "Pruning",
    "prune",
    "prune_neurons",
    "sparsity",
    "unprune",
]
