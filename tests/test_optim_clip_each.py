"""`clip_each`: every array's gradient is clipped by its own norm, as by Keras's clipnorm."""

import copy
import pickle

import numpy as np
import pytest
from helpers_model import blobs, classifier

import fastopt as fo
from fastopt.kernels.formulas import OPTIMIZERS

from .optimizers import DTYPES, LAYOUTS, drawn, make, snapshot

SHAPES = [(7, 5), (9,), (), (0, 3), (40_000,)]
SIZES = [2.0, 0.01, 1.0, 1.0, 5.0]  # of the gradients: the second one's norm is below the bound
BOUND = 0.75
# atol: where numbers of about 1 cancel.
NEAR = {"float32": {"rtol": 1e-5, "atol": 1e-6}, "float64": {"rtol": 1e-13, "atol": 1e-15}}


def arrays(dtype, seed=0, scale=1.0):
    return [np.asarray(scale * size * drawn(shape, dtype, seed + i), dtype) for i, (shape, size) in enumerate(
        zip(SHAPES, SIZES, strict=True)
    )]  # fmt: skip


@pytest.mark.around_formulas
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rule", OPTIMIZERS)
def test_every_array_is_clipped_as_if_it_were_alone(rule, dtype, backend):
    together, alone = arrays(dtype), arrays(dtype)
    one = make(rule, together, lr=0.05, weight_decay=0.1, clip_each=BOUND, backend=backend)
    others = [make(rule, p, lr=0.05, weight_decay=0.1, backend="numpy") for p in alone]
    T = np.dtype(dtype).type
    for seed in (10, 20, 30):
        gradients = arrays(dtype, seed, 4.0)
        before = [g.copy() for g in gradients]
        assert one.step(gradients, grad_scale=4.0) is True
        for other, g in zip(others, gradients, strict=True):
            norm = np.linalg.norm(g.astype(np.float64)) / 4
            assert other.step(g * T(BOUND / max(norm, BOUND) / 4))
        assert all(np.array_equal(g, kept) for g, kept in zip(gradients, before, strict=True))
    for p, q in zip(together, alone, strict=True):
        np.testing.assert_allclose(p, q, **NEAR[dtype])
    assert one.steps == 3


@pytest.mark.parametrize("rule", ["adam", "momentum"])
@pytest.mark.parametrize("dtype", [*DTYPES, "float16"])
def test_numbers_are_the_references(rule, dtype):
    """The same bits but for float64, where those of a norm are not the same in both."""
    results = []
    for backend in ("cpu", "numpy"):
        params = arrays(dtype)
        optimizer = make(rule, params, clip_each=BOUND, backend=backend)
        for seed in (10, 20):
            optimizer.step(arrays(dtype, seed))
        results.append(params)
    for p, q in zip(*results, strict=True):
        np.testing.assert_allclose(p, q, **(NEAR[dtype] if dtype == "float64" else {"rtol": 0}))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout, backend):
    straight = [drawn((7, 5), "float64", seed) for seed in range(2)]
    params = [LAYOUTS[layout](a) for a in straight]
    for own in (params, straight):
        optimizer = fo.Adam(own, clip_each=BOUND, backend=backend)
        for seed in (10, 20):
            optimizer.step([size * drawn((7, 5), "float64", seed) for size in (2.0, 0.01)])
    for p, q in zip(params, straight, strict=True):
        np.testing.assert_array_equal(p, q)


def test_groups_none_and_rows(backend):
    p, q, table = np.zeros(2), np.zeros(2), np.zeros((4, 2))
    groups = [{"params": [p, table], "clip_each": 1.0}, {"params": [q]}]
    optimizer = fo.SGD(groups, lr=1.0, backend=backend)
    rows = np.array([1, 3, 1]), np.array([[1.0, 0.0], [0.0, 4.0], [2.0, 0.0]])
    optimizer.step([[np.array([3.0, -4.0]), rows], [np.array([30.0, 40.0])]])
    np.testing.assert_allclose(p, [-0.6, 0.8])
    np.testing.assert_allclose(table, [[0, 0], [-0.6, 0], [0, 0], [0, -0.8]])  # by the norm of the sums, 5
    assert q.tolist() == [-30, -40]
    optimizer.step([[None, (np.array([0]), np.array([[0.5, 0.0]]))], None])
    assert table[0].tolist() == [-0.5, 0]
    np.testing.assert_allclose(p, [-0.6, 0.8])


def test_infinity_and_nan(backend):
    p, q, r = np.zeros(2), np.zeros(2), np.zeros(2)
    optimizer = fo.SGD([p, q, r], lr=1.0, clip_each=1.0, backend=backend)
    optimizer.step([np.array([np.inf, 1.0]), np.array([np.nan, 1.0]), np.array([0.0, -2.0])])
    np.testing.assert_array_equal(p, [np.nan, 0.0])  # infinity times 0
    np.testing.assert_array_equal(q, [np.nan, np.nan])
    assert r.tolist() == [0, 1]
    assert not optimizer.step([np.array([np.inf, 1.0]), None, None], skip_nonfinite=True)


def test_it_may_change_between_steps_and_is_saved(backend):
    p = np.zeros(2)
    optimizer = fo.SGD(p, lr=1.0, backend=backend)
    optimizer.step(np.array([3.0, 4.0]))
    optimizer.param_groups[0]["clip_each"] = 1.0
    optimizer.step(np.array([3.0, 4.0]))
    np.testing.assert_allclose(p, [-3.6, -4.8])
    other = fo.SGD(np.zeros(2))
    other.load_state_dict(optimizer.state_dict())
    for twin in (other, copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert twin.param_groups[0]["clip_each"] == 1
        assert "clip_each=1.0" in repr(twin)
    optimizer.param_groups[0]["clip_each"] = None
    optimizer.step(np.array([3.0, 4.0]))
    np.testing.assert_allclose(p, [-6.6, -8.8])


def test_refused_in_the_midst(backend):
    p = np.zeros(2)
    optimizer = fo.SGD(p, lr=1.0, clip_norm=1.0, backend=backend)
    before = snapshot(optimizer, p)
    optimizer.param_groups[0]["clip_each"] = 1.0
    with pytest.raises(ValueError, match="clipped in one way, not in several"):
        optimizer.step(np.ones(2))
    optimizer.param_groups[0]["clip_each"] = None
    assert snapshot(optimizer, p) == before


def test_clip_each_is_refused_on_cuda_and_by_fit():
    with pytest.raises(ValueError, match="on the backend 'cuda' .* not each by its own norm; got clip_each=1.0"):
        fo.Adam(clip_each=1.0, backend="cuda")
    model = classifier("numpy")
    model.compile(fo.Adam(clip_each=1.0), "sparse_categorical_crossentropy")
    before = model.get_weights()
    with pytest.raises(ValueError, match="fit clips by clip_value or clip_norm; the optimizer's clip_each is for"):
        model.fit(*blobs())
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))


@pytest.mark.parametrize("kind", ["SGD", "Adagrad"])  # the corrections of Keras's Adam are float32
def test_several_arrays_are_clipped_as_keras_does(kind, monkeypatch):
    pytest.importorskip("torch", reason="Keras's backend here")
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    keras = pytest.importorskip("keras", reason="Keras is not installed")
    values = [np.array([1.0, -2.0, 0.5], np.float32), np.array([[3.0]], np.float32)]
    theirs = [keras.Variable(value, dtype="float32") for value in values]
    ours = [value.copy() for value in values]
    peer = getattr(keras.optimizers, kind)(learning_rate=0.1, clipnorm=0.5)
    optimizer = getattr(fo, kind)(ours, lr=0.1, clip_each=0.5, convention="keras")
    for step in range(10):
        waves = (size * np.sin(step + value) for value, size in zip(values, (1, 9), strict=True))
        gradients = [np.asarray(wave, np.float32) for wave in waves]
        peer.apply([keras.ops.convert_to_tensor(g) for g in gradients], theirs)
        optimizer.step(gradients)
    for p, q in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(p, q.value.tolist(), rtol=2e-6)
