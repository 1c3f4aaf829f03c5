"""No kernel reads or writes beyond an array: every one, with its arrays flush against inaccessible pages."""

import mmap
import signal
import subprocess
import sys

import helpers_guard_cases
import numpy as np
import pytest
from helpers_guard import SUPPORTED, guarded, guarded_memory
from helpers_guard_cases import GROUPS, owners

from fastopt.kernels import cpu
from fastopt.kernels.cpu.runtime.primitives import INTERPRETED

pytestmark = [
    pytest.mark.skipif(not SUPPORTED, reason="inaccessible pages beside NumPy's arrays: only on Linux, with CPython"),
    pytest.mark.skipif(INTERPRETED, reason="interpreted kernels are Python, which checks its indices"),
]


def verdict(groups, *thorough):
    """ "done", or the case that a process of its own had begun when it ended, and how it ended."""
    command = [sys.executable, helpers_guard_cases.__file__, groups, *thorough]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=240, check=False)
    last = done.stdout.splitlines()[-1] if done.stdout else "no case"
    if done.returncode == 0:
        return last
    how = signal.Signals(-done.returncode).name if done.returncode < 0 else f"exit status {done.returncode}"
    return f"{last}: {how}\n{done.stderr}"


# Some 5 to 15 s each, compilation included.
LONG = ("networks", "networks in bfloat16", "products", "pruned", "sparse", "updates")
# In one process, whose start takes longer than they do.
SHORT = ("norms", "optimizers", "teams", "many networks", "pieces", "profiles")
PROCESSES = [",".join(SHORT), *(group for group in GROUPS if group not in SHORT)]


@pytest.mark.parametrize(
    "groups", [pytest.param(name, marks=pytest.mark.repeats) if name in LONG else name for name in PROCESSES]
)
def test_kernels_stay_within_their_arrays(groups):
    assert verdict(groups) == "done"


@pytest.mark.repeats
def test_every_loop_of_16_bits_stays_within_its_arrays():
    assert verdict("updates", "thorough") == "done"


def test_no_kernel_is_left_out():
    """Each group asserts that it has used those that are its own."""
    assert {kernel.name: len(owners(kernel)) for kernel in cpu.all_kernels() if len(owners(kernel)) != 1} == {}


@pytest.mark.parametrize(("broken", "side"), [("behind", "end"), ("before", "start")])
def test_a_kernel_that_leaves_its_array_is_found(broken, side):
    assert verdict(broken).startswith(f"an element {broken}, guarded at the {side}: SIG")


@pytest.mark.parametrize("dtype", ["float32", "float64", "uint16"])
@pytest.mark.parametrize("length", [1, 7, 1024, 5000])
def test_where_guarded_arrays_lie(dtype, length):
    array = np.arange(length).astype(dtype)
    for side in ("end", "start"):
        copy = guarded(array, side)
        behind = copy.ctypes.data + copy.nbytes
        assert (behind if side == "end" else copy.ctypes.data) % mmap.PAGESIZE == 0
        np.testing.assert_array_equal(copy, array)


def test_memory_that_is_not_asked_to_be_zero_is_not():
    with guarded_memory("end"):
        assert np.isnan(np.empty(5)).all()
        assert not np.zeros(5).any()
        grown = np.zeros(3)
        grown.resize(5000, refcheck=False)
        assert not grown.any()
    assert np.empty(0).size == 0
