"""Smaller models: weights, or whole neurons, that are pruned, and weights that are integers.

    fo.compress.prune(model, share=0.9)         # the smallest weights become zero, and stay so in `fit`
    model.fit(x, y, pruning=fo.compress.Pruning(0.9))    # gradually, while the model is trained
    fo.compress.sparsity(model)                 # the share of zero weights of each dense layer, and of all
    fo.compress.unprune(model)                  # pruned weights are trained again
    smaller = fo.compress.prune_neurons(model, share=0.5)    # a dense model without the weakest neurons

    small = fo.compress.quantize(model, x)      # int8 products: a quarter of the bytes, faster predictions
    small = fo.compress.quantize(model, bits=4)          # int4 weights, float32 products
    small.evaluate(x_test, y_test), small.summary(), small.save("small.safetensors")
"""

from .._pruning import Pruning
from ..models.quantized import QuantizedModel
from ._neurons import prune_neurons
from ._prune import prune, unprune
from ._quantize import quantize
from ._sparsity import sparsity

__all__ = [
    "Pruning",
    "QuantizedModel",
    "prune",
    "prune_neurons",
    "quantize",
    "sparsity",
    "unprune",
]
