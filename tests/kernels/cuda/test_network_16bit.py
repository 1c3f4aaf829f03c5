"""Networks whose layers compute in bfloat16, against the reference, which rounds at the same steps."""

from __future__ import annotations

import numpy as np
import pytest
from helpers_cuda import SIMULATED, require_device

require_device()
from helpers_network import Bfloat16Options, Run, assert_agree, compare, data_for

import fastopt as fo
from fastopt.kernels import cuda, reference
from fastopt.kernels.cuda.dense.products import SLOPES
from fastopt.kernels.cuda.training import data_feed
from fastopt.kernels.reference.bits16 import store
from fastopt.kernels.spec import DenseSpec, DropoutSpec

pytestmark = pytest.mark.gpu

MSE, LABELS = "mean_squared_error", "sparse_categorical_crossentropy"
EVERY = frozenset({"linear", *SLOPES})


class TestBfloat16(Bfloat16Options):
    backend = cuda


def test_a_dropout_of_outputs():
    layers = [DenseSpec(3, 2, "sigmoid"), DropoutSpec(0.5)]
    compare(layers, "binary_crossentropy", [], "bfloat16", "sgd", n=8, epochs=1)


def test_copies_are_roundings_of_the_parameters():
    x, y = data_for(np.random.default_rng(0), MSE, 6, 3, 2, "float32")
    run = Run(cuda, [DenseSpec(3, 4, "tanh"), DenseSpec(4, 2)], MSE, [], "bfloat16")
    for _ in range(2):
        run.train(x, y, np.arange(6), 3)
        weights = run.net.mirror
        for p, copy in zip(run.params, weights.copies, strict=True):
            found, wanted = np.zeros(p.shape, np.uint16), np.zeros(p.shape, np.uint16)
            run.net.gpu.copy_out(found, copy, run.net.stream.handle)
            run.net.gpu.wait(run.net.stream.handle)
            store(p, wanted)
            np.testing.assert_array_equal(found, wanted)
        assert weights.read[-1] == weights.addresses[-1]  # the bias of float32 outputs
        run.params[0] *= 0.5  # writes of the host count


def test_streamed_data_give_the_same_bits(monkeypatch):
    x, y = data_for(np.random.default_rng(0), LABELS, 11, 3, 3, "float32")

    def results():
        run = Run(cuda, [DenseSpec(3, 3, "softmax")], LABELS, ["accuracy"], "bfloat16")
        return run.train(x, y, np.arange(11)[::-1].copy(), 3)[:2], run.net.predict(x, 4), *run.params

    kept = results()
    monkeypatch.setattr(data_feed, "MEMORY_SHARE", 0)
    monkeypatch.setattr(data_feed, "PART_BYTES", 1)
    for a, b in zip(results(), kept, strict=True):
        np.testing.assert_equal(a, b)


def test_against_float64():
    """Sizes that need tiles and whole vectors; an epoch of sgd, smooth, so that rounding stays small."""
    rows, inputs, width, batch = (9, 3, 4, 4) if SIMULATED else (5_003, 200, 264, 128)
    layers = [DenseSpec(inputs, width, "tanh"), DenseSpec(width, width, "gelu_tanh"), DenseSpec(width, 3)]
    x, y = data_for(np.random.default_rng(0), LABELS, rows, inputs, 3, "float32")
    kinds = (cuda, "bfloat16"), (reference, "float64")
    ours, theirs = (Run(backend, layers, LABELS, [], kind, "sgd") for backend, kind in kinds)
    for p, q in zip(ours.params, theirs.params, strict=True):
        q[...] = p
    order = np.random.default_rng(0).permutation(rows)
    one = ours.train(x, y, order, batch, lr=0.05)
    other = theirs.train(x.astype(np.float64), y, order, batch, lr=0.05)
    np.testing.assert_allclose(one.losses, other.losses, rtol=2e-2)
    for p, q in zip(ours.params, theirs.params, strict=True):
        np.testing.assert_allclose(p, q, rtol=0, atol=1e-2 * np.abs(q).max())


def test_evaluate_and_predict_without_training():
    x, y = data_for(np.random.default_rng(0), LABELS, 7, 9, 3, "float32")
    layers = [DenseSpec(9, 8, "relu"), DenseSpec(8, 3, "softmax")]
    ours, theirs = (Run(backend, layers, LABELS, ["accuracy"], "bfloat16") for backend in (cuda, reference))
    assert_agree(ours.net.evaluate(x, y, 4), theirs.net.evaluate(x, y, 4), "bfloat16")
    found = ours.net.predict(x, 4)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, theirs.net.predict(x, 4), atol=4e-3)
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-6)  # outputs are not rounded to 16 bits


def test_a_model():
    x, y = data_for(np.random.default_rng(0), LABELS, 12, 3, 3, "float32")
    models, histories = [], []
    for backend in ("cuda", "numpy"):
        layers = [fo.Dense(4, "relu"), fo.Dropout(0.25), fo.Dense(3, "softmax")]
        models.append(fo.Sequential(layers, seed=1, backend=backend, compute_dtype="bfloat16"))
        models[-1].compile(fo.SGD(lr=0.05, momentum=0.9), LABELS, ["accuracy"])
        histories.append(models[-1].fit(x, y, epochs=2, batch_size=4, validation_split=0.25))
    for name in ("loss", "accuracy", "val_loss"):
        np.testing.assert_allclose(*(history[name] for history in histories), rtol=2e-3)
    np.testing.assert_allclose(*(model.predict(x) for model in models), atol=2e-3)
    for ours, theirs in zip(*(model.parameters for model in models), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize(("dtype", "bias"), [("bfloat16", True), ("float32", True), ("float32", False)])
def test_more_epilogues(dtype, bias):
    """All possible activations and slopes as epilogues of products."""
    layers = [DenseSpec(3, 9, "gelu_tanh", bias), DropoutSpec(0.3), DenseSpec(9, 8, "relu", bias)]
    layers += [DenseSpec(8, 5, "gelu_tanh", bias), DenseSpec(5, 3, "linear")]
    x, y = data_for(np.random.default_rng(0), LABELS, 7, 3, 3, "float32")
    ours = Run(cuda, layers, LABELS, [], dtype, "sgd", fused=EVERY)
    theirs = Run(reference, layers, LABELS, [], dtype, "sgd")
    assert_agree(*(run.train(x, y, np.arange(7), 4) for run in (ours, theirs)), dtype)
    for a, b in zip(ours.params, theirs.params, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-3 if dtype == "bfloat16" else 1e-5)
    assert_agree(ours.net.evaluate(x, y), theirs.net.evaluate(x, y), dtype)
