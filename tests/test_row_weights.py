"""sample_weight and class_weight of `Sequential`: scikit-learn's figures, rows given several times, what is refused."""

from __future__ import annotations

import logging
from typing import Any

import helpers_metrics
import numpy as np
import pandas as pd
import pytest

import fastopt as fo
from fastopt.kernels.formulas import LOSSES
from fastopt.models import _row_weights

RNG = np.random.default_rng(3)
X = RNG.standard_normal((60, 4))
WEIGHTS = RNG.random(60) * (RNG.random(60) > 0.3)
COUNTS = RNG.integers(0, 3, 60)
# Cases that say something of each way to count; the others differ in outputs alone. Without rows of weight 0, one has
# an output with errors up to 2e-160: their squares are denormal, so that r2 on the CPU takes it to be exact.
USED = ("-3-many-random", "-1-many-random", "-3-many-ties", "-constant output-near", "-one row-right")
CASES = [
    pytest.param(*case.values, id=case.id, marks=[pytest.mark.repeats] * all(part not in case.id for part in USED))
    for case in helpers_metrics.cases()
    if case.id != "categorical_crossentropy-softmax-8-one class-large"
]


def targets(loss: str, outputs: int, rows: int = 60) -> np.ndarray:
    classes = np.random.default_rng(5).integers(0, max(outputs, 2), rows)
    if loss in helpers_metrics.NUMBERS:
        return np.random.default_rng(5).standard_normal((rows, outputs))
    return helpers_metrics.targets_of(loss, classes if outputs > 1 else classes[:, None], outputs)


def model_for(backend: str, loss: str, outputs: int = 3, metrics: Any = (), **options: Any) -> fo.Sequential:
    last = LOSSES[loss].link or "linear"
    layers = [fo.Dense(5, "tanh"), fo.Dense(outputs, last)]
    model = fo.Sequential(layers, seed=1, backend=backend, **{"dtype": "float64", **options})
    model.compile(fo.Adam(lr=0.05), loss, metrics)
    return model


def same(a: fo.Sequential, b: fo.Sequential) -> bool:
    return all(p.tobytes() == q.tobytes() for p, q in zip(a.get_weights(), b.get_weights(), strict=True))


# ---------------------------------------------------------------- figures
@pytest.mark.parametrize("case", CASES)
def test_metrics_are_scikit_learns(case, backend):
    loss, last, z, y = case
    weights = np.random.default_rng(1).random(len(z)) * (np.arange(len(z)) % 3 != 1)
    helpers_metrics.check((loss, last, z, y), backend, "float64", weights)


def test_losses_are_scikit_learns(backend):
    metrics = pytest.importorskip("sklearn.metrics")
    z = RNG.standard_normal((60, 1))
    for loss, y, wanted in (
        ("mean_squared_error", X[:, :1], lambda t: metrics.mean_squared_error(t, z, sample_weight=WEIGHTS)),
        ("mean_absolute_error", X[:, :1], lambda t: metrics.mean_absolute_error(t, z, sample_weight=WEIGHTS)),
        ("quantile", X[:, :1], lambda t: metrics.mean_pinball_loss(t, z, sample_weight=WEIGHTS)),
        ("hinge", np.sign(X[:, :1]), lambda t: metrics.hinge_loss(t[:, 0], z[:, 0], sample_weight=WEIGHTS)),
        (
            "binary_crossentropy",
            (X[:, :1] > 0).astype(float),
            lambda t: metrics.log_loss(t[:, 0], 1 / (1 + np.exp(-z[:, 0])), sample_weight=WEIGHTS),
        ),
    ):
        model = helpers_metrics.model_of((loss, "linear", z, y), backend, "float64", [])
        assert model.evaluate(z, y, 7, sample_weight=WEIGHTS)["loss"] == pytest.approx(wanted(y), rel=1e-9)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_weight_is_a_row_given_so_many_times(loss, backend):
    """In full batches, with validation: everything that `fit` says and leaves."""
    y, rows = targets(loss, 3), np.repeat(np.arange(60), COUNTS)
    by_weight, by_rows = model_for(backend, loss), model_for(backend, loss)
    options = {"epochs": 3, "batch_size": 1000, "shuffle": False}
    validation = X[:30], y[:30], COUNTS[:30]
    repeated = np.repeat(np.arange(30), COUNTS[:30])
    found = by_weight.fit(X, y, **options, sample_weight=COUNTS, validation_data=validation)
    wanted = by_rows.fit(X[rows], y[rows], **options, validation_data=(X[repeated], y[repeated]))
    for name in ("loss", "val_loss"):
        assert found[name] == pytest.approx(wanted[name], rel=1e-9)
    np.testing.assert_allclose(by_weight.predict(X), by_rows.predict(X), rtol=1e-7)
    figures = by_weight.evaluate(X, y, 16, sample_weight=COUNTS)
    assert figures == pytest.approx(by_weight.evaluate(X[rows], y[rows], 16), rel=1e-9)


def test_the_loss_of_an_epoch_is_weighted_over_all_rows(backend):
    """That of a step over the rows of the step."""
    y = targets("mean_squared_error", 2)
    model = model_for(backend, "mean_squared_error", 2)
    model.compile(fo.SGD(lr=0.0), "mean_squared_error", ["mean_squared_error"])
    of_row = ((model.predict(X) - y) ** 2).mean(axis=1)
    weights = np.where(np.arange(60) // 8 == 2, 0.0, WEIGHTS)  # the third step has none
    history = model.fit(X, y, batch_size=8, shuffle=False, sample_weight=weights, verbose=0)
    parts = [slice(i, i + 8) for i in range(0, 60, 8)]
    wanted = [np.average(of_row[p], weights=weights[p]) if weights[p].any() else 0.0 for p in parts]
    assert history.step_losses == pytest.approx(np.array(wanted), rel=1e-9)
    assert history["loss"] == pytest.approx([np.average(of_row, weights=weights)], rel=1e-9)
    assert history["mean_squared_error"] == pytest.approx(history["loss"], rel=1e-9)


def test_an_epoch_without_weight(backend):
    """It ends before the first row that has one: its loss is 0, and its metrics are NaN."""
    y, weights = targets("mean_squared_error", 1), np.where(np.arange(60) < 24, 0.0, 1.0)
    model = model_for(backend, "mean_squared_error", 1, ["r2", "mean_absolute_error"])
    options = {"batch_size": 8, "shuffle": False, "sample_weight": weights}
    history = model.fit(X, y, **options, max_steps=2)
    assert history["loss"] == [0]
    assert np.isnan([history["r2"], history["mean_absolute_error"]]).all()
    assert same(model, model_for(backend, "mean_squared_error", 1, inputs=4))
    model = model_for(backend, "mean_squared_error", 1, ["mean_absolute_error"])
    history = model.fit(X, y, epochs=2, **options, steps_per_epoch=3)
    assert history["loss"][0] == 0 < history["loss"][1]
    assert np.isfinite(history["mean_absolute_error"][1])


@pytest.mark.parametrize("accumulate", [1, 3])
def test_callbacks_change_nothing(accumulate, backend):
    """Neither do those that are called within an epoch, which see the weighted mean of their steps."""

    class Watch(fo.Callback):
        every_steps = 2

        def __init__(self):
            self.losses = []

        def on_step_end(self, model, step, logs):
            self.losses.append(logs["loss"])

    y, options = targets("huber", 1), {"epochs": 3, "batch_size": 4, "accumulate": accumulate}
    models = [model_for(backend, "huber", 1, ["r2", "mean_absolute_error"], dtype="float32") for _ in range(3)]
    weights = np.where(np.arange(60) < 20, 0.0, WEIGHTS)
    watch = Watch()
    histories = [
        model.fit(X, y, **options, sample_weight=weights, callbacks=callbacks)
        for model, callbacks in zip(models, ([], [fo.Callback()], [watch]), strict=True)
    ]
    assert same(models[0], models[1])
    assert same(models[0], models[2])
    for name in ("loss", "r2", "mean_absolute_error"):
        assert histories[0][name] == histories[1][name]
        assert histories[0][name] == pytest.approx(histories[2][name], rel=1e-12)
    assert len(watch.losses) == 3 * (-(-60 // (4 * accumulate))) // 2
    assert np.isfinite(watch.losses).all()


def test_a_stopper_reads_the_weighted_validation(backend):
    y = targets("mean_squared_error", 1)
    stopper = fo.EarlyStopping("val_mean_squared_error", patience=50)
    model = model_for(backend, "mean_squared_error", 1, ["mean_squared_error"])
    model.fit(X, y, 4, validation_data=(X, y, WEIGHTS), callbacks=[stopper])
    plain, weighted = model.evaluate(X, y), model.evaluate(X, y, sample_weight=WEIGHTS)
    assert model.history["val_mean_squared_error"][-1] == pytest.approx(weighted["mean_squared_error"], rel=1e-12)
    assert plain["mean_squared_error"] != pytest.approx(weighted["mean_squared_error"], rel=1e-3)


def test_roc_auc_and_functions(backend):
    metrics = pytest.importorskip("sklearn.metrics")
    seen = []

    def without(y_true, y_pred):
        seen.append(len(y_true))
        return 0.5

    def balanced(y_true, y_pred, sample_weight=None):
        return metrics.balanced_accuracy_score(y_true, y_pred.argmax(axis=1), sample_weight=sample_weight)

    y = targets("sparse_categorical_crossentropy", 3)
    model = model_for(backend, "sparse_categorical_crossentropy", 3, ["roc_auc", without, balanced])
    weights = WEIGHTS.round(1)
    history = model.fit(X, y, validation_data=(X, y, weights), verbose=0)
    p, used = model.predict(X), weights > 0
    wanted = {
        "roc_auc": metrics.roc_auc_score(
            y[used], p[used], multi_class="ovr", sample_weight=weights[used], average="macro"
        ),
        "balanced": metrics.balanced_accuracy_score(y, p.argmax(axis=1), sample_weight=weights),
    }
    for name, value in wanted.items():
        assert history[f"val_{name}"] == pytest.approx([value], rel=1e-9)
        assert model.evaluate(X, y, sample_weight=weights)[name] == pytest.approx(value, rel=1e-9)
    assert seen == [60] * 3


@pytest.mark.parametrize("ties", [False, True])
def test_roc_auc_of_two_classes(ties):
    metrics = pytest.importorskip("sklearn.metrics")
    y, scores = RNG.integers(0, 2, 60), RNG.random(60).round(1 if ties else 9)
    wanted = metrics.roc_auc_score(y, scores, sample_weight=WEIGHTS)
    assert fo._metrics.roc_auc(y, scores, WEIGHTS) == pytest.approx(wanted, rel=1e-12)
    assert fo._metrics.roc_auc(y, scores, np.full(60, 3.0)) == pytest.approx(fo._metrics.roc_auc(y, scores), rel=1e-12)
    assert np.isnan(fo._metrics.roc_auc(y, scores, y))  # no negative row is left


# ---------------------------------------------------------------- classes
LABELS = {
    "numbers": ("sparse_categorical_crossentropy", 3, np.array([0, 1, 2])),
    "gaps": ("sparse_categorical_crossentropy", 3, np.array([3, 5, 9])),
    "strings": ("sparse_categorical_crossentropy", 3, np.array(["a", "b", "c"])),
    "two strings": ("binary_crossentropy", 1, np.array(["no", "yes"])),
    "bools": ("binary_crossentropy", 1, np.array([False, True])),
    "signs": ("hinge", 1, np.array([-1, 1])),
    "0 and 1 as signs": ("perceptron", 1, np.array([0, 1])),
    "one-hot": ("categorical_crossentropy", 3, np.eye(3)),
}


@pytest.mark.parametrize("how", ["mapping", "balanced", "times sample_weight"])
@pytest.mark.parametrize("case", LABELS)
def test_class_weight(case, how, backend):
    """It has the bits of the sample_weight that scikit-learn makes of it."""
    loss, outputs, classes = LABELS[case]
    codes = np.random.default_rng(8).choice(len(classes), 60, p=[0.7, 0.3] if len(classes) == 2 else [0.6, 0.3, 0.1])
    keys = range(3) if case == "one-hot" else classes.tolist()
    weight: Any = dict(zip(keys, (0.25, 3.0), strict=False))  # the third is 1
    of_rows = np.array([0.25, 3.0, 1.0])[codes]
    if how == "balanced":
        weight, counts = how, np.bincount(codes)
        of_rows = (60 / (len(classes) * counts))[codes]
    sample_weight = WEIGHTS if how.startswith("times") else None
    given, wanted = model_for(backend, loss, outputs), model_for(backend, loss, outputs)
    given.fit(X, classes[codes], 2, 8, class_weight=weight, sample_weight=sample_weight)
    wanted.fit(X, classes[codes], 2, 8, sample_weight=of_rows if sample_weight is None else WEIGHTS * of_rows)
    assert same(given, wanted)
    other = model_for(backend, loss, outputs)
    other.fit(X, classes[codes], 2, 8, sample_weight=sample_weight)
    assert not same(given, other)


def test_balanced_is_scikit_learns():
    utils = pytest.importorskip("sklearn.utils.class_weight")
    y = RNG.choice(4, 60, p=[0.5, 0.3, 0.2, 0.0])  # one class does not occur
    loss, rows = fo.losses.get("sparse_categorical_crossentropy"), np.arange(60)
    found = _row_weights.of_classes("balanced", loss, y, np.arange(4), rows)
    np.testing.assert_allclose(found, utils.compute_sample_weight("balanced", y), rtol=1e-15)


def test_balanced_counts_the_rows_that_are_trained_on(backend):
    """Neither those held out nor those of weight 0."""
    y = (np.arange(60) % 3 == 0).astype(int)
    weights = np.where(np.arange(60) < 9, 0.0, 1.0)
    options = {"validation_split": 0.25, "shuffle": False, "batch_size": 8}
    given, wanted = (model_for(backend, "binary_crossentropy", 1) for _ in range(2))
    given.fit(X, y, **options, class_weight="balanced", sample_weight=weights)
    used = y[9:45]
    by_hand = weights * (36 / (2 * np.bincount(used)))[y]
    history = wanted.fit(X, y, **options, sample_weight=np.where(np.arange(60) < 45, by_hand, 1.0))
    assert same(given, wanted)
    assert given.history["val_loss"] == history["val_loss"]  # which class_weight leaves alone


# ---------------------------------------------------------------- rows
def test_rows_held_out_keep_their_weights(backend):
    y = targets("mean_squared_error", 1)
    model = model_for(backend, "mean_squared_error", 1)
    history = model.fit(X, y, validation_split=0.25, shuffle=False, sample_weight=WEIGHTS)
    wanted = model.evaluate(X[45:], y[45:], sample_weight=WEIGHTS[45:])["loss"]
    assert history["val_loss"] == pytest.approx([wanted], rel=1e-12)
    other = model_for(backend, "mean_squared_error", 1)
    other.fit(X[:45], y[:45], shuffle=False, sample_weight=WEIGHTS[:45])
    assert same(model, other)


def test_rows_with_gaps_are_skipped_with_their_weights(backend, caplog):
    y, x = targets("mean_squared_error", 1), X.copy()
    x[[3, 40], 1], y[7] = np.nan, np.nan
    good = np.isfinite(x).all(axis=1) & np.isfinite(y[:, 0])
    model, other = (model_for(backend, "mean_squared_error", 1) for _ in range(2))
    with caplog.at_level(logging.ERROR, "fastopt"):
        model.fit(x, y, nan="skip", sample_weight=WEIGHTS, validation_data=(x, y, WEIGHTS))
    other.fit(x[good], y[good], sample_weight=WEIGHTS[good], validation_data=(x[good], y[good], WEIGHTS[good]))
    assert same(model, other)
    assert model.history["val_loss"] == other.history["val_loss"]
    with caplog.at_level(logging.ERROR, "fastopt"):
        found = model.evaluate(x, y, nan="skip", sample_weight=WEIGHTS)
    assert found == model.evaluate(x[good], y[good], sample_weight=WEIGHTS[good])


def test_nothing_is_learnt_from_rows_of_weight_0():
    y, x = targets("mean_squared_error", 1), X.copy()
    used = WEIGHTS > 0
    x[~used], y[~used] = 1e6, -1e6
    layers = [fo.Normalization(), fo.Dense(1)]
    model, other = (fo.Sequential(layers, seed=1, dtype="float64") for _ in range(2))
    options = {"standardize_targets": True, "batch_size": 100, "shuffle": False}
    for one, rows, weights in ((model, slice(None), used), (other, used, None)):
        one.compile("sgd", "mean_squared_error")
        one.fit(x[rows], y[rows], **options, sample_weight=weights)
    np.testing.assert_array_equal(model.target_scale, other.target_scale)
    np.testing.assert_array_equal(model.statistics["normalization_1"], other.statistics["normalization_1"])
    np.testing.assert_allclose(model.get_weights()[0], other.get_weights()[0], rtol=1e-9)


@pytest.mark.parametrize(
    "given",
    [WEIGHTS.tolist(), pd.Series(WEIGHTS), WEIGHTS.reshape(-1, 1), pd.DataFrame({"w": WEIGHTS}), WEIGHTS[::-1][::-1]],
    ids=["list", "series", "column", "table", "view"],
)
def test_forms_of_weights(given):
    y = targets("mean_squared_error", 1)
    model, other = (model_for("cpu", "mean_squared_error", 1) for _ in range(2))
    model.fit(X, y, sample_weight=given)
    other.fit(X, y, sample_weight=WEIGHTS)
    assert same(model, other)
    counted, by_number = (model_for("cpu", "mean_squared_error", 1) for _ in range(2))
    counted.fit(X, y, sample_weight=COUNTS > 0)
    by_number.fit(X, y, sample_weight=(COUNTS > 0).astype(np.float32))
    assert same(counted, by_number)


def test_weights_below_the_smallest_normal_number_are_0(backend):
    y = targets("mean_squared_error", 1)
    tiny = np.where(WEIGHTS > 0, WEIGHTS, 1e-39)
    found = [
        model_for(backend, "mean_squared_error", 1, dtype="float32").evaluate(X, y, sample_weight=w)
        for w in (tiny, WEIGHTS)
    ]
    assert found[0] == found[1]


# ---------------------------------------------------------------- errors
REFUSED = {
    "sample_weight must have a weight for each of the 60 rows; got shape (59,)": {"sample_weight": np.ones(59)},
    "sample_weight must have a weight for each of the 60 rows; got shape (60, 2)": {"sample_weight": np.ones((60, 2))},
    "sample_weight must not be negative; got -1 in row 2": {"sample_weight": [1, 1, -1] + 57 * [1]},
    "sample_weight": {"sample_weight": [np.nan] + 59 * [1]},
    "sample_weight must be above 0 in some row; got 0 in all 60": {"sample_weight": np.zeros(60)},
    "sample_weight must be above 0 in some row; got 0 in all 45": {
        "sample_weight": np.arange(60) >= 45, "validation_split": 0.25, "shuffle": False,
    },
    "sample_weight of the rows held out must be above 0 in some row; got 0 in all 15": {
        "sample_weight": np.arange(60) < 45, "validation_split": 0.25, "shuffle": False,
    },
    "sample_weight times class_weight must be above 0 in some row": {"class_weight": {0: 0, 1: 0, 2: 0}},
    "sample_weight times class_weight must be numbers of float32": {"sample_weight": np.full(60, 1e300)},
    "validation sample_weight must not be negative; got -1 in row 0": {"validation_data": (X, None, np.full(60, -1))},
    "the keys of class_weight must be among the classes 0, 1, 2; got 7 in row 1": {"class_weight": {0: 1, 7: 2}},
    "class_weight of 1 must be": {"class_weight": {1: -0.5}},
    "unknown class_weight 'balance'; known: balanced": {"class_weight": "balance"},
}  # fmt: skip


@pytest.mark.parametrize("message", REFUSED)
def test_refused_before_anything_changes(message, backend):
    y = targets("sparse_categorical_crossentropy", 3)
    model = model_for(backend, "sparse_categorical_crossentropy", dtype="float32")
    options = dict(REFUSED[message])
    if "validation_data" in options:
        x, _, w = options["validation_data"]
        options["validation_data"] = x, y, w
    with pytest.raises(ValueError) as error:
        model.fit(X, y, **options)
    assert str(error.value).startswith(message)
    assert (model.inputs, model.classes, model.epochs_done, model.history) == (None, None, 0, None)


def test_refused_by_evaluate():
    y = targets("mean_squared_error", 1)
    model = model_for("cpu", "mean_squared_error", 1)
    for weights, message in (
        (np.zeros(60), "sample_weight must be above 0 in some row"),
        (np.ones(7), "sample_weight must have a weight for each of the 60 rows"),
        (np.full(60, np.inf), "sample_weight"),
    ):
        with pytest.raises(ValueError, match=message):
            model.evaluate(X, y, sample_weight=weights)
    with pytest.raises(TypeError, match="sample_weight"):
        model.evaluate(X, y, sample_weight=["a"] * 60)


@pytest.mark.parametrize(
    ("loss", "outputs"), [("mean_squared_error", 1), ("binary_crossentropy", 3), ("hinge", 2), ("huber", 3)]
)
def test_class_weight_needs_classes(loss, outputs):
    y = targets(loss, outputs)
    with pytest.raises(ValueError, match="class_weight needs one class a row: .* give sample_weight"):
        model_for("cpu", loss, outputs).fit(X, y, class_weight="balanced")


def test_class_weight_of_probabilities():
    y = np.linspace(0, 1, 60)
    with pytest.raises(ValueError, match="class_weight needs one class a row"):
        model_for("cpu", "binary_crossentropy", 1).fit(X, y, class_weight={0: 1, 1: 2})


def test_wrong_kinds():
    y = targets("mean_squared_error", 1)
    model = model_for("cpu", "mean_squared_error", 1)
    with pytest.raises(TypeError, match="class_weight must be .balanced., or a mapping"):
        model.fit(X, y, class_weight=[1, 2])
    with pytest.raises(TypeError, match=r"validation_data must be a tuple \(x, y\) or \(x, y, sample_weight\)"):
        model.fit(X, y, validation_data=(X, y, WEIGHTS, WEIGHTS))
    model.fit(X, y, validation_data=(X, y, None))
