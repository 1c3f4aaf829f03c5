"""Networks whose layers compute in bfloat16, against the reference, which rounds at the same steps."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
from helpers_network import Bfloat16Options, Run, assert_agree, compare, data_for
from hypothesis import given, settings

from fastopt.kernels import cpu, reference
from fastopt.kernels.cpu.dense.matmul_bfloat16 import matmul_bfloat16_kernel
from fastopt.kernels.cpu.runtime.primitives import INTERPRETED
from fastopt.kernels.cpu.runtime.records import DENSE
from fastopt.kernels.spec import DenseSpec, DropoutSpec

MSE, LABELS = "mean_squared_error", "sparse_categorical_crossentropy"


def compare_cpu(*given, **options):
    compare(*given, backend=cpu, **options)


# ---------------------------------------------------------------- exact
def whole_numbers(rng, shape, off):
    """-1, 0 and 1, a little off, which rounding to bfloat16 mends."""
    return (rng.integers(-1, 2, shape) * (1 + off)).astype("f4")


@settings(max_examples=20 if INTERPRETED else 200, deadline=None)
@given(
    rows=st.sampled_from([1, 2, 4, 8]),
    inputs=st.integers(1, 16),
    hidden=st.lists(st.integers(1, 32), min_size=1, max_size=2),
    outputs=st.sampled_from([1, 2, 4]),
    bias=st.booleans(),
    dropout=st.booleans(),
    activation=st.sampled_from(["linear", "relu", "leaky_relu"]),
    seed=st.integers(0, 2**32),
)
def test_a_step_of_exact_sums_has_the_bits_of_the_reference(
    rows, inputs, hidden, outputs, bias, dropout, activation, seed
):
    """Sums of small multiples of powers of two are exact in any order, so every rounding to bfloat16 shows."""
    rng = np.random.default_rng(seed)
    drop = [DropoutSpec(0.5)] if dropout else []
    layers, width = [*drop], inputs
    for units in hidden:
        layers += [DenseSpec(width, units, "relu", bias), *drop]
        width = units
    layers.append(DenseSpec(width, outputs, "linear", bias))
    x = whole_numbers(rng, (rows, inputs), 2**-9)
    y = rng.integers(-9, 10, (rows, outputs)).astype("f4")
    ours, theirs = (Run(backend, layers, MSE, [], "bfloat16", "sgd") for backend in (cpu, reference))
    for p, q in zip(ours.params, theirs.params, strict=True):
        # weights near whole numbers, and biases of 9 bits
        p[...] = whole_numbers(rng, p.shape, 2**-10) if p.ndim == 2 else rng.integers(-511, 512, p.shape) / 16
        q[...] = p
    np.testing.assert_array_equal(ours.net.predict(x), theirs.net.predict(x))
    found, expected = (run.train(x, y, np.arange(rows), rows, lr=2**-6) for run in (ours, theirs))
    np.testing.assert_allclose(found.losses, expected.losses, rtol=1e-6)
    for p, q in zip(ours.params, theirs.params, strict=True):
        np.testing.assert_array_equal(p, q)


# ---------------------------------------------------------------- every option
class TestBfloat16(Bfloat16Options):
    backend = cpu


def test_a_dropout_of_outputs():
    compare_cpu([DenseSpec(3, 2, "tanh"), DropoutSpec(0.3)], MSE, [], "bfloat16", "sgd", n=8, epochs=1)


def test_against_float64():
    """Sizes that need tiles, splits and whole vectors; an epoch of sgd, smooth, so that rounding stays small."""
    rows, inputs, width, batch = (9, 3, 4, 4) if INTERPRETED else (1_003, 200, 264, 128)
    layers = [DenseSpec(inputs, width, "tanh"), DenseSpec(width, width, "gelu_tanh"), DenseSpec(width, 3)]
    x, y = data_for(np.random.default_rng(0), LABELS, rows, inputs, 3, "float32")
    kinds = (cpu, "bfloat16"), (reference, "float64")
    ours, theirs = (Run(backend, layers, LABELS, [], kind, "sgd") for backend, kind in kinds)
    for p, q in zip(ours.params, theirs.params, strict=True):
        q[...] = p
    order = np.random.default_rng(0).permutation(rows)
    one = ours.train(x, y, order, batch, lr=0.05)
    other = theirs.train(x.astype(np.float64), y, order, batch, lr=0.05)
    np.testing.assert_allclose(one.losses, other.losses, rtol=2e-2)
    for p, q in zip(ours.params, theirs.params, strict=True):
        np.testing.assert_allclose(p, q, rtol=0, atol=1e-2 * np.abs(q).max())


def test_evaluate_and_predict_without_training():
    x, y = data_for(np.random.default_rng(0), LABELS, 7, 9, 3, "float32")
    layers = [DenseSpec(9, 8, "relu"), DenseSpec(8, 3, "softmax")]
    ours, theirs = (Run(backend, layers, LABELS, ["accuracy"], "bfloat16") for backend in (cpu, reference))
    assert_agree(ours.net.evaluate(x, y, 4), theirs.net.evaluate(x, y, 4), "bfloat16")
    found = ours.net.predict(x, 4)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, theirs.net.predict(x, 4), atol=4e-3)
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-6)  # outputs are not rounded to 16 bits


# ---------------------------------------------------------------- threads
@pytest.mark.parametrize("clip_norm", [None, 0.5])
def test_results_do_not_depend_on_the_number_of_threads(threads, clip_norm):
    rows, inputs, width = (9, 3, 5) if INTERPRETED else (130, 784, 136)
    layers = [DenseSpec(inputs, width, "gelu"), DropoutSpec(0.2), DenseSpec(width, width, "relu"), DenseSpec(width, 3)]
    x, y = data_for(np.random.default_rng(0), LABELS, rows, inputs, 3, "float32")
    results = []
    for n in (1, 2, 3):
        with threads(n):
            run = Run(cpu, layers, LABELS, ["accuracy"], "bfloat16")
            losses = run.train(x, y, np.arange(rows)[::-1].copy(), 64, clip_norm=clip_norm).losses
            results.append([losses, run.net.predict(x, 50), *run.params])
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_layers_multiply_by_the_kernel_of_bfloat16():
    """And nothing else changes: the phases of a program are those of float32."""
    layers = [DenseSpec(3, 4, "tanh"), DenseSpec(4, 2)]
    found = {}
    for dtype in ("float32", "bfloat16"):
        run = Run(cpu, layers, MSE, [], dtype)
        x, y = data_for(np.random.default_rng(0), MSE, 6, 3, 2, "float32")
        run.train(x, y, np.arange(6), 3)
        program = run.net._trained.program
        products = {int(record["gemm"][0]) for record in program.kept if getattr(record, "dtype", None) == DENSE}
        found[dtype] = products, len(program.phases)
    assert found["bfloat16"][0] == {matmul_bfloat16_kernel("float32").address}
    assert not found["bfloat16"][0] & found["float32"][0]
    assert found["bfloat16"][1] == found["float32"][1]
