"""Sums over the threads of the one block, and over a pass: of the loss, and of each metric."""

from __future__ import annotations

import numpy as np
from numba import cuda

from ..runtime.compile import device
from ..runtime.primitives import reader, writer
from .access import field, read_double, resolve, write_double
from .layout import COLUMN_LANES, H

read_total, write_total = reader("float64", 1), writer("float64")


def block_sums(kind):
    """Sum of a float64 of every thread in two steps, in a fixed order: COLUMN_LANES partial sums, then their sum."""
    threads = kind.threads

    def partial_sums(thread_sums, tid):
        if tid < COLUMN_LANES:
            total = 0.0
            for i in range(tid, threads, COLUMN_LANES):
                total += read_double(thread_sums + i * 8)[0]
            write_double(thread_sums + tid * 8, total)

    def total_sum(thread_sums):
        total = 0.0
        for i in range(COLUMN_LANES):
            total += read_double(thread_sums + i * 8)[0]
        return total

    return device(partial_sums), device(total_sum)


def _add_metric(kind):
    """Add the sum of all threads' values to the sums of each metric with this index in `kind.metrics`."""
    partial_sums, total_sum = block_sums(kind)

    def add_metric(table, index, value, tid):
        thread_sums = resolve(table, table + H.thread_sums)
        write_double(thread_sums + tid * 8, np.float64(value))
        cuda.syncthreads()
        partial_sums(thread_sums, tid)
        cuda.syncthreads()
        if tid == 0:
            total = total_sum(thread_sums)
            for i in range(field(table + H.num_metrics)):
                if field(table + H.metric_kinds + i * 8) == index:
                    at = field(table + H.metric_sums) + i * 8
                    write_total(at, read_total(at)[0] + total)
        cuda.syncthreads()

    return device(add_metric)


def add_metrics(kind, names):
    """`_add_metric` for a tuple of values: one for each of the metrics with these names."""

    def add_none(table, values, tid):
        pass

    if not names:
        return device(add_none)
    add_metric, index = _add_metric(kind), kind.metrics.index(names[-1])

    def add_one(table, values, tid):
        add_metric(table, index, values[0], tid)

    if len(names) == 1:
        return device(add_one)
    others = add_metrics(kind, names[:-1])

    def add_each(table, values, tid):
        others(table, values[:-1], tid)
        add_metric(table, index, values[-1], tid)

    return device(add_each)
