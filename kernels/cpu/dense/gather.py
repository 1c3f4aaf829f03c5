"""The phase that fills a batch: rows of x and y, drawn by the order of the epoch.

x may be a `Source`: its values are converted, and prepared by its stages, as they are copied. A `Layout` is the part of
a source that code depends on: each has a kernel of its own, so that x of the network's dtype is copied by a plain loop.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np

from ...sources import Source, SparseRows
from ..runtime.compile import Kernel
from ..runtime.frontend import register_jitable
from ..runtime.partition import batch_rows, batch_start, num_pieces, pieces_of_rank
from ..runtime.primitives import load_unaligned, prefetch, view
from ..runtime.records import GATHER, RUN, read
from ..runtime.storage import ARITHMETIC, as_it_is, widen_float16
from .rows import ROWS, by_order

AHEAD = 4  # rows prefetched ahead of the one that is copied
LINE_BYTES = 64
# The dtype in memory where it is not that of the values.
IN_MEMORY = {"bool": "uint8", "float16": "uint16"}


class Layout(NamedTuple):
    """Layout of x in memory, and the kinds of its stages."""

    stored: str  # the dtype of its values
    rows: str = "whole"  # "strided": of any strides, alignment and byte order; "int32", "int64": sparse, indexed so
    swapped: bool = False  # the bytes of a value stand in the other order
    stages: tuple[bool, ...] = ()  # of each, True if it divides

    @property
    def name(self) -> str:
        """Name for kernels: the dtype, and what else there is."""
        kinds = "".join("d" if divides else "m" for divides in self.stages)
        rows = "" if self.rows == "whole" else self.rows
        return "_".join(filter(None, [self.stored, rows, "swapped" * self.swapped, kinds]))


PLAIN = {np.dtype(T): Layout(T) for T in ("float32", "float64")}  # of x of a network's dtype


def layout_of(x: np.ndarray | Source) -> Layout:
    """The layout of the rows of x."""
    if not isinstance(x, Source):
        return PLAIN[x.dtype]
    values, kinds = x.values, tuple(stage.divides for stage in x.stages)
    stored = _name_of(values.dtype)
    if isinstance(values, SparseRows):
        return Layout(stored, values.columns.dtype.name, stages=kinds)
    swapped = not values.dtype.isnative
    neighbours = values.shape[1] == 1 or values.strides[1] == values.itemsize
    is_whole = neighbours and values.flags.aligned and not swapped
    return Layout(stored, "whole" if is_whole else "strided", swapped, kinds)


@cache
def _name_of(dtype: np.dtype[Any]) -> str:
    """The name of a dtype, whatever its byte order; NumPy takes 1.5 us for it."""
    return dtype.newbyteorder("=").name


# ---------------------------------------------------------------- one row of x
@cache
def _prepared(kinds):
    """prepared(v, stages, inputs, j): v after stages of these kinds, in float64.

    stages: address of the first stage's factor of column 0 of those that j counts. LLVM vectorises the loop over j as
    nothing in it is read from a record, which a store to the batch might change, and no place but j is looked up.
    """
    if not kinds:
        return _as_stored
    before, divides, at = _prepared(kinds[:-1]), kinds[-1], 2 * (len(kinds) - 1)

    @register_jitable(error_model="numpy", forceinline=True)
    def prepared(v, stages, inputs, j):
        v = before(v, stages, inputs, j)
        factor = view(stages + at * inputs * 8, inputs, np.float64)[j]
        term = view(stages + (at + 1) * inputs * 8, inputs, np.float64)[j]
        return (v - term) / factor if divides else v * factor + term

    return prepared


@register_jitable(forceinline=True)
def _as_stored(v, stages, inputs, j):
    return v


@cache
def _converter(layout: Layout, dtype: str) -> Any:
    """converted(stored, stages, inputs, j): the number of a batch that a stored value becomes; see `_prepared`."""
    T, round_ = ARITHMETIC[dtype].T, ARITHMETIC[dtype].round
    widen = widen_float16 if layout.stored == "float16" else as_it_is
    prepared, has_stages = _prepared(layout.stages), bool(layout.stages)

    @register_jitable(error_model="numpy", forceinline=True)
    def converted(stored, stages, inputs, j):
        v = widen(stored)
        if has_stages:
            v = prepared(np.float64(v), stages, inputs, j)
        return round_(T(v))

    return converted


def _whole_row(layout, dtype):
    S = np.dtype(IN_MEMORY.get(layout.stored, layout.stored)).type
    converted, size = _converter(layout, dtype), np.dtype(S).itemsize

    @register_jitable(error_model="numpy", forceinline=True)
    def copy_row(g, row, first_col, cols, target):
        source = view(g.x + row * g.row_bytes + first_col * size, cols, S)
        stages, inputs = g.stages + first_col * 8, g.inputs
        for j in range(cols):
            target[j] = converted(source[j], stages, inputs, j)

    return copy_row


def _strided_row(layout, dtype):
    load = load_unaligned(IN_MEMORY.get(layout.stored, layout.stored), layout.swapped)
    converted = _converter(layout, dtype)

    @register_jitable(error_model="numpy", forceinline=True)
    def copy_row(g, row, first_col, cols, target):
        element_bytes, stages, inputs = g.element_bytes, g.stages + first_col * 8, g.inputs
        first = g.x + row * g.row_bytes + first_col * element_bytes
        for j in range(cols):
            target[j] = converted(load(first + j * element_bytes), stages, inputs, j)

    return copy_row


def _sparse_row(layout, dtype):
    S, Index = np.dtype(IN_MEMORY.get(layout.stored, layout.stored)).type, getattr(np, layout.rows)
    T, itemsize, round_ = ARITHMETIC[dtype].T, ARITHMETIC[dtype].itemsize, ARITHMETIC[dtype].round
    size, index_bytes = np.dtype(S).itemsize, np.dtype(Index).itemsize
    converted = _converter(layout, dtype)

    @register_jitable(error_model="numpy", forceinline=True)
    def copy_row(g, row, first_col, cols, target):
        # values that are not stored
        absent = view(g.absent + first_col * itemsize, cols, T)
        for j in range(cols):
            target[j] = round_(absent[j])
        # those that are, of these columns
        ends = view(g.starts + row * index_bytes, 2, Index)
        count = np.int64(ends[1]) - np.int64(ends[0])
        source = view(g.x + np.int64(ends[0]) * size, count, S)
        columns = view(g.sparse_columns + np.int64(ends[0]) * index_bytes, count, Index)
        for k in range(count):
            column = np.int64(columns[k])
            if first_col <= column < first_col + cols:
                target[column - first_col] = converted(source[k], g.stages, g.inputs, column)

    return copy_row


# ---------------------------------------------------------------- the phase
def _gather(T, itemsize, copy_row, line_bytes, Order):
    """Copy the batch's rows of x, converted, and of y, drawn by `order`, into batch_x and batch_y.

    batch_x has the columns of a piece together. They are read by the rank that copies them, and if those of two ranks
    were neighbours in memory, each core would fetch ahead what the other one is about to write.

    line_bytes: bytes of a column of x where a row's are neighbours, so that rows are prefetched; 0: they are not.
    """

    def gather(work, step, rank, num_ranks):
        g = read(work, GATHER)
        run = read(g.run, RUN)
        rows, start = batch_rows(g.run, step), batch_start(run, step)
        order = view(run.order, run.num_rows if run.order else 0, Order)
        pieces_down = num_pieces(rows, ROWS)
        for piece in pieces_of_rank(num_pieces(g.inputs, g.piece_cols) * pieces_down, rank, num_ranks):
            # one piece: ROWS rows, piece_cols columns of x
            first_col, first_row = piece // pieces_down * g.piece_cols, piece % pieces_down * ROWS
            cols = min(g.piece_cols, g.inputs - first_col)
            for i in range(first_row, min(rows, first_row + ROWS)):
                row = np.int64(order[start + i]) if run.order else start + i
                # ask for a row that is copied later
                if line_bytes and run.order and start + i + AHEAD < run.num_rows:
                    ahead = g.x + np.int64(order[start + i + AHEAD]) * g.row_bytes + first_col * line_bytes
                    for line in range(0, cols * line_bytes, LINE_BYTES):
                        prefetch(ahead + line)
                # the row of x
                target = view(g.batch_x + (first_col * g.capacity + i * g.piece_cols) * itemsize, cols, T)
                copy_row(g, row, first_col, cols, target)
                # the label or the row of y, with the first columns of x
                if first_col:
                    continue
                if g.has_labels:
                    view(g.batch_y + i * 8, 1, np.int64)[0] = view(g.y + row * 8, 1, np.int64)[0]
                elif g.y:
                    source = view(g.y + row * g.outputs * itemsize, g.outputs, T)
                    target = view(g.batch_y + i * g.outputs * itemsize, g.outputs, T)
                    for j in range(g.outputs):
                        target[j] = source[j]

    return gather


@cache
def _row_copy(layout: Layout, dtype: str) -> Any:
    makers = {"whole": _whole_row, "strided": _strided_row}
    return makers.get(layout.rows, _sparse_row)(layout, dtype)


@cache
def gather_kernel(layout: Layout, dtype: str, order: str) -> Kernel:
    """dtype: that which layers compute in, to which features are rounded; order: the dtype of row numbers."""
    T, itemsize = ARITHMETIC[dtype].T, ARITHMETIC[dtype].itemsize
    line_bytes = np.dtype(layout.stored).itemsize if layout.rows == "whole" else 0
    plain = Layout(np.dtype(T).name)
    name = "_".join(["gather", *([] if layout == plain else [layout.name, "to"]), dtype])
    function = _gather(T, itemsize, _row_copy(layout, dtype), line_bytes, getattr(np, order))
    return Kernel(function, name + by_order(order))
