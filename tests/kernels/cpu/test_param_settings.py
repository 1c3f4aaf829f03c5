"""Parameters with settings of their own, and parameters that are not updated."""

import hypothesis.strategies as st
import numpy as np
import pytest
from helpers_param_settings import FROZEN, NEUTRAL, NUM_PARAMS, SETTINGS, Trained, assert_like_reference
from hypothesis import given, settings

from fastopt.kernels import cpu, reference
from fastopt.kernels.formulas import OPTIMIZERS
from fastopt.kernels.spec import ParamSettings

WAYS = {"in backward": {}, "clipped": {"clip_norm": 0.3}, "accumulated": {"accumulate": 2}}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", SETTINGS)
def test_settings(name, way):
    ours = assert_like_reference(cpu, "float64", "adam", settings=SETTINGS[name], weight_decay=0.05, **WAYS[way])
    plain = Trained(cpu, "float64", "adam", weight_decay=0.05, **WAYS[way])
    for own, p, other in zip(SETTINGS[name], ours.params, plain.params, strict=True):
        if own != NEUTRAL:
            assert not np.array_equal(p, other)


@pytest.mark.parametrize("way", WAYS)
def test_penalties_over_the_rows_of_each_step(way):
    ours = assert_like_reference(cpu, "float64", "adam", settings=SETTINGS["all"], divisors=True, **WAYS[way])
    undivided = Trained(cpu, "float64", "adam", settings=SETTINGS["all"], **WAYS[way])
    assert not np.allclose(ours.losses, undivided.losses)
    # of equal steps they are those of smaller factors
    rows = 4 * WAYS[way].get("accumulate", 1)
    smaller = [own._replace(l1=own.l1 / rows, l2=own.l2 / rows) for own in SETTINGS["all"]]
    divided = Trained(cpu, "float64", "adam", settings=SETTINGS["all"], divisors=True, num_rows=16, **WAYS[way])
    equal = Trained(cpu, "float64", "adam", settings=smaller, num_rows=16, **WAYS[way])
    np.testing.assert_allclose(divided.losses, equal.losses, rtol=1e-12)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", FROZEN)
def test_frozen_parameters(name, way):
    assert_like_reference(cpu, "float64", "adam", frozen=FROZEN[name], settings=SETTINGS["all"], **WAYS[way])


@pytest.mark.parametrize("rule", OPTIMIZERS)
def test_every_rule(rule):
    assert_like_reference(cpu, "float64", rule, settings=SETTINGS["all"], frozen=(1, 3), weight_decay=0.1)


@pytest.mark.parametrize("backend", [cpu, reference], ids=["cpu", "numpy"])
@pytest.mark.parametrize("way", WAYS)
def test_neutral_settings_change_no_bit(backend, way):
    plain = Trained(backend, "float32", "adamw", weight_decay=0.05, **WAYS[way])
    for own in (ParamSettings(), ParamSettings(weight_decay=0.05)):
        neutral = Trained(backend, "float32", "adamw", settings=[own] * NUM_PARAMS, weight_decay=0.05, **WAYS[way])
        assert neutral.losses == plain.losses
        for a, b in zip(neutral.params, plain.params, strict=True):
            np.testing.assert_array_equal(a, b)


own_settings = st.builds(
    ParamSettings,
    lr_scale=st.sampled_from([0.0, 0.5, 1.0]),
    weight_decay=st.sampled_from([None, 0.0, 0.2]),
    l1=st.sampled_from([0.0, 0.03]),
    l2=st.sampled_from([0.0, 0.1]),
    late=st.integers(0, 3),
)


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_mixes(data):
    some = data.draw(st.lists(own_settings, min_size=1, max_size=3))
    of_params = [data.draw(st.sampled_from([NEUTRAL, *some])) for _ in range(NUM_PARAMS)]
    frozen = tuple(i for i in range(NUM_PARAMS) if data.draw(st.integers(0, 3)) == 0)
    ours, theirs = (
        Trained(
            backend, "float64", "sgdw" if data.draw(st.shared(st.booleans(), key="rule")) else "adam",
            settings=of_params, frozen=frozen, batch_size=data.draw(st.shared(st.integers(1, 9), key="batch")),
            accumulate=data.draw(st.shared(st.integers(1, 3), key="accumulate")),
            clip_norm=data.draw(st.shared(st.sampled_from([None, 0.2]), key="clip")),
        )
        for backend in (cpu, reference)
    )  # fmt: skip
    np.testing.assert_allclose(ours.losses, theirs.losses, rtol=1e-9)
    for a, b in zip(ours.params, theirs.params, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-10)
