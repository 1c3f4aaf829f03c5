"""Records: what a kernel is told, as fields of 64 bits that Python fills in and kernels read.

A field holds a number, the address of an array, or the address of code; 0 stands for "none". Its name must not be one
of an array's attributes, such as `size`: interpreted kernels read fields as attributes of NumPy's records.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.extending import register_jitable

from .primitives import address_of, view


def _record(*names: str, reals: tuple[str, ...] = (), words: tuple[str, ...] = ()) -> np.dtype[Any]:
    kinds = dict.fromkeys(names, "i8") | dict.fromkeys(reals, "f8") | dict.fromkeys(words, "u8")
    return np.dtype(list(kinds.items()))


# One pass over the data: the program, the rows, and what the ranks tell each other.
RUN = _record(
    "phases",  # (count, 3): code of a phase, its work record, whether all ranks meet after it
    "count",
    "steps",
    "batch",  # rows of a full batch
    "rows",  # rows in all
    "order",  # their indices in x and y; 0: 0, 1, 2, ...
    "first",  # batches done before, by which dropout draws
    "arrived",  # ranks that have come to a barrier, ever
    "give_way",  # code of sched_yield
    "done",  # steps done, for whoever watches
    "stop",  # set by whoever watches
    "halt",  # set by rank 0 when it has seen `stop`, read by all ranks after the step's last barrier
    "marks",  # (ranks, marked, 1 + 2 count, 2): when phases were done, where the run is profiled
    "marked",  # steps that have room there
    "clock",  # code
)

GATHER = _record("run", "x", "y", "into_x", "into_y", "inputs", "part", "targets", "labels")

DENSE = _record(
    "run",
    "x",  # (rows, inputs)
    "w",  # (inputs, outputs)
    "b",  # (outputs,)
    "z",  # (rows, outputs), pre-activation; the same as y where the slope is a function of y
    "y",  # (rows, outputs)
    "dz",  # first the gradient of y, then that of z
    "dx",  # gradient of x
    "dw",  # where the gradients go if the layer is not updated
    "db",
    "inputs",
    "outputs",
    "high",  # rows and columns of a tile of y, and of a tile of dw
    "wide",
    "dw_high",
    "dw_wide",
    "parts",  # in which the rows of w are cut, and rows of one
    "part",
    "sums",  # (parts, rows, outputs): the products of the parts, where there are several
    "gemm",  # code
    "activate",  # code: z, b -> y
    "slope",  # code: dz, y or z -> dz, column sums
    "update",  # code of the optimizer's rule
    "w_states",  # (3,) addresses
    "b_states",
    "scalars",  # (steps, NUM_SCALARS + 1)
    "scalars_stride",  # in bytes
    "uses_y",  # the slope is a function of y (1) or of z (0)
    "shares",  # (batches, 2) float64, where dw and db add up: the batch's weight, and 1 to add to what is there, else 0
    "scratch",  # (ranks, scratch_size) bytes: a tile of dw, or the column sums in float64
    "scratch_size",
)

DROPOUT = _record("run", "x", "y", "dy", "dx", "columns", "threshold", reals=("scale",), words=("stream",))

LOSS = _record("run", "z", "t", "dz", "columns", "sums", reals=("param",))

METRIC = _record(
    "run", "z", "t",
    "columns",  # that are looked at
    "stride",  # elements from row to row
    "sums", reals=("z_boundary", "t_boundary"),
)  # fmt: skip

ACTIVATE = _record("run", "z", "y", "columns", "activate")

TOTAL = _record("run", "sums", "into", "stride")  # into[step * stride] += sum(sums)

UPDATE = _record(
    "update",  # code
    "p",
    "g",
    *("state0", "state1", "state2", "state3"),
    "key",  # of stochastic rounding
    "scalars",
    "elements",
    "first_tile",
    "itemsize",  # bytes of an element of g
)
UPDATES = _record("count", "table", "tiles", "scalars")  # scalars: of all arrays; 0: each has its own

# What a step does of a plan: see plan.py.
PLAN = _record(
    "count",
    "gradients",  # (count,) addresses; 0: the array is left out
    "steps",  # (count,) numbers
    "sizes",  # (count,) elements
    "kinds",  # (count,)
    "streams",  # (count,), from which the keys are made
    "table",  # (count,) of UPDATE
    "updates",  # one of UPDATES
    "scalars",  # (count, ROW) bytes
    "rows",  # (count, 2): the kind and the step number of each row of scalars in use
    "used",  # rows in use
    "elements",  # to be updated
)

# Gradients to be checked and their addresses to be read: see arrays.py.
ARRAYS = _record(
    "count",
    "objects",  # (count,) addresses of Python's objects
    "head",  # bytes of what all Python objects begin with
    "ndarray",  # the type's address
    "expected",  # (count, 3): addresses of dtype and shape, with the number of axes between them; -1: nothing will do
    "owners",  # (owned,) addresses of arrays that are not expected, sorted
    "owned",
    "into",  # (count,): the address of each array's first element; -1 where it is not as expected
    "others",  # how many are not
)

# Capsules of other libraries' arrays: see capsules.py.
CAPSULES = _record(
    "count",
    "objects",  # (count,) addresses of Python's objects
    "head",  # bytes of what all Python objects begin with
    "kind",  # the address of the type of capsules
    "old_name",
    "new_name",
    "expected",  # (count, 7): dtype and axes, as DLPack packs them; addresses of shape and strides; whether these may
    #   be left out; bytes of an element, and in all; address, or 0
    "starts",  # (spans,), and `ends`: memory that no array may share
    "ends",
    "spans",
    "into",  # (count,): addresses that are known, else 0; becomes the address of each array, or -1
)

SQUARES = _record("squares", "x", "elements", "first_piece", "itemsize")  # squares: code
SQUARES_ALL = _record("count", "table", "num_pieces", "sums", "lanes", "due")  # due: 0 for always, or as below

# Updates of some rows of an array: see sparse_rows.py.
ROWS_SUM = _record(
    "values",  # (count, columns)
    "count",
    "columns",
    "order",  # (count,): the places of the values, row by row
    "starts",  # (used + 1,): where in that order a row's places begin
    "used",  # rows
    "into",  # (used, columns)
    "room",  # (ranks, columns) float32, where values of 16 bits are added up; 0: in `into`
)
ROWS_UPDATE = _record(
    "update",  # code
    "p",
    "g",  # (used, columns)
    *("state0", "state1", "state2", "state3"),
    "key",  # of stochastic rounding
    "states",  # how many of them there are
    "scalars",
    "rows",  # (used,): which of p's they are, sorted
    "used",
    "columns",
    "itemsize",  # bytes of an element of p and g
    "states_itemsize",
)

# The update of all parameters from whole gradients: see two_pass.py.
APPLY = _record(
    "update_all",  # code
    "updates",  # (ranks,) of UPDATES
    "due",  # (batches,): the optimizer step, from 1, that follows a batch; 0: none
    "scalars",  # (steps, NUM_SCALARS + 1)
    "scalars_stride",  # in bytes
    "own",  # (ranks, OWN): the scalars of a rank with the factor of clipping
    "sums",  # (pieces,) float64: squares of the gradients
    "num_pieces",
    reals=("most",),  # the norm to clip to; 0: none
)


def fill(dtype: np.dtype[Any], **values: Any) -> np.ndarray:
    """One record; arrays are given by their addresses. The caller keeps them alive."""
    record = np.zeros(1, dtype)
    row = record[0]
    for name, value in values.items():
        row[name] = address_of(value) if value is None or isinstance(value, np.ndarray) else value
    return record


def offset(dtype: np.dtype[Any], name: str) -> int:
    """Where in a record a field lies, in bytes."""
    assert dtype.fields is not None
    return dtype.fields[name][1]


@register_jitable
def read(address, dtype):
    """The record at an address, in a kernel: fields are attributes."""
    return view(address, 1, dtype)[0]
