"""Constraints and averages after each step on a GPU: against the reference."""

from __future__ import annotations

import numpy as np
import pytest
from helpers_cuda import require_device
from helpers_network import TOLERANCE, data_for, kept_in, params_for

require_device()

from fastopt.kernels import cuda, reference
from fastopt.kernels.formulas import CONSTRAINTS, OPTIMIZERS
from fastopt.kernels.spec import AfterStep, Batches, Constraint, DenseSpec, DropoutSpec, LossSpec, OptimizerSteps

pytestmark = pytest.mark.gpu

LOSS = "mean_squared_error"
LAYERS = [DenseSpec(3, 5, "tanh"), DropoutSpec(0.2), DenseSpec(5, 2)]
LIMITS = {
    "columns": [Constraint("max_norm", (0,), 0.5), None, Constraint("unit_norm"), Constraint("max_norm", most=0.1)],
    "rows": [Constraint("unit_norm", (1,)), Constraint("non_negative"), Constraint("max_norm", (1,), 0.5), None],
    "all": [Constraint("max_norm", (0, 1), 0.5), Constraint("unit_norm"), None, Constraint("non_negative")],
    "none": (),
}


def trained(backend, limits, dtype="float64", averages=True, frozen=(), epochs=2, held=False, **how):
    """[parameters], [averages] after some epochs, each a pass by itself."""
    rng, kept = np.random.default_rng(0), kept_in(dtype)
    params = params_for(rng, LAYERS, kept)
    averaged = [np.zeros_like(p) for p in params]
    x, y = data_for(rng, LOSS, 7, 3, 2, kept)
    network = backend.Network(
        LAYERS, params, kept, LossSpec(LOSS), [], **({"compute": dtype} if dtype == "bfloat16" else {})
    )
    batches = Batches(x, y, np.arange(7), 2, how.pop("accumulate", 1))
    states = [None if i in frozen else (np.zeros_like(p),) for i, p in enumerate(params)]
    for epoch in range(epochs):
        done = epoch * batches.steps
        shares = 1 / np.arange(done + 1, done + 1 + batches.steps)
        given = [None if i in frozen else average for i, average in enumerate(averaged)] if averages else ()
        after = AfterStep(limits, given, shares if averages else None)
        options = {**OPTIMIZERS["momentum"].options}
        rates = np.full(batches.steps, 0.05)
        network.train(batches, OptimizerSteps("momentum", states, options, rates, done, after=after, **how), seed=3)
    return params, averaged, network.predict(x)


def assert_agree(limits, dtype="float64", **how):
    ours, theirs = (trained(backend, limits, dtype, **how) for backend in (cuda, reference))
    rounding = {"rtol": 10 * TOLERANCE[dtype], "atol": 10 * TOLERANCE[dtype]}
    for a, b in zip((*ours[0], *ours[1], ours[2]), (*theirs[0], *theirs[1], theirs[2]), strict=True):
        np.testing.assert_allclose(a, b, **rounding)
    return ours


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("limits", LIMITS.values(), ids=LIMITS)
def test_against_the_reference(limits, dtype):
    assert_agree(limits, dtype)


@pytest.mark.parametrize("how", [{"accumulate": 3}, {"clip_norm": 0.1, "accumulate": 2}, {"frozen": (0, 3)}], ids=str)
def test_with_other_options(how):
    limits = [None if i in how.get("frozen", ()) else limit for i, limit in enumerate(LIMITS["columns"])]
    for averages in (True, False):
        assert_agree(limits, averages=averages, **how)


def test_layers_that_compute_in_16_bits_read_constrained_weights():
    assert_agree(LIMITS["columns"], "bfloat16", epochs=1)


def test_small_networks_are_no_single_kernel_with_them(monkeypatch):
    """It does not know of them."""
    monkeypatch.setenv("FASTOPT_CUDA_FUSED", "1")
    params, averages, _ = assert_agree(LIMITS["columns"], "float32")
    assert np.sqrt(np.square(params[2].astype(np.float64)).sum(axis=0)) == pytest.approx(1, rel=1e-5)
    assert all(average.any() for average in averages)


@pytest.mark.parametrize("shape", [(1, 1), (20, 5), (3, 37)])
@pytest.mark.parametrize("axes", [(0,), (1,), (0, 1)])
@pytest.mark.parametrize("name", CONSTRAINTS)
def test_every_constraint_on_arrays_of_several_pieces(name, axes, shape):
    """A rate of 0, so that nothing else changes the weights, whose sums of squares are exact."""
    found = []
    for backend in (cuda, reference):
        w = np.random.default_rng(0).integers(-4, 5, shape).astype(np.float32)
        network = backend.Network([DenseSpec(*shape, bias=False)], [w], "float32", LossSpec(LOSS), [])
        x, y = np.zeros((1, shape[0]), np.float32), np.zeros((1, shape[1]), np.float32)
        steps = OptimizerSteps(
            "sgd", [()], OPTIMIZERS["sgd"].options, np.zeros(1), after=AfterStep([Constraint(name, axes, 1.5)])
        )
        network.train(Batches(x, y, np.arange(1), 1), steps, 0)
        found.append(w)
    np.testing.assert_array_equal(*found)
