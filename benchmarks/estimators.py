"""Fits of scikit-learn's MLPClassifier and of its namesake here, with scikit-learn's defaults.

Both start from the same weights and take the same steps, in other orders of the rows.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import fastopt as fo
from fastopt.benchmarks.peers import need
from fastopt.benchmarks.workloads import Absent

GRID = {
    "hidden_layer_sizes": [(32,), (64,), (100,)], "alpha": [1e-5, 1e-4, 1e-3, 1e-2], "learning_rate_init": [1e-3, 3e-3],
}  # fmt: skip
JOBS = 2


class Task(NamedTuple):
    """Data, and what is done with a classifier."""

    title: str
    data: Callable[[], tuple[np.ndarray, np.ndarray]]
    iterations: int
    run: Callable[[Any, np.ndarray, np.ndarray], Any]
    calls: int = 1  # of a turn: short ones are told apart from the machine's noise by several


def _images(dtype: str) -> tuple[np.ndarray, np.ndarray]:
    try:
        data = fo.datasets.load("fashion-mnist")
    except (OSError, ValueError) as error:
        raise Absent(str(error)) from error
    return np.ascontiguousarray(data.x_train[:20_000], dtype), data.y_train[:20_000]


def _bundled(name: str) -> tuple[np.ndarray, np.ndarray]:
    from sklearn import datasets

    found: tuple[np.ndarray, np.ndarray] = getattr(datasets, f"load_{name}")(return_X_y=True)
    return found


def _fit(model: Any, X: np.ndarray, y: np.ndarray) -> Any:
    return model.fit(X, y)


def _search(model: Any, X: np.ndarray, y: np.ndarray) -> Any:
    from sklearn.model_selection import GridSearchCV

    return GridSearchCV(model, GRID, cv=3, n_jobs=JOBS).fit(X, y)


TASKS = {
    "fashion-float64": Task("Fashion-MNIST, 20,000 rows, 10 iterations", lambda: _images("float64"), 10, _fit),
    "fashion-float32": Task(
        "Fashion-MNIST, 20,000 rows of float32, 10 iterations", lambda: _images("float32"), 10, _fit
    ),
    "iris": Task("iris, 100 iterations", lambda: _bundled("iris"), 100, _fit, calls=8),
    "grid": Task("digits, GridSearchCV of 24 candidates x 3 folds, 2 jobs", lambda: _bundled("digits"), 200, _search),
}
TITLES = {"fastopt": "fastopt.sklearn", "sklearn": "scikit-learn"}


def classifier(contestant: str, **parameters: Any) -> Any:
    """Return the classifier of a contestant, one of TITLES; Absent without scikit-learn."""
    need("sklearn")
    if contestant == "fastopt":
        from fastopt.sklearn import MLPClassifier
    else:
        from sklearn.neural_network import MLPClassifier
    return MLPClassifier(random_state=0, **parameters)


def run(name: str, contestant: str, **parameters: Any) -> Callable[[], Any]:
    """Return a function that does a task, and returns the fitted estimator."""
    task, model = TASKS[name], classifier(contestant, **{"max_iter": TASKS[name].iterations, **parameters})
    X, y = task.data()

    def do() -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of convergence, which is not asked for
            return task.run(model, X, y)

    return do
