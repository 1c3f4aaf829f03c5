"""Assumptions about cuBLASLt that only a device can check: every kind of product against its simulation.

Under Numba's simulator this compares the simulation with itself, which shows that the test runs.
"""

from __future__ import annotations

import numpy as np
import pytest
from helpers_cuda import SIMULATED, require_device, to_device
from helpers_products import TOLERANCE, rounded

require_device()
from fastopt.kernels.cuda.dense import products
from fastopt.kernels.cuda.dense.blaslt import Epilogue
from fastopt.kernels.cuda.dense.blaslt_simulator import decode, encode, matmul
from fastopt.kernels.cuda.dense.gemm import gemm_of
from fastopt.kernels.cuda.dense.products import Layer, aux_stride, known, mask_stride, padded
from fastopt.kernels.cuda.runtime.array_interface import gpu_of, see

pytestmark = pytest.mark.gpu

KINDS = ["float32", "tf32", "float64", "float16", "bfloat16"]
SIZES = [(64, 784, 256), (33, 17, 65), (5, 7, 9), (2, 3, 2), (256, 128, 10)]  # known to be possible for all
FORWARD = [e for e in Epilogue if not (e & 8 or e & 64 or e & 16 or e & 256 or e & 512)]
SLOPES = [Epilogue.DRELU, Epilogue.DRELU_BGRAD, Epilogue.DGELU, Epilogue.DGELU_BGRAD]


class Both:
    """The same memory on the device and on the host."""

    def __init__(self, values, kind):
        self.kind = kind
        self.host = encode(np.ascontiguousarray(values), kind)
        self.device = to_device(self.host)
        self.places = see(self.device).address, self.host.ctypes.data

    def numbers(self):
        return [decode(a, self.kind).astype(np.float64) for a in (self.device.copy_to_host(), self.host)]

    def words(self):
        return self.device.copy_to_host(), self.host


def noise(rng, rows, columns, kind, stride=0):
    return Both(rng.standard_normal((rows, stride or columns)), kind)


def run(product, a, b, d, bias=None, aux=None):
    """Run on the device and in the simulation; skip products without an algorithm, which plans avoid, too."""
    assert known(product)
    gemm = gemm_of(gpu_of([a.places[0]]))
    if not gemm.supported(product):
        pytest.skip(f"cuBLASLt has no {product.epilogue.name} for {product.dtype} and {product.result} here")
    at = [(0, 0) if operand is None else operand.places for operand in (a, b, d, bias, aux)]
    gemm.call(product, *(place for place, _ in at)).run(0)
    matmul(product, *(place for _, place in at))


def close(array, kind, size):
    ours, theirs = array.numbers()
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2 * TOLERANCE[kind] * max(size, 1e-30))


def layer_of(sizes, kind, gaps):
    rows, inputs, outputs = sizes
    strides = (padded(inputs), padded(outputs)) if gaps else (0, 0)
    return Layer(rows, inputs, outputs, "float32" if kind == "tf32" else kind, kind == "tf32", *strides)


@pytest.mark.parametrize("gaps", [False, True], ids=["packed", "padded"])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("epilogue", FORWARD, ids=lambda e: e.name)
def test_forward(epilogue, kind, sizes, gaps):
    relu, has_aux = bool(epilogue & Epilogue.RELU), bool(epilogue & 128)
    layer, rng = layer_of(sizes, kind, gaps or has_aux), np.random.default_rng(0)
    stride = aux_stride(layer, "relu" if relu else "gelu_tanh") if has_aux else 0
    x = noise(rng, layer.rows, layer.inputs, layer.dtype, layer.x.stride)
    w = noise(rng, layer.inputs, layer.outputs, layer.dtype)
    b, y = noise(rng, 1, layer.outputs, layer.dtype), noise(rng, layer.rows, layer.outputs, layer.dtype, layer.y.stride)
    aux = None
    if has_aux and relu:
        aux = Both(np.zeros((layer.rows, stride // 8)), "uint8")
    elif has_aux:
        aux = noise(rng, layer.rows, layer.outputs, layer.dtype, stride)
    run(products.forward_product(layer, epilogue, stride), w, x, y, b, aux)
    size = layer.inputs**0.5 * 4
    close(y, kind, size)
    if aux is not None and not relu:
        close(aux, kind, size)
    if aux is not None and relu:
        ours, theirs = (np.unpackbits(a, axis=1, bitorder="little")[:, : layer.outputs] for a in aux.words())
        decided = np.abs(y.numbers()[1][:, : layer.outputs]) > 4 * TOLERANCE[kind] * size
        np.testing.assert_array_equal(ours[decided], theirs[decided])
        np.testing.assert_array_equal(ours, y.numbers()[0][:, : layer.outputs] > 0)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("epilogue", [Epilogue.DEFAULT, *SLOPES], ids=lambda e: e.name)
def test_inputs(epilogue, kind, sizes):
    layer, rng = layer_of(sizes, kind, True), np.random.default_rng(1)
    aux, stride = None, 0
    if epilogue & 8:
        stride = mask_stride(layer.inputs)
        aux = Both(rng.integers(0, 256, (layer.rows, stride // 8)), "uint8")
    elif epilogue & 64:
        stride = layer.x.stride
        aux = noise(rng, layer.rows, layer.inputs, layer.dtype, stride)
    dz = noise(rng, layer.rows, layer.outputs, layer.dtype, layer.y.stride)
    w = noise(rng, layer.inputs, layer.outputs, layer.dtype)
    dx, db = noise(rng, layer.rows, layer.inputs, layer.dtype, layer.x.stride), noise(rng, 1, layer.inputs, layer.dtype)
    run(products.inputs_product(layer, epilogue, stride), w, dz, dx, db, aux)
    close(dx, kind, layer.outputs**0.5 * 4)
    close(db, kind, layer.rows * layer.outputs**0.5 * 4)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize(
    ("kind", "gradient"), [*((kind, "") for kind in KINDS), ("float16", "float32"), ("bfloat16", "float32")]
)
@pytest.mark.parametrize("epilogue", [Epilogue.DEFAULT, Epilogue.BGRADA], ids=lambda e: e.name)
def test_weights(epilogue, kind, sizes, gradient):
    layer, rng = layer_of(sizes, kind, True), np.random.default_rng(2)
    layer = layer._replace(gradient=gradient)
    x = noise(rng, layer.rows, layer.inputs, layer.dtype, layer.x.stride)
    dz = noise(rng, layer.rows, layer.outputs, layer.dtype, layer.y.stride)
    dw, db = (noise(rng, rows, layer.outputs, gradient or layer.dtype) for rows in (layer.inputs, 1))
    run(products.weights_product(layer, epilogue), dz, x, dw, db)
    close(dw, kind, layer.rows**0.5 * 4)
    close(db, kind, layer.rows**0.5 * 4)


@pytest.mark.parametrize("kind", KINDS)
def test_runs_are_alike(kind):
    """The bits are the same, also of sums long enough to be split."""
    layer, rng = layer_of((8192, 64, 32), kind, True), np.random.default_rng(3)
    x, dz = noise(rng, 8192, 64, layer.dtype), noise(rng, 8192, 32, layer.dtype)
    results = []
    for _ in range(1 if SIMULATED else 5):
        dw, db = noise(rng, 64, 32, layer.dtype), noise(rng, 1, 32, layer.dtype)
        run(products.weights_product(layer, Epilogue.BGRADA), dz, x, dw, db)
        results.append((dw.words()[0], db.words()[0]))
    for dw, db in results[1:]:
        np.testing.assert_array_equal(dw.view(np.uint8), results[0][0].view(np.uint8))
        np.testing.assert_array_equal(db.view(np.uint8), results[0][1].view(np.uint8))


# ---------------------------------------------------------------- questions, whose answers decide `exact_activations`
def answers(epilogue, kind, z):
    """Results of an epilogue for these values, which are a product with the unit matrix."""
    n = padded(len(z))
    layer = Layer(16, n, n, kind)
    values = np.ones((16, n))
    values[:, : len(z)] = z
    x, w, y = Both(values, kind), Both(np.eye(n), kind), Both(np.zeros((16, n)), kind)
    run(products.forward_product(layer, epilogue), w, x, y)
    return y.numbers()[0][0, : len(z)]


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_gelu_is_exact_enough(kind):
    """gelu_tanh is an epilogue for 16-bit types, for it is within two roundings of the formula."""
    z = rounded(np.linspace(-8, 8, 1021), kind)
    exact = 0.5 * z * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)))
    ours = answers(Epilogue.GELU, kind, z)
    np.testing.assert_allclose(ours, exact, rtol=2 * TOLERANCE[kind], atol=TOLERANCE[kind])


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_nan_passes_through_gelu(kind):
    assert np.isnan(answers(Epilogue.GELU, kind, np.full(8, np.nan))).all()
