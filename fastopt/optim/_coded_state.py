"""States of 8 bits: a code an element, and the largest magnitude of each block; and bitsandbytes' names for them.

An entry of a state_dict has state k of a rule, from 1, as `state1` (uint8 codes), `qmap1` (the 256 numbers of codes)
and `absmax1` (float32, a number a block of 256 elements in the order of memory), as bitsandbytes' Adam8bit has; where
states are whole, `state1` alone. For an array whose elements are not in C order, `order` is that of its axes in memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .._dlpack import has_dlpack
from .._validation import describe
from ..kernels.formulas.blockwise import BLOCK, EXPONENTS, LEAST, ZERO, blocks_of, codebook_of
from ..kernels.spec import BLOCKWISE, BLOCKWISE_RANDOM

ROUNDINGS = {"nearest": BLOCKWISE, "stochastic": BLOCKWISE_RANDOM}  # `state_rounding` -> storage of states
MIN_ELEMENTS = 4096  # of an array whose states are codes: those of smaller ones take next to no memory
WRAPPED = "__bnb_optimizer_quant_state__"  # entry in which bitsandbytes has its arrays since 0.49
ORDER = "order"
# Entries of bitsandbytes' states and groups that mean nothing here.
_FOREIGN_STATES = ("unorm_vec", "gnorm_vec")
FOREIGN_HYPER = ("alpha", "t_alpha", "t_beta3")


class CodedState(NamedTuple):
    """A state as codes, laid out as kernels have the array."""

    codes: Any  # uint8, of the array's shape in memory: an array of NumPy, or on a GPU
    largest: Any  # (blocks,) float32

    def copy(self) -> CodedState:
        return CodedState(self.codes.copy(), self.largest.copy())


def new_coded(shape: Sequence[int], name: str, fill: float) -> CodedState:
    """A state of one number everywhere, at least 0."""
    book, elements = codebook_of(name), int(np.prod(shape, dtype=np.int64))
    code = len(book.values) - 1 if fill else ZERO if book.signed else 0
    return CodedState(np.full(shape, code, np.uint8), np.full(blocks_of(elements), fill, np.float32))


def encode(numbers: np.ndarray, name: str) -> CodedState:
    """The codes of a whole state, each of the nearest number.

    >>> state = encode(np.array([0.5, -2.0, 0.0, 2.0], np.float32), "exp_avg")
    >>> state.codes.tolist(), state.largest.tolist()
    ([201, 0, 127, 255], [2.0])
    """
    book, x = codebook_of(name), numbers.astype(np.float32).ravel()
    padded = np.zeros(blocks_of(x.size) * BLOCK, np.float32)
    padded[: x.size] = np.abs(x)
    largest = np.fmax.reduce(padded.reshape(-1, BLOCK), axis=1, initial=0)
    with np.errstate(all="ignore"):
        factors = np.where(largest > 0, np.float32(1) / largest, np.float32(0))
        y = np.fmax(np.abs(x) * np.repeat(factors, BLOCK)[: x.size], np.float32(LEAST))
    bits = y.view(np.int32)
    piece = (bits + book.shifts[(bits >> 23) & (EXPONENTS - 1)]) >> 23
    entry = np.minimum(np.floor(y * book.scales[piece] + book.offsets[piece]), book.last[piece]) - book.before
    entry = entry.astype(np.int64)
    with_sign = np.where(x < 0, np.maximum(ZERO - entry, 0), ZERO + entry)
    codes = with_sign if book.signed else np.where(x > 0, entry, 0)
    return CodedState(codes.astype(np.uint8).reshape(numbers.shape), largest)


def decode(state: CodedState, name: str, dtype: np.dtype[Any]) -> np.ndarray:
    """A whole state from its codes.

    >>> decode(CodedState(np.array([255, 0], np.uint8), np.array([0.5], np.float32)), "exp_avg_sq", np.dtype("f4"))
    array([0.5, 0. ], dtype=float32)
    """
    return _decoded(state.codes, state.largest, codebook_of(name).values).astype(dtype)


def _decoded(codes: np.ndarray, largest: np.ndarray, values: np.ndarray) -> np.ndarray:
    scales: np.ndarray = np.repeat(largest, BLOCK)[: codes.size].reshape(codes.shape)
    return values[codes] * scales


# ---------------------------------------------------------------- entries of a state_dict
def to_entry(k: int, name: str, largest: np.ndarray, codes: np.ndarray) -> dict[str, np.ndarray]:
    """Entries of state k, from 1; codes: in the array's own shape."""
    return {f"state{k}": codes, f"qmap{k}": codebook_of(name).values.copy(), f"absmax{k}": largest}


def unwrapped(entry: Mapping[str, Any]) -> dict[str, Any]:
    """An array's entry of a state_dict, with bitsandbytes' arrays among the others."""
    inner = entry.get(WRAPPED)
    found = {**entry, **(inner if isinstance(inner, Mapping) else {})}
    return {name: value for name, value in found.items() if name not in (WRAPPED, *_FOREIGN_STATES)}


def is_coded(entry: Mapping[str, Any]) -> bool:
    """True for an entry with bitsandbytes' names."""
    return "state1" in entry


class SavedState(NamedTuple):
    """A state of an entry with bitsandbytes' names, checked but for its shape."""

    state: Any  # the array, of codes or of numbers
    values: np.ndarray | None  # numbers of the codes; None: the state is whole
    largest: np.ndarray | None


def _array(where: str, value: Any) -> np.ndarray:
    if value is None:
        raise ValueError(f"{where} is missing")
    return np.from_dlpack(value) if has_dlpack(value) and not isinstance(value, np.ndarray) else np.asarray(value)


def saved_states(entry: Mapping[str, Any], names: Sequence[str], where: str, elements: int) -> dict[str, SavedState]:
    """The states of an entry with bitsandbytes' names, by our names; ValueError for what is damaged or too much."""
    found: dict[str, SavedState] = {}
    known = {"step", "master", ORDER}
    for k, name in enumerate(names, 1):
        known |= {f"{word}{k}" for word in ("state", "qmap", "absmax")}
        value = entry.get(f"state{k}")
        if value is None:
            continue
        values = largest = None
        if entry.get(f"qmap{k}") is not None:
            values = _array(f"qmap{k} of {where}", entry[f"qmap{k}"]).astype(np.float32)
            largest = _array(f"absmax{k} of {where}", entry.get(f"absmax{k}")).astype(np.float32)
            if values.shape != (256,) or largest.shape != (blocks_of(elements),):
                raise ValueError(
                    f"qmap{k} and absmax{k} of {where} must have the shapes (256,) and ({blocks_of(elements)},), one"
                    f" number for each block of {BLOCK}; got {values.shape} and {largest.shape}"
                )
            codes = _array(f"state{k} of {where}", value)
            if codes.dtype != np.uint8:
                raise TypeError(f"state{k} of {where} must be uint8 beside qmap{k}; got {describe(codes)}")
            value = codes
        found[name] = SavedState(value, values, largest)
    unknown = [name for name in entry if name not in known]
    if unknown:
        raise ValueError(f"{where} has the unknown entries {unknown}; known: {', '.join(sorted(known))}")
    return found


def loaded(saved: SavedState, codes: np.ndarray, name: str) -> CodedState | np.ndarray:
    """The state of saved codes, laid out in the order of its blocks: as they are if their map is ours, else whole."""
    assert saved.values is not None
    assert saved.largest is not None
    if np.allclose(saved.values, codebook_of(name).values, rtol=1e-6, atol=0):
        return CodedState(np.array(codes, order="C"), saved.largest.copy())
    return _decoded(codes, saved.largest, saved.values)
