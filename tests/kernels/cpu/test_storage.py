"""Conversions of 16-bit numbers: of every one there is, and of what lies between two; against NumPy and ml_dtypes."""

import os
import platform
import subprocess
import sys

import numpy as np
import pytest

from fastopt.kernels.cpu.runtime import storage
from fastopt.kernels.cpu.runtime.compile import Kernel
from fastopt.kernels.cpu.runtime.primitives import INTERPRETED, address_of, view
from fastopt.kernels.reference.bits16 import store, widened

ALL = np.arange(2**16, dtype=np.uint16)


def widening(widen):
    def kernel(x, y, count):
        X, Y = view(x, count, np.uint16), view(y, count, np.float32)
        for i in range(count):
            Y[i] = widen(X[i])

    return kernel


def narrowing(narrow):
    def kernel(x, y, count):
        X, Y = view(x, count, np.float32), view(y, count, np.uint16)
        for i in range(count):
            Y[i] = narrow(X[i], 0, i)

    return kernel


@storage.register_jitable
def to_half_by_bits(x, key, element):
    return storage.to_half_by_bits(x)


WIDEN = {
    "float16": storage.widen_float16, "by bits": storage.from_half_by_bits, "bfloat16": storage.widen_bfloat16,
}  # fmt: skip
NARROW = {
    "float16": storage.nearest_float16, "by bits": to_half_by_bits, "bfloat16": storage.nearest_bfloat16,
}  # fmt: skip


def run(make, function, x, dtype):
    y = np.zeros(x.shape, dtype)
    name = f"test_{make.__name__}_{function.__module__}_{function.__name__}".replace(".", "_")
    Kernel(make(function), name)(address_of(x), address_of(y), x.size)
    return y


def kind_of(name):
    if name != "bfloat16":
        return np.dtype(np.float16)
    return np.dtype(pytest.importorskip("ml_dtypes").bfloat16)


def between():
    """Every 16-bit number of both kinds as float32, halfway to its neighbour, and a little to either side of that."""
    both = [ALL.view(np.float16).astype("f4").view("u4"), ALL.astype("u4") << 16]
    near = [bits + np.uint32((way + off) % 2**32) for bits in both for way in (0, 2**12, 2**15) for off in (-1, 0, 1)]
    some = np.concatenate([*near, np.random.default_rng(0).integers(0, 2**32, 100_000, dtype=np.uint32)])
    return (some[::37].copy() if INTERPRETED else some).view("f4")


@np.errstate(all="ignore")
def assert_equal_numbers(ours, theirs):
    missing = np.isnan(theirs.astype("f4"))
    np.testing.assert_array_equal(np.isnan(ours.astype("f4")), missing)
    assert (ours.view(f"u{ours.itemsize}") == theirs.view(f"u{ours.itemsize}"))[~missing].all()


@pytest.mark.parametrize("name", WIDEN)
def test_widening(name):
    kind = kind_of(name)
    expected = ALL.view(kind).astype("f4")
    assert_equal_numbers(run(widening, WIDEN[name], ALL, "f4"), expected)
    assert_equal_numbers(widened(ALL.view(kind)), expected)


@pytest.mark.parametrize("name", NARROW)
@np.errstate(all="ignore")
def test_narrowing_to_the_nearest(name):
    kind, x = kind_of(name), between()
    expected = x.astype(kind)
    if name == "bfloat16":  # denormal numbers are written as zero
        expected[np.abs(x) < np.finfo("f4").tiny] *= 0
    assert_equal_numbers(run(narrowing, NARROW[name], x, "u2").view(kind), expected)
    into = np.zeros(x.shape, kind)
    store(x, into)
    assert_equal_numbers(into, expected)


@pytest.mark.skipif(INTERPRETED or platform.machine() not in ("x86_64", "AMD64"), reason="of compiled code on x86")
def test_kernels_run_on_processors_that_cannot_convert():
    """LLVM would call a function that is not there, and end the process."""
    code = """
import numpy as np
from fastopt.kernels import cpu, reference
from fastopt.kernels.formulas import OPTIMIZERS
from fastopt.kernels.spec import Update
from fastopt.kernels.cpu.runtime.storage import converts_half
assert not converts_half()
for dtype in ("f2", "u2"):
    p, g, m, v = (np.linspace(0, 2, 100).astype("f2").view(dtype) for _ in range(4))
    job = Update("adam", p, g, (m, v), OPTIMIZERS["adam"].options, 3)
    twin = job._replace(p=p.copy(), states=(m.copy(), v.copy()))
    cpu.update([job])
    reference.update([twin])
    assert [a.tobytes() for a in (p, m, v)] == [a.tobytes() for a in (twin.p, *twin.states)]
"""
    environment = os.environ | {"NUMBA_CPU_NAME": "x86-64", "NUMBA_CPU_FEATURES": ""}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, timeout=240)
