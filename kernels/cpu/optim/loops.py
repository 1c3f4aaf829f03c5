"""The loop of an update: one rule applied to every element of an array, for any number of states.

    update(p, g, states, scalars, start, rows, columns, stride)

updates p and its states from element `start` on: `rows` rows of `columns` elements, `stride` apart. The gradient g has
the same rows without gaps. `states` is the address of STATE_WORDS words: the states' addresses, and at the end the key
of stochastic rounding. `scalars` is the address of the step's scalars.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from ...formulas import NUM_SCALARS
from ..runtime.frontend import register_jitable
from ..runtime.primitives import view, word
from ..runtime.storage import Store

MAX_STATES = 4  # with the master copy
STATE_WORDS = MAX_STATES + 1
assert NUM_SCALARS == 13  # the length of the tuple that `read_scalars` returns

_inlined = register_jitable(error_model="numpy", forceinline=True)


@register_jitable
def read_scalars(scalars, T):
    """The scalars of a step as a tuple, which a write to p cannot change, and the smallest normal number."""
    H = view(scalars, NUM_SCALARS + 1, T)
    return (H[0], H[1], H[2], H[3], H[4], H[5], H[6], H[7], H[8], H[9], H[10], H[11], H[12]), H[NUM_SCALARS]


@register_jitable
def read_key(states):
    """The key of stochastic rounding."""
    return word(view(states, STATE_WORDS, np.uint64)[MAX_STATES])


@register_jitable
def state_views(addresses, first, size, dtype, itemsize):
    """Views of every state that a rule may have, from element `first` on; those that it has not are never read."""
    skip = first * itemsize
    A, B = view(addresses[0] + skip, size, dtype), view(addresses[1] + skip, size, dtype)
    return A, B, view(addresses[2] + skip, size, dtype), view(addresses[3] + skip, size, dtype)


@cache
def state_loader(num_states: int, widen: Callable[..., Any]) -> Callable[..., Any]:
    """load(S, i): element i of each of so many states, as the tuple that a rule reads."""

    def load0(S, i):
        return ()

    def load1(S, i):
        return (widen(S[0][i]),)

    def load2(S, i):
        return widen(S[0][i]), widen(S[1][i])

    def load3(S, i):
        return widen(S[0][i]), widen(S[1][i]), widen(S[2][i])

    def load4(S, i):
        return widen(S[0][i]), widen(S[1][i]), widen(S[2][i]), widen(S[3][i])

    return _inlined((load0, load1, load2, load3, load4)[num_states])


@cache
def state_storer(num_states: int, narrow: Callable[..., Any]) -> Callable[..., Any]:
    """store(S, i, s): writes the values s to element i of so many states."""

    def store(S, i, s):
        if num_states > 0:
            S[0][i] = narrow(s[0], 0, 0)
        if num_states > 1:
            S[1][i] = narrow(s[1], 0, 0)
        if num_states > 2:
            S[2][i] = narrow(s[2], 0, 0)
        if num_states > 3:
            S[3][i] = narrow(s[3], 0, 0)

    return _inlined(store)


def update_loop(rule: Callable[..., Any], num_states: int, own: Store, others: Store) -> Callable[..., None]:
    """The loop of a rule; own: the storage of p and g, others: that of the states."""
    T, dtype, itemsize, widen, narrow = own.T, own.dtype, own.itemsize, own.widen, own.narrow
    state_dtype, state_itemsize = others.dtype, others.itemsize
    load, store = state_loader(num_states, others.widen), state_storer(num_states, others.narrow)

    def update(p, g, states, scalars, start, rows, columns, stride):
        addresses, key = view(states, MAX_STATES, np.int64), read_key(states)
        h, tiny = read_scalars(scalars, T)
        for row in range(rows):
            # one row of p, g and the states
            first = start + row * stride
            P, G = view(p + first * itemsize, columns, dtype), view(g + row * columns * itemsize, columns, dtype)
            S = state_views(addresses, first, columns, state_dtype, state_itemsize)
            for i in range(columns):
                new, s = rule(widen(P[i]), widen(G[i]), load(S, i), h, tiny)
                P[i] = narrow(new, key, first + i)
                store(S, i, s)

    return update


def on_master(rule: Callable[..., Any], is_rounding: Callable[..., Any]) -> Callable[..., Any]:
    """The rule applied to the last of the states instead of p, if p is its rounding."""

    def with_master(p, g, s, h, tiny):
        last = s[-1]
        new, others = rule(last if is_rounding(p, last) else p, g, s[:-1], h, tiny)
        return new, (*others, new)

    return register_jitable(error_model="numpy", forceinline=True)(with_master)
