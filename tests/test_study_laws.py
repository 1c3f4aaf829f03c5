"""Regressions of times and power laws of errors: their numbers beside formulas, and what makes them up."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("scipy")

from scipy.stats import t as student_t

from fastopt.study import PowerLaw, TimeModel
from fastopt.study._records import Shape, Work
from fastopt.study._time_model import TERMS

SHAPE = Shape(20, 3, 4)


def works(batch_sizes=(64,), layers=((16,), (32, 16), (64, 32), (128,), (256, 128), (512,))):
    return [
        SHAPE.work(widths, rows, epochs, size)
        for widths, rows, epochs, size in itertools.product(layers, (1000, 2000, 4000), (1, 3), batch_sizes)
    ]


# ---------------------------------------------------------------- times
@pytest.mark.parametrize("name", [name for name in TERMS if name not in ("fit", "parameters x rows x epochs")])
def test_each_term_is_found_in_times_that_have_it(name):
    """With several batch sizes all terms differ, and the coefficients come out as they went in."""
    found = works((16, 64, 256))
    unit = {"parameters x steps": 1e-8, "units x rows x epochs": 1e-9, "layers x steps": 1e-5, "steps": 2e-5}
    unit |= {"rows x epochs": 1e-6, "rows": 1e-6}
    truth = {"fit": 1e-3, "parameters x rows x epochs": 1e-10, name: unit[name]}
    seconds = [sum(value * TERMS[term](work) for term, value in truth.items()) for work in found]
    model = TimeModel(found, seconds)
    assert {term.name: term.coefficient.value for term in model.terms} == pytest.approx(truth, rel=1e-6)
    assert model.r2 == pytest.approx(1.0)
    assert model.worst_held_out(0) < 1e-6


def test_no_term_is_added_to_times_that_need_none():
    found = works((16, 64))
    seconds = [2e-3 + 3e-10 * work.parameters * work.rows * work.epochs for work in found]
    model = TimeModel(found, seconds)
    assert [term.name for term in model.terms] == ["fit", "parameters x rows x epochs"]
    new = SHAPE.work((1000,), 5000, 7, 64)
    assert model.seconds(new).value == pytest.approx(2e-3 + 3e-10 * new.parameters * 5000 * 7, rel=1e-9)


def test_coefficients_and_intervals_are_those_of_weighted_least_squares_with_clusters():
    """Beside the textbook's formulas: the weights are 1 / seconds, a cluster is a size."""
    rng = np.random.default_rng(0)
    found = works()
    of_size = {size: rng.normal() for size in {work.parameters for work in found}}
    seconds = np.array([
        (2e-3 + 3e-10 * work.parameters * work.rows * work.epochs)
        * (1 + 0.05 * of_size[work.parameters] + 0.02 * rng.normal())
        for work in found
    ])  # fmt: skip
    model = TimeModel(found, seconds)
    assert len(model.terms) == 2
    x = np.array([[1.0, work.parameters * work.rows * work.epochs] for work in found]) / seconds[:, None]
    bread = np.linalg.inv(x.T @ x)
    values = bread @ x.T @ np.ones(len(x))
    residuals = 1 - x @ values
    sizes = np.array([work.parameters for work in found])
    meat = sum(np.outer(s, s) for s in (x[sizes == size].T @ residuals[sizes == size] for size in of_size))
    deviations = np.sqrt(np.diag(bread @ meat @ bread) * 6 / 5)
    width = student_t.ppf(0.975, 5) * deviations
    for term, value, w in zip(model.terms, values, width, strict=True):
        assert term.coefficient == pytest.approx((value, value - w, value + w), rel=1e-6)
    assert model.errors == pytest.approx(-residuals, abs=1e-9)


def test_sizes_held_out_are_predicted_without_their_own_times():
    """One size takes twice as long as the others say: its error is -1/2, and theirs stay small."""
    found = works()
    odd = max(work.parameters for work in found)
    seconds = [(1e-3 + 1e-9 * w.parameters * w.rows * w.epochs) * (2 if w.parameters == odd else 1) for w in found]
    errors = TimeModel(found, seconds).held_out[odd]
    assert errors == pytest.approx([-0.5] * len(errors), rel=1e-3)


def test_the_interval_of_a_prediction_grows_with_the_error_of_sizes_held_out():
    found, rng = works(), np.random.default_rng(1)
    exact = [2e-3 + 3e-10 * work.parameters * work.rows * work.epochs for work in found]
    of_size = {size: np.exp(0.1 * rng.normal()) for size in {work.parameters for work in found}}
    new = SHAPE.work((100,), 4000, 10, 64)
    narrow = TimeModel(found, exact).seconds(new)
    wide = TimeModel(found, [t * of_size[work.parameters] for t, work in zip(exact, found, strict=True)]).seconds(new)
    assert narrow.high - narrow.low < 1e-6 * narrow.value
    assert 0.1 < (wide.high - wide.low) / wide.value < 1.5
    assert wide.low >= 0


def test_erratic_small_sizes_do_not_widen_the_intervals_of_large_ones():
    """From three large sizes on; the interval is then what those that were held out say."""
    layers = ((16,), (32, 16), (64, 32), (3000,), (4000,), (5000,), (6000,))
    found, rng = works(layers=layers), np.random.default_rng(2)
    erratic = {SHAPE.parameters(widths): np.exp(0.4 * rng.normal()) for widths in layers[:3]}
    seconds = [(1e-3 + 1e-10 * w.parameters * w.rows * w.epochs) * erratic.get(w.parameters, 1.0) for w in found]
    model = TimeModel(found, seconds)
    large, small = (model.seconds(SHAPE.work(widths, 4000, 3, 64)) for widths in ((4500,), (20,)))
    assert (large.high - large.low) / large.value < 0.3 * (small.high - small.low) / small.value
    few = TimeModel(*zip(*[(w, s) for w, s in zip(found, seconds, strict=True) if w.units < 4500], strict=True))
    wide = few.seconds(SHAPE.work((4500,), 4000, 3, 64))
    assert (wide.high - wide.low) / wide.value > 2 * (large.high - large.low) / large.value


def test_three_times_are_no_regression():
    with pytest.raises(ValueError, match="needs 4 of them at least; got 3"):
        TimeModel(works()[:3], [1.0, 2.0, 3.0])


def test_two_sizes_have_a_regression_but_hold_none_out():
    found = works(layers=((16,), (256,)))
    model = TimeModel(found, [1e-3 + 1e-10 * w.parameters * w.rows * w.epochs for w in found])
    assert (model.held_out, model.worst_held_out()) == ({}, None)
    assert model.terms[1].coefficient.value == pytest.approx(1e-10, rel=1e-6)


@given(st.integers(1, 1000), st.integers(1, 5000), st.integers(1, 9), st.integers(1, 300))
def test_steps_of_a_work(width, rows, epochs, batch_size):
    work = SHAPE.work((width,), rows, epochs, batch_size)
    assert work.steps == epochs * len(range(0, rows, batch_size))
    assert (work.parameters, work.units, work.layers) == (21 * width + (width + 1) * 3, width + 3, 2)
    assert isinstance(work, Work)


# ---------------------------------------------------------------- laws
def grid(seeds=3):
    sizes, rows = np.geomspace(1e3, 1e6, 6), np.array([1e3, 4e3, 16e3])
    return np.array([(p, r) for p in sizes for r in rows for _ in range(seeds)])


@settings(deadline=None)
@given(st.floats(0.02, 0.3), st.floats(0.3, 1.0), st.floats(0.3, 1.0))
def test_a_law_of_exact_errors_comes_out_as_it_went_in(floor, b, c):
    x = grid(1)
    law = PowerLaw(["parameters", "rows"], x, floor + (x[:, 0] / 1e3) ** -b + (x[:, 1] / 1e3) ** -c, draws=2)
    assert law.floor.value == pytest.approx(floor, rel=2e-2, abs=2e-3)
    assert [exponent.value for exponent in law.exponents] == pytest.approx([b, c], rel=2e-2)
    assert law.scales == pytest.approx([1e3**b, 1e3**c], rel=0.15)
    assert law.r2 > 0.9999
    assert law.falls == [True, True]
    assert law.error(5e6, 64e3).value == pytest.approx(floor + 5e3**-b + 64**-c, rel=1e-2)


@pytest.mark.repeats
def test_intervals_hold_the_truth():
    """Intervals of 95 % hold it in 32 of 40 samples at least: by chance alone in all but 1 of 10,000 times."""
    rng, held = np.random.default_rng(0), 0
    x = np.repeat(np.geomspace(1e3, 1e6, 6), 3)
    for _ in range(40):
        law = PowerLaw(["parameters"], x, (0.1 + 5 * x**-0.5) * np.exp(0.03 * rng.normal(size=len(x))))
        held += law.exponents[0].low <= 0.5 <= law.exponents[0].high
        assert law.floor.low <= law.floor.value <= law.floor.high
    assert held >= 32


def test_the_same_errors_have_the_same_intervals():
    x = grid()
    errors = (0.1 + x[:, 0] ** -0.5) * np.exp(0.05 * np.random.default_rng(0).normal(size=len(x)))
    first, second = (PowerLaw(["parameters", "rows"], x, errors, 20) for _ in range(2))
    assert (first.floor, first.exponents, first.error(1e7, 1e5)) == (
        second.floor, second.exponents, second.error(1e7, 1e5)
    )  # fmt: skip


def test_errors_that_do_not_fall():
    x = grid()
    law = PowerLaw(["parameters", "rows"], x, 0.1 + 10 * x[:, 1] ** -0.6, draws=2)
    assert law.falls == [False, True]
    assert PowerLaw(["rows"], x[:, 1:], np.full(len(x), 0.2), draws=2).falls == [False]
    rising = PowerLaw(["parameters"], x[:, :1], 0.1 + 1e-8 * x[:, 0], draws=2)
    assert rising.falls == [False]


def test_the_interval_of_an_exponent_is_as_wide_as_its_spread_over_samples():
    """Beside the standard deviation of the exponents of 30 samples: within half and twice of it."""
    rng, x = np.random.default_rng(0), np.repeat(np.geomspace(1e3, 1e6, 6), 3)
    samples = [(0.1 + 5 * x**-0.5) * np.exp(0.03 * rng.normal(size=len(x))) for _ in range(30)]
    exponents = [PowerLaw(["parameters"], x, errors, draws=1).exponents[0].value for errors in samples]
    interval = PowerLaw(["parameters"], x, samples[0], draws=100).exponents[0]
    assert 0.5 < (interval.high - interval.low) / (2 * 1.96 * np.std(exponents)) < 2


def test_a_ratio_of_errors():
    x = np.repeat(np.geomspace(1e3, 1e6, 6), 2)
    law = PowerLaw(["rows"], x, 0.05 + 3 * x**-0.5)
    before, after = 0.05 + 3 * 1e6**-0.5, 0.05 + 3 * 2e6**-0.5
    ratio = law.ratio([1e6], [2e6])
    assert ratio.value == pytest.approx(after / before, rel=1e-4)
    assert ratio.low <= ratio.value <= ratio.high


def test_a_law_needs_three_values_of_each_variable():
    x = grid()
    with pytest.raises(ValueError, match="a law of rows needs 3 different ones; got 2"):
        PowerLaw(["parameters", "rows"], x[x[:, 1] < 1e4], np.ones((x[:, 1] < 1e4).sum()))
