"""Networks on the device whose optimizer keeps states as codes of 8 bits: as on the host, whatever else is on."""

from __future__ import annotations

import numpy as np
import pytest
from helpers_cuda import require_device

require_device()
import fastopt as fo

pytestmark = pytest.mark.gpu

INPUTS, UNITS = 64, 64  # 4,096 weights in the first layer: codes; others are whole
ROWS, BATCH = 6, 3

# Options of the optimizer, of the first layer, and of the training.
OPTIONS = {
    "plain": ({}, {}, {}),
    "clip_norm": ({"clip_norm": 0.5}, {}, {"accumulate": 2}),
    "weight_decay": ({"weight_decay": 0.1, "l1": 1e-3}, {}, {}),
    "constraint": ({}, {"kernel_constraint": fo.constraints.MaxNorm(1.0)}, {}),
}


def trained(backend, bits=8, layer=None, ema=None, compute=None, dtype="float64", fit=None, **options):
    layers = [fo.Dense(UNITS, "tanh", **(layer or {})), fo.Dense(2, "softmax")]
    model = fo.Sequential(layers, seed=1, dtype=dtype, backend=backend, compute_dtype=compute)
    model.compile(fo.Adam(lr=1e-2, state_bits=bits, **options), "sparse_categorical_crossentropy", ema=ema)
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((ROWS, INPUTS)).astype(dtype), rng.integers(0, 2, ROWS)
    model.fit(x, y, epochs=2, batch_size=BATCH, verbose=False, **(fit or {}))
    return model


def assert_alike(ours, theirs, rtol=1e-9):
    for a, b in zip(ours.parameters, theirs.parameters, strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol)
    for mine, other in zip(ours.optimizer.states, theirs.optimizer.states, strict=True):
        assert [a.dtype for a in mine] == [b.dtype for b in other]
        for a, b in zip(mine, other, strict=True):
            np.testing.assert_allclose(a, b, rtol=max(rtol, 1e-6))


@pytest.mark.parametrize("name", OPTIONS)
def test_epochs_agree_with_the_reference(name):
    options, layer, fit = OPTIONS[name]
    ours, theirs = (trained(backend, layer=layer, fit=fit, **options) for backend in ("cuda", "numpy"))
    assert [array.dtype for array in ours.optimizer.states[0]] == [np.uint8, np.float32] * 2
    assert_alike(ours, theirs)


def test_averages_agree_with_the_reference():
    ours, theirs = (trained(backend, ema=fo.EMA(0.9)) for backend in ("cuda", "numpy"))
    assert_alike(ours, theirs)
    for a, b in zip(ours.averages, theirs.averages, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11)


def test_codes_are_not_whole_states():
    ours, whole = (trained("cuda", bits, dtype="float32") for bits in (8, 32))
    difference = np.abs(ours.parameters[0] - whole.parameters[0]).max()
    assert 1e-6 < difference < 0.02  # four steps of 0.01


def test_layers_that_compute_in_bfloat16():
    """Their update writes a copy of the parameters in 16 bits, too; a batch of the next epoch reads it."""
    ours, theirs = (trained(backend, compute="bfloat16", dtype="float32") for backend in ("cuda", "numpy"))
    for a, b in zip(ours.parameters, theirs.parameters, strict=True):
        np.testing.assert_allclose(a, b, atol=5e-3)
    x = np.random.default_rng(1).standard_normal((4, INPUTS)).astype(np.float32)
    np.testing.assert_allclose(ours.predict(x), theirs.predict(x), atol=1e-2)


def test_one_kernel_for_a_small_network_steps_aside(monkeypatch):
    monkeypatch.setenv("FASTOPT_CUDA_FUSED", "1")
    assert_alike(trained("cuda"), trained("numpy"))
