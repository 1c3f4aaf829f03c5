"""Parameters with settings of their own, and parameters that are not updated, on the device."""

from __future__ import annotations

import numpy as np
import pytest
from helpers_cuda import require_device

require_device()
from helpers_param_settings import FROZEN, NUM_PARAMS, SETTINGS, Trained, assert_like_reference

import fastopt as fo
from fastopt.kernels import cuda, reference
from fastopt.kernels.spec import ParamSettings

pytestmark = pytest.mark.gpu

QUICK = {"epochs": 1, "num_rows": 6}  # a step takes the simulator half a second


@pytest.mark.parametrize("name", SETTINGS)
def test_settings(name):
    assert_like_reference(cuda, "float64", "adam", settings=SETTINGS[name], weight_decay=0.05, **QUICK)


def test_penalties_over_the_rows_of_each_step():
    assert_like_reference(cuda, "float64", "adam", settings=SETTINGS["all"], divisors=True, **QUICK)


@pytest.mark.parametrize("name", [name for name in FROZEN if name != "all"])  # `fit` refuses to train nothing
def test_frozen_parameters(name):
    assert_like_reference(cuda, "float64", "adam", frozen=FROZEN[name], **QUICK)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_frozen_parameters_of_each_dtype(dtype):
    assert_like_reference(cuda, dtype, "adam", frozen=(0, 1, 4), **QUICK)


@pytest.mark.parametrize("more", [{"clip_norm": 0.3}, {"accumulate": 2}], ids=["clipped", "accumulated"])
def test_steps_from_whole_gradients(more):
    assert_like_reference(cuda, "float64", "adam", settings=SETTINGS["all"], frozen=(1, 2), **more, **QUICK)


def test_neutral_settings_change_no_bit():
    of_params = [ParamSettings()] * NUM_PARAMS
    plain, neutral = (Trained(cuda, "float32", "adamw", settings=own, **QUICK) for own in ([], of_params))
    assert neutral.losses == plain.losses
    for a, b in zip(neutral.params, plain.params, strict=True):
        np.testing.assert_array_equal(a, b)


def test_penalty_of_parameters_as_they_are():
    ours, theirs = (Trained(backend, "float64", "adam", **QUICK) for backend in (cuda, reference))
    for p, q in zip(ours.params, theirs.params, strict=True):
        p[...] = q[...] = np.random.default_rng(p.size).standard_normal(p.shape)
    found, expected = (run.net.penalty(SETTINGS["all"]) for run in (ours, theirs))
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert ours.net.penalty([ParamSettings()] * NUM_PARAMS) == 0


class Thaw(fo.Callback):
    """A callback that thaws the first layer after the first epoch."""

    def on_epoch_begin(self, model, epoch):
        if epoch == 2:
            model.unfreeze("dense_1")


def fitted(backend, weights=None, accumulate=1, **options):
    first, second = {"kernel_regularizer": "l1_l2", "trainable": False}, {"bias_regularizer": "l2", "lr_scale": 0.5}
    layers = [fo.Dense(4, "tanh", **first), fo.Dropout(0.2), fo.Dense(2, weight_decay=0.1, **second)]
    model = fo.Sequential(layers, seed=3, backend=backend, dtype="float64")
    model.compile(fo.AdamW(lr=0.02, **options), "mse", decay_biases=False)
    rng = np.random.default_rng(2)
    x, y = rng.standard_normal((11, 3)), rng.standard_normal((11, 2))
    history = model.fit(
        x, y, epochs=2, batch_size=4, accumulate=accumulate, validation_data=(x, y), sample_weight=weights,
        callbacks=[Thaw()],
    )  # fmt: skip
    steps = [int(entry["step"]) for entry in model.optimizer.state_dict()["state"].values()]
    return model, [*history["loss"], *history["val_loss"], model.evaluate(x, y)["loss"], *steps]


@pytest.mark.parametrize(
    "how",
    [{}, {"clip_norm": 0.2}, {"accumulate": 2}, {"weights": np.where(np.arange(11) < 5, 0.0, 1.5)}],
    ids=["alone", "clipped", "accumulated", "weighted"],
)
def test_fit_thaws_layers_and_has_penalties_in_its_losses(how):
    (ours, figures), (theirs, expected) = (fitted(backend, **how) for backend in ("cuda", "numpy"))
    np.testing.assert_allclose(figures, expected, rtol=1e-9)
    for a, b in zip(ours.parameters, theirs.parameters, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11)
