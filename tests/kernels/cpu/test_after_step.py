"""Constraints and averages after each step: against the reference and a formula, and on any number of threads."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from fastopt import profiling
from fastopt.kernels import cpu, reference
from fastopt.kernels.cpu.runtime.primitives import INTERPRETED
from fastopt.kernels.formulas import CONSTRAINTS, OPTIMIZERS
from fastopt.kernels.spec import (
    AfterStep,
    Batches,
    Constraint,
    DenseSpec,
    DropoutSpec,
    LossSpec,
    OptimizerSteps,
    Shuffle,
)

from .test_network import TOLERANCE, data_for, params_for

LOSS = "mean_squared_error"
LAYERS = [DenseSpec(6, 9, "tanh"), DropoutSpec(0.2), DenseSpec(9, 3)]
LIMITS = {
    "columns": [Constraint("max_norm", (0,), 0.5), None, Constraint("unit_norm"), Constraint("max_norm", most=0.1)],
    "rows": [Constraint("unit_norm", (1,)), Constraint("non_negative"), Constraint("max_norm", (1,), 0.5), None],
    "all": [Constraint("max_norm", (0, 1), 0.5), Constraint("unit_norm"), None, Constraint("non_negative")],
    "elements": [None, None, Constraint("non_negative"), None],
    "none": (),
}
ORDER = np.arange(8)
HOW = [{}, {"accumulate": 3}, {"clip_norm": 0.1}, {"clip_norm": 0.1, "accumulate": 2}]


def trained(backend, limits, shares, layers=LAYERS, dtype="float64", rule="adam", epochs=2, n=22, size=4, **how):
    """[parameters], [averages] after some epochs; shares: a function of the number of steps, or None."""
    rng = np.random.default_rng(0)
    params = params_for(rng, layers, dtype)
    frozen = how.pop("frozen", ())
    states = [
        None if i in frozen else tuple(np.zeros_like(p) for _ in OPTIMIZERS[rule].states) for i, p in enumerate(params)
    ]
    averages = [] if shares is None else [np.full_like(p, np.nan) for p in params]
    x, y = data_for(rng, LOSS, n, layers[0].inputs, layers[-1].outputs, dtype)
    network = backend.Network(layers, params, dtype, LossSpec(LOSS), [])
    order = how.pop("order", np.arange(n))
    shuffle = Shuffle(1) if epochs > 1 else None
    batches = Batches(x, y, order, size, how.pop("accumulate", 1), epochs, shuffle)
    steps = epochs * batches.steps
    given = [None if i in frozen else average for i, average in enumerate(averages)]
    after = AfterStep(limits, given, None if shares is None else shares(steps))
    options, rates = OPTIMIZERS[rule].options, np.full(steps, 1e-2)
    network.train(batches, OptimizerSteps(rule, states, options, rates, after=after, **how), seed=3)
    return params, averages


def falling(steps):
    return 1 / np.arange(1, steps + 1)


def assert_close(ours, theirs, dtype):
    for a, b in zip((*ours[0], *ours[1]), (*theirs[0], *theirs[1]), strict=True):
        np.testing.assert_allclose(a, b, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", ["float32", pytest.param("float64", marks=pytest.mark.repeats)])
@pytest.mark.parametrize("how", HOW, ids=str)
@pytest.mark.parametrize("limits", LIMITS.values(), ids=LIMITS)
def test_against_the_reference(limits, how, dtype):
    ours, theirs = (trained(backend, limits, falling, dtype=dtype, **how) for backend in (cpu, reference))
    assert_close(ours, theirs, dtype)
    for average in ours[1]:
        assert np.isfinite(average).all()


@pytest.mark.around_formulas
@pytest.mark.parametrize("dtype", ["float32", pytest.param("float64", marks=pytest.mark.repeats)])
@pytest.mark.parametrize("rule", OPTIMIZERS)
def test_every_rule_averages_what_it_updates(rule, dtype):
    """To the bit, step after step; parameters are those without averages."""
    T = np.dtype(dtype).type
    shares = np.array([1, 0.6, 0.125, 0.0])
    params, averages = trained(cpu, (), lambda steps: shares, dtype=dtype, rule=rule, epochs=1, n=8, size=2)
    expected = None
    for steps in range(1, 5):
        now, _ = trained(cpu, (), None, dtype=dtype, rule=rule, epochs=1, n=8, size=2, order=ORDER[: 2 * steps])
        if expected is None:
            expected = [p.copy() for p in now]
        expected = [a + T(shares[steps - 1]) * (p - a) for a, p in zip(expected, now, strict=True)]
    for ours, theirs in ((params, now), (averages, expected)):
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("how", HOW, ids=str)
@pytest.mark.parametrize("frozen", [(0, 1), (3,), (0, 2)], ids=str)
def test_parameters_that_are_not_updated_have_neither(frozen, how):
    limits = [None if i in frozen else limit for i, limit in enumerate(LIMITS["columns"])]
    for chosen in (limits, ()):
        ours, theirs = (trained(backend, chosen, falling, frozen=frozen, **how) for backend in (cpu, reference))
        for i, average in enumerate(ours[1]):
            assert np.isnan(average).all() == (i in frozen)
        assert_close(ours, theirs, "float64")


@pytest.mark.skipif(INTERPRETED, reason="interpreted kernels run on one thread")
@pytest.mark.parametrize("limits", LIMITS.values(), ids=LIMITS)
def test_bits_do_not_depend_on_the_number_of_threads(limits, threads):
    layers = [DenseSpec(64, 300, "relu"), DenseSpec(300, 130)]
    results = []
    for count in (1, 2, 4):
        with threads(count):
            params, averages = trained(cpu, limits, falling, layers, "float32", n=700, size=160)
            results.append([*params, *averages])
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", CONSTRAINTS)
@pytest.mark.parametrize("shape", [(1, 1), (3, 64), (70, 65), (5, 200), (4100, 2)])
def test_every_constraint_on_arrays_of_several_pieces(name, shape):
    """A rate of 0, so that nothing else changes the weights: one step does it, and its sums of squares are exact."""
    for axes in ((0,), (1,), (0, 1)):
        found = []
        for backend in (cpu, reference):
            w = np.random.default_rng(0).integers(-4, 5, shape).astype(np.float32)
            network = backend.Network([DenseSpec(*shape, bias=False)], [w], "float32", LossSpec(LOSS), [])
            x, y = np.zeros((1, shape[0]), np.float32), np.zeros((1, shape[1]), np.float32)
            after = AfterStep([Constraint(name, axes, 1.5)])
            steps = OptimizerSteps("sgd", [()], OPTIMIZERS["sgd"].options, np.zeros(1), after=after)
            network.train(Batches(x, y, np.arange(1), 1), steps, 0)
            found.append(w)
        np.testing.assert_array_equal(*found)


def test_passes_of_other_work_use_other_programs():
    """One network, whose work after a step changes from pass to pass."""
    both = []
    for backend in (cpu, reference):
        rng = np.random.default_rng(0)
        params = params_for(rng, LAYERS, "float64")
        averages = [np.zeros_like(p) for p in params]
        x, y = data_for(rng, LOSS, 8, 6, 3, "float64")
        network = backend.Network(LAYERS, params, "float64", LossSpec(LOSS), [])
        work = [
            None, AfterStep((), averages, np.full(2, 0.5)), AfterStep(LIMITS["columns"]), None,
            AfterStep(LIMITS["rows"], averages, np.full(2, 0.25)), AfterStep((), averages, np.full(2, 0.1)),
        ]  # fmt: skip
        for after in work:
            steps = OptimizerSteps("sgd", [()] * 4, OPTIMIZERS["sgd"].options, np.full(2, 0.1), after=after)
            network.train(Batches(x, y, np.arange(8), 4), steps, 0)
        both.append((params, averages))
    assert_close(*both, "float64")


@pytest.mark.skipif(INTERPRETED, reason="counts the phases of compiled programs")
def test_averages_are_no_pass_of_their_own_and_constraints_are_one_or_two():
    names = {}
    for limits in ("none", "columns"):
        for shares in (None, falling):
            for clip_norm in (None, 1.0):
                with profiling.profile() as profile:
                    trained(cpu, LIMITS[limits], shares, dtype="float32", rule="adam", clip_norm=clip_norm)
                names[limits, shares, clip_norm] = {name for _, name in profile._rows}
    bare, clipped = names["none", None, None], names["none", None, 1.0]
    assert names["none", falling, None] - bare == {"share"}
    assert names["columns", None, None] - bare == {"after_step"}  # norms are of sums of the updates
    assert names["columns", falling, None] - bare == {"share", "after_step"}
    assert names["columns", falling, 1.0] - clipped == {"share", "column_norms", "after_step"}


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_random_mixes(data):
    limit = st.none() | st.builds(
        Constraint, st.sampled_from([*CONSTRAINTS]), st.sampled_from([(0,), (1,), (0, 1)]), st.floats(0, 2)
    )
    of_bias = st.none() | st.builds(Constraint, st.sampled_from([*CONSTRAINTS]), st.just((0,)), st.floats(0, 2))
    limits = [data.draw(limit), data.draw(of_bias), data.draw(limit), data.draw(of_bias)]
    share = data.draw(st.none() | st.floats(0, 1))
    shares = None if share is None else lambda steps: np.full(steps, share) ** np.arange(steps)
    how = {
        "n": data.draw(st.integers(1, 30)), "size": data.draw(st.integers(1, 12)),
        "accumulate": data.draw(st.integers(1, 4)), "clip_norm": data.draw(st.sampled_from([None, 0.01, 1.0])),
    }  # fmt: skip
    assert_close(*(trained(backend, limits, shares, rule="momentum", **how) for backend in (cpu, reference)), "float64")
