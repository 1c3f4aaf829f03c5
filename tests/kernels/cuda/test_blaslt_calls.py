"""Calls of cuBLASLt: real descriptors of the real library, and a simulation of the calls that need a device.

The simulation reads everything back from the descriptors that it is given, so that a wrong attribute is a wrong result.
"""

from __future__ import annotations

import threading
import weakref

import numpy as np
import pytest
from helpers_blaslt import Library
from helpers_products import Rows, assert_close

from fastopt.kernels.cuda.dense import blaslt, gemm, products
from fastopt.kernels.cuda.dense.blaslt import BlasLtError, Epilogue, Matmul, Preference, Reduction, Status
from fastopt.kernels.cuda.dense.gemm import Gemm, Operands, fastest, preference, problem
from fastopt.kernels.cuda.dense.products import Layer
from fastopt.kernels.cuda.runtime.simulator import SimulatedGpu


@pytest.fixture
def library(monkeypatch):
    try:
        fake = Library(blaslt.library())
    except BlasLtError:
        pytest.skip("needs cuBLASLt: pip install nvidia-cublas")
    monkeypatch.setattr(blaslt, "library", lambda: fake)
    monkeypatch.delenv("FASTOPT_CUDA_TUNE", raising=False)
    return fake


@pytest.fixture
def work(library):
    return Gemm(SimulatedGpu())


def arrays(layer, rng):
    """x, w, b, dz with values, and y, dx, dw, db without."""
    sizes = {
        "x": (layer.rows, layer.inputs, layer.dtype, layer.x.stride),
        "w": (layer.inputs, layer.outputs, layer.dtype, 0),
        "b": (1, layer.outputs, layer.output or layer.dtype, 0),
        "dz": (layer.rows, layer.outputs, layer.dtype, layer.y.stride),
        "y": (layer.rows, layer.outputs, layer.output or layer.dtype, layer.y.stride),
        "dx": (layer.rows, layer.inputs, layer.dtype, layer.x.stride),
        "dw": (layer.inputs, layer.outputs, layer.gradient or layer.dtype, 0),
        "db": (1, layer.outputs, layer.gradient or layer.dtype, 0),
    }
    given = {"x", "w", "b", "dz"}
    return {n: Rows(*size, rng.standard_normal(size[:2]) if n in given else None) for n, size in sizes.items()}


@pytest.mark.parametrize(
    "layer",
    [
        Layer(5, 7, 9, "float32"),
        Layer(5, 7, 9, "float32", True, 8, 16),
        Layer(6, 4, 3, "float64"),
        Layer(4, 8, 16, "float16"),
        Layer(4, 3, 130, "bfloat16", False, 8, 136),
        Layer(4, 3, 130, "bfloat16", False, 8, 136, "float32"),
        Layer(4, 3, 10, "bfloat16", False, 8, 16, "float32", "float32"),
    ],
    ids=str,
)
def test_products_through_descriptors(layer, work, library):
    have = arrays(layer, np.random.default_rng(0))
    x, w, b, dz = (have[name].numbers() for name in ("x", "w", "b", "dz"))
    at = {name: array.address for name, array in have.items()}
    kind = "tf32" if layer.tf32 else layer.dtype
    work.call(products.forward_product(layer, Epilogue.BIAS), at["w"], at["x"], at["y"], at["b"]).run(0)
    assert_close(have["y"].numbers(), x @ w + b, layer.output or kind, np.abs(x) @ np.abs(w) + np.abs(b))
    work.call(products.inputs_product(layer), at["w"], at["dz"], at["dx"]).run(0)
    assert_close(have["dx"].numbers(), dz @ w.T, kind, np.abs(dz) @ np.abs(w.T))
    work.call(products.weights_product(layer, Epilogue.BGRADA), at["dz"], at["x"], at["dw"], at["db"]).run(0)
    assert_close(have["dw"].numbers(), x.T @ dz, kind, np.abs(x.T) @ np.abs(dz))
    assert_close(have["db"].numbers()[0], dz.sum(axis=0), kind, np.abs(dz).sum(axis=0))
    before = have["dw"].numbers()
    again = work.call(products.weights_product(layer), at["dz"], at["x"], at["dw"], alpha=0.5, beta=1.0)
    again.run(0)
    assert_close(have["dw"].numbers(), before + 0.5 * (x.T @ dz), kind, 2 * (np.abs(x.T) @ np.abs(dz)))
    assert all(array.untouched() for array in have.values())
    assert library.calls["matmul"] == 4


@pytest.mark.parametrize("activation", ["relu", "gelu_tanh"])
def test_epilogues_through_descriptors(activation, work):
    layer, above = Layer(4, 5, 24, "float32"), Layer(4, 24, 6, "float32")
    have, other = arrays(layer, np.random.default_rng(1)), arrays(above, np.random.default_rng(2))
    stride = products.aux_stride(layer, activation)
    aux = Rows(4, stride // 8, "uint8") if activation == "relu" else Rows(4, 24, "float32")
    leaves, slope = {
        "relu": (Epilogue.RELU_AUX_BIAS, Epilogue.DRELU_BGRAD),
        "gelu_tanh": (Epilogue.GELU_AUX_BIAS, Epilogue.DGELU_BGRAD),
    }[activation]
    at = {name: array.address for name, array in have.items()}
    product = products.forward_product(layer, leaves, stride)
    work.call(product, at["w"], at["x"], at["y"], at["b"], aux.address).run(0)
    assert product.sizes()[3:] == (24 * 4, aux.size * 4 * aux.stride)
    product = products.inputs_product(above, slope, stride)
    assert product.sizes()[3:] == (24 * 4, aux.size * 4 * aux.stride)
    call = work.call(product, other["w"].address, other["dz"].address, have["dz"].address, at["db"], aux.address)
    call.run(0)
    z = have["x"].numbers() @ have["w"].numbers() + have["b"].numbers()
    t = np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3))
    slopes = z > 0 if activation == "relu" else (
        0.5 * (1 + t) + 0.5 * z * (1 - t * t) * np.sqrt(2 / np.pi) * (1 + 3 * 0.044715 * z * z)
    )  # fmt: skip
    expected = other["dz"].numbers() @ other["w"].numbers().T * slopes
    np.testing.assert_allclose(have["dz"].numbers(), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(have["db"].numbers()[0], expected.sum(axis=0), rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------- choices
def test_an_algorithm_is_chosen_once(work, library):
    layer = Layer(4, 8, 16, "float32")
    have = arrays(layer, np.random.default_rng(0))
    at = {name: array.address for name, array in have.items()}
    product = products.forward_product(layer)
    for _ in range(3):
        work.call(product, at["w"], at["x"], at["y"])
    assert library.calls["heuristic"] == 1
    assert library.asked[0] == {
        Preference.MAX_WORKSPACE_BYTES: 32 << 20, Preference.REDUCTION_SCHEME_MASK: Reduction.MASK,
        Preference.MIN_ALIGNMENT_A_BYTES: 256, Preference.MIN_ALIGNMENT_B_BYTES: 256,
        Preference.MIN_ALIGNMENT_C_BYTES: 256, Preference.MIN_ALIGNMENT_D_BYTES: 256,
    }  # fmt: skip
    # Whatever it depends on makes another choice.
    work.call(product, at["w"], at["x"] + 16, at["y"] + 4)
    assert [library.asked[1][a] for a in library.asked[1]][2:] == [256, 16, 4, 4]
    for other in (
        product._replace(tf32=True),
        product._replace(epilogue=Epilogue.RELU),
        products.forward_product(layer._replace(rows=5)),
        products.forward_product(layer._replace(x_stride=16)),
        products.inputs_product(layer),
    ):
        work.call(other, at["w"], at["x"], at["y"])
        work.call(other, at["w"], at["x"], at["y"])
    assert library.calls["heuristic"] == 7


def test_partial_sums_of_16_bit_results_are_float32(library):
    for kind, gradient, mask in [
        ("bfloat16", "", 2),
        ("float16", "", 2),
        ("bfloat16", "float32", 7),
        ("float32", "", 7),
    ]:
        product = products.weights_product(Layer(4, 8, 16, kind, gradient=gradient))
        assert preference(product, Operands(0, 0, 0), 1)[Preference.REDUCTION_SCHEME_MASK] == mask


def test_what_has_no_algorithm(work, library):
    library.lacks = lambda epilogue, asked: epilogue == Epilogue.RELU or asked[Preference.MIN_ALIGNMENT_A_BYTES] < 16
    layer = Layer(4, 8, 16, "float32")
    assert work.supported(products.forward_product(layer))
    assert not work.supported(products.forward_product(layer), 4)
    assert not work.supported(products.forward_product(layer, Epilogue.RELU))
    assert not work.supported(products.inputs_product(layer._replace(outputs=1), Epilogue.DRELU, 128))  # known before
    with pytest.raises(BlasLtError, match=r"cuBLASLt has no algorithm for Product\(.*RELU.* at Operands\(a=256"):
        work.call(products.forward_product(layer, Epilogue.RELU), 256, 512, 1024)


def test_failures_name_the_status(work, library):
    layer = Layer(4, 8, 16, "float32")
    have = arrays(layer, np.random.default_rng(0))
    call = work.call(products.forward_product(layer), have["w"].address, have["x"].address, have["y"].address)
    library.status = Status.EXECUTION_FAILED
    with pytest.raises(BlasLtError, match=r"multiplying: CUBLAS_STATUS_EXECUTION_FAILED \(13\)"):
        call.run(0)
    with pytest.raises(BlasLtError, match=r"starting cuBLASLt: CUBLAS_STATUS_EXECUTION_FAILED"):
        Gemm(SimulatedGpu())


def test_an_operation_has_only_what_its_epilogue_uses(library):
    layer, places = Layer(4, 8, 16, "float32"), Operands(256, 512, 768, 1024, 1280)
    for epilogue, stride, bias, aux in [
        (Epilogue.DEFAULT, 0, 0, 0),
        (Epilogue.BIAS, 0, 1024, 0),
        (Epilogue.RELU_AUX, 128, 0, 1280),
        (Epilogue.DRELU_BGRAD, 128, 1024, 1280),
        (Epilogue.BGRADB, 0, 1024, 0),
    ]:
        operation = problem(products.forward_product(layer, epilogue, stride), places).operation
        found = (
            operation[Matmul.BIAS_POINTER],
            operation[Matmul.EPILOGUE_AUX_POINTER],
            operation[Matmul.EPILOGUE_AUX_LD],
        )
        assert found == (bias, aux, stride)


# ---------------------------------------------------------------- timing
def test_the_fastest_wins():
    times = {"a": iter([3, 9, 3, 3, 3]), "b": iter([2, 2, 9, 9, 2]), "c": iter([2, 2, 2, 9, 9])}
    assert fastest(list(times), lambda name: next(times[name])) == "b"


def test_tuning(library, monkeypatch):
    """Each candidate runs on memory of its own, of the right size and alignment; the fastest is kept."""
    from fastopt.kernels.cuda.runtime import timing

    class Timer:
        def __init__(self, gpu):
            self.turn = 0

        def seconds(self, run, stream):
            run()
            self.turn += 1
            return 1.0 if self.turn % 3 == 2 else 2.0

    monkeypatch.setattr(timing, "Timer", Timer)
    monkeypatch.setenv("FASTOPT_CUDA_TUNE", "4")
    library.algorithms = 4  # the second does not work
    work = Gemm(SimulatedGpu())
    layer = Layer(4, 8, 16, "float32")
    have = arrays(layer, np.random.default_rng(0))
    places = have["w"].address, have["x"].address + 4, have["y"].address, have["b"].address
    product = products.forward_product(layer, Epilogue.BIAS)
    call = work.call(product, *places)
    assert library.calls["heuristic"] == 1
    assert library.calls["matmul"] == 3 + 3 * gemm.ROUNDS
    assert have["y"].untouched()
    call.run(0)
    assert library.calls["algorithm", 1002] == 1 + gemm.ROUNDS + 1
    assert library.calls["algorithm", 1001] == 0


@pytest.mark.parametrize("text", ["", " ", "0", "1"])
def test_no_tuning(text, library, monkeypatch):
    monkeypatch.setenv("FASTOPT_CUDA_TUNE", text)
    library.algorithms = 4
    Gemm(SimulatedGpu()).call(products.forward_product(Layer(4, 8, 16, "float32")), 256, 512, 1024)
    assert library.calls["matmul"] == 0


def test_a_wrong_number_of_algorithms(library, monkeypatch):
    monkeypatch.setenv("FASTOPT_CUDA_TUNE", "-1")
    with pytest.raises(ValueError, match="FASTOPT_CUDA_TUNE must be a number of algorithms; got '-1'"):
        Gemm(SimulatedGpu())


# ---------------------------------------------------------------- memory and threads
def test_memory_is_laid_out_before(work, library, monkeypatch):
    """After `prepare`, nothing is allocated; streams share nothing."""
    layer = Layer(4, 8, 16, "float32")
    have = arrays(layer, np.random.default_rng(0))
    call = work.call(products.forward_product(layer), have["w"].address, have["x"].address, have["y"].address)
    for stream in (0, 7):
        work.prepare(stream, 1000)
    monkeypatch.setattr(work.gpu, "allocate", None)
    for stream in (0, 7, 7):
        call.run(stream)
    assert (library.calls["stream", 0], library.calls["stream", 7]) == (1, 2)
    assert work.workspace(0) != work.workspace(7)
    assert work.scratch(0, 1000) == work.scratch(0, 10) != work.scratch(7, 1000)
    assert work.scratch(0, 0) == work.scratch(0, 10)


def test_scratch_grows(work):
    """Old memory stays, for graphs that use it."""
    allocated, allocate = [], work.gpu.allocate

    def spy(size):
        allocated.append(allocate(size))
        return allocated[-1]

    work.gpu.allocate = spy
    assert work.scratch(3, 0) == 0
    small = work.scratch(3, 100)
    assert work.scratch(3, 100) == small != 0
    large = work.scratch(3, 101)
    assert work.scratch(3, 200) == work.scratch(3, 0) == large != small
    assert [memory.address for memory in allocated] == [small, large]
    gone = [weakref.ref(memory) for memory in allocated]
    allocated.clear()
    assert all(memory() is not None for memory in gone)


def test_threads_make_one_choice(work, library):
    layer = Layer(4, 8, 16, "float32")
    chosen, barrier = [], threading.Barrier(8)

    def choose():
        barrier.wait()
        chosen.append(work.algorithm(products.forward_product(layer), Operands(256, 256, 256)))

    threads = [threading.Thread(target=choose) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(chosen) == 8
    assert all(one is chosen[0] for one in chosen)


def test_workspaces_of_devices(library):
    sizes = {}
    for major in (8, 9, 10, 12):
        gpu = SimulatedGpu()
        gpu.capability = (major, 0)
        sizes[major] = Gemm(gpu).workspace_size >> 20
    assert sizes == {8: 4, 9: 32, 10: 32, 12: 12}
