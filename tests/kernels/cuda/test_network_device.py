"""Networks of real sizes on a device: the same bits in every run and in graphs, and how far they are from float64.

Under Numba's simulator sizes are tiny, which shows that the tests run.
"""

from __future__ import annotations

import numpy as np
import pytest
from helpers_cuda import SIMULATED, require_device

require_device()
from helpers_network import Run, data_for

from fastopt.kernels import cuda, reference
from fastopt.kernels.cuda.training import data_feed
from fastopt.kernels.formulas import LOSSES, METRICS
from fastopt.kernels.spec import DenseSpec, DropoutSpec

pytestmark = pytest.mark.gpu

ROWS, BATCH, WIDTHS = (11, 4, (3, 5, 4, 3)) if SIMULATED else (10_007, 256, (784, 300, 128, 10))
INPUTS, FIRST, SECOND, OUTPUTS = WIDTHS
LAYERS = [
    DenseSpec(INPUTS, FIRST, "relu"),
    DropoutSpec(0.2),
    DenseSpec(FIRST, SECOND, "gelu"),
    DenseSpec(SECOND, OUTPUTS),
]
LABELS = "sparse_categorical_crossentropy"


def trained(backend, dtype, loss=LABELS, epochs=2, layers=LAYERS, **options):
    x, y = data_for(np.random.default_rng(0), loss, ROWS, INPUTS, OUTPUTS, dtype)
    metrics = [name for name, metric in METRICS.items() if metric.goes_with(LOSSES[loss])]
    run, found = Run(backend, layers, loss, metrics, dtype), []
    for epoch in range(epochs):
        order = np.random.default_rng(epoch).permutation(ROWS)
        found.append(run.train(x, y, order, BATCH, lr=1e-3, **options)[:2])
    return *found, run.net.evaluate(x, y)[:2], run.net.predict(x), *run.params


def assert_same_bits(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_equal(a, b)


@pytest.mark.parametrize("options", [{}, {"accumulate": 2, "clip_norm": 0.5}], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_same_bits_in_every_run_and_in_graphs(dtype, options, monkeypatch):
    first = trained(cuda, dtype, **options)
    if not SIMULATED:
        assert_same_bits(trained(cuda, dtype, **options), first)
    monkeypatch.setenv("FASTOPT_CUDA_GRAPHS", "0")
    assert_same_bits(trained(cuda, dtype, **options), first)


def test_the_same_bits_from_streamed_data(monkeypatch):
    first = trained(cuda, "float32")
    monkeypatch.setattr(data_feed, "MEMORY_SHARE", 0)
    assert_same_bits(trained(cuda, "float32"), first)


@pytest.mark.parametrize("loss", [LABELS, "mean_squared_error"])
def test_against_float64(loss):
    """An epoch of float32 against one of the reference: smooth, with a rule that does not divide by small gradients,
    so rounding stays small.
    """
    layers = [layer._replace(activation="tanh") if isinstance(layer, DenseSpec) else layer for layer in LAYERS[:-1]]
    layers.append(LAYERS[-1])
    x, y = data_for(np.random.default_rng(0), loss, ROWS, INPUTS, OUTPUTS, "float32")
    runs = [Run(cuda, layers, loss, [], "float32", "sgd"), Run(reference, layers, loss, [], "float64", "sgd")]
    for p, q in zip(runs[0].params, runs[1].params, strict=True):
        q[...] = p
    order = np.random.default_rng(0).permutation(ROWS)
    wide = y if y.dtype == np.int64 else y.astype(np.float64)
    ours = runs[0].train(x, y, order, BATCH, lr=0.05)
    theirs = runs[1].train(x.astype(np.float64), wide, order, BATCH, lr=0.05)
    np.testing.assert_allclose(ours.losses, theirs.losses, rtol=1e-5)
    for p, q in zip(runs[0].params, runs[1].params, strict=True):
        np.testing.assert_allclose(p, q, rtol=0, atol=1e-5 * np.abs(q).max())
