"""The tables of the formulas and those of the reference name the same things, and mean the same by them."""

import math

import numpy as np
import pytest

from fastopt.kernels import formulas, reference
from fastopt.kernels.formulas import ACTIVATIONS, LOSSES, METRICS, OPTIMIZERS, dropout
from fastopt.kernels.formulas.optimizers import CLASSES
from fastopt.kernels.formulas.optimizers.common import COMMON
from fastopt.kernels.scalars import fill_row
from fastopt.kernels.spec import LossSpec

POINTS = np.concatenate([np.linspace(-6, 6, 97), [-40.0, -0.0, 0.0, 40.0]])


def test_both_sides_name_the_same_rows():
    assert set(OPTIMIZERS) == set(reference.UPDATES)
    assert set(ACTIVATIONS) == set(reference.ACTIVATIONS)
    assert set(LOSSES) == set(reference.LOSSES)
    assert set(METRICS) == set(reference.METRICS)


@pytest.mark.parametrize("rule", OPTIMIZERS)
def test_scalars_fill_a_column_for_each_element_that_a_rule_reads(rule):
    row = OPTIMIZERS[rule]
    options = {name: value for name, value in row.options.items() if name != "lr"}
    columns = row.scalars([1, 2], [0.5, 0.25], **options)
    assert 6 <= len(columns) <= formulas.NUM_SCALARS
    assert all(not isinstance(column, list) or len(column) == 2 for column in columns)
    assert set(row.options) <= set(formulas.DOMAINS)
    assert all(value in formulas.DOMAINS[name] for name, value in row.options.items())


@pytest.mark.parametrize("rule", OPTIMIZERS)
def test_a_device_that_counts_computes_the_scalars_of_the_host(rule):
    row = OPTIMIZERS[rule]
    options = {**row.options, "weight_decay": 0.1} | {n: 0.3 for n in ("lr_decay", "dampening") if n in row.options}
    own = slice(COMMON, formulas.NUM_SCALARS)
    limit, expected = np.zeros((2, formulas.NUM_SCALARS + 1))
    fill_row(limit, rule, math.inf, {**options, "lr": 0.0})
    for step in (1, 2, 3, 10, 1000):
        fill_row(expected, rule, step, {**options, "lr": 0.25})
        found = row.at_step(float(step), 0.25, tuple(limit[own].tolist()))
        assert list(found) == expected[own].tolist()


def test_an_option_has_one_domain():
    for row in CLASSES.values():
        for name, option in row.options.items():
            assert formulas.DOMAINS[name] == option.domain
            assert option.doc.endswith(".")


@pytest.mark.parametrize("rule", OPTIMIZERS)
def test_a_rule_returns_as_many_states_as_its_row_names(rule):
    row = OPTIMIZERS[rule]
    h = (1.0, 0.4, 0.1, 0.01, 0.9) + (0.5,) * (formulas.NUM_SCALARS - 5)
    p, states = row.rule(1.0, 0.5, (0.25,) * len(row.states), h, 1e-300)
    assert isinstance(p, float)
    assert len(states) == len(row.states)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_and_its_slope_equal_the_reference(name):
    row = ACTIVATIONS[name]
    y = np.empty_like(POINTS)
    reference.activate(name, POINTS, y)
    # Far to the left gelu is z (1 - almost 1): what is left of it has the absolute precision of z.
    np.testing.assert_allclose([row.value(float(z)) for z in POINTS], y, rtol=1e-14, atol=1e-14)
    s = y if row.uses == "y" else POINTS
    dx, dw, db = np.empty((len(s), 1)), np.empty((1, 1)), np.empty(1)
    one = np.ones((len(s), 1))
    reference.dense_backward(one, one, np.ones((1, 1)), s[:, None].copy(), name, dx, dw, db)
    np.testing.assert_allclose([row.slope(float(v)) for v in s], dx[:, 0], rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_a_slope_is_the_derivative(name):
    row, step = ACTIVATIONS[name], 1e-3
    for z in np.linspace(-4, 4, 81) + 0.0123:  # away from the kinks at 0

        def f(k, z=z):
            return row.value(float(z + k * step))

        numeric = (f(-2) - 8 * f(-1) + 8 * f(1) - f(2)) / (12 * step)
        assert math.isclose(row.slope(f(0) if row.uses == "y" else float(z)), numeric, rel_tol=1e-8, abs_tol=1e-9)


@pytest.mark.parametrize("name", [name for name, row in LOSSES.items() if not row.by_row])
def test_an_elementwise_loss_equals_the_reference(name):
    row = LOSSES[name]
    param = next(iter(row.params.values()), 0.0) + (0.25 if row.params else 0.0)
    spec = LossSpec(name, dict.fromkeys(row.params, param))
    for z in POINTS:
        for t in (-1.0, 1.0) if row.signs else (0.0, 0.3, 1.0):
            gradient = np.empty((1, 1))
            value = reference.loss(spec, np.array([[z]]), np.array([[t]]), gradient)
            assert math.isclose(row.value(float(z), t, param), value, rel_tol=1e-13, abs_tol=1e-14)
            assert math.isclose(row.slope(float(z), t, param), gradient[0, 0], rel_tol=1e-13, abs_tol=1e-14)


def test_links_boundaries_and_targets_are_consistent():
    for row in LOSSES.values():
        assert row.link in (None, "softmax", "sigmoid")
        assert row.targets in ("labels", "dense")
        assert row.by_row == (row.link == "softmax")
        assert set(row.params) <= set(formulas.LOSS_DOMAINS)


def test_domains():
    assert 0.0 in formulas.FRACTION
    assert 1.0 not in formulas.FRACTION
    assert float("nan") not in formulas.POSITIVE
    assert float("inf") not in formulas.POSITIVE
    assert -1e-9 not in formulas.POSITIVE
    assert -3.5 in formulas.DOMAINS["dampening"]
    assert True in formulas.FLAG
    assert 2 not in formulas.FLAG
    assert str(formulas.FRACTION) == "a number in [0, 1)"
    assert str(formulas.POSITIVE) == "a finite number of at least 0"
    assert str(formulas.DOMAINS["dampening"]) == "a finite number"
    assert str(formulas.FLAG) == "True or False"
    assert None in formulas.BOUND
    assert 0.0 not in formulas.BOUND
    assert float("inf") not in formulas.BOUND
    assert str(formulas.BOUND) == "None or a finite number above 0"


def test_the_mixer_is_splitmix64():
    # First outputs of the generator seeded with 1234567, from the authors' reference implementation.
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    state = 1234567
    for value in expected:
        state = (state + dropout.GOLDEN) & dropout.WORD
        assert dropout.mix(state) == value
