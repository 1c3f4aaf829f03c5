"""The end of a batch: its sums are added up, and the clock moves on.

    finish     adds the sums of all tiles to one value, that of the batch or of the whole pass
"""

from __future__ import annotations

import numpy as np
from numba import cuda

from ..runtime.compile import THREADS, Kernel
from ..runtime.device import Device, launch
from ..runtime.primitives import reader, writer
from ..runtime.records import CLOCK, CONTROL, ROW, TOTALS, offset
from .reductions import add_up

BATCH, EVER = offset(CLOCK, "batch"), offset(CLOCK, "ever")
SHIFT, SKIPS = offset(CONTROL, "shift"), offset(CONTROL, "skips")
TOTAL = TOTALS.itemsize

read_word, read_words4, write_word = reader("int64", 1), reader("int64", 4), writer("int64")
read_double, write_double = reader("float64", 1), writer("float64")


def _finish(table, count, clock, control):
    totals = cuda.shared.array(THREADS, np.float64)
    tid, batch = cuda.threadIdx.x, read_word(clock + BATCH)[0]
    # each total: the sums of its tiles, added to what is there
    for i in range(count):
        sums, tiles, into, stride = read_words4(table + i * TOTAL)
        total = 0.0
        for tile in range(tid, tiles, THREADS):
            total += read_double(sums + tile * 8)[0]
        totals[tid] = total
        add_up(totals, tid, THREADS)
        if tid == 0:
            address = into + batch * stride
            write_double(address, read_double(address)[0] + totals[0])
        cuda.syncthreads()  # the next one begins with totals
    if tid == 0:
        # the clock
        write_word(clock + BATCH, batch + 1)
        write_word(clock + EVER, read_word(clock + EVER)[0] + 1)
        # a step was done: the next one reads the next row of scalars, as `resolve_step` has it with this count
        if control != 0:
            done = read_word(control + SKIPS)[0] + 1
            write_word(control + SKIPS, done)
            write_word(control + SHIFT, done * ROW)


FINISH = Kernel(_finish, "finish")


def finish(gpu: Device, stream: int, table: int, count: int, clock: int, control: int) -> None:
    """Add up what a batch has left, by a table of `count` records TOTALS, and move the clock on to the next.

    control: the record of the updates, where the batch ended a step; 0: it did not.
    """
    launch(gpu, FINISH, 1, stream, table, count, clock, control)
