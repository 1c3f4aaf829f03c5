"""Sums and updates of rows: against the reference and plain Python, and the same bits for any number of threads."""

import numpy as np
import pytest

from fastopt.kernels import cpu, reference
from fastopt.kernels.cpu.primitives import INTERPRETED
from fastopt.kernels.cpu.sparse_rows import AHEAD, BINS
from fastopt.kernels.formulas import OPTIMIZERS
from fastopt.kernels.spec import Update

INDICES = {
    "none": [],
    "one": [0],
    "sorted": [0, 3, 4, 9],
    "backwards": [9, 4, 3, 0],
    "all the same": [5] * 7,
    "each twice": [1, 0, 1, 0],
    "of several digits": [BINS, 0, BINS - 1, BINS * BINS, 1, BINS, BINS * BINS + 1, 0, BINS + 1],
    "large": [2**62, 3, 2**40, 2**63 - 1, 2**62 - 1, 2**40, 2**56],
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("indices", INDICES.values(), ids=INDICES.keys())
@pytest.mark.parametrize("backend", [cpu, reference], ids=["cpu", "numpy"])
def test_sums_are_taken_in_the_order_given(backend, indices, dtype):
    rng = np.random.default_rng(len(indices))
    indices = np.array(indices, np.int64)
    for row in ((), (3,), (2, 2), (0,)):
        values = (10.0 ** rng.integers(-5, 6, (len(indices), *row)) * rng.standard_normal((len(indices), *row))).astype(
            dtype
        )
        given = indices.copy(), values.copy()
        expected = {}
        for index, value in zip(indices.tolist(), values, strict=True):
            expected[index] = expected[index] + value if index in expected else value
        rows, sums = backend.sum_rows(indices, values)
        assert (rows.dtype, sums.dtype, sums.shape) == (np.int64, dtype, (len(expected), *row))
        assert rows.tolist() == sorted(expected)
        assert [s.tobytes() for s in sums] == [np.asarray(expected[i]).tobytes() for i in rows.tolist()]
        np.testing.assert_array_equal(indices, given[0])
        np.testing.assert_array_equal(values, given[1])


def test_the_sign_of_zero_is_kept():
    for backend in (cpu, reference):
        _, sums = backend.sum_rows(np.array([1, 0, 1]), np.array([-0.0, -0.0, -0.0]))
        assert np.signbit(sums).all()


def job(rule, dtype, n, row, count, seed=0):
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.choice(n, count, replace=False))
    p, g = rng.standard_normal((n, *row)).astype(dtype), rng.standard_normal((count, *row)).astype(dtype)
    states = tuple(rng.random((n, *row)).astype(dtype) for _ in OPTIMIZERS[rule].states)
    options = {**OPTIMIZERS[rule].options, "weight_decay": 0.1, "l1": 0.01, "clip_value": 1.5}
    return Update(rule, p, g, states, options, 3), rows


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("rule", OPTIMIZERS)
def test_updates_equal_the_references_and_leave_other_rows_alone(rule, dtype):
    for n, row, count in ((1, (), 1), (9, (1,), 4), (40, (17,), 2 * AHEAD + 1), (40, (2, 3), 40), (6, (0,), 3)):
        (ours, rows), (theirs, _) = job(rule, dtype, n, row, count), job(rule, dtype, n, row, count)
        before, _ = job(rule, dtype, n, row, count)
        cpu.update_rows(ours, rows, 0.5)
        reference.update_rows(theirs, rows, 0.5)
        others = np.setdiff1d(np.arange(n), rows)
        for a, b, was in zip(
            (ours.p, *ours.states), (theirs.p, *theirs.states), (before.p, *before.states), strict=True
        ):
            assert a.tobytes() == b.tobytes()
            assert a[others].tobytes() == was[others].tobytes()
        assert (ours.p[rows] != before.p[rows]).all()
        assert ours.g.tobytes() == before.g.tobytes()


@pytest.mark.skipif(INTERPRETED, reason="interpreted kernels run on one thread")
@pytest.mark.parametrize("columns", [1, 64, 2_000])
def test_bits_do_not_depend_on_the_number_of_threads(columns, threads):
    n, k = 200_000 // columns, 300_000 // columns
    rng = np.random.default_rng(columns)
    indices = rng.integers(0, n, k)
    indices[::3] = n // 2
    values = rng.standard_normal((k, columns)).astype("float32")
    found = []
    for count in (1, 2, 4):
        with threads(count):
            rows, sums = cpu.sum_rows(indices, values)
            ours, _ = job("adam", "float32", n, (columns,), 1)
            cpu.update_rows(ours._replace(g=sums), rows)
            found.append([a.tobytes() for a in (rows, sums, ours.p, *ours.states)])
    assert found[0] == found[1] == found[2]
