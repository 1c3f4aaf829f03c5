"""Losses of class numbers that users define: functions of the logarithm of the right class's probability."""

from __future__ import annotations

import copy
import io
import linecache
import math
import pickle

import numpy as np
import pytest
from helpers_formulas import forget_formulas, function_of
from helpers_model import CROSS_ENTROPY, assert_same, blobs
from hypothesis import given, settings
from hypothesis import strategies as st

import fastopt as fo
from fastopt.kernels.formulas import defined
from fastopt.kernels.language.source import FormulaError

X, Y = blobs(47)


def cross(log_p):
    return -log_p


def cross_slope(log_p):
    return -1


def focal(log_p, gamma):
    """Lin et al. 2017."""
    return -((1 - math.exp(log_p)) ** gamma) * log_p


def focal_slope(log_p, gamma):
    p = math.exp(log_p)
    return gamma * p * (1 - p) ** (gamma - 1) * log_p - (1 - p) ** gamma


def generalized(log_p, q):
    """Zhang & Sabuncu 2018."""
    return (1 - math.exp(q * log_p)) / q


def generalized_slope(log_p, q):
    return -math.exp(q * log_p)


def clipped(log_p, most, scale):
    return scale * min(-log_p, most)


def clipped_slope(log_p, most, scale):
    return -scale if -log_p < most else 0


LOSSES = {  # functions, parameters, other values of them, and value and derivative by p, as papers have them
    "cross": ((cross, cross_slope, {}), {}, lambda p: (-np.log(p), -1 / p)),
    "focal": (
        (focal, focal_slope, {"gamma": (2.0, 1.0, 9.0)}),
        {"gamma": 3.0},
        lambda p, gamma=2.0: (
            -((1 - p) ** gamma) * np.log(p),
            gamma * (1 - p) ** (gamma - 1) * np.log(p) - (1 - p) ** gamma / p,
        ),
    ),
    "generalized": (
        (generalized, generalized_slope, {"q": 0.7}),
        {"q": 0.4},
        lambda p, q=0.7: ((1 - p**q) / q, -(p ** (q - 1))),
    ),
    "clipped": (
        (clipped, clipped_slope, {"most": 1.0, "scale": 2.0}),
        {"scale": 0.5},
        lambda p, most=1.0, scale=2.0: (
            scale * np.minimum(-np.log(p), most),
            np.where(-np.log(p) < most, -scale / p, 0),
        ),
    ),
}


def define(name):
    value, gradient, params = LOSSES[name][0]
    return fo.Loss.define(name, value, gradient, params, targets="labels")


def expected(name, z, t, weights=None, **params):
    """Mean loss and gradient, by dp_k / dz_j = p_k (delta_jk - p_j)."""
    z = z.astype(np.float64)
    p = np.exp(z - z.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    rows, weights = np.arange(len(z)), np.ones(len(z)) if weights is None else weights
    right = p[rows, t]
    value, by_p = LOSSES[name][2](right, **params)
    share = weights / weights.sum()
    return share @ value, (share * by_p * right)[:, None] * (np.eye(z.shape[1])[t] - p)


def words(*arrays):
    return [np.asarray(a).tobytes() for a in arrays]


# Every loss, dtype and set of parameters is compiled: 1 s each.
@pytest.mark.parametrize("backend", ["numpy", pytest.param("cpu", marks=pytest.mark.repeats)])
@settings(deadline=None, max_examples=12)
@given(
    name=st.sampled_from(list(LOSSES)), rows=st.integers(1, 70), classes=st.integers(2, 9),
    dtype=st.sampled_from(["float32", "float64"]), given_=st.booleans(), spread=st.sampled_from([0.3, 3.0]),
)  # fmt: skip
def test_values_and_gradients(backend, name, rows, classes, dtype, given_, spread):
    rng = np.random.default_rng(rows)
    z, t = (spread * rng.standard_normal((rows, classes))).astype(dtype), rng.integers(0, classes, rows)
    params = LOSSES[name][1] if given_ else {}
    value, gradient = define(name)(**params, backend=backend).value_and_gradient(z, t)
    want, wanted = expected(name, z, t, **params)
    tolerance = 200 * float(np.finfo(dtype).eps)
    assert value == pytest.approx(want, rel=tolerance, abs=tolerance)
    assert gradient.dtype == z.dtype
    np.testing.assert_allclose(gradient, wanted, rtol=0, atol=tolerance * max(1 / rows, abs(wanted).max()))


def test_cross_entropy_has_the_bits_of_the_built_in_one(backend):
    ours, theirs = model_of(backend, define("cross")()), model_of(backend, CROSS_ENTROPY)
    options = {"epochs": 2, "batch_size": 10, "sample_weight": np.arange(47) % 3, "verbose": 0}
    for model in (ours, theirs):
        model.fit(X, Y, **options)
    assert words(*ours.get_weights()) == words(*theirs.get_weights())
    for name in ("loss", "accuracy", "f1_macro"):
        assert ours.history[name] == theirs.history[name]
    assert_same(ours.evaluate(X, Y), theirs.evaluate(X, Y))


def test_logits_of_any_size(backend):
    """Probabilities of 0 and 1 to rounding: the loss is finite where its formula is."""
    z = np.array([[1e4, -1e4, 0], [1e4, -1e4, 0], [3e38, 0, -3e38], [5, 5, 5]], np.float32)
    value, gradient = define("focal")(backend=backend).value_and_gradient(z, [0, 1, 0, 2])
    assert value == pytest.approx((2e4 + (2 / 3) ** 2 * math.log(3)) / 4, rel=1e-6)
    assert gradient[:3].tolist() == [[0, 0, 0], [0.25, -0.25, 0], [0, 0, 0]]


def model_of(backend, loss, metrics=("accuracy", "f1_macro"), **options):
    model = fo.Sequential([fo.Dense(6, "tanh"), fo.Dense(3, "softmax")], seed=1, backend=backend, **options)
    model.compile("adam", loss, list(metrics))
    return model


def test_models_with_weights_of_rows(backend):
    """The first step's loss is that of the weights before it; a weight of 2 is a row given twice, 0 leaves it out."""
    loss, weights = define("focal")(gamma=3), np.arange(47) % 3
    models = [model_of(backend, loss, dtype="float64") for _ in range(2)]
    models[0].build(6)
    z = np.log(models[0].predict(X))
    history = models[0].fit(X, Y, epochs=3, batch_size=47, sample_weight=weights, verbose=0)
    assert history.step_losses[0] == pytest.approx(expected("focal", z, Y, weights, gamma=3)[0], rel=1e-9)
    twice = np.repeat(np.arange(47), weights)
    models[1].fit(X[twice], Y[twice], epochs=3, batch_size=len(twice), verbose=0)
    for a, b in zip(*(model.get_weights() for model in models), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9)
    found, wanted = models[0].evaluate(X, Y, sample_weight=weights), models[1].evaluate(X[twice], Y[twice])
    assert found["loss"] == pytest.approx(wanted["loss"], rel=1e-7)


def test_text_as_labels_files_and_pickles(backend):
    """A model of text labels; files and pickles have the parameters, and name the formula."""
    loss = define("focal")(gamma=1.5)
    model = model_of(backend, loss)
    model.fit(X, np.array(["a", "b", "c"])[Y], epochs=2, class_weight="balanced", verbose=0)
    assert model.predict_classes(X[:2]).dtype.kind == "U"
    model.save(file := io.BytesIO())
    loaded = fo.load_model(io.BytesIO(file.getvalue()))
    for other in (loaded.loss, pickle.loads(pickle.dumps(loss)), copy.deepcopy(loss)):
        assert (repr(other), other.spec.params) == ("Focal(gamma=1.5)", {"gamma": 1.5})
    assert loaded.evaluate(X, np.array(["a", "b", "c"])[Y]) == model.evaluate(X, np.array(["a", "b", "c"])[Y])
    forget_formulas()
    with pytest.raises(ValueError, match=r"the loss 'focal' is not defined here: call fo.Loss.define\('focal'"):
        fo.load_model(io.BytesIO(file.getvalue()))


def test_the_number_of_threads_changes_no_bit():
    found = []
    for threads in (1, 2):
        before = fo.get_num_threads()
        fo.set_num_threads(threads)
        try:
            model = model_of("cpu", define("focal")())
            model.fit(X, Y, epochs=2, batch_size=40, verbose=0)
        finally:
            fo.set_num_threads(before)
        found.append(words(*model.get_weights(), model.history["loss"]))
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("functions", "options", "message"),
    [
        ((lambda z, t: z - t, cross_slope), {}, r"must take .*log_p"),
        ((cross, lambda log_p: 1), {}, r"gradient\(log_p\) must be the derivative of value\(log_p\).*differences -1"),
        ((cross, cross_slope), {"link": "sigmoid"}, "unknown link 'sigmoid'; known: softmax"),
        ((focal, focal_slope), {"params": {"log_p": 2}}, "names of their own; got 'log_p'"),
        ((focal, focal_slope), {}, r"focal\(log_p, gamma\) must take"),
        ((cross, cross_slope), {"targets": "label"}, "unknown targets 'label'; known: numbers, .*labels"),
    ],
)
def test_refusals(functions, options, message):
    with pytest.raises(ValueError, match=message):
        fo.Loss.define("f", *functions, **{"targets": "labels"} | options)
    assert not defined.keys["loss"]


def test_arguments_of_the_class():
    Focal = define("focal")
    assert repr(fo.losses.get("focal")) == "Focal(gamma=2)"
    with pytest.raises(ValueError, match=r"gamma must be a number in \[1, 9\]; got 0.5"):
        Focal(gamma=0.5)
    with pytest.raises(TypeError, match="label_smoothing"):
        Focal(label_smoothing=0.1)
    with pytest.raises(ValueError, match="labels|class"):
        Focal()(np.zeros((2, 3)), [0, 3])
    one = fo.Sequential([fo.Dense(1)])
    with pytest.raises(ValueError, match="output"):
        one.compile("adam", Focal())
    wrong = np.eye(3)[Y]
    with pytest.raises((TypeError, ValueError), match="y"):
        model_of("numpy", Focal()).fit(X, wrong, verbose=0)


def test_errors_quote_the_line():
    def value(log_p):
        return -log_p + open(log_p)

    with pytest.raises(FormulaError, match=r"return -log_p \+ open\(log_p\)"):
        fo.Loss.define("f", value, cross_slope, targets="labels")


def test_parameters_given_later_are_those_of_the_formula_as_it_was_defined():
    """Its file may have changed since then, and so may the constants that it names."""
    scope = {"math": math, "scale": 2.0}
    text = "def f(log_p, q):\n    return -scale * log_p * q\ndef g(log_p, q):\n    return -scale * q\n"
    value, gradient = (function_of(text, name, **scope) for name in "fg")
    again = [function_of(text.replace("log_p * q", "q * log_p"), name, **scope) for name in "fg"]
    Scaled = fo.Loss.define("scaled", value, gradient, {"q": 1.0}, targets="labels")
    for function in (value, gradient):
        linecache.cache.pop(function.__code__.co_filename, None)
        function.__globals__.clear()
    z, t = np.zeros((3, 2)), [0, 1, 1]
    assert Scaled(q=3.0)(z, t) == pytest.approx(6 * math.log(2))
    assert fo.Loss.define("scaled", *again, {"q": 2.0}, "labels")()(z, t) == pytest.approx(4 * math.log(2))
