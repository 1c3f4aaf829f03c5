"""Kernels that train small networks, compiled and looked at: few, for to compile one takes 15 s."""

from __future__ import annotations

import itertools
import re

import pytest
from helpers_cuda import require_compiler

require_compiler()
from fastopt.kernels.cuda.dense.stored import Layout
from fastopt.kernels.cuda.fused.kernel import fused_kernel
from fastopt.kernels.cuda.fused.layout import FusedLayers, Kind, lay_out, split_records, sum_of
from fastopt.kernels.cuda.runtime.compile import Kernel
from fastopt.kernels.formulas import ACTIVATIONS, METRICS
from fastopt.kernels.spec import DenseSpec

LABELS = "sparse_categorical_crossentropy"
MOST = {(8, 0): 163 << 10, (9, 0): 227 << 10}  # bytes of shared memory of a block

USUAL = Kind("adam", ("linear", "relu"), LABELS, True, "softmax", ("accuracy",), False, "float32")
FULL = Kind(
    "rmsprop_centered_momentum", tuple(sorted(ACTIVATIONS)), "categorical_crossentropy", False, "softmax",
    tuple(sorted({sum_of(name) for name, row in METRICS.items() if not row.of_counts})), True, "float32",
)  # fmt: skip
BYTES = USUAL._replace(x=Layout("uint8", (False,)))
WIDE = USUAL._replace(dtype="float64", loss="binary_crossentropy", labels=False, link="sigmoid", dropout=True)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [BYTES, FULL, WIDE], ids=lambda kind: kind.name[:40])
def test_machine_code(kind):
    single = kind.dtype == "float32"
    for capability in MOST:
        listing = fused_kernel(kind).listing(capability)
        assert listing.local_bytes == 0
        assert ".local" not in listing.ptx
        # All threads of the block must find room for their registers, or the launch would fail.
        assert 0 < listing.registers * kind.threads <= 65536
        assert not re.findall(r"\bcall\b", listing.ptx)
        assert " smem" not in listing.log  # static shared memory, besides that of the launch
        if single:  # in which float64 is only for sums of losses
            used = set(re.findall(r"\b(\w+)(?:\.\w+)*\.f64\b", listing.ptx))
            prepared = {"mul"} if kind.x else set()
            assert used <= {"add", "cvt", "ld", "mov", "selp", "st"} | prepared
        # A tile of 4 x 4 takes 8 vectors for 4 terms, in each of three products, and one of 2 x 2 a quarter of terms.
        assert listing.ptx.count(f"fma.rn.f{32 if single else 64}") >= 3 * (4 * 4 * 4 + 2 * 2 * 4)
        assert listing.ptx.count("ld.shared.v4.f32" if single else "ld.shared.v2.f64") >= 3 * (8 if single else 16)
        assert "ld.global.v" not in listing.ptx  # rows of the data may lie anywhere
        assert listing.ptx.count("prefetch.global.L2") >= 2  # x and y of the next batch


def test_what_fits():
    """Networks that fit into shared memory, on each kind of device."""

    def fits(*widths, batch=32, kind=USUAL):
        parts = FusedLayers([DenseSpec(*pair, "relu") for pair in itertools.pairwise(widths)], [None] * len(widths))
        found = [lay_out(kind, parts, batch, most) for most in MOST.values()]
        return [None if words is None else bool(split_records(words)[0]["states_resident"]) for words in found]

    assert fits(64, 32, 10) == fits(30, 64, 64, 1) == [True, True]
    assert fits(64, 64, 64, 10) == [False, True]
    assert fits(128, 128, 10) == fits(64, 32, 10, batch=256) == fits(784, 16, 10, batch=16) == [None, False]
    assert fits(64, 32, 10, batch=512) == fits(128, 128, 64, 10) == [None, None]
    wide = USUAL._replace(dtype="float64")
    assert fits(64, 32, 10, kind=wide) == [True, True]


def test_a_name_for_every_kind():
    """`Kernel` refuses a second kernel with the same name."""
    kinds = [
        USUAL, FULL, WIDE, BYTES, USUAL._replace(link=None), USUAL._replace(dropout=True),
        USUAL._replace(metrics=()), USUAL._replace(rule="sgd"), USUAL._replace(activations=("relu",)),
    ]  # fmt: skip
    assert len({fused_kernel(kind) for kind in kinds}) == len(kinds)
    assert fused_kernel(USUAL._replace(rule="adamw")) is fused_kernel(USUAL)
    assert all(Kernel.names[fused_kernel(kind).name] is fused_kernel(kind) for kind in kinds)
