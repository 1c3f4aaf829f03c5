"""Machine code of the kernels of batches and losses: the checks of updates that apply to them."""

from __future__ import annotations

import re

import pytest
from helpers_cuda import require_compiler

require_compiler()
from fastopt.kernels.cuda.dense.finish import FINISH
from fastopt.kernels.cuda.dense.losses import loss_kernel, loss_kernels
from fastopt.kernels.cuda.dense.metrics import metric_kernels
from fastopt.kernels.cuda.dense.rows import dropout_kernel, gather_kernel, gather_stored_kernel, rows_kernels
from fastopt.kernels.cuda.dense.stored import Layout

KERNELS = [FINISH]
for dtype in ("float32", "float64"):
    KERNELS += dict.fromkeys([*rows_kernels(dtype), *loss_kernels(dtype), *metric_kernels(dtype)])
KERNELS = list(dict.fromkeys(KERNELS))
PREPARED = [Layout(stored, (False,)) for stored in ("uint8", "int64", "float16", "float64")]
KERNELS += [gather_stored_kernel(layout, "float32", "float32") for layout in PREPARED]
KERNELS += [gather_stored_kernel(Layout("uint8"), *to) for to in (("float32", "bfloat16"), ("float64", "float64"))]
SPARSE = [Layout("float32", (), "int32"), Layout("uint8", (False, True), "int64")]
KERNELS += [gather_stored_kernel(layout, "float32", "float32") for layout in SPARSE]
CASES = [(kernel, (9, 0)) for kernel in KERNELS]
CASES += [(loss_kernel(name, "float32"), (8, 0)) for name in ("binary_crossentropy", "categorical_crossentropy")]


@pytest.mark.parametrize(("kernel", "capability"), CASES, ids=lambda value: getattr(value, "name", value))
def test_machine_code(kernel, capability):
    listing = kernel.listing(capability)
    assert listing.local_bytes == 0
    assert ".local" not in listing.ptx
    # A multiprocessor has 65536: 4 blocks of 256 threads run at once, in float64 3.
    assert 0 < listing.registers <= (80 if kernel.name.removesuffix("_wide").endswith("float64") else 64)
    assert not re.findall(r"\bcall\b", listing.ptx)


def test_rows_are_gathered_by_128_bits():
    """Those of x, and those of y where its rows allow it; rows of labels are of 64 bits."""
    for units, sizes in (((16, 16), {"v4.u32"}), ((16, 8), {"v4.u32", "u64"}), ((4, 16), {"u32", "v4.u32"})):
        ptx = gather_kernel(*units).listing((9, 0)).ptx
        stores = set(re.findall(r"st\.global\.(\S+)", ptx))
        loads = set(re.findall(r"ld\.global\.(\S+)", ptx))
        assert (stores, loads) == (sizes, sizes | {"u32", "u64"})  # numbers of rows, and that of the batch


def test_vectors_are_of_128_bits():
    """Those of elementwise losses and dropout."""
    for kernel in (loss_kernel("mean_squared_error", "float32", wide=True), dropout_kernel("float32", True)):
        ptx = kernel.listing((9, 0)).ptx
        assert len(re.findall(r"st\.global\.v4\.f32", ptx)) > 0
        assert not re.findall(r"(?:ld|st)\.global\.f32", ptx)
    assert loss_kernel("categorical_crossentropy", "float32", wide=True) is loss_kernel(
        "categorical_crossentropy", "float32"
    )
