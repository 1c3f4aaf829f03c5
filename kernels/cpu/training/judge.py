"""The end of a pass by the losses of its epochs (`LossRule`), judged after each epoch by the rank that ends batches.

It adds up the losses of an epoch's batches, some 1 ns each: an epoch of iris of 25 us would otherwise be a call by
itself, which takes 100 us of Python.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ...loss_rule import MARGIN, LossRule
from ...spec import Batches
from ..runtime.compile import Kernel
from ..runtime.primitives import view
from ..runtime.records import JUDGE, RUN, STOP_EPOCH, fill, read


def _judge(work, epoch, rank, num_ranks):
    """Judge an epoch; if the pass is to end with it, tell the record RUN."""
    a = read(work, JUDGE)
    run = read(a.run, RUN)
    count, first = run.num_batches, epoch * run.epoch_stride
    sums = view(a.losses + first * 8, count, np.float64)
    weights = view(a.weights + first * 8 * a.weighted, count, np.float64)
    total, magnitude, weight, penalty = 0.0, 0.0, 0.0, 0.0
    for i in range(count):
        # the sum over the rows of a batch, and their weight
        loss = sums[i] / a.losses_of_row
        total += loss
        magnitude += abs(loss)
        weight += weights[i]
        if a.penalties:
            # what the parameters added to the mean of the step, over all its rows
            if i % a.accumulate == 0:
                penalty = view(a.penalties + (first + i) * 8, 1, np.float64)[0]
                if a.divisors:
                    penalty /= view(a.divisors + (epoch * a.steps + i // a.accumulate) * 8, 1, np.float64)[0]
            total += penalty * weights[i]
            magnitude += abs(penalty * weights[i])
    if weight > 0:
        loss = total / weight
        a.margin = max(a.margin, 2 * MARGIN * magnitude / weight)
        limit = a.best - a.least
        if abs(loss - limit) <= a.margin:
            # rounding would decide
            a.waited = a.patience
        elif loss < limit:
            a.best, a.waited = loss, 0
        else:
            a.waited += 1
            if a.of_all and loss < a.best:
                a.best = loss
    else:
        a.waited = a.patience
    if a.waited >= a.patience:
        run.stop = STOP_EPOCH


JUDGE_KERNEL = Kernel(_judge, "judge")


class Judge:
    """A rule at work in a pass of several epochs.

    losses: (epochs, batches) sums over rows; losses_of_row: how many of them a row has; weights: (epochs, batches)
    sums of the weights of rows, None: rows have none; penalties: (epochs, batches) of the batches that begin a step,
    None: there are none; divisors: of the penalties of all steps.
    """

    def __init__(
        self, run: np.ndarray, rule: LossRule, batches: Batches, losses: np.ndarray, losses_of_row: int,
        weights: np.ndarray | None, penalties: np.ndarray | None, divisors: np.ndarray | None,
    ) -> None:  # fmt: skip
        counts: Any = batches.rows_of_batches().astype(np.float64) if weights is None else weights
        self.kept = losses, counts, penalties, divisors
        self.record = fill(
            JUDGE, run=run, losses=losses, losses_of_row=losses_of_row, weights=counts,
            weighted=int(weights is not None), accumulate=batches.accumulate, steps=batches.steps,
            patience=rule.patience, waited=rule.waited, of_all=int(rule.of_all), best=rule.best, least=rule.least,
            **({} if penalties is None else {"penalties": penalties}),
            **({} if penalties is None or divisors is None else {"divisors": divisors}),
        )  # fmt: skip
