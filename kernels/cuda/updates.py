"""In-place optimizer updates: one launch for all arrays of a rule and a dtype, however many there are.

A float32 Adam step moves 28 bytes a parameter (p, m, v read and written, g read) and is bound by memory: what counts is
that every access is one of 128 bits.

Arrays are cut into tiles of TILE elements by their sizes alone. A block takes tile after tile: it finds the array in
the table `owners`, and its addresses in two records. One loop serves every rule: it loads the parameter, the gradient
and as many states as there are, whatever they mean.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numba import cuda

from ..formulas import HYPER, OPTIMIZERS
from .compile import THREADS, Kernel, device
from .layout import CONTROL, RECORDS, TILE, TURNS, offset
from .primitives import VECTOR, loader, reader, storer

read_owner = reader("int32", 1)
read_words2 = reader("int64", 2)
read_words3 = reader("int64", 3)

TURN, RECORD, STATES = TURNS.itemsize, RECORDS.itemsize, offset(RECORDS, "states")


def _one(rule):
    rule = device(rule)

    def one(x, h, tiny):
        p, s = rule(x[0], x[1], x[2:], h, tiny)
        return (p, *s)

    return device(one)


def _lanes(rule, width):
    """The rule for `width` elements at once; each is (p, g, states...), and becomes (p, states...)."""
    one = _one(rule)

    def lanes1(x, h, tiny):
        return (one(x[0], h, tiny),)

    def lanes2(x, h, tiny):
        return one(x[0], h, tiny), one(x[1], h, tiny)

    def lanes4(x, h, tiny):
        return one(x[0], h, tiny), one(x[1], h, tiny), one(x[2], h, tiny), one(x[3], h, tiny)

    return device({1: lanes1, 2: lanes2, 4: lanes4}[width])


def _states(count):
    """The addresses of the states of a record, as a tuple of this length."""

    def states0(record):
        return ()

    return reader("int64", count) if count else device(states0)


def _update(rule, states, dtype):
    real, size = getattr(np, dtype), np.dtype(dtype).itemsize
    width = VECTOR // size
    wide, narrow = _lanes(rule, width), _lanes(rule, 1)
    load, load1, store, store1 = loader(dtype, width), loader(dtype, 1), storer(dtype, width), storer(dtype, 1)
    read_row, read_factor, read_states = reader(dtype, HYPER + 1), reader(dtype, 1), _states(states)
    factor_at = offset(CONTROL, dtype)

    def update(records, turns, owners, tiles, control):
        factor, shift = real(1), 0
        if control != 0:
            skip, shift = read_words2(control)
            if skip != 0:
                return
            factor = read_factor(control + factor_at)[0]
        for tile in range(cuda.blockIdx.x, tiles, cuda.gridDim.x):
            i = read_owner(owners + tile * 4)[0]
            p, g, row = read_words3(turns + i * TURN)
            if g == 0:
                continue
            record = records + i * RECORD
            elements, first_tile = read_words2(record)
            s = read_states(record + STATES)
            scalars = read_row(row + shift)
            h = (scalars[0] * factor, *scalars[1:HYPER])
            tiny = scalars[HYPER]
            places = (p, g, *s)
            results = (p, *s)
            low = 0
            for address in places:
                low |= address
            start = (tile - first_tile) * TILE
            end = min(start + TILE, elements)
            whole = start
            if low % VECTOR == 0:
                whole = end - (end - start) % width
                for j in range(start + cuda.threadIdx.x * width, whole, THREADS * width):
                    store(results, j * size, wide(load(places, j * size), h, tiny))
            for j in range(whole + cuda.threadIdx.x, end, THREADS):
                store1(results, j * size, narrow(load1(places, j * size), h, tiny))

    return update


@cache
def _kernel(rule: Callable[..., Any], states: int, dtype: str) -> Kernel:
    return Kernel(_update(rule, states, dtype), f"update_{rule.__name__}_{dtype}")


def accumulate(p, g, s, h, tiny):
    """The rule of a sum of gradients: p + share g."""
    return p + h[0] * g, ()


def accumulate_kernel(dtype: str) -> Kernel:
    """For arrays of sums in the place of parameters; the share is the first of the scalars."""
    return _kernel(accumulate, 0, dtype)


def update_kernel(name: str, dtype: str) -> Kernel:
    """The kernel of a row of OPTIMIZERS; rows with the same rule share it."""
    row = OPTIMIZERS[name]
    return _kernel(row.rule, len(row.states), dtype)
