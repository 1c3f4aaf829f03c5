"""16-bit numbers in plain NumPy: float16 is NumPy's own, and bfloat16 is arithmetic on the bits of float32.

Nothing here comes from the kernels: what they do with masks and shifts is here done with quotients and remainders.
"""

from __future__ import annotations

import numpy as np

from .maths import GOLDEN, mix

Array = np.ndarray

BFLOAT16 = np.dtype(np.uint16)  # NumPy has none: its bits


def is_bfloat16(dtype: np.dtype) -> bool:
    """True for the bits of bfloat16, and for the dtype that ml_dtypes gives NumPy."""
    return dtype == BFLOAT16 or dtype.name == "bfloat16"


def is_16bit(dtype: np.dtype) -> bool:
    return dtype == np.float16 or is_bfloat16(dtype)


def widened(x: Array) -> Array:
    """A 16-bit array as a new one of float32.

    >>> widened(np.array([0x3F80, 0xC040], np.uint16)).tolist()
    [1.0, -3.0]
    """
    if x.dtype == np.float16:
        return x.astype(np.float32)
    halves = np.zeros((*x.shape, 2), np.uint16)
    halves[..., 1] = x.view(np.uint16)  # the upper half comes second: little-endian
    return halves.view("<f4")[..., 0].astype(np.float32)


def store(x: Array, into: Array) -> None:
    """Round float32 to the nearest 16-bit numbers, ties to even; bfloat16 has no denormal ones, but zero.

    >>> into = np.zeros(3, np.uint16)
    >>> store(np.array([1.0, 1 + 2**-8, 1 + 3 * 2**-8], np.float32), into)
    >>> widened(into).tolist()
    [1.0, 1.0, 1.015625]
    """
    if into.dtype == np.float16:
        with np.errstate(all="ignore"):
            into[...] = x
        return
    x = np.where(np.abs(x) < np.finfo(np.float32).tiny, np.copysign(np.float32(0), x), x)
    high, low = np.divmod(x.view(np.uint32).astype(np.int64), 2**16)
    up = (low > 2**15) | ((low == 2**15) & (high % 2 == 1))
    into.view(np.uint16)[...] = np.where(np.isnan(x), 0x7FC0, high + up)


def is_rounding(p: Array, x: Array) -> Array:
    """True where 16-bit p is float32 x rounded to nearest; where bfloat16 p is within half a unit of x.

    >>> is_rounding(np.array([0x3F80, 0x3F80], np.uint16), np.array([1 + 2**-8, 1 + 2**-7], np.float32)).tolist()
    [True, False]
    """
    if p.dtype == np.float16:
        return widened(p) == widened(x.astype(np.float16))
    bits = p.view(np.uint16).astype(np.int64) * 2**16
    return np.abs(x.view(np.uint32).astype(np.int64) - bits) <= 2**15


def draws(stream: int, step: int, elements: Array) -> Array:
    """53 random bits for each of some elements of an array at a step, given their numbers; int64."""
    return draws_of(mix(np.array([(stream + step) % 2**64], np.uint64)), elements)


def draws_of(key: Array, elements: Array) -> Array:
    """53 random bits for each of some elements, given their numbers and a key, (1,) uint64; int64."""
    counters = (elements.astype(np.uint64) + np.uint64(1)) * np.uint64(GOLDEN)
    return (mix(counters + key) // np.uint64(2**11)).astype(np.int64)


def store_stochastically(x: Array, into: Array, stream: int, step: int, elements: Array | None = None) -> None:
    """Round float32 to one of the two nearest 16-bit numbers, up with the probability of the part that is cut off.

    elements: the number of each element of x, which its random bits depend on; None: 0, 1, 2, ...
    float16's denormal numbers are 2^-24 apart, where float32 may have more places than there are random bits: 13 of
    them are kept.
    """
    elements = np.arange(x.size).reshape(x.shape) if elements is None else elements
    if into.dtype == np.float16:
        random = draws(stream, step, elements) // 2 ** (53 - 13)
        size = np.abs(x.astype(np.float64))
        finite = np.isfinite(size)
        _, exponent = np.frexp(np.where(finite, size, 1))
        unit = np.ldexp(1.0, np.maximum(exponent - 1, -14) - 10)
        thirteenth = np.rint(np.where(finite, size, 0) / unit * 2**13)
        rounded = np.copysign((thirteenth + random) // 2**13 * unit, x)
        store(np.where(finite, rounded, x).astype(np.float32), into)
        return
    random = draws(stream, step, elements) // 2 ** (53 - 16)
    high, low = np.divmod(x.view(np.uint32).astype(np.int64), 2**16)
    into.view(np.uint16)[...] = np.where(np.isnan(x), 0x7FC0, high + (random >= 2**16 - low))
