"""Constraints on parameters: kernels of some rows of an array, which also take them into their averages over steps.

    constrain(p, average, constrained, scratch, rows, columns, stride)

changes `rows` rows of p, each of `columns` elements, `stride` apart. average: of the same elements, 0 for none.
constrained: address of the array's record CONSTRAINED. scratch: memory of a rank, of `scratch_bytes`.

Norms of columns go over the rows of all ranks. So before it

    measure(p, squares, unused, unused, rows, columns, stride)

sums the squares of the columns of each piece, just after its update or in a phase of its own, and every rank adds up
the pieces, in order. A rank stays with the rows that it updates, which are in its core's cache:
pieces of columns, which need no such phase, took 72 us instead of 15 on two cores (784-256-128-10).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from math import sqrt
from typing import Any

import numpy as np

from ...formulas import CONSTRAINTS, averaged
from ..runtime.compile import Kernel, lock
from ..runtime.frontend import register_jitable
from ..runtime.primitives import view
from ..runtime.records import CONSTRAINED, read
from .norm import LANES, lane_adder

BY_COLUMNS, BY_ROWS, ELEMENTWISE = "columns", "rows", "elements"


@cache
def _averager(T: Any) -> Callable[..., Any]:
    @register_jitable
    def average_row(p, average, count, share):
        P, A = view(p, count, T), view(average, count, T)
        for j in range(count):
            A[j] = averaged(A[j], P[j], share)

    return average_row


def _measure(T: Any, itemsize: int, add: Callable[..., Any]) -> Callable[..., None]:
    def measure(p, squares, unused, unused2, rows, columns, stride):
        S = view(squares, columns, np.float64)
        for j in range(columns):
            S[j] = 0
        # LANES columns at a time, all rows of them, then the rest of the columns
        whole = columns // LANES * LANES
        for j in range(0, whole, LANES):
            add(p + j * itemsize, rows, stride * itemsize, squares + j * 8)
        for i in range(rows if whole < columns else 0):
            P = view(p + i * stride * itemsize, columns, T)
            for j in range(whole, columns):
                value = np.float64(P[j])
                S[j] += value * value

    return measure


def _by_columns(factor: Callable[..., Any], T: Any, itemsize: int, add: Callable[..., Any]) -> Callable[..., None]:
    def constrain(p, average, constrained, scratch, rows, columns, stride):
        c, S = read(constrained, CONSTRAINED), view(scratch, columns, np.float64)
        # the squares of each column, piece by piece
        for j in range(columns):
            S[j] = 0
        for i in range(c.measured):
            Q = view(c.squares + i * columns * 8, columns, np.float64)
            for j in range(columns):
                S[j] += Q[j]
        # its factor
        F = view(scratch + columns * 8, columns, T)
        for j in range(columns):
            F[j] = T(factor(sqrt(S[j]), c.most))
        for i in range(rows):
            skip = i * stride * itemsize
            P = view(p + skip, columns, T)
            if average:
                A, share = view(average + skip, columns, T), view(c.share, 1, T)[0]
                for j in range(columns):
                    new = P[j] * F[j]
                    P[j] = new
                    A[j] = averaged(A[j], new, share)
            else:
                for j in range(columns):
                    P[j] *= F[j]

    return constrain


def _by_rows(factor: Callable[..., Any], T: Any, itemsize: int, add: Callable[..., Any]) -> Callable[..., None]:
    average_row = _averager(T)

    def constrain(p, average, constrained, scratch, rows, columns, stride):
        c, S = read(constrained, CONSTRAINED), view(scratch, LANES, np.float64)
        for i in range(rows):
            skip = i * stride * itemsize
            P = view(p + skip, columns, T)
            for lane in range(LANES):
                S[lane] = 0
            # the squares of a row: a lane's one after another, then the lanes in order
            count = columns // LANES
            add(p + skip, count, LANES * itemsize, scratch)
            for j in range(count * LANES, columns):
                value = np.float64(P[j])
                S[j - count * LANES] += value * value
            total = 0.0
            for lane in range(LANES):
                total += S[lane]
            # its factor
            by = T(factor(sqrt(total), c.most))
            for j in range(columns):
                P[j] *= by
            if average:
                average_row(p + skip, average + skip, columns, view(c.share, 1, T)[0])

    return constrain


def _elementwise(element: Callable[..., Any], T: Any, itemsize: int) -> Callable[..., None]:
    average_row = _averager(T)

    def constrain(p, average, constrained, scratch, rows, columns, stride):
        c = read(constrained, CONSTRAINED)
        for i in range(rows):
            skip = i * stride * itemsize
            P = view(p + skip, columns, T)
            for j in range(columns):
                P[j] = element(P[j])
            if average:
                average_row(p + skip, average + skip, columns, view(c.share, 1, T)[0])

    return constrain


@register_jitable
def unchanged(p):
    """The constraint of a parameter that is only averaged."""
    return p


def scratch_bytes(columns: int) -> int:
    """Memory that a rank needs for arrays of so many columns."""
    return 16 * columns + 8 * LANES


def measure_kernel(dtype: str) -> Kernel:
    """The kernel of the sums of squares of columns."""
    with lock:  # two threads would make two different kernels
        return _measure_kernel(dtype)


@cache
def _measure_kernel(dtype: str) -> Kernel:
    return Kernel(_measure(getattr(np, dtype), np.dtype(dtype).itemsize, lane_adder(dtype)), f"column_squares_{dtype}")


def constraint_kernel(name: str, layout: str, dtype: str) -> Kernel:
    """The kernel of a row of CONSTRAINTS; "" for an array that is only averaged. layout: BY_COLUMNS or its like."""
    with lock:  # two threads would make two different kernels
        return _constraint_kernel(name, layout, dtype)


@cache
def _constraint_kernel(name: str, layout: str, dtype: str) -> Kernel:
    T, itemsize = getattr(np, dtype), np.dtype(dtype).itemsize
    if layout == ELEMENTWISE:
        element = CONSTRAINTS[name].element if name else unchanged
        assert element is not None
        return Kernel(_elementwise(element, T, itemsize), f"constraint_{name or 'none'}_{dtype}")
    factor = CONSTRAINTS[name].factor
    assert factor is not None
    build = _by_columns if layout == BY_COLUMNS else _by_rows
    return Kernel(build(factor, T, itemsize, lane_adder(dtype)), f"constraint_{name}_{layout}_{dtype}")
