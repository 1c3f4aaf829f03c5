"""Update loops of parameters that are partly pruned: a pruned element and its states are zero after the update.

The mask is one byte an element beside the 28 that a float32 Adam step moves, and read where these are: there is no
other pass. With an average over steps, see `averaging_loops`, the element's average goes on in the same loop.

The word for the key of stochastic rounding, which these arrays do not need, has the address of a record MASKED.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from ...formulas import OPTIMIZERS, averaged
from ..runtime.compile import Kernel, lock
from ..runtime.frontend import register_jitable
from ..runtime.primitives import view
from ..runtime.records import MASKED, read
from ..runtime.storage import STORES
from .loops import MAX_STATES, read_key, read_scalars, state_loader, state_storer, state_views

_inlined = register_jitable(error_model="numpy", forceinline=True)


def _selector(num_states: int, T: Any) -> Callable[..., Any]:
    """select(s, keeps): the tuple of so many values, or of zeros."""

    def select0(s, keeps):
        return ()

    def select1(s, keeps):
        return (s[0] if keeps else T(0),)

    def select2(s, keeps):
        return s[0] if keeps else T(0), s[1] if keeps else T(0)

    def select3(s, keeps):
        return s[0] if keeps else T(0), s[1] if keeps else T(0), s[2] if keeps else T(0)

    return _inlined((select0, select1, select2, select3)[num_states])


def masked_loop(rule: Callable[..., Any], num_states: int, dtype: str, averages: bool) -> Callable[..., None]:
    """The loop of a rule on float32 or float64, see `loops.update_loop`; averages: with an average over steps."""
    store_of = STORES[dtype]
    T, itemsize = store_of.T, store_of.itemsize
    load, store = state_loader(num_states, store_of.widen), state_storer(num_states, store_of.narrow)
    select = _selector(num_states, T)

    def update(p, g, states, scalars, start, rows, columns, stride):
        addresses = view(states, MAX_STATES, np.int64)
        masked = read(np.int64(read_key(states)), MASKED)
        h, tiny = read_scalars(scalars, T)
        for row in range(rows):
            # one row of p, g, the mask and the states
            first = start + row * stride
            P, G = view(p + first * itemsize, columns, T), view(g + row * columns * itemsize, columns, T)
            M = view(masked.mask + first, columns, np.uint8)
            S = state_views(addresses, first, columns, T, itemsize)
            if averages:
                A, share = view(addresses[num_states] + first * itemsize, columns, T), view(masked.share, 1, T)[0]
                for i in range(columns):
                    keeps = M[i] != 0
                    new, s = rule(P[i], G[i], load(S, i), h, tiny)
                    new = new if keeps else T(0)
                    P[i] = new
                    A[i] = averaged(A[i], new, share)
                    store(S, i, select(s, keeps))
            else:
                for i in range(columns):
                    keeps = M[i] != 0
                    new, s = rule(P[i], G[i], load(S, i), h, tiny)
                    P[i] = new if keeps else T(0)
                    store(S, i, select(s, keeps))

    return update


def masked_kernel(name: str, dtype: str, averages: bool) -> Kernel:
    """The loop of an optimizer; rows of OPTIMIZERS with the same rule share it."""
    row = OPTIMIZERS[name]
    with lock:  # two threads would make two different loops
        return _masked_kernel(row.rule, len(row.states), dtype, averages)


@cache
def _masked_kernel(rule: Callable[..., Any], num_states: int, dtype: str, averages: bool) -> Kernel:
    name = f"update_{rule.__name__}_masked{'_averaging' * averages}_{dtype}"
    return Kernel(masked_loop(rule, num_states, dtype, averages), name)


def _mask_tile(T: Any, itemsize: int) -> Callable[..., None]:
    def mask_tile(g, mask, unused, unused2, rows, columns, stride):
        """Set the gradients of pruned elements in a tile to zero; stride: from row to row of both."""
        for i in range(rows):
            G, M = view(g + i * stride * itemsize, columns, T), view(mask + i * stride, columns, np.uint8)
            for j in range(columns):
                G[j] = G[j] if M[j] != 0 else T(0)

    return mask_tile


@cache
def mask_tile_kernel(dtype: str) -> Kernel:
    """The kernel that sets a tile of gradients to zero where parameters are pruned."""
    return Kernel(_mask_tile(getattr(np, dtype), np.dtype(dtype).itemsize), f"mask_tile_{dtype}")
