"""Updates of some rows of an array, from a gradient that lists rows; values of a row listed twice are added up first.

Rows are updated in the order in which they lie in memory, and neighbours as one piece.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from ...formulas import NUM_SCALARS, dropout_key
from ...scalars import fill_row
from ...spec import Update
from ..runtime.compile import Kernel
from ..runtime.launch import UPDATE_ELEMENTS, num_threads_for, parallel
from ..runtime.partition import pieces_of_rank
from ..runtime.primitives import address_of, call_update, prefetch, view
from ..runtime.records import ROWS_SUM, ROWS_UPDATE, fill, offset, read
from ..runtime.storage import STORES, Store, name_of
from .updates import update_code

BITS = 11  # of an index that one pass of the sort looks at: two passes for tables of up to 4 million rows
BINS = 1 << BITS
# Rows that lie apart are prefetched, as the processor cannot predict the next one: without, Adam on 4096 of 100,000
# rows of 64 float32 values took 1.5 times as long, SGD 3 times. Within a row it predicts.
AHEAD = 4  # rows
PREFETCHED_BYTES = 1_024  # of a row
LINE_BYTES = 64


def _sort_rows(indices, count, memory):
    """Sort 0 ... count - 1 by index, equal indices in their order (radix sort); list each index once, with its start.

    memory: number of rows (1); order (count); starts and their end (count + 1); rows (count); scratch (count + BINS).
    """
    keys, used, largest, shift = view(indices, count, np.int64), 0, 0, 0
    order, starts = view(memory + 8, count, np.int64), view(memory + 8 * (1 + count), count + 1, np.int64)
    rows = view(memory + 8 * (2 + 2 * count), count, np.int64)
    other = view(memory + 8 * (2 + 3 * count), count, np.int64)
    ends = view(memory + 8 * (2 + 4 * count), BINS, np.int64)
    # the order as given, and the largest index
    for i in range(count):
        order[i] = i
        largest = max(largest, keys[i])
    # one pass for every BITS bits
    while shift < 63 and largest >> shift > 0:
        # the end of each bin
        for i in range(BINS):
            ends[i] = 0
        for i in range(count):
            ends[(keys[i] >> shift) & (BINS - 1)] += 1
        for i in range(1, BINS):
            ends[i] += ends[i - 1]
        # the bins filled, from their ends on
        for i in range(count):
            other[i] = order[i]
        for back in range(count):
            i = other[count - 1 - back]
            bin_ = (keys[i] >> shift) & (BINS - 1)
            ends[bin_] -= 1
            order[ends[bin_]] = i
        shift += BITS
    # each index once, with the position at which it begins
    for i in range(count):
        if i == 0 or keys[order[i]] != rows[used - 1]:
            rows[used], starts[used] = keys[order[i]], i
            used += 1
    starts[used] = count
    view(memory, 1, np.int64)[0] = used


def _sum_rows(store: Store):
    """The sum of the values of each row, in the order in which they were given."""
    dtype, T, itemsize, widen, narrow = store.dtype, store.T, store.itemsize, store.widen, store.narrow
    T_bytes = np.dtype(T).itemsize

    def sum_rows(work, step, rank, num_ranks):
        a = read(work, ROWS_SUM)
        order, starts = view(a.order, a.count, np.int64), view(a.starts, a.used + 1, np.int64)
        room = a.room + rank * a.columns * T_bytes
        for row in pieces_of_rank(a.used, rank, num_ranks):
            target = a.into + row * a.columns * itemsize
            into = view(target, a.columns, dtype)
            values = view(a.values + order[starts[row]] * a.columns * itemsize, a.columns, dtype)
            # a row listed once
            if starts[row + 1] == starts[row] + 1:
                for i in range(a.columns):
                    into[i] = values[i]
            # the sum of several, rounded once
            else:
                total = view(room if a.room else target, a.columns, T)
                for i in range(a.columns):
                    total[i] = widen(values[i])
                for position in range(starts[row] + 1, starts[row + 1]):
                    values = view(a.values + order[position] * a.columns * itemsize, a.columns, dtype)
                    for i in range(a.columns):
                        total[i] += widen(values[i])
                if a.room:
                    for i in range(a.columns):
                        into[i] = narrow(total[i], 0, 0)

    return sum_rows


def _update_rows(work, step, rank, num_ranks):
    """Update the listed rows: a rank does its share of the list."""
    a = read(work, ROWS_UPDATE)
    rows, states = view(a.rows, a.used, np.int64), view(work + STATES_OFFSET, a.states, np.int64)
    row_bytes, state_row_bytes = a.columns * a.element_bytes, a.columns * a.state_element_bytes
    row, last = rank * a.used // num_ranks, (rank + 1) * a.used // num_ranks
    while row < last:
        # ask for a later row of p and the states
        if row + AHEAD < last:
            ahead = a.p + rows[row + AHEAD] * row_bytes
            for line in range(ahead, ahead + min(row_bytes, PREFETCHED_BYTES), LINE_BYTES):
                prefetch(line)
            for i in range(a.states):
                ahead = states[i] + rows[row + AHEAD] * state_row_bytes
                for line in range(ahead, ahead + min(state_row_bytes, PREFETCHED_BYTES), LINE_BYTES):
                    prefetch(line)
        # neighbouring rows as one piece
        end = row + 1
        while end < last and rows[end] == rows[end - 1] + 1:
            end += 1
        start, size = rows[row] * a.columns, (end - row) * a.columns
        call_update(a.update, a.p, a.g + row * row_bytes, work + STATES_OFFSET, a.scalars, start, 1, size, 0)
        row = end


STATES_OFFSET = offset(ROWS_UPDATE, "state0")
SORT_ROWS, UPDATE_ROWS = Kernel(_sort_rows, "sort_rows"), Kernel(_update_rows, "update_rows")


@cache
def sum_rows_kernel(dtype: str) -> Kernel:
    return Kernel(_sum_rows(STORES[dtype]), f"sum_rows_{dtype}")


def sum_rows(indices: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The indices (k,), sorted and each once, with the sums of their values (k, ...), which are not changed.

    16-bit values are added up in float32, and sums of several are rounded once.
    """
    count = len(indices)
    if (indices[1:] > indices[:-1]).all():
        return indices, values
    memory = np.empty(2 + 4 * count + BINS, np.int64)
    address = address_of(memory)
    SORT_ROWS(address_of(indices), count, address)
    used = int(memory[0])
    rows, sums = memory[2 + 2 * count :][:used], np.empty((used, *values.shape[1:]), values.dtype)
    if values.size:
        columns, num_ranks = values.size // count, num_threads_for(values.size, UPDATE_ELEMENTS, used)
        room = np.empty((num_ranks, columns), np.float32) if values.itemsize == 2 else None
        work = fill(
            ROWS_SUM, count=count, used=used, order=address + 8, starts=address + (1 + count) * 8, values=values,
            into=sums,
            columns=columns, room=room,
        )  # fmt: skip
        parallel(sum_rows_kernel(name_of(values.dtype)), address_of(work), 0, num_ranks)
    return rows, sums


def update_rows(job: Update, rows: np.ndarray, scale: float = 1.0) -> None:
    """Update some rows of p and its states, as `update` does all: job.g has shape (len(rows), ...).

    rows: (u,) int64, indices of rows of p, sorted, each once.
    """
    if job.g.size == 0:
        return
    dtype = name_of(job.p.dtype)
    scalars = np.zeros(NUM_SCALARS + 1, STORES[dtype].T)
    fill_row(scalars, job.rule, job.step, job.options, scale)
    states = {f"state{i}": state for i, state in enumerate(job.states)}
    work = fill(
        ROWS_UPDATE, update=update_code(job.rule, dtype, job.form), p=job.p, g=job.g, **states, scalars=scalars,
        key=np.uint64(dropout_key(job.stream, job.step)).view(np.int64), rows=rows, used=len(rows), states=len(states),
        columns=job.g.size // len(rows), element_bytes=job.p.itemsize,
        state_element_bytes=job.states[0].itemsize if states else 0,
    )  # fmt: skip
    parallel(UPDATE_ROWS, address_of(work), 0, num_threads_for(job.g.size, UPDATE_ELEMENTS, len(rows)))
