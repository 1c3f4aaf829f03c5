"""Trainings that are cut off and resumed, and their comparison with one without interruption."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers_model import assert_same, blobs

import fastopt as fo
from fastopt.models import _checkpoints

X, Y = blobs(77)
TARGETS = np.eye(3)[Y % 3]
FIGURES = ("accuracy", "f1_macro", "r2", "mse")
OF_TIME = "seconds", "samples_per_second"  # figures that differ from run to run


class Killed(BaseException):
    """Ends a training as nothing does that it knows of."""


def model_of(
    backend: str, lr: Any = None, metrics: Any = FIGURES, seed: int = 1, ema: Any = None, first: Any = None,
    between: Any = (), **options: Any,
) -> fo.Sequential:  # fmt: skip
    """A compiled model with dropout and a schedule: steps and epochs matter.

    first: arguments of its first layer; between: layers after that.
    """
    layers = [fo.Dense(8, "relu", **first or {}), *between, fo.Dropout(0.3), fo.Dense(3, "softmax")]
    model = fo.Sequential(layers, seed=seed, backend=backend)
    model.compile(fo.Adam(lr=lr or fo.schedules.Cosine(0.05, 30), **options), "cce", list(metrics), ema)
    return model


def fit(model: fo.Sequential, **options: Any) -> fo.History:
    """Train on 11 batches of 7 rows an epoch, if no options say otherwise."""
    return model.fit(X, TARGETS, **{"epochs": 2, "batch_size": 7, "verbose": 0} | options)


def killed(model: fo.Sequential, after: int, **options: Any) -> bool:
    """Train until so many checkpoints are written, and then no further; False if the training ended before that."""
    write, written = _checkpoints.write, 0

    def last(*args: Any) -> None:
        nonlocal written
        write(*args)
        written += 1
        if written == after:
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_checkpoints, "write", last)
        try:
            fit(model, **options)
        except Killed:
            return True
    return False


def assert_the_same_training(ours: fo.Sequential, theirs: fo.Sequential) -> None:
    """Assert that weights, states, counts and figures of two models are the same to the bit."""
    assert_same(ours.get_weights(), theirs.get_weights())
    assert_same(ours.get_averages(), theirs.get_averages())
    assert_same(ours.optimizer.state_dict(), theirs.optimizer.state_dict())
    assert (ours.optimizer.steps, ours.epochs_done) == (theirs.optimizer.steps, theirs.epochs_done)
    assert ours.history.epochs == theirs.history.epochs
    assert_same(ours.history.step_losses, theirs.history.step_losses)
    assert list(ours.history.history) == list(theirs.history.history)
    for name, values in theirs.history.history.items():
        if name not in OF_TIME:
            assert_same(np.array(ours.history[name]), np.array(values))
