"""Parameters, targets and methods that scikit-learn's linear models have, with its own classes as the oracle."""

import pickle

import numpy as np
import pytest

sklearn = pytest.importorskip("sklearn", minversion="1.6")

import joblib  # noqa: E402
import scipy.sparse  # noqa: E402
from sklearn import datasets, linear_model, neural_network  # noqa: E402
from sklearn.exceptions import NotFittedError  # noqa: E402
from sklearn.preprocessing import StandardScaler  # noqa: E402

from fastopt.kernels import cpu  # noqa: E402
from fastopt.kernels.cpu.runtime import launch  # noqa: E402
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
IRIS = datasets.load_iris(return_X_y=True)
SCALED = StandardScaler().fit_transform(IRIS[0])
NEW = sklearn.__version__ >= "1.8"  # the penalty is said by l1_ratio


# ---------------------------------------------------------------- penalties and bounds
def saga(share, C, X, y, weights=None):
    ratio = {"l1_ratio": share} if NEW else {"penalty": "elasticnet", "l1_ratio": share}
    model = linear_model.LogisticRegression(**ratio, C=C, solver="saga", tol=1e-9, max_iter=100_000, random_state=0)
    return model.fit(X, y, weights)


@pytest.mark.parametrize("share", [0.5, 1.0])
@pytest.mark.parametrize("two", [False, True], ids=["three", "two"])
def test_lbfgs_with_an_l1_penalty_finds_sagas_minimum(share, two):
    y, weights = IRIS[1] > 0 if two else IRIS[1], np.linspace(0.1, 2, 150)
    for sample_weight in (None, weights):
        theirs = saga(share, 0.2, SCALED, y, sample_weight)
        ours = LogisticRegression(C=0.2, l1_ratio=share, tol=1e-9, max_iter=1000).fit(SCALED, y, sample_weight)
        np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=1e-5)
        np.testing.assert_allclose(ours.intercept_, theirs.intercept_, atol=1e-5)
        np.testing.assert_array_equal(ours.coef_ == 0, theirs.coef_ == 0)


def test_a_penalty_is_said_by_its_name_or_by_its_share():
    fits = {
        name: LogisticRegression(penalty, C=0.2, l1_ratio=share, solver=solver, max_iter=50, random_state=0)
        .fit(SCALED, IRIS[1])
        .coef_
        for solver in ("lbfgs", "adam")
        for name, penalty, share in [
            (f"l1 {solver}", "l1", 0.0), (f"1 {solver}", "deprecated", 1.0),
            (f"l2 {solver}", "l2", 0.3), (f"0 {solver}", "deprecated", None),
            (f"elasticnet {solver}", "elasticnet", 0.3), (f"0.3 {solver}", "deprecated", 0.3),
        ]
    }  # fmt: skip
    for solver in ("lbfgs", "adam"):
        for name, share in {"l1": "1", "l2": "0", "elasticnet": "0.3"}.items():
            np.testing.assert_array_equal(fits[f"{name} {solver}"], fits[f"{share} {solver}"])
        assert len({fits[f"{share} {solver}"].tobytes() for share in ("0", "0.3", "1")}) == 3
    none, free = (
        LogisticRegression(max_iter=20, **how).fit(SCALED, IRIS[1]) for how in ({"penalty": None}, {"C": np.inf})
    )
    np.testing.assert_array_equal(none.coef_, free.coef_)
    with pytest.warns(UserWarning, match=r"penalty=None leaves C=0.2 without effect"):
        LogisticRegression(None, C=0.2, max_iter=2).fit(SCALED, IRIS[1])


@pytest.mark.parametrize("solver", ["lbfgs", "adam", "gd"])
def test_positive_coefficients_are_those_of_nnls(solver):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((60, 3))
    for y in (X @ [1.0, -2.0, 0.5] - 3, X @ rng.standard_normal((3, 2)) - 1):
        ours = LinearRegression(
            positive=True, solver=solver, learning_rate_init=0.1, tol=None, max_iter=2000, random_state=0
        ).fit(X, y)
        theirs = linear_model.LinearRegression(positive=True).fit(X, y)
        np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=2e-3)
        np.testing.assert_allclose(ours.intercept_, theirs.intercept_, atol=2e-3)
        assert (ours.coef_ == 0).any()
        assert (ours.coef_ >= 0).all()
        assert np.max(ours.intercept_) < 0


# ---------------------------------------------------------------- initial weights
SETTINGS = {"shuffle": False, "max_iter": 2, "tol": None}


@pytest.mark.parametrize("given", [(True, True), (True, False), (False, True)])
def test_a_perceptron_begins_with_the_weights_given(given):
    rng = np.random.default_rng(0)
    for y, outputs in ((IRIS[1], 3), (IRIS[1] > 0, 1)):
        coef, intercept = rng.standard_normal((outputs, 4)), rng.standard_normal(outputs)
        start = [value if use else None for value, use in zip((coef, intercept), given, strict=True)]
        theirs = linear_model.Perceptron(**SETTINGS).fit(SCALED, y, *(None if v is None else v.copy() for v in start))
        ours = Perceptron(**SETTINGS).fit(SCALED, y, *start)
        np.testing.assert_allclose(ours.coef_, theirs.coef_, rtol=1e-10)
        np.testing.assert_allclose(ours.intercept_, theirs.intercept_, rtol=1e-10, atol=1e-12)
        assert not np.array_equal(ours.coef_, Perceptron(**SETTINGS).fit(SCALED, y).coef_)
    flat = Perceptron(**SETTINGS).fit(SCALED, IRIS[1] > 0, *(v[0] for v in (coef, intercept)))
    np.testing.assert_array_equal(flat.coef_, Perceptron(**SETTINGS).fit(SCALED, IRIS[1] > 0, coef, intercept).coef_)
    warm = Perceptron(warm_start=True, **SETTINGS).fit(SCALED, IRIS[1] > 0)
    np.testing.assert_array_equal(warm.fit(SCALED, IRIS[1] > 0, coef, intercept).coef_, flat.coef_)


@pytest.mark.parametrize(
    ("start", "fit_intercept", "message"),
    [
        ((np.zeros(4), None), True, r"coef_init must be of shape \(3, 4\); got \(4,\)"),
        ((np.zeros((4, 3)), None), True, r"coef_init must be of shape \(3, 4\); got \(4, 3\)"),
        ((None, [1.0, 2.0]), True, r"intercept_init must be of shape \(3,\); got \(2,\)"),
        ((None, np.zeros(3)), False, "intercept_init must be None with fit_intercept=False"),
        ((np.full((3, 4), np.nan), None), True, "coef_init contains NaN"),
    ],
)
def test_impossible_initial_weights_leave_a_fit_as_it_was(start, fit_intercept, message):
    model = Perceptron(fit_intercept=fit_intercept, **SETTINGS).fit(SCALED, IRIS[1])
    before = model.predict(SCALED)
    with pytest.raises(ValueError, match=message):
        model.fit(SCALED, IRIS[1], *start)
    np.testing.assert_array_equal(model.predict(SCALED), before)


# ---------------------------------------------------------------- sparse coefficients and sparse labels
@pytest.mark.parametrize("model", [Perceptron(**SETTINGS), LogisticRegression("l1", C=0.1)], ids=["perceptron", "l1"])
def test_coefficients_can_be_sparse(model):
    model.fit(SCALED, IRIS[1])
    dense, scores = model.coef_, model.decision_function(SCALED)
    assert scipy.sparse.issparse(model.sparsify().coef_)
    restored = pickle.loads(pickle.dumps(model))
    for one in (model, restored, restored.sparsify()):
        np.testing.assert_allclose(one.decision_function(SCALED), scores, rtol=1e-12, atol=1e-12)
        np.testing.assert_array_equal(one.predict(SCALED), scores.argmax(axis=1))
    np.testing.assert_array_equal(model.densify().densify().coef_, dense)
    np.testing.assert_array_equal(restored.fit(SCALED, IRIS[1]).coef_, dense)
    for method in ("sparsify", "densify"):
        with pytest.raises(NotFittedError):
            getattr(sklearn.base.clone(model), method)()


LABELS = (IRIS[0] > IRIS[0].mean(axis=0)).astype(int)


@pytest.mark.parametrize("make", ["csr_matrix", "csc_array", "coo_matrix", "lil_matrix"])
def test_labels_can_be_sparse(make):
    y = getattr(scipy.sparse, make)(LABELS)
    settings = {"hidden_layer_sizes": (4,), "max_iter": 3, "random_state": 0}
    ours, dense = (MLPClassifier(**settings).fit(SCALED, labels) for labels in (y, LABELS))
    found = ours.predict(SCALED)
    theirs = neural_network.MLPClassifier(**settings).fit(SCALED, y).predict(SCALED)
    assert scipy.sparse.issparse(found)
    assert (found.format, found.dtype, found.shape) == (theirs.format, theirs.dtype, theirs.shape)
    np.testing.assert_array_equal(found.toarray(), dense.predict(SCALED))
    assert ours.score(SCALED, y) == dense.score(SCALED, LABELS)
    np.testing.assert_array_equal(ours.predict_proba(SCALED), dense.predict_proba(SCALED))
    assert not scipy.sparse.issparse(ours.fit(SCALED, LABELS).predict(SCALED))
    parts = MLPClassifier(**settings).partial_fit(SCALED, y, classes=np.arange(4)).partial_fit(SCALED, y)
    assert scipy.sparse.issparse(parts.predict(SCALED))
    early = MLPClassifier(early_stopping=True, **settings).fit(SCALED, y)
    assert len(early.validation_scores_) == 3


@pytest.mark.parametrize("cls", [MLPRegressor, LinearRegression, Perceptron, MLPClassifier, LogisticRegression])
def test_a_sparse_column_is_refused(cls):
    with pytest.raises(TypeError, match=r"y must be dense; got a sparse one of shape \(150, 1\): use y.toarray()"):
        cls().fit(SCALED, scipy.sparse.csr_matrix(IRIS[1][:, np.newaxis]))


@pytest.mark.parametrize("cls", [MLPClassifier, LogisticRegression])
def test_columns_of_classes_name_the_wrapper(cls):
    with pytest.raises(ValueError, match=r"got 2 columns of classes.*sklearn\.multioutput\.MultiOutputClassifier"):
        cls().fit(SCALED, np.stack([IRIS[1], IRIS[1][::-1]], axis=1))


# ---------------------------------------------------------------- names that are honoured in another way, or refused
@pytest.mark.parametrize("cls", [Perceptron, LogisticRegression, LinearRegression])
def test_jobs_are_threads(cls, monkeypatch):
    seen, plain = [], cls._fit_stochastic

    def watched(self, *args):
        seen.append(cpu.get_num_threads())
        return plain(self, *args)

    monkeypatch.setattr(launch, "_threads", 3)
    monkeypatch.setattr(cls, "_fit_stochastic", watched)
    solver = {} if cls is Perceptron else {"solver": "adam"}
    for jobs in (1, 2, None, -1):
        cls(n_jobs=jobs, max_iter=1, **solver).fit(SCALED, IRIS[1]).predict(SCALED)
    assert seen == [1, 2, 3, min(3, joblib.effective_n_jobs(-1))]


def test_iterations_of_logistic_regression_are_an_array():
    for solver in ("lbfgs", "adam"):
        model = LogisticRegression(solver=solver, max_iter=3, warm_start=True).fit(SCALED, IRIS[1])
        for _ in range(2):
            assert (model.n_iter_.shape, model.n_iter_.dtype, model.n_iter_.tolist()) == ((1,), np.int32, [3])
            model.fit(SCALED, IRIS[1])


def test_x_is_never_overwritten():
    X = SCALED.copy()
    model = LinearRegression(copy_X=False, max_iter=2).fit(X, IRIS[1])
    np.testing.assert_array_equal(X, SCALED)
    for name in ("rank_", "singular_"):
        assert not hasattr(model, name)
        with pytest.raises(AttributeError, match=f"{name} is of scikit-learn's least squares; here use np.linalg"):
            getattr(model, name)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (LogisticRegression(dual=True), "dual must be False; got True"),
        (LogisticRegression(dual="no"), "dual must be True or False"),
        (LogisticRegression(intercept_scaling=2.0), "intercept_scaling must be 1; got 2.0"),
        (LogisticRegression("l3"), "unknown penalty 'l3'; known: l1, l2, elasticnet"),
        (LogisticRegression(0.1), "penalty must be one of l1, l2, elasticnet; got 0.1"),
        (LogisticRegression("elasticnet", l1_ratio=None), r"l1_ratio must be a number in \[0, 1\]"),
        (LogisticRegression(l1_ratio=1.5), r"l1_ratio must be in \[0, 1\]; got 1.5"),
        (LinearRegression(positive=1), "positive must be True or False; got 1"),
        (LinearRegression(copy_X=None), "copy_X must be True or False; got None"),
        (LinearRegression(n_jobs=0), "n_jobs must be at least 1, or -1 for all processors; got 0"),
        (LinearRegression(n_jobs=1.0), "n_jobs must be a whole number or None; got 1.0"),
        (Perceptron(n_jobs=True), "n_jobs must be a whole number or None; got True"),
        (Perceptron(n_jobs=2, threads=2), "n_jobs and threads mean the same"),
        (Perceptron(penalty="l3"), "unknown penalty 'l3'"),
    ],
)
def test_impossible_names_are_refused(model, message):
    with pytest.raises((ValueError, TypeError), match=message):
        model.fit(SCALED, IRIS[1])
