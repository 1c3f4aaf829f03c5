"""Update loops that also take each parameter into its average over steps, while it is in a register.

An average of its own pass moves 12 bytes a float32 parameter, and waits for all updates; here it moves 8 more.

The average is the array behind the rule's states. The word for the key of stochastic rounding, which these arrays do
not need, has the address of the parameter's share in the average.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from ...formulas import OPTIMIZERS, averaged
from ..runtime.compile import Kernel, lock
from ..runtime.primitives import view
from ..runtime.storage import STORES
from .loops import MAX_STATES, read_key, read_scalars, state_loader, state_storer, state_views


def averaging_loop(rule: Callable[..., Any], num_states: int, dtype: str) -> Callable[..., None]:
    """The loop of a rule on float32 or float64, see `loops.update_loop`."""
    store_of = STORES[dtype]
    T, itemsize = store_of.T, store_of.itemsize
    load, store = state_loader(num_states, store_of.widen), state_storer(num_states, store_of.narrow)

    def update(p, g, states, scalars, start, rows, columns, stride):
        addresses = view(states, MAX_STATES, np.int64)
        share = view(np.int64(read_key(states)), 1, T)[0]
        h, tiny = read_scalars(scalars, T)
        for row in range(rows):
            # one row of p, g, the states and the average
            first = start + row * stride
            P, G = view(p + first * itemsize, columns, T), view(g + row * columns * itemsize, columns, T)
            A = view(addresses[num_states] + first * itemsize, columns, T)
            S = state_views(addresses, first, columns, T, itemsize)
            for i in range(columns):
                new, s = rule(P[i], G[i], load(S, i), h, tiny)
                P[i] = new
                A[i] = averaged(A[i], new, share)
                store(S, i, s)

    return update


def averaging_kernel(name: str, dtype: str) -> Kernel:
    """The loop of an optimizer; rows of OPTIMIZERS with the same rule share it."""
    row = OPTIMIZERS[name]
    assert len(row.states) < MAX_STATES
    with lock:  # two threads would make two different loops
        return _averaging_kernel(row.rule, len(row.states), dtype)


@cache
def _averaging_kernel(rule: Callable[..., Any], num_states: int, dtype: str) -> Kernel:
    return Kernel(averaging_loop(rule, num_states, dtype), f"update_{rule.__name__}_averaging_{dtype}")
