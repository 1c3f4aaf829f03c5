"""Constraints on parameters: kernels of a piece of an array, which also take it into its average over steps.

    piece(p, average, constrained, sums, rows, columns, stride)

changes `rows` rows of p, each of `columns` elements, `stride` apart. average: of the same elements, 0 for none.
constrained: address of the array's record CONSTRAINED. sums: memory of a rank for 2 PIECE_SUMS numbers of float64.

A norm goes over all rows of a piece, for each column; over all columns, for each row; or there is none.
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

PIECE_SUMS = LANES  # columns of a piece by columns: their sums are the lanes of the adder of squares
BY_COLUMNS, BY_ROWS, ELEMENTWISE = "columns", "rows", "elements"


@cache
def _averager(T: Any) -> Callable[..., Any]:
    @register_jitable
    def average_row(p, average, count, share):
        P, A = view(p, count, T), view(average, count, T)
        for j in range(count):
            A[j] = averaged(A[j], P[j], share)

    return average_row


def _by_columns(factor: Callable[..., Any], T: Any, itemsize: int, add: Callable[..., Any]) -> Callable[..., None]:
    average_row = _averager(T)

    def piece(p, average, constrained, sums, rows, columns, stride):
        c, S = read(constrained, CONSTRAINED), view(sums, PIECE_SUMS, np.float64)
        for j in range(PIECE_SUMS):
            S[j] = 0
        # the squares of each column, row by row
        if columns == PIECE_SUMS:
            add(p, rows, stride * itemsize, sums)
        else:
            for i in range(rows):
                P = view(p + i * stride * itemsize, columns, T)
                for j in range(columns):
                    value = np.float64(P[j])
                    S[j] += value * value
        # its factor
        F = view(sums + PIECE_SUMS * 8, columns, T)
        for j in range(columns):
            F[j] = T(factor(sqrt(S[j]), c.most))
        for i in range(rows):
            skip = i * stride * itemsize
            P = view(p + skip, columns, T)
            for j in range(columns):
                P[j] *= F[j]
            if average:
                average_row(p + skip, average + skip, columns, view(c.share, 1, T)[0])

    return piece


def _by_rows(factor: Callable[..., Any], T: Any, itemsize: int, add: Callable[..., Any]) -> Callable[..., None]:
    average_row = _averager(T)

    def piece(p, average, constrained, sums, rows, columns, stride):
        c, S = read(constrained, CONSTRAINED), view(sums, PIECE_SUMS, np.float64)
        for i in range(rows):
            skip = i * stride * itemsize
            P = view(p + skip, columns, T)
            for lane in range(PIECE_SUMS):
                S[lane] = 0
            # the squares of a row: a lane's after one another, then the lanes in order
            count = columns // PIECE_SUMS
            add(p + skip, count, PIECE_SUMS * itemsize, sums)
            for j in range(count * PIECE_SUMS, columns):
                value = np.float64(P[j])
                S[j - count * PIECE_SUMS] += value * value
            total = 0.0
            for lane in range(PIECE_SUMS):
                total += S[lane]
            # its factor
            by = T(factor(sqrt(total), c.most))
            for j in range(columns):
                P[j] *= by
            if average:
                average_row(p + skip, average + skip, columns, view(c.share, 1, T)[0])

    return piece


def _elementwise(element: Callable[..., Any], T: Any, itemsize: int) -> Callable[..., None]:
    average_row = _averager(T)

    def piece(p, average, constrained, sums, rows, columns, stride):
        c = read(constrained, CONSTRAINED)
        for i in range(rows):
            skip = i * stride * itemsize
            P = view(p + skip, columns, T)
            for j in range(columns):
                P[j] = element(P[j])
            if average:
                average_row(p + skip, average + skip, columns, view(c.share, 1, T)[0])

    return piece


@register_jitable
def unchanged(p):
    """The constraint of a parameter that is only averaged."""
    return p


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
