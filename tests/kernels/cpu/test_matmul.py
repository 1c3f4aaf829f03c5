"""Our matrix products: the same bits on each vector unit and with each blocking; machine code of other processors."""

import ctypes
import itertools
import re
from functools import cache

import llvmlite.binding as llvm
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastopt.kernels.cpu.dense.matmul import (
    AS_IS,
    BLOCKINGS,
    DEFAULT,
    DEPTH,
    DEPTH_UNIT,
    NEVER,
    ROW_MAJOR,
    TRANSPOSED,
    Blocking,
    gemm_types,
    matmul_of,
)
from fastopt.kernels.cpu.runtime import objects
from fastopt.kernels.cpu.runtime.compile import OPTIONS, Kernel
from fastopt.kernels.cpu.runtime.frontend import NO_RUNTIME, prepare
from fastopt.kernels.cpu.runtime.primitives import INTERPRETED, target_has
from fastopt.kernels.cpu.runtime.processors import AVX2, AVX512, NEON

pytestmark = pytest.mark.skipif(INTERPRETED, reason="vector instructions are compiled")

# Every processor has NEON's vectors of 16 bytes.
HAS_MASKS = {AVX512: "+avx512f", AVX2: "+avx2"}
UNITS = [unit for unit in (AVX512, AVX2, NEON) if unit not in HAS_MASKS or target_has(HAS_MASKS[unit])]
READ_IN_PLACE = Blocking(NEVER, NEVER, NEVER, NEVER, 1)
COPIED = Blocking(block_rows=16, copied_rows=8, copied_bytes=1, packed_cols=1, packed_stride=1)
KINDS = list(itertools.product((AS_IS, TRANSPOSED), repeat=2))
DTYPES = ["float32", "float64"]


@cache
def product(dtype, unit, sizes):
    """The product as a function of ctypes; alpha and addresses as numbers."""
    name = f"matmul_{dtype}_{unit.name}_{'in_place' if sizes is READ_IN_PLACE else 'copied'}"
    kernel = Kernel(matmul_of(getattr(np, dtype), unit, sizes), name, gemm_types(dtype))
    scalar = ctypes.c_float if dtype == "float32" else ctypes.c_double
    i32, i64 = ctypes.c_int32, ctypes.c_int64
    return ctypes.CFUNCTYPE(None, *[i32] * 6, scalar, i64, i32, i64, i32, scalar, i64, i32)(kernel.address)


def multiply(dtype, unit, sizes, kinds, a, b, c, size, alpha, beta):
    m, n, k = size
    strides = [array.strides[0] // array.itemsize for array in (a, b, c)]
    product(dtype, unit, sizes)(
        ROW_MAJOR, *kinds, m, n, k, alpha, a.ctypes.data, strides[0], b.ctypes.data, strides[1], beta, c.ctypes.data,
        strides[2],
    )  # fmt: skip


@pytest.mark.repeats  # compiles twelve products, more than a second each
@settings(max_examples=150, deadline=None)
@given(
    dtype=st.sampled_from(DTYPES),
    kinds=st.sampled_from(KINDS),
    m=st.integers(1, 70),
    n=st.integers(1, 100),
    k=st.integers(1, 40) | st.integers(DEPTH - 2, DEPTH + 40) | st.integers(2 * DEPTH - 1, 2 * DEPTH + 1),
    padding=st.just(0) | st.integers(0, 20),
    alpha=st.sampled_from([1.0, 0.25]),
    beta=st.sampled_from([0.0, 1.0]),
    seed=st.integers(0, 1 << 20),
)
def test_every_unit_and_blocking_has_the_same_bits(dtype, kinds, m, n, k, padding, alpha, beta, seed):
    rng = np.random.default_rng(seed)

    def matrix(rows, columns):
        return rng.standard_normal((rows, columns + padding)).astype(dtype)

    a = matrix(m, k) if kinds[0] == AS_IS else matrix(k, m)
    b = matrix(k, n) if kinds[1] == AS_IS else matrix(n, k)
    start, results = matrix(m, n), {}
    for unit, sizes in itertools.product(UNITS, (READ_IN_PLACE, COPIED)):
        c = start.copy()
        multiply(dtype, unit, sizes, kinds, a, b, c, (m, n, k), alpha, beta)
        np.testing.assert_array_equal(c[:, n:], start[:, n:])
        results[unit.name, sizes is COPIED] = c[:, :n]
    first = next(iter(results.values()))
    for key, result in results.items():
        np.testing.assert_array_equal(result, first, err_msg=str(key))
    # and they are right
    left = (a[:, :k] if kinds[0] == AS_IS else a[:, :m].T).astype("f8")
    right = (b[:, :n] if kinds[1] == AS_IS else b[:, :k].T).astype("f8")
    bound = (k + 3) * np.finfo(dtype).eps * (np.abs(left) @ np.abs(right) + np.abs(start[:, :n]))
    assert (np.abs(first - (alpha * (left @ right) + beta * start[:, :n])) <= bound).all()


@pytest.mark.parametrize("kinds", KINDS)
@pytest.mark.parametrize(
    "unit",
    [UNITS[0], *(pytest.param(unit, marks=pytest.mark.repeats) for unit in UNITS[1:])],
    ids=lambda unit: unit.name,
)
def test_products_of_more_than_a_block(unit, kinds):
    """Several blocks of rows, of products and of packed A, and last strips of every width."""
    rng = np.random.default_rng(0)
    for m, n, k in [(120, 170, 600), (97, 165, 257), (200, 1, 300)]:
        a, b = rng.standard_normal((m, k), "float32"), rng.standard_normal((k, n), "float32")
        stored = [a if kinds[0] == AS_IS else a.T.copy(), b if kinds[1] == AS_IS else b.T.copy()]
        exact, results = a.astype("f8") @ b, []
        for sizes in (READ_IN_PLACE, COPIED):
            c = np.full((m, n), np.nan, "f4")
            multiply("float32", unit, sizes, kinds, *stored, c, (m, n, k), 1, 0)
            results.append(c)
        np.testing.assert_array_equal(*results)
        np.testing.assert_allclose(results[0], exact, rtol=0, atol=k * np.finfo("f4").eps * np.abs(exact).max())


def test_blockings_can_be_had():
    """A strip is copied by its first whole tile; blocks of products are whole squares."""
    for sizes in [DEFAULT, *BLOCKINGS.values(), COPIED]:
        assert sizes.copied_rows >= max(unit.tile_rows for unit in UNITS)
        assert sizes.packed_stride & (sizes.packed_stride - 1) == 0
    assert DEPTH % DEPTH_UNIT == 0
    assert all(DEPTH_UNIT % unit.lanes(4) == 0 for unit in UNITS)


# ---------------------------------------------------------------- machine code
def assembly(triple, processor, dtype, unit):
    """The code of the products in the assembly language of another processor."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    function, options = matmul_of(getattr(np, dtype), unit, COPIED), {**OPTIONS, **NO_RUNTIME}
    prepare()
    library = objects.lower(function, "matmul", gemm_types(dtype), options)
    objects.emit(library)
    code = library.get_llvm_str()
    # without what ties them to this processor
    code = re.sub(r"^target datalayout = .*\n", "", code, flags=re.M)
    code = re.sub(r"^target triple = .*$", f'target triple = "{triple}"', code, flags=re.M)
    code = re.sub(r'"target-(cpu|features)"="[^"]*"', "", code)
    machine = llvm.Target.from_triple(triple).create_target_machine(cpu=processor, opt=3)
    return machine.emit_assembly(llvm.parse_assembly(code))


def loops(text):
    """The instructions of every block that jumps to its own beginning."""
    found = []
    for label, body in re.findall(r"^(\.?L\w+):[^\n]*\n((?:(?!\.?L\w+:)[^\n]*\n)*)", text, flags=re.M):
        lines = [line.strip() for line in body.splitlines()]
        ends = [i for i, line in enumerate(lines) if re.match(rf"b\.\w+\s+{re.escape(label)}$", line)]
        if ends:
            found.append(lines[: ends[-1] + 1])
    return found


@pytest.mark.parametrize(
    ("dtype", "shape"), [("float32", "4s"), pytest.param("float64", "2d", marks=pytest.mark.repeats)]
)
def test_neon_keeps_a_tile_in_registers(dtype, shape):
    """The loop of the whole tile: 24 fused multiplications, 11 elements and vectors loaded, nothing spilled."""
    text = assembly("aarch64-unknown-linux-gnu", "neoverse-n1", dtype, NEON)
    tiles = [loop for loop in loops(text) if sum("fmla" in line and f".{shape}" in line for line in loop) == 24]
    tiles = [loop for loop in tiles if not any(line.startswith("st") for line in loop)]  # without the copy of B
    in_tile = min(tiles, key=len)
    assert not [line for line in in_tile if "[sp" in line or "bl\t" in line]
    # q: a vector, d and s: an element
    loaded = sum(2 if line.startswith("ldp") else 1 for line in in_tile if line.startswith("ld"))
    assert loaded == 3 + 8, "\n".join(in_tile)
