"""dense_forward and dense_backward: against formulas written here, finite differences, and wrong arguments."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastopt as fo
from fastopt.kernels.formulas import ACTIVATIONS

from .optimizers import DTYPES, LAYOUTS, drawn

# float32: the sum of up to 40 products of numbers about 1, in any order, and an activation of a few operations.
TOLERANCE = {"float32": {"rtol": 2e-5, "atol": 2e-5}, "float64": {"rtol": 1e-12, "atol": 1e-12}}

VALUES = {
    "linear": lambda z: z,
    "relu": lambda z: max(z, 0.0),
    "leaky_relu": lambda z: z if z > 0 else 0.01 * z,
    "elu": lambda z: z if z > 0 else math.exp(z) - 1,
    "sigmoid": lambda z: 1 / (1 + math.exp(-z)),
    "tanh": math.tanh,
    "softplus": lambda z: math.log(1 + math.exp(z)),
    "silu": lambda z: z / (1 + math.exp(-z)),
    "gelu": lambda z: z * 0.5 * (1 + math.erf(z / math.sqrt(2))),
    "gelu_tanh": lambda z: 0.5 * z * (1 + math.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3))),
    "hardswish": lambda z: z * min(max(z + 3, 0), 6) / 6,
    "mish": lambda z: z * math.tanh(math.log(1 + math.exp(z))),
}
assert list(VALUES) == list(ACTIVATIONS)


def value(activation, z):
    return np.vectorize(VALUES[activation], otypes=[float])(z)


def layer(dtype="float64", batch=5, inputs=4, outputs=3):
    return drawn((batch, inputs), dtype), drawn((inputs, outputs), dtype, 1), drawn((outputs,), dtype, 2)


def backward(dy, x, w, b, activation, backend):
    y, z = fo.dense_forward(x, w, b, activation, return_preactivation=True, backend=backend)
    z = z if ACTIVATIONS[activation].uses == "z" else None
    return fo.dense_backward(dy, x, w, y, activation, z=z, backend=backend)


@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 4, 3), (33, 40, 17)])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_forward(activation, dtype, shape, backend):
    x, w, b = layer(dtype, *shape)
    expected_z = x.astype(float) @ w.astype(float) + b
    y, z = fo.dense_forward(x, w, b, activation, return_preactivation=True, backend=backend)
    assert y.dtype == z.dtype == np.dtype(dtype)
    np.testing.assert_allclose(z, expected_z, **TOLERANCE[dtype])
    np.testing.assert_allclose(y, value(activation, expected_z), **TOLERANCE[dtype])
    np.testing.assert_array_equal(fo.dense_forward(x, w, b, activation, backend=backend), y)
    without = fo.dense_forward(x, w, activation=activation, backend=backend)
    np.testing.assert_allclose(without, value(activation, expected_z - b), **TOLERANCE[dtype])


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_backward_against_finite_differences(activation, backend):
    x, w, b = layer()
    dy = drawn((5, 3), "float64", 3)
    step = 1e-5

    def total(x, w, b):
        return float(np.sum(dy * fo.dense_forward(x, w, b, activation, backend=backend)))

    gradients = backward(dy, x, w, b, activation, backend)
    for position, gradient in enumerate(gradients):
        for index in np.ndindex(gradient.shape):
            moved = [[a.copy() for a in (x, w, b)] for _ in range(2)]
            moved[0][position][index] += step
            moved[1][position][index] -= step
            assert gradient[index] == pytest.approx(
                (total(*moved[0]) - total(*moved[1])) / (2 * step), rel=1e-6, abs=1e-8
            )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_backward_of_both_types(activation, dtype, backend):
    x, w, b = layer(dtype, 33, 40, 17)
    dy = drawn((33, 17), dtype, 3)
    given = [a.copy() for a in (dy, x, w, b)]
    got = backward(dy, x, w, b, activation, backend)
    expected = backward(*(a.astype(float) for a in (dy, x, w, b)), activation, "numpy")
    for g, e, like in zip(got, expected, (x, w, b), strict=True):
        assert (g.dtype, g.shape) == (like.dtype, like.shape)
        np.testing.assert_allclose(g, e, **TOLERANCE[dtype])
    for now, before in zip((dy, x, w, b), given, strict=True):
        np.testing.assert_array_equal(now, before)


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "permuted"])
def test_layouts_give_the_same_bits(layout, backend):
    x, w, b = layer("float32")
    dy = drawn((5, 3), "float32", 3)
    lay = LAYOUTS[layout]
    y = fo.dense_forward(x, w, b, "tanh", backend=backend)
    np.testing.assert_array_equal(fo.dense_forward(lay(x), lay(w), lay(b), "tanh", backend=backend), y)
    expected = fo.dense_backward(dy, x, w, y, "tanh", backend=backend)
    got = fo.dense_backward(lay(dy), lay(x), lay(w), lay(y), "tanh", backend=backend)
    for g, e in zip(got, expected, strict=True):
        np.testing.assert_array_equal(g, e)


@settings(deadline=None, max_examples=40)
@given(
    sizes=st.tuples(*[st.integers(1, 40)] * 3),
    activation=st.sampled_from(list(ACTIVATIONS)),
    dtype=st.sampled_from(DTYPES),
)
@pytest.mark.parametrize("name", ["numpy", "cpu"])
def test_any_size(name, sizes, activation, dtype):
    x, w, b = layer(dtype, *sizes)
    y = fo.dense_forward(x, w, b, activation, backend=name)
    expected = value(activation, x.astype(float) @ w.astype(float) + b)
    np.testing.assert_allclose(y, expected, **TOLERANCE[dtype])


def test_lists_take_the_type_of_the_arrays(backend):
    w = np.ones((2, 1), np.float32)
    assert fo.dense_forward([[1, 2]], w, [0.5], backend=backend).dtype == np.float32
    assert fo.dense_forward([[1, 2]], [[1], [1]], backend=backend).tolist() == [[3.0]]
    assert fo.dense_forward([[1, 2]], [[1], [1]], backend=backend).dtype == np.float64


def test_nan_comes_through(backend):
    x = np.array([[np.nan, 1.0], [1.0, 1.0]])
    for activation in ACTIVATIONS:
        y = fo.dense_forward(x, np.ones((2, 2)), activation=activation, backend=backend)
        assert np.isnan(y[0]).all()
        assert np.isfinite(y[1]).all()


X, W, B = layer()
Y = np.zeros((5, 3))
FORWARD = [
    ((X, W.T.copy(), B), ValueError, r"w must have shape \(in, out\), here \(4, any\); got shape \(3, 4\)"),
    ((X[0], W, B), ValueError, r"x must have shape \(batch, in\); got 1 dimension\(s\), shape \(4,\)"),
    ((X[:0], W, B), ValueError, r"x must have at least one row and one column; got shape \(0, 4\)"),
    ((X, W[:, :0], B[:0]), ValueError, "w must have at least one row and one column"),
    ((X, W, B[:2]), ValueError, r"b must have shape \(out,\), here \(3,\); got shape \(2,\)"),
    ((X, W, B[None]), ValueError, r"b must have shape \(out,\)"),
    ((X, W, 0.5), ValueError, r"b must have shape \(out,\), here \(3,\); got shape \(\)"),
    ((X.astype(int), W, B), TypeError, "x must be float32 or float64; got int64"),
    ((X, W.astype("f4"), B), TypeError, "w must be float64 like the arrays it is used with; got float32"),
    ((X, W, B.astype("f4")), TypeError, "b must be float64 like"),
    ((None, W, B), TypeError, "x must be float32 or float64; got object"),
    ((X, W, B, "rleu"), ValueError, "unknown activation 'rleu'; known: linear, relu, "),
    ((X, W, B, "softmax"), ValueError, "unknown activation 'softmax'"),
    ((X, W, B, None), TypeError, "activation must be one of linear, "),
]


@pytest.mark.parametrize(("arguments", "error", "message"), FORWARD)
def test_wrong_arguments_of_forward(arguments, error, message, backend):
    with pytest.raises(error, match=message):
        fo.dense_forward(*arguments, backend=backend)


BACKWARD = [
    ((Y[:4], X, W, Y), {}, ValueError, r"dy must have shape \(batch, out\), here \(5, 3\); got shape \(4, 3\)"),
    ((Y, X, W, Y[:, :2]), {}, ValueError, r"y must have shape \(batch, out\), here \(5, 3\)"),
    ((Y, X, W.T.copy(), Y), {}, ValueError, r"w must have shape \(in, out\), here \(4, any\)"),
    ((Y, X.astype("f4"), W, Y), {}, TypeError, "x must be float64 like"),
    ((Y, X, W, None), {}, TypeError, "y must be float32 or float64"),
    ((Y, X, W, Y), {"activation": "gelu"}, ValueError, "the derivative of gelu needs the pre-activation: give z"),
    ((Y, X, W, Y), {"activation": "gelu", "z": Y[:2]}, ValueError, r"z must have shape \(batch, out\)"),
    ((Y, X, W, Y), {"activation": "snake"}, ValueError, "unknown activation 'snake'"),
    ((Y, X, W, Y), {"backend": "gpu"}, ValueError, "unknown backend 'gpu'; known: numpy, cpu"),
]


@pytest.mark.parametrize(("arguments", "more", "error", "message"), BACKWARD)
def test_wrong_arguments_of_backward(arguments, more, error, message):
    with pytest.raises(error, match=message):
        fo.dense_backward(*arguments, **{"backend": "numpy", **more})
