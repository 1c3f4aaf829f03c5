"""Norms on the device: right to the last bits of float64, and the same bits for any number of blocks."""

from __future__ import annotations

import math

import numpy as np
import pytest
from helpers_cuda import SIMULATED, on_device, require_device, to_device

require_device()
from fastopt.kernels import cuda, reference
from fastopt.kernels.cuda.runtime.array_interface import gpu_of, see
from fastopt.kernels.cuda.runtime.records import TILE

pytestmark = pytest.mark.gpu

# Sums of squares of n numbers, in whatever order, differ by less than n units in the last place; ours are short.
TOLERANCE = 1e-14


def drawn(sizes, dtype, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(size).astype(dtype) for size in sizes]


@pytest.mark.parametrize("sizes", [[0], [1], [3], [TILE], [TILE + 1, 5, 0, 3 * TILE + 2], [7] * 9])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_norms_equal_the_reference(sizes, dtype):
    gradients = drawn(sizes, dtype)
    ours = cuda.gradient_norm(on_device(*gradients))
    assert math.isclose(ours, reference.gradient_norm(gradients), rel_tol=TOLERANCE)


def test_both_dtypes_together():
    gradients = [*drawn([TILE + 3, 5], "float32"), *drawn([9, 0, TILE], "float64")]
    ours = cuda.gradient_norm(on_device(*gradients))
    assert math.isclose(ours, reference.gradient_norm(gradients), rel_tol=TOLERANCE)


def test_arrays_that_are_not_aligned():
    (g,) = drawn([2 * TILE + 5], "float32")
    norms = [cuda.gradient_norm([to_device(g, shift)]) for shift in (0, 1, 2, 3)]
    np.testing.assert_allclose(norms, reference.gradient_norm([g]), rtol=TOLERANCE)


def test_the_same_bits_for_any_number_of_blocks(monkeypatch):
    gradients = on_device(*drawn([5 * TILE + 3, 2 * TILE, 9], "float32"))
    gpu = gpu_of([see(gradients[0]).address])
    norms = set()
    for blocks in (1, 2, 5, 1000):
        monkeypatch.setattr(type(gpu), "max_blocks", lambda self, kernel, most=blocks: most)
        norms.update(cuda.gradient_norm(gradients) for _ in range(1 if SIMULATED else 20))
    assert len(norms) == 1


@pytest.mark.parametrize(("odd", "norm"), [(np.inf, np.inf), (-np.inf, np.inf), (np.nan, np.nan)])
@pytest.mark.parametrize("place", [0, TILE + 1, -1])
def test_what_is_not_finite(odd, norm, place):
    (g,) = drawn([2 * TILE + 3], "float32")
    g[place] = odd
    np.testing.assert_equal(cuda.gradient_norm([to_device(g)]), norm)


def test_squares_that_float32_could_not_hold():
    g = np.full(10, 1e30, "float32")
    assert math.isclose(cuda.gradient_norm([to_device(g)]), reference.gradient_norm([g]), rel_tol=TOLERANCE)
