"""The benchmarks' own kernels, compiled and looked at: a limit that spills, or loads less at once, is none."""

from __future__ import annotations

import re

import pytest
from helpers_cuda import require_compiler

require_compiler()
from fastopt.benchmarks.cuda.limits import COPY, stream_kernel
from fastopt.benchmarks.cuda.smoke_device import COUNT, TURN_ROUND
from fastopt.benchmarks.cuda.spin import SPIN

KERNELS = [COPY, *(stream_kernel(states, dtype) for states in range(4) for dtype in ("float32", "float64"))]


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
def test_accesses_of_128_bits(kernel):
    listing = kernel.listing((9, 0))
    assert listing.local_bytes == 0
    assert listing.registers <= 64
    assert set(re.findall(r"(?:ld|st)\.global\.(\S+)", listing.ptx)) == {
        "v2.f64" if "float64" in kernel.name else "v4.f32"
    }


def test_what_keeps_a_stream_busy_is_a_loop():
    """A compiler would remove it if it knew the result."""
    ptx = SPIN.listing((9, 0)).ptx
    loop = re.search(r"^(\$\w+):(.*?)bra(?:\.uni)?\s+\1;", ptx, re.DOTALL | re.MULTILINE)
    assert loop
    assert len(re.findall(r"(?:mul|add|fma)\S*\.f64", loop[2])) >= 2


def test_what_smoke_checks_launch():
    assert re.search(r"ld\.shared.*\n(?:.*\n)*?.*st\.global", TURN_ROUND.listing((9, 0)).ptx)
    assert "bar.sync" in TURN_ROUND.listing((9, 0)).ptx
    assert COUNT.listing((9, 0)).local_bytes == 0
