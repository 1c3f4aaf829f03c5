"""scikit-learn: perceptrons from it and to it, against its own predictions."""

import numpy as np
import pytest
from helpers_export import assert_close, averaged, classifier, plain, rows

import fastopt as fo
from fastopt.export import from_sklearn, to_sklearn

neural_network = pytest.importorskip("sklearn.neural_network")
X = rows(40) - 100
LABELS = {
    "two": np.where(X[:, 0] > 0, "yes", "no"),
    "three": np.digitize(X[:, 0], [-1, 1]) * 10,
    "several": (X[:, :3] > 0).astype(int),
}


@pytest.mark.parametrize("activation", ["identity", "logistic", "tanh", "relu"])
@pytest.mark.parametrize("targets", LABELS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_classifiers_from_scikit_learn(targets, activation, dtype):
    x = X.astype(dtype)
    mlp = neural_network.MLPClassifier((5, 4), activation, max_iter=3, random_state=0)
    with pytest.warns(UserWarning, match="reached"):
        mlp.fit(x, LABELS[targets])
    model = from_sklearn(mlp)
    model.backend = "numpy"
    assert model.dtype == dtype
    found = model.predict_proba(x)
    np.testing.assert_allclose(found, mlp.predict_proba(x), rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(model.predict_classes(x), mlp.predict(x))


def test_regressors_from_scikit_learn_and_back():
    mlp = neural_network.MLPRegressor(
        hidden_layer_sizes=(5,), activation="tanh", max_iter=30, random_state=0, solver="lbfgs", tol=1
    )
    mlp.fit(X.astype(np.float64), X[:, :2])
    model = from_sklearn(mlp)
    model.backend = "numpy"
    assert_close(model.predict(X), mlp.predict(X.astype(np.float64)))
    model.target_scale = ([5.0, -5.0], [2.0, 0.5])
    np.testing.assert_allclose(to_sklearn(model).predict(X), model.predict(X), rtol=1e-6)


def test_estimators_of_fastopt():
    from fastopt.sklearn import MLPClassifier

    mlp = MLPClassifier((6,), "gelu", dropout=0.1, backend="numpy", max_iter=2, random_state=0)
    with pytest.warns(UserWarning, match="converged"):
        mlp.fit(X, LABELS["three"])
    model = from_sklearn(mlp)
    assert [getattr(layer, "activation", None) for layer in model.layers] == ["gelu", "softmax"]
    np.testing.assert_array_equal(model.predict_classes(X), mlp.predict(X))


def test_names_of_columns():
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame(X.astype(np.float64), columns=list("abcde"))
    mlp = neural_network.MLPRegressor(hidden_layer_sizes=(), max_iter=3, solver="lbfgs", tol=1e9).fit(table, X[:, 0])
    model = from_sklearn(mlp)
    assert model.feature_names == tuple("abcde")
    again = to_sklearn(model)
    assert again.hidden_layer_sizes == ()
    np.testing.assert_allclose(again.predict(table), mlp.predict(table), rtol=1e-12)


@pytest.mark.parametrize("in_order", [True, False])
@pytest.mark.parametrize("name", ["softmax", "logits", "softmax of two", "sigmoid", "one logit"])
def test_classifiers_to_scikit_learn(name, in_order):
    count = 3 if name in ("softmax", "logits") else 2
    labels = ["a", "b", "c"][:count] if in_order else ["c", "a", "b"][:count]
    model = classifier(name, labels, prepares=False, dtype="float64")
    mlp = to_sklearn(model)
    assert mlp.classes_.tolist() == sorted(labels)
    order = np.argsort(labels)
    np.testing.assert_allclose(mlp.predict_proba(X), model.predict_proba(X)[:, order], rtol=1e-10, atol=1e-13)
    np.testing.assert_array_equal(mlp.predict(X), model.predict_classes(X))
    assert mlp.n_features_in_ == 5
    assert mlp.hidden_layer_sizes == (6,)
    mlp.partial_fit(X, mlp.predict(X))
    assert mlp.n_iter_ == 1
    assert mlp.score(X, model.predict_classes(X)) > 0.9


def test_labels_are_class_numbers_where_there_are_no_names():
    mlp = to_sklearn(classifier("softmax", prepares=False))
    assert mlp.classes_.tolist() == [0, 1, 2]


@pytest.mark.parametrize("last", ["sigmoid", "linear"])
def test_several_labels_to_scikit_learn_and_back(last):
    model = plain(fo.Dense(6, "relu"), fo.Dense(3, last))
    model.compile("adam", "binary_crossentropy")
    mlp = to_sklearn(model)
    found = mlp.predict(X)
    np.testing.assert_array_equal(found, model.predict_classes(X))
    assert 0 < found.mean() < 1
    assert found.shape == (40, 3)
    np.testing.assert_allclose(mlp.predict_proba(X), model.predict_proba(X), rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(from_sklearn(mlp).predict_classes(X), found)
    mlp.partial_fit(X, LABELS["several"])
    assert mlp.predict(X).shape == (40, 3)


def test_layers_without_bias_and_averages():
    model = plain(fo.Dense(4, "relu", use_bias=False), fo.Dropout(0.5), fo.Dense(2, use_bias=False))
    np.testing.assert_allclose(to_sklearn(model).predict(X), model.predict(X), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="cannot carry over the preparation of data: put a StandardScaler"):
        to_sklearn(averaged())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: plain(fo.Dense(4), fo.BatchNorm(name="norm"), fo.Dense(2)), r"layer norm \(BatchNorm\)"),
        (lambda: plain(fo.Dense(4, "gelu"), fo.Dense(2)), r"the activations \['gelu'\]"),
        (lambda: plain(fo.Dense(4, "relu"), fo.Dense(4, "tanh"), fo.Dense(2)), r"the activations \['relu', 'tanh'\]"),
        (lambda: plain(fo.Dense(4), fo.Dense(2, "relu")), "the last activation 'relu'"),
        (lambda: classifier("scores", prepares=False), "the last activation 'linear'"),
    ],
)
def test_models_that_are_no_perceptrons(make, message):
    with pytest.raises(ValueError, match=f"to_sklearn cannot carry over {message}"):
        to_sklearn(make())


def test_what_does_not_come_from_scikit_learn():
    estimators = pytest.importorskip("fastopt.sklearn")
    with pytest.raises(TypeError, match="mlp must be an MLPClassifier or MLPRegressor; got"):
        from_sklearn(3)
    with pytest.raises(TypeError, match="mlp must be an MLPClassifier or MLPRegressor; got a LogisticRegression"):
        from_sklearn(estimators.LogisticRegression().fit([[0.0], [1.0]], [0, 1]))
    with pytest.raises(TypeError, match="mlp must be an MLPClassifier or MLPRegressor; got"):
        from_sklearn(estimators.MLPClassifier)
    with pytest.raises(ValueError, match="mlp must be fitted"):
        from_sklearn(neural_network.MLPRegressor())
    mlp = neural_network.MLPRegressor(hidden_layer_sizes=(), max_iter=3, solver="lbfgs", tol=1e9).fit(
        X.astype(np.float64), X[:, 0]
    )
    mlp.out_activation_ = "exp"
    with pytest.raises(ValueError, match="from_sklearn cannot carry over the activation 'exp'"):
        from_sklearn(mlp)
