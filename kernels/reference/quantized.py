"""Dense layers of integers in the reference: codes of rows and of weights, and layers that predict by them."""

from __future__ import annotations

import numpy as np

from ..denormals import flushed
from ..spec import DenseSpec, Quantized
from .bits16 import widened
from .dense import activate

Array = np.ndarray


@flushed
@np.errstate(all="ignore")
def codes_of(x: Array, scale: float, zero: int) -> Array:
    """Return the codes of x, uint8: round(x / scale) + zero, within 0 and 255; those of NaN are 0.

    The quotient is a product with the float32 nearest to 1 / scale; halves are rounded to even.

    >>> codes_of(np.array([-9.0, 0.0, 0.25, 0.75, 999.0], np.float32), 0.5, 3).tolist()
    [0, 3, 3, 5, 255]
    """
    quotient = x.astype(np.float32) * (np.float32(1) / np.float32(scale))
    limited = np.fmin(np.fmax(quotient, np.float32(-zero)), np.float32(255 - zero))
    return (np.rint(limited) + np.float32(zero)).astype(np.uint8)


def unpack_int4(codes: Array, inputs: int) -> Array:
    """Return int8 codes (inputs, outputs) of the bytes of two.

    >>> unpack_int4(np.array([[0x0F], [0x98]], np.uint8), 3).tolist()
    [[7], [-8], [0]]
    """
    pairs = np.stack([codes & 15, codes >> 4], axis=1).reshape(2 * len(codes), codes.shape[1])
    return pairs[:inputs].astype(np.int8) - np.int8(8)


@flushed
def weights_of(quantized: Quantized, inputs: int, codes: Array, scales: Array | None) -> Array:
    """Return the float32 weights (inputs, outputs) that codes and scales stand for."""
    if scales is None:
        return widened(codes)
    whole = unpack_int4(codes, inputs) if quantized.bits == 4 else codes
    group = quantized.group or inputs
    return whole.astype(np.float32) * np.repeat(scales, group, axis=0)[:inputs]


class QuantizedDense:
    """A dense layer of integers, which predicts: arrays are its codes, scales and bias, as many as there are."""

    def __init__(self, spec: DenseSpec, activation: str, arrays: list[Array]) -> None:
        assert spec.quantized is not None
        self.spec, self.quantized, self.activation = spec, spec.quantized, activation
        self.codes = arrays[0]
        self.scales = arrays[1] if spec.quantized.bits != 16 else None
        self.b = arrays[-1] if spec.bias else np.zeros(spec.outputs, np.float32)

    def forward(self, x: Array) -> Array:
        quantized = self.quantized
        if quantized.input_scale:
            codes = codes_of(x, quantized.input_scale, quantized.input_zero)
            return self._finished(self.sums(codes))
        z = x @ weights_of(quantized, self.spec.inputs, self.codes, self.scales) + self.b
        return self._activated(z)

    def sums(self, codes: Array) -> Array:
        """Return sum (code_x - zero) code_w for every row and column, int32."""
        return (codes.astype(np.int32) - np.int32(self.quantized.input_zero)) @ self.codes.astype(np.int32)

    @flushed
    @np.errstate(all="ignore")
    def _finished(self, sums: Array) -> Array:
        assert self.scales is not None
        scale = np.float32(self.quantized.input_scale) * self.scales[0]
        return self._activated(sums.astype(np.float32) * scale + self.b)

    def _activated(self, z: Array) -> Array:
        activate(self.activation, z, z)
        return z
