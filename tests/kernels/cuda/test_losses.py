"""Losses, softmax and accuracy on the device, against the reference: odd sizes, strides, labels, and sums by tiles."""

from __future__ import annotations

import numpy as np
import pytest
from helpers_cuda import on_device, require_device, to_device

require_device()
from fastopt.kernels import cuda, formulas, reference
from fastopt.kernels.cuda.dense import losses, metrics
from fastopt.kernels.cuda.dense.epilogues import Shape
from fastopt.kernels.cuda.dense.finish import finish
from fastopt.kernels.cuda.runtime.array_interface import gpu_of, see
from fastopt.kernels.cuda.runtime.records import CLOCK, CONTROL, ROW, TOTALS
from fastopt.kernels.formulas import ACTIVATIONS, LOSSES
from fastopt.kernels.metrics import scored_forms
from fastopt.kernels.reference.metrics import METRICS, Precision, Rule
from fastopt.kernels.spec import LossSpec

pytestmark = pytest.mark.gpu

RTOL = {"float32": 2e-6, "float64": 1e-13}
# The last has more tiles than blocks run at once, and rows of more columns than threads share one.
SIZES = [(1, 1), (3, 7), (29, 14)]
PARAMS = {"huber": {"delta": 0.7}, "quantile": {"quantile": 0.9}} | {
    name: {"label_smoothing": 0.1} for name, row in LOSSES.items() if "label_smoothing" in row.params
}
CASES = [(name, {}) for name in LOSSES] + list(PARAMS.items())


def batch(name, rows, columns, dtype, seed=0):
    """Return outputs, and targets of the kind that the loss takes."""
    rng = np.random.default_rng(seed)
    z = (3 * rng.standard_normal((rows, columns))).astype(dtype)
    row = LOSSES[name]
    if row.targets == "labels":
        return z, rng.integers(columns, size=rows)
    if row.by_row:
        t = rng.random((rows, columns))
        return z, (t / t.sum(axis=1, keepdims=True)).astype(dtype)
    if row.signs:
        return z, np.where(rng.random((rows, columns)) < 0.5, -1, 1).astype(dtype)
    return z, rng.random((rows, columns)).astype(dtype)


@pytest.mark.parametrize("dtype", RTOL)
@pytest.mark.parametrize(("name", "params"), CASES, ids=str)
def test_losses_and_gradients(name, params, dtype):
    for rows, columns in SIZES:
        z, t = batch(name, rows, columns, dtype)
        spec, want = LossSpec(name, params), np.empty_like(z)
        value = reference.loss(spec, z, t, want)
        here, there, gradient = on_device(z, t, np.full_like(z, np.nan))
        np.testing.assert_allclose(cuda.loss(spec, here, there, gradient), value, rtol=RTOL[dtype], atol=1e-7)
        # If a probability meets its target, the gradient is the rounding of values of the order of 1 / rows.
        largest = max(np.abs(want).max(), 1 / rows)
        np.testing.assert_allclose(gradient.copy_to_host(), want, rtol=0, atol=4 * np.finfo(dtype).eps * largest)
        assert cuda.loss(spec, here, there) == cuda.loss(spec, here, there, gradient)


def test_one_hot_targets_are_labels():
    z, t = batch("sparse_categorical_crossentropy", 19, 5, "float32")
    here, labels, one_hot = on_device(z, t, np.eye(5, dtype="float32")[t])
    for params in ({}, {"label_smoothing": 0.1}):
        sparse, dense = (LossSpec(f"{kind}categorical_crossentropy", params) for kind in ("sparse_", ""))
        assert cuda.loss(sparse, here, labels) == cuda.loss(dense, here, one_hot)


def test_large_logits_and_those_that_are_not_finite():
    spec = LossSpec("sparse_categorical_crossentropy")
    z = np.array([[1e30, 1e30, -1e30], [-5e4, 0, 5e4], [3, 3, 3]], "float32")
    here, labels, gradient = on_device(z, np.array([0, 2, 1]), np.zeros_like(z))
    want = (np.log(2) + np.log(3)) / 3
    np.testing.assert_allclose(cuda.loss(spec, here, labels, gradient), want, rtol=1e-6)
    expected = np.array([[-0.5, 0.5, 0], [0, 0, 0], [1 / 3, -2 / 3, 1 / 3]]) / 3
    np.testing.assert_allclose(gradient.copy_to_host(), expected, atol=1e-7)
    z[0, 1] = np.nan
    assert np.isnan(cuda.loss(spec, to_device(z), labels, gradient))
    assert np.isnan(gradient.copy_to_host()[0]).all()
    assert not np.isnan(gradient.copy_to_host()[1:]).any()


@pytest.mark.parametrize("dtype", RTOL)
@pytest.mark.parametrize("name", ["softmax", *ACTIVATIONS])
def test_activations(name, dtype):
    for rows, columns in SIZES[1:]:
        z = batch("mean_squared_error", rows, columns, dtype)[0]
        want = np.empty_like(z)
        reference.activate(name, z, want)
        here, into = on_device(z, np.full_like(z, np.nan))
        cuda.activate(name, here, into)
        np.testing.assert_allclose(
            into.copy_to_host(), want, rtol=8 * np.finfo(dtype).eps, atol=2 * np.finfo(dtype).eps
        )
        cuda.activate(name, here, here)
        np.testing.assert_array_equal(here.copy_to_host(), into.copy_to_host())
    cuda.activate(name, to_device(np.zeros((0, 3), dtype)), to_device(np.zeros((0, 3), dtype)))


def strided(array, stride):
    """Return a device copy with rows of this length, and 77 in the gaps."""
    room = np.full((len(array), stride), 77, array.dtype)
    room[:, : array.shape[1]] = array
    return to_device(room)


@pytest.mark.parametrize("dtype", RTOL)
@pytest.mark.parametrize("name", ["huber", "categorical_crossentropy", "sparse_categorical_crossentropy"])
@pytest.mark.parametrize(("columns", "t_stride"), [(5, 7), (4, 12)])  # single numbers, and vectors
def test_rows_with_gaps_and_sums_of_a_pass(columns, t_stride, name, dtype):
    """Two batches, each with a sum of its own for the loss, and both with one for the whole pass."""
    rows, stride = 19, 8
    clock = np.zeros(1, CLOCK)
    param, results, counted = to_device(np.array([0.25])), to_device(np.zeros(3)), to_device(np.zeros(1))
    sums = to_device(np.full(losses.loss_tiles(name, rows, columns), np.nan))
    gpu = gpu_of({see(param).address})
    spec, wanted = LossSpec(name, dict.fromkeys(LOSSES[name].params, 0.25)), []
    for number in (1, 2):
        z, t = batch(name, rows, columns, dtype, seed=number)
        want = np.empty_like(z)
        wanted.append(reference.loss(spec, z, t, want))
        here, there = strided(z, stride), to_device(t) if t.ndim == 1 else strided(t, t_stride)
        gradient = strided(np.zeros_like(z), stride)
        clock["batch"] = number
        now = to_device(clock.view(np.int64))
        places = [see(a).address for a in (here, there, gradient, sums, param)]
        losses.run_loss(gpu, 0, name, *places, Shape(rows, columns, stride, dtype), t_stride)
        table = np.zeros(2, TOTALS)
        table["sums"], table["tiles"], table["stride"] = see(sums).address, sums.size, (8, 0)
        table["into"] = see(results).address, see(counted).address
        records, control = to_device(table.view(np.int64)), to_device(np.zeros(1, CONTROL).view(np.int64))
        step_done = number == 2
        finish(gpu, 0, see(records).address, 2, see(now).address, see(control).address if step_done else 0)
        assert now.copy_to_host().tolist() == [number + 1, 1]
        left = control.copy_to_host().view(CONTROL)[0]
        assert (left["skips"], left["shift"]) == ((1, ROW) if step_done else (0, 0))
        np.testing.assert_allclose(gradient.copy_to_host()[:, :columns], want, rtol=0, atol=1e-6)
        assert (gradient.copy_to_host()[:, columns:] == 77).all()
    count = rows if LOSSES[name].by_row else rows * columns
    np.testing.assert_allclose(results.copy_to_host(), [0, *np.multiply(wanted, count)], rtol=RTOL[dtype])
    np.testing.assert_allclose(counted.copy_to_host(), np.sum(wanted) * count, rtol=RTOL[dtype])


@pytest.mark.parametrize(
    ("name", "scored"),
    [
        (name, form)
        for name, row in {**formulas.METRICS, "top_2_accuracy": formulas.METRICS["top_2_accuracy"]}.items()
        if row.of_classes and not row.of_counts
        for form in scored_forms(name)
    ],
)
@pytest.mark.parametrize("columns", [1, 3, 6, 9])
def test_metrics_of_classes(name, scored, columns):
    z, t, boundary, labels = classes_with_ties(scored, columns)
    rows, z_stride, t_stride = 45, 11, 9
    metric = METRICS[name](Rule(scored == "outputs", boundary))
    metric.add(z, t)
    here, there = strided(z, z_stride), to_device(t) if labels else strided(t, t_stride)
    sums = to_device(np.full(metrics.hits_tiles(rows), np.nan))
    boundaries = to_device(np.array(boundary))
    places = [see(a).address for a in (here, there, sums, boundaries)]
    gpu = gpu_of({places[0]})
    metrics.run_hits(gpu, 0, name, scored, *places, Shape(rows, columns, z_stride, "float32"), t_stride)
    assert sums.copy_to_host().sum() == metric.total


@pytest.mark.parametrize("scored", scored_forms("precision"))
@pytest.mark.parametrize("columns", [2, 3, 9])
def test_counts_of_classes(scored, columns):
    z, t, boundary, labels = classes_with_ties(scored, columns)
    rows, z_stride, t_stride = 45, 11, 9
    wanted = Precision(Rule(scored == "outputs", boundary))
    wanted.add(z, t)
    here, there = strided(z, z_stride), to_device(t) if labels else strided(t, t_stride)
    found = to_device(np.full(metrics.found_bytes(scored, rows, columns) // 8, 77))
    sums = to_device(np.ones(3 * len(wanted.right)))  # to which is added
    boundaries = to_device(np.array(boundary))
    places = [see(a).address for a in (here, there, found, boundaries)]
    gpu = gpu_of({places[0]})
    metrics.run_classes(gpu, 0, scored, *places, Shape(rows, columns, z_stride, "float32"), t_stride)
    metrics.run_counts(gpu, 0, scored, places[2], see(sums).address, rows, columns)
    counts = np.concatenate([wanted.right, wanted.predicted, wanted.actual])
    np.testing.assert_array_equal(sums.copy_to_host(), counts + 1)
    assert 0 < wanted.right.sum() < wanted.predicted.sum() < wanted.actual.sum()


def classes_with_ties(scored, columns):
    """Outputs with ties, infinity and NaN, targets or labels, the boundaries of both, and True for labels."""
    labels = scored == "labels"
    rng, rows = np.random.default_rng(3), 45
    z = rng.integers(0, 3, (rows, columns)).astype("float32")  # with ties, of which the first counts
    t = rng.integers(0, columns, rows) if labels else rng.integers(0, 3, (rows, columns)).astype("float32")
    z[::7, -1] = np.nan  # which is never right
    z[3], z[4, 0] = -np.inf, np.inf
    return z, t, (0.5, 1.5), labels
