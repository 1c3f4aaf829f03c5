"""Items (x, y) or (x, y, weights) of an iterable, such as torch's DataLoader, and arrays of all their rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from .._validation import describe


def are_items(given: Any) -> bool:
    """True for an iterable of items, and False for x and y themselves.

    >>> are_items([([[1.0]], [0])]), are_items(([[1.0]], [0])), are_items([[[1.0]], [0]])
    (True, False, False)
    """
    if isinstance(given, list):
        return bool(given) and all(isinstance(item, tuple) for item in given)
    is_array = hasattr(given, "shape") or hasattr(given, "__array__") or hasattr(given, "__dataframe__")
    return isinstance(given, Iterable) and not is_array and not isinstance(given, tuple | str | bytes | dict)


def check_items(x: Any) -> None:
    """Raise ValueError for an array, whose y is missing, and TypeError for what else is no iterable of items."""
    if isinstance(shape := getattr(x, "shape", None), tuple):
        raise ValueError(
            f"x and y must have as many rows; got shapes {shape} and (): without y, x must be an iterable of items"
            " (x, y)"
        )
    if isinstance(x, str | bytes | dict) or not isinstance(x, Iterable):
        raise TypeError(f"without y, x must be an iterable of items (x, y); got {describe(x)}")


def split(item: Any, number: int, name: str = "x") -> tuple[Any, ...]:
    """Return x, y and perhaps the weights of an item, the number-th of the iterable of this name, or of its epoch."""
    if not isinstance(item, tuple | list) or len(item) not in (2, 3):
        parts = f" of {len(item)}" if isinstance(item, tuple | list) else ""
        raise TypeError(
            f"every item of {name} must be a tuple (x, y) or (x, y, weights); got {describe(item)}{parts} as item"
            f" {number}"
        )
    return tuple(item)


def nothing_in(name: str) -> ValueError:
    """The error for an iterable without items."""
    return ValueError(f"{name} must have items (x, y); got an iterable without any")


def split_rows(x: Any, sample_weight: Any) -> tuple[Any, Any, Any]:
    """Return x, y and weights of an x whose items have them, for a call without y."""
    check_items(x)
    if sample_weight is not None:
        raise ValueError("sample_weight is for arrays x and y, and y is left out; give items (x, y, weights)")
    rows, targets, *weights = gathered("x", x)
    return rows, targets, weights[0] if weights else None


def gathered(name: str, given: Iterable[Any]) -> tuple[Any, ...]:
    """Return x, y and perhaps the weights of all rows of the items, which are gone through once.

    Raises TypeError for what is no item, ValueError where some have weights, or where there are none.

    >>> x, y = gathered("x", [([[1.0], [2.0]], [0, 1]), ([[3.0]], [1])])
    >>> x.tolist(), y.tolist()
    ([[1.0], [2.0], [3.0]], [0, 1, 1])
    """
    items = [split(item, number, name) for number, item in enumerate(given, 1)]
    if not items:
        raise nothing_in(name)
    if len({len(item) for item in items}) > 1:
        raise ValueError(f"the items of {name} must all have weights or none")
    return tuple(_joined(name, parts) for parts in zip(*items, strict=True))


def _joined(name: str, parts: Sequence[Any]) -> Any:
    """The rows of arrays, or of sparse matrices, one after the other."""
    if all(hasattr(part, "tocsr") for part in parts):
        from scipy.sparse import vstack

        return vstack([part.tocsr() for part in parts])
    arrays = [np.asarray(part.toarray() if hasattr(part, "tocsr") else part) for part in parts]
    shapes = {array.shape[1:] for array in arrays}
    if len(shapes) > 1 or not all(array.ndim for array in arrays):
        raise ValueError(
            f"the items of {name} must have rows of one shape; got shapes {', '.join(map(str, sorted(shapes)))}"
        )
    return np.concatenate(arrays)
