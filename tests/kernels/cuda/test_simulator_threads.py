"""Threads of Numba's simulator, run one after the other: barriers, shared memory, blocks, errors."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from helpers_cuda import SIMULATED, require_device

require_device()
if not SIMULATED:
    pytest.skip("about the simulator itself", allow_module_level=True)
from numba import cuda

from fastopt.kernels.cuda.runtime.simulator_threads import run

pytestmark = pytest.mark.gpu


def reverse(out, count):
    """Reverse the numbers of a block's threads by shared memory; the last threads leave early."""
    shared = cuda.shared.array(8, np.int64)
    me, first = cuda.threadIdx.x, cuda.blockIdx.x * 4
    shared[me] = first + me
    cuda.syncthreads()
    if me >= count:
        return
    out[first + me] = shared[count - 1 - me]
    cuda.syncthreads()
    out[first + me] += 100 * cuda.gridDim.x


def test_barriers_shared_memory_and_blocks():
    for _ in range(20):
        out = np.zeros(12, np.int64)
        run(reverse, 3, 6, out, 4)
        assert out.tolist() == [303, 302, 301, 300, 307, 306, 305, 304, 311, 310, 309, 308]


@pytest.mark.parametrize("where", ["before", "behind"])
def test_an_error_of_one_thread_ends_all(where):
    passed, before = [], threading.active_count()

    def kernel():
        if where == "before" and cuda.threadIdx.x == 2:
            raise ValueError("the third")
        cuda.syncthreads()
        if where == "behind" and cuda.threadIdx.x == 2:
            raise ValueError("the third")
        cuda.syncthreads()
        passed.append(cuda.threadIdx.x)

    with pytest.raises(ValueError, match="the third"):
        run(kernel, 4, 5)
    assert passed == []
    assert threading.active_count() == before
