"""Which BLAS is opened, what happens where there is none, and that every one multiplies as NumPy does."""

import importlib
import logging
import os
import sys
import threading
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from fastopt.kernels import cpu, reference
from fastopt.kernels.cpu.dense import layer as dense
from fastopt.kernels.cpu.dense.blas import PLAIN
from fastopt.kernels.cpu.dense.matmul import AS_IS, DEPTH, ROW_MAJOR, TRANSPOSED
from fastopt.kernels.cpu.runtime.compile import ffi
from fastopt.kernels.cpu.runtime.primitives import INTERPRETED, PYTHON_CODE, address_of
from fastopt.kernels.cpu.runtime.processors import AVX2, AVX512, NEON
from fastopt.kernels.formulas import OPTIMIZERS
from fastopt.kernels.spec import Batches, DenseSpec, LossSpec, OptimizerSteps

blas_ = importlib.import_module("fastopt.kernels.cpu.dense.blas")  # the package has a function of this name
choose = blas_.chosen_blas.__wrapped__  # without the memory of what was chosen

DTYPES = ["float32", "float64"]
TRANSPOSES = [(AS_IS, AS_IS), (TRANSPOSED, AS_IS), (AS_IS, TRANSPOSED), (TRANSPOSED, TRANSPOSED)]
SIZES = [(1, 1, 1), (1, 7, 3), (5, 1, 2), (3, 4, 1), (17, 9, 31), (2, 33, 5)]
SIZES += [] if INTERPRETED else [(64, 128, 96), (129, 65, 257)]


@pytest.fixture(autouse=True)
def no_choice(monkeypatch):
    monkeypatch.delenv("FASTOPT_BLAS", raising=False)


def known(name):
    """A BLAS, or the reason why it is not there."""
    if name == "none":
        return PLAIN
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTOPT_BLAS", name)
        try:
            return choose()
        except ValueError as error:
            pytest.skip(str(error))


def gemm(address, dtype, ta, tb, a, b, c, m, n, k, alpha=1.0, beta=0.0):
    """C (m, n) = alpha A (m, k) B (k, n) + beta C; a, b hold A, B as `ta`, `tb` say, with strides of their own."""
    width, real = np.dtype(dtype).itemsize, "float" if dtype == "float32" else "double"
    lda, ldb, ldc = (array.strides[0] // width for array in (a, b, c))
    kind = f"void(*)(int, int, int, int, int, int, {real}, intptr_t, int, intptr_t, int, {real}, intptr_t, int)"
    function = PYTHON_CODE[address] if INTERPRETED else ffi.cast(kind, address)
    function(
        ROW_MAJOR, ta, tb, m, n, k, alpha, address_of(a), lda, address_of(b), ldb, beta, address_of(c), ldc,
    )  # fmt: skip


def check_product(address, dtype, ta, tb, matrix, m, n, k):
    """Multiply matrices made by matrix(rows, columns), which may be wider than asked for."""
    a = matrix(m, k) if ta == AS_IS else matrix(k, m)
    b = matrix(k, n) if tb == AS_IS else matrix(n, k)
    c = np.full_like(matrix(m, n), np.nan)  # beta = 0 must not multiply what is there
    gemm(address, dtype, ta, tb, a, b, c, m, n, k)
    left = (a[:, :k] if ta == AS_IS else a[:, :m].T).astype("f8")
    right = (b[:, :n] if tb == AS_IS else b[:, :k].T).astype("f8")
    bound = (k + 2) * np.finfo(dtype).eps * (np.abs(left) @ np.abs(right))
    assert (np.abs(c[:, :n] - left @ right) <= bound).all()
    assert np.isnan(c[:, n:]).all()
    gemm(address, dtype, ta, tb, a, b, c, m, n, k, alpha=0.25, beta=1.0)
    assert (np.abs(c[:, :n] - 1.25 * (left @ right)) <= 2 * bound).all()
    assert np.isnan(c[:, n:]).all()


@settings(max_examples=200, deadline=None)
@given(
    dtype=st.sampled_from(DTYPES),
    kinds=st.sampled_from(TRANSPOSES),
    m=st.integers(1, 40),
    n=st.just(1) | st.integers(1, 80),
    k=st.integers(1, 40) | st.integers(DEPTH - 2, DEPTH + 40) | st.integers(2 * DEPTH - 1, 2 * DEPTH + 1),
    padding=st.just(0) | st.integers(0, 20),
)
def test_our_products_of_any_size(dtype, kinds, m, n, k, padding):
    rng = np.random.default_rng(0)
    check_product(
        known("fastopt").gemm[dtype], dtype, *kinds,
        lambda rows, columns: rng.standard_normal((rows, columns + padding)).astype(dtype), m, n, k,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
def test_our_products_do_not_depend_on_the_tiles(dtype):
    """Every element is summed in the same order wherever it lies in C."""
    address, rng = known("fastopt").gemm[dtype], np.random.default_rng(0)
    a, b = rng.standard_normal((21, DEPTH + 30)).astype(dtype), rng.standard_normal((DEPTH + 30, 75)).astype(dtype)
    whole, part = np.empty((21, 75), dtype), np.empty((21, 75), dtype)
    gemm(address, dtype, AS_IS, AS_IS, a, b, whole, 21, 75, DEPTH + 30)
    for i, j in ((0, 0), (3, 17), (20, 74)):
        gemm(address, dtype, AS_IS, AS_IS, a[i:], b[:, j:], part, 21 - i, 75 - j, DEPTH + 30)
        np.testing.assert_array_equal(part[: 21 - i, : 75 - j], whole[i:, j:])
    column = np.empty((21, 1), dtype)  # is made as a row
    gemm(address, dtype, AS_IS, AS_IS, a, b[:, 40:], column, 21, 1, DEPTH + 30)
    np.testing.assert_array_equal(column, whole[:, 40:41])


@pytest.mark.parametrize("name", ["none", "fastopt", "openblas", "mkl"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("ta", "tb"), TRANSPOSES)
@pytest.mark.parametrize("padding", [0, 3])
def test_products_are_numpys(name, dtype, ta, tb, padding):
    address, rng = known(name).gemm[dtype], np.random.default_rng(0)

    def matrix(rows, columns):
        return rng.standard_normal((rows, columns + padding)).astype(dtype)

    for m, n, k in SIZES:
        check_product(address, dtype, ta, tb, matrix, m, n, k)


@pytest.mark.parametrize("name", ["none", "fastopt", "openblas", "mkl"])
def test_from_several_threads_at_once(name):
    address, rng = known(name).gemm["float32"], np.random.default_rng(0)
    size = 8 if INTERPRETED else 150
    a, b = rng.standard_normal((2, size, size)).astype("f4")
    results = [np.zeros((size, size), "f4") for _ in range(6)]
    gate = threading.Barrier(len(results))

    def body(c):
        gate.wait()
        for _ in range(5):
            gemm(address, "float32", AS_IS, AS_IS, a, b, c, size, size, size)

    threads = [threading.Thread(target=body, args=(c,)) for c in results]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all((c == results[0]).all() for c in results)
    np.testing.assert_allclose(results[0], a @ b, rtol=1e-3, atol=1e-3)


def test_openblas_is_found_and_uses_one_thread():
    found = known("openblas")
    assert (found.name, Path(found.path).is_file()) == ("openblas", True)
    assert found.version[0].isdigit()
    prefix = "scipy_" if "scipy_openblas" in found.path else ""
    ffi.cdef(f"int {prefix}openblas_get_num_threads(void);", override=True)
    assert getattr(ffi.dlopen(found.path), f"{prefix}openblas_get_num_threads")() == 1


def test_mkl_is_found():
    found = known("mkl")
    assert (found.name, Path(found.path).is_file()) == ("mkl", True)
    assert found.version[0].isdigit()


@pytest.mark.parametrize(
    ("processor", "unit", "expected"),
    [
        ("emeraldrapids", AVX512, ["mkl", "fastopt", "openblas"]),
        ("znver4", AVX512, ["mkl", "fastopt", "openblas"]),
        ("znver5", AVX512, ["fastopt", "mkl", "openblas"]),
        ("haswell", AVX2, ["mkl", "fastopt", "openblas"]),
        ("neoverse-n1", NEON, ["mkl", "openblas"]),
    ],
)
def test_the_order_by_processor(monkeypatch, processor, unit, expected):
    def opened(name):
        return lambda path: blas_.Blas(name, "", str(path), {})

    monkeypatch.setattr(blas_, "microarchitecture", lambda: processor)
    monkeypatch.setattr(blas_, "vector_unit", lambda: unit)
    for name in ("mkl", "openblas"):
        monkeypatch.setattr(blas_, f"_{name}_path", lambda: Path("somewhere"))
        monkeypatch.setattr(blas_, f"_open_{name}", opened(name))
    present = {"mkl": "_mkl_path", "openblas": "_openblas_path"}
    monkeypatch.setattr(blas_, "available", lambda: True)
    for name in expected:
        assert choose().name == name
        if name in present:
            monkeypatch.setattr(blas_, present[name], lambda: None)
        else:
            monkeypatch.setattr(blas_, "available", lambda: False)


@pytest.mark.parametrize("value", ["none", "NONE", " none "])
def test_none_can_be_chosen(monkeypatch, caplog, value):
    monkeypatch.setenv("FASTOPT_BLAS", value)
    assert choose() is PLAIN
    assert caplog.records == []


@pytest.mark.parametrize("name", ["openblas", "mkl"])
def test_a_path_can_be_chosen(monkeypatch, name):
    found = known(name)
    monkeypatch.setenv("FASTOPT_BLAS", found.path)
    assert choose()[:3] == found[:3]
    for home in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(home, os.path.dirname(found.path))
    monkeypatch.setenv("FASTOPT_BLAS", os.path.join("~", os.path.basename(found.path)))
    assert choose()[:3] == found[:3]


def test_an_unknown_name(monkeypatch):
    monkeypatch.setenv("FASTOPT_BLAS", "atlas")
    with pytest.raises(ValueError, match="'mkl', 'fastopt', 'openblas', 'none' or the path .*; got 'atlas'"):
        choose()


def test_what_is_not_a_library(monkeypatch, tmp_path):
    path = tmp_path / "libblas.so"
    path.write_text("text")
    monkeypatch.setenv("FASTOPT_BLAS", str(path))
    with pytest.raises(ValueError, match="libblas.so is not a CBLAS library that can be used"):
        choose()


@pytest.mark.skipif(sys.platform == "win32", reason="extension modules are linked otherwise")
def test_a_library_without_the_functions(monkeypatch):
    import _ctypes

    monkeypatch.setenv("FASTOPT_BLAS", _ctypes.__file__)
    with pytest.raises(ValueError, match="is not a CBLAS library that can be used: .*cblas_sgemm"):
        choose()


@pytest.mark.parametrize(("name", "package"), [("mkl", "fastopt.mkl."), ("openblas", "scipy-openblas32")])
def test_one_that_is_not_installed(monkeypatch, name, package):
    monkeypatch.setattr(blas_, f"_{name}_path", lambda: None)
    monkeypatch.setenv("FASTOPT_BLAS", name)
    with pytest.raises(ValueError, match=f"{name} is not installed .pip install {package}"):
        choose()


def fail(path):
    raise OSError("wrong ELF class")


@pytest.mark.parametrize("name", ["mkl", "openblas"])
def test_one_that_cannot_be_opened(monkeypatch, name):
    monkeypatch.setattr(blas_, f"_{name}_path", lambda: Path("broken"))
    monkeypatch.setattr(blas_, f"_open_{name}", fail)
    monkeypatch.setenv("FASTOPT_BLAS", name)
    with pytest.raises(ValueError, match="broken could not be opened: wrong ELF class"):
        choose()


def test_our_own_where_the_processor_has_not_got_the_vectors(monkeypatch):
    monkeypatch.setattr(blas_, "available", lambda: False)
    monkeypatch.setenv("FASTOPT_BLAS", "fastopt")
    with pytest.raises(ValueError, match="needs a processor with AVX2, AVX-512 or NEON"):
        choose()


def test_the_next_one_where_the_first_cannot_be_opened(monkeypatch, caplog):
    monkeypatch.setattr(blas_, "available", lambda: False)
    expected = known("openblas")
    monkeypatch.setattr(blas_, "_mkl_path", lambda: Path("broken"))
    monkeypatch.setattr(blas_, "_open_mkl", fail)
    assert choose()[:3] == expected[:3]
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_without_any_the_plain_loops_run_and_it_is_said_once(monkeypatch, caplog):
    monkeypatch.setattr(blas_, "available", lambda: False)
    for name in ("mkl", "openblas"):
        monkeypatch.setattr(blas_, f"_{name}_path", lambda: None)
    blas_.chosen_blas.cache_clear()
    try:
        assert blas_.blas() is PLAIN
        assert blas_.blas() is PLAIN
    finally:
        blas_.chosen_blas.cache_clear()
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "scipy-openblas32" in caplog.text


def test_all_that_are_present_are_listed_and_none_is_chosen_by_that(monkeypatch):
    before = blas_.blas()
    found = blas_.present.__wrapped__()
    expected = [name for name in ("fastopt", "mkl", "openblas") if _is_there(name)]
    assert [library.name for library in found] == expected
    assert blas_.blas() is before
    # one that cannot be opened is left out
    monkeypatch.setattr(blas_, "_open_openblas", fail)
    monkeypatch.setattr(blas_, "chosen_blas", lambda: PLAIN)
    assert [library.name for library in blas_.present.__wrapped__()] == [n for n in expected if n != "openblas"]


def _is_there(name):
    try:
        known(name)
    except pytest.skip.Exception:
        return False
    return True


def test_the_library_of_a_path_is_present_too(monkeypatch):
    custom = PLAIN._replace(name="custom", path="/somewhere/libcblas.so")
    monkeypatch.setattr(blas_, "chosen_blas", lambda: custom)
    assert blas_.present.__wrapped__()[-1] is custom


def test_another_is_used_for_a_while_and_in_this_thread():
    before, seen = blas_.blas(), []
    with blas_.using(PLAIN):
        assert blas_.blas() is PLAIN
        assert dense.shape_fields(64, 8, 8, "float32")["gemm"] == PLAIN.gemm["float32"]
        thread = threading.Thread(target=lambda: seen.append(blas_.blas()))
        thread.start()
        thread.join()
        with pytest.raises(KeyError), blas_.using(before):
            raise KeyError
        assert blas_.blas() is PLAIN
    assert blas_.blas() is before
    assert seen == [before]


# ---------------------------------------------------------------- the whole network on each
@pytest.fixture(params=["none", "fastopt", "openblas", "mkl"])
def in_use(request):
    with blas_.using(known(request.param)):
        yield


@pytest.mark.parametrize("dtype", DTYPES)
def test_dense_layers_agree_with_the_reference(in_use, dtype, caplog):
    rng = np.random.default_rng(0)
    rows, inputs, outputs = (5, 4, 3) if INTERPRETED else (37, 65, 129)
    x, w, b, dy = (
        rng.standard_normal(shape).astype(dtype)
        for shape in ((rows, inputs), (inputs, outputs), (outputs,), (rows, outputs))
    )
    found = []
    for backend in (cpu, reference):
        y, dx, dw, db = np.empty_like(dy), np.empty_like(x), np.empty_like(w), np.empty_like(b)
        backend.dense_forward(x, w, b, "tanh", y)
        backend.dense_backward(dy, x, w, y, "tanh", dx, dw, db)
        found.append((y, dx, dw, db))
    tolerance = 50 * np.finfo(dtype).eps
    for ours, theirs in zip(*found, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance * np.abs(theirs).max())
    assert caplog.records == []


@pytest.mark.parametrize("dtype", DTYPES)
def test_training_agrees_with_the_reference(in_use, dtype):
    rows, steps = (8, 3) if INTERPRETED else (48, 30)
    options, found = dict(OPTIMIZERS["momentum"].options), []
    for backend in (cpu, reference):
        rng = np.random.default_rng(0)
        x, y = rng.standard_normal((rows, 7)).astype(dtype), rng.integers(0, 5, rows)
        params = [0.3 * rng.standard_normal(shape).astype(dtype) for shape in ((7, 33), (33,), (33, 5), (5,))]
        states = [(np.zeros_like(p),) for p in params]
        loss = LossSpec("sparse_categorical_crossentropy")
        net = backend.Network([DenseSpec(7, 33, "tanh"), DenseSpec(33, 5)], params, dtype, loss, ["accuracy"])
        order = np.arange(rows * steps) % rows
        batches = Batches(x, y, order, 16)
        totals = net.train(batches, OptimizerSteps("momentum", states, options, np.full(batches.steps, 0.05)), 0)
        found.append((totals.losses, *params))
    tolerance = 1e-4 if dtype == "float32" else 1e-12
    for ours, theirs in zip(*found, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance)
