"""Machine code of the kernels of normalization."""

from __future__ import annotations

import re

import pytest
from helpers_cuda import require_compiler

require_compiler()
from fastopt.kernels.cuda.dense.normalization import normalization_kernels

CAPABILITIES = [(8, 0), (9, 0)]
KERNELS = [kernel for dtype in ("float32", "float64", "bfloat16") for kernel in normalization_kernels(dtype)]


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
def test_machine_code(kernel):
    for capability in CAPABILITIES:
        listing = kernel.listing(capability)
        assert listing.local_bytes == 0
        assert ".local" not in listing.ptx
        assert 0 < listing.registers <= 80  # of 65536: 3 blocks of 256 threads run at once
        # Products and sums are rounded each, as in the reference; square roots and quotients are correctly rounded.
        assert not re.findall(r"\bfma\.|\.ftz|\.approx|\.full|\bcall\b", listing.ptx)
