"""Multi-layer perceptrons with the interface of scikit-learn's."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.utils.metaestimators import available_if

from .._validation import check_name
from ._base import NetworkEstimator, is_stochastic
from ._labels import ProbabilisticClassifier
from ._parameters import MLP, parameters
from ._targets import NetworkRegressor
from ._tasks import Task, poisson


class _MLP(NetworkEstimator):
    """The part that multi-layer perceptrons share."""

    def _publish(self) -> None:
        self.coefs_, self.intercepts_ = self._weights()

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Any:
        """Train on X (n, features), dense or sparse, and y, and return the estimator itself.

        sample_weight: of the rows, (n,); a weight of 2 counts as two rows. None: all are 1.
        """
        return self._fit(X, y, sample_weight)


@parameters({**MLP, "class_weight": None}, hidden_layer_sizes=(100,), activation="relu")
class MLPClassifier(ProbabilisticClassifier, _MLP):
    """Multi-layer perceptron for classes: `sklearn.neural_network.MLPClassifier` on fastopt's kernels.

    Parameters, attributes and methods are scikit-learn's, with its defaults: cross-entropy with alpha / 2 times the sum
    of the squares of the weights, batches of min(200, n) rows, Adam. Beside them:

    activation     also any of `fastopt.Dense`
    solver         also "gd" (each step is of all rows, without momentum), "momentum" and "adagrad"
    learning_rate_init  also a schedule of `fastopt.schedules`
    tol            also None: all iterations are done
    dropout        share of the values of each hidden layer that are zeroed in training
    class_weight   a mapping from label to weight, or "balanced"
    callbacks      of `fastopt.callbacks`
    backend, dtype, compute_dtype  as of `fastopt.Sequential`; dtype None: float32 or float64, as X is
    threads        that kernels may use, at most; None: all, or one in each of joblib's threads. Results are the same

    y: labels (n,), or (n, labels) of 0 and 1. `fit` raises ValueError for other data, and for impossible parameters.

    >>> import numpy as np
    >>> X = np.array([[0.0], [1.0], [2.0], [3.0]])
    >>> model = MLPClassifier((8,), solver="lbfgs", random_state=0).fit(X, ["a", "a", "b", "b"])
    >>> model.predict([[0.2], [2.8]]).tolist(), model.coefs_[0].shape
    (['a', 'b'], (1, 8))
    """

    @available_if(is_stochastic)
    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None, classes: Any = None) -> Any:
        """Train for one iteration over these rows, from where the last call ended.

        classes: all labels that there will be, (classes,); needed in the first call.
        """
        self._first_classes(y, classes)
        return self._fit(X, y, sample_weight, incremental=True)


@parameters({**MLP, "loss": "squared_error"}, hidden_layer_sizes=(100,), activation="relu")
class MLPRegressor(NetworkRegressor, _MLP):
    """Multi-layer perceptron for real numbers: `sklearn.neural_network.MLPRegressor` on fastopt's kernels.

    Parameters, attributes and methods are scikit-learn's, with its defaults: half of the mean squared error with
    alpha / 2 times the sum of the squares of the weights, batches of min(200, n) rows, Adam. Those that it has more are
    those of `MLPClassifier`, without class_weight.

    loss    "squared_error", or "poisson": half of the deviance of counts y >= 0, sum(m - y log m + y log y - y), of
            predictions m = exp(outputs). By keyword, as it is scikit-learn's first argument

    y: (n,) or (n, outputs). `fit` raises ValueError for other data, and for impossible parameters.

    >>> import numpy as np
    >>> X = np.linspace(0, 1, 50)[:, np.newaxis]
    >>> model = MLPRegressor((16,), solver="lbfgs", random_state=0).fit(X, X[:, 0] ** 2)
    >>> model.score(X, X[:, 0] ** 2) > 0.99
    True
    """

    _flattens = True

    def _task_of(self, y: Any, outputs: int) -> Task:
        check_name("loss", self.loss, ("squared_error", "poisson"))
        if self.loss == "squared_error":
            return super()._task_of(y, outputs)
        if np.min(y) < 0:
            raise ValueError(f"y must be at least 0 with loss='poisson'; got {np.min(y)}")
        return poisson(outputs)

    @available_if(is_stochastic)
    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> Any:
        """Train for one iteration over these rows, from where the last call ended."""
        return self._fit(X, y, sample_weight, incremental=True)
