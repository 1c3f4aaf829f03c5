"""Dense layers on the device against the float64 reference: the verbs, and our own kernels."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
from helpers_blaslt import Library
from helpers_cuda import SIMULATED, drawing, require_device, to_device
from helpers_products import assert_close as products_close
from helpers_products import rounded
from hypothesis import given

require_device()
from fastopt.kernels import cuda, reference
from fastopt.kernels.cuda.dense import blaslt, epilogues
from fastopt.kernels.cuda.dense import layer as dense
from fastopt.kernels.cuda.dense.blaslt_simulator import decode, encode
from fastopt.kernels.cuda.dense.epilogues import TILE_ROWS, Shape
from fastopt.kernels.cuda.dense.gemm import Gemm, gemm_of
from fastopt.kernels.cuda.dense.products import Layer, plan_backward, plan_forward
from fastopt.kernels.cuda.dense.reductions import COLUMN_LANES
from fastopt.kernels.cuda.runtime.array_interface import gpu_of, see
from fastopt.kernels.formulas import ACTIVATIONS

pytestmark = pytest.mark.gpu

DTYPES = ["float32", "float64"]
# Of the largest sum of the terms' sizes, as for the CPU; TF32 rounds operands to 2^-11.
TOLERANCE = {"float32": 32 * 1.2e-7, "float64": 32 * 2.3e-16, "tf32": 2 * 4.9e-4}
SIZES = [
    (1, 1, 1),
    (2, 3, 5),
    (5, 4, 8),
    (9, 0, 4),
    (TILE_ROWS + 1, 3, 4 * COLUMN_LANES + 1),
    (2 * TILE_ROWS, 2, 4 * COLUMN_LANES),
]
if not SIMULATED:
    SIZES += [(64, 784, 256), (4096, 33, 100), (1000, 65, 1), (257, 1024, 4096)]


def drawn(rng, rows, inputs, outputs, dtype, bias=True):
    x, dy = rng.standard_normal((rows, inputs)), rng.standard_normal((rows, outputs))
    w, b = rng.standard_normal((inputs, outputs)) / max(1, inputs) ** 0.5, rng.standard_normal(outputs)
    return [a.astype(dtype) for a in (x, w, b, dy)]


def double(*arrays):
    return [None if a is None else a.astype(np.float64) for a in arrays]


def empty(shape, dtype, shift=0):
    """NaN where nothing is written shows."""
    return to_device(np.full(shape, np.nan, dtype), shift)


def assert_close(ours, theirs, dtype, sizes):
    ours = ours.copy_to_host()
    assert ours.dtype == ("float32" if dtype == "tf32" else dtype)
    scale = max(sizes.max(initial=0), 1e-30)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE[dtype] * scale)


def check(rng, rows, inputs, outputs, dtype, activation, bias=True, wanted=(True,) * 3, shift=0, tf32=False):
    uses_z = ACTIVATIONS[activation].uses == "z"
    host = drawn(rng, rows, inputs, outputs, dtype)
    x, w, b, dy = (to_device(a, shift) for a in host)
    X, W, B, DY = double(*host)
    y, z = empty(dy.shape, dtype, shift), empty(dy.shape, dtype, shift) if uses_z else None
    cuda.dense_forward(x, w, b if bias else None, activation, y, z, tf32=tf32)
    Y, Z = np.empty(DY.shape), np.empty(DY.shape) if uses_z else None
    reference.dense_forward(X, W, B if bias else None, activation, Y, Z)
    kind = "tf32" if tf32 and dtype == "float32" else dtype
    sizes = np.abs(X) @ np.abs(W) + (np.abs(B) if bias else 0)
    assert_close(y, Y, kind, sizes)
    if uses_z:
        assert_close(z, Z, kind, sizes)

    s = z if uses_z else y  # a kink may lie between two roundings of z
    ours = [empty(a.shape, dtype, shift) if want else None for a, want in zip((x, w, b), wanted, strict=True)]
    theirs = [np.empty(a.shape) for a in (x, w, b)]
    cuda.dense_backward(dy, x, w, s, activation, *ours, tf32=tf32)
    reference.dense_backward(DY, X, W, s.copy_to_host().astype(np.float64), activation, *theirs)
    terms = np.abs(DY) @ np.abs(W).T, np.abs(X).T @ np.abs(DY), np.abs(DY).sum(axis=0)
    for mine, other, sizes in zip(ours, theirs, terms, strict=True):
        if mine is not None:
            assert_close(mine, other, kind, sizes)
    for array, before in zip((x, w, b, dy), host, strict=True):
        np.testing.assert_array_equal(array.copy_to_host(), before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_forward_and_backward(activation, dtype):
    rng = np.random.default_rng(0)
    for sizes in SIZES if activation in ("linear", "relu") else SIZES[:4]:
        check(rng, *sizes, dtype, activation)


@drawing(25)
@given(data=st.data())
def test_random_layers(data):
    sizes = [data.draw(st.integers(1, 20 if SIMULATED else 300), label=name) for name in ("rows", "in", "out")]
    dtype, activation = data.draw(st.sampled_from(DTYPES)), data.draw(st.sampled_from([*ACTIVATIONS]))
    wanted = data.draw(st.tuples(st.booleans(), st.booleans(), st.booleans()))
    bias, shift, tf32 = data.draw(st.booleans()), data.draw(st.integers(0, 3)), data.draw(st.booleans())
    check(np.random.default_rng(data.draw(st.integers(0, 2**32))), *sizes, dtype, activation, bias, wanted, shift, tf32)


@pytest.mark.parametrize(("rows", "outputs"), [(0, 4), (3, 0), (0, 0)])
def test_nothing_to_do(rows, outputs):
    x, w, b, dy = (to_device(a) for a in drawn(np.random.default_rng(0), rows, 3, outputs, "float32"))
    y = empty((rows, outputs), "float32")
    cuda.dense_forward(x, w, b, "relu", y)
    gradients = [empty(a.shape, "float32") for a in (x, w, b)]
    cuda.dense_backward(dy, x, w, y, "relu", *gradients)
    for gradient in gradients:
        assert not gradient.copy_to_host().any()


def test_the_preactivation_of_any_activation():
    x, w, b, dy = drawn(np.random.default_rng(1), 4, 3, 6, "float32")
    for activation in ("linear", "relu", "gelu_tanh"):
        y, z = empty(dy.shape, "float32"), empty(dy.shape, "float32")
        cuda.dense_forward(to_device(x), to_device(w), to_device(b), activation, y, z)
        np.testing.assert_allclose(z.copy_to_host(), x @ w + b, rtol=1e-5, atol=1e-5)


def test_nan_stays_nan():
    x, w = np.full((1, 2), np.nan, "float32"), np.ones((2, 3), "float32")
    for activation in ACTIVATIONS:
        y = empty((1, 3), "float32")
        cuda.dense_forward(to_device(x), to_device(w), None, activation, y)
        assert np.isnan(y.copy_to_host()).all(), activation


@pytest.mark.parametrize(
    ("kinds", "said"), [(["int32"] * 3, "int32"), (["float32", "float64", "float32"], "float32, float64")]
)
def test_dtypes_that_do_not_go(kinds, said):
    x, w, y = (to_device(np.ones(shape, kind)) for shape, kind in zip([(2, 3), (3, 4), (2, 4)], kinds, strict=True))
    with pytest.raises(TypeError, match=f"one dtype, float16, bfloat16, float32, float64; got {said}$"):
        cuda.dense_forward(x, w, None, "relu", y)


@pytest.mark.skipif(not SIMULATED, reason="a device has the real one")
@pytest.mark.parametrize("activation", ["linear", "relu", "gelu_tanh"])
def test_through_descriptors(activation, monkeypatch):
    """The same with the real library's descriptors, read by a simulation."""
    try:
        library = Library(blaslt.library())
    except blaslt.BlasLtError:
        pytest.skip("needs cuBLASLt: pip install nvidia-cublas")
    monkeypatch.setattr(blaslt, "library", lambda: library)
    work = Gemm(gpu_of([]))
    monkeypatch.setattr(dense, "gemm_of", lambda gpu: work)
    rng = np.random.default_rng(8)
    for dtype, shift, tf32 in [("float32", 0, False), ("float32", 1, True), ("float64", 0, False)]:
        for _ in range(2):
            check(rng, 9, 7, 16, dtype, activation, True, (True,) * 3, shift, tf32)
    assert library.calls["matmul"] == 2 * 3 * 3  # forward, weights and inputs


# ---------------------------------------------------------------- 16 bits
def there(values, kind):
    """An array on the device: bfloat16 as words, for only torch has that type."""
    return to_device(encode(np.asarray(values), kind))


def numbers(array, kind):
    return decode(array.copy_to_host(), kind).astype(np.float64)


@pytest.mark.parametrize("gradient", ["", "float32"])
@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
@pytest.mark.parametrize("activation", ["linear", "relu", "gelu", "gelu_tanh", "tanh"])
def test_layers_of_16_bits(activation, kind, gradient):
    rng = np.random.default_rng(5)
    for rows, inputs, outputs in [(5, 7, 9), (TILE_ROWS + 1, 8, 16), (1, 4, 1)]:
        layer = Layer(rows, inputs, outputs, kind, gradient=gradient)
        X, W, B, DY = (rounded(a, kind) for a in drawn(rng, rows, inputs, outputs, "float64"))
        x, w, b, dy = (there(a, kind) for a in (X, W, B, DY))
        y, z, dz = (there(np.full(DY.shape, np.nan), kind) for _ in range(3))
        gpu, uses_z = gpu_of([see(x).address]), ACTIVATIONS[activation].uses == "z"
        gemm = gemm_of(gpu)
        plan = plan_forward(layer, activation, True, "z" if uses_z else "", None, gemm.supported)
        out = dense.Outputs(see(y).address, see(z).address)
        dense.run_forward(gemm, 0, plan, layer, activation, see(x).address, see(w).address, see(b).address, out)
        Z, Y = X @ W + B, np.empty(DY.shape)
        reference.activate(activation, Z, Y)
        sizes = np.abs(X) @ np.abs(W) + np.abs(B)
        products_close(numbers(y, kind), Y, kind, sizes)

        s, wide = numbers(z if uses_z else y, kind), gradient or kind
        dx, dw, db = (there(np.full(a.shape, np.nan), k) for a, k in ((X, kind), (W, wide), (B, wide)))
        plan = plan_backward(layer, activation, True, True, True, gemm.supported)
        gradients = dense.Gradients(see(dz).address, see(dx).address, see(dw).address, see(db).address)
        sums = gpu.allocate(epilogues.sums_bytes(dense.shape_of(layer)))
        dense.run_backward(
            gemm, 0, plan, layer, activation, see(dy).address, see(x).address, see(w).address,
            see(z if uses_z else y).address, gradients, sums.address,
        )  # fmt: skip
        theirs = [np.empty(a.shape) for a in (X, W, B)]
        reference.dense_backward(DY, X, W, s, activation, *theirs)
        terms = np.abs(DY) @ np.abs(W).T, np.abs(X).T @ np.abs(DY), np.abs(DY).sum(axis=0)
        ours = numbers(dx, kind), numbers(dw, wide), numbers(db, wide)
        for mine, other, sizes in zip(ours, theirs, terms, strict=True):
            products_close(mine, other, kind, sizes)


def test_float16_by_the_verbs():
    x, w, b, dy = (a.astype("float16") for a in drawn(np.random.default_rng(6), 5, 4, 8, "float64"))
    y, dx, dw, db = (empty(a.shape, "float16") for a in (dy, x, w, b))
    cuda.dense_forward(to_device(x), to_device(w), to_device(b), "relu", y)
    X, W, B, DY = double(x, w, b, dy)
    products_close(numbers(y, "float16"), np.maximum(X @ W + B, 0), "float16", np.abs(X) @ np.abs(W) + np.abs(B))
    cuda.dense_backward(to_device(dy), to_device(x), to_device(w), y, "relu", dx, dw, db)
    DZ = DY * (numbers(y, "float16") > 0)
    products_close(numbers(dx, "float16"), DZ @ W.T, "float16", np.abs(DY) @ np.abs(W).T)
    products_close(numbers(dw, "float16"), X.T @ DZ, "float16", np.abs(X).T @ np.abs(DY))
    products_close(numbers(db, "float16"), DZ.sum(axis=0), "float16", np.abs(DY).sum(axis=0))


# ---------------------------------------------------------------- kernels
EPS = {"float64": 2.3e-16, "float32": 1.2e-7, "float16": 9.8e-4, "bfloat16": 7.9e-3}


@pytest.mark.parametrize("dtype", EPS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_are_the_formulas(activation, dtype):
    """On every kind of number, with gaps between rows that stay as they are, and z kept."""
    rng = np.random.default_rng(2)
    special = np.array([0, -0.0, np.inf, -np.inf, np.nan, 1e-42, -90, 90, -20, 20, 1e30, -1e30])
    for rows, columns, stride in [(3, 8, 8), (7, 8, 16), (5, 7, 8), (2, 1, 3)]:
        host = rng.standard_normal((rows, stride)) * 3
        host.reshape(-1)[: min(len(special), host.size)] = special[: host.size]
        with np.errstate(over="ignore"):
            host, bias = rounded(host, dtype), rounded(rng.standard_normal(columns), dtype)
        for b in (None, bias):
            z, y, b_there = there(host, dtype), there(np.full(host.shape, 7), dtype), there(bias, dtype)
            gpu = gpu_of([see(z).address])
            place = 0 if b is None else see(b_there).address
            shape = Shape(rows, columns, stride, dtype)
            epilogues.activate(gpu, 0, activation, see(z).address, place, see(y).address, shape)
            expected, ours, theirs = host.copy(), numbers(y, dtype), np.empty((rows, columns))
            with np.errstate(all="ignore"):
                if b is not None:
                    expected[:, :columns] = rounded(expected[:, :columns] + b, dtype)
                reference.activate(activation, expected[:, :columns], theirs)
                theirs = rounded(theirs, dtype)
            np.testing.assert_array_equal(numbers(z, dtype), expected)
            np.testing.assert_allclose(ours[:, :columns], theirs, rtol=4 * EPS[dtype], atol=4 * EPS[dtype])
            np.testing.assert_array_equal(ours[:, columns:], 7)


@pytest.mark.parametrize("dtype", EPS)
def test_sums_over_many_tiles(dtype):
    """Partial sums in memory, in more than one tile each way; in place; and without dz."""
    rng = np.random.default_rng(3)
    for rows, columns, stride in [
        (2 * TILE_ROWS + 3, 2 * COLUMN_LANES + 1, 2 * COLUMN_LANES + 1),
        (3 * TILE_ROWS, 8, 16),
        (1, 8, 8),
    ]:
        dy, s = (rounded(rng.standard_normal((rows, stride)), dtype) for _ in range(2))
        shape, into, s_there = Shape(rows, columns, stride, dtype), there(dy, dtype), there(s, dtype)
        gpu = gpu_of([see(into).address])
        memory = gpu.allocate(epilogues.sums_bytes(shape))
        slope = rounded(np.array(0.01), "float32" if dtype != "float64" else dtype)
        expected = rounded(dy * np.where(s > 0, 1, slope), dtype)[:, :columns]
        results = []
        for dz in (see(into).address, 0):
            db = there(np.full(columns, np.nan), dtype)
            source = there(dy, dtype) if dz == 0 else into
            epilogues.slopes(
                gpu, 0, "leaky_relu", see(source).address, see(s_there).address, dz, memory.address,
                see(db).address, shape,
            )  # fmt: skip
            results.append(numbers(db, dtype))
        np.testing.assert_array_equal(numbers(into, dtype)[:, :columns], expected)
        np.testing.assert_array_equal(numbers(into, dtype)[:, columns:], dy[:, columns:])
        np.testing.assert_array_equal(results[0], results[1])
        np.testing.assert_allclose(results[0], expected.sum(axis=0), rtol=EPS[dtype], atol=1e-13)


def test_tiles_are_cut_by_shape_alone():
    assert epilogues.tiles(TILE_ROWS, 10) == (TILE_ROWS, 1)
    assert epilogues.tiles(TILE_ROWS + 1, 10) == (TILE_ROWS, 2)
    assert epilogues.sums_bytes(Shape(TILE_ROWS, 10, 10, "float16")) == 0
    assert epilogues.sums_bytes(Shape(TILE_ROWS, 10, 10, "float16", "float32")) == 10 * 8
    assert epilogues.sums_bytes(Shape(TILE_ROWS + 1, 10, 10, "float32")) == 2 * 10 * 8
    for rows, columns in [(10**6, 4096), (10**7, 1), (100, 10**6)]:
        high, count = epilogues.tiles(rows, columns)
        assert high * count >= rows
        assert count == 1 or count * columns * 8 <= epilogues.MAX_SUMS_BYTES


def test_plans_are_made_once():
    dense._forward_plan.cache_clear()
    x, w, b, dy = (to_device(a) for a in drawn(np.random.default_rng(4), 5, 4, 8, "float32"))
    for _ in range(3):
        cuda.dense_forward(x, w, b, "tanh", dy)
    if not SIMULATED:  # whose products are new each time
        assert dense._forward_plan.cache_info().misses == 1
