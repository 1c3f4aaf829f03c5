"""The reference's normalization and noise: the textbook's formula, gradients by complex steps, torch, averages."""

from functools import partial

import numpy as np
import pytest
from helpers_normalization import gradients, normalized

from fastopt.kernels.reference.maths import normal_draws
from fastopt.kernels.reference.normalization import BatchNorm, GaussianNoise, LayerNorm
from fastopt.kernels.spec import BatchNormSpec, GaussianNoiseSpec, LayerNormSpec

CLASSES = {0: (BatchNorm, BatchNormSpec), 1: (LayerNorm, LayerNormSpec)}


def exact(x):
    return x


def layer_of(axis, columns, scale=True, center=True, dtype=np.float64, **more):
    """A layer with parameters drawn at random."""
    cls, spec = CLASSES[axis]
    rng = np.random.default_rng(1)
    params = [rng.random(columns).astype(dtype) + dtype(0.5) for _ in range(scale + center + 2 * (axis == 0))]
    return cls(spec(columns, 0.01, center, scale, **more), params, exact)


def parameters_of(layer, columns):
    gamma, beta = np.ones(columns), np.zeros(columns)
    return gamma if layer.gamma is None else layer.gamma, beta if layer.beta is None else layer.beta


@pytest.mark.parametrize(("scale", "center"), [(True, True), (False, True), (True, False), (False, False)])
@pytest.mark.parametrize(("rows", "columns"), [(1, 3), (6, 4), (5, 1)])
@pytest.mark.parametrize("axis", [0, 1])
def test_forward_and_backward(axis, rows, columns, scale, center):
    rng = np.random.default_rng(0)
    x, dy = rng.normal(3.0, 2.0, (rows, columns)), rng.normal(size=(rows, columns))
    layer = layer_of(axis, columns, scale, center)
    gamma, beta = parameters_of(layer, columns)
    f = partial(normalized, axis=axis, epsilon=0.01)
    np.testing.assert_allclose(layer.forward(x, 0, 1), f(x, gamma, beta), rtol=1e-13, atol=1e-13)
    dx, dgamma, dbeta = gradients(f, dy, x, gamma, beta)
    np.testing.assert_allclose(layer.backward(dy), dx, rtol=1e-12, atol=1e-12)
    wanted = [dgamma] * scale + [dbeta] * center
    for found, expected in zip(layer.gradients, wanted, strict=axis == 1):  # a BatchNorm's end with two of None
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
    assert layer.gradients[scale + center :] == [None, None] * (axis == 0)


def test_moving_averages_by_hand():
    # batches 1, 3 and 5, 5: means 2 and 5, biased variances 1 and 0; averages from 0 and 1 with momentum 0.75
    params = [np.zeros(1), np.ones(1)]
    layer = BatchNorm(BatchNormSpec(1, 1e-30, False, False, 0.75), params, exact)
    layer.forward(np.array([[1.0], [3.0]]), 0, 1)
    assert [p.tolist() for p in params] == [[0.5], [1.0]]
    layer.forward(np.array([[5.0], [5.0]]), 0, 2)
    assert [p.tolist() for p in params] == [[0.75 * 0.5 + 0.25 * 5], [0.75]]
    x = np.array([[1.0], [2.5]])
    np.testing.assert_allclose(layer.predict(x), (x - 1.625) / 0.75**0.5, rtol=1e-14)
    assert params[0][0] == 1.625  # prediction moves nothing


def test_a_fixed_layer_is_a_factor_and_a_shift():
    rng = np.random.default_rng(0)
    x, dy = rng.normal(size=(4, 3)), rng.normal(size=(4, 3))
    layer = layer_of(0, 3)
    layer.fixed = True
    before = [p.copy() for p in layer.moving]
    np.testing.assert_array_equal(layer.forward(x, 0, 1), layer.predict(x))
    np.testing.assert_allclose(layer.backward(dy), dy * layer.gamma / np.sqrt(layer.moving[1] + 0.01), rtol=1e-13)
    assert all(map(np.array_equal, layer.moving, before))


def test_rows_are_normalized_alike_in_prediction():
    layer, x = layer_of(1, 5), np.random.default_rng(0).normal(size=(3, 5))
    np.testing.assert_array_equal(layer.predict(x), layer.forward(x, 0, 1))


@pytest.mark.parametrize("axis", [0, 1])
def test_torch_agrees(axis):
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).normal(2.0, 3.0, (7, 5))
    layer = layer_of(axis, 5, **({"momentum": 0.75} if axis == 0 else {}))
    theirs = torch.nn.BatchNorm1d(5, 0.01, 0.25) if axis == 0 else torch.nn.LayerNorm(5, 0.01)
    theirs = theirs.double()
    with torch.no_grad():
        theirs.weight.copy_(torch.from_numpy(layer.gamma))
        theirs.bias.copy_(torch.from_numpy(layer.beta))
        if axis == 0:
            theirs.running_mean.copy_(torch.from_numpy(layer.moving[0]))
            theirs.running_var.copy_(torch.from_numpy(layer.moving[1]))
    before = [p.copy() for p in layer.moving] if axis == 0 else []
    given = torch.from_numpy(x).requires_grad_()
    y = theirs(given)
    (y**3).sum().backward()
    np.testing.assert_allclose(layer.forward(x, 0, 1), y.detach().numpy(), rtol=1e-12)
    np.testing.assert_allclose(layer.backward(3 * y.detach().numpy() ** 2), given.grad.numpy(), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(layer.gradients[0], theirs.weight.grad.numpy(), rtol=1e-12)
    np.testing.assert_allclose(layer.gradients[1], theirs.bias.grad.numpy(), rtol=1e-12)
    if axis == 0:
        np.testing.assert_allclose(layer.moving[0], theirs.running_mean.numpy(), rtol=1e-12)
        # torch's moving variance is the unbiased one: n / (n - 1) of ours
        ours = 0.75 * before[1] + 7 / 6 * (layer.moving[1] - 0.75 * before[1])
        np.testing.assert_allclose(ours, theirs.running_var.numpy(), rtol=1e-12)


@pytest.mark.parametrize("axis", [0, 1])
def test_large_means_do_not_spoil_the_variance(axis):
    """In float32, with a mean of 1000 deviations, sums of squares less squares of means would have no digit left."""
    x = np.random.default_rng(0).normal(1000.0, 1.0, (64, 64)).astype(np.float32)
    y = layer_of(axis, 64, False, False, np.float32).forward(x, 0, 1)
    assert y.dtype == np.float32
    np.testing.assert_allclose(y, normalized(x.astype(float), 1.0, 0.0, axis, 0.01), rtol=0, atol=1e-4)


def test_noise():
    layer, x = GaussianNoise(GaussianNoiseSpec(0.5), 3, exact), np.ones((2, 4))
    np.testing.assert_allclose(layer.forward(x, 9, 2), 1 + 0.5 * normal_draws(9, 3, 2, (2, 4)))
    assert layer.predict(x) is x
    assert layer.backward(x) is x
