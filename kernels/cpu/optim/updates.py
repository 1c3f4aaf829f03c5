"""Optimizer updates in place: a kernel for each rule, dtype and form, and one that runs those of many arrays.

A float32 Adam step moves 28 bytes a parameter (p, m, v read and written, g read) and is bound by memory, or in a cache
by the divider: a root and a quotient of 16 numbers take 8.9 cycles of a Zen 5 in turns, and an update of them 8.4.

Arrays that are larger than the caches have loops that prefetch, where the processor gains by them
(`streaming_loops.py`). Where p and g have 16 bits, rules calculate in float32, in one of three forms:

- same: the states have p's dtype, as in torch's optimizers. Adam moves 14 bytes.
- master: the states are float32, and the last of them is a master copy of p, which the rule updates; p is its rounding.
  Adam moves 30 bytes. An element of p that is not the rounding of its copy was written to meanwhile and replaces it:
  that test is free in memory, and takes a tenth of Adam's time in cache.
- stochastic: the states are float32, and p is rounded up or down at random. Adam moves 22 bytes.

States of any form may be codes of 8 bits (`blockwise_loops.py`), with which Adam of float32 moves 16 bytes.

All forms keep states above the smallest normal number of float32, which is bfloat16's as well. float16's is larger:
smaller states become denormal or zero, as in torch; converting those takes no longer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from ...formulas import OPTIMIZERS
from ...spec import MASTER, SAME, WHOLE, BufferUpdate
from ..runtime.compile import Kernel, lock
from ..runtime.primitives import call_update
from ..runtime.records import UPDATE, UPDATES, offset, read
from ..runtime.storage import IS_ROUNDING, STOCHASTIC_STORES, STORES
from . import bfloat16_loops, streaming_loops
from .blockwise_loops import blockwise_kernel
from .loops import on_master, update_loop

TILE = 1_024  # elements of a piece of work; neighbouring pieces of an array are one call


def update_kernel(
    rule: Callable[..., Any], num_states: int, dtype: str, form: str = SAME, streamed: bool = False
) -> Kernel:
    """The loop of a scalar rule; rows of OPTIMIZERS with the same rule share it.

    streamed: for arrays that are larger than the caches; the same loop where nothing is gained by another.
    """
    bytes_ahead = streaming_loops.ahead_bytes(num_states) if streamed and dtype in ("float32", "float64") else 0
    with lock:  # two threads would make two different loops
        return _update_kernel(rule, num_states, dtype, form, bytes_ahead)


@cache
def _update_kernel(rule: Callable[..., Any], num_states: int, dtype: str, form: str, bytes_ahead: int) -> Kernel:
    name = f"update_{rule.__name__}_{dtype}"
    if bytes_ahead:
        loop = streaming_loops.streaming_loop(rule, num_states, STORES[dtype], bytes_ahead)
        return Kernel(loop, f"{name}_ahead{bytes_ahead}")
    if form == SAME:
        if dtype == "bfloat16" and bfloat16_loops.HAS_ROUNDING:
            return Kernel(bfloat16_loops.block_loop(rule, num_states), name)
        return Kernel(update_loop(rule, num_states, STORES[dtype], STORES[dtype]), name)
    name, float32 = f"{name}_{form}", STORES["float32"]
    if form == MASTER:
        return Kernel(update_loop(on_master(rule, IS_ROUNDING[dtype]), num_states + 1, STORES[dtype], float32), name)
    return Kernel(update_loop(rule, num_states, STOCHASTIC_STORES[dtype], float32), name)


def update_code(name: str, dtype: str, form: str = SAME, streamed: bool = False, storage: str = WHOLE) -> int:
    """The address of the loop of an optimizer."""
    row = OPTIMIZERS[name]
    if storage != WHOLE and row.states:
        return blockwise_kernel(name, dtype, form, storage).address
    return update_kernel(row.rule, len(row.states), dtype, form, streamed).address


def are_streamed(targets: Sequence[BufferUpdate]) -> bool:
    """True if the arrays of a step are larger than the caches, together."""
    total = 0
    for t in targets:
        own = STORES[t.dtype].itemsize
        state = 1 if t.storage != WHOLE else own if t.form == SAME else 4
        total += t.elements * (2 * own + len(t.states) * state)
    return total > streaming_loops.STREAMED_BYTES


def _update_all(work, step, rank, num_ranks):
    """Update all arrays: a rank does its share of the tiles of all arrays laid end to end."""
    updates = read(work, UPDATES)
    first, last = rank * updates.tiles // num_ranks, (rank + 1) * updates.tiles // num_ranks
    for i in range(updates.count):
        record = updates.table + i * RECORD_BYTES
        one = read(record, UPDATE)
        # the rank's elements of this array
        start = max(first - one.first_tile, 0) * TILE
        end = min((last - one.first_tile) * TILE, one.elements)
        if start < end:
            g, scalars = one.g + start * one.element_bytes, updates.scalars + one.scalars
            call_update(one.update, one.p, g, record + STATES_OFFSET, scalars, start, 1, end - start, 0)


RECORD_BYTES, STATES_OFFSET = UPDATE.itemsize, offset(UPDATE, "state0")  # the key follows the states
UPDATE_ALL = Kernel(_update_all, "update_all")
