"""Norms, clipping and skipping on the device: what a step does may depend on its gradients, and the host need not wait.

    squares   one block a tile: the sum of the squares of its elements
    settle    one block: adds them up, and leaves in the control record whether and how the update is to go on

Sums are taken in float64, cut by the sizes of the arrays alone, and added in a fixed order: a thread's elements one
after the other, the threads of a block by halves. So a norm is the same bits in every run and on every device.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from numba import cuda

from ..formulas import clip_factor
from .compile import THREADS, Kernel, device
from .layout import CONTROL, RECORDS, ROW, SETTINGS, TILE, TURNS, offset
from .primitives import VECTOR, reader, writer
from .storage import STORES, columns

SUM = 16  # bytes of what is known of a tile: the sum of squares, and 0, or NaN where an element is not finite

read_owner, read_word, read_words2 = reader("int32", 1), reader("int64", 1), reader("int64", 2)
read_float, read_double, read_doubles2 = reader("float32", 1), reader("float64", 1), reader("float64", 2)
write_word, write_double, write_float = writer("int64"), writer("float64"), writer("float32")

TURN, G, RECORD = TURNS.itemsize, offset(TURNS, "g"), RECORDS.itemsize
SCALE, GRAD_SCALE, FOUND_INF = (offset(SETTINGS, name) for name in ("scale", "grad_scale", "found_inf"))
MOST, CAREFUL, SEEN, NUMBER = (offset(SETTINGS, name) for name in ("most", "careful", "seen", "number"))
COUNTED = offset(SETTINGS, "counted")
SKIP, SHIFT, SKIPS, NEWS = (offset(CONTROL, name) for name in ("skip", "shift", "skips", "news"))
NORM, FACTOR64, FACTOR32 = (offset(CONTROL, name) for name in ("norm", "float64", "float32"))

clip = device(clip_factor)


def _add_up(totals, odds, me):
    """The sums of both over the threads of a block, by halves; they end in the first."""
    half = THREADS // 2
    while half > 0:
        cuda.syncthreads()
        if me < half:
            totals[me] += totals[me + half]
            odds[me] += odds[me + half]
        half //= 2


add_up = device(_add_up)


def _squares(dtype):
    own = STORES[dtype]
    width = own.width
    load, load1 = columns((own,), width), columns((own,), 1)

    def squares(records, turns, owners, tiles, sums):
        totals = cuda.shared.array(THREADS, np.float64)
        odds = cuda.shared.array(THREADS, np.float64)
        me = cuda.threadIdx.x
        for tile in range(cuda.blockIdx.x, tiles, cuda.gridDim.x):
            i = read_owner(owners + tile * 4)[0]
            g = read_word(turns + i * TURN + G)[0]
            elements, first_tile = read_words2(records + i * RECORD)
            start = (tile - first_tile) * TILE
            end = min(start + TILE, elements) if g != 0 else start
            total, odd = 0.0, 0.0
            whole = start
            if g % VECTOR == 0:
                whole = end - (end - start) % width
                for j in range(start + me * width, whole, THREADS * width):
                    for lane in load((g,), j):
                        x = np.float64(lane[0])
                        total += x * x
                        odd += x - x
            for j in range(whole + me, end, THREADS):
                x = np.float64(load1((g,), j)[0][0])
                total += x * x
                odd += x - x
            totals[me], odds[me] = total, odd
            add_up(totals, odds, me)
            if me == 0:
                write_double(sums + tile * SUM, totals[0])
                write_double(sums + tile * SUM + 8, odds[0])
            cuda.syncthreads()  # the next tile begins with totals

    return squares


@cache
def squares_kernel(dtype: str) -> Kernel:
    """sums[tile] of the gradients of one dtype."""
    return Kernel(_squares(dtype), f"squares_{dtype}")


def _settle(sums, tiles, settings, control):
    totals = cuda.shared.array(THREADS, np.float64)
    odds = cuda.shared.array(THREADS, np.float64)
    me = cuda.threadIdx.x
    total, odd = 0.0, 0.0
    for tile in range(me, tiles, THREADS):
        squares, strange = read_doubles2(sums + tile * SUM)
        total += squares
        odd += strange
    totals[me], odds[me] = total, odd
    add_up(totals, odds, me)
    if me == 0:
        scale = read_double(settings + SCALE)[0]
        grad_scale, found_inf = read_word(settings + GRAD_SCALE)[0], read_word(settings + FOUND_INF)[0]
        if grad_scale != 0:
            scale *= 1.0 / np.float64(read_float(grad_scale)[0])
        norm = scale * math.sqrt(totals[0])
        most = read_double(settings + MOST)[0]
        if most < math.inf:
            scale *= clip(most, norm)
        skip = 0
        if found_inf != 0 and read_float(found_inf)[0] != 0:
            skip = 1
        if read_word(settings + CAREFUL)[0] != 0 and odds[0] != 0:
            skip = 1
        # The rows of scalars are laid out from the newest step backwards, for each step that may have been skipped.
        skips, behind = read_word(control + SKIPS)[0], 0
        if read_word(settings + COUNTED)[0] == 0:
            behind = skips - read_word(settings + SEEN)[0]
        write_word(control + SKIP, skip)
        write_word(control + SHIFT, behind * ROW)
        write_word(control + SKIPS, skips + skip)
        write_word(control + NEWS, 2 * read_word(settings + NUMBER)[0] + skip)
        write_double(control + NORM, norm)
        write_double(control + FACTOR64, scale)
        write_float(control + FACTOR32, np.float32(scale))


SETTLE = Kernel(_settle, "settle")
