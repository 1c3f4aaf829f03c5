"""The innermost loops of matrix products, written in LLVM's vector instructions: no compiler makes them of scalar code.

Matrices are given by an address and two strides in bytes: from row to row, and for A and B from one of the k products
to the next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir

from ..runtime.frontend import cgutils, intrinsic, types
from ..runtime.processors import VectorUnit

i64, i32, i8 = ir.IntType(64), ir.IntType(32), ir.IntType(8)


def pointer(builder: Any, address: Any, pointee: ir.Type) -> Any:
    return builder.inttoptr(address, pointee.as_pointer())


def broadcast(builder: Any, value: Any, lanes: int) -> Any:
    """A vector with the value in every lane."""
    first = builder.insert_element(ir.Constant(ir.VectorType(value.type, lanes), ir.Undefined), value, i32(0))
    return builder.shuffle_vector(first, first, ir.Constant(ir.VectorType(i32, lanes), [0] * lanes))


class Vectors:
    """Loads, stores and masks of a vector unit's vectors of one type."""

    def __init__(self, T: Any, unit: VectorUnit) -> None:
        self.T, self.itemsize = T, np.dtype(T).itemsize
        self.lanes = unit.lanes(self.itemsize)
        self.scalar: ir.Type = ir.FloatType() if T is np.float32 else ir.DoubleType()
        self.vector = ir.VectorType(self.scalar, self.lanes)

    def function(self, builder: Any, name: str, result: ir.Type, *arguments: Any) -> Any:
        """A call of an intrinsic function of LLVM for these vectors."""
        kind = ir.FunctionType(result, [argument.type for argument in arguments])
        code = cgutils.get_or_insert_function(builder.module, kind, f"llvm.{name}.v{self.lanes}f{8 * self.itemsize}")
        return builder.call(code, arguments)

    def load(self, builder: Any, address: Any, mask: Any = None) -> Any:
        """The vector at an address; 0 in lanes that a mask leaves out."""
        at = pointer(builder, address, self.vector)
        if mask is None:
            return builder.load(at, align=self.itemsize)
        return self.masked(builder, "load", self.vector, at, i32(self.itemsize), mask, ir.Constant(self.vector, None))

    def store(self, builder: Any, value: Any, address: Any, mask: Any = None) -> None:
        """Store a vector, or those of its lanes that a mask names."""
        at = pointer(builder, address, self.vector)
        if mask is None:
            builder.store(value, at, align=self.itemsize)
        else:
            self.masked(builder, "store", ir.VoidType(), value, at, i32(self.itemsize), mask)

    def masked(self, builder: Any, name: str, result: ir.Type, *arguments: Any) -> Any:
        kind = ir.FunctionType(result, [argument.type for argument in arguments])
        name = f"llvm.masked.{name}.v{self.lanes}f{8 * self.itemsize}.p0"
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)

    def lanes_below(self, builder: Any, limit: Any, first: int = 0) -> Any:
        """The mask of the lanes whose number, counted from `first`, is below a limit."""
        numbers = ir.Constant(ir.VectorType(i64, self.lanes), [first + lane for lane in range(self.lanes)])
        return builder.icmp_signed("<", numbers, broadcast(builder, limit, self.lanes))


@cache
def tile_of(
    T: Any,
    unit: VectorUnit,
    rows: int,
    vectors: int,
    whole: bool,
    copies: bool = False,
    padded: bool = False,
    whole_vectors: int = 0,
) -> Any:
    """C = alpha A B, or C + alpha A B, for a tile of C of so many rows and vectors.

    For each of the `depth` products, a row of B is multiplied with each element of a column of A, and added to sums
    that stay in registers. Without `whole` only `columns` of the tile exist, those of the first `whole_vectors` among
    them; a `padded` B has all columns. With `copies` the rows of B are written to `copy`, one behind the other.
    """
    v = Vectors(T, unit)
    itemsize, lanes, vector = v.itemsize, v.lanes, v.vector

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        alpha, a, a_row, a_step, b, b_step, c, c_row, depth, columns, add, copy = args
        # masks of the columns that exist
        masks = [
            None if whole or j < whole_vectors else v.lanes_below(builder, columns, j * lanes) for j in range(vectors)
        ]
        # ask for the tile's lines, which are needed after the loop
        parameters = ir.FunctionType(ir.VoidType(), [i8.as_pointer(), i32, i32, i32])
        prefetch = cgutils.get_or_insert_function(builder.module, parameters, "llvm.prefetch.p0")
        rows_of_c = [builder.add(c, builder.mul(c_row, i64(i))) for i in range(rows)]
        for row_of_c in rows_of_c:
            for skip in range(0, vectors * unit.vector_bytes, 64):
                at = builder.inttoptr(builder.add(row_of_c, i64(skip)), i8.as_pointer())
                builder.call(prefetch, [at, i32(0), i32(3), i32(1)])

        # the loop over the products: the tile's sums are values of the loop, so they stay in registers
        before, loop = builder.block, builder.append_basic_block("products")
        after = builder.append_basic_block("sums")
        builder.branch(loop)
        builder.position_at_end(loop)
        count = builder.phi(i64)
        sums = [[builder.phi(vector) for _ in range(vectors)] for _ in range(rows)]
        # a row of B
        from_b = builder.add(b, builder.mul(count, b_step))
        masks_of_b = [None] * vectors if padded else masks
        row_of_b = [
            v.load(builder, builder.add(from_b, i64(j * lanes * itemsize)), mask) for j, mask in enumerate(masks_of_b)
        ]
        if copies:
            to = builder.add(copy, builder.mul(count, i64(vectors * lanes * itemsize)))
            for j in range(vectors):
                v.store(builder, row_of_b[j], builder.add(to, i64(j * lanes * itemsize)))
        # times a column of A, added to the sums
        from_a = builder.add(a, builder.mul(count, a_step))
        added = []
        for i in range(rows):
            at = pointer(builder, builder.add(from_a, builder.mul(a_row, i64(i))), v.scalar)
            factor = broadcast(builder, builder.load(at, align=itemsize), lanes)
            added.append([v.function(builder, "fma", vector, factor, row_of_b[j], sums[i][j]) for j in range(vectors)])
        following = builder.add(count, i64(1))
        for phi, first, value in [(count, i64(0), following)] + [
            (sums[i][j], ir.Constant(vector, None), added[i][j]) for i in range(rows) for j in range(vectors)
        ]:
            phi.add_incoming(first, before)
            phi.add_incoming(value, loop)
        builder.cbranch(builder.icmp_signed("<", following, depth), loop, after)

        # alpha times the sums, written to C or added to it
        builder.position_at_end(after)
        factor = broadcast(builder, alpha, lanes)
        adding, setting = builder.append_basic_block("add"), builder.append_basic_block("set")
        end = builder.append_basic_block("end")
        results = [
            (builder.add(rows_of_c[i], i64(j * lanes * itemsize)), masks[j], builder.fmul(factor, added[i][j]))
            for i in range(rows)
            for j in range(vectors)
        ]
        builder.cbranch(builder.icmp_signed("!=", add, i64(0)), adding, setting)
        for block, adds in ((adding, True), (setting, False)):
            builder.position_at_end(block)
            for address, mask, value in results:
                total = builder.fadd(v.load(builder, address, mask), value) if adds else value
                v.store(builder, total, address, mask)
            builder.branch(end)
        builder.position_at_end(end)
        return context.get_dummy_value()

    @intrinsic
    def tile(typingctx, alpha, a, a_row, a_step, b, b_step, c, c_row, depth, columns, add, copy):
        alpha_type = types.float32 if T is np.float32 else types.float64
        return types.void(alpha_type, *[types.int64] * 11), codegen

    return tile


def transpose(builder: Any, rows: list[Any]) -> None:
    """Transpose as many vectors as each has lanes, in place of the list.

    The off-diagonal quarters of every square of 2 half x 2 half are exchanged (Eklundh 1972).
    """
    lanes = len(rows)
    half = lanes // 2
    while half:
        for i in [i for i in range(lanes) if not i & half]:
            first, second = rows[i], rows[i + half]
            upper = [lane if not lane & half else lanes + lane - half for lane in range(lanes)]
            lower = [lane + half if not lane & half else lanes + lane for lane in range(lanes)]
            for at, order in ((i, upper), (i + half, lower)):
                rows[at] = builder.shuffle_vector(first, second, ir.Constant(ir.VectorType(i32, lanes), order))
        half //= 2


@cache
def transpose_of(T: Any, unit: VectorUnit, whole: bool = True) -> Any:
    """to[i, j] = source[j, i] for lanes x lanes elements; without `whole`, 0 for j >= rows or i >= columns."""
    v = Vectors(T, unit)
    lanes = v.lanes

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, source_row, to, to_row, num_rows, columns = args
        rows = []
        for i in range(lanes):
            mask = None
            if not whole:
                mask = v.lanes_below(
                    builder, builder.select(builder.icmp_signed("<", i64(i), num_rows), columns, i64(0))
                )
            rows.append(v.load(builder, builder.add(source, builder.mul(source_row, i64(i))), mask))
        transpose(builder, rows)
        for i in range(lanes):
            v.store(builder, rows[i], builder.add(to, builder.mul(to_row, i64(i))))
        return context.get_dummy_value()

    @intrinsic
    def transpose_square(typingctx, source, source_row, to, to_row, num_rows, columns):
        return types.void(*[types.int64] * 6), codegen

    return transpose_square


@contextmanager
def _counted(builder: Any, depth: Any) -> Iterator[Any]:
    """Emit what is in the context as the body of a loop over count < depth, with depth > 0; yields the count."""
    before, loop, after = builder.block, builder.append_basic_block("loop"), builder.append_basic_block("after")
    builder.branch(loop)
    builder.position_at_end(loop)
    count = builder.phi(i64)
    yield count
    following = builder.add(count, i64(1))
    count.add_incoming(i64(0), before)
    count.add_incoming(following, loop)
    builder.cbranch(builder.icmp_signed("<", following, depth), loop, after)
    builder.position_at_end(after)


@cache
def pad_of(T: Any, unit: VectorUnit, vectors: int) -> Any:
    """to[p] = source[p] for p < depth: rows of so many vectors, with 0 in the columns that do not exist."""
    v = Vectors(T, unit)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, step, columns, to, depth = args
        masks = [v.lanes_below(builder, columns, j * v.lanes) for j in range(vectors)]
        with _counted(builder, depth) as count:
            row = builder.add(source, builder.mul(count, step))
            row_of_copy = builder.add(to, builder.mul(count, i64(vectors * unit.vector_bytes)))
            for j, mask in enumerate(masks):
                skip = i64(j * unit.vector_bytes)
                v.store(builder, v.load(builder, builder.add(row, skip), mask), builder.add(row_of_copy, skip))
        return context.get_dummy_value()

    @intrinsic
    def pad(typingctx, source, step, columns, to, depth):
        return types.void(*[types.int64] * 5), codegen

    return pad


@cache
def copy_of(T: Any, size: int, groups: int) -> Any:
    """to[g, p, :] = source[p, g, :] for p < depth: rows of so many groups of `size` elements, `step` bytes apart."""
    itemsize = np.dtype(T).itemsize
    vector = ir.VectorType(ir.FloatType() if T is np.float32 else ir.DoubleType(), size)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, step, to, depth = args
        with _counted(builder, depth) as count:
            row = builder.add(source, builder.mul(count, step))
            group_bytes = builder.mul(depth, i64(size * itemsize))
            for g in range(groups):
                at = builder.add(row, i64(g * size * itemsize))
                value = builder.load(pointer(builder, at, vector), align=itemsize)
                skip = builder.add(builder.mul(group_bytes, i64(g)), builder.mul(count, i64(size * itemsize)))
                builder.store(value, pointer(builder, builder.add(to, skip), vector), align=itemsize)
        return context.get_dummy_value()

    @intrinsic
    def copy(typingctx, source, step, to, depth):
        return types.void(*[types.int64] * 4), codegen

    return copy


@cache
def stack_of(size: int) -> Callable[[], int]:
    """A function that returns the address of so many bytes on the stack, for as long as the kernel runs."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        with builder.goto_entry_block():
            memory = builder.alloca(ir.ArrayType(i8, size))
            memory.align = 64
        return builder.ptrtoint(memory, i64)

    @intrinsic
    def stack(typingctx):
        return types.int64(), codegen

    return stack
