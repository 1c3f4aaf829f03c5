"""Models on the device take data, labels and scales as models on the other backends do."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from helpers_cuda import require_device

require_device()
from helpers_model import prepared

import fastopt as fo

pytestmark = pytest.mark.gpu

RNG = np.random.default_rng(0)
X = 1e6 + 10 * RNG.standard_normal((14, 2, 2))
Y = np.array(["high", "low", "middle"])[np.arange(14) % 3]


def model_of(backend, outputs=3, loss="sparse_categorical_crossentropy"):
    layers = [fo.Rescaling(0.1), fo.Normalization(), fo.Dropout(0.25), fo.Dense(4, "tanh"), fo.Dense(outputs)]
    model = fo.Sequential(layers, seed=1, backend=backend, dtype="float64")
    model.compile(fo.Adam(lr=0.05), loss)
    return model


def test_labels_and_prepared_images():
    ours, theirs = (model_of(backend) for backend in ("cuda", "numpy"))
    for model in (ours, theirs):
        model.fit(X, Y, epochs=3, batch_size=4, validation_split=0.2, verbose=0)
        assert model.classes.tolist() == ["high", "low", "middle"]
    a, b = (prepared(m.preprocessing, m.learnt.statistics, X.reshape(14, 4), m.dtype) for m in (ours, theirs))
    np.testing.assert_array_equal(a, b)
    for p, q in zip(ours.parameters, theirs.parameters, strict=True):
        np.testing.assert_allclose(p, q, rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(ours.predict_classes(X), theirs.predict_classes(X))
    assert ours.evaluate(X, Y) == pytest.approx(theirs.evaluate(X, Y), rel=1e-9)


def test_two_classes():
    ours, theirs = (model_of(backend, 1, "binary_crossentropy") for backend in ("cuda", "numpy"))
    for model in (ours, theirs):
        model.fit(X, np.where(Y == "low", 1, -1), epochs=2, batch_size=4, verbose=0)
        assert model.classes.tolist() == [-1, 1]
    np.testing.assert_array_equal(ours.predict_classes(X), theirs.predict_classes(X))


def test_scaled_targets_and_tables():
    frame = pd.DataFrame(X.reshape(14, 4), columns=list("abcd"))
    y = 1e5 + frame["a"] * 3
    ours, theirs = (model_of(backend, 1, "mse") for backend in ("cuda", "numpy"))
    for model in (ours, theirs):
        model.fit(frame, y, epochs=3, batch_size=4, standardize_targets=True, verbose=0)
    np.testing.assert_allclose(ours.predict(frame), theirs.predict(frame), rtol=1e-9)
    assert ours.feature_names == ("a", "b", "c", "d")
