"""Numba's code of the one-block kernel, run on the host by one thread, against the reference."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from helpers_cuda import require_compiler

require_compiler()
from helpers_host import on_host
from helpers_network import data_for, params_for

from fastopt.kernels import reference
from fastopt.kernels.cuda.dense.structure import Structure
from fastopt.kernels.cuda.fused import kernel, layout, select
from fastopt.kernels.cuda.fused import loss as fused_loss
from fastopt.kernels.cuda.fused import sums as fused_sums
from fastopt.kernels.cuda.runtime.records import CLOCK, ROW
from fastopt.kernels.formulas import LOSSES, NUM_SCALARS, OPTIMIZERS
from fastopt.kernels.metrics import metric_values, variation_of
from fastopt.kernels.scalars import fill_scalars
from fastopt.kernels.spec import Batches, DenseSpec, DropoutSpec, LossSpec, OptimizerSteps

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="takes functions of the C library by their names"),
]

CLASSES = [
    DropoutSpec(0.2),
    DenseSpec(6, 9, "relu"),
    DropoutSpec(0.1),
    DenseSpec(9, 8, "gelu", False),
    DenseSpec(8, 3, "softmax"),
]
CASES = [
    (CLASSES, "sparse_categorical_crossentropy", ["accuracy"], "float32", "adam", 11, 4),
    ([DenseSpec(5, 17, "silu"), DenseSpec(17, 6)], "mean_squared_error", ["r2"], "float64", "sgd", 30, 13),
]
CLOSE = {"float32": {"rtol": 2e-5, "atol": 2e-6}, "float64": {"rtol": 1e-11, "atol": 1e-13}}
SEED, RATE = 3, 1e-2


def at(array):
    return array.ctypes.data


@pytest.mark.parametrize("case", CASES, ids=["classes", "numbers"])
def test_a_pass(monkeypatch, case):
    layers, loss, metrics, dtype, rule, n, batch = case
    for module in (layout, kernel, fused_loss, fused_sums):
        monkeypatch.setattr(module, "COLUMN_LANES", 1)
    monkeypatch.setattr(layout.Kind, "threads", property(lambda self: 1))
    monkeypatch.setenv("FASTOPT_CUDA_FUSED", "1")
    dense = [layer for layer in layers if isinstance(layer, DenseSpec)]
    x, y = data_for(np.random.default_rng(0), loss, n, dense[0].inputs, dense[-1].outputs, dtype)
    params, wanted = (params_for(np.random.default_rng(0), layers, dtype) for _ in range(2))
    states, wanted_states = ([tuple(np.zeros_like(p) for _ in OPTIMIZERS[rule].states) for p in wanted] for _ in "12")
    order, steps, options = np.random.default_rng(1).permutation(n), -(-n // batch), OPTIMIZERS[rule].options
    numbers = order.astype(np.uint32)
    rates = np.full(steps, RATE)
    network = reference.Network(layers, wanted, dtype, LossSpec(loss), metrics)
    totals = network.train(Batches(x, y, order, batch), OptimizerSteps(rule, wanted_states, options, rates), SEED)

    last = layers[-1]._replace(activation="linear")
    net = Structure([*layers[:-1], last], dtype, dtype, LossSpec(loss), metrics, LOSSES[loss].link)
    choice = select.choose(net, rule, y.dtype == np.int64, batch, 1 << 18)
    scalars = np.zeros((steps, ROW // np.dtype(dtype).itemsize), dtype)
    fill_scalars(scalars[:, : NUM_SCALARS + 1], rule, range(1, 1 + steps), options, rates)
    clock, results = np.zeros(1, CLOCK), np.zeros(len(metrics) + steps)
    data = select.FusedPass(
        list(map(at, params)), [list(map(at, of_param)) for of_param in states], SEED, None, y.dtype == np.int64, batch,
        n, n, at(x), at(y), 0, at(numbers), at(scalars), at(clock), at(results) + 8 * len(metrics), at(results),
    )  # fmt: skip
    select._fill(choice, net, data)
    run = on_host(kernel._fused(choice.kind), 2)
    for count in (steps - 1, 1):
        run(at(choice.records), count)

    terms = 1 if LOSSES[loss].by_row else dense[-1].outputs
    rows = np.minimum(batch, n - batch * np.arange(steps))
    np.testing.assert_allclose(results[len(metrics) :] / (rows * terms), totals.losses, **CLOSE[dtype])
    sums = {name: [total] for name, total in zip(metrics, results, strict=False)}
    by_output = LOSSES[loss].hits_by_output(dense[-1].outputs)
    variation = variation_of(y, order) if "r2" in metrics else None
    found = metric_values(sums, n, dense[-1].outputs, by_output, variation)
    np.testing.assert_allclose(list(found.values()), list(totals.metrics.values()), **CLOSE[dtype])
    for ours, theirs in zip([*params, *sum(states, ())], [*wanted, *sum(wanted_states, ())], strict=True):
        np.testing.assert_allclose(ours, theirs, **CLOSE[dtype])
    assert clock.tolist() == [(steps, steps)]
