"""Products of operands rounded to bfloat16, and the processors that gain by them."""

from __future__ import annotations

import re

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from fastopt.kernels import cpu
from fastopt.kernels.cpu.dense import matmul_bfloat16
from fastopt.kernels.cpu.dense.blas import BFLOAT16, blas, products
from fastopt.kernels.cpu.dense.matmul import AS_IS, ROW_MAJOR, TRANSPOSED
from fastopt.kernels.cpu.dense.matmul_bfloat16 import DEPTH, ROWS, bfloat16_refusal, has_instruction
from fastopt.kernels.cpu.runtime.compile import Kernel, ffi
from fastopt.kernels.cpu.runtime.primitives import INTERPRETED, PYTHON_CODE, address_of
from fastopt.kernels.reference.bits16 import store, widened

KINDS = [(AS_IS, AS_IS), (TRANSPOSED, AS_IS), (AS_IS, TRANSPOSED), (TRANSPOSED, TRANSPOSED)]
SIZES = [(1, 1, 1), (1, 7, 3), (5, 1, 2), (3, 4, 1), (17, 9, 31), (2, 33, 5)]
SIZES += [] if INTERPRETED else [(64, 128, 96), (129, 65, 257), (ROWS + 1, 16, DEPTH), (8, 32, 2 * DEPTH + 1)]
EPS = float(np.finfo("f4").eps)
own = pytest.mark.skipif(not has_instruction(), reason="the processor, or LLVM, has no AVX512_BF16")


def rounded(x: np.ndarray) -> np.ndarray:
    """x as the nearest numbers of bfloat16, in float64."""
    bits = np.zeros(x.shape, np.uint16)
    store(np.ascontiguousarray(x), bits)
    return widened(bits).astype("f8")


def gemm(address, ta, tb, a, b, c, m, n, k, alpha=1.0, beta=0.0):
    """C (m, n) = alpha A (m, k) B (k, n) + beta C; a, b hold A, B as `ta`, `tb` say, with strides of their own."""
    lda, ldb, ldc = (array.strides[0] // 4 for array in (a, b, c))
    kind = "void(*)(int, int, int, int, int, int, float, intptr_t, int, intptr_t, int, float, intptr_t, int)"
    function = PYTHON_CODE[address] if INTERPRETED else ffi.cast(kind, address)
    function(
        ROW_MAJOR, ta, tb, m, n, k, alpha, address_of(a), lda, address_of(b), ldb, beta, address_of(c), ldc,
    )  # fmt: skip


def check_product(address, ta, tb, matrix, m, n, k):
    """Multiply matrices made by matrix(rows, columns), which may be wider than asked for."""
    a = matrix(m, k) if ta == AS_IS else matrix(k, m)
    b = matrix(k, n) if tb == AS_IS else matrix(n, k)
    c = np.full_like(matrix(m, n), np.nan)  # beta = 0 must not multiply what is there
    gemm(address, ta, tb, a, b, c, m, n, k)
    left = rounded(a[:, :k] if ta == AS_IS else a[:, :m].T)
    right = rounded(b[:, :n] if tb == AS_IS else b[:, :k].T)
    bound = (k + 2) * EPS * (np.abs(left) @ np.abs(right))
    assert (np.abs(c[:, :n] - left @ right) <= bound).all()
    assert np.isnan(c[:, n:]).all()
    gemm(address, ta, tb, a, b, c, m, n, k, alpha=0.25, beta=1.0)
    assert (np.abs(c[:, :n] - 1.25 * (left @ right)) <= 2 * bound).all()
    assert np.isnan(c[:, n:]).all()


@own
@settings(max_examples=200, deadline=None)
@given(
    kinds=st.sampled_from(KINDS),
    m=st.integers(1, 40) | st.integers(ROWS - 1, ROWS + 20),
    n=st.just(1) | st.integers(1, 80),
    k=st.integers(1, 70) | st.integers(DEPTH - 2, DEPTH + 40) | st.integers(2 * DEPTH - 1, 2 * DEPTH + 1),
    padding=st.just(0) | st.integers(0, 20),
)
def test_products_of_any_size(kinds, m, n, k, padding):
    rng = np.random.default_rng(0)
    check_product(
        BFLOAT16.gemm["float32"], *kinds,
        lambda rows, columns: rng.standard_normal((rows, columns + padding)).astype("f4"), m, n, k,
    )  # fmt: skip


@pytest.mark.parametrize(("ta", "tb"), KINDS)
@pytest.mark.parametrize("padding", [0, 3])
@pytest.mark.parametrize("kernel", [pytest.param("own", marks=own), "plain"])
def test_products_are_those_of_rounded_numbers(kernel, ta, tb, padding):
    address, rng = getattr(matmul_bfloat16, f"{kernel}_kernel")().address, np.random.default_rng(0)

    def matrix(rows, columns):
        return rng.standard_normal((rows, columns + padding)).astype("f4")

    for m, n, k in SIZES:
        check_product(address, ta, tb, matrix, m, n, k)


@pytest.mark.parametrize(("ta", "tb"), KINDS)
def test_sums_of_small_whole_numbers_are_exact(ta, tb):
    rng = np.random.default_rng(0)
    m, n, k = (5, 7, 9) if INTERPRETED else (77, 51, 2 * DEPTH + 7)
    a, b = (rng.integers(-9, 10, shape).astype("f4") for shape in ((m, k), (k, n)))
    c = np.empty((m, n), "f4")
    stored = [x if how == AS_IS else np.ascontiguousarray(x.T) for x, how in ((a, ta), (b, tb))]
    gemm(BFLOAT16.gemm["float32"], ta, tb, *stored, c, m, n, k)
    np.testing.assert_array_equal(c, a.astype("f8") @ b.astype("f8"))


SPECIAL = {
    1 + 2**-8: 1.0, 1 + 3 * 2**-8: 1 + 2**-6, 1 + 2**-8 + 2**-20: 1 + 2**-7,  # ties to even, and above one
    -1 - 2**-8: -1.0, 3.4e38: np.inf, 1e-39: 0.0, 2.0**-126: 2.0**-126, 65504.0: 65536.0,
    np.inf: np.inf, -np.inf: -np.inf, np.nan: np.nan,
}  # fmt: skip


@pytest.mark.parametrize(("x", "expected"), SPECIAL.items())
def test_rounding(x, expected):
    """Elements of A and of B, in the vectors of whole tiles and at the edges."""
    size = 3 if INTERPRETED else 70
    values, ones = np.full((size, 1), x, "f4"), np.ones((1, size), "f4")
    for a, b in ((values, ones), (np.ascontiguousarray(ones.T), np.ascontiguousarray(values.T))):
        c = np.zeros((size, size), "f4")
        gemm(BFLOAT16.gemm["float32"], AS_IS, AS_IS, a, b, c, size, size, 1)
        np.testing.assert_array_equal(c, np.full_like(c, expected))


@own
def test_products_do_not_depend_on_the_tiles():
    """Every element is summed in the same order wherever it lies in C."""
    address, rng, k = BFLOAT16.gemm["float32"], np.random.default_rng(0), DEPTH + 30
    rows = ROWS + 30
    a, b = rng.standard_normal((rows, k)).astype("f4"), rng.standard_normal((k, 75)).astype("f4")
    whole, part = np.empty((rows, 75), "f4"), np.empty((rows, 75), "f4")
    gemm(address, AS_IS, AS_IS, a, b, whole, rows, 75, k)
    for i, j in ((0, 0), (3, 17), (20, 74), (rows - 1, 40)):
        gemm(address, AS_IS, AS_IS, a[i:], b[:, j:], part, rows - i, 75 - j, k)
        np.testing.assert_array_equal(part[: rows - i, : 75 - j], whole[i:, j:])
    for ta, tb in KINDS:
        stored = [x if how == AS_IS else np.ascontiguousarray(x.T) for x, how in ((a, ta), (b, tb))]
        gemm(address, ta, tb, *stored, part, rows, 75, k)
        np.testing.assert_array_equal(part, whole)


def test_a_sum_of_nothing_is_zero():
    a, b, c = np.zeros((3, 1), "f4"), np.zeros((1, 4), "f4"), np.ones((3, 4), "f4")
    gemm(BFLOAT16.gemm["float32"], AS_IS, AS_IS, a, b, c, 3, 4, 0, beta=1.0)
    np.testing.assert_array_equal(c, 1)
    gemm(BFLOAT16.gemm["float32"], AS_IS, AS_IS, a, b, c, 3, 4, 0)
    np.testing.assert_array_equal(c, 0)


def test_layers_use_them_only_where_they_compute_in_bfloat16():
    assert products("float32") is products("float64") is blas()
    assert products("bfloat16") is BFLOAT16
    assert BFLOAT16.kernels("float32") == [matmul_bfloat16.matmul_bfloat16_kernel("float32")]
    assert all(isinstance(kernel, Kernel) for kernel in BFLOAT16.kernels("float32"))


# ---------------------------------------------------------------- processors
@pytest.mark.parametrize(
    ("processor", "features", "llvm", "refusal"),
    [
        ("znver5", "+avx512bf16", 20, ""),
        ("znver4", "+avx512bf16", 22, ""),
        ("znver4", "+avx512bf16", 15, "it needs an llvmlite with LLVM 20 or later"),
        ("haswell", "", 20, r"haswell has no instruction for it \(AVX512_BF16\)"),
        ("znver5", "", 20, r"znver5 has no instruction for it \(AVX512_BF16\)"),
        ("emeraldrapids", "+avx512bf16", 20, "bfloat16 run at 0.5 of the rate of float32 on emeraldrapids"),
        ("sapphirerapids", "+avx512bf16", 20, "bfloat16 run at 0.5 of the rate of float32 on sapphirerapids"),
        ("znver9", "+avx512bf16", 20, r"znver9 is not among the processors .* to gain by it \(znver4, znver5\)"),
    ],
)
def test_refusals(processor, features, llvm, refusal, monkeypatch):
    monkeypatch.setattr(matmul_bfloat16, "INTERPRETED", False)
    monkeypatch.setattr(matmul_bfloat16, "microarchitecture", lambda: processor)
    monkeypatch.setattr(matmul_bfloat16, "target_has", lambda feature: feature in features.split(","))
    monkeypatch.setattr(matmul_bfloat16.binding, "llvm_version_info", (llvm, 1, 0))
    assert re.fullmatch(f".*{refusal}" if refusal else "", bfloat16_refusal())


def test_interpreted_kernels_compute_in_bfloat16_everywhere(monkeypatch):
    monkeypatch.setattr(matmul_bfloat16, "INTERPRETED", True)
    monkeypatch.setattr(matmul_bfloat16, "microarchitecture", lambda: "haswell")
    assert bfloat16_refusal() == ""


def test_their_kernels_are_compiled_with_the_others():
    names = {kernel.name for kernel in cpu.all_kernels(["bfloat16"])}
    layers = {"activate_relu_bfloat16", "slope_relu_bfloat16", "gather_bfloat16", "dropout_bfloat16", "round_bfloat16"}
    assert (layers <= names) == (not bfloat16_refusal())
