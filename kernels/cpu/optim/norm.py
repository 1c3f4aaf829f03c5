"""The norm of all gradients: sums of squares in float64, over pieces that depend on sizes alone, added up in order.

The penalties of parameters are such sums, too, of squares or of magnitudes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
from llvmlite import ir

from ..runtime.compile import Kernel, lock
from ..runtime.frontend import cgutils, intrinsic, register_jitable, types
from ..runtime.launch import UPDATE_ELEMENTS, Limit, num_threads_for, parallel
from ..runtime.primitives import INTERPRETED, address_of, call_tile, view
from ..runtime.processors import vector_unit
from ..runtime.records import SQUARES, SQUARES_ALL, fill, read
from ..runtime.storage import STORES, converts_half, name_of

PIECE = 16_384  # elements of a piece
SQUARES_OF, MAGNITUDES_OF = "squares", "magnitudes"  # terms of sums
LANES = 64  # sums of a piece, each of every 64th element: vectors could not make one sum with the same bits


def _vector_adder(dtype, terms):
    """add(x, count, stride, lanes): add the terms of `count` times LANES elements, `stride` bytes apart, to LANES sums.

    The sums stay in registers. A loop over single lanes would keep them in memory, and take 3 times as long as reading
    the elements does.
    """
    double, single = ir.VectorType(ir.DoubleType(), 8), ir.VectorType(ir.FloatType(), 8)
    bits, words = ir.VectorType(ir.IntType(16), 8), ir.VectorType(ir.IntType(32), 8)
    half = ir.VectorType(ir.HalfType(), 8)

    def widened(builder, x):
        if dtype == "float64":
            return x
        if dtype == "bfloat16":
            moved = builder.shl(builder.zext(x, words), words([16] * 8))
            x = builder.bitcast(moved, single)
        if dtype == "float16":
            x = builder.fpext(builder.bitcast(x, half), single)
        return builder.fpext(x, double)

    def magnitude(builder, x):
        bits = ir.VectorType(ir.IntType(64), 8)
        return builder.bitcast(builder.and_(builder.bitcast(x, bits), bits([2**63 - 1] * 8)), double)

    def added(builder, total, value):
        if terms == MAGNITUDES_OF:
            return builder.fadd(total, magnitude(builder, value))
        if dtype == "float64" or vector_unit() is None:
            return builder.fadd(total, builder.fmul(value, value))
        # squares of numbers of 24 bits are exact in float64: fused sums have the same bits, in 0.7 of the time
        fma = cgutils.get_or_insert_function(builder.module, ir.FunctionType(double, [double] * 3), "llvm.fma.v8f64")
        return builder.call(fma, [value, value, total])

    vector, itemsize = {"float64": double, "float32": single}.get(dtype, bits), STORES[dtype].itemsize

    @intrinsic
    def add(typingctx, x, count, stride, lanes):
        def codegen(context, builder, signature, args):
            x, count, stride, lanes = args
            i64 = ir.IntType(64)
            pointers = [
                builder.inttoptr(builder.add(lanes, i64(64 * k)), double.as_pointer()) for k in range(LANES // 8)
            ]
            sums = [cgutils.alloca_once_value(builder, builder.load(pointer, align=8)) for pointer in pointers]
            with cgutils.for_range(builder, count) as loop:
                start = builder.add(x, builder.mul(loop.index, stride))
                for k, total in enumerate(sums):
                    pointer = builder.inttoptr(builder.add(start, i64(8 * k * itemsize)), vector.as_pointer())
                    value = widened(builder, builder.load(pointer, align=itemsize))
                    builder.store(added(builder, builder.load(total), value), total)
            for pointer, total in zip(pointers, sums, strict=True):
                builder.store(builder.load(total), pointer, align=8)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 4), codegen

    return register_jitable(lambda x, count, stride, lanes: add(x, count, stride, lanes))


def _term_of(terms):
    """The function of a float64 whose values are added up."""

    def square(value):
        return value * value

    def magnitude(value):
        return abs(value)

    return register_jitable(square if terms == SQUARES_OF else magnitude)


def _plain_adder(store, terms):
    """`_vector_adder` as a loop over lanes."""
    dtype, widen, term_of = store.dtype, store.widen, _term_of(terms)

    @register_jitable
    def add(x, count, stride, lanes):
        S = view(lanes, LANES, np.float64)
        for i in range(count):
            X = view(x + i * stride, LANES, dtype)
            for j in range(LANES):
                S[j] += term_of(np.float64(widen(X[j])))

    return add


@cache
def lane_adder(dtype: str, terms: str = SQUARES_OF) -> Callable[..., None]:
    """add(x, count, stride, lanes) for arrays of a dtype; to be called with the lock of kernels."""
    plain = INTERPRETED or (dtype == "float16" and not converts_half())
    made: Callable[..., None] = _plain_adder(STORES[dtype], terms) if plain else _vector_adder(dtype, terms)
    return made


def _sum_of_terms(store, add, terms):
    """The sum of the terms of a piece."""
    dtype, itemsize, widen, term_of = store.dtype, store.itemsize, store.widen, _term_of(terms)

    def squares(x, lanes, into, unused, rows, columns, stride):
        S = view(lanes, LANES, np.float64)
        for j in range(LANES):
            S[j] = 0
        # the lanes' sums: LANES elements at a time, then the rest of the row
        whole = columns // LANES
        for i in range(rows):
            start = x + i * stride * itemsize
            add(start, whole, LANES * itemsize, lanes)
            X = view(start + whole * LANES * itemsize, columns - whole * LANES, dtype)
            for j in range(columns - whole * LANES):
                S[j] += term_of(np.float64(widen(X[j])))
        # the lanes added up in order
        total = 0.0
        for j in range(LANES):
            total += S[j]
        view(into, 1, np.float64)[0] = total

    return squares


def squares_kernel(dtype: str, terms: str = SQUARES_OF) -> Kernel:
    """The sum of a piece; terms: SQUARES_OF or MAGNITUDES_OF its elements."""
    with lock:  # two threads would make two different adders
        return _squares_kernel(dtype, terms)


@cache
def _squares_kernel(dtype: str, terms: str) -> Kernel:
    return Kernel(_sum_of_terms(STORES[dtype], lane_adder(dtype, terms), terms), f"{terms}_{dtype}")


def _squares_all(work, step, rank, num_ranks):
    """The sums of squares of all pieces: a rank does its share of the pieces of all arrays laid end to end."""
    squares_all = read(work, SQUARES_ALL)
    if squares_all.step_after and view(squares_all.step_after + step * 8, 1, np.int64)[0] == 0:
        return
    first, last = rank * squares_all.num_pieces // num_ranks, (rank + 1) * squares_all.num_pieces // num_ranks
    lanes = squares_all.lanes + rank * LANES * 8
    for i in range(squares_all.count):
        # the rank's pieces of this array
        one = read(squares_all.table + i * RECORD_BYTES, SQUARES)
        for piece in range(max(first, one.first_piece), last):
            start = (piece - one.first_piece) * PIECE
            if start >= one.elements:
                break
            size = min(PIECE, one.elements - start)
            x, into = one.x + start * one.element_bytes, squares_all.sums + piece * 8
            call_tile(one.squares, x, lanes, into, 0, 1, size, 0)


RECORD_BYTES = SQUARES.itemsize
SQUARES_KERNEL = Kernel(_squares_all, "squares_all")


class Squares:
    """The sums of squares of some arrays: the record of the phase `squares_all`, which a program or `norm` runs.

    arrays: dtype and elements of each; `set_addresses` sets their addresses.
    num_ranks: of the phase in a program.
    step_after: (batches,) int64, 0 for batches after which the phase has nothing to do; None: always something.
    terms: of each array's sum; None: squares.
    """

    def __init__(
        self, arrays: Sequence[tuple[str, int]], num_ranks: int = 1, step_after: np.ndarray | None = None,
        terms: Sequence[str] | None = None,
    ) -> None:  # fmt: skip
        self.sizes = np.array([size for _, size in arrays], np.int64)
        self.table = np.zeros(len(arrays), SQUARES)
        num_pieces = 0
        for i, (dtype, size) in enumerate(arrays):
            code = squares_kernel(dtype, terms[i] if terms else SQUARES_OF).address
            self.table[i] = (code, 0, 0, num_pieces, STORES[dtype].itemsize)
            num_pieces += -(-size // PIECE)
        self.sums, self.step_after = np.zeros(num_pieces), step_after
        self.lanes = np.empty(max(num_ranks, num_pieces) * LANES)
        self.record = fill(
            SQUARES_ALL, count=len(arrays), table=self.table, num_pieces=num_pieces, sums=self.sums, lanes=self.lanes,
            step_after=step_after,
        )  # fmt: skip
        self.x, self.elements, self.address = self.table["x"], self.table["elements"], address_of(self.record)

    def set_addresses(self, addresses: Sequence[int] | np.ndarray) -> None:
        """Set the addresses of the arrays; 0 for one that does not count."""
        self.x[:] = addresses
        np.multiply(self.sizes, self.x != 0, out=self.elements)
        self.sums[:] = 0  # the kernel skips those of an array that does not count

    def norm(self, addresses: Sequence[int] | np.ndarray, limit: Limit = None) -> float:
        """The root of the sum of all squares, pieces added up in order."""
        self._run(addresses, limit)
        return math.sqrt(sum(self.sums.tolist()))

    def totals(self, addresses: Sequence[int] | np.ndarray, limit: Limit = None) -> list[float]:
        """The sum of the terms of each array."""
        self._run(addresses, limit)
        return [sum(part.tolist()) for part in np.split(self.sums, self.table["first_piece"][1:])]

    def norms(self, addresses: Sequence[int] | np.ndarray, limit: Limit = None) -> list[float]:
        """The norm of each array; 0 of one that does not count."""
        return [math.sqrt(total) for total in self.totals(addresses, limit)]

    def _run(self, addresses: Sequence[int] | np.ndarray, limit: Limit) -> None:
        self.set_addresses(addresses)
        if len(self.sums):
            num_ranks = num_threads_for(self.elements.sum(), UPDATE_ELEMENTS, len(self.sums), limit)
            parallel(SQUARES_KERNEL, self.address, 0, num_ranks)


def gradient_norm(gradients: Sequence[np.ndarray]) -> float:
    """The Euclidean norm of all gradients laid end to end; they are C-contiguous."""
    squares = Squares([(name_of(g.dtype), g.size) for g in gradients])
    return squares.norm([address_of(g) for g in gradients])
