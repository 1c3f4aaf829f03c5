"""Constraints on parameters: a norm of each column, or of each row, or a function of each element.

    constrain(p, rows, columns, settings)    changes p (rows, columns) in place; settings: address of the largest norm

Norms are summed in float64, in an order that the shape alone determines: each thread's elements one after the other,
then the threads. A parameter is read twice and written once; it stays in the cache in between.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from numba import cuda

from ...formulas import CONSTRAINTS
from ..runtime.compile import SIMULATED, THREADS, Kernel, device
from ..runtime.primitives import reader
from ..runtime.storage import STORES
from ..runtime.vectors import array_loader, array_storer

COLUMNS = 2 if SIMULATED else 32  # of a piece by columns; the threads of a block share its rows
PARTS = THREADS // COLUMNS
BY_COLUMNS, BY_ROWS, ELEMENTWISE = "columns", "rows", "elements"

read_most = reader("float64", 1)


def _by_columns(factor, dtype):
    own, real, factor_of = STORES[dtype], getattr(np, dtype), device(factor)
    load, store = array_loader((own,), 1), array_storer((own,), 1)

    def constrain(p, rows, columns, settings):
        totals = cuda.shared.array(THREADS, np.float64)
        tid = cuda.threadIdx.x
        lane, part = tid % COLUMNS, tid // COLUMNS
        most = read_most(settings)[0]
        for piece in range(cuda.blockIdx.x, (columns + COLUMNS - 1) // COLUMNS, cuda.gridDim.x):
            column = piece * COLUMNS + lane
            # the squares of each thread's rows
            total = 0.0
            if column < columns:
                for row in range(part, rows, PARTS):
                    x = np.float64(load((p,), row * columns + column)[0][0])
                    total += x * x
            totals[tid] = total
            # those of all rows, which each thread of the column adds up in the same order
            cuda.syncthreads()
            total = 0.0
            for other in range(PARTS):
                total += totals[other * COLUMNS + lane]
            cuda.syncthreads()  # the next piece begins with totals
            by = real(factor_of(math.sqrt(total), most))
            if column < columns:
                for row in range(part, rows, PARTS):
                    i = row * columns + column
                    store((p,), i, ((load((p,), i)[0][0] * by,),))

    return constrain


def _by_rows(factor, dtype):
    own, real, factor_of = STORES[dtype], getattr(np, dtype), device(factor)
    load, store = array_loader((own,), 1), array_storer((own,), 1)

    def constrain(p, rows, columns, settings):
        totals = cuda.shared.array(THREADS, np.float64)
        tid = cuda.threadIdx.x
        most = read_most(settings)[0]
        for row in range(cuda.blockIdx.x, rows, cuda.gridDim.x):
            # the squares of each thread's columns
            total = 0.0
            for column in range(tid, columns, THREADS):
                x = np.float64(load((p,), row * columns + column)[0][0])
                total += x * x
            totals[tid] = total
            # those of all columns, in two stages
            cuda.syncthreads()
            if tid < COLUMNS:
                for other in range(tid + COLUMNS, THREADS, COLUMNS):
                    total += totals[other]
            cuda.syncthreads()
            if tid < COLUMNS:
                totals[tid] = total
            cuda.syncthreads()
            total = 0.0
            for other in range(COLUMNS):
                total += totals[other]
            cuda.syncthreads()  # the next row begins with totals
            by = real(factor_of(math.sqrt(total), most))
            for column in range(tid, columns, THREADS):
                i = row * columns + column
                store((p,), i, ((load((p,), i)[0][0] * by,),))

    return constrain


def _elementwise(element, dtype):
    own, element_of = STORES[dtype], device(element)
    load, store = array_loader((own,), 1), array_storer((own,), 1)

    def constrain(p, rows, columns, settings):
        first, step = cuda.blockIdx.x * THREADS + cuda.threadIdx.x, cuda.gridDim.x * THREADS
        for i in range(first, rows * columns, step):
            store((p,), i, ((element_of(load((p,), i)[0][0]),),))

    return constrain


@cache
def constraint_kernel(name: str, layout: str, dtype: str) -> Kernel:
    """Return the kernel of a row of CONSTRAINTS; layout: BY_COLUMNS, BY_ROWS, or ELEMENTWISE without a norm."""
    row = CONSTRAINTS[name]
    if row.factor is None:
        return Kernel(_elementwise(row.element, dtype), f"constraint_{name}_{dtype}")
    build = _by_columns if layout == BY_COLUMNS else _by_rows
    return Kernel(build(row.factor, dtype), f"constraint_{name}_{layout}_{dtype}")


def constraint_kernels(dtype: str) -> list[Kernel]:
    """Return the kernels of all constraints on arrays of a dtype."""
    layouts = {name: (BY_COLUMNS, BY_ROWS) if row.factor else (ELEMENTWISE,) for name, row in CONSTRAINTS.items()}
    return [constraint_kernel(name, layout, dtype) for name, some in layouts.items() for layout in some]


def num_pieces(layout: str, rows: int, columns: int) -> int:
    """Return the pieces of work of a kernel."""
    if layout == BY_ROWS:
        return rows
    return -(-columns // COLUMNS) if layout == BY_COLUMNS else -(-rows * columns // THREADS)
