"""Epochs in parts: whoever asks for it is heard between two steps, and each part is a pass of the backend by itself.

The bits are those of a single pass. Without anybody to be heard an epoch is one part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from .._validation import check_count
from ..callbacks import Callback
from ..kernels.spec import Batches, EpochParts, PassResult

Advance = Callable[[int, float], None]
Train = Callable[[Batches, Advance | None], PassResult]
NEVER = 1 << 62  # steps until somebody is heard who need not be


class Part(NamedTuple):
    """Successive steps of an epoch that were done by one pass."""

    result: PassResult
    sizes: np.ndarray  # (steps,) int64, rows of each step
    step: int  # number of steps that the optimizer has done by now


class PartialEpoch:
    """An epoch in training: the steps that are done, and what they have come to.

    batches: those of the whole epoch, to which its end may be missing if the training ends within it.
    """

    def __init__(self, batches: Batches) -> None:
        self._whole = batches
        self._parts = EpochParts(batches)
        self._sizes = batches.rows_of_steps()
        self.steps = 0
        self._losses: list[np.ndarray] = []
        self._weights: list[np.ndarray] = []  # sums of the rows' weights, of each step; none where rows have none
        self._metrics: Mapping[str, float] = {}
        self._seconds, self._lr = 0.0, float("nan")

    @cached_property
    def _batches(self) -> Batches:
        """The batches in their order, which takes 20 us: an epoch that is one part need not know it."""
        return self._whole.epoch(0)

    @property
    def complete(self) -> bool:
        """True if all steps are done."""
        return self.steps == len(self._sizes)

    @property
    def steps_left(self) -> int:
        """Steps that are not done."""
        return len(self._sizes) - self.steps

    def train(self, count: int, train: Train, advance: Advance | None) -> PassResult:
        """Do so many steps more, in one pass."""
        told = advance
        whole = count == len(self._sizes)
        if advance is not None and self.steps:
            told = _shifted(advance, self.steps)
        part = self._whole if whole else self._batches.part(range(self.steps, self.steps + count))
        result = train(part if whole else part._replace(parts=self._parts), told)
        self._losses.append(result.losses)
        if result.weights is not None:
            self._weights.append(result.weights)
        self._metrics, self._lr, self._seconds = result.metrics, result.lr, self._seconds + result.seconds
        self.steps += count
        return result

    def last_sizes(self, count: int) -> np.ndarray:
        """Rows of each of the last steps that are done, (count,) int64."""
        return self._sizes[self.steps - count : self.steps]

    def result(self) -> PassResult:
        """Results of the steps that are done, as of one pass."""
        losses, weights = (_joined(some) for some in (self._losses, self._weights))
        assert losses is not None
        return PassResult(losses, dict(self._metrics), self._seconds, self._lr, weights)

    def batches(self) -> Batches:
        """The batches of the steps that are done."""
        if self.complete:
            return self._whole
        return self._batches.part(range(self.steps))

    def to_state(self) -> dict[str, Any]:
        """Return numbers and arrays that are needed in order to go on with the epoch."""
        done = self.result()
        return {
            "steps": self.steps, "losses": done.losses, "metrics": done.metrics, "seconds": done.seconds,
            "lr": done.lr, "weights": done.weights, "rows": self._parts.rows, "weight": self._parts.weight,
            "carried": self._parts.carried,
        }  # fmt: skip

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on after the steps that `to_state` was called after; ValueError for a state of another epoch."""
        self._take(state, self._sizes, len(self._sizes), self._whole.weights is not None)

    def _take(self, state: Mapping[str, Any], sizes: np.ndarray, whole: int | None, weighted: bool) -> None:
        """Restore a state of an epoch of `whole` steps; sizes: rows of its first ones; weighted: rows have weights.

        whole: None where its end is not known.
        """
        steps, rows = check_count("steps of its epoch", state["steps"]), state["rows"]
        losses, weights, carried = state["losses"], state["weights"], state["carried"]
        metrics, fits = dict(state["metrics"]), all(a.shape == (steps,) for a in (losses, weights) if a is not None)
        is_over = whole is not None and steps >= whole
        if is_over or len(sizes) < steps or not fits or rows != sizes[:steps].sum():
            expected = len(sizes) if whole is None else whole
            raise ValueError(f"its epoch must have {expected} steps; it has done {steps} on {rows} rows")
        if not isinstance(carried, dict | list) or (isinstance(carried, dict) and set(carried) != set(metrics)):
            raise ValueError("sums of its epoch must be those of its metrics")
        if (weights is None) != (not weighted):
            raise ValueError("its epoch must have weights of rows if the data have them")
        self.steps, self._losses, self._metrics = steps, [losses], metrics
        self._weights = [] if weights is None else [weights]
        self._seconds, self._lr = float(state["seconds"]), float(state["lr"])
        self._parts.carry(carried, rows, float(state["weight"]))


class Party:
    """Somebody who is heard between two steps: base class of those who cut an epoch into parts."""

    def steps_until(self, step: int, left: int) -> int:
        """Number of steps from here to those after which to be heard.

        step: number of steps that the optimizer has done; left: those to the end of the epoch.
        """
        return NEVER

    def hear(self, model: Any, epoch: PartialEpoch, part: Part) -> None:
        """Called after every part of an epoch."""

    def look(self, step: int) -> None:
        """Called after an epoch, its validation and callbacks; step: those of the optimizer that are done."""

    @property
    def ends_training(self) -> bool:
        """True if the training is to end here, within its epoch."""
        return False


class Listener(Party):
    """A callback with the losses since its last call."""

    def __init__(self, callback: Callback, every: int) -> None:
        self._callback, self._every = callback, every
        self.total, self.rows = 0.0, 0.0

    def steps_until(self, step: int, left: int) -> int:
        return self._every - step % self._every

    def hear(self, model: Any, epoch: PartialEpoch, part: Part) -> None:
        """Take note of the steps of a part, and call the callback if it is its turn."""
        shares = part.sizes if part.result.weights is None else part.result.weights
        self.total += float((part.result.losses * shares).sum())
        self.rows += float(shares.sum())
        if part.step % self._every == 0:
            logs = {"loss": self.total / self.rows if self.rows else 0.0, "lr": part.result.lr}
            self.total, self.rows = 0.0, 0.0
            self._callback.on_step_end(model, part.step, logs)


def listeners(callbacks: Iterable[Callback]) -> list[Listener]:
    """The callbacks that are called within an epoch, to be heard in one."""
    return [Listener(callback, every) for callback in callbacks if (every := callback.every_steps)]


def train_in_parts(
    model: Any, epoch: PartialEpoch, parties: Sequence[Party], train: Train, advance: Advance | None
) -> None:
    """Train on the rest of an epoch, until it is done or the training is to end.

    train(batches, advance): trains on a part, and counts its steps. advance(steps, loss): is told of the epoch's steps
    that are done, and of the part's mean loss.
    """
    while not epoch.complete and not any(party.ends_training for party in parties):
        if not parties:
            epoch.train(epoch.steps_left, train, advance)
            continue
        before, left = model.optimizer.steps, epoch.steps_left
        count = min([left, *(party.steps_until(before, left) for party in parties)])
        result = epoch.train(count, train, advance)
        count = len(result.losses)  # fewer where batches come one by one, and there are no more
        part = Part(result, epoch.last_sizes(count), before + count)
        for party in parties if count else ():
            party.hear(model, epoch, part)
        if model.stop_training:
            break


def _joined(arrays: Sequence[np.ndarray]) -> np.ndarray | None:
    """The arrays one after the other; None for none."""
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays) if arrays else None


def _shifted(advance: Advance, by: int) -> Advance:
    return lambda steps, loss: advance(by + steps, loss)
