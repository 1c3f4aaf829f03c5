"""Loss functions: hand-worked values, finite differences, and the targets that are refused."""

import math

import numpy as np
import pytest

import fastopt as fo
from fastopt.kernels.formulas import LOSSES
from fastopt.losses import ALIASES, LOSS_CLASSES, prepare_targets

from .optimizers import DTYPES, LAYOUTS, drawn

LOG2 = math.log(2)
E1 = math.log(1 + math.e)  # log(exp(0) + exp(1))
P = 1 / (1 + math.e)  # softmax(0, 1)[0]

# Worked by hand: (class with its parameters, outputs, targets, loss, gradient).
WORKED = [
    (fo.losses.MeanSquaredError(), [[1.0, 4.0], [0.0, 0.0]], [[0, 1], [0, 0]], 2.5, [[0.5, 1.5], [0, 0]]),
    (fo.losses.MeanAbsoluteError(), [[1.0, -4.0], [0.0, 2.0]], [[0, 1], [0, 0]], 2.0, [[0.25, -0.25], [0, 0.25]]),
    (fo.losses.Huber(), [[0.5], [-3.0]], [0, 0], (0.125 + 2.5) / 2, [[0.25], [-0.5]]),
    (fo.losses.Huber(delta=2.0), [[0.5], [-3.0]], [0, 0], (0.125 + 4.0) / 2, [[0.25], [-1.0]]),
    (fo.losses.Quantile(), [[0.5], [-3.0], [1.0]], [0, 0, 1], 3.5 / 6, [[1 / 6], [-1 / 6], [0]]),
    (fo.losses.Quantile(0.75), [[0.5], [-3.0]], [0, 0], (0.125 + 2.25) / 2, [[0.125], [-0.375]]),
    (fo.losses.BinaryCrossentropy(), [[0.0], [0.0]], [1, 0], LOG2, [[-0.25], [0.25]]),
    (fo.losses.BinaryCrossentropy(), [[1000.0], [-1000.0]], [0, 1], 1000.0, [[0.5], [-0.5]]),
    (fo.losses.BinaryCrossentropy(0.2), [[1.0]], [1], E1 - 0.9, [[0.1 - P]]),
    (fo.losses.Hinge(), [[0.5], [2.0], [1.0]], [1, 1, -1], 2.5 / 3, [[-1 / 3], [0], [1 / 3]]),
    (fo.losses.Hinge(), [[1.0]], [1], 0.0, [[0.0]]),
    (fo.losses.Perceptron(), [[0.5], [-2.0], [1.0]], [1, 1, 0], 1.0, [[0], [-1 / 3], [1 / 3]]),
    (fo.losses.Perceptron(), [[0.0]], [1], 0.0, [[-1.0]]),
    (fo.losses.SparseCategoricalCrossentropy(), [[0.0, 0.0], [1000.0, 0.0]], [1, 0], LOG2 / 2, [[0.25, -0.25], [0, 0]]),
    (fo.losses.SparseCategoricalCrossentropy(0.5), [[0.0, 1.0]], [0], E1 - 0.25, [[P - 0.75, 0.75 - P]]),
    (fo.losses.CategoricalCrossentropy(), [[0.0, 1.0]], [[0.25, 0.75]], E1 - 0.75, [[P - 0.25, 0.25 - P]]),
    (fo.losses.CategoricalCrossentropy(0.5), [[0.0, 1.0]], [[1, 0]], E1 - 0.25, [[P - 0.75, 0.75 - P]]),
]  # fmt: skip
assert {loss.name for loss, *_ in WORKED} == set(LOSSES)


def on(loss, backend):
    return type(loss)(**loss.spec.params, backend=backend)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("loss", "outputs", "targets", "value", "gradient"), WORKED)
def test_worked_by_hand(loss, outputs, targets, value, gradient, dtype, backend):
    loss, outputs = on(loss, backend), np.array(outputs, dtype)
    tolerance = {"rel": 1e-6, "abs": 1e-7} if dtype == "float32" else {"rel": 1e-13, "abs": 1e-14}
    got = loss(outputs, targets)
    assert type(got) is float
    assert got == pytest.approx(value, **tolerance)
    slope = loss.gradient(outputs, targets)
    assert (slope.dtype, slope.shape) == (outputs.dtype, outputs.shape)
    assert slope == pytest.approx(np.array(gradient), **tolerance)
    both = loss.value_and_gradient(outputs, targets)
    assert both[0] == got
    np.testing.assert_array_equal(both[1], slope)


def problem(name, outputs, dtype="float64", n=7):
    """Outputs and targets, away from kinks."""
    rng = np.random.default_rng(0)
    z = rng.normal(0, 2, (n, outputs)).astype(dtype)
    if LOSSES[name].targets == "labels":
        return z, rng.integers(0, outputs, n)
    if LOSSES[name].signs:
        return z, rng.choice([-1, 1], z.shape).astype(dtype)
    if LOSSES[name].target_range is None:
        return z, rng.normal(size=z.shape).astype(dtype)
    t = rng.random(z.shape)
    return z, (t / t.sum(axis=1, keepdims=True) if LOSSES[name].by_row else t).astype(dtype)


@pytest.mark.parametrize("outputs", [1, 2, 5])
@pytest.mark.parametrize("name", LOSSES)
def test_gradient_against_finite_differences(name, outputs, backend):
    params = {"delta": 0.7, "quantile": 0.7, "label_smoothing": 0.15}
    loss = LOSS_CLASSES[name](**{key: params[key] for key in LOSSES[name].params}, backend=backend)
    z, t = problem(name, outputs)
    gradient, step = loss.gradient(z, t), 1e-6
    for index in np.ndindex(z.shape):
        up, down = z.copy(), z.copy()
        up[index] += step
        down[index] -= step
        assert gradient[index] == pytest.approx((loss(up, t) - loss(down, t)) / (2 * step), rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "permuted"])
@pytest.mark.parametrize("name", LOSSES)
def test_layouts_give_the_same_bits_and_stay_as_they_are(name, layout, backend):
    loss = LOSS_CLASSES[name](backend=backend)
    z, t = problem(name, 3, "float32")
    value, gradient = loss.value_and_gradient(z, t)
    laid = LAYOUTS[layout](z), LAYOUTS[layout](t)
    got = loss.value_and_gradient(*laid)
    assert got[0] == value
    np.testing.assert_array_equal(got[1], gradient)
    np.testing.assert_array_equal(laid[0], z)
    np.testing.assert_array_equal(laid[1], t)


@pytest.mark.parametrize("name", [name for name, row in LOSSES.items() if not row.by_row])
def test_vectors_stand_for_one_output(name, backend):
    loss = LOSS_CLASSES[name](backend=backend)
    z, t = problem(name, 1)
    value, gradient = loss.value_and_gradient(z, t)
    for outputs, targets in [(z[:, 0], t[:, 0]), (z, t[:, 0]), (z[:, 0], t)]:
        got = loss.value_and_gradient(outputs, targets)
        assert got[0] == value
        assert got[1].shape == outputs.shape
        np.testing.assert_array_equal(got[1].reshape(-1), gradient.reshape(-1))


@pytest.mark.parametrize("name", LOSSES)
def test_the_table_and_the_classes_agree(name):
    loss = LOSS_CLASSES[name]()
    assert (loss.spec.name, dict(loss.spec.params)) == (name, dict(LOSSES[name].params))
    assert fo.losses.get(name).spec == loss.spec
    assert fo.losses.get(loss) is loss


@pytest.mark.parametrize("alias", ALIASES)
def test_short_names(alias):
    assert fo.losses.get(alias).name == ALIASES[alias]


def test_wrong_names():
    with pytest.raises(ValueError, match="unknown loss 'mea'; known: mean_squared_error, .*, mse, mae, bce"):
        fo.losses.get("mea")
    with pytest.raises(TypeError, match="loss must be one of .*; got a type"):
        fo.losses.get(fo.losses.Loss)
    with pytest.raises(ValueError, match="unknown backend"):
        fo.losses.Huber(backend="gpu")


@pytest.mark.parametrize("bad", [0.0, -1.0, np.nan, np.inf])
def test_delta_must_be_positive(bad):
    with pytest.raises(ValueError, match=f"delta must be a finite number .*; got {bad}"):
        fo.losses.Huber(delta=bad)


@pytest.mark.parametrize("bad", [0.0, 1.0, -0.5, np.nan])
def test_a_quantile_is_between_0_and_1(bad):
    with pytest.raises(ValueError, match=rf"quantile must be a number in \(0, 1\); got {bad}"):
        fo.losses.Quantile(bad)


@pytest.mark.slow
@pytest.mark.parametrize("q", [0.1, 0.5, 0.8])
def test_the_least_mean_is_at_the_quantile(q, backend):
    """A constant trained by the pinball loss is the quantile of the targets; the value is scikit-learn's."""
    y = np.random.default_rng(0).exponential(size=501)
    model = fo.Sequential([fo.Dense(1)], backend=backend, dtype="float64")
    model.compile(fo.SGD(lr=fo.schedules.Linear(0.5, steps=400)), fo.losses.Quantile(q))
    model.fit(np.zeros((501, 1)), y, batch_size=501, epochs=400, verbose=0)
    found = float(model.predict(np.zeros((1, 1)))[0, 0])
    assert (y < found).mean() == pytest.approx(q, abs=0.01)
    pinball = pytest.importorskip("sklearn.metrics").mean_pinball_loss
    outputs = model.predict(np.zeros((501, 1)))
    loss = fo.losses.Quantile(q, backend=backend)
    assert loss(outputs, y) == pytest.approx(pinball(y, outputs[:, 0], alpha=q), rel=1e-12)


@pytest.mark.parametrize("bad", [1.0, -0.1, np.nan])
@pytest.mark.parametrize("name", [name for name, row in LOSSES.items() if "label_smoothing" in row.params])
def test_label_smoothing_is_a_fraction(name, bad):
    with pytest.raises(ValueError, match=rf"label_smoothing must be a number in \[0, 1\); got {bad}"):
        LOSS_CLASSES[name](label_smoothing=bad)
    with pytest.raises(TypeError, match="label_smoothing"):
        LOSS_CLASSES[name](label_smoothing="0.1")


def test_repr():
    assert repr(fo.losses.Huber(0.5)) == "Huber(delta=0.5)"
    assert repr(fo.losses.Hinge()) == "Hinge()"


Z = np.zeros((3, 2))
DENSE = [name for name, row in LOSSES.items() if row.targets == "dense"]
ROWS = [name for name, row in LOSSES.items() if row.by_row]
BAD_FOR = [
    *[
        (name, targets, error, message)
        for name in DENSE
        for targets, error, message in [
            (np.zeros((3, 3)), ValueError, r"targets must have shape \(n, outputs\), here \(3, 2\); got shape \(3"),
            (np.zeros((2, 2)), ValueError, r"here \(3, 2\); got shape \(2, 2\)"),
            (np.zeros(3), ValueError, "targets must have shape"),
            ([[0, 1], [np.nan, 0], [1, 0]], ValueError, r"targets must be finite; got nan at index \(1, 0\)"),
            ([["a", "b"]] * 3, TypeError, "targets must hold real numbers"),
            (None, TypeError, "targets must hold real numbers"),
        ]
    ],
    ("binary_crossentropy", [[0, 1.5]] * 3, ValueError, r"targets must be in \[0, 1\]; got 1.5 at index \(0, 1\)"),
    ("binary_crossentropy", [[0, -1]] * 3, ValueError, r"targets must be in \[0, 1\]; got -1.0"),
    ("categorical_crossentropy", [[-0.5, 1.5]] * 3, ValueError, r"targets must be in \[0, 1\]; got -0.5"),
    ("categorical_crossentropy", [[1, 0], [0, 0], [0, 1]], ValueError, "row of targets must sum to 1.*row 1 sums to 0"),
    ("categorical_crossentropy", [[1, 0], [0.5, 0.6], [0, 1]], ValueError, "row 1 sums to 1.1"),
    ("hinge", [[-1, 0], [1, 1], [0, 0]], ValueError, "targets must be -1 and 1, or 0 and 1; got values -1.0, 0.0, 1.0"),
    ("perceptron", [[0.5, 1]] * 3, ValueError, "targets must be -1 and 1, or 0 and 1; got values 0.5, 1.0"),
    ("sparse_categorical_crossentropy", [0, 1, 2], ValueError, "labels 0 ... 1, .*got 2 at index 2"),
    ("sparse_categorical_crossentropy", [0, -1, 1], ValueError, "got -1 at index 1"),
    ("sparse_categorical_crossentropy", [0, 0.5, 1], ValueError, "whole class labels; got 0.5 at index 1"),
    ("sparse_categorical_crossentropy", [0, 1], ValueError, r"labels of shape \(3,\); got shape \(2,\)"),
    ("sparse_categorical_crossentropy", np.eye(3, 2), ValueError, r"labels of shape \(3,\); got shape \(3, 2\)"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "targets", "error", "message"), BAD_FOR)
def test_targets_that_are_refused(name, targets, error, message):
    loss = LOSS_CLASSES[name](backend="numpy")
    for call in (loss, loss.gradient, loss.value_and_gradient):
        with pytest.raises(error, match=message):
            call(Z, targets)


@pytest.mark.parametrize("name", LOSSES)
def test_outputs_that_are_refused(name):
    loss = LOSS_CLASSES[name](backend="numpy")
    with pytest.raises(TypeError, match="outputs must be float32 or float64; got int64"):
        loss(np.zeros((3, 2), int), [0, 1, 0])
    with pytest.raises(ValueError, match="outputs must have at least one row and one column"):
        loss(np.zeros((0, 2)), np.zeros(0))
    with pytest.raises(ValueError, match="outputs must have shape"):
        loss(np.zeros((3, 2, 1)), [0, 1, 0])


def test_targets_for_training():
    mse, hinge = fo.losses.get("mse").spec, fo.losses.get("hinge").spec
    sparse = fo.losses.get("scce").spec
    dense = prepare_targets(mse, drawn((4,), "float64"), 1, np.dtype("float32"), rows=4)
    assert (dense.dtype, dense.shape) == (np.float32, (4, 1))
    assert prepare_targets(hinge, [True, False], 1, np.float64, rows=2).tolist() == [[1], [-1]]
    labels = prepare_targets(sparse, np.array([2.0, 0.0], np.float32), 3, np.float32, rows=2)
    assert (labels.dtype, labels.tolist()) == (np.int64, [2, 0])
    with pytest.raises(ValueError, match="y_val must be class labels"):
        prepare_targets(sparse, [5], 3, np.float32, rows=1, name="y_val")
