"""Regressors: targets that are real numbers."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from sklearn.base import RegressorMixin
from sklearn.metrics import r2_score
from sklearn.utils.validation import column_or_1d

from ._base import NetworkEstimator
from ._tasks import Task, squares

Array = NDArray[Any]


class NetworkRegressor(RegressorMixin, NetworkEstimator):  # type: ignore[misc]
    """Base of the regressors, for one output or several."""

    _numeric = True
    _flattens: ClassVar[bool] = False  # a column of targets stands for a vector, with a warning

    def _read_targets(self, y: Any, first: bool, incremental: bool) -> Task:
        outputs = 1 if y.ndim == 1 else y.shape[1]
        if self._flattens and y.ndim == 2 and outputs == 1:
            column_or_1d(y, warn=True)
        if first:
            self._is_vector = y.ndim == 1 or (self._flattens and outputs == 1)
        elif outputs != self._task.outputs:
            raise ValueError(f"y must have {self._task.outputs} outputs, as in the fit before; got {outputs}")
        return self._task_of(y, outputs)

    def _task_of(self, y: Array, outputs: int) -> Task:
        return squares(outputs, any(self._penalties()))

    def _coded(self, y: Any) -> Array:
        return np.asarray(y).reshape(len(y), -1)

    def _shaped(self, outputs: Array) -> Array:
        return outputs[:, 0] if self._is_vector else outputs

    def _score_of(self, outputs: Array, y: Any, weights: Array | None) -> float:
        return float(r2_score(y, self._shaped(outputs), sample_weight=weights))

    def predict(self, X: Any) -> Array:
        """Return the prediction of every row, (n,) or (n, outputs) as y was; X: (n, features), also sparse."""
        outputs = self._outputs(X)
        return self._shaped(outputs)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags
