"""In-place optimizer updates: one loop for each number of state arrays, whatever the rule.

A float32 Adam step moves 28 bytes a parameter (p, m, v read and written, g read) and is bound by memory. Where p and g
have 16 bits, the same rules work on their values in float32, and there are three forms:

- same: the states have p's dtype, as in torch's optimizers. Adam moves 14 bytes.
- master: the states are float32, and one more of them is the parameter in float32, which the rule works on; p becomes
  its rounding. Adam moves 30 bytes. Where p is no rounding of it, someone else has written there, and the rule works on
  p: in memory that costs nothing to be seen, in the cache a tenth of Adam's time.
- stochastic: the states are float32, and p is rounded up or down at random. Adam moves 22 bytes.

States are kept above the smallest normal number of float32 in all of them. bfloat16 has the same one. float16's is
larger: what it cannot hold becomes denormal or zero, as it does in torch; converting those takes no longer.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numba.extending import register_jitable

from ...formulas import NUM_SCALARS, OPTIMIZERS
from ...spec import MASTER, SAME
from ..runtime.compile import Kernel, lock
from ..runtime.primitives import call_update, view, word
from ..runtime.records import UPDATE, UPDATES, offset, read
from ..runtime.storage import IS_ROUNDING, STOCHASTIC_STORES, STORES

TILE = 1_024  # elements of one piece of work; a rank does all its pieces of an array at a stretch
MAX_STATES = 4  # with the master copy
WORDS = MAX_STATES + 1  # addresses of the states, and the key of stochastic rounding

# (p, g, states, scalars, start, rows, columns, stride): p and the states from element `start` on, rows of `columns`
# elements `stride` apart; g has the same rows without gaps. `states` is the address of WORDS words.


@register_jitable
def hyper(scalars, real):
    """The scalars of a step as a tuple, which a write to p cannot change, and the smallest normal number."""
    H = view(scalars, NUM_SCALARS + 1, real)
    return (H[0], H[1], H[2], H[3], H[4], H[5], H[6], H[7], H[8], H[9], H[10], H[11], H[12]), H[NUM_SCALARS]


@register_jitable
def key_of(states):
    return word(view(states, WORDS, np.uint64)[MAX_STATES])


def on_master(rule: Callable[..., Any], is_rounding: Callable[..., Any]) -> Callable[..., Any]:
    """The rule for the last of the states instead of p, as long as p is its rounding."""

    def with_master(p, g, s, h, tiny):
        last = s[-1]
        new, others = rule(last if is_rounding(p, last) else p, g, s[:-1], h, tiny)
        return new, (*others, new)

    return register_jitable(error_model="numpy", forceinline=True)(with_master)


# Loops of a rule for p and g as one `Store` keeps them, and states as another.
def _loop0(rule, own, others):
    real, kind, width, widen, narrow = own.real, own.kind, own.width, own.widen, own.narrow

    def update(p, g, states, scalars, start, rows, columns, stride):
        key = key_of(states)
        h, tiny = hyper(scalars, real)
        for row in range(rows):
            first = start + row * stride
            P, G = view(p + first * width, columns, kind), view(g + row * columns * width, columns, kind)
            for i in range(columns):
                new, _ = rule(widen(P[i]), widen(G[i]), (), h, tiny)
                P[i] = narrow(new, key, first + i)

    return update


def _loop1(rule, own, others):
    real, kind, width, widen, narrow = own.real, own.kind, own.width, own.widen, own.narrow
    other, size, load, keep = others.kind, others.width, others.widen, others.narrow

    def update(p, g, states, scalars, start, rows, columns, stride):
        S, key = view(states, 1, np.int64), key_of(states)
        h, tiny = hyper(scalars, real)
        for row in range(rows):
            first = start + row * stride
            P, G = view(p + first * width, columns, kind), view(g + row * columns * width, columns, kind)
            A = view(S[0] + first * size, columns, other)
            for i in range(columns):
                new, s = rule(widen(P[i]), widen(G[i]), (load(A[i]),), h, tiny)
                P[i] = narrow(new, key, first + i)
                A[i] = keep(s[0], key, 0)

    return update


def _loop2(rule, own, others):
    real, kind, width, widen, narrow = own.real, own.kind, own.width, own.widen, own.narrow
    other, size, load, keep = others.kind, others.width, others.widen, others.narrow

    def update(p, g, states, scalars, start, rows, columns, stride):
        S, key = view(states, 2, np.int64), key_of(states)
        h, tiny = hyper(scalars, real)
        for row in range(rows):
            first = start + row * stride
            P, G = view(p + first * width, columns, kind), view(g + row * columns * width, columns, kind)
            A, B = view(S[0] + first * size, columns, other), view(S[1] + first * size, columns, other)
            for i in range(columns):
                new, s = rule(widen(P[i]), widen(G[i]), (load(A[i]), load(B[i])), h, tiny)
                P[i] = narrow(new, key, first + i)
                A[i], B[i] = keep(s[0], key, 0), keep(s[1], key, 0)

    return update


def _loop3(rule, own, others):
    real, kind, width, widen, narrow = own.real, own.kind, own.width, own.widen, own.narrow
    other, size, load, keep = others.kind, others.width, others.widen, others.narrow

    def update(p, g, states, scalars, start, rows, columns, stride):
        S, key = view(states, 3, np.int64), key_of(states)
        h, tiny = hyper(scalars, real)
        for row in range(rows):
            first = start + row * stride
            P, G = view(p + first * width, columns, kind), view(g + row * columns * width, columns, kind)
            A, B = view(S[0] + first * size, columns, other), view(S[1] + first * size, columns, other)
            C = view(S[2] + first * size, columns, other)
            for i in range(columns):
                new, s = rule(widen(P[i]), widen(G[i]), (load(A[i]), load(B[i]), load(C[i])), h, tiny)
                P[i] = narrow(new, key, first + i)
                A[i], B[i], C[i] = keep(s[0], key, 0), keep(s[1], key, 0), keep(s[2], key, 0)

    return update


def _loop4(rule, own, others):
    real, kind, width, widen, narrow = own.real, own.kind, own.width, own.widen, own.narrow
    other, size, load, keep = others.kind, others.width, others.widen, others.narrow

    def update(p, g, states, scalars, start, rows, columns, stride):
        S, key = view(states, 4, np.int64), key_of(states)
        h, tiny = hyper(scalars, real)
        for row in range(rows):
            first = start + row * stride
            P, G = view(p + first * width, columns, kind), view(g + row * columns * width, columns, kind)
            A, B = view(S[0] + first * size, columns, other), view(S[1] + first * size, columns, other)
            C, D = view(S[2] + first * size, columns, other), view(S[3] + first * size, columns, other)
            for i in range(columns):
                new, s = rule(widen(P[i]), widen(G[i]), (load(A[i]), load(B[i]), load(C[i]), load(D[i])), h, tiny)
                P[i] = narrow(new, key, first + i)
                A[i], B[i] = keep(s[0], key, 0), keep(s[1], key, 0)
                C[i], D[i] = keep(s[2], key, 0), keep(s[3], key, 0)

    return update


LOOPS: tuple[Callable[..., Any], ...] = (_loop0, _loop1, _loop2, _loop3, _loop4)


def update_kernel(rule: Callable[..., Any], states: int, dtype: str, form: str = SAME) -> Kernel:
    """The loop of a scalar rule; rows of OPTIMIZERS with the same rule share it."""
    with lock:  # two threads would make two of a function that stands around a rule
        return _update_kernel(rule, states, dtype, form)


@cache
def _update_kernel(rule: Callable[..., Any], states: int, dtype: str, form: str) -> Kernel:
    name = f"update_{rule.__name__}_{dtype}"
    if form == SAME:
        from . import bfloat16_loops  # which is made of the loops here

        if dtype == "bfloat16" and bfloat16_loops.ROUNDS:
            return Kernel(bfloat16_loops.in_blocks(rule, states), name)
        return Kernel(LOOPS[states](rule, STORES[dtype], STORES[dtype]), name)
    name, wide = f"{name}_{form}", STORES["float32"]
    if form == MASTER:
        return Kernel(LOOPS[states + 1](on_master(rule, IS_ROUNDING[dtype]), STORES[dtype], wide), name)
    return Kernel(LOOPS[states](rule, STOCHASTIC_STORES[dtype], wide), name)


def update_code(name: str, dtype: str, form: str = SAME) -> int:
    row = OPTIMIZERS[name]
    return update_kernel(row.rule, len(row.states), dtype, form).address


def _update_all(work, step, rank, ranks):
    # Rank r does tiles r T / ranks to (r + 1) T / ranks of all arrays laid end to end.
    all_ = read(work, UPDATES)
    first, last = rank * all_.tiles // ranks, (rank + 1) * all_.tiles // ranks
    for i in range(all_.count):
        at = all_.table + i * RECORD
        one = read(at, UPDATE)
        start = max(first - one.first_tile, 0) * TILE
        end = min((last - one.first_tile) * TILE, one.elements)
        if start < end:
            g = one.g + start * one.width
            h = all_.scalars if all_.scalars else one.scalars
            call_update(one.update, one.p, g, at + STATES, h, start, 1, end - start, 0)


RECORD, STATES = UPDATE.itemsize, offset(UPDATE, "state0")  # `key` lies behind them
UPDATE_ALL = Kernel(_update_all, "update_all")
