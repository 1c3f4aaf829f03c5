"""History keeps figures by name and batches' losses in order."""

import numpy as np
import pytest

from fastopt import History


def two_epochs():
    history = History()
    history.append(3, {"loss": np.float32(0.5), "seconds": 2.0}, np.array([0.75, 0.25]))
    history.append(4, {"loss": 0.25, "seconds": 1.0}, np.array([0.25]))
    return history


def test_columns():
    history = two_epochs()
    assert history.history == {"loss": [0.5, 0.25], "seconds": [2.0, 1.0]}
    assert history.epochs == [3, 4]
    assert history["loss"] == [0.5, 0.25]
    assert type(history["loss"][0]) is float
    assert len(history) == 2
    assert "loss" in history
    assert "accuracy" not in history
    assert list(history) == list(history.history)
    assert history.to_dict() == {"epoch": [3, 4], "loss": [0.5, 0.25], "seconds": [2.0, 1.0]}


def test_step_losses_are_a_copy_in_float64():
    losses = np.array([0.75, 0.25])
    history = History()
    assert history.step_losses.dtype == np.float64
    assert history.step_losses.shape == (0,)
    history.append(1, {}, losses)
    losses[:] = 0
    history.step_losses[:] = 1
    np.testing.assert_array_equal(history.step_losses, [0.75, 0.25])


def test_to_dict_is_a_copy():
    history = two_epochs()
    history.to_dict()["loss"].append(0.0)
    assert len(history["loss"]) == 2


def test_repr_and_unknown_name():
    assert repr(two_epochs()) == "History(2 epochs, loss=0.25, seconds=1)"
    assert repr(History()) == "History(0 epochs)"
    with pytest.raises(KeyError, match="'val_loss'; known: loss, seconds"):
        two_epochs()["val_loss"]
