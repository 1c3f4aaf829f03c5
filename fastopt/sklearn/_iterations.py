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
    rows seen, the base rate -> rate; None: it is left alone. score: of the rows held out; None: none are.
    rows: of an iteration.
    """

    reads_weights = False

    def __init__(
        self, estimator: Any, scale: float, rate: Callable[[int], float] | None, adaptive: bool,
        score: Callable[[Any], float] | None, rows: int,
    ) -> None:  # fmt: skip
        self.estimator, self.scale, self.rate, self.adaptive = estimator, scale, rate, adaptive
        self.score, self.rows, self.patience = score, rows, estimator.n_iter_no_change
        self.best_weights: list[np.ndarray] | None = None
        self.converged = False

    def on_epoch_end(self, model: Any, epoch: int, logs: Mapping[str, float]) -> None:
        owner = self.estimator
        owner.n_iter_ += 1
        owner.t_ += self.rows
        owner.loss_ = logs["loss"] * self.scale
        owner.loss_curve_.append(owner.loss_)
        if owner.verbose:
            print(f"Iteration {owner.n_iter_}, loss = {owner.loss_:.8f}")
        self._judge(model)
        if self.rate is not None:
            model.optimizer.lr = self.rate(owner.t_)
        if owner._no_improvement_count <= self.patience:
            return
        owner._no_improvement_count = 0
        if self.adaptive and model.optimizer.lr / ADAPTIVE > LEAST_RATE:
            model.optimizer.lr /= ADAPTIVE
            return
        self.converged = model.stop_training = True

    def _judge(self, model: Any) -> None:
        """Count the iterations that are no improvement by `tol`."""
        owner = self.estimator
        if self.score is None:
            improves = owner.loss_ <= owner.best_loss_ - owner.tol
            owner.best_loss_ = min(owner.best_loss_, owner.loss_)
        else:
            score = self.score(model)
            owner.validation_scores_.append(score)
            if owner.verbose:
                print(f"Validation score: {score:f}")
            improves = score >= owner.best_validation_score_ + owner.tol
            if score > owner.best_validation_score_:
                owner.best_validation_score_ = score
                self.best_weights = model.get_weights()
        owner._no_improvement_count = 0 if improves else owner._no_improvement_count + 1
