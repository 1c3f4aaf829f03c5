"""Smaller models: weights, and what is multiplied with them, as integers.

small = fo.compress.quantize(model, x)             # int8 products: a quarter of the bytes, faster predictions
small = fo.compress.quantize(model, bits=4)        # int4 weights, float32 products
small.evaluate(x_test, y_test), small.summary(), small.save("small.safetensors")
"""

from ..models.quantized import QuantizedModel
from ._quantize import quantize

__all__ = ["QuantizedModel", "quantize"]
