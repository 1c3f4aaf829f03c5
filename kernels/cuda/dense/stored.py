"""Values of x as the device stores them, and the way of each to a batch: widened, prepared by stages, rounded.

The twin of `cpu/dense/gather`. Memory holds the values of a `Source` in their own dtype. Of sparse rows it holds what
the host has, three arrays, whose addresses are in a record; a value is looked up among the columns of its row.
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

read_words3 = reader("int64", 3)


class Layout(NamedTuple):
    """Dtype of the values in the device's memory, and the kinds of the stages that prepare them."""

    stored: str
    stages: tuple[bool, ...] = ()  # of each, True if it divides
    columns: str = ""  # dtype of the numbers of columns and values of sparse rows; "": all values are stored

    @property
    def name(self) -> str:
        """Name for kernels."""
        kinds = "".join("d" if divides else "m" for divides in self.stages)
        return "_".join(filter(None, (self.stored, kinds, self.columns and f"sparse_{self.columns}")))

    @property
    def size(self) -> int:
        """Bytes of a value."""
        return np.dtype(self.stored).itemsize


def layout_of(x: np.ndarray | Source, dtype: np.dtype[Any]) -> Layout | None:
    """The layout of x for a network of a dtype; None where the device gets the network's dtype."""
    if not isinstance(x, Source):
        return None
    stored, columns = x.dtype.newbyteorder("="), x.values.columns.dtype.name if isinstance(x.values, SparseRows) else ""
    if stored == dtype and not x.stages and not columns:
        return None
    return Layout(stored.name, tuple(stage.divides for stage in x.stages), columns)


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


def _finder(kind):
    """find(columns, starts, row, j): where the value of column j of a row is stored, by bisection; -1: it is 0."""
    read, size = reader(kind, 1), np.dtype(kind).itemsize

    def find(columns, starts, row, j):
        low, end = np.int64(read(starts + row * size)[0]), np.int64(read(starts + (row + 1) * size)[0])
        high = end
        while low < high:
            middle = (low + high) // 2
            if read(columns + middle * size)[0] < j:
                low = middle + 1
            else:
                high = middle
        if low < end and read(columns + low * size)[0] == j:
            return low
        return np.int64(-1)

    return device(find)


def _reader(layout):
    """read(x, inputs, row, j): column j of a row of x as it is stored, widened."""
    store = _store_of(layout.stored)
    load, zero = array_loader((store,), 1), getattr(np, store.real)(0)

    def read(x, inputs, row, j):
        return load((x,), row * inputs + j)[0][0]

    if not layout.columns:
        return device(read)
    find = _finder(layout.columns)

    def read_sparse(x, inputs, row, j):
        values, columns, starts = read_words3(x)
        place = find(columns, starts, row, j)
        return load((values,), place)[0][0] if place >= 0 else zero

    return device(read_sparse)


@cache
def value_of(layout: Layout, dtype: str) -> Any:
    """value(x, stages, inputs, row, j): column j of a row of x, in the network's dtype.

    x: address of the values, or of a record with those of sparse rows: of values, columns and starts. stages: address
    of the table of their factors and terms.
    """
    prepared, read, T = _prepared(layout.stages), _reader(layout), getattr(np, dtype)

    def rounded(x, stages, inputs, row, j):
        return T(read(x, inputs, row, j))

    def staged(x, stages, inputs, row, j):
        return T(prepared(np.float64(read(x, inputs, row, j)), stages, inputs, j))

    return device(staged if layout.stages else rounded)
