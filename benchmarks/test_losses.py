"""Losses with their gradients: the reference and the compiled kernels on the same arrays, in GB/s."""

import numpy as np
import pytest

from fastopt.benchmarks.work import loss_flops
from fastopt.kernels import reference
from fastopt.kernels.formulas import LOSSES
from fastopt.kernels.spec import LossSpec

SHAPES = [(64, 10), (8192, 10), (1024, 1000)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", LOSSES)
def test_loss_and_gradient(benchmark, note, backend, name, shape):
    benchmark.group = f"{name} {shape}"
    rng, row = np.random.default_rng(0), LOSSES[name]
    z = rng.standard_normal(shape).astype("float32")
    if row.by_row:
        t = rng.integers(0, shape[1], shape[0])
        t = t if row.targets == "labels" else np.eye(shape[1], dtype="float32")[t]
    else:
        t = np.where(rng.random(shape) > 0.5, 1, -1 if row.signs else 0).astype("float32")
    ours, theirs = np.empty_like(z), np.empty_like(z)
    spec = LossSpec(name)
    np.testing.assert_allclose(backend.loss(spec, z, t, ours), reference.loss(spec, z, t, theirs), rtol=1e-5)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 / shape[0])
    benchmark(backend.loss, spec, z, t, ours)
    moved, flops = 2 * z.nbytes + t.nbytes, loss_flops(name) * z.size
    note("loss", name, backend, size=z.size, shape="x".join(map(str, shape)), moved=moved, flops=flops)
