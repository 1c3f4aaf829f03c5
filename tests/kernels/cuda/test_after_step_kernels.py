"""Machine code of the kernels of constraints and averages."""

from __future__ import annotations

import re

import pytest
from helpers_cuda import require_compiler

require_compiler()
from fastopt.kernels.cuda.optim.constraints import constraint_kernels
from fastopt.kernels.cuda.optim.updates import average_kernel

KERNELS = [kernel for dtype in ("float32", "float64") for kernel in (average_kernel(dtype), *constraint_kernels(dtype))]


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
def test_machine_code(kernel):
    listing = kernel.listing((9, 0))
    assert listing.local_bytes == 0
    assert 0 < listing.registers <= 80  # of 65536: 3 blocks of 256 threads run at once
    assert not re.findall(r"\bcall\b", listing.ptx)
    if "average" in kernel.name and "float32" in kernel.name:
        assert re.findall(r"st\.global\.v4\.f32", listing.ptx)
