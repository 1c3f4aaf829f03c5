"""Linear models with the interface of scikit-learn's, trained by gradient methods."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, issparse
from sklearn.utils import check_array
from sklearn.utils.extmath import safe_sparse_dot
from sklearn.utils.validation import check_is_fitted, column_or_1d

from .._validation import check_name
from ._base import NetworkEstimator
from ._labels import NetworkClassifier, ProbabilisticClassifier
from ._parameters import LINEAR, parameters
from ._targets import NetworkRegressor
from ._tasks import Task, perceptron, weighted_perceptron

Array = NDArray[Any]


class _Linear(NetworkEstimator):
    """The part that linear models share: `coef_` and `intercept_`, whose initial values are 0."""

    _penalty_over = "data"

    def _checked_start(self, start: Any, inputs: int, outputs: int) -> list[Array | None]:
        coef, intercept = start
        if intercept is not None and not self.fit_intercept:
            raise ValueError("intercept_init must be None with fit_intercept=False, which leaves the intercept out")
        found = _initial("coef_init", coef, (outputs, inputs)), _initial("intercept_init", intercept, (outputs,))
        return [None if found[0] is None else found[0].T, found[1]]

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


def _initial(name: str, values: Any, shape: tuple[int, ...]) -> Array | None:
    """Return initial values in their shape; those of one output may lack its axis. None: there are none."""
    if values is None:
        return None
    dense = np.atleast_1d(values.toarray() if issparse(values) else values)
    found: Array = check_array(dense, ensure_2d=False, input_name=name)
    if found.shape != shape and (shape[0] > 1 or found.shape != shape[1:]):
        raise ValueError(f"{name} must be of shape {shape}; got {np.shape(values)}")
    return found.reshape(shape)


def _l1_share(penalty: Any, l1_ratio: Any) -> float:
    """Return the share of L1 in a penalty that is not None."""
    if check_name("penalty", penalty, ("l1", "l2", "elasticnet")) == "elasticnet":
        if l1_ratio is None:
            raise ValueError("l1_ratio must be a number in [0, 1] with penalty='elasticnet'; got None")
        return float(l1_ratio)
    return 1.0 if penalty == "l1" else 0.0


class _Scores(_Linear):
    """Classifiers with a linear decision function."""

    def sparsify(self) -> Any:
        """Make `coef_` a sparse matrix (CSR), and return the estimator itself; the next fit makes it an array again."""
        check_is_fitted(self, "_model")
        self.coef_ = csr_matrix(self.coef_)
        return self

    def densify(self) -> Any:
        """Make `coef_` an array again, and return the estimator itself."""
        check_is_fitted(self, "_model")
        self.coef_ = self.coef_.toarray() if issparse(self.coef_) else self.coef_
        return self

    def decision_function(self, X: Any) -> Array:
        """Return X w + b: (n,) for two classes, where above 0 is the second, else (n, classes)."""
        scores = self._scores(X)
        return scores[:, 0] if scores.shape[1] == 1 else scores

    def _scores(self, X: Any) -> Array:
        X = self._checked_rows(X)
        found: Array = safe_sparse_dot(X, self.coef_.T, dense_output=True) + self.intercept_
        return found


@parameters(
    {
        **LINEAR, "C": 1.0, "l1_ratio": 0.0, "dual": False, "tol": 1e-4, "intercept_scaling": 1, "max_iter": 100,
        "class_weight": None, "solver": "lbfgs", "max_fun": 15_000, "n_jobs": None,
    },
    penalty="deprecated",
)  # fmt: skip
class LogisticRegression(ProbabilisticClassifier, _Scores):
    """Logistic regression: `sklearn.linear_model.LogisticRegression`.

    It minimises, over C n,

        C sum(cross-entropies) + (1 - l1_ratio) / 2 sum(coef_**2) + l1_ratio sum(|coef_|)

    penalty    "l2", "l1", "elasticnet" (by l1_ratio) or None; "deprecated", the default: by l1_ratio and C alone
    l1_ratio   share of L1, in [0, 1]; None: 0. "lbfgs" makes weights exactly 0, other solvers nearly
    solver     "lbfgs" (scipy's, on the kernels' loss and gradient), "gd" (each step is of all rows), "sgd", "momentum",
               "adagrad" or "adam"
    C          inverse of the penalty; np.inf: there is none
    n_jobs     the same as threads, but -1 stands for all processors
    dual, intercept_scaling   False and 1: ValueError for others, which are for liblinear
    max_iter, tol   iterations at most, and the gradient (of "lbfgs") or improvement at which it ends
    learning_rate_init, batch_size, momentum, n_iter_no_change, early_stopping, ...   of the other solvers, as of
               `MLPClassifier`

    `coef_` is (1, features) for two classes, else (classes, features); `intercept_` is (1,) or (classes,), and
    `n_iter_` (1,) int32.

    >>> import numpy as np
    >>> X, y = np.array([[0.0], [1.0], [2.0], [3.0]]), np.array([0, 0, 1, 1])
    >>> model = LogisticRegression().fit(X, y)
    >>> model.predict([[0.0], [3.0]]).tolist(), model.coef_.round(2).tolist()
    ([0, 1], [[0.96]])
    """

    _ftol = 64 * float(np.finfo(float).eps)

    def _penalties(self) -> tuple[float, float]:
        if self.penalty is None:
            return 0.0, 0.0
        if isinstance(self.penalty, str) and self.penalty == "deprecated":
            share = float(self.l1_ratio or 0.0)
        else:
            share = _l1_share(self.penalty, self.l1_ratio)
        return (1 - share) / self.C, share / self.C

    def _publish(self) -> None:
        super()._publish()
        self.n_iter_: Any = np.array([self.n_iter_], np.int32)


@parameters(
    {
        **LINEAR, "copy_X": True, "positive": False, "solver": "adam", "max_iter": 1000, "tol": 1e-6, "alpha": 0.0,
        "max_fun": 15_000, "n_jobs": None,
    }
)  # fmt: skip
class LinearRegression(NetworkRegressor, _Linear):
    """Linear regression by gradient methods, with scikit-learn's interface.

    It minimises half of the mean squared error, and alpha / 2n times the sum of the squares of `coef_`.

    solver    "gd" (each step is of all rows), "sgd", "momentum", "adagrad", "adam" or "lbfgs"
    positive  True: no value of `coef_` is below 0
    n_jobs    the same as threads, but -1 stands for all processors
    copy_X    True or False: X is never overwritten
    learning_rate_init, batch_size, momentum, n_iter_no_change, early_stopping, ...   as of `MLPRegressor`

    `coef_` is (features,) and `intercept_` a number if y is (n,); else (outputs, features) and (outputs,). Features of
    very different sizes need scaling first, as by `sklearn.preprocessing.StandardScaler`.

    >>> import numpy as np
    >>> X = np.arange(4.0)[:, np.newaxis]
    >>> model = LinearRegression(solver="gd", learning_rate_init=0.2).fit(X, 2 * X[:, 0] + 1)
    >>> model.coef_.round(2).tolist(), round(float(model.intercept_), 2)
    ([2.0], 1.0)
    """

    @property
    def rank_(self) -> int:
        """AttributeError: the rank of X is found by a decomposition, which these solvers do without."""
        raise AttributeError("rank_ is of scikit-learn's least squares; here use np.linalg.matrix_rank(X - X.mean(0))")

    @property
    def singular_(self) -> Array:
        """AttributeError: singular values of X are found by a decomposition, which these solvers do without."""
        raise AttributeError(
            "singular_ is of scikit-learn's least squares; here use np.linalg.svd(X - X.mean(0), compute_uv=False)"
        )

    def _publish(self) -> None:
        super()._publish()
        if self._is_vector:
            self.coef_, self.intercept_ = self.coef_[0], self.intercept_[0] if self.fit_intercept else 0.0


@parameters(
    {
        **LINEAR, "penalty": None, "alpha": 1e-4, "l1_ratio": 0.15, "max_iter": 1000, "tol": 1e-3, "eta0": 1.0,
        "random_state": 0, "class_weight": None, "n_iter_no_change": 5, "batch_size": 1,
        "n_jobs": None,
    }
)  # fmt: skip
class Perceptron(NetworkClassifier, _Scores):
    """Rosenblatt's perceptron: `sklearn.linear_model.Perceptron`, in batches of `batch_size` rows.

        w += eta0 y x for a row with y (w x + b) <= 0;   several classes: one against the rest

    penalty    None, "l2", "l1" or "elasticnet", with alpha and l1_ratio
    eta0       the rate
    batch_size  1, as Rosenblatt's; a step of more rows goes by their mean
    n_jobs     the same as threads, but -1 stands for all processors

    >>> import numpy as np
    >>> X, y = np.array([[0.0], [1.0], [2.0], [3.0]]), np.array([0, 0, 1, 1])
    >>> Perceptron().fit(X, y).predict(X).tolist()
    [0, 0, 1, 1]
    """

    solver: ClassVar[str] = "sgd"

    def fit(  # type: ignore[override]  # scikit-learn's order
        self, X: Any, y: Any, coef_init: Any = None, intercept_init: Any = None, sample_weight: Any = None
    ) -> Any:
        """Train on X (n, features), dense or sparse, and labels y (n,), and return the estimator itself.

        coef_init, intercept_init: initial weights in the shapes of `coef_` and `intercept_`, or (features,) and a
        number for two classes. None: 0, or those of the fit before with warm_start=True.
        sample_weight: of the rows, (n,); a row's step is as large as its weight. None: all are 1.
        """
        return self._fit(X, y, sample_weight, start=(coef_init, intercept_init))

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
        if self.penalty is None:
            return 0.0, 0.0
        share = _l1_share(self.penalty, self.l1_ratio)
        return float(self.alpha) * (1 - share), float(self.alpha) * share

    def _rate(self) -> Any:
        return self.eta0
