"""Estimators among those of scikit-learn: pipelines, searches, ensembles, callers of functions, joblib and Dask."""

import pickle
import subprocess
import sys

import numpy as np
import pytest

sklearn = pytest.importorskip("sklearn", minversion="1.6")

from sklearn import datasets, linear_model, neural_network  # noqa: E402
from sklearn.base import clone  # noqa: E402
from sklearn.calibration import CalibratedClassifierCV  # noqa: E402
from sklearn.compose import ColumnTransformer, TransformedTargetRegressor, make_column_transformer  # noqa: E402
from sklearn.ensemble import BaggingClassifier, StackingClassifier, VotingClassifier  # noqa: E402
from sklearn.experimental import enable_halving_search_cv  # noqa: E402, F401
from sklearn.feature_selection import RFE  # noqa: E402
from sklearn.inspection import partial_dependence, permutation_importance  # noqa: E402
from sklearn.model_selection import (  # noqa: E402
    GridSearchCV,
    GroupKFold,
    HalvingRandomSearchCV,
    cross_val_predict,
    cross_val_score,
    cross_validate,
    learning_curve,
)
from sklearn.multiclass import OneVsRestClassifier  # noqa: E402
from sklearn.multioutput import MultiOutputClassifier  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import OneHotEncoder, StandardScaler  # noqa: E402

from fastopt.kernels import cpu  # noqa: E402
from fastopt.kernels.cpu.runtime import launch  # noqa: E402
from fastopt.kernels.cpu.runtime.primitives import INTERPRETED  # noqa: E402
from fastopt.schedules import Constant  # noqa: E402
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


def small(**parameters):
    return MLPClassifier((8,), **{"max_iter": 40, "learning_rate_init": 0.03, "random_state": 0, **parameters})


# ---------------------------------------------------------------- callers that take any classifier
def grid(model):
    found = GridSearchCV(model, {"alpha": [0.0, 0.1], "solver": ["adam", "sgd"]}, cv=2).fit(*IRIS)
    assert found.best_params_.keys() == {"alpha", "solver"}
    return found


def halving(model):
    space = {"learning_rate_init": [0.003, 0.01, 0.03], "hidden_layer_sizes": [(4,), (8,)]}
    search = HalvingRandomSearchCV(
        model, space, resource="max_iter", max_resources=40, min_resources=10, n_candidates=4, cv=2, random_state=0
    )
    assert search.fit(*IRIS).n_resources_ == [10, 30]
    return search


CALLERS = {
    "pipeline": lambda model: make_pipeline(StandardScaler(), model).fit(*IRIS),
    "grid": grid,
    "halving": halving,
    "calibration": lambda model: CalibratedClassifierCV(model, cv=2).fit(*IRIS),
    "bagging": lambda model: BaggingClassifier(model, n_estimators=2, random_state=0).fit(*IRIS),
    "voting": lambda model: VotingClassifier([("a", model), ("b", clone(model))], voting="soft").fit(*IRIS),
    "stacking": lambda model: StackingClassifier([("a", model)], cv=2).fit(*IRIS),
    "one against the rest": lambda model: OneVsRestClassifier(model).fit(*IRIS),
}


@pytest.mark.parametrize("caller", CALLERS)
def test_meta_estimators(caller):
    fitted = CALLERS[caller](small())
    assert fitted.score(*IRIS) > 0.7
    assert fitted.predict_proba(IRIS[0]).shape == (150, 3)


def test_functions_that_validate():
    model = small()
    assert cross_val_score(model, *IRIS, cv=2).mean() > 0.5
    assert set(cross_val_predict(model, *IRIS, cv=2)) <= {0, 1, 2}
    _, train, test = learning_curve(model, *IRIS, train_sizes=[0.5, 1.0], cv=2, shuffle=True, random_state=0)
    assert train.shape == test.shape == (2, 2)
    several = MultiOutputClassifier(model).fit(IRIS[0], np.stack([IRIS[1], IRIS[1] > 0], axis=1))
    assert several.predict(IRIS[0]).shape == (150, 2)
    assert RFE(Perceptron(max_iter=5), n_features_to_select=2).fit(*IRIS).support_.sum() == 2


def test_functions_that_explain():
    model = small().fit(*IRIS)
    assert permutation_importance(model, *IRIS, n_repeats=2, random_state=0).importances.shape == (4, 2)
    assert partial_dependence(model, IRIS[0], [0], grid_resolution=3)["average"].shape == (3, 3)


def test_callers_that_hand_over_rows_of_their_own():
    """As SHAP does: a bound method, given arrays and frames that were made of masks and repeats."""
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(IRIS[0], columns=list("abcd"))
    model = small().fit(frame, IRIS[1])
    predict, expected = model.predict_proba, model.predict_proba(frame)
    background = np.repeat(IRIS[0].mean(axis=0)[np.newaxis], 5, axis=0)
    with pytest.warns(UserWarning, match="feature names"):
        assert predict(background).shape == (5, 3)
    for given in (frame.iloc[::2], frame.iloc[[3, 3, 3]], frame.iloc[5:6], frame.sample(frac=1, random_state=0)):
        np.testing.assert_allclose(predict(given), expected[given.index], rtol=1e-9)
    for values in (IRIS[0].tolist(), np.asfortranarray(IRIS[0]), IRIS[0].astype(object), IRIS[0][:, ::-1][:, ::-1]):
        with pytest.warns(UserWarning, match="feature names"):
            np.testing.assert_allclose(predict(values), expected, rtol=1e-9)


def test_frames_of_several_kinds():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(IRIS[0], columns=list("abcd"))
    frame["kind"] = np.where(frame["a"] > 5.8, "long", "short")
    columns = ColumnTransformer([("numbers", StandardScaler(), list("abcd")), ("words", OneHotEncoder(), ["kind"])])
    labels = np.array(["setosa", "versicolor", "virginica"])[IRIS[1]]
    model = make_pipeline(columns, small(max_iter=100)).fit(frame, pandas.Series(labels))
    assert model.score(frame, labels) > 0.9
    assert set(model.predict(frame)) <= set(labels)
    chosen = make_column_transformer((StandardScaler(), ["a", "c"])).set_output(transform="pandas")
    named = make_pipeline(chosen, small()).fit(frame, IRIS[1])
    assert list(named[-1].feature_names_in_) == ["standardscaler__a", "standardscaler__c"]


def test_polars_frames_keep_names():
    polars = pytest.importorskip("polars")
    frame = polars.DataFrame(IRIS[0], schema=list("abcd"))
    model = small().fit(frame, IRIS[1])
    assert list(model.feature_names_in_) == list("abcd")
    np.testing.assert_array_equal(model.predict(frame), small().fit(*IRIS).predict(IRIS[0]))


def test_weights_and_groups_are_routed():
    weights, groups = np.linspace(0.1, 2, 150), np.arange(150) % 3
    with sklearn.config_context(enable_metadata_routing=True):
        model = small().set_fit_request(sample_weight=True).set_score_request(sample_weight=True)
        routed = cross_validate(
            model, *IRIS, cv=GroupKFold(3), params={"sample_weight": weights, "groups": groups}, return_estimator=True
        )
        piped = make_pipeline(StandardScaler().set_fit_request(sample_weight=False), model)
        piped.fit(*IRIS, sample_weight=weights)
    rows = groups != 0
    alone = small().fit(IRIS[0][rows], IRIS[1][rows], sample_weight=weights[rows])
    assert any(np.array_equal(one.coefs_[0], alone.coefs_[0]) for one in routed["estimator"])
    scaled = StandardScaler().fit_transform(IRIS[0])
    assert np.array_equal(piped[-1].coefs_[0], small().fit(scaled, IRIS[1], sample_weight=weights).coefs_[0])


def test_targets_of_a_regressor_may_be_transformed():
    X, y = IRIS[0][:, :3], np.exp(IRIS[0][:, 3])
    model = MLPRegressor((8,), solver="lbfgs", max_iter=200, random_state=0)
    assert TransformedTargetRegressor(model, func=np.log, inverse_func=np.exp).fit(X, y).score(X, y) > 0.8
    linear = LinearRegression(solver="lbfgs", alpha=0.5).fit(X, y)
    theirs = linear_model.Ridge(alpha=0.5).fit(X, y)
    np.testing.assert_allclose(linear.coef_, theirs.coef_, rtol=1e-3)


# ---------------------------------------------------------------- copies
def test_copies_and_pickles():
    model = small(callbacks=()).fit(*IRIS)
    again = pickle.loads(pickle.dumps(model))
    assert np.array_equal(again.predict_proba(IRIS[0]), model.predict_proba(IRIS[0]))
    for one in (model, again):
        one.partial_fit(*IRIS)
    assert np.array_equal(again.coefs_[0], model.coefs_[0])
    assert all(mine is own for mine, own in zip(again.coefs_, again._model.parameters[::2], strict=True))
    copied = clone(model)
    assert not hasattr(copied, "coefs_")
    assert copied.get_params() == model.get_params()


# ---------------------------------------------------------------- threads, processes, clusters
def threads_seen(monkeypatch):
    """A list of the numbers of threads that kernels may use, as each fit begins."""
    seen, fit = [], MLPClassifier._fit_stochastic

    def watched(self, *args):
        seen.append(cpu.get_num_threads())
        return fit(self, *args)

    monkeypatch.setattr(MLPClassifier, "_fit_stochastic", watched)
    return seen


def test_models_in_joblibs_threads_use_one_thread_each(monkeypatch):
    joblib = pytest.importorskip("joblib")
    monkeypatch.setattr(launch, "_threads", 3)
    seen = threads_seen(monkeypatch)
    alone = cross_val_score(small(), *IRIS, cv=3)
    assert seen == [3, 3, 3]
    with joblib.parallel_config(backend="threading", n_jobs=2):
        assert (cross_val_score(small(), *IRIS, cv=3) == alone).all()
        assert seen[3:] == [1, 1, 1]
        cross_val_score(small(threads=2), *IRIS, cv=3)
    assert seen[6:] == [2, 2, 2]
    assert cpu.get_num_threads() == 3
    small(threads=2).fit(*IRIS).predict(IRIS[0])
    assert seen[9:] == [2]
    for wrong, error in ((0, ValueError), (1.5, TypeError), ("all", TypeError)):
        with pytest.raises(error, match="threads"):
            small(threads=wrong).fit(*IRIS)


@pytest.mark.repeats
def test_models_in_processes_share_the_processors():
    joblib = pytest.importorskip("joblib")
    alone = cross_val_score(small(), *IRIS, cv=3)
    with joblib.parallel_config(backend="loky", n_jobs=2):
        assert (cross_val_score(small(), *IRIS, cv=3) == alone).all()
    with joblib.parallel_config(backend="loky", n_jobs=2, inner_max_num_threads=3):
        said = joblib.Parallel()(joblib.delayed(_share)() for _ in "ab")
    assert said == [3, 3]


def _share():
    from fastopt.sklearn._threads import share

    return share()


@pytest.mark.repeats
@pytest.mark.parametrize("processes", [False, True], ids=["threads", "processes"])
def test_a_search_on_a_dask_cluster(processes):
    joblib = pytest.importorskip("joblib")
    distributed = pytest.importorskip("dask.distributed")
    space = {"alpha": [0.0, 0.1], "learning_rate_init": [0.01, 0.03]}
    alone = GridSearchCV(small(), space, cv=2).fit(*IRIS)
    cluster = distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=processes, dashboard_address=None, silence_logs=50
    )
    with cluster, distributed.Client(cluster), joblib.parallel_config(backend="dask"):
        found = GridSearchCV(small(), space, cv=2).fit(*IRIS)
    np.testing.assert_array_equal(found.cv_results_["mean_test_score"], alone.cv_results_["mean_test_score"])
    assert np.array_equal(found.best_estimator_.coefs_[0], alone.best_estimator_.coefs_[0])


# ---------------------------------------------------------------- parameters that scikit-learn's classes have
PAIRS = [
    (MLPClassifier, neural_network.MLPClassifier),
    (MLPRegressor, neural_network.MLPRegressor),
    (LogisticRegression, linear_model.LogisticRegression),
    (LinearRegression, linear_model.LinearRegression),
    (Perceptron, linear_model.Perceptron),
]


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_parameters_and_defaults_are_scikit_learns(ours, theirs):
    mine, its = ours().get_params(), theirs().get_params()
    its.pop("multi_class", None)  # has gone in scikit-learn 1.8
    if its.get("penalty") == "l2":
        its.update(penalty="deprecated", l1_ratio=0.0)  # what stands for it since 1.8
    assert mine | its == mine
    methods = {name for name in dir(theirs) if not name.startswith("_") and callable(getattr(theirs, name))}
    assert not methods - set(dir(ours)) - {"set_callbacks"}


@pytest.mark.parametrize("parameters", [{"tol": None}, {"tol": None, "n_iter_no_change": 1}, {"tol": 10.0}])
def test_without_tol_all_iterations_are_done(parameters):
    model = Perceptron(max_iter=9, **parameters).fit(*IRIS)
    assert model.n_iter_ == (9 if parameters["tol"] is None else 6)


def test_a_perceptron_learns_in_parts():
    X, y = IRIS
    parts = Perceptron(shuffle=False)
    for _ in range(3):
        parts.partial_fit(X, y, classes=np.arange(3))
    theirs = linear_model.Perceptron(shuffle=False)
    for _ in range(3):
        theirs.partial_fit(X, y, classes=np.arange(3))
    np.testing.assert_allclose(parts.coef_, theirs.coef_, rtol=1e-9)


@pytest.mark.skipif(sklearn.__version__ < "1.7", reason="scikit-learn's MLPRegressor has losses since 1.7")
@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
@pytest.mark.parametrize("columns", [slice(3, 4), slice(2, 4)])
def test_poisson_regression_and_curves_of_several_outputs_are_scikit_learns(solver, columns):
    X, y = IRIS[0][:, :2], np.floor(3 * IRIS[0][:, columns]).squeeze()
    weights = np.linspace(0.5, 2, 150)
    settings = {"hidden_layer_sizes": (5,), "solver": solver, "shuffle": False, "random_state": 0, "batch_size": 47}
    for loss in ("poisson", "squared_error"):
        ours, theirs = (
            cls(loss=loss, alpha=0.1, max_iter=5, **settings).fit(X, y, sample_weight=weights)
            for cls in (MLPRegressor, neural_network.MLPRegressor)
        )
        np.testing.assert_allclose(ours.predict(X), theirs.predict(X), rtol=1e-7)
        np.testing.assert_allclose(
            getattr(ours, "loss_curve_", ours.loss_), getattr(theirs, "loss_curve_", theirs.loss_), rtol=1e-9
        )
        assert ours.out_activation_ == theirs.out_activation_


def test_a_warm_start_counts_on_from_a_training_that_ended():
    settings = {"shuffle": False, "random_state": 0, "warm_start": True, "tol": 0.05, "n_iter_no_change": 2}
    ours, theirs = (cls((4,), **settings) for cls in (MLPClassifier, neural_network.MLPClassifier))
    counts = [[model.fit(*IRIS).n_iter_ for _ in range(3)] for model in (ours, theirs)]
    assert counts[0] == counts[1]
    assert counts[0][1] < counts[0][0]


def test_a_schedule_is_the_rate_of_several_outputs_as_a_number_is():
    settings = {"solver": "sgd", "max_iter": 5, "random_state": 0}
    X, y = IRIS[0][:, :2], IRIS[0][:, 1:]
    rate = np.float32(0.01)
    rates = (float(rate), rate, Constant(float(rate)))
    numbers, narrow, schedule = (MLPRegressor((4,), learning_rate_init=rate, **settings).fit(X, y) for rate in rates)
    assert np.array_equal(schedule.coefs_[0], numbers.coefs_[0])
    assert np.array_equal(narrow.coefs_[0], numbers.coefs_[0])


@pytest.mark.repeats
def test_a_weighted_perceptron_is_read_in_another_process(tmp_path):
    model = Perceptron(max_iter=3).fit(*IRIS, sample_weight=np.linspace(0.5, 2, 150))
    (tmp_path / "model").write_bytes(pickle.dumps(model))
    code = "import pickle, sys; print(pickle.load(open(sys.argv[1], 'rb')).coef_.tolist())"
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "model"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(model.coef_.tolist())


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"max_fun": 0}, "max_fun must be at least 1"),
        ({"epsilon": 0}, "epsilon must be above 0"),
        ({"learning_rate_init": 0}, "learning_rate_init must be above 0"),
        ({"learning_rate_init": None}, "learning_rate_init must be a number"),
        ({"verbose": "yes"}, "verbose must be True, False"),
        ({"beta_2": 1.0}, "beta_2 must be in"),
    ],
)
def test_parameters_that_scikit_learn_refuses_are_refused(parameters, message):
    with pytest.raises((ValueError, TypeError), match=message):
        small(**parameters).fit(*IRIS)
    with pytest.raises(ValueError, match="y must be at least 0"):
        MLPRegressor(loss="poisson").fit(IRIS[0], IRIS[1] - 1)
