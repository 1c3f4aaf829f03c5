"""Gradients of some rows of float16 and bfloat16 arrays: against the dense step, whose bits are tested elsewhere."""

import numpy as np
import pytest

import fastopt as fo
from fastopt.kernels.formulas.optimizers import CLASSES, OPTIMIZERS
from fastopt.kernels.reference.bits16 import widened

from .helpers_16bit import FORMS, KINDS, as_16bit, given, laid_out, numbers, values
from .optimizers import LAYOUTS, MAKE, make, snapshot

RULES = [rule for rule in OPTIMIZERS if not CLASSES[MAKE[rule][0].__name__].no_rows]
SHAPE = (9, 2, 3)
INDICES = np.array([4, 0, 8, 4, 5, 0, 4])


def summed(indices, gradient, kind):
    """The rows, sorted, and the sums of their values: in float32, rounded once where there are several."""
    wide, rows = widened(gradient), sorted(set(indices.tolist()))
    sums = [gradient[indices == row] for row in rows]
    for i, row in enumerate(rows):
        some = wide[indices == row]
        total = some[0]
        for more in some[1:]:
            total = total + more
        sums[i] = sums[i][0] if len(some) == 1 else as_16bit(total, kind)
    return np.array(rows), np.array(sums, gradient.dtype)


def made(rule, p, form, backend, **more):
    decay = {} if make(rule)._convention.decoupled else {"weight_decay": 0.1}  # decoupled, it is for all rows
    return make(rule, given(p), lr=0.05, l1=0.01, backend=backend, **decay, **FORMS[form], **more)


def after_dense_step(rule, p, optimizer, rows, gradient, form, call):
    """p and the states after a step, for the listed rows that of whole arrays, with zeros elsewhere in the gradient."""
    saved = optimizer.state_dict()
    old = [p.copy(), *map(np.copy, optimizer.states[0])]
    twin = old[0].copy()
    whole = made(rule, twin, form, "numpy")
    if optimizer.steps or rule != "momentum":  # whose first buffer is the gradient
        whole.load_state_dict(saved)
    g = np.zeros_like(p)
    g[rows] = gradient
    whole.step(given(g), **call)
    new = [twin, *whole.states[0]]
    for before, after in zip(old, new, strict=True):
        before[rows] = after[rows]
    return old


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule", RULES)
def test_listed_rows_take_the_dense_step_and_others_stay(rule, kind, form, backend):
    for row in ((), (1,), (33,), (2, 3), (0,)):
        p = numbers((9, *row), kind, 1)
        optimizer = made(rule, p, form, backend)
        for seed, call in ((2, {}), (3, {"grad_scale": 2.0}), (4, {})):
            gradient = numbers((len(INDICES), *row), kind, seed)
            rows, sums = summed(INDICES, gradient, kind)
            expected = after_dense_step(rule, p, optimizer, rows, sums, form, call)
            kept = gradient.copy()
            assert optimizer.step((INDICES, given(gradient)), **call)
            assert gradient.tobytes() == kept.tobytes()
            assert [a.tobytes() for a in (p, *optimizer.states[0])] == [a.tobytes() for a in expected]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule", RULES)
def test_bits_are_the_same_in_every_layout_and_backend(rule, kind, form):
    def run(layout, backend):
        p = laid_out(layout, numbers(SHAPE, kind, 1))
        optimizer = made(rule, p, form, backend)
        for seed in (2, 3):
            g = laid_out(layout, numbers((len(INDICES), *SHAPE[1:]), kind, seed))
            optimizer.step((INDICES, given(g)))
        return values([p]), repr(optimizer.states)

    first = run("contiguous", "numpy")
    rows_in_place = ("contiguous", "memory not NumPy's", "part of a larger array")
    for layout in LAYOUTS:
        found = run(layout, "cpu")
        assert found == run(layout, "numpy")
        # Rounding at random counts the elements of rows that are copied as they lie in the copy.
        if layout in rows_in_place or form == "master":
            assert found == first


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_small_updates_of_rows_are_not_lost(kind, form, backend):
    """Each step is a fraction of the distance to the next number; a row is listed twice, the other not at all."""
    table = as_16bit(np.ones((2, 2000)), kind)
    optimizer = fo.SGD(given(table), lr=2.0**-13, backend=backend, **FORMS[form])
    ones = given(as_16bit(np.ones((2, 2000)), kind))
    for _ in range(128):
        optimizer.step((np.array([1, 1]), ones))
    found = widened(table).astype(float)
    assert (found[0] == 1).all()
    np.testing.assert_allclose(found[1].mean(), 1 - 256 * 2.0**-13, rtol=2e-4)


def test_sums_are_taken_in_float32_and_may_overflow(backend):
    table = np.zeros((2, 1), np.float16)
    optimizer = fo.SGD(table, lr=1.0, backend=backend)
    # One by one, 2048 + 1 stays 2048 in float16; and 60000 + 60000 - 60000 overflows on the way, not in the end.
    optimizer.step((np.array([0, 0, 0, 1, 1, 1]), np.array([[2048], [1], [1], [6e4], [6e4], [-6e4]], np.float16)))
    assert table.tolist() == [[-2050], [-6e4]]
    before = snapshot(optimizer, table)
    spoilt = np.array([1, 1]), np.array([[6e4], [6e4]], np.float16)
    assert optimizer.step(spoilt, skip_nonfinite=True) is False
    assert snapshot(optimizer, table) == before
    assert optimizer.grad_norm == np.inf


def test_norms_are_of_the_sums(backend):
    table, bias = np.zeros((3, 1), np.float16), np.zeros(1)
    optimizer = fo.SGD([table, bias], lr=1.0, clip_norm=2.5, backend=backend)
    optimizer.step([(np.array([2, 2, 0]), np.array([[5], [-1], [0]], np.float16)), np.array([3.0])])
    assert optimizer.grad_norm == 5.0
    np.testing.assert_allclose(table[:, 0], [0, 0, -2.0], rtol=1e-3)
    np.testing.assert_allclose(bias, [-1.5], rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_listed_row_that_was_written_to_is_heeded(kind, backend):
    p = as_16bit(np.ones((3, 2)), kind)
    optimizer = fo.SGD(given(p), lr=0.25, backend=backend)
    p[1:] = as_16bit(np.full((2, 2), 3.0), kind)
    optimizer.step((np.array([1]), given(as_16bit(np.ones((1, 2)), kind))))
    assert widened(p).tolist() == [[1, 1], [2.75, 2.75], [3, 3]]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_refused_rows_leave_everything_alone(kind, form, backend):
    p = numbers((4, 3), kind)
    optimizer = fo.Adam(given(p), backend=backend, **FORMS[form])
    good = given(numbers((2, 3), kind, 1))
    optimizer.step((np.array([0, 2]), good))
    before = snapshot(optimizer, p)
    for rows, error, message in (
        ((np.array([0, 4]), good), ValueError, "the indices of grads must be in 0 ... 3"),
        ((np.array([0, 1]), np.ones((2, 3), np.float32)), TypeError, f"must be {kind} like params; got float32"),
        ((np.array([0]), good), ValueError, r"the values of grads must have the shape \(1, 3\)"),
        ((np.array([0, 1]), given(p[:2])), ValueError, "the values of grads shares memory with params"),
    ):
        with pytest.raises(error, match=message):
            optimizer.step(rows)
        assert snapshot(optimizer, p) == before
