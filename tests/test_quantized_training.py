"""Quantization-aware training: products read rounded weights and inputs, gradients pass straight through."""

from __future__ import annotations

import io

import numpy as np
import pytest

import fastopt as fo
from fastopt.compress import quantize
from fastopt.models import _distributed
from fastopt.models.training import FitOptions

WAYS = {"int8": (127, 0, True), "int8_weights": (127, 0, False), "int4": (7, 64, False)}


def rounded_weights(w, most, group):
    out = np.empty_like(w)
    for first in range(0, len(w), group or len(w)):
        rows = slice(first, first + (group or len(w)))
        scale = (np.abs(w[rows]).max(axis=0).astype("f8") / most).astype("f4")
        out[rows] = np.rint(w[rows] * (np.float32(1) / scale)) * scale
    return out


def rounded_inputs(x):
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    scale = np.float32((high - low) / 255)
    zero = np.rint(-low / float(scale))
    codes = np.clip(np.rint(x * (np.float32(1) / scale)), -zero, 255 - zero)
    return (codes * scale).astype("f4")


def step_by_formulas(weights, x, y, lr, most, group, inputs):
    """A step of gradient descent on mean squared error, of relu and linear layers, straight through the rounding."""
    (w1, b1, w2, b2), n = weights, len(x)
    x1 = rounded_inputs(x) if inputs else x
    v1, v2 = rounded_weights(w1, most, group), rounded_weights(w2, most, group)
    h = np.maximum(x1 @ v1 + b1, 0)
    h2 = rounded_inputs(h) if inputs else h
    dz2 = 2 * (h2 @ v2 + b2 - y) / (n * y.shape[1])
    dz1 = (dz2 @ v2.T) * (h > 0)
    gradients = x1.T @ dz1, dz1.sum(axis=0), h2.T @ dz2, dz2.sum(axis=0)
    return [p - lr * g for p, g in zip(weights, gradients, strict=True)]


def small(backend="cpu", way=None, widths=(70, 33, 5), **options):
    model = fo.Sequential([fo.Dense(widths[1], "relu"), fo.Dense(widths[2])], 3, backend, inputs=widths[0])
    model.compile(fo.SGD(lr=0.5), "mean_squared_error", quantize=way, **options)
    return model


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("rows", [1, 40, pytest.param(300, marks=pytest.mark.repeats)])
def test_a_step_by_formulas(backend, way, rows):
    rng = np.random.default_rng(rows)
    x, y = rng.normal(0.3, 1, (rows, 70)).astype("f4"), rng.normal(size=(rows, 5)).astype("f4")
    model = small(backend, way)
    wanted = step_by_formulas(model.get_weights(), x, y, 0.5, *WAYS[way])
    exact = small(backend)
    model.train_on_batch(x, y)
    exact.train_on_batch(x, y)
    for found, p, other in zip(model.get_weights(), wanted, exact.get_weights(), strict=True):
        np.testing.assert_allclose(found, p, rtol=1e-4, atol=1e-5)
        assert not np.array_equal(found, other)


@pytest.mark.parametrize("way", ["int8", "int4"])
def test_backends_and_options_agree(way):
    """Several batches, the last one short, with what else changes the phases of a step."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(70, 9)).astype("f4"), rng.integers(0, 3, 70)
    found = {}
    for backend in ("cpu", "numpy"):
        layers = [fo.Dropout(0.1), fo.Dense(17, "tanh", use_bias=False), fo.LayerNorm(), fo.Dense(8, "relu")]
        layers += [fo.Dense(6, "silu", trainable=False), fo.Dense(3, "softmax", kernel_regularizer="l2")]
        model = fo.Sequential(layers, 3, backend)
        model.compile(
            fo.SGD(lr=0.01, momentum=0.9, clip_norm=1.0),
            "sparse_categorical_crossentropy",
            ema=fo.EMA(0.9),
            quantize=way,
        )
        history = model.fit(x, y, epochs=2, batch_size=32, accumulate=2, verbose=0)
        found[backend] = [*model.get_weights(), *model.get_averages(), np.array(history["loss"])]
    for ours, theirs in zip(found["cpu"], found["numpy"], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_training_alone_is_rounded(backend):
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(50, 70)).astype("f4"), rng.normal(size=(50, 5)).astype("f4")
    model, exact = small(backend, "int8"), small(backend)
    np.testing.assert_array_equal(model.predict(x), exact.predict(x))
    assert model.evaluate(x, y) == exact.evaluate(x, y)


def test_threads_and_copies_change_nothing(monkeypatch):
    from fastopt.kernels.cpu.training import network

    monkeypatch.setattr(network, "STEP_FLOPS", 1)
    rng, before = np.random.default_rng(2), fo.get_num_threads()
    x, y = rng.normal(size=(70, 70)).astype("f4"), rng.normal(size=(70, 5)).astype("f4")
    found = []
    try:
        for threads in (1, 2, 3):
            fo.set_num_threads(threads)
            model = small("cpu", "int8")
            model.fit(x, y, epochs=1, verbose=0)
            model.save(file := io.BytesIO())
            file.seek(0)
            again = fo.load_model(file)
            again.fit(x, y, epochs=2, initial_epoch=1, verbose=0)
            found.append(again.get_weights())
    finally:
        fo.set_num_threads(before)
    whole = small("cpu", "int8")
    whole.fit(x, y, epochs=2, verbose=0)
    for weights in found:
        for ours, theirs in zip(weights, whole.get_weights(), strict=True):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
def test_int4_gains_by_it():
    """Rounding to 15 values costs a trained model more than one that was trained with them."""
    digits = fo.datasets.load("digits")
    losses = {}
    for way in (None, "int4"):
        model = fo.Sequential([fo.Rescaling(1 / 16), fo.Dense(24, "relu"), fo.Dense(10, "softmax")], seed=1)
        model.compile(fo.Adam(lr=0.01), "sparse_categorical_crossentropy", quantize=way)
        model.fit(digits.x_train, digits.y_train, epochs=15, batch_size=64, verbose=0)
        before, after = (m.evaluate(digits.x_test, digits.y_test)["loss"] for m in (model, quantize(model, bits=4)))
        losses[way] = after - before
    assert losses["int4"] < 0.5 * losses[None]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: small(way="int3"), "known: int8, int8_weights, int4"),
        (lambda: small("cuda", "int8"), "the backend 'cuda' does not round weights in training"),
        (lambda: setattr(small(way="int8"), "backend", "cuda"), "does not round weights in training"),
        (lambda: setattr(small("numpy", "int8"), "compute_dtype", "bfloat16"), "compute in float32"),
        (
            lambda: _distributed.check_model(small(way="int8"), FitOptions()),
            "distributed=\"mpi\" does not round weights in training, as quantize='int8' asks for",
        ),
    ],
)
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_float64_is_refused_before_anything_changes():
    model = fo.Sequential([fo.Dense(1)], dtype="float64", inputs=2)
    with pytest.raises(ValueError, match="quantize='int8' is for models that compute in float32; got dtype='float64'"):
        model.compile("adam", "mean_squared_error", quantize="int8")
    assert model.loss is None
