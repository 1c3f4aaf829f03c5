"""Losses, output activations and the vector exponential against the float64 reference."""

import math

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from fastopt.kernels import cpu, reference
from fastopt.kernels.cpu.dense import losses
from fastopt.kernels.cpu.runtime.compile import Kernel
from fastopt.kernels.cpu.runtime.primitives import INTERPRETED, address_of, view
from fastopt.kernels.formulas import LOSSES
from fastopt.kernels.formulas.functions import exp
from fastopt.kernels.spec import LossSpec

# Relative to the largest element: rounding of exp and of sums over a row.
TOLERANCE = {"float32": 4e-6, "float64": 1e-14}
SIZES = [(1, 1), (31, 3), (32, 10), (33, 2)] + ([] if INTERPRETED else [(1000, 10), (65, 300)])


def targets_for(rng, row, n, columns, dtype):
    if row.targets == "labels":
        return rng.integers(0, columns, n)
    t = rng.random((n, columns))
    if row.by_row:
        t /= t.sum(axis=1, keepdims=True)
    if row.signs:
        t = np.where(t > 0.5, 1, -1)
    return t.astype(dtype)


def check(rng, name, n, columns, dtype, params, scale=3.0):
    row, spec = LOSSES[name], LossSpec(name, params)
    z = (scale * rng.standard_normal((n, columns))).astype(dtype)
    t = targets_for(rng, row, n, columns, dtype)
    kept = z.copy(), t.copy()
    gradient, expected = np.full_like(z, np.nan), np.empty((n, columns))
    value = cpu.loss(spec, z, t, gradient)
    wide = t if row.targets == "labels" else t.astype("float64")
    should = reference.loss(spec, z.astype("float64"), wide, expected)
    assert math.isclose(value, should, rel_tol=TOLERANCE[dtype], abs_tol=TOLERANCE[dtype])
    assert gradient.dtype == dtype
    scale = max(np.abs(expected).max(), 1 / n)  # (softmax - target) / n: a difference of numbers of that size
    np.testing.assert_allclose(gradient, expected, rtol=0, atol=TOLERANCE[dtype] * scale)
    assert cpu.loss(spec, z, t) == value
    np.testing.assert_array_equal(z, kept[0])
    np.testing.assert_array_equal(t, kept[1])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", LOSSES)
def test_loss_and_gradient(name, dtype):
    rng = np.random.default_rng(0)
    for n, columns in SIZES:
        check(rng, name, n, columns, dtype, {})
        if LOSSES[name].params:
            check(rng, name, n, columns, dtype, dict.fromkeys(LOSSES[name].params, 0.3))


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_random_sizes_and_scales(data):
    name = data.draw(st.sampled_from(list(LOSSES)))
    n, columns = data.draw(st.integers(1, 70)), data.draw(st.integers(1, 20))
    params = {key: data.draw(st.floats(0.01, 0.9)) for key in LOSSES[name].params}
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    scale = data.draw(st.sampled_from([1e-3, 1.0, 30.0]))
    check(rng, name, n, columns, data.draw(st.sampled_from(["float32", "float64"])), params, scale)


@pytest.mark.parametrize("name", ["sparse_categorical_crossentropy", "categorical_crossentropy"])
def test_cross_entropy_of_extreme_logits_is_finite(name):
    z = np.array([[1e4, -1e4, 0], [-3e4, 3e4, 3e4]], "float32")
    t = np.array([0, 1]) if name.startswith("sparse") else np.array([[1, 0, 0], [0, 1, 0]], "float32")
    gradient = np.empty_like(z)
    assert math.isclose(cpu.loss(LossSpec(name), z, t, gradient), math.log(2) / 2, rel_tol=1e-6)
    np.testing.assert_allclose(gradient, [[0, 0, 0], [0, -0.25, 0.25]], atol=1e-7)


def test_confident_predictions_leave_no_denormal_gradient():
    z = np.linspace(-110, 0, 400, dtype="float32").reshape(1, -1)
    gradient = np.empty_like(z)
    cpu.loss(LossSpec("sparse_categorical_crossentropy"), z, np.array([399]), gradient)
    assert (np.abs(gradient[gradient != 0]) >= np.finfo("float32").tiny).all()
    assert (gradient == 0).any()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ["softmax", "sigmoid", "tanh", "linear"])
def test_activate(name, dtype, threads):
    for shape in SIZES:
        z = 5 * np.random.default_rng(1).standard_normal(shape).astype(dtype)
        y, expected = np.full_like(z, np.nan), np.empty(shape)
        with threads(2):
            cpu.activate(name, z, y)
        reference.activate(name, z.astype("float64"), expected)
        np.testing.assert_allclose(y, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
        cpu.activate(name, z, z)
        np.testing.assert_array_equal(z, y)
    cpu.activate(name, np.empty((0, 3), dtype), np.empty((0, 3), dtype))


def test_bits_do_not_depend_on_the_number_of_threads(threads):
    rng = np.random.default_rng(2)
    z, t = rng.standard_normal((500, 7)).astype("float32"), rng.integers(0, 7, 500)
    results = []
    for n in (1, 2, 4):
        gradient = np.empty_like(z)
        with threads(n):
            results.append((cpu.loss(LossSpec("sparse_categorical_crossentropy"), z, t, gradient), gradient))
    for value, gradient in results[1:]:
        assert value == results[0][0]
        np.testing.assert_array_equal(gradient, results[0][1])


def _exp_kernel(dtype):
    real = getattr(np, dtype)

    def kernel(x, y, count):
        X, Y = view(x, count, real), view(y, count, real)
        for i in range(count):
            Y[i] = exp(X[i])

    return Kernel(kernel, f"test_exp_{dtype}")


EXP_KERNELS = {dtype: _exp_kernel(dtype) for dtype in ("float32", "float64")}


@pytest.mark.parametrize(("dtype", "low", "high", "ulps"), [("float32", -87.3, 88.7, 1), ("float64", -708, 709.7, 2)])
def test_the_vector_exponential(dtype, low, high, ulps):
    rng = np.random.default_rng(0)
    count = 2_000 if INTERPRETED else 200_000
    x = np.concatenate([np.linspace(low, high, count), rng.standard_normal(count)]).astype(dtype)
    y = np.empty_like(x)
    EXP_KERNELS[dtype](address_of(x), address_of(y), len(x))
    expected = np.exp(x.astype(np.longdouble))
    assert (np.abs(y - expected) / np.spacing(np.abs(y))).max() <= ulps + (0.01 if np.longdouble is np.float64 else 0)
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, -2000, 2000], dtype)
    y = np.empty_like(special)
    EXP_KERNELS[dtype](address_of(special), address_of(y), len(special))
    np.testing.assert_array_equal(y, np.array([1, 1, np.inf, 0, np.nan, 0, np.inf], dtype))


def test_a_loss_has_at_most_one_parameter():
    assert losses.loss_param(LossSpec("huber")) == 1.0
    assert losses.loss_param(LossSpec("huber", {"delta": 0.5})) == 0.5
    assert losses.loss_param(LossSpec("hinge")) == 0.0
    assert all(len(row.params) <= 1 for row in LOSSES.values())
