"""The epochs of a training pass, for backends that train one after the other."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np

from .interrupts import interrupts_held
from .spec import Batches, EpochHooks, OptimizerSteps, PassResult

Progress = Callable[[int, float], object]


class TrainsByEpochs(ABC):
    """The verb `train` of a network whose epochs are calls of their own."""

    steps_done = 0

    def train(
        self,
        batches: Batches,
        optimizer: OptimizerSteps,
        seed: int,
        progress: Progress | None = None,
        hooks: EpochHooks | None = None,
    ) -> PassResult:
        """Train on every batch once in each epoch, parameters and states in place; seed: of the dropout masks.

        The losses and the metrics are those of the training outputs (dropout on), each batch's before its update.
        Returns the result of the last epoch that was done; the hooks get those of all. progress(steps_done,
        mean_loss_of_the_epoch) is called about ten times a second at most. An interrupt (SIGINT) waits for the end of
        the steps that have begun; `steps_done` then holds the number of steps taken.
        """
        self.steps_done, rule = 0, hooks.rule if hooks else None
        with interrupts_held() as check:
            for epoch in range(batches.epochs):
                steps = optimizer.epoch(epoch, batches.steps)
                result = self._train_epoch(batches.epoch(epoch), steps, seed, progress, check)
                result = result._replace(lr=steps.last_rate)
                rule = rule and rule.after(_mean_loss(batches, result))
                if (hooks and hooks.after(result)) or (rule and rule.is_over):
                    break
                check()
        return result

    @abstractmethod
    def _train_epoch(
        self,
        batches: Batches,
        optimizer: OptimizerSteps,
        seed: int,
        progress: Progress | None,
        check: Callable[[], None],
    ) -> PassResult:
        """Train on the batches of one epoch, in their order; `steps_done` counts them.

        check: raises what interrupts the pass; to be called where nothing is half done.
        """


def _mean_loss(batches: Batches, result: PassResult) -> float:
    """The mean loss of an epoch over its rows; NaN if their weights are all 0."""
    weights = batches.rows_of_steps() if result.weights is None else result.weights
    return float(np.average(result.losses, weights=weights)) if weights.any() else np.nan
