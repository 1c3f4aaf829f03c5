"""The kernels of dense layers, compiled and looked at: what is stated of updates, as far as it holds for them."""

from __future__ import annotations

import re

import pytest
from helpers_cuda import require_compiler

require_compiler()
from fastopt.kernels.cuda.epilogues import activate_kernel, dense_kernels, slopes_kernel, totals_kernel
from fastopt.kernels.formulas import ACTIVATIONS

WIDE = {"float32": 4, "float64": 2}
# Of 65536 a multiprocessor, by blocks of 256 threads: 5, 4, 2 and, in float64, one block at work at once.
REGISTERS = {
    ("activate", "float32"): 48,
    ("activate", "float64"): 64,
    ("slopes", "float32"): 96,
    ("slopes", "float64"): 168,
}
MAKERS = {"activate": activate_kernel, "slopes": slopes_kernel}

CASES = [(kind, name, dtype, width, (9, 0)) for kind in MAKERS for name in ACTIVATIONS for dtype, width in WIDE.items()]
CASES += [(kind, name, "float32", 1, (9, 0)) for kind in MAKERS for name in ("linear", "gelu")]
CASES += [(kind, name, "float32", 4, (8, 0)) for kind in MAKERS for name in ("relu", "silu", "gelu")]


@pytest.mark.parametrize(("kind", "name", "dtype", "width", "capability"), CASES, ids=str)
def test_machine_code(kind, name, dtype, width, capability):
    listing = MAKERS[kind](name, dtype, width).listing(capability)
    assert listing.local_bytes == 0
    assert ".local" not in listing.ptx
    assert listing.registers <= REGISTERS[kind, dtype]
    assert not re.findall(r"\bcall\b", listing.ptx)
    if kind == "activate" and dtype == "float32":
        assert ".f64" not in listing.ptx
    if kind == "slopes" and dtype == "float32":  # sums are float64, and nothing else is
        assert not re.findall(r"(mul|div|fma|sqrt)\S*\.f64", listing.ptx)
    vector = {4: "v4.f32", 2: "v2.f64", 1: r"v\d"}[width]
    loads, stores = (len(re.findall(rf"{way}\.global\.{vector}", listing.ptx)) for way in ("ld", "st"))
    assert (loads > 0, stores > 0) == (width > 1, width > 1)
    if width > 1:  # and every access is one, but for what is written of the sums
        alone = "(ld|st)" if kind == "activate" else "ld"
        assert not re.findall(rf"{alone}\.global\.f(32|64)", listing.ptx)


@pytest.mark.parametrize("dtype", WIDE)
def test_totals(dtype):
    listing = totals_kernel(dtype).listing((9, 0))
    assert listing.local_bytes == 0
    assert listing.registers <= 64


def test_names_are_those_of_what_is_computed():
    kernels = [kernel for dtype in WIDE for kernel in dense_kernels(dtype)]
    assert len({kernel.name for kernel in kernels}) == len(kernels) == 2 * (1 + 2 * 2 * len(ACTIVATIONS))
