"""Sums and largest elements over the threads of a block, and over a row that COLUMN_LANES threads share.

A block is a grid of threads, (ROW_LANES, COLUMN_LANES): `tid` is a thread's index in the block, `column_lane` and
`row_lane` are its place in the grid. All threads of a block call these functions together, for each has barriers.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from numba import cuda

from ..runtime.compile import SIMULATED, THREADS, device
from ..runtime.vectors import array_loader, plain

COLUMN_LANES = 4 if SIMULATED else 32  # threads side by side along a row
ROW_LANES = THREADS // COLUMN_LANES  # threads below one another, each with every ROW_LANES-th row
NOT_RANKED = 1 << 32  # more than a row has columns


def _add_up(totals, tid, count):
    """Add up `count` values in shared memory, a power of two, by halves; the sum ends in the first."""
    half = count // 2
    while half > 0:
        cuda.syncthreads()
        if tid < half:
            totals[tid] += totals[tid + half]
        half //= 2


def _add_up_rows(cells, row_lane, column_lane):
    """Add up each row of cells (ROW_LANES, COLUMN_LANES) into its first."""
    half = COLUMN_LANES // 2
    while half > 0:
        cuda.syncthreads()
        if column_lane < half:
            cells[row_lane, column_lane] += cells[row_lane, column_lane + half]
        half //= 2
    cuda.syncthreads()


def _add_up_columns(cells, row_lane, column_lane):
    """Add up each column of cells (ROW_LANES, COLUMN_LANES) into its first row."""
    half = ROW_LANES // 2
    while half > 0:
        cuda.syncthreads()
        if row_lane < half:
            cells[row_lane, column_lane] += cells[row_lane + half, column_lane]
        half //= 2
    cuda.syncthreads()


def _max_rows(cells, row_lane, column_lane):
    """Bring the largest of each row of cells (ROW_LANES, COLUMN_LANES) into its first."""
    half = COLUMN_LANES // 2
    while half > 0:
        cuda.syncthreads()
        if column_lane < half and cells[row_lane, column_lane + half] > cells[row_lane, column_lane]:
            cells[row_lane, column_lane] = cells[row_lane, column_lane + half]
        half //= 2
    cuda.syncthreads()


add_up, add_up_rows, add_up_columns = device(_add_up), device(_add_up_rows), device(_add_up_columns)
max_rows = device(_max_rows)


def _total_of_row(cells, part, row_lane, column_lane):
    """Return the sum of the parts that the threads of a row of cells have; cells may be used again at once."""
    cells[row_lane, column_lane] = part
    add_up_rows(cells, row_lane, column_lane)
    total = cells[row_lane, 0]
    cuda.syncthreads()
    return total


def _total_of_column(cells, part, row_lane, column_lane):
    """Return the sum of the parts that the threads of a column of cells have; cells may be used again at once."""
    cells[row_lane, column_lane] = part
    add_up_columns(cells, row_lane, column_lane)
    total = cells[0, column_lane]
    cuda.syncthreads()
    return total


total_of_row, total_of_column = device(_total_of_row), device(_total_of_column)


@cache
def softmax_sums(dtype):
    """Return f: the largest z of a row, with the sum of exp(z - it) in masses[row_lane, 0]; of no columns -inf and 0.

    maxima and masses: shared memory, (ROW_LANES, COLUMN_LANES).
    """
    load, real = array_loader((plain(dtype),), 1), getattr(np, dtype)

    def softmax_sums(z, row, stride, columns, maxima, masses, row_lane, column_lane):
        # the largest of the row
        largest = real(-math.inf)
        for j in range(column_lane, columns, COLUMN_LANES):
            x = load((z,), row * stride + j)[0][0]
            largest = x if x > largest else largest
        maxima[row_lane, column_lane] = largest
        max_rows(maxima, row_lane, column_lane)
        # the sum of the exponentials
        largest, mass = maxima[row_lane, 0], 0.0
        for j in range(column_lane, columns, COLUMN_LANES):
            mass += np.float64(math.exp(load((z,), row * stride + j)[0][0] - largest))
        masses[row_lane, column_lane] = mass
        add_up_rows(masses, row_lane, column_lane)
        return largest

    return device(softmax_sums)


@cache
def argmax(dtype):
    """Return f: the column of the largest element of a row, of equal ones the first; -1 if one is NaN; of none 0.

    maxima and indices: shared memory, (ROW_LANES, COLUMN_LANES).
    """
    load, real = array_loader((plain(dtype),), 1), getattr(np, dtype)

    def argmax(row, columns, maxima, indices, row_lane, column_lane):
        # the largest of a thread's own columns; an index past the row: it has none
        index, largest = columns, real(-math.inf)
        for j in range(column_lane, columns, COLUMN_LANES):
            x = load((row,), j)[0][0]
            if x != x:
                index = -1
            elif index == columns or (index >= 0 and x > largest):
                index, largest = j, x
        maxima[row_lane, column_lane], indices[row_lane, column_lane] = largest, index
        # the largest of the row, by halves: of equal ones the first; nothing is larger than NaN
        half = COLUMN_LANES // 2
        while half > 0:
            cuda.syncthreads()
            if column_lane < half:
                mine, other = indices[row_lane, column_lane], indices[row_lane, column_lane + half]
                x, y = maxima[row_lane, column_lane], maxima[row_lane, column_lane + half]
                if other < 0 or (mine >= 0 and other < columns and (y > x or (y == x and other < mine))):
                    indices[row_lane, column_lane], maxima[row_lane, column_lane] = other, y
            half //= 2
        cuda.syncthreads()
        index = indices[row_lane, 0]
        cuda.syncthreads()  # the next row begins with indices
        return index

    return device(argmax)


@cache
def rank_of_class(dtype):
    """Return f: the number of classes that a row of outputs prefers to the right one; NOT_RANKED or more: NaN.

    ranks: shared memory, (ROW_LANES, COLUMN_LANES).
    """
    load = array_loader((plain(dtype),), 1)

    def rank_of_class(row, columns, right, ranks, row_lane, column_lane):
        rank = 0
        if columns != 0:
            score = load((row,), right)[0][0]
            for j in range(column_lane, columns, COLUMN_LANES):
                x = load((row,), j)[0][0]
                if x != x:
                    rank += NOT_RANKED
                elif x > score or (x == score and j < right):
                    rank += 1
        return total_of_row(ranks, rank, row_lane, column_lane)

    return device(rank_of_class)
