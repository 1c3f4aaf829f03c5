"""Sparse products of pruned layers: the bits of dense ones, whatever the shapes, and weights that masks know not of."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from fastopt.kernels import cpu, reference
from fastopt.kernels.cpu.dense.blas import products
from fastopt.kernels.cpu.dense.sparse_entries import entries_of
from fastopt.kernels.cpu.runtime.primitives import INTERPRETED
from fastopt.kernels.cpu.training import sparse
from fastopt.kernels.spec import ActivationSpec, DenseSpec, DropoutSpec, LayerNormSpec, LossSpec, parameter_shapes

# With the products of a BLAS, which adds up in an order of its own, results differ by roundings.
EXACT = not INTERPRETED and products("float32").name.startswith("fastopt")
LAYERS = [DenseSpec(70, 130, "relu"), DropoutSpec(0.5), DenseSpec(130, 65, "tanh", bias=False), LayerNormSpec(65)]
LAYERS += [ActivationSpec(65, "relu"), DenseSpec(65, 67, "gelu"), DenseSpec(67, 3, "softmax")]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Small layers and few rows are multiplied sparsely, too."""
    monkeypatch.setattr(sparse, "MOST_LEFT", {1: 1.0})
    monkeypatch.setattr(sparse, "WEIGHTS", 1)


def made(layers, share, dtype="float32", seed=0, masked=True, **more):
    """A network whose kernels are pruned at random, and their masks."""
    rng = np.random.default_rng(seed)
    shapes = [shape for layer in layers for shape in parameter_shapes(layer).values()]
    params = [rng.standard_normal(shape).astype(dtype) / np.sqrt(shape[0]).astype(dtype) for shape in shapes]
    masks = [(rng.random(p.shape) >= share).astype(np.uint8) if p.ndim == 2 else None for p in params]
    for p, mask in zip(params, masks, strict=True):
        if mask is not None:
            p[mask == 0] = 0
    return cpu.Network(layers, params, dtype, masks=masks if masked else (), **more), params


def rows_for(count, columns, dtype="float32"):
    return np.random.default_rng(1).standard_normal((count, columns)).astype(dtype)


def assert_equal(ours, theirs):
    if EXACT:
        np.testing.assert_array_equal(ours, theirs)
    else:
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.9, 1.0])
def test_bits_are_those_of_dense_products(dtype, share):
    ours, params = made(LAYERS, share, dtype)
    x = rows_for(75, 70, dtype)
    found = ours.predict(x)
    assert len(next(iter(ours._predictors.values()))[0].sparse) == 4
    assert_equal(found, made(LAYERS, share, dtype, masked=False)[0].predict(x))
    expected = reference.Network(LAYERS, params, dtype, None, []).predict(x)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6 if dtype == "float32" else 1e-13)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 150 if INTERPRETED else 700), st.integers(1, 70 if INTERPRETED else 600), st.integers(1, 140),
    st.sampled_from([0.1, 0.7, 0.95]), st.booleans(),
)  # fmt: skip
def test_any_size(inputs, outputs, rows, share, bias):
    layers = [DenseSpec(inputs, outputs, "relu", bias)]
    ours, dense = (made(layers, share, seed=inputs, masked=masked)[0] for masked in (True, False))
    x = rows_for(rows, inputs)
    assert_equal(ours.predict(x), dense.predict(x))


def test_batches_of_a_pass_and_rows_alone():
    ours, _ = made(LAYERS, 0.8)
    x = rows_for(140, 70)
    whole = ours.predict(x)
    assert_equal(ours.predict(x, 64), whole)
    assert_equal(np.concatenate([ours.predict(x[i : i + 1]) for i in range(5)]), whole[:5])
    assert_equal(ours.predict(x, order=np.arange(139, -1, -1, dtype=np.uint32)), whole[::-1])


def test_weights_are_read_anew_by_every_pass():
    ours, params = made(LAYERS, 0.8)
    dense = cpu.Network(LAYERS, params, "float32")
    x = rows_for(70, 70)
    ours.predict(x)
    for factor in (2, -1):
        for p in params:
            p *= factor
        assert_equal(ours.predict(x), dense.predict(x))


@pytest.mark.parametrize("where", [(0, 0), (69, 129), (33, 128)], ids=str)
def test_a_weight_that_the_mask_has_not_counts_all_the_same(where):
    ours, params = made(LAYERS, 0.9)
    dense, x = cpu.Network(LAYERS, params, "float32"), rows_for(70, 70)
    ours.predict(x)
    params[0][where] = 2.5
    before = ours.predict(x)
    assert_equal(before, dense.predict(x))
    params[0][where] = 0
    assert np.abs(ours.predict(x) - before).max() > 0


def test_evaluation_multiplies_sparsely(monkeypatch):
    loss = LossSpec("sparse_categorical_crossentropy")
    x, y, w = rows_for(90, 70), np.arange(90) % 3, np.arange(90, dtype=np.float32) % 4
    for weights in (None, w):
        results = []
        for masked in (True, False):
            network, _ = made(LAYERS, 0.8, masked=masked, loss=loss, metrics=["accuracy"])
            results.append(network.evaluate(x, y, 32, weights))
            (program, _), = network._evaluators.values()
            assert bool(program.sparse) == masked
        assert_equal(results[0].losses, results[1].losses)
        assert results[0].metrics == results[1].metrics


@pytest.mark.skipif(INTERPRETED, reason="interpreted kernels run on one thread")
def test_bits_do_not_depend_on_the_number_of_threads(threads):
    layers = [DenseSpec(300, 600, "relu"), DenseSpec(600, 520), DenseSpec(520, 10)]
    found = []
    for count in (1, 2, 4):
        with threads(count):
            network, _ = made(layers, 0.9)
            found.append(network.predict(rows_for(300, 300)))
    for other in found[1:]:
        np.testing.assert_array_equal(other, found[0])


def test_dense_products_are_chosen_where_they_are_faster(monkeypatch):
    monkeypatch.undo()
    layers = [DenseSpec(100, 100), DenseSpec(100, 10)]
    for share, rows, expected in ((0.5, 64, False), (0.95, 8, False), (0.95, 64, True), (0.77, 256, True)):
        network, _ = made(layers, share)
        network.predict(rows_for(rows, 100))
        (programs,) = network._predictors.values()
        assert list(programs[0].sparse) == ([0] if expected else [])


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 600), st.integers(1, 300), st.sampled_from([0.0, 0.5, 0.98]), st.sampled_from([4, 8]))
def test_entries_name_every_weight_once(inputs, outputs, share, itemsize):
    mask = (np.random.default_rng(inputs).random((inputs, outputs)) >= share).astype(np.uint8)
    entries = entries_of(mask, itemsize)
    np.testing.assert_array_equal(np.sort(entries.source), np.flatnonzero(mask))
    chunk = entries.source % outputs // 256
    at = entries.room[chunk] + entries.target
    assert len(np.unique(at)) == len(at)
    np.testing.assert_array_equal(entries.template[2 * at] // 256, entries.source // outputs)
