"""A training pass: from the data that its program is given to the results that it leaves."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ...loss_rule import LossRule
from ...metrics import Variation
from ...scalars import fill_settings
from ...spec import Batches, EpochHooks, EpochResults, OptimizerSteps
from .after_step import AfterUpdates
from .judge import Judge
from .optimizer_step import OptimizerStep
from .penalties import Penalties
from .program import Program
from .row_weights import sum_in_order


class Training(NamedTuple):
    """A program that trains, and the memory by which it is told of its steps and tells of its results."""

    key: Any  # of all that it depends on
    epochs: int  # the most of a pass
    steps: int  # of an epoch; the most of one whose batches have sizes of their own
    program: Program
    optimizer_step: OptimizerStep | None
    losses: np.ndarray  # (epochs, numbers of batches) sums over the rows of each batch
    counts: np.ndarray  # (batches,): by what these are divided
    sums: dict[str, np.ndarray]  # of each metric, (epochs, sums)
    penalties: Penalties | None  # that the losses have more
    scalars: np.ndarray  # (steps of all epochs, settings, NUM_SCALARS + 1)
    after: AfterUpdates

    def mean_loss(self, done: int, stride: int, losses_of_row: int) -> float:
        """The mean loss of the first `done` batches; stride: numbers of an epoch."""
        if self.program.row_weights is None:
            whole, rest = divmod(done, stride)
            count = whole * self.counts.sum() + self.counts[:rest].sum()
        else:
            count = self.program.row_weights.batch_sums.ravel()[:done].sum() * losses_of_row
        return float(self.losses.ravel()[:done].sum() / count) if count else 0.0


class Values(NamedTuple):
    """Values that a pass is to tell of its network."""

    metrics: Sequence[str]
    losses_of_row: int
    of_sums: Callable[[Mapping[str, np.ndarray], float, Variation | None], dict[str, float]]  # over so many rows
    variation: Variation | None


class TrainingPass:
    """A pass over all batches of all epochs, ready to run, once. Call `finish` when it has ended, early or not.

    start, end: when it began and ended, in nanoseconds of time.perf_counter_ns; who runs it later sets both.
    """

    def __init__(
        self, training: Training, batches: Batches, optimizer: OptimizerSteps, settings: Sequence[Any], values: Values,
        hooks: EpochHooks | None, flops_of_row: float, start: int,
    ) -> None:  # fmt: skip
        self.training, self.batches, self.values, self.hooks = training, batches, values, hooks
        self.program, self.start, self.end = training.program, start, 0
        self._rows, self._steps, self._rates = batches.num_rows, batches.steps, optimizer.learning_rates
        self.flops, self.steps_done = flops_of_row * self._rows * batches.epochs, 0
        # numbers of an epoch: a last step of fewer batches takes as many as the others
        self.stride = self._steps * batches.accumulate
        if batches.sizes is not None:
            self.training = training._replace(counts=batches.sizes * values.losses_of_row)
            if training.optimizer_step:
                training.optimizer_step.plan(batches)
        if training.optimizer_step:
            training.optimizer_step.clip(optimizer.clip_norm)
        if training.penalties:
            training.penalties.set_factors(optimizer.settings)
        self._divisors = optimizer.penalty_divisors
        training.after.begin(optimizer.after and optimizer.after.shares)
        for sums in (training.losses, *training.sums.values()):
            sums[: batches.epochs] = 0
        if batches.parts and batches.parts.carried:
            for name, carried in batches.parts.carried.items():
                training.sums[name][0] = carried
        fill_settings(training.scalars, optimizer, settings)
        self._begin(optimizer.steps_done * batches.accumulate)

    def _begin(self, first_batch: int) -> None:
        """Give the program its rows, and what it is to do with them."""
        batches, program, epochs = self.batches, self.program, self.batches.epochs
        program.read_from(batches.x, batches.y)
        # kept, as the program has their address
        self._order = batches.order if batches.shuffle is None else np.empty_like(batches.order)
        program.begin(self._rows, self._order, first_batch, epochs, self.stride)
        if batches.sizes is not None:
            program.cut_at(np.cumsum([0, *batches.sizes]))
        if batches.shuffle is not None:
            program.shuffle_from(batches.order, batches.shuffle)
        if program.row_weights and batches.weights is not None:
            program.row_weights.begin(batches.weights, epochs, self.stride)
        self._seconds = program.time_epochs()
        if self.hooks and self.hooks.until_diverged:
            program.end_if_diverged(self.training.losses)
        if self.hooks and self.hooks.rule is not None and epochs > 1:
            program.judge_by(self._judge(self.hooks.rule))

    def _judge(self, rule: LossRule) -> Judge:
        training, weights = self.training, self.program.row_weights
        return Judge(
            self.program.run, rule, self.batches, training.losses, self.values.losses_of_row,
            weights.batch_sums if weights else None, training.penalties.into if training.penalties else None,
            self._divisors,
        )  # fmt: skip

    @property
    def num_bytes(self) -> int:
        """Bytes that the pass has beside the memory of its program."""
        return self.training.scalars.nbytes + self.training.losses.nbytes + int(self._order.nbytes)

    @property
    def is_whole(self) -> bool:
        """True if all batches of all epochs are done."""
        return self.program.done >= self.batches.epochs * self.stride

    def report(self, progress: Callable[[int, float], None]) -> None:
        """Call progress(steps done, mean loss so far)."""
        done, group, penalties = self.program.done, self.batches.accumulate, self.training.penalties
        so_far = self.training.mean_loss(done, self.stride, self.values.losses_of_row)
        if penalties:
            # of steps that have begun
            of_steps = penalties.into[: self.batches.epochs, ::group][:, : self._steps].ravel()
            so_far += float(self._divided(of_steps)[: -(-done // group)].mean())
        progress(done // group, so_far)

    def finish(self) -> EpochResults:
        """The results of the epochs that are done, for the hooks, too; `steps_done` is the number of steps taken."""
        done, steps = self.program.done, self._steps
        self.steps_done, ended = done // self.batches.accumulate, done // self.stride
        rates = self._rates[steps - 1 : ended * steps : steps]
        seconds = self._seconds(self.start, self.end or time.perf_counter_ns(), ended)
        results = self._results(rates, seconds)
        if self.hooks and len(results.losses):
            self.hooks.finished(results)
        return results

    def carry(self) -> None:
        """Keep the sums for the next part of an epoch that is trained on in parts."""
        parts, weights = self.batches.parts, self.program.row_weights
        assert parts is not None
        weight = sum_in_order(weights.batch_sums[0], parts.weight) if weights else 0.0
        parts.carry({name: sums[0].copy() for name, sums in self.training.sums.items()}, self._rows, weight)

    def _results(self, rates: np.ndarray, seconds: np.ndarray) -> EpochResults:
        """The results of the first epochs; rates, seconds: of these."""
        training, parts, group, values = self.training, self.batches.parts, self.batches.accumulate, self.values
        epochs = len(rates)
        metrics: dict[str, list[float]] = {name: [] for name in values.metrics}
        counts, losses = training.counts, training.losses[:epochs, : len(training.counts)]
        weights, totals = None, [float(self._rows + (parts.rows if parts else 0))] * epochs
        if self.program.row_weights:
            weights = self.program.row_weights.batch_sums[:epochs, : len(counts)]
            totals = [sum_in_order(of_epoch, parts.weight if parts else 0.0) for of_epoch in weights]
            counts = weights * values.losses_of_row
        if group > 1:
            firsts = np.arange(0, losses.shape[1], group)
            losses, counts = np.add.reduceat(losses, firsts, axis=1), np.add.reduceat(counts, firsts, axis=-1)
            weights = None if weights is None else np.add.reduceat(weights, firsts, axis=1)
        for i in range(epochs if metrics else 0):
            sums = {name: of_metric[i] for name, of_metric in training.sums.items()}
            for name, value in values.of_sums(sums, totals[i], values.variation).items():
                metrics[name].append(value)
        if weights is not None:
            counts = np.where(counts == 0, 1, counts)  # the loss of a step without weight is 0
        means = losses / counts
        if training.penalties:
            of_steps = training.penalties.into[:epochs, ::group][:, : means.shape[1]]
            means += self._divided(of_steps.ravel()).reshape(means.shape)
        return EpochResults(means, metrics, seconds, rates.copy(), weights)

    def _divided(self, penalties: np.ndarray) -> np.ndarray:
        """The penalties of the first steps, over their divisors."""
        return penalties if self._divisors is None else penalties / self._divisors[: len(penalties)]
