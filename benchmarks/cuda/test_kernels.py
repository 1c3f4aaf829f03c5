"""Every other kernel: gathering, dropout, activations and slopes, losses, softmax, accuracy, norms, clipped steps."""

import pytest

from fastopt.benchmarks.cuda.needs import require_device
from fastopt.benchmarks.interleaved import interleaved, record

require_device()
from fastopt.benchmarks.cuda.kernels import CASES, FULL, MAKERS, QUICK, TINY, Case
from fastopt.benchmarks.cuda.turns import turns

ROUNDS = 11


@interleaved
@pytest.mark.parametrize(("kernel", "name", "dtype"), CASES)
def test_kernel(benchmark, note, pick, kernel, name, dtype):
    rows, columns = pick(FULL[kernel], QUICK, TINY)
    work = MAKERS[kernel](Case(name, rows, columns, dtype))
    work.call()
    work.check()
    benchmark.group = kernel
    if benchmark.disabled:
        benchmark(lambda: None)  # a run that only checks agreement
        return
    record(benchmark, turns({"fastopt": work.call}, ROUNDS)["fastopt"])
    title = kernel if name == kernel else f"{kernel}: {name}"
    note("loss" if kernel.startswith("loss") else "kernel", title, "fastopt", size=rows * columns, dtype=dtype,
         shape=f"{rows:,}x{columns}", moved=work.moved, flops=work.flops)  # fmt: skip
