"""Loops that prefetch, for arrays of float32 and float64 that do not stay in the caches from one step to the next.

Their bits are those of `update_loop`. They work in blocks of a few cache lines of each array, and ask for the lines of
a later block before they calculate: LLVM would not vectorise a loop with a prefetch inside.

Measured on Zen 5 with 2 cores, float32 and float64: Adam and AMSGrad of 10 million numbers and more take 0.86 to 1.0 of
the time of `update_loop` where memory has bandwidth to spare, and the same time where it has none. Below 48 MB, in the
third-level cache, they take 1.03 to 1.1. With three arrays (momentum) nothing is gained, with two (SGD) some is lost.
Prefetching some of the arrays only, or every other line, costs 10 to 30 %: the processor's own prefetching suffers.
Results of the same loop that gain nothing or lose: non-temporal stores (1.02 to 1.06), pieces of the ranks in turns
(1.02 to 1.9), one array after the other by pages (1.03 to 1.5), huge pages, arrays some lines apart.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..runtime.frontend import INTERPRETED, intrinsic, types
from ..runtime.primitives import prefetch, view
from ..runtime.processors import microarchitecture
from ..runtime.storage import Store
from .loops import MAX_STATES, read_scalars

LINE_BYTES = 64
BLOCK_LINES = 4  # lines of each array in a block: with 8 half of the gain is left, with 16 there is a loss
# By processor and number of arrays (p, g and the states): the bytes by which prefetches are ahead. Others: none.
AHEAD_BYTES = {"znver5": {4: 2048, 5: 1536}}
STREAMED_BYTES = 48 << 20  # half as much again as the third-level cache of 8 cores of Zen 5


def ahead_bytes(num_states: int) -> int:
    """The bytes by which loops of a rule prefetch on this processor; 0: they do not."""
    return 0 if INTERPRETED else AHEAD_BYTES.get(microarchitecture(), {}).get(num_states + 2, 0)


def _accessors(num_states: int, store: Store) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """load(addresses, i): element i of p, g and the states; store(addresses, i, values): of p and the states.

    addresses: of p, g and MAX_STATES states; those that a rule has not are never read. LLVM is told that no two of
    these arrays overlap. Otherwise it would compare their addresses before each block, which takes half as long as the
    block's arithmetic.
    """
    name, count = np.dtype(store.dtype).name, num_states + 2

    def element(context: Any, builder: Any, addresses: Any, k: int, i: Any) -> Any:
        address, kind = builder.extract_value(addresses, k), context.get_value_type(getattr(types, name))
        return builder.gep(builder.inttoptr(address, kind.as_pointer()), [i], inbounds=True)

    def mark(builder: Any, access: Any, k: int) -> Any:
        """Mark a load or a store as one of array k, and of none of the others."""
        add = builder.module.add_metadata
        domain = add(["arrays of an update"])
        scopes = [add([f"array {other} of an update", domain]) for other in range(count)]
        access.set_metadata("alias.scope", add([scopes[k]]))
        access.set_metadata("noalias", add([scope for other, scope in enumerate(scopes) if other != k]))
        return access

    @intrinsic
    def load_elements(typingctx, addresses, i):
        def codegen(context, builder, signature, args):
            found = []
            for k in range(count):
                pointer = element(context, builder, args[0], k, args[1])
                found.append(mark(builder, builder.load(pointer, align=store.itemsize), k))
            return context.make_tuple(builder, signature.return_type, found)

        numbers = types.UniTuple(getattr(types, name), count)
        return numbers(types.UniTuple(types.int64, MAX_STATES + 2), types.int64), codegen

    @intrinsic
    def store_elements(typingctx, addresses, i, values):
        def codegen(context, builder, signature, args):
            for position, k in enumerate((0, *range(2, count))):
                pointer = element(context, builder, args[0], k, args[1])
                value = builder.extract_value(args[2], position)
                mark(builder, builder.store(value, pointer, align=store.itemsize), k)
            return context.get_dummy_value()

        numbers = types.UniTuple(getattr(types, name), count - 1)
        parameters = types.UniTuple(types.int64, MAX_STATES + 2), types.int64, numbers
        return types.void(*parameters), codegen

    return load_elements, store_elements


def streaming_loop(rule: Callable[..., Any], num_states: int, store: Store, bytes_ahead: int) -> Callable[..., None]:
    """The loop of a rule, as `update_loop` makes it, for arrays of one storage; it prefetches so many bytes ahead."""
    T, itemsize = store.T, store.itemsize
    load_elements, store_elements = _accessors(num_states, store)
    line = LINE_BYTES // itemsize
    ahead, block = bytes_ahead // itemsize, BLOCK_LINES * line

    def update(p, g, states, scalars, start, rows, columns, stride):
        S = view(states, MAX_STATES, np.int64)
        states_of_p = S[0], S[1], S[2], S[3]
        h, tiny = read_scalars(scalars, T)
        for row in range(rows):
            # one row, with the same indices for p, g and the states
            first = start + row * stride
            A = (p, g + (row * columns - first) * itemsize, *states_of_p)
            end, whole = first + columns, first + max(columns - ahead, 0) // block * block
            # whole blocks: each asks for the lines of a later one
            for begin in range(first, whole, block):
                for i in range(begin + ahead, begin + ahead + block, line):
                    for k in range(num_states + 2):
                        prefetch(A[k] + i * itemsize)
                for i in range(begin, begin + block):
                    x = load_elements(A, i)
                    new, s = rule(x[0], x[1], x[2:], h, tiny)
                    store_elements(A, i, (new, *s))
            # the elements that are left
            for i in range(whole, end):
                x = load_elements(A, i)
                new, s = rule(x[0], x[1], x[2:], h, tiny)
                store_elements(A, i, (new, *s))

    return update
