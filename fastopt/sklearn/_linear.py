"""Linear models with the interface of scikit-learn's, trained by gradient methods."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.extmath import safe_sparse_dot
from sklearn.utils.validation import column_or_1d

from ._base import NetworkEstimator
from ._labels import NetworkClassifier, ProbabilisticClassifier
from ._parameters import LINEAR, parameters
from ._targets import NetworkRegressor
from ._tasks import Task, perceptron, weighted_perceptron

Array = NDArray[Any]


class _Linear(NetworkEstimator):
    """The part that linear models share: `coef_` and `intercept_`, whose initial values are 0."""

    _penalty_over = "data"

    def _draw(self, inputs: int, outputs: int) -> list[Array]:
        shapes: list[Any] = [(inputs, outputs)] + [outputs] * bool(self.fit_intercept)
        return [np.zeros(shape) for shape in shapes]

    @property
    def _sgd_momentum(self) -> float:
        return 0.0

    coef_: Any
    intercept_: Any

    def _publish(self) -> None:
        coefs, intercepts = self._weights()
        self.coef_ = coefs[0].T
        self.intercept_ = intercepts[0] if intercepts else np.zeros(len(self.coef_), self.coef_.dtype)

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Any:
        """Train on X (n, features), dense or sparse, and y, and return the estimator itself.

        sample_weight: of the rows, (n,); a weight of 2 counts as two rows. None: all are 1.
        """
        return self._fit(X, y, sample_weight)


class _Scores(_Linear):
    """Classifiers with a linear decision function."""

    def decision_function(self, X: Any) -> Array:
        """Return X w + b: (n,) for two classes, where above 0 is the second, else (n, classes)."""
        scores = self._scores(X)
        return scores[:, 0] if scores.shape[1] == 1 else scores

    def _scores(self, X: Any) -> Array:
        X = self._checked_rows(X)
        found: Array = safe_sparse_dot(X, self.coef_.T, dense_output=True) + self.intercept_
        return found


@parameters(
    {**LINEAR, "C": 1.0, "tol": 1e-4, "max_iter": 100, "class_weight": None, "solver": "lbfgs", "max_fun": 15_000}
)
class LogisticRegression(ProbabilisticClassifier, _Scores):
    """Logistic regression: `sklearn.linear_model.LogisticRegression`, with an L2 penalty.

    It minimises C times the sum of the cross-entropies and half the sum of the squares of `coef_`, over C n.

    solver     "lbfgs" (scipy's, on the kernels' loss and gradient), "gd" (each step is of all rows), "sgd", "momentum",
               "adagrad" or "adam"
    C          inverse of the penalty; np.inf: there is none
    max_iter, tol   iterations at most, and the gradient (of "lbfgs") or improvement at which it ends
    learning_rate_init, batch_size, momentum, n_iter_no_change, early_stopping, ...   of the other solvers, as of
               `MLPClassifier`

    `coef_` is (1, features) for two classes, else (classes, features); `intercept_` is (1,) or (classes,).

    >>> import numpy as np
    >>> X, y = np.array([[0.0], [1.0], [2.0], [3.0]]), np.array([0, 0, 1, 1])
    >>> model = LogisticRegression().fit(X, y)
    >>> model.predict([[0.0], [3.0]]).tolist(), model.coef_.round(2).tolist()
    ([0, 1], [[0.96]])
    """

    _ftol = 64 * float(np.finfo(float).eps)

    def _penalties(self) -> tuple[float, float]:
        return 1 / self.C, 0.0


@parameters({**LINEAR, "solver": "adam", "max_iter": 1000, "tol": 1e-6, "alpha": 0.0, "max_fun": 15_000})
class LinearRegression(NetworkRegressor, _Linear):
    """Linear regression by gradient methods, with scikit-learn's interface.

    It minimises half of the mean squared error, and alpha / 2n times the sum of the squares of `coef_`.

    solver    "gd" (each step is of all rows), "sgd", "momentum", "adagrad", "adam" or "lbfgs"
    learning_rate_init, batch_size, momentum, n_iter_no_change, early_stopping, ...   as of `MLPRegressor`

    `coef_` is (features,) and `intercept_` a number if y is (n,); else (outputs, features) and (outputs,). Features of
    very different sizes need scaling first, as by `sklearn.preprocessing.StandardScaler`.

    >>> import numpy as np
    >>> X = np.arange(4.0)[:, np.newaxis]
    >>> model = LinearRegression(solver="gd", learning_rate_init=0.2).fit(X, 2 * X[:, 0] + 1)
    >>> model.coef_.round(2).tolist(), round(float(model.intercept_), 2)
    ([2.0], 1.0)
    """

    def _publish(self) -> None:
        super()._publish()
        if self._is_vector:
            self.coef_, self.intercept_ = self.coef_[0], self.intercept_[0] if self.fit_intercept else 0.0


@parameters(
    {
        **LINEAR, "penalty": None, "alpha": 1e-4, "l1_ratio": 0.15, "max_iter": 1000, "tol": 1e-3, "eta0": 1.0,
        "random_state": 0, "class_weight": None, "n_iter_no_change": 5, "batch_size": 1,
    }
)  # fmt: skip
class Perceptron(NetworkClassifier, _Scores):
    """Rosenblatt's perceptron: `sklearn.linear_model.Perceptron`, in batches of `batch_size` rows.

        w += eta0 y x for a row with y (w x + b) <= 0;   several classes: one against the rest

    penalty    None, "l2", "l1" or "elasticnet", with alpha and l1_ratio
    eta0       the rate
    batch_size  1, as Rosenblatt's; a step of more rows goes by their mean

    >>> import numpy as np
    >>> X, y = np.array([[0.0], [1.0], [2.0], [3.0]]), np.array([0, 0, 1, 1])
    >>> Perceptron().fit(X, y).predict(X).tolist()
    [0, 0, 1, 1]
    """

    solver: ClassVar[str] = "sgd"
    _boundary, _impatience, _penalty_over = 0.0, 1, "row"

    def _read_targets(self, y: Any, first: bool, incremental: bool) -> Task:
        return super()._read_targets(column_or_1d(y), first, incremental)

    def _task_of(self, classes: int) -> Task:
        return perceptron(classes)

    def _coded(self, y: Any) -> Array:
        found = super()._coded(y)
        if len(self.classes_) < 3:
            return found
        signs = np.full((len(found), len(self.classes_)), -1.0)
        signs[np.arange(len(found)), found] = 1.0
        return signs

    def _weighted(self, task: Task, targets: Array, weights: Array | None) -> tuple[Task, Array, Array | None]:
        # a mean over a single row would not see its weight
        if weights is None:
            return task, targets, None
        signs = np.where(targets > 0, 1.0, -1.0).reshape(len(targets), -1)
        return weighted_perceptron(task), signs * weights[:, np.newaxis], None

    def partial_fit(self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None) -> Any:
        """Train for one iteration over these rows, from where the last call ended.

        classes: all labels that there will be, (classes,); needed in the first call.
        """
        self._first_classes(y, classes)
        return self._fit(X, y, sample_weight, incremental=True)

    def _penalties(self) -> tuple[float, float]:
        share = {None: 0.0, "l2": 0.0, "l1": 1.0, "elasticnet": self.l1_ratio}
        if self.penalty not in share:
            raise ValueError(f"penalty must be None, l2, l1 or elasticnet; got {self.penalty!r}")
        if self.penalty is None:
            return 0.0, 0.0
        return float(self.alpha) * (1 - share[self.penalty]), float(self.alpha) * share[self.penalty]

    def _rate(self) -> Any:
        return self.eta0
