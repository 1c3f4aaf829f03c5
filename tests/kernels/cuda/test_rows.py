"""Gathering batches and dropout on the device."""

from __future__ import annotations

import numpy as np
import pytest
from helpers_cuda import require_device, to_device

require_device()
from fastopt.kernels.cuda.dense import rows
from fastopt.kernels.cuda.dense.stored import Layout
from fastopt.kernels.cuda.runtime.array_interface import gpu_of, see
from fastopt.kernels.cuda.runtime.records import CLOCK, DROPOUT
from fastopt.kernels.formulas import dropout_stream
from fastopt.kernels.reference.maths import kept
from fastopt.kernels.sources import STORED, Source, Stage, stages_table

pytestmark = pytest.mark.gpu


def at(array):
    return see(array).address


def clock_at(batch, ever=0):
    return to_device(np.array([(batch, ever)], CLOCK).view(np.int64))


# Rows of whole vectors of 16 bytes and others, without and with gaps between those of the batch.
@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize(("columns", "stride"), [(8, 8), (8, 16), (5, 8), (1, 1), (7, 7)])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int64"])
def test_gather_one_array(dtype, columns, stride, shift):
    rng = np.random.default_rng(0)
    host = rng.integers(0, 1000, (23, columns)).astype(dtype)
    stored = "uint16" if dtype == "float16" else dtype
    x, order = to_device(host.view(stored), shift), rng.permutation(23).astype("uint32")
    on_device = to_device(order)
    gpu = gpu_of({at(x)})
    for number, count in ((0, 9), (1, 9), (2, 5)):
        for by in (on_device, None):
            into = to_device(np.full((9, stride), 77, stored))
            copied, address = rows.Rows(at(x), at(into), columns, stride, dtype), at(by) if by is not None else 0
            ring = 23 if number < 2 or by is not None else 18
            rows.gather(gpu, 0, copied, None, address, count, at(clock_at(number)), 9, ring)
            wanted = (order if by is not None else np.arange(23))[number * 9 % ring :][:count]
            found = into.copy_to_host()
            np.testing.assert_array_equal(found[:count, :columns].view(dtype), host[wanted])
            assert (found[count:] == 77).all()
            assert (found[:, columns:] == 77).all()


# Each of the two is copied in vectors or in single elements, as its own addresses and columns allow.
@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("y_columns", [0, 1, 3, 4])
@pytest.mark.parametrize("x_columns", [5, 8])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_gather_features_and_targets(dtype, x_columns, y_columns, shift):
    rng = np.random.default_rng(0)
    x, order = rng.standard_normal((23, x_columns)).astype(dtype), rng.permutation(23).astype("uint32")
    y = rng.standard_normal((23, y_columns)).astype(dtype) if y_columns else rng.integers(0, 9, (23, 1))
    on_device, by, gpu = [to_device(x), to_device(y, shift)], to_device(order), gpu_of(())
    for number, count in ((0, 9), (2, 5)):
        for address in (at(by), 0):
            into = [to_device(np.full((9, 8), 77, a.dtype)) for a in (x, y)]
            copied = [
                rows.Rows(at(a), at(to), host.shape[1], 8, host.dtype.name)
                for a, to, host in zip(on_device, into, (x, y), strict=True)
            ]
            rows.gather(gpu, 0, *copied, address, count, at(clock_at(number)), 9, 23)
            wanted = (order if address else np.arange(23))[number * 9 :][:count]
            for to, host in zip(into, (x, y), strict=True):
                found = to.copy_to_host()
                np.testing.assert_array_equal(found[:count, : host.shape[1]], host[wanted])
                assert (found[count:] == 77).all()
                assert (found[:, host.shape[1] :] == 77).all()


EXTREMES = [0, 1, 200, -3, 2**31, -(2**63), 2**64 - 1, 0.1, 1e-7, 65504.0, 1e300, -1e-300, np.inf, np.nan]


def stored_rows(stored):
    """Rows of extreme values of a dtype, (23, 5)."""
    if stored == "bool" or stored[0] in "ui":
        info = np.iinfo("uint8" if stored == "bool" else stored)
        values = [v for v in EXTREMES if isinstance(v, int) and info.min <= v <= (1 if stored == "bool" else info.max)]
    else:
        with np.errstate(over="ignore"):
            values = np.array(EXTREMES, "float64").astype(stored)
    return np.resize(np.array(values, stored), (23, 5))


@pytest.mark.parametrize("kinds", [(), (False, True)], ids=["as stored", "prepared"])
@pytest.mark.parametrize(("stored", "dtype", "compute"), [
    *((stored, dtype, dtype) for stored in STORED for dtype in ("float32", "float64")),
    ("uint8", "float32", "bfloat16"), ("float64", "float32", "bfloat16"),
])  # fmt: skip
def test_gather_stored(stored, dtype, compute, kinds):
    """The numbers of `Source.take`; those of 16 bits are rounded from float32."""
    rng, host = np.random.default_rng(0), stored_rows(stored)
    stages = tuple(Stage(divides, rng.random(5), rng.random(5)) for divides in kinds)
    source, order = Source(host, stages), rng.permutation(23).astype("uint32")
    wanted = source.take(order[9:18], np.dtype(dtype))
    table, layout = stages_table(source), Layout(stored, kinds)
    x, by = to_device(host.view("uint8")), to_device(order)
    factors = to_device(np.zeros(1) if table is None else table)
    into = to_device(np.full((9, 8), 77, "uint16" if compute == "bfloat16" else dtype))
    copied, gpu = rows.Rows(at(x), at(into), 5, 8, compute), gpu_of({at(x)})
    rows.gather_stored(gpu, 0, copied, layout, at(factors), dtype, at(by), 9, at(clock_at(1)), 9, 23)
    found = into.copy_to_host()
    assert (found[:, 5:] == 77).all()
    found, finite = found[:, :5], np.isfinite(wanted)
    if compute == "bfloat16":
        found = (found.astype("uint32") << 16).view("float32")
        # to nearest: half of the last of 8 bits
        assert (np.abs(found[finite] - wanted[finite]) <= np.abs(wanted[finite]) * 2.0**-8).all()
    else:
        np.testing.assert_array_equal(found, wanted)
    np.testing.assert_array_equal(found[~finite], wanted[~finite])


@pytest.mark.parametrize("rate", [0.0, 0.3, 0.5, 0.97])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("columns", "strides"), [(7, (8, 9)), (4, (8, 12))])  # single numbers, and vectors
def test_dropout_has_the_references_masks(columns, strides, dtype, rate):
    count, seed, layer, done = 13, 2**63 + 5, 2, 40
    x = np.random.default_rng(1).standard_normal((count, columns)).astype(dtype)
    record = np.array([(1 / (1 - rate), int(rate * 2**53), dropout_stream(seed, layer))], DROPOUT)
    settings, clock = to_device(record.view(np.int64)), clock_at(3, done)
    room = np.full((count, 8), 77, dtype)
    room[:, :columns] = x
    here, into = to_device(room), to_device(np.full((count, strides[1]), 77, dtype))
    gpu, sizes = gpu_of({at(here)}), (count, columns)
    rows.dropout(gpu, 0, at(here), at(into), *sizes, *strides, dtype, at(clock), at(settings))
    T = np.dtype(dtype).type
    want = np.where(kept(seed, layer, done + 1, sizes, rate), x * T(1 / (1 - rate)), T(0))
    np.testing.assert_array_equal(into.copy_to_host()[:, :columns], want)
    assert (into.copy_to_host()[:, columns:] == 77).all()
    rows.dropout(gpu, 0, at(here), at(here), *sizes, 8, 8, dtype, at(clock), at(settings))
    np.testing.assert_array_equal(here.copy_to_host()[:, :columns], want)


@pytest.mark.parametrize(("columns", "stride"), [(8, 8), (8, 16), (5, 8), (1, 1)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_scatter(dtype, columns, stride):
    y = np.random.default_rng(0).standard_normal((9, stride)).astype(dtype)
    here = to_device(y)
    for ring, number, count, place in ((23, 0, 9, 0), (23, 2, 5, 18), (18, 3, 9, 9), (18, 2, 5, 0)):
        out = to_device(np.full((ring, columns), 77, dtype))
        copied = rows.Rows(at(here), at(out), columns, stride, dtype)
        rows.scatter(gpu_of({at(here)}), 0, copied, count, at(clock_at(number)), 9, ring)
        found = out.copy_to_host()
        np.testing.assert_array_equal(found[place : place + count], y[:count, :columns])
        found[place : place + count] = 77
        assert (found == 77).all()
