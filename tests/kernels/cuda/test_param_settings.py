"""Parameters with settings of their own, and parameters that are not updated, on the device."""

from __future__ import annotations

import numpy as np
import pytest
from helpers_cuda import require_device

require_device()
from helpers_param_settings import FROZEN, NUM_PARAMS, SETTINGS, Trained, assert_like_reference

from fastopt.kernels import cuda, reference
from fastopt.kernels.spec import ParamSettings

pytestmark = pytest.mark.gpu

QUICK = {"epochs": 1, "num_rows": 6}  # a step takes the simulator half a second


@pytest.mark.parametrize("name", SETTINGS)
def test_settings(name):
    assert_like_reference(cuda, "float64", "adam", settings=SETTINGS[name], weight_decay=0.05, **QUICK)


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
