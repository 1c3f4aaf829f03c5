"""Activations and their slopes on arrays of 16 bits: rounded as the reference rounds, denormal numbers included."""

from __future__ import annotations

import numpy as np
import pytest
from helpers_cuda import require_device, to_device

require_device()
from fastopt.kernels.cuda.dense import epilogues
from fastopt.kernels.cuda.dense.epilogues import Shape
from fastopt.kernels.cuda.runtime.array_interface import gpu_of, see
from fastopt.kernels.reference.bits16 import store, widened

pytestmark = pytest.mark.gpu

DTYPES = {"float16": np.float16, "bfloat16": np.uint16}
# Ties, overflow, and what is denormal in float32 or float16, as operands and as results.
VALUES = [1.0, -3.5, 65504.0, 3.3e38, np.inf, -np.inf, 0.0, -0.0, 1e-39, -1e-40, 6e-8, -3e-5, 1.3e-38, 7e-20, -2e-19]


def of_16_bits(values, dtype):
    into = np.zeros(np.shape(values), DTYPES[dtype])
    store(np.asarray(values, np.float32), into)
    return into


def denormals_too(values, dtype):
    """The same, but bfloat16's denormal numbers stay as they are: somebody else may have written them."""
    exact = of_16_bits(values, dtype)
    if dtype == "bfloat16":
        values = np.asarray(values, np.float32)
        tiny = (values != 0) & (np.abs(values) < np.finfo(np.float32).tiny)
        exact[tiny] = (values[tiny].view(np.uint32) >> 16).astype(np.uint16)
    return exact


def rows(rng, dtype, columns):
    x = rng.choice(np.array(VALUES, np.float32), (9, columns))
    return denormals_too(x, dtype)


@pytest.mark.parametrize("columns", [5, 16])  # one by one, and in vectors
@pytest.mark.parametrize("dtype", DTYPES)
def test_outputs_and_kept_sums_are_rounded(dtype, columns):
    """y = z + b, and z, which keeps it, are the reference's bits."""
    rng = np.random.default_rng(0)
    z, b = rows(rng, dtype, columns), rows(rng, dtype, columns)[0]
    with np.errstate(all="ignore"):
        expected = of_16_bits(widened(z) + widened(b), dtype)
    ours, bias, y = to_device(z), to_device(b), to_device(np.zeros_like(z))
    places = see(ours).address, see(bias).address, see(y).address
    epilogues.activate(gpu_of({places[0]}), 0, "linear", *places, Shape(9, columns, columns, dtype))
    numbers = ~np.isnan(widened(expected))
    for array in (ours, y):
        found = array.copy_to_host()
        np.testing.assert_array_equal(np.isnan(widened(found)), ~numbers)
        np.testing.assert_array_equal(found.view(np.uint16)[numbers], expected.view(np.uint16)[numbers])


@pytest.mark.parametrize("columns", [5, 16])
@pytest.mark.parametrize("dtype", DTYPES)
def test_slopes_and_their_sums_are_rounded(dtype, columns):
    """dz = dy (1 - s^2), rounded, and db, the rounded sum of what was rounded."""
    rng = np.random.default_rng(1)
    dy, s = rows(rng, dtype, columns), of_16_bits(rng.uniform(-1, 1, (9, columns)), dtype)
    dy[~np.isfinite(widened(dy))] = 0
    with np.errstate(all="ignore"):
        wide = widened(s)
        dz = of_16_bits(widened(dy) * (np.float32(1) - wide * wide), dtype)
        db = of_16_bits(widened(dz).astype(np.float64).sum(0), dtype)
    arrays = to_device(dy), to_device(s), to_device(np.zeros_like(dy)), to_device(np.zeros_like(db))
    given, saved, written, total = (see(array).address for array in arrays)
    shape = Shape(9, columns, columns, dtype)
    assert epilogues.sums_bytes(shape) == 0
    epilogues.slopes(gpu_of({given}), 0, "tanh", given, saved, written, 0, total, shape)
    np.testing.assert_array_equal(arrays[2].copy_to_host().view(np.uint16), dz.view(np.uint16))
    np.testing.assert_array_equal(arrays[3].copy_to_host().view(np.uint16), db.view(np.uint16))
