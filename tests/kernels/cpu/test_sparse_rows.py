"""Sums and updates of rows: against the reference and plain Python, and the same bits for any number of threads."""

import numpy as np
import pytest

from fastopt.kernels import cpu, reference
from fastopt.kernels.cpu.optim.sparse_rows import AHEAD, BINS
from fastopt.kernels.cpu.runtime.primitives import INTERPRETED
from fastopt.kernels.formulas import OPTIMIZERS, dropout_stream
from fastopt.kernels.reference.bits16 import store, widened
from fastopt.kernels.spec import FORMS, MASTER, SAME, Update

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


DTYPES_16BIT = [np.dtype(np.float16), np.dtype(np.uint16)]  # which stands for bfloat16


def as_16bit(values, dtype):
    out = np.zeros(values.shape, dtype)
    store(values.astype("float32"), out)
    return out


@pytest.mark.parametrize("dtype", DTYPES_16BIT, ids=["float16", "bfloat16"])
@pytest.mark.parametrize("indices", INDICES.values(), ids=INDICES.keys())
@pytest.mark.parametrize("backend", [cpu, reference], ids=["cpu", "numpy"])
def test_sums_of_16_bits_are_those_of_float32_rounded_once(backend, indices, dtype):
    rng = np.random.default_rng(len(indices))
    indices = np.array(indices, np.int64)
    for row in ((), (3,), (70,), (2, 2), (0,)):
        values = as_16bit(rng.standard_normal((len(indices), *row)), dtype)
        kept = values.copy()
        rows, sums = backend.sum_rows(indices, values)
        wide_rows, wide_sums = reference.sum_rows(indices, widened(values))
        assert (sums.dtype, sums.shape) == (dtype, wide_sums.shape)
        assert rows.tolist() == wide_rows.tolist()
        assert sums.tobytes() == as_16bit(wide_sums, dtype).tobytes()
        assert values.tobytes() == kept.tobytes()


@pytest.mark.parametrize("backend", [cpu, reference], ids=["cpu", "numpy"])
def test_values_of_rows_that_are_listed_once_stay_as_they_are(backend):
    denormal = np.array([1, 1, 1], np.uint16)  # what rounding to bfloat16 writes as zero
    rows, sums = backend.sum_rows(np.array([3, 1, 3]), denormal)
    assert (rows.tolist(), sums.tolist()) == ([1, 3], [1, 0])


def test_the_sign_of_zero_is_kept():
    for backend in (cpu, reference):
        _, sums = backend.sum_rows(np.array([1, 0, 1]), np.array([-0.0, -0.0, -0.0]))
        assert np.signbit(sums).all()


def job(rule, dtype, n, row, count, seed=0, form=SAME):
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.choice(n, count, replace=False))
    wide = [rng.standard_normal((n, *row)), rng.standard_normal((count, *row))]
    p, g = (as_16bit(x, dtype) if dtype in DTYPES_16BIT else x.astype(dtype) for x in wide)
    states = [rng.random((n, *row)) for _ in OPTIMIZERS[rule].states]
    if dtype not in DTYPES_16BIT:
        states = [state.astype(dtype) for state in states]
    elif form == SAME:
        states = [as_16bit(state, dtype) for state in states]
    else:
        states = [*(state.astype("float32") for state in states), *([widened(p)] if form == MASTER else [])]
    options = {**OPTIMIZERS[rule].options, "lr": 0.1, "weight_decay": 0.1, "l1": 0.01, "clip_value": 1.5}
    return Update(rule, p, g, tuple(states), options, 3, form, dropout_stream(5, 1)), rows


EXACT = [("float32", SAME), ("float64", SAME), *((dtype, form) for dtype in DTYPES_16BIT for form in FORMS)]


@pytest.mark.parametrize(("dtype", "form"), EXACT)
@pytest.mark.parametrize("rule", OPTIMIZERS)
def test_updates_equal_the_references_and_leave_other_rows_alone(rule, dtype, form):
    for n, row, count in ((1, (), 1), (9, (1,), 4), (40, (17,), 2 * AHEAD + 1), (40, (2, 3), 40), (6, (0,), 3)):
        (ours, rows), (theirs, _), (before, _) = (job(rule, dtype, n, row, count, form=form) for _ in range(3))
        cpu.update_rows(ours, rows, 0.5)
        reference.update_rows(theirs, rows, 0.5)
        others = np.setdiff1d(np.arange(n), rows)
        for a, b, was in zip(
            (ours.p, *ours.states), (theirs.p, *theirs.states), (before.p, *before.states), strict=True
        ):
            assert a.tobytes() == b.tobytes()
            assert a[others].tobytes() == was[others].tobytes()
        changed = ours.states[-1] if form == MASTER else ours.p
        was = before.states[-1] if form == MASTER else before.p
        assert (changed[rows] != was[rows]).all() or (dtype in DTYPES_16BIT and form != MASTER)
        assert ours.g.tobytes() == before.g.tobytes()


@pytest.mark.skipif(INTERPRETED, reason="interpreted kernels run on one thread")
@pytest.mark.parametrize(("dtype", "form"), EXACT[:1] + EXACT[2:])
@pytest.mark.parametrize("columns", [1, 64, 2_000])
def test_bits_do_not_depend_on_the_number_of_threads(columns, dtype, form, threads):
    n, k = 200_000 // columns, 300_000 // columns
    rng = np.random.default_rng(columns)
    indices = rng.integers(0, n, k)
    indices[::3] = n // 2
    values = rng.standard_normal((k, columns))
    values = as_16bit(values, dtype) if dtype in DTYPES_16BIT else values.astype(dtype)
    found = []
    for count in (1, 2, 4):
        with threads(count):
            rows, sums = cpu.sum_rows(indices, values)
            ours, _ = job("adam", dtype, n, (columns,), 1, form=form)
            cpu.update_rows(ours._replace(g=sums), rows)
            found.append([a.tobytes() for a in (rows, sums, ours.p, *ours.states)])
    assert found[0] == found[1] == found[2]
