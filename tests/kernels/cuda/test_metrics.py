"""Metrics on the device beside scikit-learn's, by launches and within the kernel of small networks."""

from __future__ import annotations

import helpers_metrics
import numpy as np
import pytest
from helpers_cuda import require_device

require_device()

from fastopt.kernels.spec import Batches, OptimizerSteps

pytestmark = pytest.mark.gpu

# The simulator is slow, so not all cases: those that say something of each way to count.
USED = ("-3-many-random", "-1-many-random", "-many-ties", "one row-right", "-constant-off", "constant output", "-exact")
CASES = [case for case in helpers_metrics.cases() if any(part in str(case.id) for part in USED)]


@pytest.mark.parametrize("fused", ["0", "1"])
@pytest.mark.parametrize("case", CASES)
def test_metrics_are_scikit_learns(case, fused, monkeypatch):
    monkeypatch.setenv("FASTOPT_CUDA_FUSED", fused)
    loss, last, z, y = case
    helpers_metrics.check((loss, last, z[:9], y[:9]), "cuda", "float64")


@pytest.mark.parametrize("fused", ["0", "1"])
@pytest.mark.parametrize("loss", ["binary_crossentropy", "categorical_crossentropy", "hinge", "mean_squared_error"])
def test_outputs_that_are_nan_are_never_right(loss, fused, monkeypatch):
    monkeypatch.setenv("FASTOPT_CUDA_FUSED", fused)
    z = np.array([[2.0, -2.0], [2.0, -2.0]])
    y = helpers_metrics.targets_of(loss, np.array([[1, 0], [1, 0]]), 2)
    model = helpers_metrics.model_of((loss, "linear", z, y), "cuda", "float64", ["accuracy"])
    assert model.evaluate(z, y)["accuracy"] == 1
    model.set_weights([np.eye(2) * [1, np.nan]])  # the second output of all rows
    by_output = loss in ("binary_crossentropy", "hinge")
    assert model.evaluate(z, y)["accuracy"] == (0.5 if by_output else 0)
    with pytest.warns(RuntimeWarning, match="diverged in epoch 1"):
        assert model.fit(z, y, verbose=0)["accuracy"] == [0.5 if by_output else 0]


def test_a_pass_over_other_targets_of_the_same_arrays():
    """Which outputs are constant may change with the rows of an epoch: launches are listed anew."""
    z, y = np.array([[1.0, 2], [3, 4], [5, 6], [7, 8]]), np.array([[1.0, 0], [1, 2], [1, 0], [2, 2]])
    model = helpers_metrics.model_of(("mean_squared_error", "linear", z, y), "cuda", "float64", ["r2"])
    twin = helpers_metrics.model_of(("mean_squared_error", "linear", z, y), "numpy", "float64", ["r2"])
    networks = [one.network() for one in (model, twin)]
    options = {"weight_decay": 0.0, "maximize": False, "l1": 0.0, "clip_value": None}
    for order in ([0, 1], [0, 3], [0, 2], [0, 1]):
        found = []
        for network in networks:
            batches = Batches(z, y, np.array(order), 2)
            found.append(network.train(batches, OptimizerSteps("sgd", [()], options, np.zeros(1)), 0).metrics["r2"])
        assert found[0] == pytest.approx(found[1])
