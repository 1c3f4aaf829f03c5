"""Values of x as the device stores them, and the way of each to a batch: widened, prepared by stages, rounded.

The twin of `cpu/dense/gather`. Memory holds the values of a `Source` in their own dtype.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np

from ...sources import Source, SparseRows
from ..runtime.compile import device
from ..runtime.primitives import reader
from ..runtime.storage import STORES
from ..runtime.vectors import Store, array_loader, plain


class Layout(NamedTuple):
    """Dtype of the values in the device's memory, and the kinds of the stages that prepare them."""

    stored: str
    stages: tuple[bool, ...] = ()  # of each, True if it divides

    @property
    def name(self) -> str:
        """Name for kernels."""
        kinds = "".join("d" if divides else "m" for divides in self.stages)
        return f"{self.stored}_{kinds}" if kinds else self.stored

    @property
    def size(self) -> int:
        """Bytes of a value."""
        return np.dtype(self.stored).itemsize


def layout_of(x: np.ndarray | Source, dtype: np.dtype[Any]) -> Layout | None:
    """The layout of x for a network of a dtype; None where the device gets the network's dtype.

    Sparse rows, of which most values would be 0, are filled up and prepared by the host.
    """
    if not isinstance(x, Source) or isinstance(x.values, SparseRows):
        return None
    stored = x.dtype.newbyteorder("=")
    if stored == dtype and not x.stages:
        return None
    return Layout(stored.name, tuple(stage.divides for stage in x.stages))


def _store_of(stored: str) -> Store:
    return STORES["float16"] if stored == "float16" else plain("uint8" if stored == "bool" else stored)


def _prepared(kinds):
    """prepared(v, stages, inputs, j): v of column j after stages of these kinds, in float64; stages: their table."""
    read = reader("float64", 1)

    def as_stored(v, stages, inputs, j):
        return v

    if not kinds:
        return device(as_stored)
    before, divides, at = _prepared(kinds[:-1]), kinds[-1], 2 * (len(kinds) - 1)

    def prepared(v, stages, inputs, j):
        v = before(v, stages, inputs, j)
        factor, term = read(stages + (at * inputs + j) * 8)[0], read(stages + ((at + 1) * inputs + j) * 8)[0]
        return (v - term) / factor if divides else v * factor + term

    return device(prepared)


@cache
def value_of(layout: Layout, dtype: str) -> Any:
    """value(x, stages, inputs, row, j): column j of a row of x, in the network's dtype.

    stages: address of the table of their factors and terms.
    """
    load, T = array_loader((_store_of(layout.stored),), 1), getattr(np, dtype)
    prepared = _prepared(layout.stages)

    def rounded(x, stages, inputs, row, j):
        return T(load((x,), row * inputs + j)[0][0])

    def staged(x, stages, inputs, row, j):
        return T(prepared(np.float64(load((x,), row * inputs + j)[0][0]), stages, inputs, j))

    return device(staged if layout.stages else rounded)
