"""Products of small matrices in a block's shared memory: c = a b, by tiles of t x t elements in a thread's registers.

A thread goes along the sum by DEPTH terms at a time, and everything is loaded in vectors: for a tile of 4 x 4, 8 loads
of 16 bytes for 64 multiplications. Each factor lies in rows, either along the sum, or across it:

    forward    y = x w       x along, w across
    inputs     dx = dz w'    both along
    weights    dw = x' dz    both across

Rows of what lies along the sum are dealt out to threads in turn (a thread has each `down`-th), so that threads side by
side read rows side by side: with rows of an odd number of vectors, those are in different banks.

Sums are taken term by term, each with one rounding, by whichever thread: bits depend on nothing but the numbers. The
factors are filled up to multiples of DEPTH, one of the two with zeros; so is the result, with whatever comes out.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import cuda

from ..runtime.compile import SIMULATED, device
from ..runtime.primitives import SHARED, VECTOR, check_aligned, pointer_to, view

DEPTH = 4  # terms at a time, and what sizes are multiples of
SMALL, LARGE = 2, 4  # rows and columns of a tile: 4 x 4 loads least, but there must be tiles for all threads


def _compiled_terms(kind: str, t: int, a_along: bool, b_along: bool) -> Any:
    from numba.cuda import cgutils
    from numba.cuda.extending import intrinsic

    types = cuda.types
    real, i32, i64 = getattr(types, kind), ir.IntType(32), ir.IntType(64)
    size = real.bitwidth // 8

    def operand(builder, scalar, address, step, along):
        """Elements [row of the tile][term]."""
        count, width = (t, DEPTH) if along else (DEPTH, t)
        rows = []
        for n in range(count):
            place = builder.add(address, builder.mul(step, i64(n)))
            pointer = pointer_to(builder, ir.VectorType(scalar, width), place, SHARED)
            vector = builder.load(pointer, align=min(VECTOR, width * size))
            rows.append([builder.extract_element(vector, i32(m)) for m in range(width)])
        return rows if along else list(zip(*rows, strict=True))

    @intrinsic
    def terms(typingctx, sums, a, a_step, b, b_step):
        def codegen(context, builder, signature, args):
            scalar, found = context.get_value_type(real), cgutils.unpack_tuple(builder, args[0], t * t)
            rows = operand(builder, scalar, args[1], args[2], a_along)
            columns = operand(builder, scalar, args[3], args[4], b_along)
            for k in range(DEPTH):
                for i in range(t):
                    for j in range(t):
                        found[i * t + j] = builder.fma(rows[i][k], columns[j][k], found[i * t + j])
            return context.make_tuple(builder, signature.return_type, found)

        return sums(sums, types.int64, types.int64, types.int64, types.int64), codegen

    return terms


def _simulated_terms(kind: str, t: int, a_along: bool, b_along: bool) -> Any:
    def operand(address, step, along):
        count, width = (t, DEPTH) if along else (DEPTH, t)
        aligned = min(width, VECTOR // np.dtype(kind).itemsize)
        for n in range(count):
            check_aligned(address + n * step, kind, aligned)
        rows = np.stack([view(address + n * step, width, kind) for n in range(count)])
        return rows if along else rows.T

    def terms(sums, a, a_step, b, b_step):
        more = operand(a, a_step, a_along) @ operand(b, b_step, b_along).T
        return tuple(np.array(sums, kind) + more.reshape(-1))

    return terms


# terms(kind, t, a_along, b_along)(sums, a, a_step, b, b_step) -> t * t sums, row by row, with DEPTH terms more.
# a, b: addresses of the first row; the next one is a step further, in bytes.
terms = cache(_simulated_terms if SIMULATED else _compiled_terms)


def _compiled_keep(kind: str, t: int, along: bool) -> Any:
    from numba.cuda import cgutils
    from numba.cuda.extending import intrinsic

    types = cuda.types
    real, i32, i64 = getattr(types, kind), ir.IntType(32), ir.IntType(64)
    size = real.bitwidth // 8

    @intrinsic
    def keep(typingctx, sums, c, row, column):
        def codegen(context, builder, signature, args):
            scalar, values = context.get_value_type(real), cgutils.unpack_tuple(builder, args[0], t * t)
            for i in range(t):
                place, elements = builder.add(args[1], builder.mul(args[2], i64(i))), values[i * t : (i + 1) * t]
                if along:
                    for j, value in enumerate(elements):
                        at = builder.add(place, builder.mul(args[3], i64(j)))
                        builder.store(value, pointer_to(builder, scalar, at, SHARED), align=size)
                else:
                    vector = ir.Constant(ir.VectorType(scalar, t), ir.Undefined)
                    for j, value in enumerate(elements):
                        vector = builder.insert_element(vector, value, i32(j))
                    builder.store(vector, pointer_to(builder, vector.type, place, SHARED), align=min(VECTOR, t * size))
            return context.get_dummy_value()

        return types.void(sums, types.int64, types.int64, types.int64), codegen

    return keep


def _simulated_keep(kind: str, t: int, along: bool) -> Any:
    size = np.dtype(kind).itemsize

    def keep(sums, c, row, column):
        for i in range(t):
            if not along:
                check_aligned(c + i * row, kind, min(t, VECTOR // size))
            for j in range(t):
                view(c + i * row + j * (column if along else size), 1, kind)[0] = sums[i * t + j]

    return keep


# keep_sums(kind, t, along)(sums, c, row, column) stores the sums of a tile: its rows `row` bytes apart, in each its
# columns side by side, or where they belong to a factor along the sum, `column` bytes apart.
keep_sums = cache(_simulated_keep if SIMULATED else _compiled_keep)


def _tiled(kind: str, t: int, a_along: bool, b_along: bool, threads: int) -> Callable[..., None]:
    more, keep, size = terms(kind, t, a_along, b_along), keep_sums(kind, t, b_along), np.dtype(kind).itemsize
    nothing = (getattr(np, kind)(0),) * (t * t)

    def tiled(me, a, a_gap, b, b_gap, c, c_gap, rows, columns, depth):
        down, across = (rows + t - 1) // t, (columns + t - 1) // t
        # Of a factor along the sum: from one row of the tile to the next, from one tile to the next, from terms to
        # terms. Of one across it, the steps are those from term to term.
        a_step, a_tile, a_next = (down * a_gap, a_gap, DEPTH * size) if a_along else (a_gap, t * size, DEPTH * a_gap)
        b_step, b_tile, b_next = (across * b_gap, b_gap, DEPTH * size) if b_along else (b_gap, t * size, DEPTH * b_gap)
        c_down, c_step = (c_gap, down * c_gap) if a_along else (t * c_gap, c_gap)
        c_across = size if b_along else t * size
        for tile in range(me, down * across, threads):
            i = tile // across
            j = tile - i * across  # a division less
            sums, at, by = nothing, a + i * a_tile, b + j * b_tile
            for _ in range(0, depth, DEPTH):
                sums = more(sums, at, a_step, by, b_step)
                at += a_next
                by += b_next
            keep(sums, c + i * c_down + j * c_across, c_step, across * size)

    return device(tiled)


@cache
def product(kind: str, a_along: bool, b_along: bool, threads: int) -> Callable[..., None]:
    """product(me, a, a_gap, b, b_gap, c, c_gap, rows, columns, depth), for all of so many threads to call.

    Places are those of shared memory and gaps those between rows, in bytes, multiples of 16. c is (rows, columns), and
    each is filled up to a multiple of DEPTH. Nobody waits for anybody.
    """
    small, large = (_tiled(kind, t, a_along, b_along, threads) for t in (SMALL, LARGE))
    enough = SMALL * SMALL * threads

    def product(me, a, a_gap, b, b_gap, c, c_gap, rows, columns, depth):
        if rows * columns > enough:
            large(me, a, a_gap, b, b_gap, c, c_gap, rows, columns, depth)
        else:
            small(me, a, a_gap, b, b_gap, c, c_gap, rows, columns, depth)

    return device(product)
