"""Phases of a program whose rows have weights.

    sum_weights      sums of weights of all batches of an epoch, and of all steps, before the first batch
    gather_weights   the weights of the batch's rows, in its order
    weighed          another phase, done only if the weights of the step do not sum to 0; else a third, if there is one

Sums are taken in float64, over pieces of ROWS rows, then over the pieces and over the batches in order, as those of
losses and metrics are: where every row is right, the weights of right rows and of all rows are the same number.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from ..runtime.compile import Kernel
from ..runtime.frontend import register_jitable
from ..runtime.partition import batch_rows, batch_start, num_pieces
from ..runtime.primitives import call_phase, view
from ..runtime.records import RUN, WEIGHED, WEIGHTS, read
from .rows import ROWS, by_order


@register_jitable
def step_weight(weights, step):
    """The sum of the weights of the step that batch `step` is in; weights: address of a record WEIGHTS."""
    return view(read(weights, WEIGHTS).step_sums + step * 8, 1, np.float64)[0]


def _sum_weights(T, Order):
    def sum_weights(work, step, rank, num_ranks):
        # a rank takes whole steps; `step` is the first batch of the epoch
        w = read(work, WEIGHTS)
        run = read(w.run, RUN)
        order = view(run.order, run.num_rows if run.order else 0, Order)
        W = view(w.w, w.num_weights, T)
        batch_sums = view(w.batch_sums + step * 8, run.num_batches, np.float64)
        step_sums = view(w.step_sums + step * 8, run.num_batches, np.float64)
        for group in range(rank, num_pieces(run.num_batches, w.accumulate), num_ranks):
            first_batch = group * w.accumulate
            end_batch, of_step = min(run.num_batches, first_batch + w.accumulate), 0.0
            for batch in range(first_batch, end_batch):
                # the batch, piece by piece
                start, rows = batch_start(run, step + batch), batch_rows(w.run, step + batch)
                of_batch = 0.0
                for first in range(0, rows, ROWS):
                    total = 0.0
                    for i in range(start + first, start + min(rows, first + ROWS)):
                        total += np.float64(W[order[i] if run.order else i])
                    of_batch += total
                batch_sums[batch] = of_batch
                of_step += of_batch
            for batch in range(first_batch, end_batch):
                step_sums[batch] = of_step

    return sum_weights


def _gather_weights(T, Order):
    def gather_weights(work, step, rank, num_ranks):
        w = read(work, WEIGHTS)
        run = read(w.run, RUN)
        rows, start = batch_rows(w.run, step), batch_start(run, step)
        order = view(run.order, run.num_rows if run.order else 0, Order)
        W, batch_weights = view(w.w, w.num_weights, T), view(w.batch_weights, rows, T)
        for piece in range(rank, num_pieces(rows, ROWS), num_ranks):
            for i in range(piece * ROWS, min(rows, (piece + 1) * ROWS)):
                batch_weights[i] = W[order[start + i] if run.order else start + i]

    return gather_weights


def _weighed(work, step, rank, num_ranks):
    """A phase of the backward pass or of the update, left out in a step whose weights sum to 0."""
    w = read(work, WEIGHED)
    if step_weight(w.weights, step) != 0:
        call_phase(w.phase, w.phase_work, step, rank, num_ranks)
    elif w.otherwise:
        call_phase(w.otherwise, w.phase_work, step, rank, num_ranks)


WEIGHED_KERNEL = Kernel(_weighed, "weighed")


@cache
def sum_weights_kernel(dtype: str, order: str) -> Kernel:
    return Kernel(_sum_weights(getattr(np, dtype), getattr(np, order)), f"sum_weights_{dtype}{by_order(order)}")


@cache
def gather_weights_kernel(dtype: str, order: str) -> Kernel:
    return Kernel(_gather_weights(getattr(np, dtype), getattr(np, order)), f"gather_weights_{dtype}{by_order(order)}")


def weights_kernels(dtype: str, order: str) -> list[Kernel]:
    """Every kernel of a dtype; order: that of row numbers."""
    return [sum_weights_kernel(dtype, order), gather_weights_kernel(dtype, order), WEIGHED_KERNEL]
