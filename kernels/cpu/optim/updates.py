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

from numba.extending import register_jitable

from ...formulas import OPTIMIZERS
from ...spec import MASTER, SAME
from ..runtime.compile import Kernel, lock
from ..runtime.primitives import call_update
from ..runtime.records import UPDATE, UPDATES, offset, read
from ..runtime.storage import IS_ROUNDING, STOCHASTIC_STORES, STORES
from . import bfloat16_loops
from .loops import update_loop

TILE = 1_024  # elements of one piece of work; a rank does all its pieces of an array at a stretch


def on_master(rule: Callable[..., Any], is_rounding: Callable[..., Any]) -> Callable[..., Any]:
    """The rule for the last of the states instead of p, as long as p is its rounding."""

    def with_master(p, g, s, h, tiny):
        last = s[-1]
        new, others = rule(last if is_rounding(p, last) else p, g, s[:-1], h, tiny)
        return new, (*others, new)

    return register_jitable(error_model="numpy", forceinline=True)(with_master)


def update_kernel(rule: Callable[..., Any], states: int, dtype: str, form: str = SAME) -> Kernel:
    """The loop of a scalar rule; rows of OPTIMIZERS with the same rule share it."""
    with lock:  # two threads would make two of a function that stands around a rule
        return _update_kernel(rule, states, dtype, form)


@cache
def _update_kernel(rule: Callable[..., Any], states: int, dtype: str, form: str) -> Kernel:
    name = f"update_{rule.__name__}_{dtype}"
    if form == SAME:
        if dtype == "bfloat16" and bfloat16_loops.ROUNDS:
            return Kernel(bfloat16_loops.block_loop(rule, states), name)
        return Kernel(update_loop(rule, states, STORES[dtype], STORES[dtype]), name)
    name, wide = f"{name}_{form}", STORES["float32"]
    if form == MASTER:
        return Kernel(update_loop(on_master(rule, IS_ROUNDING[dtype]), states + 1, STORES[dtype], wide), name)
    return Kernel(update_loop(rule, states, STOCHASTIC_STORES[dtype], wide), name)


def update_code(name: str, dtype: str, form: str = SAME) -> int:
    row = OPTIMIZERS[name]
    return update_kernel(row.rule, len(row.states), dtype, form).address


def _update_all(work, step, rank, num_ranks):
    # Rank r does tiles r T / ranks to (r + 1) T / ranks of all arrays laid end to end.
    all_ = read(work, UPDATES)
    first, last = rank * all_.tiles // num_ranks, (rank + 1) * all_.tiles // num_ranks
    for i in range(all_.count):
        at = all_.table + i * RECORD
        one = read(at, UPDATE)
        start = max(first - one.first_tile, 0) * TILE
        end = min((last - one.first_tile) * TILE, one.elements)
        if start < end:
            g = one.g + start * one.element_bytes
            h = all_.scalars if all_.scalars else one.scalars
            call_update(one.update, one.p, g, at + STATES, h, start, 1, end - start, 0)


RECORD, STATES = UPDATE.itemsize, offset(UPDATE, "state0")  # `key` lies behind them
UPDATE_ALL = Kernel(_update_all, "update_all")
