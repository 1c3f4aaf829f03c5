"""Batches of sizes of their own, and epochs that leave out the last rows of their order: by the reference, in parts."""

from __future__ import annotations

import numpy as np
import pytest
from helpers_network import Run, compare_sizes
from helpers_param_settings import SETTINGS, assert_like_reference
from hypothesis import given, settings
from hypothesis import strategies as st

from fastopt.kernels import cpu, reference
from fastopt.kernels.profile import recorder
from fastopt.kernels.spec import Batches, DenseSpec, EpochHooks, OptimizerSteps, Shuffle

BACKENDS = {"cpu": cpu, "numpy": reference}
EPOCH = st.lists(st.integers(1, 40), min_size=1, max_size=6)


@pytest.mark.parametrize("backend", BACKENDS)
@settings(deadline=None, max_examples=15)
@given(
    epochs=st.lists(EPOCH, min_size=1, max_size=3),
    accumulate=st.integers(1, 3),
    clip_norm=st.sampled_from([None, 0.05]),
)
def test_sizes_are_those_of_the_batches(backend, epochs, accumulate, clip_norm):
    compare_sizes(BACKENDS[backend], epochs, accumulate, clip_norm=clip_norm)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("backend", BACKENDS)
def test_weights_go_with_sizes(backend, accumulate):
    """A third of the rows have weight 0, and so has a whole step."""
    weights = lambda rows: np.random.default_rng(1).random(rows) * (np.arange(rows) % 3 > 0)  # noqa: E731
    compare_sizes(BACKENDS[backend], [[5, 1, 1, 7], [1, 2, 9]], accumulate, clip_norm=0.05, weights=weights)


def test_an_epoch_of_more_batches_makes_room():
    compare_sizes(cpu, [[40, 1], [1] * 60, [2, 3]], clip_norm=0.05)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_settings_of_parameters_go_with_sizes(accumulate):
    """Each step's penalty is added to its loss once, however many batches it has."""
    options = {"settings": SETTINGS["all"], "accumulate": accumulate, "sizes": [5, 1, 4, 2, 2]}
    assert_like_reference(cpu, "float64", "adam", **options)


def test_the_program_is_kept_from_epoch_to_epoch():
    run = compare_sizes(cpu, [[5, 4, 3]])
    kept, rng = run.net._trained.program, np.random.default_rng(1)
    x, y = rng.standard_normal((30, 3)), rng.integers(0, 3, 30)
    for sizes in ([1] * 19, [5, 5]):
        run.train(x, y, np.arange(30), 5, sizes=np.array(sizes))
        assert run.net._trained.program is kept
    run.train(x, y, np.arange(30), 5)  # equal batches have one of their own
    assert run.net._trained.program is not kept


@pytest.mark.parametrize("backend", BACKENDS)
@settings(deadline=None, max_examples=15)
@given(data=st.data())
def test_rows_that_are_left_out(backend, data):
    """Each epoch goes through the first rows of its own order: those of passes that are given no others."""
    rows, epochs = data.draw(st.integers(2, 50)), data.draw(st.integers(1, 3))
    used, size, accumulate = (data.draw(st.integers(1, most)) for most in (rows - 1, rows, 3))
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((rows, 3)), rng.integers(0, 3, rows)
    layers = [DenseSpec(3, 4, "tanh"), DenseSpec(4, 3)]
    whole, parts = (
        Run(BACKENDS[backend], layers, "sparse_categorical_crossentropy", ["accuracy"], "float64") for _ in range(2)
    )
    batches = Batches(x, y, np.arange(rows), min(size, used), accumulate, epochs, Shuffle(3), used=used)
    steps = epochs * -(-used // (min(size, used) * accumulate))
    assert epochs * batches.steps == steps
    heard = []
    options = {"weight_decay": 0.0, "l1": 0.0, "clip_value": None, "maximize": False}
    options |= {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "amsgrad": False}
    whole.net.train(
        batches, OptimizerSteps("adam", whole.states, options, np.full(steps, 0.01)), 3, None,
        EpochHooks(heard.append, lambda: False),
    )  # fmt: skip
    losses = []
    for epoch in range(epochs):
        order = Shuffle(3).order(np.arange(rows), epoch)[:used]
        losses.append(parts.train(x, y, order, min(size, used), accumulate=accumulate, **options).losses)
    np.testing.assert_array_equal(np.concatenate([results.losses for results in heard]), losses)
    for a, b in zip(whole.params, parts.params, strict=True):
        np.testing.assert_array_equal(a, b)


def test_profile_knows_the_rows_of_every_step():
    passes = []

    class Recorder:
        def record(self, done):
            passes.append(done)

    token = recorder.set(Recorder())
    try:
        compare_sizes(cpu, [[3, 1, 5]])
    finally:
        recorder.reset(token)
    (done,) = (found for found in passes if found.verb == "train")
    assert (done.rows, done.steps, done.epoch_steps) == (9, 3, 3)
    assert [done.rows_of_step(i) for i in range(3)] == [3, 1, 5]
    assert [done.rows_of_first(i) for i in range(4)] == [0, 3, 4, 9]


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=12), accumulate=st.integers(1, 4), data=st.data())
def test_parts_of_an_epoch(sizes, accumulate, data):
    rows = np.arange(sum(sizes))
    whole = Batches(rows, rows, rows, 9, accumulate, sizes=np.array(sizes))
    equal = Batches(rows, rows, rows, max(sizes), accumulate)
    for batches in (whole, equal):
        cut = data.draw(st.integers(0, batches.steps))
        parts = [batches.part(range(cut)), batches.part(range(cut, batches.steps))]
        for of_all, of_parts in (
            (batches.order, [part.order for part in parts]),
            (batches.rows_of_batches(), [part.rows_of_batches() for part in parts if len(part.order)]),
            (batches.rows_of_steps(), [part.rows_of_steps() for part in parts if len(part.order)]),
        ):
            np.testing.assert_array_equal(np.concatenate(of_parts), of_all)


