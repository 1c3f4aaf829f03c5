"""In-place optimizer updates: one launch for all arrays of a rule, dtype and form, however many there are.

A float32 Adam step moves 28 bytes a parameter (p, m, v read and written, g read) and is bound by memory, so every
access is one of 128 bits. In the forms of 16-bit arrays it moves 14 (same), 30 (master) and 22 (stochastic); a thread
loads 8 elements at once, which are 16 bytes of p and g, and 2 x 16 bytes of a state in float32. With a 16-bit copy
of a float32 parameter, which is only written (`storage.COPY`), it is 30. Kernels that leave the gradient divided by the
scale of the loss write it, too: 32 in float32, where a pass of its own over gradients would make it 36. The mask of a
pruned array is read with the others, as numbers of the parameter's dtype: 32.

Arrays are cut into tiles of TILE elements by their sizes alone. A block works on tile after tile: it reads the array's
number from the table `owners`, and the array's addresses from two records. One loop serves every rule: it loads the
parameter, the gradient and as many states as there are, whatever they mean.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numba import cuda

from ...formulas import NUM_SCALARS, OPTIMIZERS, averaged, dropout_key
from ...spec import MASTER, SAME, STOCHASTIC
from ..runtime.compile import THREADS, Kernel, device
from ..runtime.float16 import AT_RANDOM, IS_ROUNDING
from ..runtime.primitives import VECTOR, reader, word
from ..runtime.records import CONTROL, POINTERS, RECORDS, STEP, TILE, offset
from ..runtime.storage import COPY, stores_of
from ..runtime.vectors import array_loader, array_storer, vector_map

read_owner = reader("int32", 1)
read_word = reader("int64", 1)
read_words2 = reader("int64", 2)
read_words3 = reader("int64", 3)

POINTERS_BYTES, RECORD_BYTES, STATES, STREAM = (
    POINTERS.itemsize,
    RECORDS.itemsize,
    offset(RECORDS, "states"),
    offset(RECORDS, "stream"),
)
DIVISOR = offset(CONTROL, "divisor")
SHARE = 5  # index of an average's share among the scalars of its step

average_of = device(averaged)


def of_one(rule, dtype, form):
    """Return the rule for one element in a form: (p, g, states...) becomes (p, states...)."""
    rule = device(rule)

    def same(x, h, tiny, key, element):
        p, s = rule(x[0], x[1], x[2:], h, tiny)
        return (p, *s)

    def copied(x, h, tiny, key, element):
        p, s = rule(x[0], x[1], x[2:], h, tiny)
        return (p, *s, p)

    if form in (SAME, COPY):
        return device(same if form == SAME else copied)
    is_rounding, at_random = device(IS_ROUNDING[dtype]), device(AT_RANDOM[dtype])

    def master(x, h, tiny, key, element):
        copy = x[-1]
        p, s = rule(copy if is_rounding(x[0], copy) else x[0], x[1], x[2:-1], h, tiny)
        return (p, *s, p)

    def stochastic(x, h, tiny, key, element):
        p, s = rule(x[0], x[1], x[2:], h, tiny)
        return (at_random(p, key, element), *s)

    return device({MASTER: master, STOCHASTIC: stochastic}[form])


def unscaling(one):
    """Return `one` with one result more, after the parameter: the gradient, divided by the last of the scalars."""

    def unscaled(x, h, tiny, key, element):
        found = one(x, h, tiny, key, element)
        return (found[0], x[1] / h[-1], *found[1:])

    return device(unscaled)


def _selector(count, first=0):
    """Return select(y, mask): those of so many numbers from the first on, or zeros where the mask is 0."""
    if first == count:
        return device(lambda y, mask: ())
    others = _selector(count, first + 1)

    def select(y, mask):
        return (y[first] if mask != 0 else mask, *others(y, mask))

    return device(select)


def masking(one, count):
    """Return `one` for arrays with a mask behind the gradient: its results, so many, are 0 where the mask is."""
    select = _selector(count)

    def masked(x, h, tiny, key, element):
        return select(one((x[0], x[1], *x[3:]), h, tiny, key, element), x[2])

    return device(masked)


def _states(count):
    """Return a function that reads the addresses of so many states of a record."""

    def states0(record):
        return ()

    return reader("int64", count) if count else device(states0)


def no_mask(record):
    return ()


def no_key(stream, step):
    return 0


def key_of_step(stream, step):
    return dropout_key(word(stream), word(step))


def _update(rule, states, dtype, form, unscales, masked):
    # what is read: p, g, a mask, states; what is written: p, g if it is unscaled, states; a COPY is only written
    own, *others = stores_of(dtype, states, form)
    read = (own, own, *[own] * masked, *(others[:-1] if form == COPY else others))
    written = (own, *[own] * unscales, *others)
    num_read = len(read)
    real, width = getattr(np, own.real), max(store.width for store in written)
    one = of_one(rule, dtype, form)
    if unscales:
        one = unscaling(one)
    if masked:
        one = masking(one, len(written))
    update_vector, update_element = (vector_map(one, n, len(written), numbered=True) for n in (width, 1))
    load, load1 = array_loader(read, width), array_loader(read, 1)
    store, store1 = array_storer(written, width), array_storer(written, 1)
    read_row, read_factor, read_states = reader(own.real, NUM_SCALARS + 1), reader(own.real, 1), _states(states)
    factor_at, read_divisor = offset(CONTROL, own.real), reader("float32", 1)
    key_of = device(key_of_step if form == STOCHASTIC else no_key)
    mask_at = STATES + 8 * states

    def mask_behind_states(record):
        return (read_word(record + mask_at)[0],)

    read_mask = device(mask_behind_states if masked else no_mask)

    def update(records, pointers, owners, tiles, control):
        # what the device has found out about the step
        factor, divisor, shift = real(1), real(1), 0
        if control != 0:
            skip, shift = read_words2(control)
            if skip != 0:
                return
            factor = read_factor(control + factor_at)[0]
            if unscales:
                divisor = real(read_divisor(control + DIVISOR)[0])
        for tile in range(cuda.blockIdx.x, tiles, cuda.gridDim.x):
            # the array of the tile
            i = read_owner(owners + tile * 4)[0]
            p, g, row = read_words3(pointers + i * POINTERS_BYTES)
            if g == 0:
                continue
            record = records + i * RECORD_BYTES
            elements, first_tile = read_words2(record)
            s = read_states(record + STATES)
            # its scalars, with the divisor past those that rules read
            scalars = read_row(row + shift)
            h = (scalars[0] * factor, *scalars[1:NUM_SCALARS], divisor)
            tiny = scalars[NUM_SCALARS]
            key = key_of(read_word(record + STREAM)[0], read_word(row + shift + STEP)[0])
            addresses = (p, g, *read_mask(record), *s)
            results = (p, g, *s) if unscales else (p, *s)
            low_bits = 0
            for address in addresses:
                low_bits |= address
            start = (tile - first_tile) * TILE
            end = min(start + TILE, elements)
            whole = start
            # whole vectors, where all arrays are aligned
            if low_bits % VECTOR == 0:
                whole = end - (end - start) % width
                for j in range(start + cuda.threadIdx.x * width, whole, THREADS * width):
                    store(results, j, update_vector(load(addresses[:num_read], j), h, tiny, key, j))
            # the rest, element by element
            for j in range(whole + cuda.threadIdx.x, end, THREADS):
                store1(results, j, update_element(load1(addresses[:num_read], j), h, tiny, key, j))

    return update


@cache
def _kernel(
    rule: Callable[..., Any], states: int, dtype: str, form: str, unscales: bool = False, masked: bool = False
) -> Kernel:
    words = ["unscale"] * unscales + ["update", rule.__name__] + ["masked"] * masked + [dtype] + [form] * (form != SAME)
    return Kernel(_update(rule, states, dtype, form, unscales, masked), "_".join(words))


def accumulate(p, g, s, h, tiny):
    """Rule of a sum of gradients: p + share g."""
    return p + h[0] * g, ()


def accumulate_kernel(dtype: str) -> Kernel:
    """Return the kernel that adds gradients to arrays of sums; the share is the first of the scalars."""
    return _kernel(accumulate, 0, dtype, SAME)


def average(p, g, s, h, tiny):
    """Rule of an average p of the parameter g over steps. The share is no scalar that clipping changes."""
    return average_of(p, g, h[SHARE]), ()


def average_kernel(dtype: str) -> Kernel:
    """Return the kernel that takes parameters into their averages."""
    return _kernel(average, 0, dtype, SAME)


def pruned(p, g, s, h, tiny):
    """Rule of a pruned array: p where the mask g is not 0, else 0."""
    return (p if g != 0 else g), ()


def mask_kernel(dtype: str) -> Kernel:
    """Return the kernel that sets arrays to zero where their masks, of their dtype, are zero."""
    return _kernel(pruned, 0, dtype, SAME)


def update_kernel(name: str, dtype: str, form: str = SAME, unscales: bool = False, masked: bool = False) -> Kernel:
    """Return the kernel of a row of OPTIMIZERS; rows with the same rule share it.

    unscales: it also divides the gradient, in place, by the `divisor` of the control record. masked: arrays have masks,
    whose addresses are behind those of their states, and are 0 where these are.
    """
    row = OPTIMIZERS[name]
    return _kernel(row.rule, len(row.states) + (form in (MASTER, COPY)), dtype, form, unscales, masked)
