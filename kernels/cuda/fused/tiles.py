"""Products of small matrices in a block's shared memory: c = a b, by tiles of t x t elements in a thread's registers.

A thread adds DEPTH terms of the sum at a time, and loads vectors: for a tile of 4 x 4, 8 loads of 16 bytes for 64
multiplications. The rows of a factor go either along the sum, or across it:

    forward    y = x w       x along, w across
    inputs     dx = dz w'    both along
    weights    dw = x' dz    both across

Rows of a factor along the sum are dealt out to tiles with a stride (a tile has every `tiles_down`-th), so that
neighbouring threads read neighbouring rows: with rows of an odd number of vectors, those are in different banks.

Sums are added up term by term, each with one rounding, so bits depend neither on the tiles nor on the threads. The
factors are padded to multiples of DEPTH, one of the two with zeros; the padding of the result is arbitrary.
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

DEPTH = 4  # terms at a time; all sizes are padded to multiples of it
SMALL, LARGE = 2, 4  # rows and columns of a tile: 4 x 4 loads least, but all threads must have a tile


def _compiled_terms(kind: str, t: int, a_along: bool, b_along: bool) -> Any:
    from numba.cuda import cgutils
    from numba.cuda.extending import intrinsic

    types = cuda.types
    real, i32, i64 = getattr(types, kind), ir.IntType(32), ir.IntType(64)
    size = real.bitwidth // 8

    def operand(builder, scalar, address, step, along):
        """Loaded elements, [row of the tile][term]."""
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


# terms(kind, t, a_along, b_along)(sums, a, a_step, b, b_step) -> t * t sums, row by row, with DEPTH more terms added.
# a, b: addresses of the first row; the next row is a step further, in bytes.
terms = cache(_simulated_terms if SIMULATED else _compiled_terms)


def _compiled_store(kind: str, t: int, along: bool) -> Any:
    from numba.cuda import cgutils
    from numba.cuda.extending import intrinsic

    types = cuda.types
    real, i32, i64 = getattr(types, kind), ir.IntType(32), ir.IntType(64)
    size = real.bitwidth // 8

    @intrinsic
    def store(typingctx, sums, c, row, column):
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

    return store


def _simulated_store(kind: str, t: int, along: bool) -> Any:
    size = np.dtype(kind).itemsize

    def store(sums, c, row, column):
        for i in range(t):
            if not along:
                check_aligned(c + i * row, kind, min(t, VECTOR // size))
            for j in range(t):
                view(c + i * row + j * (column if along else size), 1, kind)[0] = sums[i * t + j]

    return store


# store_sums(kind, t, along)(sums, c, row, column) stores the sums of a tile, with rows `row` bytes apart. Its columns
# are adjacent, or `column` bytes apart if `along`: they belong to a factor whose rows go along the sum.
store_sums = cache(_simulated_store if SIMULATED else _compiled_store)


def _tiled(kind: str, t: int, a_along: bool, b_along: bool, threads: int) -> Callable[..., None]:
    add_terms, store, size = terms(kind, t, a_along, b_along), store_sums(kind, t, b_along), np.dtype(kind).itemsize
    no_terms = (getattr(np, kind)(0),) * (t * t)

    def tiled(tid, a, a_stride, b, b_stride, c, c_stride, rows, columns, depth):
        tiles_down, tiles_across = (rows + t - 1) // t, (columns + t - 1) // t
        # Bytes of a factor from row to row of a tile (across the sum: from term to term), from tile to tile, and from
        # DEPTH terms to the next.
        if a_along:
            a_step, a_tile, a_next = tiles_down * a_stride, a_stride, DEPTH * size
        else:
            a_step, a_tile, a_next = a_stride, t * size, DEPTH * a_stride
        if b_along:
            b_step, b_tile, b_next = tiles_across * b_stride, b_stride, DEPTH * size
        else:
            b_step, b_tile, b_next = b_stride, t * size, DEPTH * b_stride
        c_down, c_step = (c_stride, tiles_down * c_stride) if a_along else (t * c_stride, c_stride)
        c_across = size if b_along else t * size
        for tile in range(tid, tiles_down * tiles_across, threads):
            i = tile // tiles_across
            j = tile - i * tiles_across  # spares a division
            sums, at, by = no_terms, a + i * a_tile, b + j * b_tile
            for _ in range(0, depth, DEPTH):
                sums = add_terms(sums, at, a_step, by, b_step)
                at += a_next
                by += b_next
            store(sums, c + i * c_down + j * c_across, c_step, tiles_across * size)

    return device(tiled)


@cache
def product(kind: str, a_along: bool, b_along: bool, threads: int) -> Callable[..., None]:
    """product(tid, a, a_stride, b, b_stride, c, c_stride, rows, columns, depth), which all threads of a block call.

    a, b, c: addresses in shared memory; strides: bytes from row to row, multiples of 16. c is (rows, columns); all are
    padded to multiples of DEPTH. There is no barrier inside.
    """
    small, large = (_tiled(kind, t, a_along, b_along, threads) for t in (SMALL, LARGE))
    num_small = SMALL * SMALL * threads

    def product(tid, a, a_stride, b, b_stride, c, c_stride, rows, columns, depth):
        if rows * columns > num_small:
            large(tid, a, a_stride, b, b_stride, c, c_stride, rows, columns, depth)
        else:
            small(tid, a, a_stride, b, b_stride, c, c_stride, rows, columns, depth)

    return device(product)
