"""The innermost loop of sparse products, in LLVM's vector instructions, with its twin in Python."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir

from ..runtime.frontend import intrinsic, types
from ..runtime.primitives import view
from ..runtime.processors import VectorUnit
from .tiles import Vectors, broadcast, i64, pointer

ROW_BYTES = 256
PAIR = 2  # columns whose sums are in registers: eight, as many as hide the latency of fused multiplications


def _python_pair(T: Any) -> Callable[..., None]:
    """`pair_of` for interpreted kernels."""
    itemsize = np.dtype(T).itemsize
    offset_type, rows = (np.int32 if itemsize == 4 else np.int64), ROW_BYTES // itemsize

    def column(entries, count, x, joins, into, has_bias, bias):
        K, V, Y = view(entries, 4 * count, offset_type), view(entries, 4 * count, T), view(into, rows, T)
        total = np.zeros(rows, T)
        for i in range(count):
            total += V[4 * i + 1] * view(x + K[4 * i], rows, T)
        if joins:
            total += Y
        Y[:] = total + bias if has_bias else total

    def pair(entries, count, x, joins, into, second, has_bias, b0, b1):
        column(entries, count, x, joins, into, has_bias, b0)
        column(entries + 2 * itemsize, count, x, joins, second, has_bias, b1)

    return pair


@cache
def pair_of(T: Any, unit: VectorUnit | None) -> Any:
    """A function for kernels: the sums of a pair of columns, two rows of packed y.

        pair(entries, count, x, joins, into, second, has_bias, b0, b1)

    into = [into +] sum of weight x row of x over the entries [+ b0]; joins: 1 if `into` has sums already. Entries of
    both columns take turns. The sums of the second one go to `second`.
    """
    if unit is None:
        return _python_pair(T)
    v = Vectors(T, unit)
    itemsize, lanes, vector = v.itemsize, v.lanes, v.vector
    skips = [*range(0, ROW_BYTES, unit.vector_bytes)]
    offset_bits = ir.IntType(8 * itemsize)

    def products(builder: Any, entry: Any, x: Any, sums: list[Any]) -> list[Any]:
        """Sums of a column with those of an entry."""
        offset = builder.load(pointer(builder, entry, offset_bits), align=itemsize)
        if itemsize == 4:
            offset = builder.zext(offset, i64)
        weight = builder.load(pointer(builder, builder.add(entry, i64(itemsize)), v.scalar), align=itemsize)
        factor, row = broadcast(builder, weight, lanes), builder.add(x, offset)
        return [
            v.function(builder, "fma", vector, factor, v.load(builder, builder.add(row, i64(skip))), total)
            for skip, total in zip(skips, sums, strict=True)
        ]

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        entries, count, x, joins, into, second, has_bias, b0, b1 = args
        zero = ir.Constant(vector, None)
        # the loop over the entries: the sums are values of the loop, so they stay in registers
        before, loop = builder.block, builder.append_basic_block("entries")
        after = builder.append_basic_block("sums")
        builder.cbranch(builder.icmp_signed(">", count, i64(0)), loop, after)
        builder.position_at_end(loop)
        i, sums = builder.phi(i64), [builder.phi(vector) for _ in range(PAIR * len(skips))]
        entry = builder.add(entries, builder.mul(i, i64(PAIR * 2 * itemsize)))
        added = products(builder, entry, x, sums[: len(skips)])
        added += products(builder, builder.add(entry, i64(2 * itemsize)), x, sums[len(skips) :])
        following = builder.add(i, i64(1))
        for phi, start, value in [(i, i64(0), following), *((s, zero, a) for s, a in zip(sums, added, strict=True))]:
            phi.add_incoming(start, before)
            phi.add_incoming(value, loop)
        builder.cbranch(builder.icmp_signed("<", following, count), loop, after)
        builder.position_at_end(after)
        totals = [_either(builder, vector, (zero, before), (value, loop)) for value in added]
        # the sums of the blocks before
        joining, end = builder.append_basic_block("joining"), builder.append_basic_block("end")
        builder.cbranch(builder.icmp_signed("!=", joins, i64(0)), joining, end)
        builder.position_at_end(joining)
        places = [builder.add(at, i64(skip)) for at in (into, second) for skip in skips]
        with_them = [builder.fadd(v.load(builder, at), total) for at, total in zip(places, totals, strict=True)]
        builder.branch(end)
        builder.position_at_end(end)
        pairs = zip(totals, with_them, strict=True)
        totals = [_either(builder, vector, (total, after), (joint, joining)) for total, joint in pairs]
        # the bias
        wants = builder.icmp_signed("!=", has_bias, i64(0))
        biases = [broadcast(builder, bias, lanes) for bias in (b0, b1) for _ in skips]
        places = [builder.add(at, i64(skip)) for at in (into, second) for skip in skips]
        for at, total, bias in zip(places, totals, biases, strict=True):
            v.store(builder, builder.select(wants, builder.fadd(total, bias), total), at)
        return context.get_dummy_value()

    @intrinsic
    def pair(typingctx, entries, count, x, joins, into, second, has_bias, b0, b1):
        number = types.float32 if T is np.float32 else types.float64
        return types.void(*[types.int64] * 7, number, number), codegen

    return pair


def _either(builder: Any, kind: Any, *values: tuple[Any, Any]) -> Any:
    """The value of the block that was left, of pairs of a value and its block."""
    phi = builder.phi(kind)
    for value, block in values:
        phi.add_incoming(value, block)
    return phi
