"""PruningCallback: the end of a training that Optuna's pruner gives up."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from .._validation import check_count
from ..callbacks import MonitorCallback
from ._optuna import optuna


class PruningCallback(MonitorCallback):
    """Report a figure of every epoch to a trial of Optuna's, and end the training where its pruner gives it up.

    trial    the trial that Optuna gave to the objective
    monitor  name of the figure, as in `fastopt.callbacks.EarlyStopping`. It must be the one that the study minimizes or
             maximizes, for pruners compare it among trials
    first    epochs that the trial has reported before, such as those of other folds: epoch e is step first + e

    `fit` then raises `optuna.TrialPruned`, which is to leave the objective. So it does for a figure, or a loss of the
    training, that is NaN or infinite. Epochs without validation (`validation_freq`) report nothing.

    >>> import optuna, numpy as np, fastopt as fo
    >>> x = np.linspace(-1, 1, 64).reshape(-1, 1)
    >>> def objective(trial):
    ...     model = fo.Sequential([fo.Dense(8, "tanh"), fo.Dense(1)], seed=1, backend="numpy")
    ...     model.compile(fo.Adam(lr=trial.suggest_float("lr", 1e-4, 1e-1, log=True)), "mean_squared_error")
    ...     pruning = PruningCallback(trial, "val_loss")
    ...     history = model.fit(x, x**2, epochs=10, validation_split=0.25, callbacks=[pruning], verbose=0)
    ...     return history["val_loss"][-1]
    >>> optuna.logging.set_verbosity(optuna.logging.WARNING)
    >>> study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    >>> study.optimize(objective, n_trials=10)
    >>> study.best_params["lr"] > 0.01, len(study.trials)
    (True, 10)
    """

    def __init__(self, trial: Any, monitor: str = "val_loss", first: int = 0) -> None:
        super().__init__(monitor)
        if not hasattr(trial, "report") or not hasattr(trial, "should_prune"):
            raise TypeError(f"trial must be a trial of Optuna's; got {type(trial).__name__}")
        self._trial, self._first = trial, check_count("first", first, least=0)

    def on_epoch_end(self, model: Any, epoch: int, logs: Mapping[str, float]) -> None:
        for name in ("loss", self.monitor):  # an accuracy is finite where the weights are not
            if not math.isfinite(logs.get(name, 0.0)):
                raise optuna.TrialPruned(f"{name} is {logs[name]:g} in epoch {epoch}")
        if self.monitor not in logs:
            return
        value = float(logs[self.monitor])
        self._trial.report(value, self._first + epoch)
        if self._trial.should_prune():
            raise optuna.TrialPruned(f"given up after epoch {epoch}, with a {self.monitor} of {value:.4g}")
