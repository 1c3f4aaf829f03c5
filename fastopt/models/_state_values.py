"""States as plain values: what JSON holds, and arrays beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .._validation import describe, own

Tensors = dict[str, np.ndarray]
ARRAY, NUMBER = "__array__", "__float__"  # keys of a mapping that stands for an array, and for inf or NaN
DTYPES = (
    "float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "bool",
)  # fmt: skip
DEPTH = 50


def packed(value: Any, tensors: Tensors, name: str, depth: int = 0) -> Any:
    """A value as JSON holds it: its arrays are put into `tensors`, under names that begin with `name`.

    Raises TypeError for what is no mapping with strings for keys, list, tuple, string, number, bool, None or array.

    >>> tensors = {}
    >>> packed({"best": float("inf"), "weights": (np.zeros(2), 1)}, tensors, "a")
    {'best': {'__float__': 'inf'}, 'weights': [{'__array__': 'a.0'}, 1]}
    >>> list(tensors)
    ['a.0']
    """
    if depth > DEPTH:
        raise TypeError(f"{name} must not be deeper than {DEPTH} levels, nor hold itself")
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, np.ndarray):
        if value.dtype.newbyteorder("=").name not in DTYPES:
            raise TypeError(f"arrays of {name} must be of {', '.join(DTYPES)}; got {value.dtype}")
        key = f"{name}.{len(tensors)}"
        tensors[key] = own(value, value.dtype)
        return {ARRAY: key}
    if isinstance(value, Mapping):
        wrong = [key for key in value if not isinstance(key, str) or key in (ARRAY, NUMBER)]
        if wrong:
            raise TypeError(f"keys of {name} must be strings, and not {ARRAY} or {NUMBER}; got {describe(wrong[0])}")
        return {key: packed(part, tensors, name, depth + 1) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [packed(part, tensors, name, depth + 1) for part in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), -float("inf"))):
        return {NUMBER: repr(float(value))}
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise TypeError(
        f"{name} must hold numbers, strings, None, arrays, and lists and mappings of them; got {describe(value)}"
    )


def unpacked(value: Any, tensors: Tensors) -> Any:
    """The value that `packed` was given, tuples as lists; its arrays are taken out of `tensors`."""
    if isinstance(value, list):
        return [unpacked(part, tensors) for part in value]
    if not isinstance(value, dict):
        return value
    if ARRAY in value:
        return tensors.pop(value[ARRAY])
    if NUMBER in value:
        return float(value[NUMBER])
    return {key: unpacked(part, tensors) for key, part in value.items()}
