"""Dense layers on the device against the float64 reference: the verbs, and the kernels beside cuBLASLt."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
from helpers_cuda import SIMULATED, require_device, to_device
from hypothesis import given, settings

require_device()
from fastopt.kernels import cuda, reference
from fastopt.kernels.cuda import dense, epilogues
from fastopt.kernels.cuda.arrays import gpu_of, see
from fastopt.kernels.cuda.epilogues import HIGH, LANES, Shape
from fastopt.kernels.formulas import ACTIVATIONS

pytestmark = pytest.mark.gpu

DTYPES = ["float32", "float64"]
# Of the largest sum of the terms' sizes, as for the CPU; TF32 rounds operands to 2^-11.
TOLERANCE = {"float32": 32 * 1.2e-7, "float64": 32 * 2.3e-16, "tf32": 2 * 4.9e-4}
SIZES = [(1, 1, 1), (2, 3, 5), (5, 4, 8), (9, 0, 4), (HIGH + 1, 3, 4 * LANES + 1), (2 * HIGH, 2, 4 * LANES)]
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


@settings(max_examples=25 if SIMULATED else 200, deadline=None)
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


def test_dtypes_that_have_no_kernels():
    x, w = to_device(np.ones((2, 3), "float16")), to_device(np.ones((3, 4), "float16"))
    with pytest.raises(TypeError, match="expected arrays of one dtype, float32 or float64; got float16"):
        cuda.dense_forward(x, w, None, "relu", empty((2, 4), "float16"))
    with pytest.raises(TypeError, match="got float32, float64"):
        cuda.dense_forward(empty((2, 3), "float32"), empty((3, 4), "float64"), None, "relu", empty((2, 4), "float32"))


# ---------------------------------------------------------------- kernels
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_are_the_formulas(activation, dtype):
    """On every kind of number, with gaps between rows that stay as they are, and z kept."""
    rng = np.random.default_rng(2)
    special = np.array([0, -0.0, np.inf, -np.inf, np.nan, 1e-42, -90, 90, -20, 20, 1e30, -1e30])
    for rows, columns, stride in [(3, 8, 8), (7, 8, 12), (5, 7, 8), (2, 1, 3)]:
        host = rng.standard_normal((rows, stride)).astype(dtype) * 3
        host.reshape(-1)[: min(len(special), host.size)] = special[: host.size]
        bias = rng.standard_normal(columns).astype(dtype)
        for b in (None, bias):
            z, y, b_there = to_device(host), to_device(np.full_like(host, 7)), to_device(bias)
            shape = Shape(rows, columns, stride, dtype)
            gpu = gpu_of([see(z).address])
            place = 0 if b is None else see(b_there).address
            epilogues.activate(gpu, 0, activation, see(z).address, place, see(y).address, shape)
            expected = host.copy()
            with np.errstate(all="ignore"):
                expected[:, :columns] += 0 if b is None else b
            np.testing.assert_array_equal(z.copy_to_host(), expected if b is not None else host)
            ours, theirs = y.copy_to_host(), np.empty((rows, columns))
            with np.errstate(all="ignore"):
                reference.activate(activation, expected[:, :columns].astype(np.float64), theirs)
            scale = np.finfo(dtype).eps * 4
            np.testing.assert_allclose(ours[:, :columns], theirs.astype(dtype), rtol=scale, atol=scale)
            np.testing.assert_array_equal(ours[:, columns:], 7)


@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_over_many_tiles(dtype):
    """Partial sums in memory, in more than one tile each way; in place; and without dz."""
    rng = np.random.default_rng(3)
    for rows, columns, stride in [(2 * HIGH + 3, 2 * LANES + 1, 2 * LANES + 1), (3 * HIGH, 8, 12), (1, 4, 4)]:
        dy, s = (rng.standard_normal((rows, stride)).astype(dtype) for _ in range(2))
        shape, into, s_there = Shape(rows, columns, stride, dtype), to_device(dy), to_device(s)
        gpu = gpu_of([see(into).address])
        memory = gpu.allocate(epilogues.sums_bytes(rows, columns))
        expected = (dy * np.where(s > 0, 1, 0.01).astype(dtype))[:, :columns]
        results = []
        for dz in (see(into).address, 0):
            db = empty(columns, dtype)
            source = to_device(dy) if dz == 0 else into
            epilogues.slopes(
                gpu, 0, "leaky_relu", see(source).address, see(s_there).address, dz, memory.address,
                see(db).address, shape,
            )  # fmt: skip
            results.append(db.copy_to_host())
        np.testing.assert_array_equal(into.copy_to_host()[:, :columns], expected)
        np.testing.assert_array_equal(into.copy_to_host()[:, columns:], dy[:, columns:])
        np.testing.assert_array_equal(results[0], results[1])
        exact = expected.astype(np.float64).sum(axis=0)
        np.testing.assert_allclose(results[0], exact, rtol=np.finfo(dtype).eps, atol=1e-13)


def test_tiles_are_cut_by_shape_alone():
    assert epilogues.tiles(HIGH, 10) == (HIGH, 1)
    assert epilogues.tiles(HIGH + 1, 10) == (HIGH, 2)
    assert epilogues.sums_bytes(HIGH, 10) == 0
    assert epilogues.sums_bytes(HIGH + 1, 10) == 2 * 10 * 8
    for rows, columns in [(10**6, 4096), (10**7, 1), (100, 10**6)]:
        high, count = epilogues.tiles(rows, columns)
        assert high * count >= rows
        assert count == 1 or count * columns * 8 <= epilogues.SUMS_BYTES


def test_plans_are_made_once():
    dense._forward_plan.cache_clear()
    x, w, b, dy = (to_device(a) for a in drawn(np.random.default_rng(4), 5, 4, 8, "float32"))
    for _ in range(3):
        cuda.dense_forward(x, w, b, "tanh", dy)
    if not SIMULATED:  # whose products are new each time
        assert dense._forward_plan.cache_info().misses == 1
