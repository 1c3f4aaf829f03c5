"""Arithmetic of kernels, and the bytes that they must move at least."""

from __future__ import annotations

from functools import cache

from fastopt.kernels.costs import CountedValue, count_operations
from fastopt.kernels.formulas import LOSSES


@cache
def loss_flops(name: str) -> int:
    """Operations for the loss and the gradient of one output; a softmax adds its exponential, sum and division."""
    row = LOSSES[name]
    z, t = CountedValue(0.25), CountedValue(0.75)
    if row.by_row:
        return 4 + count_operations(row.value, z, t, CountedValue(2.0)) + count_operations(row.slope, z, t)
    a = CountedValue(0.5)
    return count_operations(row.value, z, t, a) + count_operations(row.slope, z, t, a)


def dense_bytes(rows: int, inputs: int, outputs: int, backward: bool, itemsize: int = 4) -> int:
    """Bytes of each array once: x, w, b, y; backward dy, x, w, y and the three gradients."""
    x, w, y = rows * inputs, inputs * outputs, rows * outputs
    return itemsize * (2 * x + 2 * w + 2 * y + outputs if backward else x + w + y + outputs)
