"""Every wrong call says what was expected and what came, and leaves model, optimizer and arrays as they were."""

import numpy as np
import pytest
from helpers_model import CROSS_ENTROPY, assert_same, blobs, classifier, snapshot

import fastopt as fo
from fastopt import Dense, Dropout, Sequential
from fastopt.kernels.formulas import LOSSES, METRICS
from fastopt.optim import OPTIMIZER_CLASSES

X, Y = blobs(40)


def with_value(array, index, value):
    array = array.astype(float)
    array[index] = value
    return array


KINDS = "Dense, Dropout, GaussianNoise, LayerNorm, BatchNorm, Activation, Normalization"


@pytest.mark.parametrize(
    ("layers", "options", "error", "message"),
    [
        ([], {}, ValueError, "layers must hold at least one Dense"),
        (Dense(3), {}, TypeError, f"layers must be a list of {KINDS} and Rescaling; got a Dense"),
        ("relu", {}, TypeError, f"layers must be a list of {KINDS} and Rescaling; got 'relu'"),
        ([Dense(3), 4], {}, TypeError, rf"layers\[1\] must be {KINDS} or Rescaling; got 4"),
        ([Dense(3), Dropout(0.5)], {}, ValueError, "the last layer must be Dense"),
        (
            [Dense(3, "softmax"), Dense(3)],
            {},
            ValueError,
            r"only the last layer may have .* softmax; got it in layers\[0\]",
        ),
        ([Dense(3, name="a"), Dense(3, name="a")], {}, ValueError, "two layers have the name 'a'"),
        ([Dense(3)], {"backend": "gpu"}, ValueError, "unknown backend 'gpu'; known: numpy, cpu"),
        ([Dense(3)], {"backend": 3}, TypeError, "backend must be one of numpy, cpu"),
        ([Dense(3)], {"dtype": "float16"}, ValueError, "dtype must be float32 or float64; got 'float16'"),
        ([Dense(3)], {"dtype": "single precision"}, ValueError, "dtype must be float32 or float64"),
        ([Dense(3)], {"dtype": None}, ValueError, "dtype must be float32 or float64; got None"),
        ([Dense(3)], {"compute_dtype": "half"}, ValueError, "compute_dtype must be float32, as dtype is, or bfloat16"),
        ([Dense(3)], {"compute_dtype": "float16"}, ValueError, "gradients would be lost without a scaled loss"),
        (
            [Dense(3)],
            {"compute_dtype": "tf32", "backend": "cpu"},
            ValueError,
            "the backend 'cpu' does not compute in tf32; those that do: cuda",
        ),
        (
            [Dense(3)],
            {"compute_dtype": "tf32", "backend": "numpy"},
            ValueError,
            "the backend 'numpy' does not compute in tf32; those that do: cuda",
        ),
        (
            [Dense(3)],
            {"compute_dtype": "bfloat16", "backend": "numpy", "dtype": "float64"},
            ValueError,
            "compute_dtype='bfloat16' goes with dtype='float32'; got float64",
        ),
        ([Dense(3)], {"seed": -1}, ValueError, "seed must be at least 0; got -1"),
        ([Dense(3)], {"seed": 2**64}, ValueError, r"seed must be below 2\^64; got 18446744073709551616"),
        ([Dense(3)], {"seed": None}, TypeError, "seed must be a whole number; got None"),
        ([Dense(3)], {"inputs": 0}, ValueError, "inputs must be at least 1; got 0"),
        ([Dense(3)], {"inputs": (784,)}, TypeError, "inputs must be a whole number; got a tuple"),
        (
            [Dense(4), Dense(2, kernel_initializer=np.zeros((5, 2)))],
            {"inputs": 3},
            ValueError,
            r"layer dense_2: its kernel_initializer must have shape \(4, 2\), as 4 features come in; got \(5, 2",
        ),
    ],
)
def test_constructor(layers, options, error, message):
    with pytest.raises(error, match=message):
        Sequential(layers, **options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, TypeError, f"compile needs a loss; known: {', '.join(LOSSES)}"),
        ({"loss": "cross"}, ValueError, f"unknown loss 'cross'; known: {', '.join(LOSSES)}"),
        ({"loss": 3}, TypeError, "loss must be one of mean_squared_error"),
        (
            {"loss": "mse"},
            ValueError,
            f"softmax .* needs a softmax cross-entropy as the loss: {CROSS_ENTROPY}, .*; got mean_sq",
        ),
        (
            {"loss": CROSS_ENTROPY, "optimizer": "adma"},
            ValueError,
            f"unknown optimizer 'adma'; known: {', '.join(OPTIMIZER_CLASSES)}",
        ),
        ({"loss": CROSS_ENTROPY, "optimizer": Dense}, TypeError, "optimizer must be one of sgd, momentum"),
        ({"loss": CROSS_ENTROPY, "metrics": 3}, TypeError, "metrics must be a list of names; got 3"),
        ({"loss": CROSS_ENTROPY, "metrics": [3]}, TypeError, "metric must be one of .*; got 3"),
        ({"loss": CROSS_ENTROPY, "metrics": "ap"}, ValueError, f"unknown metric 'ap'; known: {', '.join(METRICS)}"),
        ({"loss": CROSS_ENTROPY, "metrics": ["ap"]}, ValueError, f"unknown metric 'ap'; known: {', '.join(METRICS)}"),
        (
            {"loss": CROSS_ENTROPY, "metrics": ["r2"]},
            ValueError,
            "the metric r2 does not go with the loss sparse.*: accuracy, top_5_accuracy, precision, .*, f1_macro$",
        ),
        ({"loss": CROSS_ENTROPY, "metrics": ["accuracy", "acc"]}, ValueError, "the metric accuracy is given twice"),
        ({"loss": CROSS_ENTROPY, "optimizer": fo.SGD(np.zeros(3))}, ValueError, "the optimizer has its arrays already"),
    ],
)
@pytest.mark.parametrize("built", [False, True])
def test_compile(options, error, message, built):
    model = classifier()
    if built:
        model.fit(X, Y)
    before = snapshot(model)
    with pytest.raises(error, match=message):
        model.compile(**options)
    assert_same(before, snapshot(model))


def test_an_optimizer_belongs_to_one_model():
    optimizer = fo.Adam()
    first, second = (Sequential([Dense(3)], backend="numpy") for _ in range(2))
    for model in (first, second):
        model.compile(optimizer, CROSS_ENTROPY)
    first.fit(X, Y)
    before, weights = optimizer.state_dict(), first.get_weights()
    with pytest.raises(ValueError, match="already has its arrays"):
        second.fit(X, Y)
    assert not second.built
    assert_same([before, weights], [optimizer.state_dict(), first.get_weights()])


# One label more than the model has outputs: unknown once it has classes, and too many before.
TOO_MANY = (
    r"y (must be class labels 0 ... 2, one for each of the 3 outputs; got {0}.0 at index 7|"
    r"has 4 classes \(.*\), but the last layer has 3 outputs: make it Dense\(4\))"
)
WRONG_DATA = [
    (X[:, :4], Y, ValueError, r"x must have shape \(batch, features\), here \(any, 6\); got shape \(40, 4\)"),
    (
        X.reshape(40, 6, 1)[:, :0],
        Y,
        ValueError,
        r"x must have .*; got shape \(40, 0\), flattened from \(40, 0, 1\)",
    ),
    (X[0], Y, ValueError, r"x must have shape \(batch, features\)"),
    (X[:0], Y[:0], ValueError, r"x must have at least one row and one column; got shape \(0, 6\)"),
    (X, Y[:39], ValueError, r"x and (validation )?y must have as many rows; got shapes \(40, 6\) and \(39,\)"),
    (X, 1, ValueError, r"x and (validation )?y must have as many rows; got shapes \(40, 6\) and \(\)"),
    (X, Y[:, None].repeat(2, 1), ValueError, r"y must be class labels of shape \(n,\)"),
    (X, with_value(Y, 7, 3), ValueError, TOO_MANY.format(3)),
    (X, with_value(Y, 7, -1), ValueError, TOO_MANY.format(-1)),
    (X, with_value(Y, 7, 0.5), ValueError, "y must be whole class labels; got 0.5 at index 7"),
    (X, with_value(Y, 7, np.nan), ValueError, "y must have a label in every row; got none in row 7"),
    (X, Y > 0, TypeError, "y must be integer class labels; got bool"),
    (X, np.array([3, "a"] * 20, object), TypeError, r"y must be .* of one type, .*; got int \(3 in row 0\) and text"),
    (X, None, ValueError, r"x and (validation )?y must have as many rows; got shapes \(40, 6\) and \(\)"),
    (with_value(X, (3, 2), np.nan), Y, ValueError, r"x must be finite; got nan at index \(3, 2\) \(1 such value"),
    (with_value(X, (3, 2), -np.inf), Y, ValueError, r"x must be finite; got -inf at index \(3, 2\)"),
    (with_value(X, (3, 2), 1e300), Y, ValueError, r"x must be finite; got inf at index \(3, 2\)"),
    (X.astype(complex), Y, TypeError, "x must hold real numbers; got complex128"),
    (X.astype(object), Y, TypeError, "x must hold real numbers; got object"),
    (np.ma.masked_equal(X, 0), Y, TypeError, "x must not be a masked array"),
    ([[1, 2], [3]], [0, 1], ValueError, "x must be a rectangular array of numbers"),
    ("table.csv", Y, TypeError, "x must hold real numbers"),
    (None, Y, TypeError, "x must hold real numbers; got object"),
]


@pytest.mark.parametrize(("x", "y", "error", "message"), WRONG_DATA)
def test_data(x, y, error, message, backend):
    model = classifier(backend)
    model.fit(X, Y)
    before = snapshot(model)
    for call in (
        lambda: model.fit(x, y),
        lambda: model.evaluate(x, y),
        lambda: model.fit(X, Y, validation_data=(x, y)),
        *([lambda: model.predict(x)] if message.startswith("x must") else []),
    ):
        with pytest.raises(error, match=message):
            call()
    assert_same(before, snapshot(model))


@pytest.mark.parametrize(("x", "y", "error", "message"), WRONG_DATA[1:])
def test_data_for_a_model_that_is_not_built(x, y, error, message):
    model = classifier()
    with pytest.raises(error, match=message.replace(", here (any, 6)", "")):
        model.fit(x, y)
    assert not model.built
    assert not model.optimizer.bound
    model.fit(X[:, :4], Y)  # another number of features is still fine


@pytest.mark.parametrize(
    ("loss", "y", "message"),
    [
        ("mean_squared_error", Y, r"y must have shape \(n, outputs\), here \(40, 3\)"),
        (
            "mean_squared_error",
            np.zeros((40, 2)),
            r"y must have shape \(n, outputs\), here \(40, 3\); got shape \(40, 2\)",
        ),
        ("huber", np.full((40, 3), np.nan), r"y must be finite; got nan at index \(0, 0\)"),
        ("binary_crossentropy", np.full((40, 3), 1.5), r"y must be in \[0, 1\]; got 1.5"),
        ("categorical_crossentropy", np.full((40, 3), 0.5), "every row of y must sum to 1.*row 0 sums to 1.5"),
        ("hinge", np.full((40, 3), 2), "y must be -1 and 1, or 0 and 1; got values 2"),
    ],
)
def test_targets(loss, y, message):
    model = Sequential([Dense(3)], backend="numpy", inputs=6)
    model.compile("adam", loss)
    before = snapshot(model)
    with pytest.raises(ValueError, match=message):
        model.fit(X, y)
    assert_same(before, snapshot(model))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"epochs": 0}, ValueError, "epochs must be at least 1; got 0"),
        ({"epochs": 1.0}, TypeError, "epochs must be a whole number; got 1.0"),
        ({"epochs": True}, TypeError, "epochs must be a whole number; got True"),
        ({"initial_epoch": -1}, ValueError, "initial_epoch must be at least 0; got -1"),
        ({"initial_epoch": 2}, ValueError, "initial_epoch must be at most epochs=1; got 2"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1; got 0"),
        ({"batch_size": "32"}, ValueError, 'batch_size must be a whole number, "full", "auto" or one of .*'),
        ({"batch_size": 3.5}, TypeError, 'batch_size must be a whole number, "full", "auto" or one of .*; got 3.5'),
        ({"drop_last": 1}, TypeError, "drop_last must be"),
        ({"accumulate": 0}, ValueError, "accumulate must be at least 1; got 0"),
        ({"accumulate": 1.5}, TypeError, "accumulate must be a whole number; got 1.5"),
        ({"validation_split": 1.0}, ValueError, r"validation_split must be in \[0, 1\); got 1.0"),
        ({"validation_split": -0.1}, ValueError, r"validation_split must be in \[0, 1\)"),
        ({"validation_split": float("nan")}, ValueError, r"validation_split must be in \[0, 1\)"),
        ({"validation_split": None}, TypeError, "validation_split must be a number; got None"),
        ({"validation_split": 0.01}, ValueError, "validation_split=0.01 of 40 rows leaves 0 for validation and 40 for"),
        (
            {"validation_split": 0.5, "validation_data": (X, Y)},
            ValueError,
            "validation_split or validation_data, not both",
        ),
        ({"validation_data": X}, TypeError, r"validation_data must be a tuple \(x, y\) or \(x, y, sample_weight\)"),
        ({"validation_data": (X,)}, TypeError, r"validation_data must be a tuple \(x, y\)"),
        ({"validation_data": (X[:, :3], Y)}, ValueError, r"validation x must have shape .*; got shape \(40, 3\)"),
        ({"shuffle": "batch"}, ValueError, "shuffle must be True, False or \"blocks\"; got 'batch'"),
        ({"shuffle": 1}, TypeError, 'shuffle must be True, False or "blocks"; got 1'),
        ({"callbacks": "loss"}, TypeError, "callbacks must be a list of Callback; got 'loss'"),
        ({"callbacks": [print]}, TypeError, "every callback must be a Callback; got a builtin_function"),
        ({"nan": "drop"}, ValueError, "unknown nan 'drop'; known: raise, skip"),
        ({"nan": True}, TypeError, "nan must be one of raise, skip; got True"),
    ],
)
@pytest.mark.parametrize("built", [False, True])
def test_fit(options, error, message, built):
    model = classifier()
    if built:
        model.fit(X, Y)
    before = snapshot(model)
    with pytest.raises(error, match=message):
        model.fit(X, Y, **options)
    assert_same(before, snapshot(model))


def test_nothing_is_left_after_skipping():
    model = classifier(inputs=6)
    before = snapshot(model)
    with pytest.raises(ValueError, match="every one of the 40 rows of x and y has NaN or infinity"):
        model.fit(np.full_like(X, np.nan), Y, nan="skip")
    assert_same(before, snapshot(model))


def test_layers_that_clash_with_the_data():
    model = Sequential([Dense(3, kernel_initializer=np.zeros((5, 3)))], backend="numpy")
    model.compile("adam", CROSS_ENTROPY)
    for call in (lambda: model.fit(X, Y), lambda: model.predict(X)):
        with pytest.raises(
            ValueError, match=r"layer dense_1: its kernel_initializer must have shape \(6, 3\), as 6 features come in"
        ):
            call()
    assert not model.built


@pytest.mark.parametrize("call", [lambda m: m.evaluate(X, Y, batch_size=0), lambda m: m.predict(X, batch_size=-1)])
def test_batch_size_of_evaluate_and_predict(call):
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        call(classifier())


def test_not_compiled():
    model = Sequential([Dense(3)], backend="numpy")
    for call in (model.fit, model.evaluate):
        with pytest.raises(ValueError, match="no loss and optimizer yet: call compile"):
            call(X, Y)
    assert not model.built


def test_build_with_another_number_of_features():
    model = classifier(inputs=6)
    with pytest.raises(ValueError, match="the model is built for 6 features; got 7"):
        model.build(7)


@pytest.mark.parametrize(
    ("weights", "error", "message"),
    [
        ([], ValueError, "weights must be 4 arrays; got 0"),
        (np.zeros(4), TypeError, "weights must be a list of arrays; got a float64 array"),
        (
            [np.zeros((6, 12)), np.zeros(12), np.zeros((12, 3)), np.zeros(4)],
            ValueError,
            r"weights\[3\] must have shape \(3,\); got \(4,\)",
        ),
        ([np.zeros((6, 12)), np.zeros(12), np.zeros((12, 3)), "b"], TypeError, r"weights\[3\] must hold real numbers"),
    ],
)
def test_set_weights(weights, error, message):
    model = classifier(inputs=6)
    before = snapshot(model)
    with pytest.raises(error, match=message):
        model.set_weights(weights)
    assert_same(before, snapshot(model))
    with pytest.raises(ValueError, match="no weights yet"):
        classifier().set_weights(weights)


def test_backend_setter():
    model = classifier()
    with pytest.raises(ValueError, match="unknown backend 'tpu'; known: numpy, cpu"):
        model.backend = "tpu"
    assert model.backend == "numpy"


def test_an_optimizer_with_more_arrays_than_the_model_has():
    model = fo.Sequential([fo.Dense(2)], inputs=3, seed=0)
    model.compile("adam", loss="mean_squared_error")
    model.optimizer.add_param_group({"params": [np.zeros(2)]})
    before = [w.copy() for w in model.get_weights()]
    with pytest.raises(ValueError, match="given more by add_param_group"):
        model.fit(np.zeros((4, 3)), np.zeros((4, 2)), epochs=1, verbose=0)
    for a, b in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)
