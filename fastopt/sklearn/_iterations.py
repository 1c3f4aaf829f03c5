"""The rules by which scikit-learn's solvers end a training and change their learning rate between iterations."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..callbacks import Callback
from ..kernels.loss_rule import LossRule

LEAST_RATE = 1e-6  # "adaptive": a training ends instead of a smaller one
ADAPTIVE = 5.0  # divisor of the rate
NEVER = 1 << 62  # iterations


@dataclass(frozen=True)
class Losses:
    """scikit-learn's loss of an iteration, by the figures of an epoch.

    scale: of fastopt's losses, to scikit-learn's. penalty_scale: the same of their penalties. steps: rows of each step,
    where scikit-learn's mean over steps is by rows and fastopt's by weights; None: both are by rows.
    """

    scale: float
    penalty_scale: float
    steps: np.ndarray | None = None

    @property
    def is_scaled(self) -> bool:
        """True if the loss is fastopt's times `scale`."""
        return self.steps is None and self.penalty_scale == self.scale

    @property
    def metrics(self) -> tuple[str, ...]:
        """Metrics that `of_epochs` needs: of several outputs, the part of the loss without penalties."""
        return () if self.penalty_scale == self.scale else ("mean_squared_error",)

    def of_epochs(self, model: Any, epochs: Sequence[int], logs: Mapping[str, Sequence[float]]) -> list[float]:
        """Return the losses; epochs: their numbers in `model.history`; logs: their figures."""
        found = np.array(logs["loss"])
        if self.metrics:
            of_rows = np.array(logs[self.metrics[0]])
            found = of_rows + self.penalty_scale / self.scale * (found - of_rows)
        elif self.steps is not None:
            first, count = epochs[0] - model.history.epochs[0], len(self.steps)
            losses = model.history.step_losses[first * count : (first + len(epochs)) * count]
            found = np.average(losses.reshape(-1, count), axis=1, weights=self.steps)
        scaled: list[float] = (found * self.scale).tolist()
        return scaled


class Iterations(Callback):
    """Count iterations, judge each by its loss or by its score on held-out rows, and set the rate of the next one.

    estimator: has the parameters, and gets the curves. loss: what its losses are made of. rate: a function of the rows
    seen so far; None: the rate stays. adaptive: it falls instead of an end. score: of the rows held out, by the model;
    None: none are. rows: of an iteration. patience: iterations without improvement that are borne.
    """

    reads_weights = False

    def __init__(
        self, estimator: Any, loss: Losses, rate: Callable[[int], float] | None, adaptive: bool,
        score: Callable[[Any], float] | None, rows: int, patience: float,
    ) -> None:  # fmt: skip
        self._owner, self._loss, self._rate, self._adaptive = estimator, loss, rate, adaptive
        self._score, self._rows, self._patience = score, rows, patience
        self._tol = -math.inf if estimator.tol is None else float(estimator.tol)
        self.best_weights: list[np.ndarray] | None = None
        self.converged = False

    def _loss_rule(self) -> LossRule | None:
        owner = self._owner
        if self._rate is not None or self._score is not None or owner.verbose:
            return None
        patience = NEVER if self._patience == np.inf else int(self._patience) + 1
        count, scale = owner._no_improvement_count, self._loss.scale
        if not self._loss.is_scaled:
            # iterations that are done whatever their losses are
            return LossRule(0.0, patience, -math.inf, count)
        return LossRule(self._tol / scale, patience, float(owner.best_loss_) / scale, count, of_all=True)

    def on_epoch_end(self, model: Any, epoch: int, logs: Mapping[str, float]) -> None:
        self._on_epochs_end(model, [epoch], {name: [value] for name, value in logs.items()})

    def _on_epochs_end(self, model: Any, epochs: Sequence[int], logs: Mapping[str, Sequence[float]]) -> None:
        losses, owner = self._loss.of_epochs(model, epochs, logs), self._owner
        improve = self._by_loss if self._score is None else self._by_score
        owner.loss_curve_ += losses
        for loss in losses:
            owner.n_iter_ += 1
            owner.t_ += self._rows
            owner.loss_ = loss
            if owner.verbose:
                print(f"Iteration {owner.n_iter_}, loss = {loss:.8f}")
            owner._no_improvement_count = 0 if improve(model, loss) else owner._no_improvement_count + 1
            if self._rate is not None:
                model.optimizer.lr = self._rate(owner.t_)
            if owner._no_improvement_count > self._patience:
                self._lose_patience(model)
        model.stop_training = model.stop_training or self.converged

    def _lose_patience(self, model: Any) -> None:
        """End the training, or go on with a lower rate."""
        self._owner._no_improvement_count = 0
        if self._adaptive and model.optimizer.lr / ADAPTIVE > LEAST_RATE:
            model.optimizer.lr /= ADAPTIVE
        else:
            self.converged = True

    def _by_loss(self, model: Any, loss: float) -> bool:
        """Return true if the loss is better by `tol` than the best one before."""
        owner = self._owner
        improves = loss <= owner.best_loss_ - self._tol
        if loss < owner.best_loss_:
            owner.best_loss_ = loss
        return bool(improves)

    def _by_score(self, model: Any, loss: float) -> bool:
        """Return true if the score of the rows held out is better by `tol` than the best one before."""
        assert self._score is not None
        owner, score = self._owner, self._score(model)
        owner.validation_scores_.append(score)
        if owner.verbose:
            print(f"Validation score: {score:f}")
        improves = score >= owner.best_validation_score_ + self._tol
        if score > owner.best_validation_score_:
            owner.best_validation_score_ = score
            self.best_weights = model.get_weights()
        return bool(improves)
