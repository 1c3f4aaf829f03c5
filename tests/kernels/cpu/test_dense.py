"""Dense layers against the float64 reference: every activation and dtype, sizes around the edges of the tiles."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from fastopt.kernels import cpu, reference
from fastopt.kernels.cpu.dense import layer as dense
from fastopt.kernels.cpu.runtime.primitives import INTERPRETED
from fastopt.kernels.formulas import ACTIVATIONS

# Relative to the largest sum of the terms' sizes (terms may cancel, to an element much smaller). A sum of k terms is
# off by up to k rounding errors of those, in practice by sqrt(k); k is at most 1000 here.
TOLERANCE = {"float32": 32 * 1.2e-7, "float64": 32 * 2.3e-16}

EDGES = [(1, 1, 1), (2, 3, 5), (33, 17, 65)]
if not INTERPRETED:
    EDGES += [
        (dense.TILE_ROWS, 31, dense.TILE_COLS),
        (dense.TILE_ROWS + 1, 32, dense.TILE_COLS - 1),
        (dense.TILE_ROWS - 1, 33, dense.TILE_COLS + 1),
        (64, 784, 256),
        (7, 1000, 4 * dense.TILE_COLS + 1),
        (300, 5, 8 * dense.TILE_COLS),
    ]


def assert_close(actual, expected, dtype, sizes):
    assert actual.dtype == dtype
    scale = sizes.max(initial=1e-30)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=TOLERANCE[dtype] * scale)


def problem(rng, rows, inputs, outputs, dtype, bias=True):
    x = rng.standard_normal((rows, inputs)).astype(dtype)
    w = (rng.standard_normal((inputs, outputs)) / np.sqrt(inputs)).astype(dtype)
    b = rng.standard_normal(outputs).astype(dtype) if bias else None
    return x, w, b, rng.standard_normal((rows, outputs)).astype(dtype)


def double(*arrays):
    return [None if array is None else array.astype("float64") for array in arrays]


def check(rng, rows, inputs, outputs, dtype, activation, bias=True, wanted=(True, True, True)):
    uses_z = ACTIVATIONS[activation].uses == "z"
    x, w, b, dy = problem(rng, rows, inputs, outputs, dtype, bias)
    # NaN where nothing is written shows.
    y = np.full((rows, outputs), np.nan, dtype)
    z = np.full_like(y, np.nan) if uses_z else None
    cpu.dense_forward(x, w, b, activation, y, z)
    X, W, B, DY = double(x, w, b, dy)
    Y = np.empty((rows, outputs))
    Z = np.empty_like(Y) if uses_z else None
    reference.dense_forward(X, W, B, activation, Y, Z)
    assert_close(y, Y, dtype, np.abs(X) @ np.abs(W) + (np.abs(B) if bias else 0))

    # The slope is taken where the kernel took it: a kink may lie between two roundings of z.
    s = z if uses_z else y
    ours = [np.full_like(a, np.nan) if want else None for a, want in zip((x, w, w[0]), wanted, strict=True)]
    theirs = [np.empty_like(a) for a in (X, W, W[0])]
    cpu.dense_backward(dy, x, w, s, activation, *ours)
    reference.dense_backward(DY, X, W, s.astype("float64"), activation, *theirs)
    terms = np.abs(DY) @ np.abs(W).T, np.abs(X).T @ np.abs(DY), np.abs(DY).sum(axis=0)
    for mine, other, sizes in zip(ours, theirs, terms, strict=True):
        if mine is not None:
            assert_close(mine, other, dtype, sizes)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_forward_and_backward(activation, dtype):
    rng = np.random.default_rng(0)
    for sizes in EDGES if activation == "relu" else EDGES[:5]:
        check(rng, *sizes, dtype, activation)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_random_sizes(data):
    sizes = [data.draw(st.integers(1, 12 if INTERPRETED else 300), label=name) for name in ("rows", "in", "out")]
    dtype, activation = data.draw(st.sampled_from(["float32", "float64"])), data.draw(st.sampled_from([*ACTIVATIONS]))
    wanted = data.draw(st.tuples(st.booleans(), st.booleans(), st.booleans()))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    check(rng, *sizes, dtype, activation, data.draw(st.booleans()), wanted)


@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(0, 3, 4), (3, 4, 0), (0, 0, 0)])
def test_nothing_to_do(rows, inputs, outputs):
    x, w, b, dy = problem(np.random.default_rng(0), rows, max(inputs, 1), outputs, "float32")
    y = np.empty((rows, outputs), "float32")
    cpu.dense_forward(x, w, b, "relu", y)
    dx, dw, db = np.full_like(x, 9), np.full_like(w, 9), np.full_like(b, 9)
    cpu.dense_backward(dy, x, w, y, "relu", dx, dw, db)
    assert not dx.any()
    assert not dw.any()
    assert not db.any()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_bits_do_not_depend_on_the_number_of_threads(dtype, threads, monkeypatch):
    monkeypatch.setattr(dense, "CALL_FLOPS", 1)
    sizes = (5, 9, 70) if INTERPRETED else (300, 200, 600)
    x, w, b, dy = problem(np.random.default_rng(1), *sizes, dtype)
    results = []
    for n in (1, 2, 4):
        y, z = np.empty_like(dy), np.empty_like(dy)
        gradients = [np.empty_like(a) for a in (x, w, b)]
        with threads(n):
            cpu.dense_forward(x, w, b, "gelu", y, z)
            cpu.dense_backward(dy, x, w, z, "gelu", *gradients)
        results.append([y, z, *gradients])
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_inputs_are_only_read():
    x, w, b, dy = problem(np.random.default_rng(2), 6, 5, 4, "float32")
    y = np.empty_like(dy)
    kept = [a.copy() for a in (x, w, b, dy)]
    cpu.dense_forward(x, w, b, "tanh", y)
    kept_y = y.copy()
    cpu.dense_backward(dy, x, w, y, "tanh", np.empty_like(x), np.empty_like(w), np.empty_like(b))
    for before, after in zip([*kept, kept_y], [x, w, b, dy, y], strict=True):
        np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "elu", "softplus", "sigmoid", "tanh"])
def test_nan_and_infinities_go_through(activation):
    x = np.array([[np.nan], [np.inf], [-np.inf]], "float32")
    y, expected = np.empty_like(x), np.empty_like(x)
    one = np.ones((1, 1), "float32")
    cpu.dense_forward(x, one, None, activation, y)
    with np.errstate(all="ignore"):
        reference.dense_forward(x, one, None, activation, expected)
    np.testing.assert_array_equal(y, expected)


def test_denormal_gradients_are_flushed():
    tiny = np.finfo("float32").tiny
    dy = np.array([[tiny / 2, tiny, -tiny / 4]], "float32")
    x, w = np.ones((1, 1), "float32"), np.ones((1, 3), "float32")
    db = np.empty(3, "float32")
    cpu.dense_backward(dy, x, w, np.ones_like(dy), "linear", None, None, db)
    np.testing.assert_array_equal(db, np.array([0, tiny, 0], "float32"))


@given(
    st.tuples(*[st.integers(1, 5000)] * 3),
    st.sampled_from([0, 1_000_000]),
    st.sampled_from(["znver5", *dense.LARGE_DW]),
)
def test_tiles(shape, unpacked, processor):
    rows, inputs, outputs = shape
    high, wide = dense.forward_tile(*shape, unpacked)
    most, _ = dense.LARGE_DW.get(processor, (dense.DW_ELEMENTS, 0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dense, "microarchitecture", lambda: processor)
        dw_high, dw_wide = dense.weight_tile(*shape, unpacked)
    assert 1 <= high <= dense.TILE_ROWS
    assert 1 <= wide <= min(outputs, dense.ROW_COLS if rows == 1 else dense.TILE_COLS)
    assert 1 <= dw_high <= inputs
    assert 1 <= dw_wide <= min(outputs, dense.DW_COLS)
    assert dw_high * dw_wide <= max(most, 4 * dw_wide)
    if unpacked >= 8 * inputs * wide and rows > 1:
        assert high * wide * inputs <= unpacked


def test_tiles_of_common_layers_are_multiplied_without_packing():
    for inputs, outputs in [(784, 256), (256, 128), (128, 10)]:
        for tile, depth in ((dense.forward_tile, inputs), (dense.weight_tile, 64)):
            high, wide = tile(64, inputs, outputs, 1_000_000)
            assert high * wide * depth <= 1_000_000
    assert dense.forward_tile(64, 784, 256, 1_000_000) == (16, 64)
    assert dense.weight_tile(64, 784, 256, 1_000_000) == (56, 256)


def test_processors_with_large_caches_have_large_tiles(monkeypatch):
    tiles = {}
    for processor in ("znver4", "emeraldrapids"):
        monkeypatch.setattr(dense, "microarchitecture", lambda processor=processor: processor)
        tiles[processor] = dense.weight_tile(1024, 392, 256, 1 << 62)
    assert tiles == {"znver4": (56, 256), "emeraldrapids": (200, 256)}
