"""The kernels of networks that compute in 16 bits, compiled and looked at, as other updates and kernels of rows are."""

from __future__ import annotations

import re

import pytest
from helpers_cuda import require_compiler

require_compiler()
from fastopt.kernels.cuda.dense.mixed import mixed_kernels
from fastopt.kernels.cuda.dense.rows import noise_kernel, random_kernels
from fastopt.kernels.cuda.optim.updates import update_kernel
from fastopt.kernels.cuda.runtime.storage import COPY
from fastopt.kernels.formulas import OPTIMIZERS

CAPABILITIES = [(8, 0), (9, 0)]
# Registers, of 65536 a multiprocessor, by the number of states: blocks of 256 threads are 4, 3 or 2 at once. Each
# thread has 32 bytes of every array under way.
MOST = [64, 80, 80, 104]
STATES = {update_kernel(name, "bfloat16", COPY): len(row.states) for name, row in OPTIMIZERS.items()}
RANDOM = random_kernels("bfloat16")
NOISE = [noise_kernel("bfloat16", wide) for wide in (False, True)]
KERNELS = [*mixed_kernels("bfloat16"), *STATES]


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
def test_machine_code(kernel):
    """All of a kernel at once: nearly all of the time is Numba's, and the same for every capability."""
    for capability in CAPABILITIES:
        listing = kernel.listing(capability)
        assert listing.local_bytes == 0
        assert ".local" not in listing.ptx
        assert 0 < listing.registers <= MOST[STATES.get(kernel, 0)]
        assert not re.findall(r"\.ftz|\.approx|\.full|\bcall\b|\b(min|max)\.f", listing.ptx)
        if kernel not in NOISE:  # which takes logarithms, by the compiler's own library
            assert not re.findall(r"\bfma\.", listing.ptx)
        if kernel not in RANDOM:  # which reads its scale or deviation as float64, once
            assert ".f64" not in listing.ptx
        if kernel in STATES:
            check_update(listing.ptx, STATES[kernel])


def accesses(ptx):
    kinds = {(way, kind): 0 for way in ("ld", "st") for kind in ("v4.f32", "v4.u32")}
    for way, kind in re.findall(r"\b(ld|st)\.global\.(v\d\.\w+)", ptx):
        if (way, kind) != ("ld", "v2.u64"):  # of records
            kinds[way, kind] = kinds.get((way, kind), 0) + 1
    return kinds


def check_update(ptx, states):
    """Eight elements a turn: p, g and states are read, p and states are written, and their 16 bytes of the copy."""
    found = accesses(ptx)
    turns = found["st", "v4.u32"]
    assert turns > 0
    wanted = {("ld", "v4.f32"): 2 * (states + 2), ("ld", "v4.u32"): 0, ("st", "v4.f32"): 2 * (states + 1)}
    assert found == {**{key: count * turns for key, count in wanted.items()}, ("st", "v4.u32"): turns}


def test_conversions_of_128_bits():
    narrow, _, gather, *_ = KERNELS
    for kernel in (narrow, gather):
        found = accesses(kernel.listing((9, 0)).ptx)
        assert found["st", "v4.u32"] > 0
        assert found["ld", "v4.f32"] == 2 * found["st", "v4.u32"]
        assert found["ld", "v4.u32"] == found["st", "v4.f32"] == 0
