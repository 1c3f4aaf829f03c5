"""Checks of the parameters of estimators, by their names in scikit-learn."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from .._validation import check_count, check_flag, check_name, check_number, describe
from ..models.training import check_callbacks

RATES = ("constant", "invscaling", "adaptive")
STOCHASTIC = ("sgd", "gd", "momentum", "adagrad", "adam")
SOLVERS = ("lbfgs", *STOCHASTIC)
_FLAGS = ("shuffle", "warm_start", "nesterovs_momentum", "early_stopping", "fit_intercept", "positive")
_AT_LEAST_0 = ("alpha", "momentum", "power_t", "eta0")


def check_parameters(estimator: Any) -> None:
    """Raise TypeError or ValueError, with the name of the parameter, for one that cannot be."""
    for size in widths_of(estimator.hidden_layer_sizes):
        if isinstance(size, int | np.integer) and size <= 0:
            raise ValueError(f"hidden_layer_sizes must be > 0; got {estimator.hidden_layer_sizes}")
        check_count("hidden_layer_sizes", size)
    check_name("solver", estimator.solver, SOLVERS)
    check_name("learning_rate", estimator.learning_rate, RATES)
    for name in ("max_iter", "max_fun"):
        check_count(name, getattr(estimator, name))
    if estimator.tol is not None:
        check_number("tol", estimator.tol, 0.0)
    check_number("validation_fraction", estimator.validation_fraction, 0.0, 1.0)
    if isinstance(estimator.verbose, str) or not isinstance(estimator.verbose, bool | int | np.bool_ | np.integer):
        raise TypeError(f"verbose must be True, False or a number of at least 0; got {describe(estimator.verbose)}")
    check_number("verbose", int(estimator.verbose), 0.0)
    _check_positive("epsilon", estimator.epsilon)
    for name in ("beta_1", "beta_2"):
        check_number(name, getattr(estimator, name), 0.0, 1.0)
    for name in _FLAGS:
        check_flag(name, getattr(estimator, name))
    for name in _AT_LEAST_0:
        if hasattr(estimator, name):
            check_number(name, getattr(estimator, name), 0.0)
    if estimator.momentum > 1:
        raise ValueError(f"momentum must be at most 1; got {estimator.momentum}")
    inverse_penalty = getattr(estimator, "C", 1.0)
    if inverse_penalty != np.inf and not check_number("C", inverse_penalty, 0.0):
        raise ValueError(f"C must be above 0; got {inverse_penalty}")
    if getattr(estimator, "l1_ratio", None) is not None and check_number("l1_ratio", estimator.l1_ratio, 0.0) > 1:
        raise ValueError(f"l1_ratio must be in [0, 1]; got {estimator.l1_ratio}")
    if estimator.batch_size != "auto":
        check_count("batch_size", estimator.batch_size)
    if estimator.n_iter_no_change != np.inf:
        check_count("n_iter_no_change", estimator.n_iter_no_change)
    if estimator.threads is not None:
        check_count("threads", estimator.threads)
    _check_namesakes(estimator)
    _check_together(estimator)


def _check_namesakes(estimator: Any) -> None:
    """Raise for parameters of scikit-learn's linear models that these solvers do not have."""
    if estimator.n_jobs is not None:
        if isinstance(estimator.n_jobs, bool) or not isinstance(estimator.n_jobs, int | np.integer):
            raise TypeError(f"n_jobs must be a whole number or None; got {describe(estimator.n_jobs)}")
        if estimator.n_jobs == 0:
            raise ValueError("n_jobs must be at least 1, or -1 for all processors; got 0")
        if estimator.threads is not None:
            raise ValueError(f"n_jobs and threads mean the same; got n_jobs={estimator.n_jobs} beside threads")
    check_flag("copy_X", getattr(estimator, "copy_X", True))
    if check_flag("dual", getattr(estimator, "dual", False)):
        raise ValueError(
            "dual must be False; got True: these solvers minimise the primal problem, whose minimum is the same."
            " sklearn.linear_model.LogisticRegression(solver='liblinear', dual=True) has the dual one"
        )
    scaling = getattr(estimator, "intercept_scaling", 1)
    if check_number("intercept_scaling", scaling, 0.0) != 1:
        raise ValueError(
            f"intercept_scaling must be 1; got {scaling}: it is for solvers that penalise the intercept, as liblinear"
            " does, and these do not"
        )
    if getattr(estimator, "penalty", "") is None and getattr(estimator, "C", 1.0) != 1:
        warnings.warn(f"penalty=None leaves C={estimator.C} without effect", stacklevel=5)


def _check_together(estimator: Any) -> None:
    """Raise for parameters that do not go with each other."""
    check_callbacks(estimator.callbacks)
    estimator._penalties()
    if estimator.callbacks and estimator.solver == "lbfgs":
        raise ValueError("callbacks are for the other solvers: lbfgs has no epochs that they could follow")
    rate = getattr(estimator, "learning_rate_init", 1.0)
    if not callable(rate):
        _check_positive("learning_rate_init", rate)
    if callable(rate) and estimator.learning_rate != "constant":
        raise ValueError(
            f"learning_rate_init must be a number with learning_rate={estimator.learning_rate!r}; got"
            f" {describe(rate)}: a schedule goes with 'constant'"
        )


def _check_positive(name: str, value: Any) -> None:
    if not check_number(name, value, 0.0):
        raise ValueError(f"{name} must be above 0; got {value}")


def widths_of(sizes: Any) -> list[Any]:
    """Widths of the hidden layers; a number stands for one layer."""
    return list(sizes) if np.ndim(sizes) else [sizes]
