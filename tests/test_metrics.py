"""Metrics on the host's backends: scikit-learn's values, also where there is little to measure; and what is refused."""

from __future__ import annotations

import warnings

import helpers_metrics
import numpy as np
import pytest

import fastopt as fo
from fastopt import Dense, EarlyStopping, Sequential, _metrics, losses
from fastopt.kernels.formulas import ACTIVATIONS, LOSSES, METRICS, OUTPUTS

X = np.random.default_rng(0).standard_normal((50, 4))


@pytest.mark.parametrize("dtype", ["float32", pytest.param("float64", marks=pytest.mark.repeats)])
@pytest.mark.parametrize("case", list(helpers_metrics.cases()))
def test_metrics_are_scikit_learns(case, backend, dtype):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # losses of outputs of 500 may be infinite
        helpers_metrics.check(case, backend, dtype)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("outputs", [1, 2, 3])
def test_outputs_that_are_nan_are_never_right(loss, outputs, backend):
    if LOSSES[loss].by_row and outputs == 1:
        pytest.skip("needs two classes")
    z = np.tile([[2.0] + [-2.0] * (outputs - 1)], (4, 1))
    hits = np.tile([[1] + [0] * (outputs - 1)], (4, 1))
    y = helpers_metrics.targets_of(loss, hits[:, 0] * 0 if LOSSES[loss].by_row else hits, outputs)
    names = helpers_metrics.metrics_of((loss, "", z, y))
    model = helpers_metrics.model_of((loss, "linear", z, y), backend, "float64", names)
    assert model.evaluate(z, y)["accuracy"] == 1
    model.set_weights([np.eye(outputs) * ([1] * (outputs - 1) + [np.nan])])  # of all rows the last output
    found = model.evaluate(z, y)
    assert found["accuracy"] == pytest.approx(1 - 1 / outputs if LOSSES[loss].hits_by_output(outputs) else 0)
    assert all(np.isnan(found[name]) for name in names if not METRICS[name].of_classes)


@pytest.mark.parametrize("last", ["linear", "sigmoid"])
def test_three_labels_of_a_row_are_three_labels(last, backend):
    y = np.array([[1, 1, 0], [0, 0, 0], [0, 1, 1], [1, 0, 0.0]])
    z = np.array([[2, 1, -1], [-1, -2, 3], [1, 1, 1], [1, -1, -1.0]])
    model = helpers_metrics.model_of(("binary_crossentropy", last, z, y), backend, "float64", ["accuracy"])
    assert model.evaluate(z, y)["accuracy"] == 10 / 12


def test_an_output_of_0_counts_as_the_negative_class(backend):
    for loss, negative in (("hinge", -1), ("perceptron", -1), ("binary_crossentropy", 0)):
        z, y = np.zeros((4, 2)), np.array([[negative, 1], [negative, 1], [1, 1], [negative, negative]], float)
        model = helpers_metrics.model_of((loss, "linear", z, y), backend, "float64", ["accuracy"])
        assert model.evaluate(z, y)["accuracy"] == 0.5


# ---------------------------------------------------------------- targets without classes
REAL = [
    ("mean_squared_error", X[:, :1], "must be 0 and 1; got 0.12"),
    ("mean_absolute_error", X[:, :3], "must be one-hot rows of 0 and 1; got row 0: 0.12"),
    ("huber", np.ones((50, 2)), "must be one-hot rows of 0 and 1; got row 0: 1, 1"),
    ("huber", np.zeros((50, 2)), "must be one-hot rows of 0 and 1; got row 0: 0, 0"),
    ("mean_squared_error", np.arange(50.0), "must be 0 and 1; got 2.0 at index"),
    ("binary_crossentropy", np.full((50, 2), 0.25), "must be 0 and 1; got 0.25 at index"),
]


@pytest.mark.parametrize(("loss", "y", "message"), REAL)
def test_accuracy_of_real_valued_targets_is_refused(loss, y, message, backend):
    model = Sequential([Dense(1 if y.ndim == 1 else y.shape[1])], backend=backend)
    model.compile("sgd", loss, ["accuracy"])
    good = np.eye(model.outputs)[[0] * 50] if model.outputs > 1 else np.ones((50, 1))
    for call in (
        lambda: model.fit(X, y), lambda: model.evaluate(X, y),
        lambda: model.fit(X, good, validation_data=(X, y)),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"the metric accuracy needs classes: .*{message}.*real-valued targets: "):
            call()
    assert not model.built
    with pytest.raises(ValueError, match="validation y must be"):
        model.fit(X, good, validation_data=(X, y))
    model.compile("sgd", loss)
    model.fit(X, y)  # which is fine without it


# ---------------------------------------------------------------- last activations
def _goes(loss, activation):
    row = LOSSES[loss]
    if row.link or activation == "softmax":
        return activation == "linear" or activation == row.link
    return not (row.signs and ACTIVATIONS[activation].uses and activation in ("relu", "sigmoid", "softplus"))


@pytest.mark.parametrize("activation", OUTPUTS)
@pytest.mark.parametrize("loss", LOSSES)
def test_last_activation_fits_the_loss(loss, activation, backend):
    model = Sequential([Dense(3, activation)], backend=backend)
    if _goes(loss, activation):
        model.compile("sgd", loss)
        return
    with pytest.raises(ValueError, match=rf"({loss} .*|as the last .*)(; got {activation}|got {loss})"):
        model.compile("sgd", loss)
    assert model.loss is None


@pytest.mark.parametrize(
    ("loss", "activation"),
    [*((loss, "softmax") for loss in LOSSES), *((loss, "linear") for loss in helpers_metrics.CATEGORICAL)],
)
def test_softmax_of_one_output_is_refused_with_the_way_out(loss, activation, backend):
    model = Sequential([Dense(1, activation)], backend=backend)
    with pytest.raises(ValueError, match=r"Dense\(1, 'sigmoid'\) .* binary_crossentropy, or .*Dense\(2, 'softmax'\)"):
        model.compile("sgd", loss)


# ---------------------------------------------------------------- names
@pytest.mark.parametrize(
    ("given", "loss", "names"),
    [
        ("accuracy", "scce", ("accuracy",)),
        ("acc", "bce", ("accuracy",)),
        ("binary_accuracy", "bce", ("accuracy",)),
        ("sparse_categorical_accuracy", "scce", ("accuracy",)),
        ("Categorical_Accuracy", "cce", ("accuracy",)),
        (["mae"], "mse", ("mean_absolute_error",)),
        (("MSE", "R2", "mae"), "MAE", ("mean_squared_error", "r2", "mean_absolute_error")),
        (["r2_score"], "huber", ("r2",)),
        (["acc", "top_k_categorical_accuracy"], "cce", ("accuracy", "top_5_accuracy")),
        ("sparse_top_k_categorical_accuracy", "scce", ("top_5_accuracy",)),
        (["top_k_accuracy", "Top_2_Accuracy"], "scce", ("top_5_accuracy", "top_2_accuracy")),
        (["Precision_macro", "f1_macro", "recall_macro"], "scce", ("precision_macro", "f1_macro", "recall_macro")),
        (["precision", "f1_score", "Recall"], "bce", ("precision", "f1", "recall")),
        (None, "huber", ()),
        ((), "huber", ()),
        (iter(["mse"]), "huber", ("mean_squared_error",)),
    ],
)
def test_names_of_metrics(given, loss, names):
    model = Sequential([Dense(3)], backend="numpy")
    model.compile("adam", loss, given)
    assert model.metrics == names
    assert model.loss.spec.name == losses.canonical(loss)


def test_aliases_are_in_one_table():
    assert {alias for alias, name in losses.ALIASES.items() if name in METRICS} <= set(_metrics.ALIASES)
    named = {name for name, row in METRICS.items() if row.aliases}
    assert set(_metrics.ALIASES.values()) == named | set(_metrics.FUNCTIONS)
    assert all(losses.get(alias).spec.name == name for alias, name in losses.ALIASES.items())


def test_figures_are_found_by_every_name():
    model = Sequential([Dense(3)], backend="numpy")
    model.compile("adam", "mse", ["mae", "R2"])
    stopper = EarlyStopping("val_MAE", patience=1)
    assert (stopper.monitor, EarlyStopping("val_r2_score").mode) == ("val_mean_absolute_error", "max")
    history = model.fit(X, X[:, :3], validation_split=0.2, callbacks=[stopper])
    assert history["val_mae"] == history["val_mean_absolute_error"]
    assert "mae" in history
    assert 3 not in history
    with pytest.raises(KeyError, match="'acc'; known: loss, mean_absolute"):
        history["acc"]


def test_classes_stand_for_their_defaults():
    model = Sequential([Dense(3)], backend="numpy")
    model.compile(fo.Adam, losses.Huber)
    assert (type(model.optimizer), type(model.loss)) == (fo.Adam, losses.Huber)
    assert fo.get_optimizer(fo.SGD, lr=0.5).lr == 0.5
    for wrong in (fo.Optimizer, int):
        with pytest.raises(TypeError, match="optimizer must be one of"):
            model.compile(wrong, "mse")
    for wrong in (losses.Loss, int):
        with pytest.raises(TypeError, match="loss must be one of"):
            model.compile("adam", wrong)


@pytest.mark.parametrize("loss", [name for name, row in LOSSES.items() if not row.by_row])
def test_the_first_five_are_for_softmax_losses(loss):
    model = Sequential([Dense(8)], backend="numpy")
    with pytest.raises(ValueError, match=f"top_5_accuracy does not go with the loss {loss}; what does: accuracy"):
        model.compile("sgd", loss, ["top_5_accuracy"])


@pytest.mark.parametrize("name", ["top_0_accuracy", "top__accuracy", "top_05_accuracy", "top_-1_accuracy", "top_k"])
def test_names_that_are_none(name):
    known = "accuracy, .*r2, roc_auc, top_K_accuracy of any K"
    with pytest.raises(ValueError, match=f"unknown metric '{name}'; known: {known}"):
        Sequential([Dense(8)], backend="numpy").compile("sgd", "scce", [name])
    assert name not in METRICS
    with pytest.raises(KeyError):
        METRICS[name]


@pytest.mark.parametrize("name", ["precision", "recall", "f1"])
def test_what_tells_two_classes_apart_is_not_for_more(name):
    for loss in ("scce", "cce", "mse"):
        model = Sequential([Dense(3)], backend="numpy")
        with pytest.raises(ValueError, match=f"{name} must have two classes to tell apart; got 3 out.*{name}_macro"):
            model.compile("sgd", loss, [name])
        model.compile("sgd", loss, [f"{name}_macro"])
        Sequential([Dense(2)], backend="numpy").compile("sgd", loss, [name])
    for loss in ("bce", "hinge"):  # each output is two classes by itself
        Sequential([Dense(3)], backend="numpy").compile("sgd", loss, [name])


def test_the_positive_class_of_two_outputs_is_the_second(backend):
    z, y = np.array([[0, 1.0], [0, 1], [0, 1], [1, 0]]), np.array([1, 1, 0, 1])
    case = "sparse_categorical_crossentropy", "linear", z, y
    model = helpers_metrics.model_of(case, backend, "float64", ["recall", "precision", "f1", "recall_macro"])
    found = model.evaluate(z, y)
    assert [found[name] for name in model.metrics] == pytest.approx([2 / 3, 2 / 3, 2 / 3, 1 / 3])


def test_counts_of_many_classes_are_kept_apart(backend):
    """More classes than a row has been seen of; a class that is not there and was not predicted says nothing."""
    y = np.arange(100)
    z = np.zeros((100, 300))
    z[y, np.where(y < 50, y, y + 100)] = 1
    case = "sparse_categorical_crossentropy", "linear", z, y
    model = helpers_metrics.model_of(case, backend, "float64", ["precision_macro", "recall_macro"])
    found = model.evaluate(z, y)
    assert found["precision_macro"] == found["recall_macro"] == pytest.approx(50 / 150)


def test_an_output_that_is_nan_predicts_no_class(backend):
    y = np.array([[0.0], [0], [1], [1]])
    z = np.array([[np.nan], [-1], [np.nan], [1]])
    case = "binary_crossentropy", "linear", np.zeros((4, 1)), y
    names = ["precision", "recall", "f1", "precision_macro", "recall_macro"]
    network = helpers_metrics.model_of(case, backend, "float64", names).network()
    found = network.evaluate(z, y).metrics
    assert [found[name] for name in names] == pytest.approx([1, 1 / 2, 2 / 3, 1, 1 / 2])


def test_the_first_five_of_equal_outputs(backend):
    z, y = np.zeros((8, 8)), np.arange(8)
    case = "sparse_categorical_crossentropy", "linear", z, y
    model = helpers_metrics.model_of(case, backend, "float64", ["top_5_accuracy", "accuracy"])
    assert {name: model.evaluate(z, y)[name] for name in model.metrics} == {"top_5_accuracy": 5 / 8, "accuracy": 1 / 8}
