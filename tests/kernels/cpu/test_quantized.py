"""Layers of integers: the same integers by all instructions, in the reference, and in formulas written here."""

from __future__ import annotations

from itertools import pairwise

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings

from fastopt.kernels import cpu, reference
from fastopt.kernels.cpu.dense import quantized as dense_quantized
from fastopt.kernels.cpu.dense.int8 import ROW_UNIT
from fastopt.kernels.cpu.dense.int8_tiles import FEATURES, GROUP, UNITS, dot_unit
from fastopt.kernels.cpu.runtime.primitives import INTERPRETED, target_has
from fastopt.kernels.cpu.training import quantized as training_quantized
from fastopt.kernels.formulas import ACTIVATIONS
from fastopt.kernels.sources import Source, Stage
from fastopt.kernels.spec import (
    LARGEST_INPUTS,
    BatchNormSpec,
    DenseSpec,
    DropoutSpec,
    LossSpec,
    Quantized,
    parameter_shapes,
)

HERE = [name for name, feature in FEATURES.items() if target_has(feature)]
SIZES = st.sampled_from([1, 2, 3, 4, 5, GROUP - 1, GROUP, GROUP + 1, 63, 64, 65, 70])


def arrays_of(spec, rng):
    """Codes of all values, the extremes among them, scales and bias of a layer."""
    shapes = parameter_shapes(spec)
    dtype, low, high = {8: ("i1", -127, 128), 4: ("u1", 0, 256), 16: ("u2", 0x3C00, 0x3F80)}[spec.quantized.bits]
    found = [rng.integers(low, high, shapes["codes"]).astype(dtype)]
    if "scales" in shapes:
        found.append((rng.random(shapes["scales"]) * 0.02 + 1e-3).astype("f4"))
    return found + [rng.standard_normal(spec.outputs).astype("f4")] * spec.bias


def chain(widths, quantized, activation="relu", bias=True):
    pairs = list(pairwise(widths))
    ends = [activation] * (len(pairs) - 1) + ["linear"]
    return [DenseSpec(k, n, f, bias, quantized) for (k, n), f in zip(pairs, ends, strict=True)]


def worked(x, specs, arrays):
    """Outputs of layers of codes with relu between them, by int64 sums."""
    arrays = iter(arrays)
    for spec in specs:
        codes, scales, b = next(arrays), next(arrays), next(arrays) if spec.bias else np.float32(0)
        zero, scale = spec.quantized.input_zero, np.float32(spec.quantized.input_scale)
        t = np.rint(np.clip(x * (np.float32(1) / scale), -zero, 255 - zero))
        sums = t.astype("i8") @ codes.astype("i8")
        x = sums.astype("f4") * (scale * scales[0]) + b
        x = np.maximum(x, 0) if spec.activation == "relu" else x
    return x


@pytest.fixture(params=["plain", *HERE])
def unit(request, monkeypatch):
    """The instructions that products use."""
    chosen = UNITS.get(request.param)
    monkeypatch.setattr(training_quantized, "int8_kernel", lambda: dense_quantized.product_kernel(chosen))
    return chosen


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=3 if INTERPRETED else 10
)
@given(
    widths=st.lists(SIZES, min_size=2, max_size=4), rows=st.sampled_from([1, 2, 5, ROW_UNIT, 49]),
    zero=st.sampled_from([0, 1, 128, 255]), bias=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
@example(widths=[13 if INTERPRETED else 130, 70, 10], rows=49, zero=3, bias=True, seed=0)
def test_integers_are_the_same(unit, widths, rows, zero, bias, seed):
    rng = np.random.default_rng(seed)
    specs = chain(widths, Quantized(8, 0, 0.05, zero), bias=bias)
    params = [array for spec in specs for array in arrays_of(spec, rng)]
    x = (8 * rng.standard_normal((rows, widths[0]))).astype("f4")
    wanted = worked(x, specs, params)
    np.testing.assert_array_equal(reference.Network(specs, params, "float32", None, ()).predict(x), wanted)
    np.testing.assert_array_equal(cpu.Network(specs, params, "float32").predict(x), wanted)
    np.testing.assert_array_equal(cpu.Network(specs, params, "float32").predict(x, batch_size=20), wanted)


@pytest.mark.usefixtures("unit")
def test_products_do_not_saturate():
    """The largest codes everywhere: 255 x 127 twice is more than an int16 holds."""
    specs = [DenseSpec(64, 17, "linear", False, Quantized(8, 0, 1.0, 0))]
    params = [np.full((64, 17), 127, "i1"), np.ones((1, 17), "f4")]
    x = np.full((7, 64), 300, "f4")
    np.testing.assert_array_equal(cpu.Network(specs, params, "float32").predict(x), np.full((7, 17), 64 * 255 * 127))


def test_the_largest_layer_fits():
    assert LARGEST_INPUTS * 255 * 127 < 2**31 <= (LARGEST_INPUTS + 1) * 255 * 127


@pytest.mark.skipif(INTERPRETED, reason="interpreted kernels are plain loops")
def test_best_instructions_are_chosen():
    assert dot_unit() == (UNITS[HERE[0]] if HERE else None)


CODES = [(-1e9, 0), (-0.76, 0), (-0.75, 0), (0.0, 2), (0.24, 2), (0.26, 3), (0.75, 4), (1.25, 4), (62, 126), (1e9, 255)]


@pytest.mark.parametrize("backend", [cpu, reference])
def test_codes_are_rounded_to_even_and_limited(backend):
    """A layer of one weight, whose sums are code - zero; halves of a scale of 0.5 are at 0.25, 0.75, ..."""
    spec = DenseSpec(1, 1, "linear", False, Quantized(8, 0, 0.5, 2))
    x = np.array([[value] for value, _ in CODES], "f4")
    network = backend.Network([spec], [np.ones((1, 1), "i1"), np.full((1, 1), 2, "f4")], "float32", None, ())
    assert (network.predict(x)[:, 0] + 2).tolist() == [code for _, code in CODES]


@pytest.mark.parametrize("activation", ["tanh", pytest.param("gelu", marks=pytest.mark.repeats)])
def test_other_activations_follow_the_sums(activation):
    rng = np.random.default_rng(3)
    specs = [DenseSpec(9, 33, activation, True, Quantized(8, 0, 0.03, 100)), DropoutSpec(0.5), DenseSpec(33, 5)]
    params = [*arrays_of(specs[0], rng), rng.standard_normal((33, 5)).astype("f4"), np.zeros(5, "f4")]
    x = rng.standard_normal((40, 9)).astype("f4")
    z = worked(x, [specs[0]._replace(activation="linear")], params[:3])
    y = np.array([[ACTIVATIONS[activation].value(float(value)) for value in row] for row in z])
    for backend in (cpu, reference):
        found = backend.Network(specs, params, "float32", None, ()).predict(x)
        np.testing.assert_allclose(found, y @ params[3], rtol=1e-5, atol=1e-5)


def weights(spec, arrays):
    """Weights of a layer, element by element."""
    w = np.empty((spec.inputs, spec.outputs))
    for k in range(spec.inputs):
        for j in range(spec.outputs):
            if spec.quantized.bits == 16:
                w[k, j] = (arrays[0][k, j].astype("u4") << 16).view("f4")
                continue
            code = int(arrays[0][k, j]) if spec.quantized.bits == 8 else int(arrays[0][k // 2, j]) >> k % 2 * 4 & 15
            group = spec.quantized.group or spec.inputs
            w[k, j] = (code - 8 * (spec.quantized.bits == 4)) * float(arrays[1][k // group, j])
    return w


@pytest.mark.parametrize(("bits", "group"), [(8, 0), (8, 7), (4, 0), (4, 5), (16, 0)])
@pytest.mark.parametrize("sizes", [(3, 1), (33, 65), pytest.param((520, 67), marks=pytest.mark.repeats)])
def test_weights_are_made_of_their_codes(bits, group, sizes):
    rng = np.random.default_rng(5)
    spec = DenseSpec(*sizes, "relu", True, Quantized(bits, group))
    arrays = arrays_of(spec, rng)
    x = rng.standard_normal((19, sizes[0])).astype("f4")
    w = weights(spec, arrays)
    wanted, most = np.maximum(x @ w + arrays[-1], 0), np.abs(x) @ np.abs(w) + np.abs(arrays[-1])
    for backend in (cpu, reference):
        found = backend.Network([spec], arrays, "float32", None, ()).predict(x)
        assert (np.abs(found - wanted) <= 1e-6 * most * sizes[0] ** 0.5).all()


def test_data_of_any_kind():
    """Sources, evaluation and rows by number find the outputs of `predict`."""
    rng, rows = np.random.default_rng(6), 70
    specs = [BatchNormSpec(7), *chain([7, 33, 3], Quantized(8, 0, 0.1, 30))]
    params = [*(np.abs(rng.standard_normal(7)).astype("f4") for _ in range(4))]
    params += [array for spec in specs[1:] for array in arrays_of(spec, rng)]
    x, order = rng.integers(0, 255, (rows, 7)).astype("u1"), rng.permutation(rows).astype("u4")
    source, found = Source(x, (Stage(False, np.full(7, 0.01), np.zeros(7)),)), {}
    for backend in (cpu, reference):
        network = backend.Network(specs, params, "float32", LossSpec("mean_squared_error"), [])
        found[backend] = network.predict(source)
        np.testing.assert_array_equal(network.predict(source, 64, order), found[backend][order])
        judged = network.evaluate(source, np.zeros((rows, 3), "f4"), 64)
        np.testing.assert_allclose(judged.losses, np.mean(found[backend].astype("f8") ** 2), rtol=1e-6)
    np.testing.assert_allclose(found[cpu], found[reference], rtol=1e-4, atol=1e-4)
    plain = cpu.Network(specs[1:], params[4:], "float32")
    whole = plain.predict((x * 0.01).astype("f4"))
    np.testing.assert_array_equal(plain.predict((x * 0.01).astype("f4"), 64, order), whole[order])


@pytest.mark.skipif(INTERPRETED, reason="interpreted kernels run on one thread")
def test_threads_change_nothing(monkeypatch):
    rng, found = np.random.default_rng(7), []
    for specs in (chain([9, 130, 70, 5], Quantized(8, 0, 0.1, 30)), chain([9, 130, 5], Quantized(4, 8))):
        params = [array for spec in specs for array in arrays_of(spec, rng)]
        x = rng.standard_normal((60, 9)).astype("f4")
        for threads in (1, 2, 3):
            monkeypatch.setattr(cpu.Network, "_threads_of_pass", lambda *args, n=threads: n)
            found.append(cpu.Network(specs, params, "float32").predict(x))
        np.testing.assert_array_equal(found[-3], found[-2])
        np.testing.assert_array_equal(found[-3], found[-1])
