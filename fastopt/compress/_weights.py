"""Weights as codes: int8 and int4 with scales, and bfloat16."""

from __future__ import annotations

import numpy as np

Array = np.ndarray
MOST = {8: 127, 4: 7}  # the largest code, whose negative is the least


def codes_of_weights(w: Array, bits: int, group: int) -> tuple[Array, Array]:
    """Return codes (inputs, outputs) int8 of a matrix, and scales (groups, outputs) float32: w is about scales codes.

    scale = max |w| / most of every group of rows of a column, code = round(w / scale), ties to even,
    by a product with the float32 nearest to 1 / scale, as in quantization-aware training.

    >>> codes, scales = codes_of_weights(np.array([[1.0, 0.5], [-2.0, 0.0]], np.float32), 8, 0)
    >>> codes.tolist(), (scales * 127).tolist()
    ([[64, 127], [-127, 0]], [[2.0, 0.5]])
    """
    most, rows = MOST[bits], group or len(w)
    starts = np.arange(0, len(w), rows)
    scales = (np.maximum.reduceat(np.abs(w), starts, axis=0).astype(np.float64) / most).astype(np.float32)
    scales = np.where(scales > np.finfo(np.float32).tiny, scales, np.float32(1))  # of columns of zeros, or as good as 0
    quotients = w.astype(np.float32) * np.repeat(np.float32(1) / scales, rows, axis=0)[: len(w)]
    return np.clip(np.rint(quotients), -most, most).astype(np.int8), scales


def packed_int4(codes: Array) -> Array:
    """Return two codes of neighbouring rows in a byte, (inputs / 2, outputs) uint8, rounded up: 8 is added to each.

    >>> packed_int4(np.array([[7], [-8], [0]], np.int8)).tolist()
    [[15], [136]]
    """
    bytes_ = np.zeros((len(codes) + len(codes) % 2, codes.shape[1]), np.int8)
    bytes_[: len(codes)] = codes
    shifted = (bytes_ + 8).astype(np.uint8)
    return shifted[::2] | shifted[1::2] << 4


def bfloat16_bits(w: Array) -> Array:
    """Return the bits of the nearest bfloat16 numbers, uint16, ties to even; denormal ones become 0.

    >>> [hex(bits) for bits in bfloat16_bits(np.array([1.0, -2.0, 1.00390625], np.float32)).tolist()]
    ['0x3f80', '0xc000', '0x3f80']
    """
    bits = np.ascontiguousarray(w, np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + (bits >> 16 & 1)) >> 16
    return np.where(bits & 0x7F800000, rounded, bits >> 16 & 0x8000).astype(np.uint16)
