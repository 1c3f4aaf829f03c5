"""Checks and conversion of users' arrays."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastopt import _backends
from fastopt import _validation as fa
from fastopt.optim import _parameters as fp

from .optimizers import DTYPES, LAYOUTS, drawn


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_any_layout_becomes_contiguous_and_native(layout, dtype):
    a = LAYOUTS[layout](drawn((2, 3, 4), dtype))
    got = fa.as_float_array("x", a)
    assert got.flags.c_contiguous
    assert got.flags.aligned
    assert got.dtype == np.dtype(dtype)
    assert got.dtype.isnative
    np.testing.assert_array_equal(got, a)
    as_it_is = a.flags.c_contiguous and a.flags.aligned and a.dtype.isnative
    assert np.shares_memory(got, a) == as_it_is


@pytest.mark.parametrize(("value", "shape"), [(1, ()), ([1, 2.5], (2,)), ([[True], [2]], (2, 1)), ([], (0,))])
def test_lists_and_numbers_become_float64_or_the_dtype_given(value, shape):
    for dtype in (None, *fa.FLOATS):
        got = fa.as_float_array("x", value, dtype)
        assert (got.dtype, got.shape) == (dtype or fa.FLOAT64, shape)


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (np.arange(3), TypeError, "x must be float32 or float64; got int64"),
        (np.zeros(3, np.float16), TypeError, "got float16"),
        (np.zeros(3, complex), TypeError, "got complex128"),
        (np.array([1.0, None]), TypeError, "got object"),
        (None, TypeError, "got object"),
        ("1.5", TypeError, "x must be float32 or float64; got <U3"),
        (["1.5"], TypeError, r"x must hold real numbers; got <U3 \(a list\)"),
        ([1j], TypeError, "x must hold real numbers"),
        ([[1.0], [1.0, 2.0]], ValueError, "x must be a rectangular array of numbers"),
        (np.ma.array([1.0]), TypeError, "x must not be a masked array"),
    ],
)
def test_arrays_that_are_not_float(value, error, message):
    with pytest.raises(error, match=message):
        fa.as_float_array("x", value)


def test_another_dtype_than_that_of_the_others():
    with pytest.raises(TypeError, match="x must be float32 like the arrays it is used with; got float64"):
        fa.as_float_array("x", np.zeros(3), fa.FLOAT32)


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int64", "float16", ">f4", "float64"])
def test_numbers_of_any_type_are_converted(dtype):
    got = fa.as_numbers("x", np.array([[0, 1], [1, 0]], dtype)[:, ::-1], np.float32)
    assert got.tolist() == [[1, 0], [0, 1]]
    assert got.dtype == np.float32
    assert got.flags.carray


def test_numbers_too_large_become_infinite_and_are_reported():
    got = fa.as_numbers("x", np.array([1.0, 1e300]), np.float32)
    with pytest.raises(ValueError, match=r"x must be finite; got inf at index 1 \(1 such value\(s\)\)"):
        fa.check_finite("x", got)
    with pytest.raises(TypeError, match="real numbers"):
        fa.as_numbers("x", np.array(["a"]), np.float32)


def test_matrices():
    x = np.zeros((2, 3))
    assert fa.check_matrix("x", x, columns=3, rows=2) is x
    for bad, kwargs, message in [
        (np.zeros(3), {}, "x must have shape (batch, features); got 1 dimension(s), shape (3,)"),
        (x, {"columns": 4}, "x must have shape (batch, features), here (any, 4); got shape (2, 3)"),
        (x, {"rows": 3}, "x must have shape (batch, features), here (3, any); got shape (2, 3)"),
        (np.zeros((0, 3)), {}, "x must have at least one row and one column; got shape (0, 3)"),
        (np.zeros((3, 0)), {}, "x must have at least one row and one column; got shape (3, 0)"),
    ]:
        with pytest.raises(ValueError, match=re.escape(message)):
            fa.check_matrix("x", bad, **kwargs)


@given(
    st.lists(st.integers(0, 4), min_size=1), st.sampled_from(["int8", "uint64", "int64", "float32", "float64", ">i4"])
)
def test_labels(values, dtype):
    got = fa.check_labels("y", np.array(values, dtype), 5, len(values))
    assert got.tolist() == values
    assert got.dtype == np.int64


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        ([0, 5, 1], ValueError, "y must be class labels 0 ... 4, one for each of the 5 outputs; got 5 at index 1"),
        ([0, -1, 1], ValueError, "got -1 at index 1"),
        ([0.0, 1.5, 1.0], ValueError, "y must be whole class labels; got 1.5 at index 1"),
        ([0.0, np.nan, 1.0], ValueError, "y must be finite; got nan at index 1 (1 such value(s))"),
        ([0.0, 1e30, 1.0], ValueError, "got 1e+30 at index 1"),
        ([0, 1], ValueError, "y must be class labels of shape (3,); got shape (2,)"),
        ([[0], [1], [2]], ValueError, "y must be class labels of shape (3,); got shape (3, 1)"),
        ([True, False, True], TypeError, "y must be integer class labels; got bool"),
        (["a", "b", "c"], TypeError, "y must hold real numbers"),
        (np.array([0, 2**63 + 5, 1], np.uint64), ValueError, "at index 1"),
    ],
)
def test_labels_that_are_refused(labels, error, message):
    with pytest.raises(error, match=re.escape(message)):
        fa.check_labels("y", labels, 5, 3)


def test_no_labels():
    with pytest.raises(ValueError, match="at least one label"):
        fa.check_labels("y", np.zeros(0, int), 5)


def test_signs():
    for values in ([0, 1, 0], [-1, 1, -1]):
        assert fa.as_signs("y", np.array(values, np.float32)).tolist() == [-1, 1, -1]
    assert fa.as_signs("y", np.zeros(2)).tolist() == [-1, -1]
    for bad in ([-1, 0, 1], [0.5, 1], [1, 2]):
        with pytest.raises(ValueError, match="y must be -1 and 1, or 0 and 1; got values"):
            fa.as_signs("y", np.array(bad))


def test_names():
    assert fa.check_name("loss", "b", ("b", "a")) == "b"
    with pytest.raises(ValueError, match="unknown loss 'c'; known: b, a"):
        fa.check_name("loss", "c", ("b", "a"))
    with pytest.raises(TypeError, match="loss must be one of b, a; got None"):
        fa.check_name("loss", None, ("b", "a"))


# ---------------------------------------------------------------- parameters


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_parameter_reaches_its_memory(layout):
    a = LAYOUTS[layout](drawn((2, 3, 4), "float32"))
    parameter = fp.Parameter("p", a)
    without_copy = layout in ("contiguous", "fortran", "permuted", "memory not NumPy's", "part of a larger array")
    assert (parameter.kernel_view is not None) == without_copy
    loaded = parameter.load()
    assert loaded.flags.carray
    assert np.shares_memory(loaded, a) == without_copy
    loaded[...] = parameter.to_kernel_layout(np.arange(24, dtype=np.float32).reshape(2, 3, 4))
    parameter.store(loaded)
    np.testing.assert_array_equal(a, np.arange(24).reshape(2, 3, 4))
    state = parameter.new_state(0.0)
    parameter.to_user_layout(state)[...] = a
    np.testing.assert_array_equal(state, loaded)


@given(st.data())
def test_arrays_that_overlap_themselves_are_refused(data):
    """Against the count of distinct addresses, which is exact; only layouts that do not nest are refused beyond."""
    shape = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    steps = data.draw(st.lists(st.integers(-6, 6), min_size=len(shape), max_size=len(shape)))
    room = np.zeros(100, np.float32)[50:]
    a = np.lib.stride_tricks.as_strided(room, shape, [4 * step for step in steps])
    addresses = {sum(i * s for i, s in zip(index, steps, strict=True)) for index in np.ndindex(*shape)}
    if len(addresses) < a.size:
        with pytest.raises(ValueError, match="elements of p share memory"):
            fp.Parameter("p", a)
    else:
        nested = sorted((abs(s), n) for s, n in zip(steps, shape, strict=True) if n > 1)
        reach = 1
        for step, n in nested:
            if step < reach:
                return
            reach += (n - 1) * step
        fp.Parameter("p", a)


@given(st.data())
def test_overlap_of_many_arrays(data):
    """The search over sorted spans finds the same as comparing every pair."""
    whole = np.zeros(40)
    cuts = st.tuples(st.integers(0, 39), st.integers(1, 12), st.integers(1, 3))
    parts = [whole[start : start + length : step] for start, length, step in data.draw(st.lists(cuts, min_size=1))]
    *first, last = parts
    clash = any(np.shares_memory(a, b) for i, a in enumerate(first) for b in first[:i])
    parameters = [fp.Parameter(f"p{i}", part) for i, part in enumerate(first)]
    if clash:
        with pytest.raises(ValueError, match="share memory; each array must be given once"):
            fp.Memory(parameters)
        return
    memory = fp.Memory(parameters)
    if any(np.shares_memory(part, last) for part in first):
        with pytest.raises(ValueError, match="g shares memory with p"):
            memory.check_gradient("g", last)
    else:
        memory.check_gradient("g", last)


def test_overlap_that_is_too_hard_to_decide_is_refused(monkeypatch):
    def too_hard(*arrays, max_work):
        raise np.exceptions.TooHardError

    whole = np.zeros(8)
    monkeypatch.setattr(np, "shares_memory", too_hard)
    with pytest.raises(ValueError, match="p0 and p1 share memory"):
        fp.Memory([fp.Parameter("p0", whole[::2]), fp.Parameter("p1", whole[1::2])])


# ---------------------------------------------------------------- backends


def test_backends():
    assert _backends.DEFAULT in _backends.MODULES
    for name, module in _backends.MODULES.items():
        assert _backends.get(name).__name__ == module
    with pytest.raises(ValueError, match="unknown backend 'gpu'; known: numpy, cpu"):
        _backends.get("gpu")
    with pytest.raises(TypeError, match="backend must be one of numpy, cpu, cuda; got 3"):
        _backends.get(3)
