"""The kernels that are the benchmarks' limits, compiled and looked at: what spills, or loads less at once, is none."""

from __future__ import annotations

import re

import pytest
from helpers_cuda import require_compiler

require_compiler()
from fastopt.benchmarks.cuda.limits import COPY, stream_kernel

KERNELS = [COPY, *(stream_kernel(states, dtype) for states in range(4) for dtype in ("float32", "float64"))]


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
def test_accesses_of_128_bits(kernel):
    listing = kernel.listing((9, 0))
    assert listing.local_bytes == 0
    assert listing.registers <= 64
    assert set(re.findall(r"(?:ld|st)\.global\.(\S+)", listing.ptx)) == {
        "v2.f64" if "float64" in kernel.name else "v4.f32"
    }
