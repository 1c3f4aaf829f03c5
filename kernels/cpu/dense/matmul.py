"""Matrix products for AVX-512, called like a BLAS: C (m, n) = alpha A (m, k) B (k, n) (+ C), with A, B or both
transposed.

The products of a dense layer's training step have few rows or a short sum, and a BLAS spends much of their time on
packing its operands. Here a tile of C is kept in vector registers, and A and B are read in place; only a transposed B
is packed, a strip at a time. Every element of C is summed in the same order, whatever the tiles, in blocks of DEPTH
products.

The innermost loop is written in LLVM's vector instructions, because no compiler makes it of scalar code: for each of
the k, `vectors` vectors of a row of B are multiplied with each of `rows` elements of a column of A, and added to C.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir

from ..runtime.compile import Kernel, lock
from ..runtime.frontend import cgutils, intrinsic, register_jitable, types
from ..runtime.primitives import target_has, view

ROW_MAJOR, AS_IS, TRANSPOSED = 101, 111, 112  # CBLAS's constants
DEPTH = 256  # rows of B in a block: a strip of it stays in the first-level cache
# A tile of C: 8 rows of two vectors are 16 of the 32 registers of AVX-512.
VECTOR_BYTES, TILE_ROWS, TILE_VECTORS = 64, 8, 2


@cache
def available() -> bool:
    """True if Numba compiles for AVX-512.

    With the 16 registers of AVX2, in tiles of 4 x 3 vectors, the same loops reached 0.6 to 1.1 of OpenBLAS's speed.
    """
    return target_has("+avx512f")


def _vector(T: Any, lanes: int) -> tuple[ir.Type, ir.VectorType]:
    scalar = ir.FloatType() if T is np.float32 else ir.DoubleType()
    return scalar, ir.VectorType(scalar, lanes)


def _pointer(builder: Any, address: Any, pointee: ir.Type) -> Any:
    return builder.inttoptr(address, pointee.as_pointer())


@cache
def tile_of(T: Any, lanes: int, rows: int, vectors: int, whole: bool) -> Any:
    """The innermost loop, for a tile of C of so many rows and vectors; without `whole` only `columns` of it exist.

    x_row, x_step: bytes in matrix x from one row of the tile to the next, and from one of the k products to the next.
    """
    scalar, vector = _vector(T, lanes)
    itemsize = np.dtype(T).itemsize
    i64, i32 = ir.IntType(64), ir.IntType(32)

    def broadcast(builder: Any, value: Any) -> Any:
        """A vector with the value in every lane."""
        first = builder.insert_element(ir.Constant(ir.VectorType(value.type, lanes), ir.Undefined), value, i32(0))
        return builder.shuffle_vector(first, first, ir.Constant(ir.VectorType(i32, lanes), [0] * lanes))

    def masked(builder: Any, name: str, result: ir.Type, *arguments: Any) -> Any:
        kind = ir.FunctionType(result, [argument.type for argument in arguments])
        code = cgutils.get_or_insert_function(builder.module, kind, f"llvm.masked.{name}.v{lanes}f{8 * itemsize}.p0")
        return builder.call(code, arguments)

    def load(builder: Any, address: Any, mask: Any) -> Any:
        pointer = _pointer(builder, address, vector)
        if mask is None:
            return builder.load(pointer, align=itemsize)
        return masked(builder, "load", vector, pointer, i32(itemsize), mask, ir.Constant(vector, None))

    def store(builder: Any, value: Any, address: Any, mask: Any) -> None:
        pointer = _pointer(builder, address, vector)
        if mask is None:
            builder.store(value, pointer, align=itemsize)
        else:
            masked(builder, "store", ir.VoidType(), value, pointer, i32(itemsize), mask)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        alpha, a, a_row, a_step, b, b_step, c, c_row, depth, columns, add = args
        kind = ir.FunctionType(vector, [vector] * 3)
        fma = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fma.v{lanes}f{8 * itemsize}")
        # masks of the columns that exist
        masks: list[Any] = [None] * vectors
        if not whole:
            limit = broadcast(builder, columns)
            for v in range(vectors):
                cols = ir.Constant(ir.VectorType(i64, lanes), [v * lanes + lane for lane in range(lanes)])
                masks[v] = builder.icmp_signed("<", cols, limit)

        # the loop over the products: the tile's sums are values of the loop, so they stay in registers
        before, loop = builder.block, builder.append_basic_block("products")
        after = builder.append_basic_block("sums")
        builder.branch(loop)
        builder.position_at_end(loop)
        count = builder.phi(i64)
        sums = [[builder.phi(vector) for _ in range(vectors)] for _ in range(rows)]
        # a row of B
        from_b = builder.add(b, builder.mul(count, b_step))
        row_of_b = [load(builder, builder.add(from_b, i64(v * lanes * itemsize)), masks[v]) for v in range(vectors)]
        # times a column of A, added to the sums
        from_a = builder.add(a, builder.mul(count, a_step))
        added = []
        for i in range(rows):
            pointer = _pointer(builder, builder.add(from_a, builder.mul(a_row, i64(i))), scalar)
            factor = broadcast(builder, builder.load(pointer, align=itemsize))
            added.append([builder.call(fma, [factor, row_of_b[v], sums[i][v]]) for v in range(vectors)])
        following = builder.add(count, i64(1))
        for phi, first, value in [(count, i64(0), following)] + [
            (sums[i][v], ir.Constant(vector, None), added[i][v]) for i in range(rows) for v in range(vectors)
        ]:
            phi.add_incoming(first, before)
            phi.add_incoming(value, loop)
        builder.cbranch(builder.icmp_signed("<", following, depth), loop, after)

        # alpha times the sums, written to C or added to it
        builder.position_at_end(after)
        factor = broadcast(builder, alpha)
        adding, setting = builder.append_basic_block("add"), builder.append_basic_block("set")
        end = builder.append_basic_block("end")
        results = []
        for i in range(rows):
            row_of_c = builder.add(c, builder.mul(c_row, i64(i)))
            for v in range(vectors):
                address = builder.add(row_of_c, i64(v * lanes * itemsize))
                results.append((address, masks[v], builder.fmul(factor, added[i][v])))
        builder.cbranch(builder.icmp_signed("!=", add, i64(0)), adding, setting)
        for block, adds in ((adding, True), (setting, False)):
            builder.position_at_end(block)
            for address, mask, value in results:
                total = builder.fadd(load(builder, address, mask), value) if adds else value
                store(builder, total, address, mask)
            builder.branch(end)
        builder.position_at_end(end)
        return context.get_dummy_value()

    @intrinsic
    def tile(typingctx, alpha, a, a_row, a_step, b, b_step, c, c_row, depth, columns, add):
        return types.void(types.float32 if T is np.float32 else types.float64, *[types.int64] * 10), codegen

    return tile


@cache
def transpose_of(T: Any, lanes: int) -> Any:
    """to[i, j] = source[j, i] for lanes x lanes elements; x_row: bytes from row to row of matrix x."""
    _, vector = _vector(T, lanes)
    itemsize, i64, i32 = np.dtype(T).itemsize, ir.IntType(64), ir.IntType(32)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, source_row, to, to_row = args
        rows = []
        for i in range(lanes):
            pointer = _pointer(builder, builder.add(source, builder.mul(source_row, i64(i))), vector)
            rows.append(builder.load(pointer, align=itemsize))
        # exchange the off-diagonal quarters of every square of 2 half x 2 half (Eklundh 1972)
        half = lanes // 2
        while half:
            for i in [i for i in range(lanes) if not i & half]:
                first, second = rows[i], rows[i + half]
                upper = [lane if not lane & half else lanes + lane - half for lane in range(lanes)]
                lower = [lane + half if not lane & half else lanes + lane for lane in range(lanes)]
                for at, order in ((i, upper), (i + half, lower)):
                    rows[at] = builder.shuffle_vector(first, second, ir.Constant(ir.VectorType(i32, lanes), order))
            half //= 2
        for i in range(lanes):
            pointer = _pointer(builder, builder.add(to, builder.mul(to_row, i64(i))), vector)
            builder.store(rows[i], pointer, align=itemsize)
        return context.get_dummy_value()

    @intrinsic
    def transpose(typingctx, source, source_row, to, to_row):
        return types.void(*[types.int64] * 4), codegen

    return transpose


@cache
def _stack(size: int) -> Any:
    """The address of so many bytes on the stack, for as long as the kernel runs."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        with builder.goto_entry_block():
            memory = builder.alloca(ir.ArrayType(ir.IntType(8), size))
            memory.align = 64
        return builder.ptrtoint(memory, ir.IntType(64))

    @intrinsic
    def stack(typingctx):
        return types.int64(), codegen

    return stack


def _strip(T: Any, lanes: int, vectors: int, whole: bool) -> Callable[..., None]:
    """The product for a strip of C: tiles from top to bottom, smaller ones for the last rows."""
    tile, four, two, one = (tile_of(T, lanes, rows, vectors, whole) for rows in (TILE_ROWS, 4, 2, 1))

    @register_jitable
    def strip(alpha, m, a, a_row, a_step, b, b_step, c, c_row, depth, columns, add):
        i = 0
        while m - i >= TILE_ROWS:
            tile(alpha, a + i * a_row, a_row, a_step, b, b_step, c + i * c_row, c_row, depth, columns, add)
            i += TILE_ROWS
        if m - i >= 4:
            four(alpha, a + i * a_row, a_row, a_step, b, b_step, c + i * c_row, c_row, depth, columns, add)
            i += 4
        if m - i >= 2:
            two(alpha, a + i * a_row, a_row, a_step, b, b_step, c + i * c_row, c_row, depth, columns, add)
            i += 2
        if i < m:
            one(alpha, a + i * a_row, a_row, a_step, b, b_step, c + i * c_row, c_row, depth, columns, add)

    return strip


def _matmul(T: Any) -> Callable[..., None]:
    itemsize = np.dtype(T).itemsize
    lanes = VECTOR_BYTES // itemsize
    strip_cols = lanes * TILE_VECTORS
    strip, edge, narrow = (
        _strip(T, lanes, *kind) for kind in ((TILE_VECTORS, True), (TILE_VECTORS, False), (1, False))
    )
    transpose, stack = transpose_of(T, lanes), _stack(DEPTH * strip_cols * itemsize)

    @register_jitable
    def pack(b, ldb, columns, depth, to):
        """to[p, j] = B[j, p] for a strip."""
        for j in range(0, columns, lanes):
            # whole squares as vectors
            n = min(lanes, columns - j)
            p = 0
            if n == lanes:
                while p + lanes <= depth:
                    corner = to + (p * strip_cols + j) * itemsize
                    transpose(b + (j * ldb + p) * itemsize, ldb * itemsize, corner, strip_cols * itemsize)
                    p += lanes
            # the other elements one by one
            target = view(to, DEPTH * strip_cols, T)
            for jj in range(j, j + n):
                source = view(b + jj * ldb * itemsize, depth, T)
                for pp in range(p, depth):
                    target[pp * strip_cols + jj] = source[pp]

    def matmul(order, ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc):
        # row-major; beta is 0 or 1 in all calls
        packed, adds = stack(), int(beta != 0)
        # a column, of which a vector would hold one element: calculated as a row, C' = B' A'
        if n == 1 and ldc == 1:
            row_of_b = 1 if tb == TRANSPOSED else ldb
            tb = AS_IS if ta == TRANSPOSED else TRANSPOSED
            ta, m, n, a, lda, b, ldb, ldc = TRANSPOSED, 1, m, b, row_of_b, a, lda, m
        a_row, a_step = (itemsize, lda * itemsize) if ta == TRANSPOSED else (lda * itemsize, itemsize)
        for j in range(0, n, strip_cols):
            # one strip of C
            columns = min(strip_cols, n - j)
            to = c + j * itemsize
            for p in range(0, k, DEPTH):
                # one block of products: its strip of B, packed if it is transposed
                depth = min(DEPTH, k - p)
                if tb == TRANSPOSED:
                    pack(b + (j * ldb + p) * itemsize, ldb, columns, depth, packed)
                    source, b_step = packed, strip_cols * itemsize
                else:
                    source, b_step = b + (p * ldb + j) * itemsize, ldb * itemsize
                # its tiles; all blocks but the first add to C
                from_a, add = a + p * a_step, p + adds
                if columns == strip_cols:
                    strip(alpha, m, from_a, a_row, a_step, source, b_step, to, ldc * itemsize, depth, columns, add)
                elif columns <= lanes:
                    narrow(alpha, m, from_a, a_row, a_step, source, b_step, to, ldc * itemsize, depth, columns, add)
                else:
                    edge(alpha, m, from_a, a_row, a_step, source, b_step, to, ldc * itemsize, depth, columns, add)
            # an empty sum
            if k == 0 and not adds:
                for i in range(m):
                    row = view(to + i * ldc * itemsize, columns, T)
                    for jj in range(columns):
                        row[jj] = 0

    return matmul


def gemm_types(dtype: str) -> tuple[str, ...]:
    """Numba's types of the parameters of cblas_?gemm, by name, with addresses as integers."""
    i32, i64 = "int32", "int64"
    return (*[i32] * 6, dtype, i64, i32, i64, i32, dtype, i64, i32)


@cache
def matmul_kernel(dtype: str) -> Kernel:
    with lock:  # two threads would make two different kernels
        return Kernel(_matmul(getattr(np, dtype)), f"matmul_{dtype}", gemm_types(dtype))
