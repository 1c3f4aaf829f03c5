"""Kernels that train small networks, compiled and looked at. To compile one takes 15 s, so these are few and various."""

from __future__ import annotations

import re

import pytest
from helpers_cuda import require_compiler

require_compiler()
from fastopt.kernels.cuda.compile import Kernel
from fastopt.kernels.cuda.fused import fused_kernel
from fastopt.kernels.cuda.fused_layout import KINDS, Kind, parts_of, placed, views
from fastopt.kernels.cuda.program import Structure
from fastopt.kernels.formulas import ACTIVATIONS
from fastopt.kernels.spec import DenseSpec, LossSpec

LABELS = "sparse_categorical_crossentropy"
MOST = {(8, 0): 163 << 10, (9, 0): 227 << 10}  # bytes of shared memory of a block

USUAL = Kind("adam", ("linear", "relu"), LABELS, True, "softmax", frozenset({"accuracy"}), False, "float32")
FULL = Kind(
    "rmsprop_centered_momentum", tuple(sorted(ACTIVATIONS)), "categorical_crossentropy", False, "softmax",
    frozenset(KINDS), True, "float32",
)  # fmt: skip
PLAIN = Kind("sgd", ("tanh",), "mean_squared_error", False, None, frozenset(), False, "float32")
WIDE = USUAL._replace(dtype="float64", loss="binary_crossentropy", labels=False, link="sigmoid", dropout=True)
CASES = [(kind, capability) for kind in (USUAL, FULL, PLAIN, WIDE) for capability in MOST]


@pytest.fixture(scope="module")
def listings():
    return {}


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0].name[:60]}_sm_{case[1][0]}{case[1][1]}")
def case(request):
    return request.param


@pytest.fixture
def listing(case, listings):
    kind, capability = case
    if case not in listings:
        listings[case] = fused_kernel(kind).listing(capability)
    return listings[case]


@pytest.mark.slow
def test_machine_code(case, listing):
    kind, _ = case
    assert listing.local_bytes == 0
    assert ".local" not in listing.ptx
    # All threads of the block must find room for their registers, or the launch would fail.
    assert 0 < listing.registers * kind.threads <= 65536
    assert not re.findall(r"\bcall\b", listing.ptx)
    assert "smem" not in listing.log  # beside what a launch asks for


@pytest.mark.slow
def test_float64_only_where_losses_are_added_up(case, listing):
    if case[0].dtype == "float32":
        found = set(re.findall(r"\b(\w+)(?:\.\w+)*\.f64\b", listing.ptx))
        assert found <= {"add", "ld", "st", "cvt", "mov", "selp", "rcp", "div", "mul", "fma", "setp"}
        assert len(re.findall(r"\b(?:mul|fma|div|rcp|sqrt)\.(?:rn\.)?f64", listing.ptx)) <= 1
    products = re.findall(r"\bfma\.rn\.f(32|64)", listing.ptx)
    assert products.count("32" if case[0].dtype == "float32" else "64") >= 3 * (4 * 4 * 4 + 2 * 2 * 4)


@pytest.mark.slow
def test_accesses_of_128_bits(case, listing):
    """A tile of 4 x 4 takes 8 vectors for 4 terms, in each of three products."""
    vector, count = ("v4.f32", 8) if case[0].dtype == "float32" else ("v2.f64", 16)
    assert listing.ptx.count(f"ld.shared.{vector}") >= 3 * count
    assert "ld.global.v" not in listing.ptx  # rows of the data may lie anywhere


def test_what_fits():
    """Of shared memory, on each kind of device."""

    def fits(*widths, batch=32, kind=USUAL):
        layers = [DenseSpec(*pair, "relu") for pair in zip(widths, widths[1:], strict=False)]
        net = Structure(layers, kind.dtype, LossSpec(kind.loss), (), None)
        found = [placed(kind, parts_of(net), batch, most) for most in MOST.values()]
        return [None if words is None else bool(views(words)[0]["resident"]) for words in found]

    assert fits(64, 32, 10) == fits(30, 64, 64, 1) == fits(64, 64, 64, 64, 10) == [True, True]
    assert fits(128, 128, 10) == [None, False]
    assert fits(784, 16, 10) == [None, None]
    assert fits(64, 32, 10, batch=256) == [True, True]
    assert fits(64, 32, 10, batch=512) == [None, None]
    wide = USUAL._replace(dtype="float64")
    assert fits(64, 32, 10, kind=wide) == [True, True]


def test_a_name_for_every_kind():
    """Of two kernels with one name, `Kernel` refuses the second."""
    kinds = [
        USUAL, FULL, PLAIN, WIDE, USUAL._replace(link=None), USUAL._replace(dropout=True),
        USUAL._replace(metrics=frozenset()), USUAL._replace(rule="sgd"), USUAL._replace(activations=("relu",)),
    ]  # fmt: skip
    assert len({fused_kernel(kind) for kind in kinds}) == len(kinds)
    assert fused_kernel(USUAL._replace(rule="adamw")) is fused_kernel(USUAL)
    assert all(Kernel.names[fused_kernel(kind).name] is fused_kernel(kind) for kind in kinds)
