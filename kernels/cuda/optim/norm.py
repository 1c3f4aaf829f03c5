"""Norms, clipping and skipping on the device: what a step does may depend on its gradients, and the host need not wait.

    squares   one block a tile: the sum of the squares of its elements
    settle    one block: adds them up, and leaves in the control record whether and how the update is to go on

Sums are taken in float64, cut by the sizes of the arrays alone, and added in a fixed order: a thread's elements one
after the other, then every 32nd thread of a block, and those 32. So a norm is the same bits in every run and on every
device.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from numba import cuda

from ...formulas import clip_factor
from ..runtime.compile import SIMULATED, THREADS, Kernel, device
from ..runtime.primitives import VECTOR, array_loader, reader, writer
from ..runtime.records import CONTROL, RECORDS, ROW, SETTINGS, TILE, TURNS, offset
from ..runtime.storage import STORES

FIRST = 2 if SIMULATED else 32  # threads that add up those of a block: a warp
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
DIVISOR = offset(CONTROL, "grad_scale")

clip = device(clip_factor)


def _add_up(totals, odds, me):
    """Add both up over the threads of a block; the sums end in the first.

    In two stages, with a barrier before each, instead of a barrier for each half: a block has a tile in a microsecond.
    """
    cuda.syncthreads()
    if me < FIRST:
        total, odd = totals[me], odds[me]
        for other in range(me + FIRST, THREADS, FIRST):
            total += totals[other]
            odd += odds[other]
        totals[me], odds[me] = total, odd
    cuda.syncthreads()
    if me == 0:
        total, odd = totals[0], odds[0]
        for other in range(1, FIRST):
            total += totals[other]
            odd += odds[other]
        totals[0], odds[0] = total, odd


add_up = device(_add_up)


def _spread(count, bytes_apart):
    """A function that gives `count` addresses, so many bytes apart from one another."""

    def two(g):
        return g, g + bytes_apart

    def four(g):
        return g, g + bytes_apart, g + 2 * bytes_apart, g + 3 * bytes_apart

    def eight(g):
        return (*four_of(g), *four_of(g + 4 * bytes_apart))

    four_of = device(four)
    return device({2: two, 4: four, 8: eight}[count])


def _squares(dtype):
    # Whole tiles are nearly all of a large array: there a thread loads all that it has of a tile, 64 bytes of float32,
    # before it adds, so that the memory has so much to do at once.
    own = STORES[dtype]
    width = own.width
    vectors = TILE // (THREADS * width)
    load, load1 = array_loader((own,), width), array_loader((own,), 1)
    spread = _spread(vectors, THREADS * width * own.size)

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
            if g % VECTOR == 0 and end - start == TILE:
                whole = end
                for lane in load(spread(g), start + me * width):
                    for element in lane:
                        x = np.float64(element)
                        total += x * x
                        odd += x - x
            elif g % VECTOR == 0:
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
        scale, divisor = read_double(settings + SCALE)[0], np.float32(1)
        grad_scale, found_inf = read_word(settings + GRAD_SCALE)[0], read_word(settings + FOUND_INF)[0]
        if grad_scale != 0:
            divisor = read_float(grad_scale)[0]
            scale *= 1.0 / np.float64(divisor)
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
        write_float(control + DIVISOR, divisor)


SETTLE = Kernel(_settle, "settle")
