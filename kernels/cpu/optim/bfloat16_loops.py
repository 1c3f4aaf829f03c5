"""Loops for bfloat16 arrays with states of their dtype, where the processor can round 16 values in one instruction.

Rounding by arithmetic on bits takes eight instructions, three times an element for Adam: half of the time of a step.
LLVM's vectoriser does not know the instruction, so loops write blocks of float32 to the stack, and `round16` reads them
from there, out of the nearest cache. It writes what `nearest_bfloat16` does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import binding, ir

from ..runtime.frontend import cgutils, intrinsic, register_jitable, types
from ..runtime.primitives import target_has, view
from ..runtime.storage import STORES, BFloat, unrounded
from .loops import MAX_STATES, read_scalars, state_loader, state_storer, state_views, update_loop

BLOCK = 64  # elements: constant, so that LLVM unrolls the loop over its vectors
BLOCK_BYTES = 4 * BLOCK  # of the float32 results

# LLVM 20 and later have vectors of bfloat.
HAS_ROUNDING = binding.llvm_version_info[0] >= 20 and target_has("+avx512bf16")
BFLOAT16 = STORES["bfloat16"]


@intrinsic
def stack(typingctx):
    """The address of memory for the results of a block: p, then its states (none of them a master copy)."""

    def codegen(context, builder, signature, args):
        memory = cgutils.alloca_once(builder, ir.ArrayType(ir.FloatType(), MAX_STATES * BLOCK))
        memory.align = 64
        return builder.ptrtoint(memory, ir.IntType(64))

    return types.int64(), codegen


@intrinsic
def round16(typingctx, source, into):
    """Round 16 values of float32 at the address `source` to bfloat16 at the address `into`."""

    def codegen(context, builder, signature, args):
        floats, bits = ir.VectorType(ir.FloatType(), 16), ir.VectorType(ir.IntType(16), 16)
        x = builder.load(builder.inttoptr(args[0], floats.as_pointer()), align=64)
        rounded = builder.bitcast(builder.fptrunc(x, ir.VectorType(BFloat(), 16)), bits)
        builder.store(rounded, builder.inttoptr(args[1], bits.as_pointer()), align=2)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@register_jitable(forceinline=True)
def round_block(source, into):
    for i in range(BLOCK // 16):
        round16(source + 64 * i, into + 32 * i)


def _block_update(rule: Callable[..., Any], num_states: int) -> Callable[..., None]:
    """The body of `update_loop` for BLOCK elements, whose results stay in float32 until the block is done."""
    widen = BFLOAT16.widen
    load, store = state_loader(num_states, widen), state_storer(num_states, unrounded)

    def block_update(p, g, addresses, first, h, tiny, results):
        # views of the block, and of the results on the stack
        P, G = view(p + 2 * first, BLOCK, np.uint16), view(g, BLOCK, np.uint16)
        S = state_views(addresses, first, BLOCK, np.uint16, 2)
        new_P, new_A = view(results, BLOCK, np.float32), view(results + BLOCK_BYTES, BLOCK, np.float32)
        new_B = view(results + 2 * BLOCK_BYTES, BLOCK, np.float32)
        new_S = new_A, new_B, view(results + 3 * BLOCK_BYTES, BLOCK, np.float32)
        for i in range(BLOCK):
            new_P[i], s = rule(widen(P[i]), widen(G[i]), load(S, i), h, tiny)
            store(new_S, i, s)
        # the results rounded, 16 values at a time
        round_block(results, p + 2 * first)
        for k in range(num_states):
            round_block(results + (k + 1) * BLOCK_BYTES, addresses[k] + 2 * first)

    return register_jitable(error_model="numpy", forceinline=True)(block_update)


def block_loop(rule: Callable[..., Any], num_states: int) -> Callable[..., None]:
    """The loop of a rule, as `update_loop` makes it, in blocks."""
    block_update = _block_update(rule, num_states)
    rest_update = register_jitable(error_model="numpy")(update_loop(rule, num_states, BFLOAT16, BFLOAT16))

    def update(p, g, states, scalars, start, rows, columns, stride):
        addresses, results = view(states, MAX_STATES, np.int64), stack()
        h, tiny = read_scalars(scalars, np.float32)
        whole = columns // BLOCK * BLOCK
        for row in range(rows):
            # one row: whole blocks, then the elements that are left
            first, row_of_g = start + row * stride, g + row * columns * 2
            for i in range(0, whole, BLOCK):
                block_update(p, row_of_g + i * 2, addresses, first + i, h, tiny, results)
            rest_update(p, row_of_g + whole * 2, states, scalars, first + whole, 1, columns - whole, 0)

    return update
