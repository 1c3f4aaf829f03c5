"""Metrics in the targets' own units, against scikit-learn's."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from fastopt.cli.target_units import metrics_in_target_units

RNG = np.random.default_rng(0)
ONES = np.full((7, 1), 0.1)  # whose mean is not 0.1 to the last bit
TARGETS = {
    "one output": RNG.standard_normal((7, 1)),
    "two outputs": RNG.standard_normal((7, 2)) * [1.0, 100.0],
    "one of them constant": np.hstack([RNG.standard_normal((7, 1)), np.full((7, 1), 0.5)]),
    "all constant": np.hstack([ONES, ONES]),
}


@pytest.mark.parametrize("kind", TARGETS)
def test_metrics_are_scikit_learns(kind):
    metrics = pytest.importorskip("sklearn.metrics")
    y = TARGETS[kind]
    p = y + RNG.standard_normal(y.shape)
    model = SimpleNamespace(target_scale=(0.0, 1.0), predict=lambda x: p)
    names = ["loss", "mean_squared_error", "mean_absolute_error", "r2"]
    found = metrics_in_target_units(model, p, y, dict.fromkeys(names, 7.0))
    r2 = 0.0 if kind == "all constant" else metrics.r2_score(y, p, multioutput="variance_weighted")
    wanted = [7.0, metrics.mean_squared_error(y, p), metrics.mean_absolute_error(y, p), r2]
    np.testing.assert_allclose([found[name] for name in names], wanted, rtol=1e-12, atol=1e-12)


def test_an_exact_prediction_of_constant_targets():
    model = SimpleNamespace(target_scale=(0.0, 1.0), predict=lambda x: ONES)
    assert metrics_in_target_units(model, ONES, ONES, {"r2": 0.5}) == {"r2": 1.0}


def test_targets_that_were_not_scaled():
    figures = {"loss": 2.0, "r2": 0.5}
    assert metrics_in_target_units(SimpleNamespace(target_scale=None), ONES, ONES, figures) == figures
