"""Matrix products whose operands are rounded to bfloat16, called like a BLAS of float32: C (m, n) = alpha A (m, k)
B (k, n) (+ C), with A, B or both transposed.

The instruction VDPBF16PS multiplies 16 pairs of bfloat16 numbers with 16 others and adds the products of each pair to a
float32: twice the products of a float32 FMA. Matrices are float32 in memory. Both operands are rounded as they are
packed, in pairs along k, for which transposed ones are transposed: a block of A once, and a strip of B once for each
block of A. A tile of C is kept in vector registers.

Every element of C is summed in the same order, whatever the tiles, in blocks of a size that depends on k alone.
Products of pairs are exact in float32, or denormal and taken as zero; sums are rounded to nearest.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from llvmlite import binding, ir

from ..runtime.compile import Kernel, lock
from ..runtime.frontend import INTERPRETED, cgutils, intrinsic, register_jitable, types
from ..runtime.partition import equal_size
from ..runtime.primitives import target_has
from ..runtime.processors import AVX512, BFLOAT16_RATES, microarchitecture
from ..runtime.storage import BFloat, round_bfloat16
from .matmul import TRANSPOSED, gemm_types, plain_of, zero_of
from .tiles import Vectors, broadcast, i32, i64, pointer, stack_of, transpose

VECTOR_BYTES = AVX512.vector_bytes
LANES = 16  # float32 numbers in a vector, or pairs of bfloat16
TILE_ROWS, TILE_VECTORS = 8, 2  # of C: 16 sums, which the latency of the instruction (6 cycles, two a cycle) wants
STRIP_COLS = LANES * TILE_VECTORS
STRIP_BYTES = 4 * STRIP_COLS  # of the pairs of a strip
DEPTH = 384  # most rows of B in a block: a strip of it takes 24 kB of the first-level cache
ROWS = 256  # most rows of A in a block: 192 kB
ROW_BYTES = 2 * DEPTH  # of a packed row of A
PAIR_BYTES = 4 * TILE_ROWS  # of the pairs of a group of rows of a packed transposed A
GROUP_BYTES = DEPTH // 2 * PAIR_BYTES + 64  # of the group: a line more, or all groups would share the cache's sets

V = Vectors(np.float32, AVX512)
PAIRS, NUMBERS = ir.VectorType(i32, LANES), ir.VectorType(BFloat(), 2 * LANES)

LLVM = 20  # before, the instruction's operands had another type


def has_instruction() -> bool:
    """True if kernels may use VDPBF16PS."""
    return binding.llvm_version_info[0] >= LLVM and target_has("+avx512bf16")


def bfloat16_refusal() -> str:
    """Reason for which layers do not compute in bfloat16 on this processor; "" if they do, and gain by it."""
    if INTERPRETED:
        return ""
    processor = microarchitecture()
    if not target_has("+avx512bf16"):
        return f"{processor} has no instruction for it (AVX512_BF16)"
    if binding.llvm_version_info[0] < LLVM:
        return f"it needs an llvmlite with LLVM {LLVM} or later"
    gaining = [name for name, rate in BFLOAT16_RATES.items() if rate > 1]
    if processor in gaining:
        return ""
    if processor in BFLOAT16_RATES:
        rate = BFLOAT16_RATES[processor]
        return f"products of bfloat16 run at {rate:g} of the rate of float32 on {processor}"
    return f"{processor} is not among the processors that are known to gain by it ({', '.join(gaining)})"


# ---------------------------------------------------------------- vectors
def _rounded(builder: Any, low: Any, high: Any) -> Any:
    """32 numbers rounded to bfloat16, to nearest, ties to even."""
    kind = ir.FunctionType(NUMBERS, [V.vector, V.vector])
    name = "llvm.x86.avx512bf16.cvtne2ps2bf16.512"
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [high, low])


def _dot(builder: Any, sums: Any, a: Any, b: Any) -> Any:
    """sums + the two products of each pair."""
    kind = ir.FunctionType(V.vector, [V.vector, NUMBERS, NUMBERS])
    name = "llvm.x86.avx512bf16.dpbf16ps.512"
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [sums, a, b])


# ---------------------------------------------------------------- tiles
@cache
def tile_of(vectors: int, whole: bool) -> Any:
    """The innermost loop, for a tile of C of TILE_ROWS rows and so many vectors; without `whole` only `rows` and
    `columns` of it exist.

    a, b: addresses of packed pairs. a_row, a_step: bytes from one row of the tile to the next, and from one pair along
    k to the next.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        alpha, a, a_row, a_step, b, c, c_row, steps, rows, columns, add = args
        # the loop over the pairs: the tile's sums are values of the loop, so they stay in registers
        before, loop = builder.block, builder.append_basic_block("pairs")
        after = builder.append_basic_block("sums")
        builder.branch(loop)
        builder.position_at_end(loop)
        count = builder.phi(i64)
        sums = [[builder.phi(V.vector) for _ in range(vectors)] for _ in range(TILE_ROWS)]
        # pairs of a strip of B
        from_b = builder.add(b, builder.mul(count, i64(STRIP_BYTES)))
        places = [pointer(builder, builder.add(from_b, i64(VECTOR_BYTES * v)), NUMBERS) for v in range(vectors)]
        row_of_b = [builder.load(place, align=VECTOR_BYTES) for place in places]
        # times a pair of each row of A, added to the sums
        from_a, added = builder.add(a, builder.mul(count, a_step)), []
        for i in range(TILE_ROWS):
            pair = builder.load(pointer(builder, builder.add(from_a, builder.mul(a_row, i64(i))), i32), align=4)
            factor = builder.bitcast(broadcast(builder, pair, LANES), NUMBERS)
            added.append([_dot(builder, sums[i][v], factor, row_of_b[v]) for v in range(vectors)])
        following = builder.add(count, i64(1))
        for phi, first, value in [(count, i64(0), following)] + [
            (sums[i][v], ir.Constant(V.vector, None), added[i][v]) for i in range(TILE_ROWS) for v in range(vectors)
        ]:
            phi.add_incoming(first, before)
            phi.add_incoming(value, loop)
        builder.cbranch(builder.icmp_signed("<", following, steps), loop, after)

        # alpha times the sums, written to C or added to it
        builder.position_at_end(after)
        end = builder.append_basic_block("end")
        factor = broadcast(builder, alpha, LANES)
        adds = builder.icmp_signed("!=", broadcast(builder, add, LANES), ir.Constant(ir.VectorType(i64, LANES), None))
        masks = [None if whole else V.lanes_below(builder, columns, v * LANES) for v in range(vectors)]
        for i in range(TILE_ROWS):
            if i and not whole:
                exists = builder.append_basic_block(f"row_{i}")
                builder.cbranch(builder.icmp_signed("<", i64(i), rows), exists, end)
                builder.position_at_end(exists)
            row_of_c = builder.add(c, builder.mul(c_row, i64(i)))
            for v in range(vectors):
                address, value = builder.add(row_of_c, i64(VECTOR_BYTES * v)), builder.fmul(factor, added[i][v])
                reads = adds if masks[v] is None else builder.and_(adds, masks[v])
                total = builder.fadd(V.load(builder, address, reads), value)
                V.store(builder, builder.select(adds, total, value), address, masks[v])
        builder.branch(end)
        builder.position_at_end(end)
        return context.get_dummy_value()

    @intrinsic
    def tile(typingctx, alpha, a, a_row, a_step, b, c, c_row, steps, rows, columns, add):
        return types.void(types.float32, *[types.int64] * 10), codegen

    return tile


# ---------------------------------------------------------------- packing
@cache
def pack_row_of(whole: bool) -> Any:
    """to[0:32] = source[0:32], rounded: 16 pairs along a row; without `whole` only `count` numbers exist."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, to, count = args
        numbers = []
        for v in range(2):
            mask = None if whole else V.lanes_below(builder, count, v * LANES)
            numbers.append(V.load(builder, builder.add(source, i64(VECTOR_BYTES * v)), mask))
        builder.store(_rounded(builder, *numbers), pointer(builder, to, NUMBERS), align=VECTOR_BYTES)
        return context.get_dummy_value()

    @intrinsic
    def pack_row(typingctx, source, to, count):
        return types.void(*[types.int64] * 3), codegen

    return pack_row


@cache
def pack_two_rows_of(whole: bool, halves: bool) -> Any:
    """Round 16 numbers of two rows: the pairs are those of the same column.

    They go to `to`, or with `halves` the last 8 of them to `to_last`. Without `whole`, only `count` columns, and only
    `rows` of the two, exist.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        first, second, to, to_last, count, rows = args
        numbers = []
        for row, source in enumerate((first, second)):
            mask = None
            if not whole:
                exists = builder.icmp_signed(">", rows, i64(row))
                mask = V.lanes_below(builder, builder.select(exists, count, i64(0)))
            numbers.append(V.load(builder, source, mask))
        # one row behind the other, then in turns
        bits = builder.bitcast(_rounded(builder, *numbers), ir.VectorType(ir.IntType(16), 2 * LANES))
        turns = [lane // 2 + lane % 2 * LANES for lane in range(2 * LANES)]
        pairs = builder.bitcast(
            builder.shuffle_vector(bits, bits, ir.Constant(ir.VectorType(i32, 2 * LANES), turns)), PAIRS
        )
        if halves:
            for begin, address in ((0, to), (8, to_last)):
                lanes = ir.Constant(ir.VectorType(i32, 8), [begin + lane for lane in range(8)])
                half = builder.shuffle_vector(pairs, pairs, lanes)
                builder.store(half, pointer(builder, address, half.type), align=VECTOR_BYTES // 2)
        else:
            builder.store(pairs, pointer(builder, to, PAIRS), align=VECTOR_BYTES)
        return context.get_dummy_value()

    @intrinsic
    def pack_two_rows(typingctx, first, second, to, to_last, count, rows):
        return types.void(*[types.int64] * 6), codegen

    return pack_two_rows


@cache
def pack_square_of(whole: bool) -> Any:
    """to[p, j] = the p-th pair of row j, for 16 pairs of 16 rows; without `whole`, only `count` numbers of `rows` rows
    exist. source_row, to_row: bytes from row to row.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, source_row, to, to_row, count, rows = args
        pairs = []
        for j in range(LANES):
            row, numbers = builder.add(source, builder.mul(source_row, i64(j))), []
            for v in range(2):
                mask = None
                if not whole:
                    exists = builder.icmp_signed(">", rows, i64(j))
                    mask = V.lanes_below(builder, builder.select(exists, count, i64(0)), v * LANES)
                numbers.append(V.load(builder, builder.add(row, i64(VECTOR_BYTES * v)), mask))
            pairs.append(builder.bitcast(_rounded(builder, *numbers), PAIRS))
        transpose(builder, pairs)
        for p in range(LANES):
            at = pointer(builder, builder.add(to, builder.mul(to_row, i64(p))), PAIRS)
            builder.store(pairs[p], at, align=VECTOR_BYTES)
        return context.get_dummy_value()

    @intrinsic
    def pack_square(typingctx, source, source_row, to, to_row, count, rows):
        return types.void(*[types.int64] * 6), codegen

    return pack_square


def _pack_pairs(halves: bool, pair_bytes: int, part_bytes: int) -> Callable[..., None]:
    """The function that packs rows of memory, which are columns of pairs along k.

    pair_bytes, part_bytes: from one pair along k to the next, and from 8 columns to the next 8; halves: these are not
    neighbours.
    """
    two_rows, two_rows_end = pack_two_rows_of(True, halves), pack_two_rows_of(False, halves)

    @register_jitable
    def pack_pairs(source, stride, columns, depth, to):
        for p in range(0, depth, 2):
            first, row = source + p * stride * 4, to + p // 2 * pair_bytes
            second, is_pair = first + stride * 4, p + 1 < depth
            for j in range(0, columns, LANES):
                into = row + j // 8 * part_bytes
                if is_pair and j + LANES <= columns:
                    two_rows(first + j * 4, second + j * 4, into, into + part_bytes, LANES, 2)
                else:
                    two_rows_end(first + j * 4, second + j * 4, into, into + part_bytes, columns - j, 1 + is_pair)

    return pack_pairs


# ---------------------------------------------------------------- the product
def _matmul() -> Callable[..., None]:
    tile, edge, narrow = tile_of(TILE_VECTORS, True), tile_of(TILE_VECTORS, False), tile_of(1, False)
    row32, row_end = pack_row_of(True), pack_row_of(False)
    # [group of rows][pair along k][row], whose rows are columns of memory, and [pair along k][column]
    pack_transposed_a = _pack_pairs(halves=True, pair_bytes=PAIR_BYTES, part_bytes=GROUP_BYTES)
    pack_b = _pack_pairs(halves=False, pair_bytes=STRIP_BYTES, part_bytes=VECTOR_BYTES // 2)
    set_zero = zero_of(np.float32)
    square, square_end = pack_square_of(True), pack_square_of(False)
    stack_a, stack_b = stack_of(ROWS // TILE_ROWS * GROUP_BYTES), stack_of(DEPTH // 2 * STRIP_BYTES)

    @register_jitable
    def pack_a(a, lda, rows, depth, to):
        """Rows of A, one behind the other."""
        for i in range(rows):
            source, row = a + i * lda * 4, to + i * ROW_BYTES
            for p in range(0, depth - 31, 32):
                row32(source + p * 4, row + p * 2, 32)
            if depth % 32:
                p = depth // 32 * 32
                row_end(source + p * 4, row + p * 2, depth - p)

    @register_jitable
    def pack_transposed_b(b, ldb, columns, depth, to):
        """A strip of B, whose columns are rows of memory."""
        for j in range(0, columns, LANES):
            for p in range(0, depth, 2 * LANES):
                source, into = b + (j * ldb + p) * 4, to + p // 2 * STRIP_BYTES + j * 4
                if j + LANES <= columns and p + 2 * LANES <= depth:
                    square(source, ldb * 4, into, STRIP_BYTES, 2 * LANES, LANES)
                else:
                    square_end(source, ldb * 4, into, STRIP_BYTES, depth - p, columns - j)

    def matmul(order, ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc):
        # row-major; beta is 0 or 1 in all calls
        packed_a, packed_b, adds = stack_a(), stack_b(), int(beta != 0)
        block, row_block = equal_size(k, DEPTH, 2 * LANES), equal_size(m, ROWS, LANES)
        a_row, a_step, tile_bytes = ROW_BYTES, 4, TILE_ROWS * ROW_BYTES
        if ta == TRANSPOSED:
            a_row, a_step, tile_bytes = 4, PAIR_BYTES, GROUP_BYTES
        for p in range(0, k, block):
            depth, add = min(block, k - p), p + adds
            steps = (depth + 1) // 2
            for r in range(0, m, row_block):
                # one block of A, packed
                rows = min(row_block, m - r)
                if ta == TRANSPOSED:
                    pack_transposed_a(a + (p * lda + r) * 4, lda, rows, depth, packed_a)
                else:
                    pack_a(a + (r * lda + p) * 4, lda, rows, depth, packed_a)
                for j in range(0, n, STRIP_COLS):
                    # one strip of B, packed
                    columns = min(STRIP_COLS, n - j)
                    if tb == TRANSPOSED:
                        pack_transposed_b(b + (j * ldb + p) * 4, ldb, columns, depth, packed_b)
                    else:
                        pack_b(b + (p * ldb + j) * 4, ldb, columns, depth, packed_b)
                    # their tiles; all blocks along k but the first add to C
                    for i in range(0, rows, TILE_ROWS):
                        from_a, to = packed_a + i // TILE_ROWS * tile_bytes, c + ((r + i) * ldc + j) * 4
                        left = rows - i
                        if left >= TILE_ROWS and columns == STRIP_COLS:
                            tile(alpha, from_a, a_row, a_step, packed_b, to, ldc * 4, steps, left, columns, add)
                        elif columns <= LANES:
                            narrow(alpha, from_a, a_row, a_step, packed_b, to, ldc * 4, steps, left, columns, add)
                        else:
                            edge(alpha, from_a, a_row, a_step, packed_b, to, ldc * 4, steps, left, columns, add)
        # an empty sum
        if k == 0 and not adds:
            set_zero(c, ldc, m, n)

    return matmul


@cache
def own_kernel() -> Kernel:
    with lock:  # two threads would make two different kernels
        return Kernel(_matmul(), "matmul_bfloat16", gemm_types("float32"))


@cache
def plain_kernel() -> Kernel:
    """The same products where the processor has no instruction for them, and interpreted."""
    return Kernel(plain_of(np.float32, round_bfloat16), "plain_bfloat16", gemm_types("float32"))


def matmul_bfloat16_kernel(dtype: str) -> Kernel:
    """The product of float32 matrices: it reads, adds up and writes float32."""
    assert dtype == "float32"
    return own_kernel() if has_instruction() else plain_kernel()
