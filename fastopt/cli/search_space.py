"""Types of the options of `fastopt search`: ranges, lists and single values of settings."""

from __future__ import annotations

import math
from argparse import ArgumentTypeError
from collections.abc import Callable
from typing import Any

from .arguments import widths

FORMS = "a number, a list such as 0.1,0.2, a range LOW:HIGH, or LOW:HIGH:N for N numbers of it"


def numbers(is_logarithmic: bool, whole: bool = False) -> Callable[[str], Any]:
    """Return the type of numbers to search: a value, a list, or a tuple (low, high).

    >>> numbers(True)("1e-4:1e-1"), numbers(True)("1e-4:1e-2:3"), numbers(False, whole=True)("16,32")
    ((0.0001, 0.1), [0.0001, 0.001, 0.01], [16, 32])
    """

    def parse(text: str) -> Any:
        try:
            if ":" in text:
                return _range(text, is_logarithmic, whole)
            found = [_number(part, whole) for part in text.split(",")]
        except (ValueError, OverflowError):
            kind = "whole numbers: " if whole else ""
            raise ArgumentTypeError(f"must be {kind}{FORMS}; got {text!r}") from None
        return found if len(found) > 1 else found[0]

    return parse


def _number(text: str, whole: bool) -> float:
    value = int(text) if whole else float(text)
    if not math.isfinite(value):
        raise ValueError
    return value


def _range(text: str, is_logarithmic: bool, whole: bool) -> Any:
    first, second, *rest = text.split(":")
    low, high = _number(first, whole), _number(second, whole)
    if not low < high or len(rest) > 1:
        raise ArgumentTypeError(f"must be a range LOW:HIGH, or LOW:HIGH:N, with LOW below HIGH; got {text!r}")
    if is_logarithmic and low <= 0:
        raise ArgumentTypeError(f"must be a range above 0, as numbers are drawn by their logarithms; got {text!r}")
    if not rest:
        return low, high
    count = int(rest[0])
    if count < 2:
        raise ValueError
    parts = [i / (count - 1) for i in range(count)]
    spread = [low * (high / low) ** part if is_logarithmic else low + (high - low) * part for part in parts]
    rounded = [float(f"{value:.6g}") for value in spread]
    return list(dict.fromkeys(round(value) for value in spread)) if whole else rounded


def layers(text: str) -> Any:
    """Return widths of hidden layers, or a list of such.

    >>> layers("32,64/128/none"), layers("128,64")
    ([(32, 64), (128,), ()], (128, 64))
    """
    found = [widths(part) for part in text.split("/")]
    return found if len(found) > 1 else found[0]


def names(known: Any) -> Callable[[str], Any]:
    """Return the type of a known name, or a list of such.

    >>> names(["adam", "sgd"])("adam,sgd")
    ['adam', 'sgd']
    """

    def parse(text: str) -> Any:
        found = text.split(",")
        for name in found:
            if name not in known:
                raise ArgumentTypeError(f"must be among {', '.join(known)}, or some of them with commas; got {name!r}")
        return found if len(found) > 1 else found[0]

    return parse
