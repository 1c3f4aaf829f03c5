"""Estimators with the interface of scikit-learn, trained by fastopt's kernels.

`MLPClassifier`, `MLPRegressor`, `LogisticRegression`, `LinearRegression` and `Perceptron` have the parameters,
attributes and methods of scikit-learn's classes of these names, and stand wherever scikit-learn takes an estimator: in
pipelines, searches, ensembles and cross-validation. They need scikit-learn: `pip install "fastopt[sklearn]"`.

>>> from sklearn.datasets import load_iris
>>> X, y = load_iris(return_X_y=True)
>>> model = MLPClassifier((16,), solver="lbfgs", alpha=0.01, random_state=0).fit(X, y)
>>> model.score(X, y) > 0.95, model.predict(X[:2]).tolist()
(True, [0, 0])
"""

from __future__ import annotations

try:
    import sklearn as _sklearn
except ImportError as error:
    raise ImportError('fastopt.sklearn needs scikit-learn: pip install "fastopt[sklearn]"') from error
if tuple(map(int, _sklearn.__version__.split(".")[:2])) < (1, 6):
    raise ImportError(f"fastopt.sklearn needs scikit-learn 1.6 or newer; got {_sklearn.__version__}")

from ._linear import LinearRegression, LogisticRegression, Perceptron
from ._mlp import MLPClassifier, MLPRegressor

__all__ = ["LinearRegression", "LogisticRegression", "MLPClassifier", "MLPRegressor", "Perceptron"]
