"""16-bit arrays of the host as float32; independent of the reference, which checks the kernels that convert as well."""

from __future__ import annotations

import numpy as np


def to_float32(array: np.ndarray) -> np.ndarray:
    """A new float32 array with the values of one of float16, or of the bits of bfloat16 (uint16).

    >>> to_float32(np.array([0x3F80, 0xC040], np.uint16)).tolist(), to_float32(np.array([0.5], np.float16)).tolist()
    ([1.0, -3.0], [0.5])
    """
    if array.dtype == np.float16:
        return array.astype(np.float32)
    bits = array.astype(np.uint32)
    bits <<= 16  # a bfloat16 is the upper half of a float32; in place, as 0-d arrays would become scalars
    return bits.view(np.float32)
