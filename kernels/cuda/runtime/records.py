"""Records in device memory: NumPy's layout for the host that fills them in, offsets in bytes for kernels."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...formulas import NUM_SCALARS
from .compile import THREADS

TILE = 16 * THREADS  # elements of one piece of work
ROW = 128  # bytes of a row of scalars, of either dtype
STEP = ROW - 16  # where in it the number of the step is, int64: behind NUM_SCALARS + 1 numbers of float64
MAX_STATES = 4  # with the master copy

# An array, as far as it does not change.
RECORDS = np.dtype([
    ("elements", "i8"),
    ("first_tile", "i8"),
    ("states", "i8", (MAX_STATES,)),
    ("stream", "u8"),  # of rounding at random: with the number of the step it makes the key of the draws
    ("unused", "i8"),
])  # fmt: skip

# What may change from step to step: addresses of the parameter, the gradient (0: it is left out), the row of scalars;
# and, for kernels that count, whether there is a gradient, if only one without elements.
TURNS = np.dtype([("p", "i8"), ("g", "i8"), ("row", "i8"), ("there", "i8")])

# What the host asks of a step that depends on what only the device knows.
SETTINGS = np.dtype([
    ("scale", "f8"),  # what gradients are multiplied by
    ("most", "f8"),  # their norm is clipped to this; inf: it is not
    ("grad_scale", "i8"),  # address of a float32 that they are divided by; 0: none
    ("found_inf", "i8"),  # address of a float32: other than 0, and the step is skipped; 0: none
    ("careful", "i8"),  # 1: the step is skipped if a gradient is not finite
    ("seen", "i8"),  # the steps skipped that the rows of scalars allow for
    ("number", "i8"),  # of this step, for `news`; 0: it cannot be skipped
    ("counted", "i8"),  # 1: the device counts steps, so that there is one row of scalars for each array
])  # fmt: skip

# What the device makes of it, for the update, and for the host to read when it wants.
CONTROL = np.dtype([
    ("skip", "i8"),  # 1: the update does nothing
    ("shift", "i8"),  # bytes from the newest row of scalars to the one to be used
    ("skips", "i8"),  # steps skipped so far
    ("news", "i8"),  # 2 number + skip, in one word, so that the host sees both of the same step
    ("norm", "f8"),  # of the gradients, divided by grad_scale, before clipping
    ("float64", "f8"),  # what gradients are multiplied by, for kernels of either dtype
    ("float32", "f4"),
    ("grad_scale", "f4"),  # what gradients are to be divided by where they are written back; 1: nothing
])  # fmt: skip

# Where the device counts the steps of an array, in a number of 4 or 8 bytes, and which recipe its scalars have.
COUNTERS = np.dtype([("address", "i8"), ("bytes", "i8"), ("recipe", "i8"), ("unused", "i8")])

# What the scalars of arrays of one kind are made of.
RECIPES = np.dtype([
    ("how", "i8"),  # they depend on the step: a number of `formulas.optimizers.AT_STEP`
    ("bytes", "i8"),  # of a scalar: 4 or 8
    ("lr_at", "i8"),  # address of the learning rate; 0: it is `lr`
    ("lr_bytes", "i8"),  # its size there: 4 or 8
    ("lr", "f8"),
    ("decay", "f8"),  # decoupled weight decay
    ("row", "f8", (NUM_SCALARS + 1,)),  # in the limit of many steps, for a learning rate of 0
])  # fmt: skip

# Which batch it is.
CLOCK = np.dtype([
    ("batch", "i8"),  # of this pass, from 0
    ("ever", "i8"),  # batches trained on before it, in all passes: dropout's masks go by that
])  # fmt: skip

# Sums that a batch leaves, a float64 for each tile, and where their total is added: `stride` bytes further each batch.
TOTALS = np.dtype([("sums", "i8"), ("tiles", "i8"), ("into", "i8"), ("stride", "i8")])

DROPOUT = np.dtype([
    ("scale", "f8"),  # of what is kept: 1 / (1 - rate)
    ("threshold", "i8"),  # rate * 2**53: draws below it are dropped
    ("stream", "u8"),  # `dropout_stream` of the layer
])  # fmt: skip


def offset(dtype: np.dtype[Any], name: str) -> int:
    """Where in a record a field lies, in bytes."""
    assert dtype.fields is not None
    return dtype.fields[name][1]
