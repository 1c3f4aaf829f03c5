"""Dense layers, forward and backward: the reference and the compiled kernels on the same arrays, in GFLOP/s."""

import numpy as np
import pytest

from fastopt.benchmarks.work import dense_bytes
from fastopt.kernels import reference
from fastopt.kernels.formulas import ACTIVATIONS

SHAPES = [(64, 784, 256), (64, 256, 128), (64, 128, 10), (1024, 784, 256), (64, 1024, 1024)]  # rows, inputs, outputs
CASES = [("relu", shape) for shape in SHAPES] + [(name, SHAPES[1]) for name in ACTIVATIONS if name != "relu"]


def record(note, backend, name, activation, shape, flops):
    moved = dense_bytes(*shape, backward=name == "backward")
    text = "x".join(map(str, shape))
    size = int(np.prod(shape))
    note("dense", f"{name} {activation}", backend, size=size, shape=text, moved=moved, flops=flops)


def make(rows, inputs, outputs, dtype="float32"):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows, inputs)).astype(dtype)
    w = (rng.standard_normal((inputs, outputs)) / inputs**0.5).astype(dtype)
    return x, w, rng.standard_normal(outputs).astype(dtype), rng.standard_normal((rows, outputs)).astype(dtype)


def outputs_of(module, x, w, b, dy, activation):
    y, z = np.empty_like(dy), np.empty_like(dy) if ACTIVATIONS[activation].uses == "z" else None
    gradients = [np.empty_like(a) for a in (x, w, b)]
    module.dense_forward(x, w, b, activation, y, z)
    module.dense_backward(dy, x, w, y if z is None else z, activation, *gradients)
    return y, z, gradients


def assert_agree(module, arrays, activation):
    ours, theirs = (outputs_of(m, *arrays, activation) for m in (module, reference))
    for a, b in zip([ours[0], *ours[2]], [theirs[0], *theirs[2]], strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-4 * np.abs(b).max())


@pytest.mark.parametrize(("activation", "shape"), CASES)
def test_forward(benchmark, note, backend, activation, shape):
    benchmark.group = f"dense forward {shape} {activation}"
    x, w, b, dy = make(*shape)
    assert_agree(backend, (x, w, b, dy), activation)
    y, z = np.empty_like(dy), np.empty_like(dy) if ACTIVATIONS[activation].uses == "z" else None
    benchmark(backend.dense_forward, x, w, b, activation, y, z)
    record(note, backend, "forward", activation, shape, 2 * np.prod(shape, dtype=float))


@pytest.mark.parametrize(("activation", "shape"), CASES)
def test_backward(benchmark, note, backend, activation, shape):
    benchmark.group = f"dense backward {shape} {activation}"
    x, w, b, dy = make(*shape)
    assert_agree(backend, (x, w, b, dy), activation)
    y, z, gradients = outputs_of(backend, x, w, b, dy, activation)
    benchmark(backend.dense_backward, dy, x, w, y if z is None else z, activation, *gradients)
    record(note, backend, "backward", activation, shape, 4 * np.prod(shape, dtype=float))
