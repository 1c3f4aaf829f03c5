"""Weights of rows in networks: rows given several times or left out, the reference, steps without weight."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers_network import LAYERS, Run, assert_agree, compare, data_for
from hypothesis import given, settings
from hypothesis import strategies as st

from fastopt.kernels import cpu, reference
from fastopt.kernels.formulas import LOSSES, METRICS, OPTIMIZERS
from fastopt.kernels.metrics import variation_of
from fastopt.kernels.spec import (
    AfterStep,
    Batches,
    Constraint,
    DenseSpec,
    DropoutSpec,
    EpochHooks,
    EpochParts,
    OptimizerSteps,
    ParamSettings,
    Shuffle,
)

BACKENDS = {"cpu": cpu, "numpy": reference}
MSE = "mean_squared_error"
N = 41  # rows: two pieces, and a short last batch


def metrics_for(loss: str) -> list[str]:
    return [name for name, row in METRICS.items() if row.goes_with(LOSSES[loss]) and row.takes_outputs(LOSSES[loss], 3)]


def layers_for(loss: str) -> list[Any]:
    return [DenseSpec(3, 4, "tanh"), DenseSpec(4, 3, LOSSES[loss].link or "linear")]


def weights_for(rng: np.random.Generator, dtype: str = "float64", n: int = N) -> np.ndarray:
    """Fractions, of which a third is 0."""
    return (rng.random(n) * (rng.random(n) > 1 / 3)).astype(dtype)


@pytest.mark.parametrize("backend", BACKENDS.values(), ids=BACKENDS)
@pytest.mark.parametrize("loss", LOSSES)
def test_a_weight_is_a_row_given_so_many_times(loss, backend):
    counts = np.random.default_rng(1).integers(0, 4, N)
    repeated = np.repeat(np.arange(N), counts)
    x, y = data_for(np.random.default_rng(0), loss, N, 3, 3, "float64")
    by_weight, by_rows = (Run(backend, layers_for(loss), loss, metrics_for(loss), "float64") for _ in range(2))
    for _ in range(2):
        found = by_weight.train(x, y, np.arange(N), N, weights=counts.astype(float))
        wanted = by_rows.train(x, y, repeated, len(repeated))
        assert_agree(found._replace(weights=None), wanted, "float64")
        assert found.weights.tolist() == [counts.sum()]
    for a, b in zip(by_weight.params, by_rows.params, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10)
    found = by_weight.net.evaluate(x, y, 7, counts.astype(float))
    assert_agree(found, by_rows.net.evaluate(x[repeated], y[repeated], 7), "float64")


OFTEN = MSE, "sparse_categorical_crossentropy"
BOTH = [
    pytest.param(loss, dtype, marks=() if dtype == "float64" or loss in OFTEN else pytest.mark.repeats)
    for loss in LOSSES
    for dtype in ("float32", "float64")
]


@pytest.mark.parametrize(("loss", "dtype"), BOTH)
def test_cpu_and_reference(loss, dtype):
    weights = weights_for(np.random.default_rng(2), dtype)
    options = {"n": N, "batch_size": 8, "backend": cpu, "weights": weights}
    compare(layers_for(loss), loss, metrics_for(loss), dtype, **options)
    compare(layers_for(loss), loss, [], dtype, accumulate=3, clip_norm=0.1, **options)


@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_mixes(data):
    """Sizes, weights and options as they come; runs of rows of weight 0, so that whole steps have none."""
    draw = data.draw
    n, loss = draw(st.integers(1, 70)), draw(st.sampled_from(list(LOSSES)))
    weights = np.array(draw(st.lists(st.sampled_from([0.0, 0.25, 1.0, 3.0]), min_size=n, max_size=n)))
    first = draw(st.integers(0, n))
    weights[first : first + draw(st.integers(0, 30))] = 0
    weights[draw(st.integers(0, n - 1))] = 1
    options = {"accumulate": draw(st.integers(1, 3)), "clip_norm": draw(st.sampled_from([None, 0.1]))}
    rule, batch_size = draw(st.sampled_from(["sgd", "adam"])), draw(st.integers(1, n))
    layers = [DropoutSpec(0.2), *layers_for(loss)]
    metrics = metrics_for(loss) if draw(st.booleans()) else []
    compare(layers, loss, metrics, "float64", rule, n, batch_size, 1, cpu, weights, **options)


@pytest.mark.parametrize("backend", BACKENDS.values(), ids=BACKENDS)
@pytest.mark.parametrize("loss", LOSSES)
def test_the_scale_of_weights_does_not_matter(loss, backend):
    """Weights of 8 have the bits of weights of 1, which agree with none at all."""
    x, y = data_for(np.random.default_rng(0), loss, N, 3, 3, "float64")
    runs = [Run(backend, layers_for(loss), loss, metrics_for(loss), "float64") for _ in range(3)]
    ones = np.ones(N)
    of_8, of_1, plain = (
        run.train(x, y, np.arange(N), 8, weights=w, accumulate=2)
        for run, w in zip(runs, (8 * ones, ones, None), strict=True)
    )
    assert of_8.losses.tolist() == of_1.losses.tolist()
    assert of_8.metrics == pytest.approx(of_1.metrics, rel=1e-12)
    assert_agree(of_1._replace(weights=None), plain, "float64")
    for a, b, c in zip(*(run.params for run in runs), strict=True):
        assert a.tobytes() == b.tobytes()
        np.testing.assert_allclose(b, c, rtol=1e-9)


@pytest.mark.parametrize("backend", BACKENDS.values(), ids=BACKENDS)
@pytest.mark.parametrize("clip_norm", [None, 0.1])
@pytest.mark.parametrize("rule", ["adam", "momentum", "sgd"])
def test_a_step_without_weight_changes_nothing(rule, clip_norm, backend):
    """Nor does weight decay; it counts as a step: the next one has the scalars of its number."""
    x, y = data_for(np.random.default_rng(0), MSE, 16, 3, 3, "float64")
    weights = np.repeat([1.0, 0.0], [8, 8])
    run, other = (Run(backend, LAYERS, MSE, ["r2"], "float64", rule) for _ in range(2))
    options = {"weights": weights, "clip_norm": clip_norm, "weight_decay": 0.1}
    run.train(x, y, np.arange(8), 4, **options)
    before = [a.copy() for a in [*run.params, *(s for states in run.states for s in states)]]
    result = run.train(x, y, np.arange(8, 16), 4, **options)
    after = [*run.params, *(s for states in run.states for s in states)]
    assert all(a.tobytes() == b.tobytes() for a, b in zip(before, after, strict=True))
    assert (run.step, result.losses.tolist(), result.weights.tolist()) == (4, [0, 0], [0, 0])
    run.train(x, y, np.arange(8), 4, **options)
    other.train(x, y, np.arange(8), 4, **options)
    other.step += 2
    other.train(x, y, np.arange(8), 4, **options)
    assert all(a.tobytes() == b.tobytes() for a, b in zip(run.params, other.params, strict=True))


@pytest.mark.parametrize("backend", BACKENDS.values(), ids=BACKENDS)
@pytest.mark.parametrize("constrained", [False, True])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_nor_do_penalties_constraints_and_averages(accumulate, constrained, backend):
    """The penalty is in the loss of a step all the same."""
    x, y = data_for(np.random.default_rng(0), MSE, 12, 3, 3, "float64")
    layers = [DenseSpec(3, 2, "tanh"), DenseSpec(2, 3)]
    run = Run(backend, layers, MSE, [], "float64")
    averages = [np.full_like(p, 0.5) for p in run.params]
    limits = [Constraint("max_norm", (0,), 0.01) if constrained else None] * len(run.params)
    penalty = 0.01 * sum(float((p**2).sum()) for p in run.params)
    for weights, changed in ((np.zeros(12), False), (np.ones(12), True)):
        before = [a.copy() for a in [*run.params, *averages]]
        batches = Batches(x, y, np.arange(12), 3, accumulate, weights=weights)
        after = AfterStep(limits, averages, np.full(batches.steps, 0.25))
        steps = OptimizerSteps(
            "adam", run.states, OPTIMIZERS["adam"].options, np.full(batches.steps, 0.1),
            settings=[ParamSettings(l2=0.01)] * len(run.params), after=after,
        )  # fmt: skip
        losses = run.net.train(batches, steps, 3).losses
        same = [a.tobytes() == b.tobytes() for a, b in zip(before, [*run.params, *averages], strict=True)]
        assert not any(same) if changed else all(same)
        assert changed or losses == pytest.approx(np.full(batches.steps, penalty), rel=1e-12)


@pytest.mark.parametrize("backend", BACKENDS.values(), ids=BACKENDS)
@pytest.mark.parametrize("loss", LOSSES)
def test_a_row_of_weight_0_may_have_any_loss(loss, backend):
    """In float32 the loss of such a row is inf or NaN."""
    layers = [DenseSpec(3, 3, LOSSES[loss].link or "linear", False)]
    x, y = data_for(np.random.default_rng(0), loss, 6, 3, 3, "float32")
    x[2] = [3e38, -3e38, 3e38]
    weights = np.array([1, 2, 0, 1, 0.5, 1], np.float32)
    with_it, without = (Run(backend, layers, loss, metrics_for(loss), "float32") for _ in range(2))
    rest = np.array([0, 1, 3, 4, 5])
    found = with_it.net.evaluate(x, y, 6, weights), with_it.train(x, y, np.arange(6), 6, weights=weights)
    wanted = without.net.evaluate(x[rest], y[rest], 6, weights[rest]), without.train(x, y, rest, 6, weights=weights)
    for ours, theirs in zip(found, wanted, strict=True):
        assert np.isfinite(ours.losses).all()
        assert_agree(ours, theirs, "float32")


def test_epochs_and_threads(monkeypatch):
    """Epochs in one call, shuffled, are those of one after the other, with the same bits on two threads and on one."""
    x, y = data_for(np.random.default_rng(0), MSE, N, 3, 3, "float32")
    weights, found = weights_for(np.random.default_rng(3), "float32"), []
    for threads, together in ((1, True), (2, True), (1, False)):
        monkeypatch.setattr(cpu.training.network, "num_threads_for", lambda *_, n=threads: n)
        run, results = Run(cpu, LAYERS, MSE, ["r2", "mean_absolute_error"], "float32"), []
        batches = Batches(x, y, np.arange(N), 4, 2, epochs=3, shuffle=Shuffle(5), weights=weights)
        hooks = EpochHooks(results.append, lambda: False)
        steps = OptimizerSteps("adam", run.states, OPTIMIZERS["adam"].options, np.full(3 * batches.steps, 0.01))
        if together:
            run.net.train(batches, steps, 3, hooks=hooks)
            (all_epochs,) = results
            figures = [all_epochs.losses, all_epochs.weights, *all_epochs.metrics.values()]
        else:
            ones = [batches._replace(epochs=1, shuffle=Shuffle(5, i)) for i in range(3)]
            each = [run.net.train(one, steps.epoch(i, one.steps), 3) for i, one in enumerate(ones)]
            losses, of_steps = (np.array([getattr(one, name) for one in each]) for name in ("losses", "weights"))
            figures = [losses, of_steps, *([one.metrics[name] for one in each] for name in each[0].metrics)]
        found.append([np.array(part).tobytes() for part in [*figures, *run.params]])
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("backend", BACKENDS.values(), ids=BACKENDS)
def test_parts_of_an_epoch(backend):
    """Metrics go on from part to part; the weights of the last one are those of its steps."""
    x, y = data_for(np.random.default_rng(0), MSE, N, 3, 3, "float64")
    weights = weights_for(np.random.default_rng(4))
    whole, cut = (Run(backend, LAYERS, MSE, ["r2", "mean_squared_error"], "float64") for _ in range(2))
    wanted = whole.train(x, y, np.arange(N), 4, weights=weights)
    batches = Batches(x, y, np.arange(N), 4, weights=weights)
    parts, done, sums = EpochParts(batches), 0, []
    for rows in (16, 8, N - 24):
        part = batches._replace(order=np.arange(done, done + rows), parts=parts)
        options = OPTIMIZERS["adam"].options
        steps = OptimizerSteps("adam", cut.states, options, np.full(part.steps, 1e-2), done // 4)
        result = cut.net.train(part, steps, 3)
        sums += result.weights.tolist()
        done += rows
    assert sums == pytest.approx(wanted.weights.tolist(), rel=1e-12)
    assert result.metrics == pytest.approx(wanted.metrics, rel=1e-12)
    assert all(a.tobytes() == b.tobytes() for a, b in zip(whole.params, cut.params, strict=True))


@pytest.mark.parametrize("backend", BACKENDS.values(), ids=BACKENDS)
@pytest.mark.parametrize("loss", ["sparse_categorical_crossentropy", "categorical_crossentropy"])
def test_where_all_are_right_accuracy_is_1(loss, backend):
    """Exactly, for weights whose sums are rounded: those of right rows and of all rows are added up alike."""
    rng = np.random.default_rng(5)
    x, y = data_for(rng, loss, 999, 3, 3, "float64")
    x = np.eye(3)[y if y.ndim == 1 else y.argmax(axis=1)]
    run = Run(backend, [DenseSpec(3, 3, "softmax", False)], loss, ["accuracy", "f1_macro"], "float64")
    run.params[0][...] = np.eye(3)
    weights = rng.random(999) ** 9
    assert run.net.evaluate(x, y, 100, weights).metrics["accuracy"] == 1
    assert run.train(x, y, rng.permutation(999), 100, lr=0.0, weights=weights).metrics["accuracy"] == 1


def test_variation_of_weighted_targets():
    rng = np.random.default_rng(6)
    y, weights, order = rng.standard_normal((30, 2)), weights_for(rng, n=30), rng.permutation(30)[:20]
    rows = order[weights[order] > 0]
    mean = np.average(y[rows], axis=0, weights=weights[rows])
    wanted = weights[rows] @ (y[rows] - mean) ** 2
    np.testing.assert_allclose(variation_of(y, order, weights).of_columns, wanted, rtol=1e-12)
    constant = np.where(weights[:, None] > 0, 0.1, y)
    assert variation_of(constant, None, weights).of_columns == (0, 0)
