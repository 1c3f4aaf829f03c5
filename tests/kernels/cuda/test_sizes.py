"""Batches of sizes of their own on the device: launches for each number of rows, from rows laid apart."""

from __future__ import annotations

import numpy as np
import pytest
from helpers_cuda import require_device

require_device()
from helpers_model import blobs, classifier
from helpers_network import compare_sizes

import fastopt as fo
from fastopt.batches import Growing, Random
from fastopt.kernels import cuda
from fastopt.kernels.cuda.training import data_feed
from fastopt.models import _auto_batch

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize(("accumulate", "clip_norm"), [(1, None), (2, 0.05)])
def test_sizes_are_those_of_the_batches(accumulate, clip_norm):
    run = compare_sizes(cuda, [[3, 1, 4], [2, 4, 3, 2]], accumulate, clip_norm=clip_norm)
    kept = run.net._kept["train"][1]
    x, y = kept.batches.arrays[:2]
    run.train(x, y, np.arange(5), 4, accumulate=accumulate, clip_norm=clip_norm, sizes=np.array([4, 1]))
    assert run.net._kept["train"][1] is kept


@pytest.mark.parametrize("accumulate", [1, 2])
def test_weights_go_with_sizes(accumulate):
    compare_sizes(cuda, [[3, 1, 1, 2]], accumulate, weights=lambda rows: np.arange(rows) % 3 / 4)


def test_data_that_are_streamed(monkeypatch):
    monkeypatch.setattr(data_feed, "MEMORY_SHARE", 0.0)
    monkeypatch.setattr(data_feed, "PART_BYTES", 1)
    compare_sizes(cuda, [[3, 1, 4, 2]])


@pytest.mark.parametrize("size", [Random(2, 5), Growing(3, 2.0), "full"])
def test_fit(size):
    x, y = blobs(14)
    ours, theirs = (
        classifier(backend, dtype="float64").fit(x, y, batch_size=size, epochs=2, drop_last=True, verbose=0)
        for backend in ("cuda", "numpy")
    )
    np.testing.assert_allclose(ours.step_losses, theirs.step_losses, rtol=1e-9)
    np.testing.assert_allclose(ours["accuracy"], theirs["accuracy"], rtol=1e-12)


def test_auto_measures_on_copies(monkeypatch):
    monkeypatch.setattr(_auto_batch, "STEPS", 1)
    monkeypatch.setattr(_auto_batch, "PASS", 0.0)
    monkeypatch.setattr(_auto_batch, "BUDGET", 0.0)
    x, y = blobs(17)
    auto, number = (classifier("cuda") for _ in range(2))
    history = auto.fit(x, y, batch_size="auto", verbose=0)
    assert history.batch_size == 8
    number.fit(x, y, batch_size=8, verbose=0)
    for ours, theirs in zip(auto.get_weights(), number.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_items_and_augmented_rows():
    """Each item is a pass of its own, on the device as on the reference."""
    x, y = blobs(11)
    items = [(x[:4], y[:4]), (x[4:9], y[4:9]), (x[9:], y[9:])]
    augmented = {"x": x, "y": y, "batch_size": 5, "augment": lambda x, y, rng: (x + rng.random(), y)}
    for options in ({"x": items}, augmented):
        ours, theirs = (
            classifier(backend, dtype="float64").fit(**options, verbose=0) for backend in ("cuda", "numpy")
        )
        np.testing.assert_allclose(ours.step_losses, theirs.step_losses, rtol=1e-9)
        assert ours["accuracy"] == pytest.approx(theirs["accuracy"], rel=1e-12)


def test_r2_of_items():
    """Squared errors of each output are added up apart, as the next item decides on whether its targets vary."""
    x, _ = blobs(9)
    targets, found = np.stack([np.arange(9.0), np.full(9, 0.1)], axis=1), []
    for backend in ("cuda", "numpy"):
        model = fo.Sequential([fo.Dense(2)], seed=4, backend=backend, dtype="float64")
        model.compile("sgd", "mse", ["r2"])
        found += model.fit([(x[:4], targets[:4]), (x[4:], targets[4:])], verbose=0)["r2"]
    assert found[0] == pytest.approx(found[1], rel=1e-12)


def test_sizes_with_all_layers_and_options():
    """Penalties, constraints, averages and normalization are told of the rows of their own batch."""
    (x, y), found = blobs(15), []
    for backend in ("cuda", "numpy"):
        hidden = fo.Dense(
            5, "tanh", kernel_regularizer=fo.regularizers.L2(0.01), kernel_constraint=fo.constraints.MaxNorm(1.0)
        )
        layers = [hidden, fo.BatchNorm(), fo.Dense(3, "softmax")]
        model = fo.Sequential(layers, seed=4, backend=backend, dtype="float64")
        model.compile("adam", "sparse_categorical_crossentropy", ["accuracy"], ema=fo.EMA(0.9))
        options = {"sample_weight": 1.0 + np.arange(15) % 4, "epochs": 2, "verbose": 0}
        found.append((model, model.fit(x, y, batch_size=Random(3, 5), **options)))
    (ours, history), (theirs, other) = found
    np.testing.assert_allclose(history.step_losses, other.step_losses, rtol=1e-8)
    np.testing.assert_allclose(history["loss"], other["loss"], rtol=1e-8)
    for a, b in zip([*ours.get_weights(), *ours.averages], [*theirs.get_weights(), *theirs.averages], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9)
