"""Records in device memory: NumPy's layout for the host that fills them in, offsets in bytes for kernels."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...formulas import NUM_SCALARS
from .compile import THREADS

TILE = 16 * THREADS  # elements of a tile of an array
ROW = 128  # bytes of a row of scalars, of either dtype
STEP = ROW - 16  # offset of the step's number in a row, int64, past NUM_SCALARS + 1 values of float64
MAX_STATES = 4  # with the master copy
MAX_CODED = MAX_STATES - 1  # states that may be codes, each with its largest magnitudes

# Constants of an array.
RECORDS = np.dtype([
    ("elements", "i8"),
    ("first_tile", "i8"),
    ("states", "i8", (2 * MAX_CODED + 1,)),  # addresses; of codes and magnitudes in turn, and the master copy
    ("stream", "u8"),  # for rounding at random: with the number of the step it makes the key of the draws
])  # fmt: skip

# Values of an array that may change from step to step.
POINTERS = np.dtype([
    ("p", "i8"),  # address of the parameter
    ("g", "i8"),  # of the gradient; 0: the array is left out
    ("row", "i8"),  # of the row of scalars
    ("present", "i8"),  # for kernels that count: 1 if there is a gradient, even one without elements
])  # fmt: skip

# Settings of a step that depends on values that only the device has, written by the host.
SETTINGS = np.dtype([
    ("scale", "f8"),  # factor of the gradients
    ("max_norm", "f8"),  # their norm is clipped to this; inf: it is not
    ("grad_scale", "i8"),  # address of a float32 that they are divided by; 0: none
    ("found_inf", "i8"),  # address of a float32, which if not 0 skips the step; 0: none
    ("skip_nonfinite", "i8"),  # 1: the step is skipped if a gradient is not finite
    ("known_skips", "i8"),  # skipped steps that the rows of scalars allow for
    ("number", "i8"),  # of this step, for `outcome`; 0: it cannot be skipped
    ("counted", "i8"),  # 1: the device counts steps, so that there is one row of scalars for each array
])  # fmt: skip

# Results of the device, for the update, and for the host to read later.
CONTROL = np.dtype([
    ("skip", "i8"),  # 1: the update does nothing
    ("shift", "i8"),  # bytes from the newest row of scalars to the one that is used
    ("skips", "i8"),  # steps skipped so far
    ("outcome", "i8"),  # 2 number + skip, in one word, so that the host reads both of the same step
    ("norm", "f8"),  # of the gradients, divided by grad_scale, before clipping
    ("float64", "f8"),  # factor of the gradients, for kernels of either dtype
    ("float32", "f4"),
    ("divisor", "f4"),  # of gradients that are written back; 1: they are left as they are
])  # fmt: skip

# If the device counts: address and size, 4 or 8 bytes, of an array's number of steps, and the recipe of its scalars.
COUNTERS = np.dtype([("address", "i8"), ("bytes", "i8"), ("recipe", "i8"), ("unused", "i8")])

# Recipe of the scalars of all arrays of one kind.
RECIPES = np.dtype([
    ("how", "i8"),  # they depend on the step: a number of `formulas.optimizers.AT_STEP`
    ("bytes", "i8"),  # of a scalar: 4 or 8
    ("lr_address", "i8"),  # of the learning rate; 0: it is `lr`
    ("lr_bytes", "i8"),  # its size there: 4 or 8
    ("lr", "f8"),
    ("decay", "f8"),  # decoupled weight decay
    ("row", "f8", (NUM_SCALARS + 1,)),  # in the limit of many steps, for a learning rate of 0
])  # fmt: skip

# A parameter with a penalty, l1 sum |p| + l2 sum p^2.
PENALTIES = np.dtype([
    ("p", "i8"),  # address
    ("elements", "i8"),
    ("first_tile", "i8"),
    ("unused", "i8"),
    ("l1", "f8"),
    ("l2", "f8"),
])  # fmt: skip

# The number of the current batch.
CLOCK = np.dtype([
    ("batch", "i8"),  # of this pass, from 0
    ("ever", "i8"),  # batches trained on before it, in all passes: they choose dropout's masks
])  # fmt: skip

# Sums that a batch leaves, a float64 for each tile, and the address that their total is added to: `stride` bytes
# further each batch.
TOTALS = np.dtype([("sums", "i8"), ("tiles", "i8"), ("into", "i8"), ("stride", "i8")])

NOISE = np.dtype([
    ("stddev", "f8"),
    ("stream", "u8"),  # `dropout_stream` of the layer
])  # fmt: skip

NORMALIZATION = np.dtype([("epsilon", "f8"), ("momentum", "f8")])

DROPOUT = np.dtype([
    ("scale", "f8"),  # of what is kept: 1 / (1 - rate)
    ("threshold", "i8"),  # rate * 2**53: draws below it are dropped
    ("stream", "u8"),  # `dropout_stream` of the layer
])  # fmt: skip


def offset(dtype: np.dtype[Any], name: str) -> int:
    """Return the offset of a field in a record, in bytes."""
    assert dtype.fields is not None
    return dtype.fields[name][1]
