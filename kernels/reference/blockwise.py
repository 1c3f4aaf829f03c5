"""Block-wise dynamic quantisation of states in plain NumPy, from the paper (Dettmers et al. 2022).

Nothing here comes from `formulas`: pieces are found by a search where kernels look up exponents, and codes by their
place in the sorted map.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np

from ..spec import BLOCKWISE_RANDOM
from .bits16 import draws_of
from .maths import mix

Array = np.ndarray
BLOCK = 256
# Signs of the states of each rule, in their order: "u", unsigned, for sums and means of squares. Others: all signed.
SIGNS = {
    **dict.fromkeys(("adagrad", "adagrad_eps_in_sqrt", "adagrad_safe", "rmsprop", "rmsprop_eps_in_sqrt"), "u"),
    "adadelta": "uu",
    **{f"{name}{more}": "us" for name in ("rmsprop", "rmsprop_eps_in_sqrt") for more in ("_momentum", "_centered")},
    **{f"{name}_centered_momentum": "uss" for name in ("rmsprop", "rmsprop_eps_in_sqrt")},
    **dict.fromkeys(("adam", "adamw", "adam_hat", "adam_eps_root", "nadam_eps_root", "nadam"), "su"),
    **dict.fromkeys(("amsgrad", "adamw_amsgrad", "amsgrad_hat", "amsgrad_eps_root"), "suu"),
}


def _linspace(count: int) -> Array:
    """`count` numbers from 0.1 to 1 as torch.linspace has them: float32, each rounded once from the nearer end."""
    start, end = np.float32(0.1), np.float32(1)
    step = float((end - start) / np.float32(count - 1))
    lower = [float(start) + step * i for i in range(count // 2)]
    upper = [float(end) - step * (count - 1 - i) for i in range(count // 2, count)]
    return np.array(lower + upper).astype(np.float32)


@cache
def decades(signed: bool) -> list[Array]:
    """The map's magnitudes between 0 and 1, those of each decade, from 1e-7 to 1; each are twice as many as before."""
    found = []
    for e in range(7):
        ends = _linspace(2 ** (e + (not signed)) + 1)
        found.append(np.float32(10.0 ** (e - 6)) * ((ends[:-1] + ends[1:]) / np.float32(2)))
    return found


@cache
def magnitudes(signed: bool) -> Array:
    """All magnitudes, ascending.

    >>> len(magnitudes(True)), len(magnitudes(False))
    (129, 256)
    """
    return np.concatenate([np.zeros(1), *decades(signed), np.ones(1)]).astype(np.float32)


@cache
def dynamic_map(signed: bool) -> Array:
    """The 256 numbers of the codes, ascending: bitsandbytes' `create_dynamic_map`.

    >>> dynamic_map(True)[[0, 127, 255]].tolist()
    [-0.992968738079071, 0.0, 1.0]
    """
    found = magnitudes(signed)
    return np.concatenate([-found[-2:0:-1], found]) if signed else found


def dequantized(codes: Array, largest: Array, signed: bool) -> Array:
    """The numbers of codes, float32 of their shape; largest: the magnitude of each block of BLOCK elements.

    >>> dequantized(np.array([255, 127], np.uint8), np.array([2.0], np.float32), True).tolist()
    [2.0, 0.0]
    """
    scales = np.repeat(largest, BLOCK)[: codes.size].reshape(codes.shape)
    return dynamic_map(signed)[codes] * scales


def _nearest(u: Array, signed: bool) -> Array:
    """The indices of the nearest magnitudes, by linear arithmetic in the decade that u belongs to."""
    entries, u = magnitudes(signed), np.where(u > np.float32(2.0**-30), u, np.float32(2.0**-30))
    counts = [len(decade) for decade in decades(signed)]
    first = np.cumsum([1, *counts])
    begins = (entries[first - 1] + entries[first]) / np.float32(2)
    piece = np.searchsorted(begins, u, side="right")
    scales = np.array([0, *(10.0 ** (6 - e) * n / 0.9 for e, n in enumerate(counts)), 0]).astype(np.float32)
    # numbered so that a decade of n entries has those from n on, which is one more than the index in the unsigned map
    less, top = (0, len(entries) - 1) if signed else (1, len(entries))
    lowest = 2 * less
    offsets = np.array([lowest, *(n - n / 9 for n in counts), top]).astype(np.float32)
    last = np.array([lowest, *(2 * n - 1 for n in counts), top])
    return np.minimum(np.floor(u * scales[piece] + offsets[piece]).astype(np.int64), last[piece]) - less


def quantize(x: Array, codes: Array, largest: Array, signed: bool, random: Array | None = None) -> None:
    """Write codes of numbers, and the largest magnitude of each block.

    random: for each number one of [0, 1), for codes of one of two neighbours at random; None: codes of the nearest.
    """
    wide = x.astype(np.float32).ravel()
    padded = np.zeros(len(largest) * BLOCK, np.float32)
    padded[: x.size] = np.abs(wide)
    largest[:] = np.fmax.reduce(padded.reshape(-1, BLOCK), axis=1, initial=0)
    factors = np.where(largest > 0, np.float32(1) / largest, np.float32(0))
    u = np.abs(wide) * np.repeat(factors, BLOCK)[: x.size]
    entries = magnitudes(signed)
    found = _nearest(u, signed)
    if random is not None:
        random = random.ravel()
        found = np.where(entries[found] > u, np.maximum(found - 1, 0 if signed else 1), found)
        above = np.minimum(found + 1, len(entries) - 1)
        found = np.where(random * (entries[above] - entries[found]) < u - entries[found], above, found)
    with_sign = np.where(wide < 0, np.maximum(127 - found, 0), 127 + found)
    codes[...] = (with_sign if signed else np.where(wide > 0, found, 0)).reshape(codes.shape)


def random_numbers(stream: int, step: int, state: int, elements: int) -> Array:
    """Numbers of [0, 1) for a state of an array at a step: 24 random bits each, float32."""
    key = mix(np.array([(stream + step) % 2**64], np.uint64))
    own = mix(key + np.uint64(state + 1))
    bits = draws_of(own, np.arange(elements)) // 2 ** (53 - 24)
    return bits.astype(np.float32) * np.float32(2.0**-24)


class Coded:
    """The states of a rule that are kept as codes: `numbers`, which `keep` replaces.

    arrays: codes and largest magnitudes of each state, and at the end a master copy if there is one, `rest`.
    """

    def __init__(self, rule: str, arrays: Sequence[Array]) -> None:
        count = len(arrays) // 2
        self.codes, self.largest = arrays[0 : 2 * count : 2], arrays[1 : 2 * count : 2]
        self.rest = tuple(arrays[2 * count :])
        self.signed = [sign == "s" for sign in SIGNS.get(rule, "s" * count)]
        of_states = zip(self.codes, self.largest, self.signed, strict=True)
        self.numbers = tuple(dequantized(codes, largest, signed) for codes, largest, signed in of_states)

    def keep(self, numbers: Sequence[Array], storage: str, stream: int, step: int) -> None:
        """Write the codes of other numbers."""
        of_states = zip(numbers, self.codes, self.largest, self.signed, strict=True)
        for k, (x, codes, largest, signed) in enumerate(of_states):
            random = random_numbers(stream, step, k, x.size) if storage == BLOCKWISE_RANDOM else None
            quantize(x, codes, largest, signed, random)
