"""Arrays for tests of products on the device, whose gaps and neighbours show every write."""

from __future__ import annotations

import numpy as np

from fastopt.kernels.cuda.dense.blaslt_simulator import decode, encode, storage

# Of the largest sum of the terms' sizes: rounding of the operands' products and of the result. A sum of k terms is off
# by up to k rounding errors of the type that is computed in, in practice by sqrt(k); k is at most 300 here.
TOLERANCE = {"float64": 32 * 2.3e-16, "float32": 32 * 1.2e-7, "float16": 1e-3, "bfloat16": 8e-3, "tf32": 2e-3}
SENTINEL = 0x5A


class Rows:
    """A matrix in memory, (rows, columns), with `stride` elements from a row to the next."""

    def __init__(self, rows: int, columns: int, kind: str, stride: int = 0, values: np.ndarray | None = None) -> None:
        self.kind, self.shape, self.stride = kind, (rows, columns), stride or columns
        self.size = np.dtype(storage(kind)).itemsize
        self.memory = np.full(rows * self.stride * self.size + 512, SENTINEL, np.uint8)
        start = -self.memory.ctypes.data % 256
        self.address = self.memory.ctypes.data + start
        whole = self.memory[start : start + rows * self.stride * self.size].view(storage(kind))
        self.view = whole.reshape(rows, self.stride)[:, :columns]
        if values is not None:
            self.view[...] = encode(values, kind)

    def numbers(self) -> np.ndarray:
        """The values in memory, as float64."""
        return decode(np.ascontiguousarray(self.view), self.kind).astype(np.float64)

    def untouched(self) -> bool:
        """True if nothing was written between the rows, or before and after them."""
        copy = self.memory.copy()
        start = self.address - self.memory.ctypes.data
        rows = copy[start : start + self.shape[0] * self.stride * self.size].reshape(self.shape[0], -1)
        rows[:, : self.shape[1] * self.size] = SENTINEL
        return bool((copy == SENTINEL).all())


def rounded(values: np.ndarray, kind: str) -> np.ndarray:
    """Values rounded to this type, in float64."""
    return decode(encode(values, kind), kind).astype(np.float64)


def assert_close(actual: np.ndarray, expected: np.ndarray, kind: str, sizes: np.ndarray) -> None:
    scale = max(np.max(sizes, initial=0.0), np.max(np.abs(expected), initial=0.0), 1e-30)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=TOLERANCE[kind] * scale)
