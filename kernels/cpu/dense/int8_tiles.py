"""The innermost loops of products of uint8 with int8 numbers, added up in int32, in vector instructions.

Four products along k lie in the four bytes of a word: of a row of A in a word that all lanes read, of B in a word of
each column. Instruction sets differ in the way to the sum of the four, not in the sum:

- VNNI's VPDPBUSD multiplies and adds all four at once, and does not saturate.
- VPMADDWD multiplies pairs of int16, so bytes are widened, the even and the odd ones apart. Its relative for bytes,
  VPMADDUBSW, saturates: 255 x 127 twice is more than an int16 holds.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

from llvmlite import ir

from ..runtime.frontend import INTERPRETED, cgutils, intrinsic, types
from ..runtime.primitives import target_has
from .tiles import broadcast, i32, i64, pointer

i16 = ir.IntType(16)
GROUP = 16  # columns of B whose words lie together
WORD = 4  # products along k in a word
GROUP_BYTES = GROUP * WORD


class DotUnit(NamedTuple):
    """Instructions for products of bytes, and the tile of C that is kept in their registers."""

    name: str
    lanes: int  # int32 numbers in a vector
    product: str  # LLVM's function
    has_words: bool  # it takes whole words, not pairs of int16
    tile_rows: int
    tile_groups: int  # of columns


# 24 sums in 32 registers, or 8 in 16: a word of A is an operand in memory, and those of B take the rest.
UNITS = {
    "avx512_vnni": DotUnit("avx512_vnni", 16, "avx512.vpdpbusd.512", True, 6, 4),
    "avx512_bw": DotUnit("avx512_bw", 16, "avx512.pmaddw.d.512", False, 6, 2),
    "avx_vnni": DotUnit("avx_vnni", 8, "avx512.vpdpbusd.256", True, 4, 1),
    "avx2": DotUnit("avx2", 8, "avx2.pmadd.wd", False, 4, 1),
}
# Features of the processor, by LLVM's names, best first.
FEATURES = {"avx512_vnni": "+avx512vnni", "avx512_bw": "+avx512bw", "avx_vnni": "+avxvnni", "avx2": "+avx2"}


@cache
def dot_unit() -> DotUnit | None:
    """The instructions that kernels are compiled for; None: plain loops, or kernels are interpreted."""
    if INTERPRETED:
        return None
    return next((UNITS[name] for name, feature in FEATURES.items() if target_has(feature)), None)


def _call(builder: Any, unit: DotUnit, result: ir.Type, *arguments: Any) -> Any:
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.x86.{unit.product}"), arguments)


def _halves(builder: Any, words: Any, lanes: int, signed: bool) -> tuple[Any, Any]:
    """The even and the odd bytes of words, each widened to an int16."""
    vector = ir.VectorType(i16, 2 * lanes)
    pairs, eight = builder.bitcast(words, vector), ir.Constant(vector, [8] * 2 * lanes)
    if signed:
        return builder.ashr(builder.shl(pairs, eight), eight), builder.ashr(pairs, eight)
    return builder.and_(pairs, ir.Constant(vector, [255] * 2 * lanes)), builder.lshr(pairs, eight)


@cache
def int8_tile_of(unit: DotUnit, rows: int, groups: int) -> Any:
    """C = start + A B for a tile of C of so many rows and groups of columns.

    a: (rows, 4 steps) uint8, a_row bytes from row to row; b: (groups, steps, GROUP, WORD) int8, b_group bytes from
    group to group; start: (groups GROUP,) int32; c: int32, c_row bytes from row to row.
    """
    lanes, vectors = unit.lanes, groups * GROUP // unit.lanes
    vector, vector_bytes = ir.VectorType(i32, lanes), 4 * lanes
    in_group = GROUP // lanes  # vectors

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        a, a_row, b, b_group, steps, start, c, c_row = args

        def load(address: Any) -> Any:
            return builder.load(pointer(builder, address, vector), align=4)

        rows_of_a = [builder.add(a, builder.mul(a_row, i64(i))) for i in range(rows)]
        groups_of_b = [builder.add(b, builder.mul(b_group, i64(g))) for g in range(groups)]
        starts = [load(builder.add(start, i64(vector_bytes * v))) for v in range(vectors)]

        # the loop over words: the tile's sums are values of the loop, so they stay in registers
        before, loop = builder.block, builder.append_basic_block("words")
        after = builder.append_basic_block("sums")
        builder.branch(loop)
        builder.position_at_end(loop)
        count = builder.phi(i64)
        sums = [[builder.phi(vector) for _ in range(vectors)] for _ in range(rows)]
        # words of the columns
        skip = builder.mul(count, i64(GROUP_BYTES))
        words = [
            load(builder.add(groups_of_b[v // in_group], builder.add(skip, i64(v % in_group * vector_bytes))))
            for v in range(vectors)
        ]
        halves = [] if unit.has_words else [_halves(builder, word, lanes, signed=True) for word in words]
        # times the word of each row, added to the sums
        added = []
        for i in range(rows):
            at = pointer(builder, builder.add(rows_of_a[i], builder.mul(count, i64(WORD))), i32)
            factor = broadcast(builder, builder.load(at, align=4), lanes)
            if unit.has_words:
                added.append([_call(builder, unit, vector, sums[i][v], factor, words[v]) for v in range(vectors)])
                continue
            even, odd = _halves(builder, factor, lanes, signed=False)
            row = []
            for v in range(vectors):
                first = _call(builder, unit, vector, even, halves[v][0])
                second = _call(builder, unit, vector, odd, halves[v][1])
                row.append(builder.add(builder.add(sums[i][v], first), second))
            added.append(row)
        following = builder.add(count, i64(1))
        for phi, first, value in [(count, i64(0), following)] + [
            (sums[i][v], starts[v], added[i][v]) for i in range(rows) for v in range(vectors)
        ]:
            phi.add_incoming(first, before)
            phi.add_incoming(value, loop)
        builder.cbranch(builder.icmp_signed("<", following, steps), loop, after)

        # the sums, written to C
        builder.position_at_end(after)
        for i in range(rows):
            row_of_c = builder.add(c, builder.mul(c_row, i64(i)))
            for v in range(vectors):
                at = pointer(builder, builder.add(row_of_c, i64(vector_bytes * v)), vector)
                builder.store(added[i][v], at, align=4)
        return context.get_dummy_value()

    @intrinsic
    def int8_tile(typingctx, a, a_row, b, b_group, steps, start, c, c_row):
        return types.void(*[types.int64] * 8), codegen

    return int8_tile
