"""Machine code of updates whose states are codes of 8 bits."""

from __future__ import annotations

import re

import pytest
from helpers_cuda import assert_exact_code, require_compiler

require_compiler()
from fastopt.kernels.cuda.kernels import blockwise_kernels
from fastopt.kernels.cuda.optim.blockwise import blockwise_kernel
from fastopt.kernels.cuda.runtime.storage import COPY
from fastopt.kernels.spec import BLOCKWISE, BLOCKWISE_RANDOM, MASTER, SAME, STOCHASTIC

# Most registers of a thread, of 65536, for 2 blocks of 256 threads at once; Adam of float32 on Hopper has 3.
REGISTERS, OF_ADAM = 128, 85
SOME = [
    blockwise_kernel("adam", "float32"),
    blockwise_kernel("adam", "bfloat16", MASTER, BLOCKWISE_RANDOM, unscales=True),
    blockwise_kernel("momentum", "bfloat16", COPY),
    blockwise_kernel("momentum", "float16", STOCHASTIC),
]
# Every rule, and those with the most registers in float64.
LARGE = ("amsgrad_eps_root", "rmsprop_centered_momentum", "nadam")
OTHERS = [kernel for kernel in blockwise_kernels(["float32"]) if "random" not in kernel.name and kernel not in SOME]
OTHERS += blockwise_kernels(["float64"], LARGE)
CASES = [*SOME, *(pytest.param(kernel, marks=pytest.mark.repeats) for kernel in OTHERS)]


@pytest.mark.parametrize("kernel", CASES, ids=lambda kernel: kernel.name)
def test_machine_code(kernel):
    for capability in ((8, 0), (9, 0)):
        listing = kernel.listing(capability)
        assert_exact_code(listing, OF_ADAM if kernel is SOME[0] and capability == (9, 0) else REGISTERS)
        assert (".f64" in listing.ptx) == ("_float64_" in kernel.name)


def test_states_are_written_as_codes_and_magnitudes():
    """Their numbers stay in shared memory. The store of p may stand there twice, in branches of the rule."""
    ptx = blockwise_kernel("adam", "float32", SAME, BLOCKWISE).listing((9, 0)).ptx
    stores = sorted(set(re.findall(r"st\.global\.\S+", ptx)))
    assert stores == ["st.global.f32", "st.global.u32", "st.global.u8"]
    assert [ptx.count(store) for store in stores[1:]] == [2, 2]
