"""Users' formulas on the device: activations, losses and rules, launch by launch and in the one kernel."""

from __future__ import annotations

import math

import numpy as np
import pytest
from helpers_cuda import on_device, require_device

require_device()
from helpers_network import compare

import fastopt as fo
from fastopt.kernels import cuda, reference
from fastopt.kernels.cuda.fused import select
from fastopt.kernels.formulas import OPTIMIZERS
from fastopt.kernels.spec import DenseSpec, LossSpec, Update

pytestmark = pytest.mark.gpu


def curved(z):
    """All that has another way on a device: exp, log, sqrt, powers, sines."""
    return math.log(1 + math.exp(min(z, 20))) * math.sqrt(abs(z) + 1) + math.sin(z) * abs(z) ** 1.5


def define():
    activation = fo.Activation.define("curved", curved, lambda z: math.cos(z) + math.tanh(z) * 0.5, check=False)
    softsign = fo.Activation.define("softsign", lambda z: z / (1 + abs(z)), lambda y: (1 - abs(y)) ** 2, slope_of="y")

    def cost(z, t, c):
        return c * math.log(math.cosh((z - t) / c))

    loss = fo.Loss.define("scaled", cost, lambda z, t, c: math.tanh((z - t) / c), {"c": 2.0})

    def update(p, g, s, lr, t, beta, eps):
        m = beta * s[0] + (1 - beta) * g
        return p - lr * m / (1 - beta**t) / (math.sqrt(m * m) + eps), m

    rule = fo.OptimizerRule.define("Normed", update, ["m"], {"beta": 0.9, "eps": 1.0})
    return (
        fo.Dense(1, activation).activation_key(), fo.Dense(1, softsign).activation_key(), loss().spec.name, rule().rule,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_functions_of_elements(dtype):
    curve, softsign, loss, _ = define()
    rtol = {"float32": 3e-6, "float64": 1e-13}[dtype]
    z = np.linspace(-5, 5, 37).astype(dtype)
    for name in (curve, softsign):
        want = np.empty_like(z)
        reference.activate(name, z, want)
        here, there = on_device(z, np.zeros_like(z))
        cuda.activate(name, here, there)
        np.testing.assert_allclose(there.copy_to_host(), want, rtol=rtol, atol=rtol)
    z, t = z[:36].reshape(12, 3), np.sin(z[:36]).reshape(12, 3)
    for spec in (LossSpec(loss), LossSpec(loss, {"c": 0.5})):
        want = np.empty_like(z)
        value = reference.loss(spec, z, t, want)
        here, there, gradient = on_device(z, t, np.zeros_like(z))
        np.testing.assert_allclose(cuda.loss(spec, here, there, gradient), value, rtol=rtol)
        np.testing.assert_allclose(gradient.copy_to_host(), want, rtol=rtol, atol=rtol)


def focal(log_p, gamma):
    return -((1 - math.exp(log_p)) ** gamma) * log_p


def focal_slope(log_p, gamma):
    p = math.exp(log_p)
    return gamma * p * (1 - p) ** (gamma - 1) * log_p - (1 - p) ** gamma


def focal_loss():
    return fo.Loss.define("focal", focal, focal_slope, {"gamma": 2.0}, targets="labels")(gamma=1.5).spec.name


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_losses_of_class_numbers(dtype, weighted, monkeypatch):
    """By launches: the one kernel of small networks has no such loss."""
    monkeypatch.setenv("FASTOPT_CUDA_FUSED", "1")
    weights = np.random.default_rng(1).random(10).astype(dtype) if weighted else None
    compare([DenseSpec(3, 4)], focal_loss(), ["accuracy"], dtype, weights=weights)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_rule_has_the_bits_of_the_reference(dtype):
    *_, rule = define()
    options = {**OPTIMIZERS[rule].options, "lr": 0.1, "weight_decay": 0.01, "l1": 0.001}
    rng = np.random.default_rng(0)
    p, g, m = rng.standard_normal((3, 41)).astype(dtype)
    here, there, state = on_device(p, g, m)
    for step in (1, 2, 3):
        reference.update([Update(rule, p, g, (m,), options, step)])
        cuda.update([Update(rule, here, there, (state,), options, step)])
    np.testing.assert_array_equal(here.copy_to_host(), p)
    np.testing.assert_array_equal(state.copy_to_host(), m)


@pytest.mark.parametrize("fused", ["0", "1"])
def test_networks(fused, monkeypatch, launch_by_launch):
    """By CUDA graphs, and by the one kernel, which has formulas as it has built-in ones."""
    curve, softsign, loss, rule = define()
    monkeypatch.setenv("FASTOPT_CUDA_FUSED", fused)
    launched, call = [], select.Fused.__call__
    monkeypatch.setattr(select.Fused, "__call__", lambda self, chunk: (launched.append(len(chunk)), call(self, chunk)))
    layers = [DenseSpec(3, 4, softsign), DenseSpec(4, 4, curve), DenseSpec(4, 2)]
    compare(layers, loss, ["mean_absolute_error"], "float32", rule=rule)
    assert bool(launched) == (fused == "1")
