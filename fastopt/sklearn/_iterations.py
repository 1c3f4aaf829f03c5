"""The rules by which scikit-learn's solvers end a training and change their learning rate between iterations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..callbacks import Callback

LEAST_RATE = 1e-6  # "adaptive": a training ends instead of a smaller one
ADAPTIVE = 5.0  # divisor of the rate


class Iterations(Callback):
    """Count iterations, judge each by its loss or by its score on held-out rows, and set the rate of the next one.

    estimator: has the parameters, and gets the curves. scale: of losses, to scikit-learn's. rate: a function of the
    rows seen so far; None: the rate stays. adaptive: it falls instead of an end. score: of the rows held out, by the
    model; None: none are. rows: of an iteration. patience: iterations without improvement that are borne.
    """

    reads_weights = False

    def __init__(
        self, estimator: Any, scale: float, rate: Callable[[int], float] | None, adaptive: bool,
        score: Callable[[Any], float] | None, rows: int, patience: float,
    ) -> None:  # fmt: skip
        self._owner, self._scale, self._rate, self._adaptive = estimator, scale, rate, adaptive
        self._score, self._rows, self._patience = score, rows, patience
        self.best_weights: list[np.ndarray] | None = None
        self.converged = False

    @property
    def needs_every_epoch(self) -> bool:
        """True if something is read or set after each iteration, so that no two can be one call."""
        return self._rate is not None or self._score is not None

    def certain(self, most: int) -> int:
        """Return the number of iterations, at most `most`, that are done whatever their losses are."""
        return int(min(most, self._patience + 1 - self._owner._no_improvement_count))

    def on_epoch_end(self, model: Any, epoch: int, logs: Mapping[str, float]) -> None:
        self.hear(model, logs["loss"])
        model.stop_training = model.stop_training or self.converged

    def hear(self, model: Any, loss: float) -> None:
        """Take note of the loss of an iteration."""
        owner = self._owner
        owner.n_iter_ += 1
        owner.t_ += self._rows
        owner.loss_ = loss * self._scale
        owner.loss_curve_.append(owner.loss_)
        if owner.verbose:
            print(f"Iteration {owner.n_iter_}, loss = {owner.loss_:.8f}")
        owner._no_improvement_count = 0 if self._improves(model) else owner._no_improvement_count + 1
        if self._rate is not None:
            model.optimizer.lr = self._rate(owner.t_)
        if owner._no_improvement_count <= self._patience:
            return
        owner._no_improvement_count = 0
        if self._adaptive and model.optimizer.lr / ADAPTIVE > LEAST_RATE:
            model.optimizer.lr /= ADAPTIVE
        else:
            self.converged = True

    def _improves(self, model: Any) -> bool:
        """Return true if the iteration is better by `tol` than the best one before."""
        owner = self._owner
        if self._score is None:
            improves = owner.loss_ <= owner.best_loss_ - owner.tol
            owner.best_loss_ = min(owner.best_loss_, owner.loss_)
            return bool(improves)
        score = self._score(model)
        owner.validation_scores_.append(score)
        if owner.verbose:
            print(f"Validation score: {score:f}")
        improves = score >= owner.best_validation_score_ + owner.tol
        if score > owner.best_validation_score_:
            owner.best_validation_score_ = score
            self.best_weights = model.get_weights()
        return bool(improves)
