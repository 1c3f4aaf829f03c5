"""Tiles of products as LLVM's instructions, run on the host, and compared with the simulator's stand-ins."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace

import llvmlite.binding as llvm
import numpy as np
import pytest
from helpers_cuda import require_compiler

require_compiler()
from llvmlite import ir
from numba import cuda

from fastopt.kernels.cuda.fused import tiles

i64 = ir.IntType(64)
SCALARS = {"float32": ir.FloatType(), "float64": ir.DoubleType()}


def on_host(intrinsic, kind, sums, integers):
    """The instructions of an intrinsic (tuple of sums, integers...) as a function of addresses: sums in, sums out.

    On the host all addresses are alike, those of shared memory, too.
    """
    scalar, types = SCALARS[kind], cuda.types
    _, codegen = intrinsic._defn(None, types.UniTuple(getattr(types, kind), sums), *[types.int64] * integers)
    module = ir.Module()
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [scalar.as_pointer()] + [i64] * integers), "run")
    builder = ir.IRBuilder(function.append_basic_block())
    first, *rest = function.args
    places = [builder.gep(first, [i64(i)]) for i in range(sums)]
    given = ir.Constant(ir.ArrayType(scalar, sums), ir.Undefined)
    for i, place in enumerate(places):
        given = builder.insert_value(given, builder.load(place), i)
    found = []
    context = SimpleNamespace(
        get_value_type=lambda _: scalar,
        make_tuple=lambda builder, kind, values: found.extend(values),
        get_dummy_value=lambda: None,
    )
    codegen(context, builder, SimpleNamespace(return_type=None), [given, *rest])
    for place, value in zip(places, found, strict=False):
        builder.store(value, place)
    builder.ret_void()
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    engine = llvm.create_mcjit_compiler(
        llvm.parse_assembly(str(module)), llvm.Target.from_default_triple().create_target_machine()
    )
    engine.finalize_object()
    run = ctypes.CFUNCTYPE(None, ctypes.c_void_p, *[ctypes.c_int64] * integers)(engine.get_function_address("run"))
    return run, engine  # which owns the code


def aligned(values):
    room = np.zeros(values.size + 8, values.dtype)
    start = -room.ctypes.data % 16 // room.itemsize
    room[start : start + values.size] = values.reshape(-1)
    return room[start : start + values.size].reshape(values.shape)


CASES = [(kind, t, a, b) for kind in SCALARS for t in (2, 4) for a in (True, False) for b in (True, False)]


@pytest.mark.parametrize(("kind", "t", "a_along", "b_along"), CASES)
def test_terms(kind, t, a_along, b_along):
    rng = np.random.default_rng(0)
    a, b = (aligned(rng.random((8, 12)).astype(kind)) for _ in range(2))
    sums = rng.random(t * t).astype(kind)
    gap, step = a.strides[0], 2 if a_along else 1
    left = a[: t * step : step, :4] if a_along else a[:4, :t].T
    right = b[:t, :4] if b_along else b[:4, :t].T
    wanted = sums.reshape(t, t) + left.astype("float64") @ right.astype("float64").T
    run, _engine = on_host(tiles._compiled_terms(kind, t, a_along, b_along), kind, t * t, 4)
    theirs = tiles._simulated_terms(kind, t, a_along, b_along)(
        tuple(sums), a.ctypes.data, gap * step, b.ctypes.data, gap
    )
    run(sums.ctypes.data, a.ctypes.data, gap * step, b.ctypes.data, gap)
    for found in (sums, np.array(theirs)):
        np.testing.assert_allclose(found.reshape(t, t), wanted, rtol=1e-6 if kind == "float32" else 1e-14)


@pytest.mark.parametrize("along", [True, False])
@pytest.mark.parametrize("t", [2, 4])
@pytest.mark.parametrize("kind", SCALARS)
def test_stores(kind, t, along):
    sums = np.arange(1, t * t + 1).astype(kind)
    step = 3 if along else 1
    wanted = np.zeros((8, 12), kind)
    wanted[: 2 * t : 2, : t * step : step] = sums.reshape(t, t)
    run, _engine = on_host(tiles._compiled_store(kind, t, along), kind, t * t, 3)
    simulated = tiles._simulated_store(kind, t, along)
    for store in (
        lambda at, row, column: run(sums.ctypes.data, at, row, column),
        lambda at, row, column: simulated(tuple(sums), at, row, column),
    ):
        c = aligned(np.zeros((8, 12), kind))
        store(c.ctypes.data, 2 * c.strides[0], step * c.itemsize)
        np.testing.assert_array_equal(c, wanted)
