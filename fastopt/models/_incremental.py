"""Training on a batch or on some rows at a time, by a user's own loop."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from . import training
from ._data_memory import DataMemory
from .history import History
from .training import FitOptions

Self = TypeVar("Self", bound="Incremental")


class Incremental(DataMemory):
    """Base of `Sequential`: its methods that train on what the caller hands over, a step or an epoch at a time."""

    def fit(self, *args: Any, **options: Any) -> History:
        """Train the model; see `Sequential`."""
        raise NotImplementedError

    def _plan_fit(self, x: ArrayLike, y: ArrayLike, options: FitOptions) -> training.Plan:
        raise NotImplementedError

    def train_on_batch(self, x: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> dict[str, float]:
        """Take one optimizer step on all rows together; return {"loss": mean loss before it, metric: value, ...}.

        The arguments are as in `fit`, the first call of which this may be: it builds the model, and learns classes and
        statistics from these rows. The figures are those of this batch alone, as in training (dropout on). Neither
        `history` nor `epochs_done` changes; the step counts for schedules and dropout. The programs of the last few
        numbers of rows are kept.

        >>> import fastopt as fo
        >>> model = fo.Sequential([fo.Dense(1)], seed=1)
        >>> model.compile(fo.SGD(lr=0.1), "mean_squared_error", ["mean_absolute_error"])
        >>> losses = [model.train_on_batch([[0.0], [1.0]], [1.0, 3.0])["loss"] for _ in range(100)]
        >>> losses[0] > 1, losses[-1] < 0.01, model.optimizer.steps
        (True, True, 100)
        """
        with self._use.exclusive("train_on_batch", trains=True):
            options = FitOptions(batch_size="full", shuffle=False, verbose=0, sample_weight=sample_weight)
            model: Any = self
            plan = self._plan_fit(x, y, options)
            result = training.train_epoch(model, plan.network, training.next_batches(model, plan))
        return {"loss": float(result.losses[0]), **result.metrics}

    def partial_fit(
        self: Self,
        x: ArrayLike,
        y: ArrayLike,
        classes: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
    ) -> Self:
        """Train for one epoch on these rows, in batches of 32; return the model, as scikit-learn's `partial_fit` does.

        classes  all labels there are, given at the first call: those of later calls must be among them. The model
                 keeps them sorted. None: the classes that the model knows, or else those in y

        `history` is that of the epoch. For other options call `fit(x, y, epochs=model.epochs_done + 1,
        initial_epoch=model.epochs_done)`.

        >>> import fastopt as fo
        >>> model = fo.Sequential([fo.Dense(1, "sigmoid")], seed=1)
        >>> model.compile("adam", "binary_crossentropy")
        >>> model.partial_fit([[0.0], [1.0]], ["no", "no"], classes=["yes", "no"]).classes.tolist()
        ['no', 'yes']
        """
        known = self.classes
        if classes is not None:
            given = np.unique(np.asarray(classes))
            if known is not None and not np.array_equal(known, given):
                raise ValueError(f"classes must be those of the first call, {known.tolist()}; got {given.tolist()}")
            if known is None:
                self.classes = given
        try:
            self.fit(x, y, verbose=0, sample_weight=sample_weight)
        except (TypeError, ValueError):
            if known is None and self.epochs_done == 0:
                self.classes = None
            raise
        return self
