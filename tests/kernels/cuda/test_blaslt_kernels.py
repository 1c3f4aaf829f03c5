"""Machine code of the kernels of dense layers: registers, widths of accesses, instructions."""

from __future__ import annotations

import re

import pytest
from helpers_cuda import require_compiler

require_compiler()
from fastopt.kernels.cuda.dense.epilogues import activate_kernel, dense_kernels, slopes_kernel, totals_kernel
from fastopt.kernels.formulas import ACTIVATIONS

VECTORS = {"float32": "v4.f32", "float64": "v2.f64", "float16": "v4.[bu]32", "bfloat16": "v4.[bu]32"}
# A multiprocessor has 65536: so 5 and 2 blocks of 256 threads run at once, in float64 4 and one.
REGISTERS = {"activate": 48, "slopes": 128}
REGISTERS64 = {"activate": 64, "slopes": 168}
MAKERS = {"activate": activate_kernel, "slopes": slopes_kernel}

# Each takes half a second: every activation in float32, and those that need most registers in all dtypes.
CASES = [(kind, name, "float32", True, (9, 0)) for kind in MAKERS for name in ACTIVATIONS]
CASES += [(kind, "gelu", dtype, True, (9, 0)) for kind in MAKERS for dtype in VECTORS if dtype != "float32"]
CASES += [(kind, "gelu", dtype, False, (9, 0)) for kind in MAKERS for dtype in ("float32", "bfloat16")]
CASES += [(kind, "gelu", dtype, True, (8, 0)) for kind in MAKERS for dtype in ("float32", "float16")]


@pytest.mark.parametrize(("kind", "name", "dtype", "wide", "capability"), CASES, ids=str)
def test_machine_code(kind, name, dtype, wide, capability):
    listing = MAKERS[kind](name, dtype, wide).listing(capability)
    assert listing.local_bytes == 0
    assert ".local" not in listing.ptx
    assert listing.registers <= (REGISTERS64 if dtype == "float64" else REGISTERS)[kind]
    assert not re.findall(r"\bcall\b", listing.ptx)
    if kind == "activate" and dtype != "float64":
        assert ".f64" not in listing.ptx
    if kind == "slopes" and dtype != "float64":  # sums are float64, and nothing else is
        assert not re.findall(r"(mul|div|fma|sqrt)\S*\.f64", listing.ptx)
    accesses = re.findall(r"(ld|st)\.global\.(\S+)", listing.ptx)
    # Every access is of 128 bits, but for what is written of the sums.
    alone = [(way, what) for way, what in accesses if not re.fullmatch(VECTORS[dtype], what)]
    if wide:
        assert {way for way, _ in alone} <= ({"st"} if kind == "slopes" else set())
        assert {way for way, _ in accesses} == {"ld", "st"}
    else:
        assert not any(what.startswith("v") for _, what in accesses)


@pytest.mark.parametrize("dtype", VECTORS)
def test_totals(dtype):
    listing = totals_kernel(dtype).listing((9, 0))
    assert listing.local_bytes == 0
    assert listing.registers <= 64


def test_names_are_those_of_what_is_computed():
    kernels = [kernel for dtype in VECTORS for kernel in dense_kernels(dtype)]
    assert len({kernel.name for kernel in kernels}) == len(kernels) == 4 * (1 + 2 * 2 * len(ACTIVATIONS))
