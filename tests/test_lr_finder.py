"""The learning-rate range test: its losses beside plain NumPy, its end, its suggestion, and the model left alone."""

from __future__ import annotations

import copy
import math
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastopt as fo
from fastopt.models.lr_finder import RangeTest, smooth, steepest

LOW, HIGH, STEPS = 1e-3, 0.3, 40


def line(rows=24, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, 3))
    return x, x @ np.array([1.0, -2.0, 0.5]) + 1.0


def linear(backend, optimizer="sgd", **options):
    model = fo.Sequential([fo.Dense(1)], seed=3, backend=backend, dtype="float64", **options)
    model.compile(optimizer, "mean_squared_error")
    return model


def in_numpy(x, y, w, b, rates, weights=None):
    """Losses of gradient descent on all rows together, before each step."""
    share = (np.ones(len(y)) if weights is None else weights) / (len(y) if weights is None else weights.sum())
    losses = []
    for rate in rates:
        errors = x @ w + b - y
        losses.append(share @ errors**2)
        w, b = w - rate * 2 * (share * errors) @ x, b - rate * 2 * share @ errors
    return losses


def test_losses_are_those_of_gradient_descent_with_growing_rates(backend):
    x, y = line()
    model = linear(backend, inputs=3)
    (w, b), weights = model.get_weights(), np.arange(1.0, 25.0)
    rates = LOW * (HIGH / LOW) ** (np.arange(STEPS) / (STEPS - 1))
    for given_weights in (None, weights):
        test = fo.lr_finder(model, x, y, LOW, HIGH, STEPS, batch_size=99, sample_weight=given_weights)
        np.testing.assert_allclose(test.rates, rates, rtol=1e-12)
        np.testing.assert_allclose(test.losses, in_numpy(x, y, w[:, 0], b[0], rates, given_weights), rtol=1e-9)
        assert not test.diverged


def test_the_model_is_left_as_it_is(backend):
    x, y = line()
    model = fo.Sequential([fo.Dense(4, "relu"), fo.Dropout(0.5), fo.Dense(1)], seed=1, backend=backend)
    model.compile(fo.Adam(lr=fo.schedules.Cosine(0.01, 50)), "mean_squared_error")
    fresh = copy.deepcopy(model)
    fo.lr_finder(model, x, y, steps=5)
    assert not model.built
    for some in (model, fresh):
        some.fit(x, y, epochs=2, batch_size=8, verbose=0)
    history, lr = model.history, model.optimizer.lr
    first = fo.lr_finder(model, x, y, steps=5)
    assert (model.history, model.optimizer.lr) == (history, lr)
    assert (model.optimizer.steps, model.epochs_done) == (6, 2)
    # a further epoch goes on as if nothing had been tried, and so does a further test
    np.testing.assert_array_equal(fo.lr_finder(model, x, y, steps=5).losses, first.losses)
    for some in (model, fresh):
        some.fit(x, y, batch_size=8, verbose=0)
    for ours, theirs in zip(model.parameters, fresh.parameters, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_trained_model_starts_from_its_weights_and_at_the_lowest_rate(backend):
    x, y = line()
    model = linear(backend)
    model.fit(x, y, epochs=9, batch_size=8, verbose=0)
    test = fo.lr_finder(model, x, y, steps=4, batch_size=24)
    assert test.losses[0] == pytest.approx(model.evaluate(x, y)["loss"], rel=1e-9)
    assert test.rates.tolist() == pytest.approx([1e-6, 10 ** (-6 + 7 / 3), 10 ** (-6 + 14 / 3), 10.0])


@pytest.mark.parametrize("diverge", [1.5, 4.0])
def test_it_ends_where_the_loss_diverges(backend, diverge):
    x, y = line()
    model = linear(backend)
    test = fo.lr_finder(model, x, y, 1e-3, 1e3, 120, batch_size=24, smoothing=0.5, diverge=diverge)
    averages, total, weight = [], 0.0, 0.0
    for loss in test.losses:
        total, weight = 0.5 * total + loss, 0.5 * weight + 1
        averages.append(total / weight)
    limit = diverge * test.losses[0]
    assert test.diverged
    assert len(test.rates) < 120
    assert averages[-1] > limit
    assert max(averages[:-1]) <= limit
    assert test.smoothed.max() <= limit
    assert "where the loss diverged" in str(test)


def test_an_infinite_loss_ends_it_without_a_warning(backend):
    x, y = line()
    model = fo.Sequential([fo.Dense(1)], backend=backend)
    model.compile(fo.SGD(momentum=0.9), "mean_squared_error")
    test = fo.lr_finder(model, 1e4 * x, 1e4 * y, 1e-3, 1e30, 20, batch_size=24, diverge=1e300)
    assert test.diverged
    assert not math.isfinite(test.losses[-1])
    assert np.isfinite(test.losses[:-1]).all()


def test_suggestions_train(backend):
    """The rate suggested for a network brings the loss down; a hundredth of it is slow."""
    x = np.linspace(-1, 1, 64).reshape(-1, 1)
    model = fo.Sequential([fo.Dense(8, "tanh"), fo.Dense(1)], seed=1, backend=backend)
    model.compile("adam", "mean_squared_error")
    lr = fo.lr_finder(model, x, x**2, batch_size=16).suggestion
    losses = []
    for rate in (lr, lr / 100):
        some = copy.deepcopy(model)
        some.compile(fo.Adam(lr=rate), "mean_squared_error")
        losses.append(some.fit(x, x**2, epochs=60, batch_size=16, verbose=0)["loss"][-1])
    assert losses[0] < 0.5 * losses[1]


def test_options_reach_the_training():
    x, y = line()
    model = linear("numpy", inputs=3)
    plain, scaled = (fo.lr_finder(model, x, y * 50, steps=4, standardize_targets=flag) for flag in (False, True))
    assert scaled.losses[0] < 0.1 * plain.losses[0]
    labels = np.where(y > 1, "yes", "no")
    classifier = fo.Sequential([fo.Dense(1)], seed=2, inputs=3, backend="numpy")
    classifier.compile("sgd", "binary_crossentropy")
    found = [
        fo.lr_finder(classifier, x, labels, steps=4, batch_size=24, class_weight=weight).losses[0]
        for weight in (None, {"no": 1.0, "yes": 1e6})
    ]
    only_yes = classifier
    only_yes.classes = ["no", "yes"]
    assert found[1] == pytest.approx(only_yes.evaluate(x[labels == "yes"], labels[labels == "yes"])["loss"], rel=1e-4)
    assert found[0] != pytest.approx(found[1], rel=1e-3)


@settings(deadline=None)
@given(
    losses=st.lists(st.floats(-10, 10), min_size=1, max_size=30),
    smoothing=st.sampled_from([0.0, 0.3, 0.9]),
    limit=st.sampled_from([2.0, math.inf]),
)
def test_smoothing_is_its_formula(losses, smoothing, limit):
    n, cut = len(losses), np.minimum(losses, limit)
    wanted = []
    for i in range(n):
        weights = np.array([smoothing ** abs(i - j) for j in range(n)])
        wanted.append(weights @ cut / weights.sum())
    np.testing.assert_allclose(smooth(np.array(losses), smoothing, limit), wanted, rtol=1e-9, atol=1e-9)


def test_losses_that_are_not_finite_count_as_the_limit():
    np.testing.assert_array_equal(smooth(np.array([1.0, np.nan, np.inf]), 0.0, 5.0), [1.0, 5.0, 5.0])


def test_the_steepest_descent_of_a_known_curve():
    """1 / (1 + (r / 0.1)^2) falls fastest over log r at r = 0.1."""
    rates = np.geomspace(1e-4, 10, 501)
    assert steepest(rates, 1 / (1 + (rates / 0.1) ** 2)) == pytest.approx(0.1, rel=0.02)
    assert steepest(rates, 1 + rates) is None  # it only rises
    falling_late = np.where(rates < 1, (np.log(rates) + 2.3) ** 2, 199 - 50 * np.log(rates))
    assert steepest(rates, falling_late) < 0.1  # up to the minimum, not in the fall from a peak after it


def test_what_it_prints():
    test = RangeTest(np.array([1e-3, 1e-2]), np.array([2.0, 1.0]), np.array([2.0, 1.0]), 0.01, False)
    assert repr(test) == "RangeTest(2 steps, 0.001 to 0.01, suggestion 0.01)"
    assert str(test).splitlines() == [
        "rates        0.001 to 0.01, 2 steps",
        "loss         2 at first, 1 at best, at 0.01",
        "suggestion   0.01, where the loss falls fastest",
    ]
    flat = RangeTest(test.rates, test.losses[::-1], test.losses[::-1], None, False)
    assert repr(flat).endswith("suggestion none)")
    assert str(flat).endswith("suggestion   none: the loss does not fall")


def test_a_plot_has_the_curve():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    test = RangeTest(np.array([1e-3, 1e-2]), np.array([2.0, 1.0]), np.array([2.0, 1.0]), 0.01, False)
    ax = test.plot()
    rates, losses = ax.lines[1].get_data()
    np.testing.assert_array_equal(rates, test.rates)
    np.testing.assert_array_equal(losses, test.smoothed)
    assert (ax.get_xscale(), ax.lines[2].get_xdata()[0]) == ("log", 0.01)
    assert test.plot(ax) is ax
    with pytest.raises(TypeError, match="ax must be Axes of Matplotlib; got .rates.png."):
        test.plot("rates.png")
    pyplot.close(ax.figure)


def test_a_plot_without_matplotlib_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"plot needs Matplotlib: pip install 'fastopt\[plot\]'"):
        RangeTest(np.ones(1), np.ones(1), np.ones(1), None, False).plot()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_lr": 0.0}, "min_lr must be above 0"),
        ({"min_lr": 1.0, "max_lr": 0.5}, "max_lr above min_lr; got 1 and 0.5"),
        ({"steps": 1}, "steps must be at least 2; got 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"smoothing": 1.0}, "smoothing must be"),
        ({"diverge": 1.0}, "diverge must be above 1; got 1"),
    ],
)
def test_refusals(options, message):
    x, y = line()
    with pytest.raises(ValueError, match=message):
        fo.lr_finder(linear("numpy"), x, y, **options)


def test_models_that_cannot_be_tried():
    x, y = line()
    with pytest.raises(TypeError, match="model must be a Sequential; got"):
        fo.lr_finder("adam", x, y)
    with pytest.raises(ValueError, match="no loss and optimizer yet: call compile"):
        fo.lr_finder(fo.Sequential([fo.Dense(1)]), x, y)
