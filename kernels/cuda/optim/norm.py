"""Norms, clipping and skipping on the device: a step may depend on its gradients, and the host need not wait.

    squares        one block a tile: the sum of the squares of its elements
    resolve_step   one block: adds them up, and leaves in the control record if and how the update goes on

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
from ..runtime.primitives import VECTOR, reader, writer
from ..runtime.records import CONTROL, POINTERS, RECORDS, ROW, SETTINGS, TILE, offset
from ..runtime.storage import STORES
from ..runtime.vectors import array_loader

WARP = 2 if SIMULATED else 32  # threads that add up those of a block
SUM = 16  # bytes of the sums of a tile: of squares, and 0, or NaN where an element is not finite

read_owner, read_word, read_words2 = reader("int32", 1), reader("int64", 1), reader("int64", 2)
read_float, read_double, read_doubles2 = reader("float32", 1), reader("float64", 1), reader("float64", 2)
write_word, write_double, write_float = writer("int64"), writer("float64"), writer("float32")

POINTERS_BYTES, G, RECORD_BYTES = POINTERS.itemsize, offset(POINTERS, "g"), RECORDS.itemsize
SCALE, GRAD_SCALE, FOUND_INF = (offset(SETTINGS, name) for name in ("scale", "grad_scale", "found_inf"))
MAX_NORM, SKIP_NONFINITE, NUMBER = (offset(SETTINGS, name) for name in ("max_norm", "skip_nonfinite", "number"))
KNOWN_SKIPS, COUNTED = offset(SETTINGS, "known_skips"), offset(SETTINGS, "counted")
SKIP, SHIFT, SKIPS, OUTCOME = (offset(CONTROL, name) for name in ("skip", "shift", "skips", "outcome"))
NORM, FACTOR64, FACTOR32 = (offset(CONTROL, name) for name in ("norm", "float64", "float32"))
DIVISOR = offset(CONTROL, "divisor")

clip = device(clip_factor)


def _add_up(totals, nonfinites, tid):
    """Add both up over the threads of a block; the sums end in the first thread's cells.

    In two stages, with a barrier before each, instead of a barrier for each half: a block has a tile in a microsecond.
    """
    # each thread of a warp: every WARP-th of the block
    cuda.syncthreads()
    if tid < WARP:
        total, nonfinite = totals[tid], nonfinites[tid]
        for other in range(tid + WARP, THREADS, WARP):
            total += totals[other]
            nonfinite += nonfinites[other]
        totals[tid], nonfinites[tid] = total, nonfinite
    # the first thread: those of the warp
    cuda.syncthreads()
    if tid == 0:
        total, nonfinite = totals[0], nonfinites[0]
        for other in range(1, WARP):
            total += totals[other]
            nonfinite += nonfinites[other]
        totals[0], nonfinites[0] = total, nonfinite


add_up = device(_add_up)


def _spread(count, distance):
    """Return a function that gives `count` addresses, `distance` bytes apart."""

    def two(g):
        return g, g + distance

    def four(g):
        return g, g + distance, g + 2 * distance, g + 3 * distance

    def eight(g):
        return (*four_of(g), *four_of(g + 4 * distance))

    four_of = device(four)
    return device({2: two, 4: four, 8: eight}[count])


def _squares(dtype):
    # Whole tiles are nearly all of a large array: there a thread loads its whole part of a tile, 64 bytes of float32,
    # before it adds, so that many loads are under way at once.
    own = STORES[dtype]
    width = own.width
    vectors = TILE // (THREADS * width)
    load, load1 = array_loader((own,), width), array_loader((own,), 1)
    spread = _spread(vectors, THREADS * width * own.size)

    def squares(records, pointers, owners, tiles, sums):
        totals = cuda.shared.array(THREADS, np.float64)
        nonfinites = cuda.shared.array(THREADS, np.float64)
        tid = cuda.threadIdx.x
        for tile in range(cuda.blockIdx.x, tiles, cuda.gridDim.x):
            # the array of the tile, and its part of it
            i = read_owner(owners + tile * 4)[0]
            g = read_word(pointers + i * POINTERS_BYTES + G)[0]
            elements, first_tile = read_words2(records + i * RECORD_BYTES)
            start = (tile - first_tile) * TILE
            end = min(start + TILE, elements) if g != 0 else start
            total, nonfinite = 0.0, 0.0
            whole = start
            if g % VECTOR == 0 and end - start == TILE:
                # a whole tile, loaded at once
                whole = end
                for lane in load(spread(g), start + tid * width):
                    for element in lane:
                        x = np.float64(element)
                        total += x * x
                        nonfinite += x - x  # 0, or NaN
            elif g % VECTOR == 0:
                # whole vectors
                whole = end - (end - start) % width
                for j in range(start + tid * width, whole, THREADS * width):
                    for lane in load((g,), j):
                        x = np.float64(lane[0])
                        total += x * x
                        nonfinite += x - x
            # the rest, element by element
            for j in range(whole + tid, end, THREADS):
                x = np.float64(load1((g,), j)[0][0])
                total += x * x
                nonfinite += x - x
            # the sums of the tile
            totals[tid], nonfinites[tid] = total, nonfinite
            add_up(totals, nonfinites, tid)
            if tid == 0:
                write_double(sums + tile * SUM, totals[0])
                write_double(sums + tile * SUM + 8, nonfinites[0])
            cuda.syncthreads()  # the next tile begins with totals

    return squares


@cache
def squares_kernel(dtype: str) -> Kernel:
    """Return the kernel of sums[tile] of the gradients of one dtype."""
    return Kernel(_squares(dtype), f"squares_{dtype}")


def _resolve_step(sums, tiles, settings, control):
    totals = cuda.shared.array(THREADS, np.float64)
    nonfinites = cuda.shared.array(THREADS, np.float64)
    tid = cuda.threadIdx.x
    # the sums of all tiles
    total, nonfinite = 0.0, 0.0
    for tile in range(tid, tiles, THREADS):
        squares, odd = read_doubles2(sums + tile * SUM)
        total += squares
        nonfinite += odd
    totals[tid], nonfinites[tid] = total, nonfinite
    add_up(totals, nonfinites, tid)
    if tid == 0:
        # factor of the gradients: scale / grad_scale, and less if their norm is too large
        scale, divisor = read_double(settings + SCALE)[0], np.float32(1)
        grad_scale, found_inf = read_word(settings + GRAD_SCALE)[0], read_word(settings + FOUND_INF)[0]
        if grad_scale != 0:
            divisor = read_float(grad_scale)[0]
            scale *= 1.0 / np.float64(divisor)
        norm = scale * math.sqrt(totals[0])
        max_norm = read_double(settings + MAX_NORM)[0]
        if max_norm < math.inf:
            scale *= clip(max_norm, norm)
        # is the step skipped?
        skip = 0
        if found_inf != 0 and read_float(found_inf)[0] != 0:
            skip = 1
        if read_word(settings + SKIP_NONFINITE)[0] != 0 and nonfinites[0] != 0:
            skip = 1
        # Rows of scalars are laid out from the newest step backwards, for each step that may have been skipped.
        skips, rows_back = read_word(control + SKIPS)[0], 0
        if read_word(settings + COUNTED)[0] == 0:
            rows_back = skips - read_word(settings + KNOWN_SKIPS)[0]
        # the control record
        write_word(control + SKIP, skip)
        write_word(control + SHIFT, rows_back * ROW)
        write_word(control + SKIPS, skips + skip)
        write_word(control + OUTCOME, 2 * read_word(settings + NUMBER)[0] + skip)
        write_double(control + NORM, norm)
        write_double(control + FACTOR64, scale)
        write_float(control + FACTOR32, np.float32(scale))
        write_float(control + DIVISOR, divisor)


RESOLVE_STEP = Kernel(_resolve_step, "resolve_step")
