"""`fit` with averages and constraints on a GPU: as on the reference, also where nobody looks at weights meanwhile."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from helpers_cuda import require_device

require_device()

import fastopt as fo
from fastopt.callbacks import LambdaCallback

pytestmark = pytest.mark.gpu

RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((12, 3)), RNG.integers(0, 2, 12)
LIMIT = fo.constraints.MaxNorm(0.8)


def model_of(backend):
    layers = [fo.Dense(4, "tanh", kernel_constraint=LIMIT), fo.Dense(2, "softmax", bias_constraint="non_negative")]
    model = fo.Sequential(layers, 1, backend, "float64")
    model.compile(fo.SGD(lr=0.5), "sparse_categorical_crossentropy", ema=fo.EMA(0.75))
    return model


def assert_alike(ours, theirs):
    found, expected = ([*model.get_weights(), *model.get_averages()] for model in (ours, theirs))
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(ours.predict(X), theirs.predict(X), rtol=1e-9)
    assert ours.evaluate(X, Y) == pytest.approx(theirs.evaluate(X, Y), rel=1e-9)


def test_epochs_at_once_and_one_by_one():
    """With validation, whose figures are those of the averages; the device holds weights and averages meanwhile."""
    for how in ({}, {"validation_data": (X, Y)}, {"validation_data": (X, Y), "callbacks": [fo.Callback()]}):
        ours, theirs = model_of("cuda"), model_of("numpy")
        found, expected = (model.fit(X, Y, epochs=3, batch_size=4, **how) for model in (ours, theirs))
        assert_alike(ours, theirs)
        if how:
            assert found["val_loss"] == pytest.approx(expected["val_loss"], rel=1e-9)


def test_methods_within_a_training_bring_averages_back():
    seen = {}
    for backend in ("cuda", "numpy"):
        found = seen[backend] = []

        def keep(model, epoch, logs, found=found):
            found.append([*model.get_averages(), model.predict(X)])

        look = LambdaCallback(on_epoch_end=keep, reads_weights=False)
        model_of(backend).fit(X, Y, epochs=2, batch_size=4, callbacks=[look])
    for ours, theirs in zip(seen["cuda"], seen["numpy"], strict=True):
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9)


def test_copies_and_frozen_layers_go_on():
    ours, theirs = model_of("cuda"), model_of("numpy")
    for model in (ours, theirs):
        model.fit(X, Y, batch_size=4)
    ours, theirs = copy.deepcopy(ours), copy.deepcopy(theirs)
    for model in (ours, theirs):
        model.freeze(model.names[0])
        model.fit(X, Y, batch_size=4)
        model.use_averages()
        model.fit(X, Y, batch_size=4, accumulate=2)
    assert_alike(ours, theirs)
