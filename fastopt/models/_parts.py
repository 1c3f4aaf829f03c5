"""Epochs that callbacks interrupt after some steps: each part is a pass of the backend by itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..callbacks import Callback
from ..kernels.spec import Batches, EpochParts, PassResult

Train = Callable[[Batches, Callable[[int, float], None] | None], PassResult]


class _Listener:
    """A callback with the losses since its last call."""

    def __init__(self, callback: Callback, every: int) -> None:
        self.callback, self.every = callback, every
        self.total, self.rows = 0.0, 0.0

    def hear(self, model: Any, step: int, result: PassResult, sizes: np.ndarray) -> None:
        """Take note of the steps of a part, and call the callback if it is its turn.

        sizes: (steps,) rows of each step, or the sum of their weights.
        """
        self.total += float((result.losses * sizes).sum())
        self.rows += float(sizes.sum())
        if step % self.every == 0:
            logs = {"loss": self.total / self.rows if self.rows else 0.0, "lr": result.lr}
            self.total, self.rows = 0.0, 0.0
            self.callback.on_step_end(model, step, logs)


def train_in_parts(
    model: Any,
    batches: Batches,
    callbacks: Sequence[Callback],
    train: Train,
    advance: Callable[[int, float], None] | None,
) -> PassResult:
    """Train on an epoch and call `on_step_end` of the callbacks that want it; the bits are those of a single pass.

    train(batches, advance): trains on a part, and counts its steps. advance(steps, loss): is told of the epoch's steps
    that are done, and of the part's mean loss.
    """
    parts, batches, done = EpochParts(batches), batches.epoch(0), 0
    results: list[PassResult] = []
    rows_of_step = batches.batch_size * batches.accumulate
    listeners = [_Listener(callback, every) for callback in callbacks if (every := callback.every_steps)]
    while done < batches.steps:
        before = model.optimizer.steps
        count = min(batches.steps - done, *(each.every - before % each.every for each in listeners))
        order = batches.order[done * rows_of_step : (done + count) * rows_of_step]
        told = None if advance is None else _shifted(advance, done)
        results.append(train(batches._replace(order=order, parts=parts), told))
        # the last step may have fewer rows than the others
        sizes = np.full(count, rows_of_step)
        sizes[-1] = len(order) - (count - 1) * rows_of_step
        if results[-1].weights is not None:
            sizes = results[-1].weights
        done += count
        for listener in listeners:
            listener.hear(model, before + count, results[-1], sizes)
    last, seconds = results[-1], sum(result.seconds for result in results)
    weights = [result.weights for result in results if result.weights is not None]
    losses, of_steps = np.concatenate([result.losses for result in results]), None
    if weights:
        of_steps = np.concatenate(weights)
    return PassResult(losses, last.metrics, seconds, last.lr, of_steps)


def _shifted(advance: Callable[[int, float], None], by: int) -> Callable[[int, float], None]:
    return lambda steps, loss: advance(by + steps, loss)
