"""Smaller models: weights that are pruned.

    fo.compress.sparsity(model)                 # the share of zero weights of each dense layer, and of all
"""

from ._sparsity import sparsity

__all__ = [
    "sparsity",
]
