"""Peaks of arithmetic: their machine code has the chains and nothing else, and products are those of every library."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest

from fastopt.benchmarks import limits, peaks, products
from fastopt.benchmarks.products import Operands, Shape
from fastopt.kernels.cpu.dense.blas import BFLOAT16, PLAIN
from fastopt.kernels.cpu.dense.matmul import AS_IS, TRANSPOSED
from fastopt.kernels.cpu.runtime.primitives import INTERPRETED, target_has

compiled = pytest.mark.skipif(INTERPRETED, reason="registers are the compiler's")
DTYPES = ["float32", "float64", "bfloat16"]


def loop_of(dtype, folder, monkeypatch):
    """The instructions of the kernel's loop: from its label to the jump back to it."""
    monkeypatch.setenv("FASTOPT_CACHE_DIR", str(folder))  # code that is loaded cannot be looked at
    kernel = peaks.fma_kernel.__wrapped__(dtype)
    _ = kernel.address
    lines = [line.strip() for line in kernel._code.get_asm_str().splitlines()]
    for i, line in enumerate(lines):
        label = line.partition(":")[0]
        end = next((j for j in range(i, len(lines)) if re.fullmatch(rf"j\w+\s+{re.escape(label)}", lines[j])), None)
        body = lines[i + 1 : end] if end and label.startswith(".LBB") else []
        if sum(text.startswith(("vfm", "vdp", "fm")) for text in body) >= peaks.num_chains():
            return body
    raise AssertionError("no loop of multiplications and additions")


@compiled
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_loop_is_all_chains(dtype, tmp_path, monkeypatch):
    if not peaks.has_peak(dtype):
        pytest.skip(f"the processor has no products in {dtype}")
    if not target_has("+fma"):
        pytest.skip("the names are those of x86's fused operations")
    body = loop_of(dtype, tmp_path, monkeypatch)
    name, register = ("vdpbf16ps" if dtype == "bfloat16" else "vf"), "%zmm" if peaks.vector_bytes() == 64 else "%ymm"
    steps = [line for line in body if line.startswith(name)]
    assert len(steps) == peaks.num_chains() * peaks.UNROLLED
    assert all(register in line and "(" not in line for line in steps)  # the widest vectors, nothing in memory
    assert len(body) - len(steps) <= 3  # a counter, a comparison, and a jump
    # the register that a step adds to is the chain's
    sums = [line.split(",")[-1].strip() for line in steps]
    assert len(set(sums)) == peaks.num_chains()


@compiled
@pytest.mark.parametrize("dtype", DTYPES)
def test_chains_calculate(dtype):
    """Values that a number of steps from zero must give: x -> 0.5 x + 1, or x -> x + 2 * 2**-20."""
    if not peaks.has_peak(dtype):
        pytest.skip(f"the processor has no products in {dtype}")
    memory = peaks._chain_values(dtype, 2)
    work = peaks.fill(peaks.CHAINS, memory=memory, count=3)
    for rank in range(2):
        peaks.fma_kernel(dtype)(peaks.address_of(work), 0, rank, 2)
    values = memory[:, 2:].view("float64" if dtype == "float64" else "float32")
    steps = 3 * peaks.UNROLLED
    np.testing.assert_array_equal(values, steps * 2 * 2.0**-20 if dtype == "bfloat16" else 2 - 2.0 ** (1 - steps))


@compiled
def test_operations_are_counted():
    """Whole turns of the loop: two operations for each element of each vector of each chain."""
    small, large = (peaks.Chains("float32", 1, flops) for flops in (1e6, 2e6))
    each = 2 * peaks.num_chains() * peaks.UNROLLED * peaks.vector_bytes() // 4
    assert small.flops == 1e6 // each * each
    assert large.flops == 2e6 // each * each
    assert peaks.Chains("float32", 3, 1e6).flops == 3 * small.flops
    assert peaks.Chains("float64", 1, 1e6).flops == 1e6 // (each // 2) * (each // 2)


@compiled
def test_rates_of_threads_add_up(monkeypatch):
    """The best round of each counts, whichever it was."""
    times = {"fma": [[2.0, 1.0, 9.0], [4.0, 5.0, 2.0]]}
    monkeypatch.setattr(peaks, "thread_times", lambda calls, threads, rounds: times)
    assert peaks.fma_peak.__wrapped__("float32", 2) == peaks.Chains("float32", 2, peaks.ROUND_FLOPS).thread_flops * 1.5


def test_threads_time_themselves():
    """In every round all threads call one after the other of the calls, each with its rank."""
    done = []
    calls = {name: lambda rank, name=name: done.append((name, rank)) for name in "ab"}
    times = limits.thread_times(calls, 3, 4)
    counts = {name: [len(rounds) for rounds in threads] for name, threads in times.items()}
    assert counts == {"a": [4] * 3, "b": [4] * 3}
    assert all(seconds >= 0 for threads in times.values() for rounds in threads for seconds in rounds)
    assert sorted(done) == sorted([(name, rank) for name in "ab" for rank in range(3)] * 4)


def test_memory_that_is_streamed_has_pages_of_its_own(monkeypatch):
    """Pages that were never written are one page of zeros in the cache, not memory."""
    seen = []

    def stream(p, g, states):
        seen.extend([p, g])
        return lambda: None

    monkeypatch.setattr(limits, "stream", stream)
    monkeypatch.setattr(limits, "interleaved_times", lambda calls, rounds: {"stream": [0.5, 0.1, 0.25, 1, 0.2, 0.2]})
    assert limits.copy_bandwidth.__wrapped__() == 3 * 80e6 / 0.5  # the fifth best
    assert all(array.all() for array in seen)


@pytest.mark.parametrize("dtype", ["float16", "int32", *([] if target_has("+avx512bf16") else ["bfloat16"])])
def test_other_dtypes_have_no_peak(dtype):
    assert not peaks.has_peak(dtype)
    with pytest.raises(ValueError, match=f"must be one that the processor calculates in; got '{dtype}'"):
        peaks.Chains(dtype, 1, 1e6)


@pytest.mark.slow
@compiled
@pytest.mark.parametrize(("cpu", "features", "size"), [("haswell", "+avx,+avx2,+fma", 32), ("nehalem", "", 16)])
def test_on_another_processor_the_vectors_are_narrower(cpu, features, size, tmp_path):
    """The kernel is compiled for the processor that Numba is told; without FMA it multiplies and adds."""
    program = (
        "from fastopt.benchmarks import peaks; print(peaks.vector_bytes(), peaks.num_chains(), "
        "peaks.has_peak('bfloat16'), peaks.Chains('float32', 1, 1e6).run())"
    )
    settings = {"NUMBA_CPU_NAME": cpu, "NUMBA_CPU_FEATURES": features, "FASTOPT_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], env=os.environ | settings, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(size), "12", "False", "None"]


# ---------------------------------------------------------------- products
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize(("ta", "tb"), [(AS_IS, AS_IS), (AS_IS, TRANSPOSED), (TRANSPOSED, AS_IS)])
def test_products_of_every_library(dtype, ta, tb):
    shape, threads = Shape(7, 19, 5, ta, tb), 3
    found = {"fastopt": BFLOAT16} if dtype == "bfloat16" else {**products.libraries(dtype), "none": PLAIN}
    for library in found.values():
        operands = Operands(shape, dtype, threads)
        operands.c[...] = np.nan
        operands.call(library, 2)()
        for_threads = operands.c.copy()
        operands.c[...] = np.nan
        for rank in range(threads):
            operands.call_of_thread(library, 1)(rank)
        np.testing.assert_array_equal(operands.c, for_threads)
        rows = np.arange(shape.m)
        expected = operands.expected(rows)
        assert expected.shape == (7, 19)
        for result in operands.c:
            np.testing.assert_allclose(result, expected, rtol=0, atol=4 * np.finfo(result.dtype).eps * shape.k)


def test_products_of_bfloat16_are_there_where_the_processor_gains(monkeypatch):
    monkeypatch.setattr(products, "bfloat16_refusal", str)
    assert products.libraries("bfloat16") == {"fastopt": BFLOAT16}
    monkeypatch.setattr(products, "bfloat16_refusal", lambda: "it is slow")
    assert products.libraries("bfloat16") == products.libraries("tf32") == {}
    operands = Operands(Shape(2, 2, 1), "bfloat16", 1)
    operands.a[...], operands.b[...] = [[1 + 2**-9], [1 + 3 * 2**-8]], [[1, -1]]
    np.testing.assert_array_equal(operands.expected(np.arange(2)), [[1, -1], [1 + 2**-6, -1 - 2**-6]])


def test_turns_are_of_one_length():
    assert products.turn_count(Shape(4096, 4096, 4096)) == 1
    assert products.turn_count(Shape(64, 256, 784)) * Shape(64, 256, 784).flops == pytest.approx(2e9, rel=0.02)
    assert str(Shape(64, 256, 784)) == "64x784x256"


@compiled
def test_the_peak_of_products_is_the_best_of_all(monkeypatch):
    """By the times of stand-ins: each library's best shape counts, and the best library is named."""
    monkeypatch.setattr(peaks, "SHAPES", (Shape(8, 8, 8), Shape(16, 16, 16)))
    monkeypatch.setattr(peaks, "turn_count", lambda shape, flops: 1)
    slow = PLAIN._replace(name="mkl", version="2030")
    monkeypatch.setattr(peaks, "libraries", lambda dtype: {"fastopt": PLAIN, "mkl": slow})
    asked = []

    def times(calls, threads, rounds):
        asked.append(list(calls))
        return {(n, s): [[s.m * (2.0 if n == "mkl" else 4.0), 1e9]] * threads for n, s in calls}

    monkeypatch.setattr(peaks, "thread_times", times)
    peak = peaks.product_peak.__wrapped__("float32", 2)
    # 2 threads x 2 x 16**3 operations in 32 seconds
    assert peak == (512.0, "MKL 2030", "16x16x16")
    assert [len(names) for names in asked] == [4, peaks.FINAL]
    monkeypatch.setattr(peaks, "libraries", lambda dtype: {})
    assert peaks.product_peak.__wrapped__("float32", 2).flops == 0


def test_shapes_that_need_much_memory_are_left_out(monkeypatch):
    monkeypatch.setattr(peaks, "libraries", lambda dtype: {"none": PLAIN})
    monkeypatch.setattr(peaks, "MOST_BYTES", 0)
    assert peaks.product_peak.__wrapped__("float32", 2) == (0.0, "none", "")
