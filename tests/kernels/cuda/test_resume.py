"""Limits, and trainings that are cut off and resumed, on the device: the bits of those without interruption."""

from __future__ import annotations

import numpy as np
import pytest
from helpers_cuda import require_device

require_device()
import fastopt as fo
from fastopt.models import _checkpoints

pytestmark = pytest.mark.gpu

RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((14, 3)).astype("float32"), RNG.integers(0, 3, 14)
WEIGHTS = np.arange(14) % 3


class Killed(BaseException):
    pass


def model_of(ema=None, metrics=("accuracy", "f1_macro")):
    layers = [fo.Dense(4, "tanh"), fo.Dropout(0.25), fo.Dense(3, "softmax")]
    model = fo.Sequential(layers, seed=1, backend="cuda")
    optimizer = fo.Adam(lr=fo.schedules.Cosine(0.05, 12))
    model.compile(optimizer, "sparse_categorical_crossentropy", list(metrics), ema)
    return model


def fit(model, **options):
    return model.fit(X, Y, **{"epochs": 2, "batch_size": 4, "verbose": 0} | options)


def assert_the_same(ours, theirs):
    for a, b in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    for mine, other in zip(ours.optimizer.states, theirs.optimizer.states, strict=True):
        for a, b in zip(mine, other, strict=True):
            np.testing.assert_array_equal(a, b)
    for a, b in zip(ours.get_averages() or (), theirs.get_averages() or (), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(ours.history.step_losses, theirs.history.step_losses)
    for name in theirs.history.history.keys() - {"seconds", "samples_per_second"}:
        assert ours.history[name] == theirs.history[name], name


@pytest.mark.parametrize(
    ("fused", "options", "ema"),
    [
        ("0", {"validation_split": 0.2}, None),
        ("1", {}, None),
        ("0", {"accumulate": 2, "sample_weight": WEIGHTS}, fo.EMA(0.9)),
    ],
)
def test_a_training_goes_on_within_an_epoch(fused, options, ema, tmp_path, monkeypatch):
    monkeypatch.setenv("FASTOPT_CUDA_FUSED", fused)
    metrics = ("accuracy",) if fused == "1" else ("accuracy", "f1_macro")  # the one kernel counts no classes
    (whole, cut, again), write = (model_of(ema, metrics) for _ in range(3)), _checkpoints.write

    def last(*args):
        write(*args)
        raise Killed

    fit(whole, callbacks=[fo.Callback()], **options)
    options |= {"checkpoint": tmp_path / "c", "checkpoint_every": 1}
    with monkeypatch.context() as patch:
        patch.setattr(_checkpoints, "write", last)
        with pytest.raises(Killed):
            fit(cut, **options)
    assert cut.optimizer.steps == 1
    fit(again, resume=True, **options)
    assert_the_same(again, whole)


def test_steps_limit_a_training(tmp_path):
    ours, theirs = model_of(), model_of()
    history = fit(ours, epochs=None, max_steps=5, checkpoint=tmp_path / "c")
    assert (ours.optimizer.steps, len(history), len(history.step_losses)) == (5, 2, 5)
    fit(ours := model_of(), resume=tmp_path / "c")
    fit(theirs, callbacks=[fo.Callback()])
    assert_the_same(ours, theirs)
    history = fit(model_of(), epochs=3, steps_per_epoch=2, validation_split=0.25, validation_freq=2)
    assert len(history.step_losses) == 6
    assert np.isnan(history["val_loss"]).tolist() == [True, False, True]


def test_a_training_on_items_goes_on(tmp_path):
    """Cut off within an epoch, and after the last item of one, which nobody knows to be the last."""
    items, path = [(X[i : i + 5], Y[i : i + 5], 1 + WEIGHTS[i : i + 5]) for i in (0, 5, 10)], tmp_path / "c"
    whole, model = model_of(), None
    whole.fit(items, epochs=2, verbose=0)
    for steps in (2, 3, 5, None):
        model = model_of()
        model.fit(items, epochs=2, max_steps=steps, checkpoint=path, resume=True, verbose=0)
    assert_the_same(model, whole)
