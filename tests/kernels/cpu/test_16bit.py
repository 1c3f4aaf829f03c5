"""Updates of float16 and bfloat16 arrays: bit for bit the reference's, in every form, for every rule and option."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from optimizers import CASES, draw_rule, first_of_its_kind, other

from fastopt.kernels import cpu, reference
from fastopt.kernels.cpu.optim.updates import TILE
from fastopt.kernels.cpu.runtime.primitives import INTERPRETED
from fastopt.kernels.formulas import OPTIMIZERS, dropout_stream
from fastopt.kernels.reference.bits16 import store, widened
from fastopt.kernels.spec import FORMS, MASTER, SAME, STOCHASTIC, Update

KINDS = {"float16": np.dtype(np.float16), "bfloat16": np.dtype(np.uint16)}
SIZES = [0, 1, 31, 33] + ([] if INTERPRETED else [TILE - 1, TILE + 1, 3 * TILE + 5])


def as_16bit(values, kind):
    """Values as 16-bit numbers, rounded."""
    out = np.zeros(np.shape(values), KINDS[kind])
    store(np.ascontiguousarray(values, np.float32), out)
    return out


def made(rng, rule, size, kind, form, special=False):
    """An update whose states are as that form wants them."""
    p = as_16bit(rng.standard_normal(size), kind)
    if special and size:
        odd = as_16bit(np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-40, -6e-8, 65504, 3.38e38, 2e-5], "f4"), kind)
        p[rng.integers(0, size, size // 2)] = rng.choice(odd, size // 2)
    scale = 0 if special else 1
    states = [np.abs(rng.standard_normal(size)).astype("f4") * np.float32(scale) for _ in OPTIMIZERS[rule].states]
    if form == SAME:
        states = [as_16bit(state, kind) for state in states]
    if form == MASTER:
        states.append(widened(p))
    return Update(rule, p, p, tuple(states), OPTIMIZERS[rule].options, 1, form, dropout_stream(7, 3))


def assert_same_bits(ours, theirs):
    for a, b in zip((ours.p, *ours.states), (theirs.p, *theirs.states), strict=True):
        wide_a, wide_b = (x if x.dtype == np.float32 else widened(x) for x in (a, b))
        numbers = ~np.isnan(wide_b)  # of NaN's many bit patterns, which one comes out is the processor's business
        np.testing.assert_array_equal(np.isnan(wide_a), ~numbers)
        np.testing.assert_array_equal(wide_a.view("u4")[numbers], wide_b.view("u4")[numbers])


def compare(rule, options, size, kind, form, seed, steps=3, special=False, scale=1.0):
    rng = np.random.default_rng(seed)
    job = made(rng, rule, size, kind, form, special)._replace(options=options)
    twin = job._replace(p=job.p.copy(), states=tuple(state.copy() for state in job.states))
    for step in range(1, steps + 1):
        g = made(rng, rule, size, kind, form, special).p
        kept = g.copy()
        cpu.update([job._replace(g=g, step=step)], scale)
        with np.errstate(all="ignore"):
            reference.update([twin._replace(g=g, step=step)], scale)
        np.testing.assert_array_equal(g.view("u2"), kept.view("u2"), err_msg="the gradient was changed")
        assert_same_bits(job, twin)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("rule", "option"), CASES)
def test_bits_equal_the_reference(rule, option, kind, form):
    options = dict(OPTIMIZERS[rule].options)
    if option:
        options[option] = other(rule, option)
    for size in SIZES:
        compare(rule, options, size, kind, form, seed=size, steps=2)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule", OPTIMIZERS)
def test_bits_with_infinities_nan_denormals_and_overflow(rule, kind, form):
    compare(rule, OPTIMIZERS[rule].options, 257, kind, form, seed=1, special=True)
    compare(rule, {**OPTIMIZERS[rule].options, "lr": 3e37}, 257, kind, form, seed=2, special=True)


@pytest.mark.repeats
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_bits_with_random_rules_options_and_sizes(data):
    rule, options = draw_rule(data)
    size = data.draw(st.integers(0, 70 if INTERPRETED else 70_000))
    kind, form = data.draw(st.sampled_from(list(KINDS))), data.draw(st.sampled_from(FORMS))
    scale = data.draw(st.sampled_from([1.0, 0.25, 1 / 3]))
    compare(rule, options, size, kind, form, data.draw(st.integers(0, 2**32)), steps=2, scale=scale)


@pytest.mark.parametrize("kind", KINDS)
def test_a_master_copy_is_taken_anew_where_the_array_was_written_to(kind):
    rng = np.random.default_rng(4)
    job = made(rng, "adam", 300, kind, MASTER)
    g = made(rng, "adam", 300, kind, MASTER).p
    for step in range(1, 4):
        cpu.update([job._replace(g=g, step=step)])
    finer = job.states[-1].copy()
    assert (finer != widened(job.p)).mean() > 0.9
    job.p[::3] = as_16bit(np.resize([2.0, 0.0, -0.0, np.inf, np.nan, 6e-8, 1e-39], 100), kind)
    job.p.view("u2")[1::3] += np.uint16(1)  # to the next number
    twin = job._replace(p=job.p.copy(), states=tuple(state.copy() for state in job.states))
    frozen = {**job.options, "lr": 0.0}
    cpu.update([job._replace(g=g, step=4, options=frozen)])
    with np.errstate(all="ignore"):
        reference.update([twin._replace(g=g, step=4, options=frozen)])
    assert_same_bits(job, twin)
    master = job.states[-1]
    np.testing.assert_array_equal(master[2::3], finer[2::3])
    np.testing.assert_array_equal(master[1::3], widened(twin.p)[1::3])


@pytest.mark.skipif(INTERPRETED, reason="interpreted kernels run on one thread")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_bits_do_not_depend_on_the_number_of_threads(kind, form, threads):
    results = []
    for n in (1, 2, 4):
        rng = np.random.default_rng(5)
        jobs = [made(rng, "adam", size, kind, form) for size in (200_001, 3, 70_000)]
        with threads(n):
            cpu.update(jobs)
            norm = cpu.gradient_norm([job.p for job in jobs])
        results.append([norm, *(array.tobytes() for job in jobs for array in (job.p, *job.states))])
    assert results[0] == results[1] == results[2]


def test_many_arrays_of_all_dtypes_and_forms_in_one_call():
    rng = np.random.default_rng(3)
    jobs, rules = [], [rule for rule in OPTIMIZERS if first_of_its_kind(rule)]
    for i, size in enumerate([0, 1, 33, 5, 0, 40] * 4):
        rule, kind = rules[(i + i // 4) % len(rules)], ("float32", "float16", "float64", "bfloat16")[i % 4]
        if kind in KINDS:
            jobs.append(made(rng, rule, size, kind, FORMS[i % 3])._replace(step=1 + i % 2))
        else:
            p, g, *states = (np.abs(rng.standard_normal(size)).astype(kind) for _ in range(5))
            states = tuple(states[: len(OPTIMIZERS[rule].states)])
            jobs.append(Update(rule, p, g, states, OPTIMIZERS[rule].options, 1 + i % 2))
    jobs = [job._replace(g=job.g.copy()) for job in jobs]
    twins = [job._replace(p=job.p.copy(), states=tuple(s.copy() for s in job.states)) for job in jobs]
    cpu.update(jobs)
    reference.update(twins)
    for job, twin in zip(jobs, twins, strict=True):
        for a, b in zip((job.p, *job.states), (twin.p, *twin.states), strict=True):
            assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_states_never_become_denormal_in_float32(kind, form):
    options = {**OPTIMIZERS["adam"].options, "beta1": 0.5, "beta2": 0.5}
    job = made(np.random.default_rng(0), "adam", 40, kind, form)._replace(options=options)
    g = as_16bit(np.full(40, 0.1, "f4"), kind)
    for step in range(1, 302):
        cpu.update([job._replace(g=g, step=step)])
        g[...] = 0
        if kind == "bfloat16" or form != SAME:
            for state in job.states[:2]:
                wide = state if state.dtype == np.float32 else widened(state)
                assert not ((wide != 0) & (np.abs(wide) < np.finfo("f4").tiny)).any()


# ---------------------------------------------------------------- what the forms are for
@pytest.mark.parametrize("kind", KINDS)
def test_small_updates_are_lost_in_the_first_form_alone(kind):
    """Steps of 2^-13 each from 1 down, where neighbours are 2^-11 apart in float16, and 2^-8 in bfloat16."""
    results = {}
    for form in FORMS:
        p = as_16bit(np.ones(64, "f4"), kind)
        states = (widened(p),) if form == MASTER else ()
        g, options = as_16bit(np.ones(64, "f4"), kind), {**OPTIMIZERS["sgd"].options, "lr": 2.0**-13}
        for step in range(1, 1 + (300 if INTERPRETED else 4000)):
            cpu.update([Update("sgd", p, g, states, options, step, form, dropout_stream(1, 0))])
        results[form] = widened(p).astype(float)
    lost = step * 2.0**-13
    assert (results[SAME] == 1).all()
    assert np.abs(results[MASTER] - (1 - lost)).max() <= 2.0**-9
    # A step is rounded with a variance of at most 2^-13 times the unit: a random walk; the mean of 64 is an eighth of
    # it off, and nothing is 4 times as far off as that.
    assert abs(results[STOCHASTIC].mean() - (1 - lost)) < 4 / 8 * np.sqrt(step * 2.0**-13 * 2.0**-8)
    assert results[STOCHASTIC].std() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_stochastic_rounding_goes_to_both_neighbours_in_proportion(kind):
    fine = {"float16": 10, "bfloat16": 7}[kind]
    for size in (1.0, 2.0**-20, 3e-6, 2.0**-24):  # float16 has denormal numbers below 2^-14
        unit = 2.0**-24 if kind == "float16" and size < 2**-14 else 2.0 ** (np.floor(np.log2(size)) - fine)
        x = np.float32(np.floor(size / unit) * unit + 0.3125 * unit)  # 5/16 of the way up
        count = 400 if INTERPRETED else 20_000
        p, states = as_16bit(np.zeros(count, "f4"), kind), ()
        g = as_16bit(np.full(count, 1.0, "f4"), kind)
        options = {**OPTIMIZERS["sgd"].options, "lr": -float(x)}
        cpu.update([Update("sgd", p, g, states, options, 1, STOCHASTIC, dropout_stream(0, 0))])
        values = widened(p).astype(float)
        assert set(np.unique(values)) == {np.floor(size / unit) * unit, (np.floor(size / unit) + 1) * unit}
        share = (values > x).mean()
        assert abs(share - 0.3125) < 4 * np.sqrt(0.3125 * 0.6875 / count)


def test_stochastic_bits_depend_on_stream_and_step():
    def run(stream, step):
        p = as_16bit(np.ones(100, "f4"), "bfloat16")
        options = {**OPTIMIZERS["sgd"].options, "lr": 2.0**-9}
        cpu.update([Update("sgd", p, as_16bit(np.ones(100), "bfloat16"), (), options, step, STOCHASTIC, stream)])
        return p.tobytes()

    assert run(5, 1) == run(5, 1)
    assert len({run(5, 1), run(5, 2), run(9, 1)}) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_norms(kind):
    rng = np.random.default_rng(0)
    for size in (0, 1, 63, 65, 100_001 if not INTERPRETED else 200):
        x = as_16bit(rng.standard_normal(size), kind)
        assert cpu.gradient_norm([x]) == pytest.approx(float(np.linalg.norm(widened(x).astype(float))), rel=1e-14)
        assert cpu.gradient_norm([x, np.ones(3)]) == pytest.approx(reference.gradient_norm([x, np.ones(3)]), rel=1e-14)
    assert cpu.gradient_norm([as_16bit(np.array([1.0, np.inf]), kind)]) == np.inf
    assert np.isnan(cpu.gradient_norm([as_16bit(np.array([1.0, np.nan]), kind)]))


def test_arrays_of_ml_dtypes():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    rng = np.random.default_rng(0)
    job = made(rng, "adam", 50, "bfloat16", SAME)
    states = tuple(s.copy().view(ml_dtypes.bfloat16) for s in job.states)
    twin = job._replace(p=job.p.copy().view(ml_dtypes.bfloat16), g=job.g.view(ml_dtypes.bfloat16), states=states)
    other = twin._replace(p=twin.p.copy(), states=tuple(s.copy() for s in twin.states))
    cpu.update([job._replace(g=job.g.copy())])
    cpu.update([twin])
    reference.update([other])
    assert job.p.tobytes() == twin.p.tobytes() == other.p.tobytes()
