"""Limits of the GPU: copies within its memory, and large products by cuBLASLt's fastest algorithms."""

from functools import partial

import numpy as np
import pytest

from fastopt.benchmarks.cuda.needs import require_device
from fastopt.benchmarks.interleaved import interleaved, record, shared_result

require_device()
from fastopt.benchmarks.cuda.device import numbers
from fastopt.benchmarks.cuda.limits import SIDES, Copies, Operands, best_product, large, tuned_gemm
from fastopt.benchmarks.cuda.turns import turns
from fastopt.benchmarks.cuda.work import NEAR, layer_of
from fastopt.kernels.cuda.dense.products import forward_product

ROUNDS = 15
TIMES = (1, 4, 16)  # the size that no cache holds
SMALL = (64, 48, 80)  # rows, inputs, outputs


@interleaved
@pytest.mark.parametrize("contestant", ["driver", "kernel"])
@pytest.mark.parametrize("times", TIMES)
def test_copy(benchmark, note, request, pick, times, contestant):
    size = pick(times * large(), large() // 4, large())
    benchmark.group = f"copy of {size:,} bytes"
    made = Copies(size)
    made.calls[contestant]()
    made.check()
    if benchmark.disabled:
        benchmark(lambda: None)  # a run that only checks agreement
        return
    found = shared_result(request, lambda names: turns({name: made.calls[name] for name in names}, ROUNDS))
    record(benchmark, found[contestant])
    note("limit", "copy", contestant, size=size // 4, shape=f"{size:,} bytes", moved=2 * size)


@interleaved
@pytest.mark.parametrize("side", [4096, 8192])
@pytest.mark.parametrize("kind", SIDES)
def test_product(benchmark, note, pick, kind, side):
    if side not in SIDES[kind]:
        pytest.skip("4096 shows it, and takes long enough")
    product = forward_product(layer_of(SMALL, kind))
    operands = Operands(product)
    tuned_gemm().call(product, **operands.places).run(0)
    rows, inputs, outputs = SMALL
    w, x, y = (numbers(operands.arrays[name], product.dtype).astype("float64") for name in ("a", "b", "d"))
    w, x = w.reshape(inputs, outputs), x.reshape(rows, inputs)
    np.testing.assert_allclose(y.reshape(rows, outputs), x @ w, rtol=0, atol=NEAR[kind] * (abs(x) @ abs(w)).max())
    benchmark.group = f"large products, {kind}"
    if benchmark.disabled:
        benchmark(lambda: None)
        return
    size = pick(side, 512, 8)
    best = partial(best_product(forward_product(layer_of((size,) * 3, kind))), 0)
    record(benchmark, turns({"product": best}, ROUNDS)["product"])
    note("limit", "product", "cublaslt", size=size, dtype=kind, shape=f"{size}x{size}x{size}", flops=2 * size**3)
