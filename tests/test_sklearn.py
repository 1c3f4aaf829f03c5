"""Estimators with scikit-learn's interface: its own checks, and its own classes as the oracle."""

import warnings

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

sklearn = pytest.importorskip("sklearn", minversion="1.6")

from sklearn import datasets, linear_model, neural_network  # noqa: E402
from sklearn.exceptions import ConvergenceWarning, DataConversionWarning  # noqa: E402
from sklearn.preprocessing import StandardScaler  # noqa: E402
from sklearn.utils.estimator_checks import check_estimator  # noqa: E402

import fastopt as fo  # noqa: E402
from fastopt.kernels.cpu.runtime.primitives import INTERPRETED  # noqa: E402
from fastopt.sklearn import (  # noqa: E402
    LinearRegression,
    LogisticRegression,
    MLPClassifier,
    MLPRegressor,
    Perceptron,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.skipif(INTERPRETED, reason="thousands of epochs of interpreted kernels"),
]

# Checks that scikit-learn's own class fails, too: batches of a row do not know how many rows weigh as much.
FAILED_BY_BOTH = {
    Perceptron: {
        "check_sample_weight_equivalence_on_dense_data",
        "check_sample_weight_equivalence_on_sparse_data",
    }
}
CLASSES = [MLPClassifier, MLPRegressor, LogisticRegression, LinearRegression, Perceptron]


@pytest.mark.parametrize("cls", [*CLASSES[:3], *(pytest.param(cls, marks=pytest.mark.repeats) for cls in CLASSES[3:])])
def test_scikit_learns_own_checks(cls):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = check_estimator(cls(), on_fail=None, on_skip=None)
    failed = {one["check_name"]: one["exception"] for one in results if one["status"] == "failed"}
    assert failed.keys() == FAILED_BY_BOTH.get(cls, set()), failed
    assert len(results) > 50


# ---------------------------------------------------------------- the same results as scikit-learn's
DIGITS = datasets.load_digits(return_X_y=True)
IRIS = datasets.load_iris(return_X_y=True)
TASKS = {
    "classes": ("MLPClassifier", DIGITS[0][:300] / 16, DIGITS[1][:300]),
    "two classes": ("MLPClassifier", DIGITS[0][:300] / 16, np.where(DIGITS[1][:300] > 4, "high", "low")),
    "labels": ("MLPClassifier", *datasets.make_multilabel_classification(300, 10, n_classes=4, random_state=0)),
    "numbers": ("MLPRegressor", IRIS[0][:, :3], IRIS[0][:, 3]),
    "vectors": ("MLPRegressor", IRIS[0][:, :2], IRIS[0][:, 2:]),
}
SOLVERS = {
    "adam": {"solver": "adam"},
    "sgd": {"solver": "sgd", "learning_rate_init": 0.01},
    "sgd without momentum": {"solver": "sgd", "momentum": 0.0, "activation": "tanh"},
    "invscaling": {
        "solver": "sgd", "learning_rate": "invscaling", "learning_rate_init": 0.05, "nesterovs_momentum": False,
    },
    "adaptive": {"solver": "sgd", "learning_rate": "adaptive", "tol": 10.0, "n_iter_no_change": 2},
    "early stopping": {"early_stopping": True, "activation": "logistic", "alpha": 0.0, "n_iter_no_change": 2},
    "lbfgs": {"solver": "lbfgs", "alpha": 0.1},
}  # fmt: skip


def twins(task, **parameters):
    """Both libraries' estimators, fitted on the rows in their order from the same weights."""
    name, X, y = TASKS[task]
    given_ = {"hidden_layer_sizes": (9, 7), "shuffle": False, "random_state": 3, "batch_size": 47, "max_iter": 7}
    parameters = {**given_, **parameters}
    weights = parameters.pop("sample_weight", None)
    theirs = getattr(neural_network, name)(**parameters).fit(X, y, sample_weight=weights)
    ours = {"MLPClassifier": MLPClassifier, "MLPRegressor": MLPRegressor}[name](**parameters)
    return ours.fit(X, y, sample_weight=weights), theirs, X


def assert_same(ours, theirs, X, rtol=1e-9):
    for mine, its in zip(ours.coefs_ + ours.intercepts_, theirs.coefs_ + theirs.intercepts_, strict=True):
        np.testing.assert_allclose(mine, its, rtol=rtol, atol=1e-11)
    assert (ours.n_iter_, ours.t_, ours.n_layers_, ours.n_outputs_, ours.out_activation_) == (
        theirs.n_iter_, theirs.t_, theirs.n_layers_, theirs.n_outputs_, theirs.out_activation_,
    )  # fmt: skip
    assert np.array_equal(ours.predict(X), theirs.predict(X)) or np.allclose(ours.predict(X), theirs.predict(X))


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("task", TASKS)
def test_the_weights_are_scikit_learns(task, solver):
    ours, theirs, X = twins(task, **SOLVERS[solver])
    assert_same(ours, theirs, X)
    np.testing.assert_allclose(ours.loss_, theirs.loss_, rtol=1e-3 if task == "vectors" else 1e-9)
    if solver == "early stopping":
        np.testing.assert_allclose(ours.validation_scores_, theirs.validation_scores_)
    if solver != "lbfgs" and task != "vectors":
        np.testing.assert_allclose(ours.loss_curve_, theirs.loss_curve_, rtol=1e-9)
    if task in ("classes", "two classes"):
        np.testing.assert_allclose(ours.predict_proba(X), theirs.predict_proba(X), rtol=1e-7, atol=1e-12)


@pytest.mark.skipif(sklearn.__version__ < "1.7", reason="scikit-learn's MLPs take weights since 1.7")
@pytest.mark.parametrize("solver", ["adam", "sgd", "lbfgs"])
@pytest.mark.parametrize("task", TASKS)
def test_weights_of_rows_are_scikit_learns(task, solver):
    rows = len(TASKS[task][1])
    weights = np.random.default_rng(0).uniform(0.5, 2.0, rows)
    ours, theirs, X = twins(task, **SOLVERS[solver], sample_weight=weights)
    assert_same(ours, theirs, X)


@pytest.mark.parametrize("backend", ["cpu", "numpy"])
@pytest.mark.parametrize("batch_size", [1, 47, 300])
def test_the_penalty_is_over_the_rows_of_a_batch(batch_size, backend):
    X, y = (some[:120] for some in TASKS["classes"][1:])
    parameters = {"alpha": 2.0, "max_iter": 2, "batch_size": min(batch_size, 120), "shuffle": False, "random_state": 0}
    ours = MLPClassifier((5,), backend=backend, **parameters).fit(X, y)
    theirs = neural_network.MLPClassifier((5,), **parameters).fit(X, y)
    assert_same(ours, theirs, X)
    np.testing.assert_allclose(ours.loss_curve_, theirs.loss_curve_, rtol=1e-9)


def test_solvers_of_linear_models_minimise_the_same():
    X, y = StandardScaler().fit_transform(IRIS[0]), IRIS[1]
    exact = LogisticRegression(C=0.05, tol=1e-9, max_iter=1000).fit(X, y)
    steps = LogisticRegression(C=0.05, solver="adam", batch_size=50, tol=0.0, max_iter=400, random_state=0).fit(X, y)
    np.testing.assert_allclose(steps.coef_, exact.coef_, atol=0.02)


@pytest.mark.parametrize("solver", ["adam", "sgd"])
def test_partial_fit_is_scikit_learns(solver):
    X, y = DIGITS[0][:200] / 16, DIGITS[1][:200]
    pair = [
        cls((8,), solver=solver, random_state=0, shuffle=False, batch_size=50)
        for cls in (MLPClassifier, neural_network.MLPClassifier)
    ]
    for rows in (y < 3, slice(0, 170), slice(100, 170)):  # the first have three of the classes
        for one in pair:
            one.partial_fit(X[rows], y[rows], classes=np.arange(10))
    assert_same(*pair, X)
    with pytest.raises(ValueError, match="y must have the classes of the fit before"):
        pair[0].partial_fit(X, y + 5)
    with pytest.raises(ValueError, match="not the same as on the last call"):
        pair[0].partial_fit(X, y, classes=np.arange(11))
    with pytest.raises(ValueError, match="classes must be passed on the first call"):
        MLPClassifier().partial_fit(X, y)
    with pytest.raises(AttributeError, match="partial_fit"):
        MLPClassifier(solver="lbfgs").partial_fit  # noqa: B018


def test_warm_start_goes_on_from_the_weights():
    parameters = {"random_state": 0, "shuffle": False, "warm_start": True, "max_iter": 3, "batch_size": 150}
    ours, theirs = MLPClassifier((8,), **parameters), neural_network.MLPClassifier((8,), **parameters)
    for _ in range(3):
        assert_same(ours.fit(*IRIS), theirs.fit(*IRIS), IRIS[0])
    assert len(ours.loss_curve_) == 9


def test_a_training_ends_where_scikit_learns_does():
    for patience in (1, 4):
        ours, theirs, X = twins("classes", max_iter=60, tol=0.05, n_iter_no_change=patience)
        assert ours.n_iter_ == theirs.n_iter_ < 60
        assert_same(ours, theirs, X, rtol=1e-6)


# ---------------------------------------------------------------- linear models
def test_logistic_regression_is_scikit_learns():
    X = StandardScaler().fit_transform(IRIS[0])
    for y in (IRIS[1], IRIS[1] > 0):
        for strength in (0.1, 10.0):
            ours = LogisticRegression(C=strength, tol=1e-8, max_iter=1000).fit(X, y)
            theirs = linear_model.LogisticRegression(C=strength, tol=1e-8, max_iter=1000).fit(X, y)
            np.testing.assert_allclose(ours.coef_, theirs.coef_, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(ours.decision_function(X), theirs.decision_function(X), rtol=1e-3, atol=1e-4)
            assert ours.coef_.shape == theirs.coef_.shape
            assert ours.intercept_.shape == theirs.intercept_.shape


@pytest.mark.parametrize("solver", ["gd", "sgd", "momentum", "adagrad", "adam", "lbfgs"])
def test_linear_regression_finds_the_least_squares(solver):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((200, 3))
    for y in (X @ [1.0, -2.0, 0.5] + 3, X @ rng.standard_normal((3, 2))):
        model = LinearRegression(solver=solver, learning_rate_init=0.1, tol=1e-10, max_iter=2000, random_state=0)
        model.fit(X, y)
        exact = linear_model.LinearRegression().fit(X, y)
        np.testing.assert_allclose(model.coef_, exact.coef_, atol=0.05)
        np.testing.assert_allclose(model.intercept_, exact.intercept_, atol=0.05)
        assert model.coef_.shape == exact.coef_.shape
    assert LinearRegression(fit_intercept=False, solver="lbfgs").fit(X, y).intercept_.tolist() == [0.0, 0.0]


def test_a_perceptron_makes_rosenblatts_steps():
    rng = np.random.default_rng(1)
    X = rng.standard_normal((40, 3))
    y = X @ [1.0, 2.0, -1.0] > 0.1
    w, b = np.zeros(3), 0.0
    for _ in range(5):
        for row, sign in zip(X, np.where(y, 1.0, -1.0), strict=True):
            if sign * (row @ w + b) <= 0:
                w, b = w + 0.5 * sign * row, b + 0.5 * sign
    model = Perceptron(eta0=0.5, shuffle=False, max_iter=5, tol=0.0, n_iter_no_change=np.inf).fit(X, y)
    np.testing.assert_allclose(model.coef_[0], w, rtol=1e-12)
    np.testing.assert_allclose(model.intercept_, [b], rtol=1e-12)
    # of several classes, each against the rest
    theirs = linear_model.Perceptron(shuffle=False, max_iter=4, tol=None).fit(*IRIS)
    ours = Perceptron(shuffle=False, max_iter=4, tol=0.0, n_iter_no_change=np.inf).fit(*IRIS)
    np.testing.assert_allclose(ours.coef_, theirs.coef_, rtol=1e-10)


def small(**parameters):
    return MLPClassifier((8,), max_iter=60, learning_rate_init=0.02, random_state=0, **parameters)


def test_sparse_rows_are_the_same_rows():
    sparse = pytest.importorskip("scipy.sparse")
    X = np.where(DIGITS[0][:200] > 8, DIGITS[0][:200], 0) / 16
    for form in (sparse.csr_array, sparse.csc_array):
        for solver in ("adam", "lbfgs"):
            dense, packed = (small(solver=solver).fit(x, DIGITS[1][:200]) for x in (X, form(X)))
            np.testing.assert_allclose(packed.predict_proba(form(X)), dense.predict_proba(X), rtol=1e-12)


# ---------------------------------------------------------------- the options that are fastopt's own
def test_float32_stays_float32():
    X = IRIS[0].astype(np.float32)
    assert small().fit(X, IRIS[1]).coefs_[0].dtype == np.float32
    assert small(dtype="float64").fit(X, IRIS[1]).coefs_[0].dtype == np.float64
    assert small().fit(X, IRIS[1]).predict_proba(X).dtype == np.float32


def test_options_reach_the_network():
    plain = small().fit(*IRIS)
    for options in (
        {"dropout": 0.5}, {"class_weight": {0: 5.0}}, {"class_weight": "balanced"}, {"solver": "gd"},
        {"solver": "momentum"}, {"solver": "adagrad"}, {"activation": "gelu"}, {"dtype": "float32"}, {"batch_size": 30},
    ):  # fmt: skip
        X, y = (IRIS[0][:120], IRIS[1][:120]) if "class_weight" in options else IRIS
        other = small(**options).fit(X, y)
        assert not np.array_equal(other.coefs_[0], plain.coefs_[0]), options
    same = small(backend="numpy").fit(*IRIS)
    np.testing.assert_allclose(same.coefs_[0], plain.coefs_[0], rtol=1e-9)


def test_callbacks_and_schedules():
    seen = []
    callback = fo.callbacks.LambdaCallback(on_epoch_end=lambda model, epoch, logs: seen.append(logs["lr"]))
    rate = fo.schedules.Linear(0.01, steps=10)
    model = MLPClassifier((4,), learning_rate_init=rate, callbacks=[callback], max_iter=4, random_state=0).fit(*IRIS)
    assert len(seen) == 4 == model.n_iter_
    assert np.diff(seen).max() < 0


def test_balanced_classes_are_those_of_weights():
    y = np.repeat([0, 1, 2], [100, 30, 20])
    weights = sklearn.utils.compute_sample_weight("balanced", y)
    one, other = small(class_weight="balanced").fit(IRIS[0], y), small().fit(IRIS[0], y, sample_weight=weights)
    assert np.array_equal(one.coefs_[0], other.coefs_[0])


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"solver": "newton"}, "unknown solver 'newton'"),
        ({"hidden_layer_sizes": (3, 0)}, "hidden_layer_sizes must be > 0"),
        ({"learning_rate": "fast"}, "unknown learning_rate"),
        ({"activation": "snake"}, "unknown activation"),
        ({"hidden_layer_sizes": (3, 2.5)}, "hidden_layer_sizes must be a whole number; got 2.5"),
        ({"hidden_layer_sizes": "5"}, "hidden_layer_sizes must be a whole number; got '5'"),
        ({"alpha": -1}, "alpha must be at least 0"),
        ({"alpha": float("nan")}, "alpha must be at least 0"),
        ({"solver": "sgd", "momentum": 2}, "momentum must be at most 1; got 2"),
        ({"power_t": "x"}, "power_t must be a number; got 'x'"),
        ({"callbacks": None}, "callbacks must be a list of Callback; got None"),
        ({"callbacks": fo.EarlyStopping()}, "callbacks must be a list of Callback; got a"),
        ({"solver": "lbfgs", "callbacks": [fo.EarlyStopping()]}, "callbacks are for the other solvers"),
        (
            {"solver": "sgd", "learning_rate": "invscaling", "learning_rate_init": fo.schedules.Cosine(0.1, 9)},
            "learning_rate_init must be a number with learning_rate='invscaling'; got a Cosine",
        ),
        ({"max_iter": 0}, "max_iter"),
        ({"batch_size": 0}, "batch_size"),
        ({"solver": "lbfgs", "dropout": 0.5}, "lbfgs needs a loss that is the same in every call"),
        ({"early_stopping": True, "validation_fraction": 0.001}, "The validation set is too small"),
        ({"backend": "tpu"}, "backend"),
    ],
)
def test_impossible_parameters_are_refused(parameters, message):
    with pytest.raises((ValueError, TypeError), match=message):
        small().set_params(**parameters).fit(*IRIS)


@pytest.mark.parametrize(
    ("estimator", "message"),
    [
        (LogisticRegression(C=0), "C must be above 0; got 0"),
        (LogisticRegression(C=float("nan")), "C must be at least 0"),
        (LogisticRegression(C="x"), "C must be a number; got 'x'"),
        (Perceptron(penalty="elasticnet", l1_ratio=2), r"l1_ratio must be in \[0, 1\]; got 2"),
        (Perceptron(eta0=-1), "eta0 must be at least 0"),
        (Perceptron(penalty="l2", alpha=-1), "alpha must be at least 0"),
    ],
)
def test_impossible_parameters_of_linear_models_are_refused(estimator, message):
    with pytest.raises((ValueError, TypeError), match=message):
        estimator.fit(*IRIS)


def test_a_perceptron_has_one_column_of_labels():
    labels = np.eye(3, dtype=int)[IRIS[1]]
    with pytest.raises(ValueError, match="y should be a 1d array"):
        Perceptron().fit(IRIS[0], labels)
    with pytest.raises(ValueError, match="y should be a 1d array"):
        Perceptron().partial_fit(IRIS[0], labels, classes=[0, 1])


def test_a_column_of_targets_is_a_vector_for_a_perceptron_of_layers_alone():
    X, y = IRIS[0], IRIS[0][:, :1]
    settings = {"hidden_layer_sizes": (3,), "max_iter": 2, "random_state": 0}
    with pytest.warns((DataConversionWarning, ConvergenceWarning)) as told:
        found = [cls(**settings).fit(X, y).predict(X) for cls in (MLPRegressor, neural_network.MLPRegressor)]
    assert [one.shape for one in found] == [(150,), (150,)]
    assert [warning.category for warning in told] == [DataConversionWarning, ConvergenceWarning] * 2
    assert LinearRegression(solver="lbfgs").fit(X, y).predict(X).shape == (150, 1)


def test_a_training_that_does_not_converge_warns():
    with pytest.warns(ConvergenceWarning, match=r"Maximum iterations \(2\)"):
        MLPClassifier((4,), max_iter=2, random_state=0).fit(*IRIS)
    with pytest.warns(ConvergenceWarning, match="lbfgs failed to converge"):
        MLPClassifier((4,), max_iter=2, solver="lbfgs", random_state=0).fit(*IRIS)


@given(st.data())
@settings(max_examples=15, deadline=None)
def test_random_classifiers(data):
    rows, columns, classes = (data.draw(st.integers(*ends)) for ends in ((5, 40), (1, 6), (2, 5)))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    X, y = rng.standard_normal((rows, columns)), np.resize(np.arange(classes), rows)
    parameters = {
        "hidden_layer_sizes": data.draw(st.sampled_from([(), (3,), (4, 2)])),
        "activation": data.draw(st.sampled_from(["identity", "logistic", "tanh", "relu"])),
        "solver": data.draw(st.sampled_from(["adam", "sgd", "lbfgs"])), "batch_size": rows, "shuffle": False,
        "alpha": data.draw(st.sampled_from([0.0, 1e-3, 1.0])), "random_state": 0, "max_iter": 5,
    }  # fmt: skip
    # a line search across kinks may stop elsewhere after another rounding
    assume(parameters["solver"] != "lbfgs" or parameters["activation"] != "relu")
    ours, theirs = (module.MLPClassifier(**parameters).fit(X, y) for module in (fo.sklearn, neural_network))
    assert_same(ours, theirs, X, rtol=1e-6)
