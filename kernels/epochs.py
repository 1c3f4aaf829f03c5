"""The epochs of a training pass, for backends that train one after the other."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .interrupts import interrupts_held
from .spec import Batches, EpochHooks, OptimizerSteps, PassResult

TrainEpoch = Callable[[Batches, OptimizerSteps, Callable[[], None]], PassResult]


def train_epochs(
    train_epoch: TrainEpoch, batches: Batches, optimizer: OptimizerSteps, hooks: EpochHooks | None
) -> PassResult:
    """Train on every batch once in each epoch; return the result of the last epoch that was done.

    train_epoch(batches, optimizer, check) trains on those of one epoch, in their order. check: raises what interrupts
    the pass, to be called where nothing is half done. hooks are given the results of all epochs.
    """
    rule = hooks.rule if hooks else None
    with interrupts_held() as check:
        for epoch in range(batches.epochs):
            steps = optimizer.epoch(epoch, batches.steps)
            result = train_epoch(batches.epoch(epoch), steps, check)._replace(lr=steps.last_rate)
            rule = rule and rule.after(_mean_loss(batches, result))
            if (hooks and hooks.after(result)) or (rule and rule.is_over):
                break
            check()
    return result


def _mean_loss(batches: Batches, result: PassResult) -> float:
    """The mean loss of an epoch over its rows; NaN if their weights are all 0."""
    weights = batches.rows_of_steps() if result.weights is None else result.weights
    return float(np.average(result.losses, weights=weights)) if weights.any() else np.nan
