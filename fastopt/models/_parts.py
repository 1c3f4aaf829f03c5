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
        self.total, self.rows = 0.0, 0

    def hear(self, model: Any, step: int, result: PassResult, sizes: np.ndarray) -> None:
        """Take note of the steps of a part, (steps,) rows each, and call the callback if it is its turn."""
        self.total += float((result.losses * sizes).sum())
        self.rows += int(sizes.sum())
        if step % self.every == 0:
            logs = {"loss": self.total / self.rows, "lr": result.lr}
            self.total, self.rows = 0.0, 0
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
    # rows that are left out do not count, for the variation of targets
    whole, batches, done = batches, batches.epoch(0), 0
    parts = EpochParts(batches if whole.leaves_out else whole)
    results: list[PassResult] = []
    listeners = [_Listener(callback, every) for callback in callbacks if (every := callback.every_steps)]
    while done < batches.steps:
        before = model.optimizer.steps
        count = min(batches.steps - done, *(each.every - before % each.every for each in listeners))
        part = batches.part(range(done, done + count))
        told = None if advance is None else _shifted(advance, done)
        results.append(train(part._replace(parts=parts), told))
        done, sizes = done + count, part.rows_of_steps()
        for listener in listeners:
            listener.hear(model, before + count, results[-1], sizes)
    last, seconds = results[-1], sum(result.seconds for result in results)
    return PassResult(np.concatenate([result.losses for result in results]), last.metrics, seconds, last.lr)


def _shifted(advance: Callable[[int, float], None], by: int) -> Callable[[int, float], None]:
    return lambda steps, loss: advance(by + steps, loss)
