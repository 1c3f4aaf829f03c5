"""Updates of bfloat16 arrays with states of their dtype, where the processor can round 16 numbers in one instruction.

Arithmetic on bits takes eight, three times an element for Adam: half of the time of a step. LLVM's vectoriser does not
know the instruction, so loops write blocks of float32 to the stack, and `round16` takes them from there, out of the
nearest cache. It writes what `nearest_bfloat16` does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, register_jitable

from ..runtime.primitives import target_has, view
from ..runtime.storage import STORES
from .updates import LOOPS, hyper

BLOCK = 64  # elements: constant, so that LLVM unrolls the loop over its vectors
FLOATS = 4 * BLOCK  # bytes

# LLVM 20 knows what to do with vectors of bfloat.
ROUNDS = binding.llvm_version_info[0] >= 20 and target_has("+avx512bf16")


class _BFloat(ir.Type):  # type: ignore[misc]
    """LLVM's type, which llvmlite does not name."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash(_BFloat)


@intrinsic
def stack(typingctx):
    """The address of room for the results of a block: p and three states."""

    def codegen(context, builder, signature, args):
        room = cgutils.alloca_once(builder, ir.ArrayType(ir.FloatType(), 4 * BLOCK))
        room.align = 64
        return builder.ptrtoint(room, ir.IntType(64))

    return types.int64(), codegen


@intrinsic
def round16(typingctx, source, into):
    def codegen(context, builder, signature, args):
        wide, bits = ir.VectorType(ir.FloatType(), 16), ir.VectorType(ir.IntType(16), 16)
        x = builder.load(builder.inttoptr(args[0], wide.as_pointer()), align=64)
        rounded = builder.bitcast(builder.fptrunc(x, ir.VectorType(_BFloat(), 16)), bits)
        builder.store(rounded, builder.inttoptr(args[1], bits.as_pointer()), align=2)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@register_jitable(forceinline=True)
def write(source, into):
    for i in range(BLOCK // 16):
        round16(source + 64 * i, into + 32 * i)


WIDEN = STORES["bfloat16"].widen


# What happens to the block at (p, g, S), where S are the addresses of the states; results go to `room` first.
def _block0(rule):
    def block(p, g, S, skip, h, tiny, room):
        P, G, X = view(p + skip, BLOCK, np.uint16), view(g, BLOCK, np.uint16), view(room, BLOCK, np.float32)
        for i in range(BLOCK):
            X[i], _ = rule(WIDEN(P[i]), WIDEN(G[i]), (), h, tiny)
        write(room, p + skip)

    return block


def _block1(rule):
    def block(p, g, S, skip, h, tiny, room):
        P, G, A = view(p + skip, BLOCK, np.uint16), view(g, BLOCK, np.uint16), view(S[0] + skip, BLOCK, np.uint16)
        X, Y = view(room, BLOCK, np.float32), view(room + FLOATS, BLOCK, np.float32)
        for i in range(BLOCK):
            X[i], s = rule(WIDEN(P[i]), WIDEN(G[i]), (WIDEN(A[i]),), h, tiny)
            Y[i] = s[0]
        write(room, p + skip)
        write(room + FLOATS, S[0] + skip)

    return block


def _block2(rule):
    def block(p, g, S, skip, h, tiny, room):
        P, G = view(p + skip, BLOCK, np.uint16), view(g, BLOCK, np.uint16)
        A, B = view(S[0] + skip, BLOCK, np.uint16), view(S[1] + skip, BLOCK, np.uint16)
        X, Y = view(room, BLOCK, np.float32), view(room + FLOATS, BLOCK, np.float32)
        Z = view(room + 2 * FLOATS, BLOCK, np.float32)
        for i in range(BLOCK):
            X[i], s = rule(WIDEN(P[i]), WIDEN(G[i]), (WIDEN(A[i]), WIDEN(B[i])), h, tiny)
            Y[i], Z[i] = s
        write(room, p + skip)
        write(room + FLOATS, S[0] + skip)
        write(room + 2 * FLOATS, S[1] + skip)

    return block


def _block3(rule):
    def block(p, g, S, skip, h, tiny, room):
        P, G = view(p + skip, BLOCK, np.uint16), view(g, BLOCK, np.uint16)
        A, B = view(S[0] + skip, BLOCK, np.uint16), view(S[1] + skip, BLOCK, np.uint16)
        C, X = view(S[2] + skip, BLOCK, np.uint16), view(room, BLOCK, np.float32)
        Y, Z = view(room + FLOATS, BLOCK, np.float32), view(room + 2 * FLOATS, BLOCK, np.float32)
        W = view(room + 3 * FLOATS, BLOCK, np.float32)
        for i in range(BLOCK):
            X[i], s = rule(WIDEN(P[i]), WIDEN(G[i]), (WIDEN(A[i]), WIDEN(B[i]), WIDEN(C[i])), h, tiny)
            Y[i], Z[i], W[i] = s
        write(room, p + skip)
        write(room + FLOATS, S[0] + skip)
        write(room + 2 * FLOATS, S[1] + skip)
        write(room + 3 * FLOATS, S[2] + skip)

    return block


BLOCKS = (_block0, _block1, _block2, _block3)


def in_blocks(rule: Callable[..., Any], states: int) -> Callable[..., None]:
    """The loop of a rule, with the parameters of those in `updates`."""
    store = STORES["bfloat16"]
    block = register_jitable(error_model="numpy", forceinline=True)(BLOCKS[states](rule))
    rest = register_jitable(error_model="numpy")(LOOPS[states](rule, store, store))

    def update(p, g, addresses, scalars, start, rows, columns, stride):
        S, room = view(addresses, states, np.int64), stack()
        h, tiny = hyper(scalars, np.float32)
        whole = columns // BLOCK * BLOCK
        for row in range(rows):
            first, from_g = start + row * stride, g + row * columns * 2
            for i in range(0, whole, BLOCK):
                block(p, from_g + i * 2, S, (first + i) * 2, h, tiny, room)
            rest(p, from_g + whole * 2, addresses, scalars, first + whole, 1, columns - whole, 0)

    return update
