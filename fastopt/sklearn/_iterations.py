"""The rules by which scikit-learn's solvers end a training and change their learning rate between iterations."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..callbacks import Callback
from ..kernels.loss_rule import LossRule

LEAST_RATE = 1e-6  # "adaptive": a training ends with it, or a smaller one
ADAPTIVE = 5.0  # divisor of the rate
NEVER = 1 << 62  # iterations


@dataclass(frozen=True)
class ScaledRate:
    """A schedule times a factor."""

    schedule: Callable[[int], float]
    factor: float

    def __call__(self, step: int) -> float:
        return self.schedule(step) * self.factor


@dataclass(frozen=True)
class Losses:
    """scikit-learn's loss of an iteration, by the figures of an epoch.

    scale: of fastopt's losses, to scikit-learn's. steps: rows of each step, where scikit-learn's mean over steps is by
    rows and fastopt's by weights; None: both are by rows.
    """

    scale: float
    steps: np.ndarray | None = None

    def of_epochs(self, model: Any, epochs: Sequence[int], logs: Mapping[str, Sequence[float]]) -> list[float]:
        """Return the losses; epochs: their numbers in `model.history`; logs: their figures."""
        found = np.array(logs["loss"])
        if self.steps is not None:
            first, count = epochs[0] - model.history.epochs[0], len(self.steps)
            losses = model.history.step_losses[first * count : (first + len(epochs)) * count]
            found = np.average(losses.reshape(-1, count), axis=1, weights=self.steps)
        scaled: list[float] = (found * self.scale).tolist()
        return scaled


class Iterations(Callback):
    """Count iterations, judge each by its loss or by its score on held-out rows, and set the rate of the next one.

    estimator: has the parameters, and gets the curves. loss: what its losses are made of. rate: a function of the rows
    seen so far; None: the rate stays. least: rate from which it falls instead of an end; None: it does not. score: of
    the rows held out, by the model; None: none are. rows: of an iteration. patience: iterations without improvement
    that are borne. weights: the best ones before any score; None: the last ones are kept if no score is better.
    """

    reads_weights = False

    def __init__(
        self, estimator: Any, loss: Losses, rate: Callable[[int], float] | None, least: float | None,
        score: Callable[[Any], float] | None, rows: int, patience: float, weights: list[np.ndarray] | None,
    ) -> None:  # fmt: skip
        self._owner, self._loss, self._rate, self._least = estimator, loss, rate, least
        self._score, self._rows, self._patience = score, rows, patience
        self._tol = -math.inf if estimator.tol is None else float(estimator.tol)
        self.best_weights = weights
        self.converged = False

    def _loss_rule(self) -> LossRule | None:
        owner = self._owner
        if self._rate is not None or self._score is not None or owner.verbose:
            return None
        patience = NEVER if self._patience == np.inf else int(self._patience) + 1
        count, scale = owner._no_improvement_count, self._loss.scale
        if self._loss.steps is not None:
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
        """Go on with a lower rate, or end the training; its count is that with which a warm start begins."""
        if self._least is not None and model.optimizer.lr > self._least:
            self._owner._no_improvement_count = 0
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
