"""Kernels of normalization and noise on the device, against the textbook's formulas."""

from __future__ import annotations

from functools import partial
from itertools import product

import numpy as np
import pytest
from helpers_cuda import require_device, to_device

require_device()
from helpers_network import compare
from helpers_normalization import gradients, normalized

from fastopt.kernels.cuda.dense import normalization, rows
from fastopt.kernels.cuda.runtime.array_interface import gpu_of, see
from fastopt.kernels.cuda.runtime.records import CLOCK, NOISE, NORMALIZATION
from fastopt.kernels.cuda.training import training_pass
from fastopt.kernels.formulas import dropout_stream
from fastopt.kernels.reference.bits16 import store, widened
from fastopt.kernels.reference.maths import normal_draws
from fastopt.kernels.spec import ActivationSpec, BatchNormSpec, DenseSpec, DropoutSpec, GaussianNoiseSpec, LayerNormSpec

pytestmark = pytest.mark.gpu

TOLERANCE = {"float32": 2e-5, "float64": 1e-12, "bfloat16": 2e-2}
# More and fewer rows and columns than a block has lanes, and gaps between rows.
SHAPES = [(1, 3, 3), (5, 7, 8), (11, 9, 16), (70, 2, 2)]
EPSILON, MOMENTUM = 0.01, 0.9


def at(array):
    return 0 if array is None else see(array).address


class Case:
    """A batch with rows `stride` elements apart, on the host in float64 and on the device."""

    def __init__(self, shape, dtype, scale, center):
        (self.rows, self.columns, self.stride), self.dtype = shape, dtype
        rng, self.real = np.random.default_rng(0), "float64" if dtype == "float64" else "float32"
        self.host, self.device = {}, {}
        for name in ("x", "dy", "y"):
            values = rng.standard_normal((self.rows, self.stride)).astype(self.real) + (name == "x")
            if dtype == "bfloat16":
                bits = np.empty(values.shape, np.uint16)
                store(values, bits)
                values, kept = widened(bits), bits
            else:
                kept = values
            self.host[name] = values[:, : self.columns].astype(float)
            self.device[name] = to_device(kept)
        wanted = {"gamma": scale, "beta": center, "moving_mean": True, "moving_variance": True}
        for name, there in wanted.items():
            values = (rng.random(self.columns) + 0.5).astype(self.real)
            self.host[name] = values.astype(float) if there else np.full(self.columns, float(name == "gamma"))
            self.device[name] = to_device(values) if there else None
        for name in ("dgamma", "dbeta"):
            self.device[name] = to_device(np.zeros(self.columns, self.real))
        for name in ("mean", "inverse"):
            self.device[name] = to_device(np.zeros(max(self.rows, self.columns)))
        self.device["settings"] = to_device(np.array([(EPSILON, MOMENTUM)], NORMALIZATION).view(np.float64))
        self.arrays = normalization.Arrays(*(at(self.device[name]) for name in normalization.Arrays._fields))
        self.sizes, self.gpu = normalization.Sizes(*shape, dtype), gpu_of({at(self.device["x"])})

    def found(self, name):
        found = self.device[name].copy_to_host()
        if self.dtype == "bfloat16" and found.dtype == np.uint16:
            found = widened(found)
        return found[:, : self.columns] if found.ndim == 2 else found

    def check(self, name, wanted):
        rounding = TOLERANCE[self.dtype]
        if name.startswith("moving") or name in ("dgamma", "dbeta"):
            rounding = TOLERANCE[self.real]  # never of 16 bits
        np.testing.assert_allclose(self.found(name), wanted, rtol=rounding, atol=rounding)

    def run(self, name, *which, **more):
        run = getattr(normalization, name)
        run(self.gpu, 0, *(at(self.device[key]) for key in which), self.arrays, *more.values(), self.sizes)


@pytest.mark.parametrize(("scale", "center"), [(True, True), (False, True), (True, False)])
@pytest.mark.parametrize(("dtype", "shape"), [*product(("float32", "float64"), SHAPES), ("bfloat16", SHAPES[1])])
@pytest.mark.parametrize("axis", [0, 1])
def test_forward_and_backward(axis, dtype, shape, scale, center):
    case = Case(shape, dtype, scale, center)
    x, gamma, beta, moving = (case.host[name] for name in ("x", "gamma", "beta", "moving_mean"))
    f = partial(normalized, axis=axis, epsilon=EPSILON)
    dx, dgamma, dbeta = gradients(f, case.host["dy"], x, gamma, beta)
    gaps = case.device["y"].copy_to_host()[:, case.columns :]
    to = {"dgamma": at(case.device["dgamma"]), "dbeta": at(case.device["dbeta"])}
    if axis == 0:
        case.run("batch_norm", "x", "y")
        case.check("moving_mean", MOMENTUM * moving + (1 - MOMENTUM) * x.mean(axis=0))
        variance = case.host["moving_variance"]
        case.check("moving_variance", MOMENTUM * variance + (1 - MOMENTUM) * x.var(axis=0))
        case.run("batch_norm_backward", "x", "dy", **to, needs_dx=True)
    else:
        case.run("layer_norm", "x", "y")
        case.run("layer_norm_gradients", "x", "dy", **to)
        case.run("layer_norm_backward", "x", "dy")
    case.check("y", f(x, gamma, beta))
    case.check("dy", dx)
    case.check("dgamma", dgamma)
    case.check("dbeta", dbeta)
    np.testing.assert_array_equal(case.device["y"].copy_to_host()[:, case.columns :], gaps)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_by_moving_averages(dtype, shape):
    case = Case(shape, dtype, True, True)
    x, gamma, beta, mean, variance = (
        case.host[name] for name in ("x", "gamma", "beta", "moving_mean", "moving_variance")
    )
    case.run("batch_norm_moving", "x", "y")
    case.check("y", gamma * (x - mean) / np.sqrt(variance + EPSILON) + beta)
    case.check("moving_mean", mean)


def test_gradients_that_are_not_wanted():
    case = Case(SHAPES[1], "float64", True, True)
    case.run("batch_norm", "x", "y")
    case.run("batch_norm_backward", "x", "dy", dgamma=0, dbeta=at(case.device["dbeta"]), needs_dx=False)
    case.check("dgamma", np.zeros(case.columns))
    case.check("dbeta", case.host["dy"].sum(axis=0))
    case.check("dy", case.host["dy"])


@pytest.mark.parametrize("columns", [8, 5])  # in vectors, and one by one
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_noise(dtype, columns):
    x = np.random.default_rng(0).standard_normal((6, columns)).astype(dtype)
    source, into = to_device(x), to_device(np.zeros_like(x))
    clock = to_device(np.array([(1, 4)], CLOCK).view(np.int64))
    settings = to_device(np.array([(0.5, dropout_stream(7, 2))], NOISE).view(np.int64))
    args = 6, columns, columns, dtype, at(clock), at(settings)
    rows.noise(gpu_of({at(source)}), 0, at(source), at(into), *args)
    wanted = x + 0.5 * normal_draws(7, 2, 5, (6, columns))
    np.testing.assert_allclose(into.copy_to_host(), wanted, rtol=0, atol=TOLERANCE[dtype])


MSE = "mean_squared_error"
NETWORKS = {
    "batch norm": [DenseSpec(3, 5), BatchNormSpec(5), DenseSpec(5, 2)],
    "layer norm": [DenseSpec(3, 5, "tanh"), LayerNormSpec(5), DenseSpec(5, 2)],
    "first": [BatchNormSpec(3), LayerNormSpec(3, scale=False), DenseSpec(3, 2)],
    "activations": [ActivationSpec(3, "tanh"), DenseSpec(3, 5), BatchNormSpec(5), ActivationSpec(5, "silu"),
                    DenseSpec(5, 2)],
    "first, without gamma and beta": [BatchNormSpec(3, center=False, scale=False), DenseSpec(3, 2)],
    "all": [GaussianNoiseSpec(0.2), DenseSpec(3, 5, "tanh"), BatchNormSpec(5, center=False), DropoutSpec(0.3),
            LayerNormSpec(5), GaussianNoiseSpec(0.3), DenseSpec(5, 4, "silu"), GaussianNoiseSpec(0.1), DenseSpec(4, 2)],
}  # fmt: skip


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
@pytest.mark.parametrize("layers", NETWORKS.values(), ids=NETWORKS)
def test_networks(layers, dtype):
    compare(layers, MSE, [], dtype, "momentum", n=7, epochs=2 if dtype == "float64" else 1, weight_decay=0.1)


def test_steps_of_several_batches_and_clipping():
    compare(NETWORKS["all"], MSE, [], "float64", "momentum", n=7, batch_size=2, accumulate=2, clip_norm=0.1)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_rows_with_weights(accumulate):
    """A step whose weights sum to 0 leaves the moving averages as they are, too."""
    weights = np.array([1.0, 2.0, 0.0, 0.5, 1.0, 0.0, 3.0, 1.0])
    weights[np.random.default_rng(0).permutation(8)[: 2 * accumulate]] = 0  # the first step of the first epoch
    more = {"batch_size": 2, "accumulate": accumulate, "weights": weights}
    compare(NETWORKS["first"], MSE, [], "float64", "momentum", n=8, **more)


def test_fixed_layers():
    layers = [DenseSpec(3, 5), BatchNormSpec(5), DenseSpec(5, 2)]
    compare(layers, MSE, [], "float64", "momentum", n=7, fixed=(1,))


def test_updates_of_single_layers(monkeypatch):
    """Layers are updated one by one where all of their parameters are."""
    monkeypatch.setattr(training_pass, "BY_LAYER", 0)
    compare(NETWORKS["layer norm"], MSE, [], "float64", "momentum", n=7)
    compare(NETWORKS["batch norm"], MSE, [], "float64", "momentum", n=7)


def test_one_kernel_for_many_batches_knows_nothing_of_these_layers(monkeypatch):
    monkeypatch.setenv("FASTOPT_CUDA_FUSED", "1")
    compare(NETWORKS["all"], MSE, [], "float64", "momentum", n=5)
