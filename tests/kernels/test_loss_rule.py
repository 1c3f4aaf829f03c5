"""The rule that ends a pass by the losses of its epochs: the compiled one and Python's, against a plain loop."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastopt.kernels import cpu, reference
from fastopt.kernels.formulas import OPTIMIZERS
from fastopt.kernels.loss_rule import LossRule
from fastopt.kernels.spec import (
    Batches,
    DenseSpec,
    EpochHooks,
    LossSpec,
    OptimizerSteps,
    ParamSettings,
    Shuffle,
)

BACKENDS = {"cpu": cpu, "numpy": reference}
EPOCHS = 9


def trained(backend, rule, rate=0.4, accumulate=1, weighted=False, penalised=False, divided=False, size=4):
    """Losses (epochs, steps) of a pass that may end by a rule, and the weights of the steps."""
    rng = np.random.default_rng(3)
    params = [rng.standard_normal((3, 2)), np.zeros(2)]
    x, y, weights = rng.standard_normal((11, 3)), rng.standard_normal((11, 2)), rng.uniform(0.5, 2, 11)
    net = BACKENDS[backend].Network([DenseSpec(3, 2)], params, "float64", LossSpec("mean_squared_error"), [])
    batches = Batches(
        x, y, np.arange(11), size, accumulate, EPOCHS, Shuffle(1), weights=weights if weighted else None
    )
    steps = OptimizerSteps(
        "sgd", [(), ()], OPTIMIZERS["sgd"].options, np.full(EPOCHS * batches.steps, rate),
        settings=[ParamSettings(l1=0.3, l2=0.2), ParamSettings()] if penalised else (),
        penalty_divisors=batches.weight_of_steps() if divided else None,
    )  # fmt: skip
    results = []
    net.train(batches, steps, 0, None, EpochHooks(results.append, lambda: False, rule=rule))
    losses = np.concatenate([result.losses for result in results])
    of_steps = batches.weight_of_steps().reshape(EPOCHS, -1)[: len(losses)]
    return losses, of_steps


def epochs_until(means, least, patience, best, waited, of_all):
    """Epochs until `patience` in a row have not improved: the plain loop."""
    for epoch, loss in enumerate(means, 1):
        if loss < best - least:
            best, waited = loss, 0
        else:
            waited += 1
            best = min(best, loss) if of_all else best
        if waited >= patience:
            return epoch
    return len(means)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_pass_ends_with_the_epoch_of_a_plain_loop(backend, data):
    how = {
        "rate": data.draw(st.sampled_from([0.01, 0.4, 0.9])), "accumulate": data.draw(st.integers(1, 3)),
        "weighted": data.draw(st.booleans()), "penalised": data.draw(st.booleans()),
        "divided": data.draw(st.booleans()), "size": data.draw(st.integers(1, 11)),
    }  # fmt: skip
    least, patience = data.draw(st.sampled_from([0.0, 0.013, 0.2])), data.draw(st.integers(1, 4))
    best = data.draw(st.sampled_from([math.inf, 1.234]))
    waited, of_all = data.draw(st.integers(0, patience - 1)), data.draw(st.booleans())
    whole, weights = trained(backend, None, **how)
    means = np.average(whole, axis=1, weights=weights)
    expected = epochs_until(means, least, patience, best, waited, of_all)
    losses, _ = trained(backend, LossRule(least, patience, best, waited, of_all), **how)
    np.testing.assert_array_equal(losses, whole[:expected])


@pytest.mark.parametrize("backend", BACKENDS)
def test_where_rounding_would_decide_the_pass_ends(backend):
    (first, *_), weights = trained(backend, None)
    mean = np.average(first, weights=weights[0])
    for least in (0.0, 0.25):
        for nudge, expected in ((1e-14, 1), (-1e-14, 1), (1e-6, EPOCHS), (-1e-6, EPOCHS)):
            limit = mean * (1 + nudge)
            losses, _ = trained(backend, LossRule(least, 100, limit + least))
            assert len(losses) == expected
