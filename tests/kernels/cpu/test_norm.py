"""The norm of all gradients: against NumPy, and the same bits for any number of threads."""

import numpy as np
import pytest

from fastopt.kernels import cpu, reference
from fastopt.kernels.cpu.optim.norm import LANES, PIECE
from fastopt.kernels.cpu.runtime.primitives import INTERPRETED

SIZES = [0, 1, LANES - 1, LANES, LANES + 1] + ([] if INTERPRETED else [PIECE - 1, PIECE, PIECE + 1, 5 * PIECE + 7])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", SIZES)
def test_norms_equal_the_references(size, dtype):
    x = np.random.default_rng(size).standard_normal(size).astype(dtype)
    assert cpu.gradient_norm([x]) == pytest.approx(reference.gradient_norm([x]), rel=1e-14)
    assert cpu.gradient_norm([x]) == pytest.approx(float(np.linalg.norm(x.astype("float64"))), rel=1e-14)


def test_every_element_of_every_array_counts_once():
    sizes = [5, 0, LANES, 1] if INTERPRETED else [5, 0, PIECE, 1, PIECE + 3, 3 * PIECE]
    arrays = [np.ones(size, ("float32", "float64")[i % 2]) for i, size in enumerate(sizes)]
    assert cpu.gradient_norm(arrays) == np.sqrt(sum(sizes))
    assert cpu.gradient_norm([]) == cpu.gradient_norm([np.empty(0)]) == reference.gradient_norm([]) == 0
    for array in arrays:
        for i in {0, array.size // 2, array.size - 1} if array.size else ():
            array[i] = np.nan
            assert np.isnan(cpu.gradient_norm(arrays))
            array[i] = -np.inf
            assert cpu.gradient_norm(arrays) == np.inf
            array[i] = 1


@pytest.mark.skipif(INTERPRETED, reason="interpreted kernels run on one thread")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_norms_do_not_depend_on_the_number_of_threads(dtype, threads):
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(size).astype(dtype) for size in (300_001, 17, 100_000)]
    norms = []
    for count in (1, 2, 4):
        with threads(count):
            norms.append(cpu.gradient_norm(arrays))
    assert norms[0] == norms[1] == norms[2]
