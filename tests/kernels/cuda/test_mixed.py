"""Between float32 and 16 bits on the device: bit for bit the reference's roundings, wherever rows lie."""

from __future__ import annotations

import numpy as np
import pytest
from helpers_cuda import require_device, to_device

require_device()
from fastopt.kernels.cuda.dense import rows
from fastopt.kernels.cuda.dense.mixed import narrow
from fastopt.kernels.cuda.runtime.array_interface import gpu_of, see
from fastopt.kernels.cuda.runtime.records import CLOCK, DROPOUT
from fastopt.kernels.formulas import dropout_stream
from fastopt.kernels.reference.bits16 import store, widened
from fastopt.kernels.reference.maths import kept

pytestmark = pytest.mark.gpu

ODD = [0.0, -0.0, np.inf, -np.inf, 1e-39, -1e-40, 3.4e38, 1 + 2**-8, 1 + 3 * 2**-8]


def at(array):
    return see(array).address


def clock_at(batch, ever=0):
    return to_device(np.array([(batch, ever)], CLOCK).view(np.int64))


def as_16bit(x):
    into = np.zeros(x.shape, np.uint16)
    store(np.ascontiguousarray(x, np.float32), into)
    return into


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("size", [1, 8, 13, 2050])
def test_narrow(size, shift):
    x = np.random.default_rng(0).standard_normal(size).astype("float32")
    x[: len(ODD)] = ODD[:size]
    here, into = to_device(x, shift), to_device(np.full(size + 8, 77, np.uint16))
    narrow(gpu_of({at(here)}), 0, "bfloat16", at(here), at(into), size)
    found = into.copy_to_host()
    np.testing.assert_array_equal(found[:size], as_16bit(x))
    assert (found[size:] == 77).all()


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize(("columns", "stride"), [(8, 8), (8, 16), (5, 8), (1, 1)])
def test_gather(columns, stride, shift):
    rng = np.random.default_rng(0)
    host = rng.standard_normal((23, columns)).astype("float32")
    x, order = to_device(host, shift), rng.permutation(23).astype("uint32")
    on_device, gpu = to_device(order), gpu_of({at(x)})
    for number, count in ((0, 9), (2, 5)):
        for by in (on_device, None):
            into = to_device(np.full((9, stride), 77, np.uint16))
            copied, address = rows.Rows(at(x), at(into), columns, stride, "bfloat16"), at(by) if by is not None else 0
            rows.gather_narrow(gpu, 0, copied, address, count, at(clock_at(number)), 9, 23)
            wanted = (order if by is not None else np.arange(23))[number * 9 % 23 :][:count]
            found = into.copy_to_host()
            np.testing.assert_array_equal(found[:count, :columns], as_16bit(host[wanted]))
            assert (found[count:] == 77).all()
            assert (found[:, columns:] == 77).all()


def test_dropout():
    count, columns, seed, layer, done, rate = 13, 7, 2**63 + 5, 2, 40, 0.3
    x = as_16bit(np.random.default_rng(1).standard_normal((count, columns)))
    record = np.array([(1 / (1 - rate), int(rate * 2**53), dropout_stream(seed, layer))], DROPOUT)
    settings, clock = to_device(record.view(np.int64)), clock_at(3, done)
    room = np.full((count, 8), 77, np.uint16)
    room[:, :columns] = x
    here = to_device(room)
    sizes = count, columns, 8, 8, "bfloat16"
    rows.dropout(gpu_of({at(here)}), 0, at(here), at(here), *sizes, at(clock), at(settings))
    scaled = as_16bit(widened(x) * np.float32(1 / (1 - rate)))
    want = np.where(kept(seed, layer, done + 1, (count, columns), rate), scaled, 0)
    np.testing.assert_array_equal(here.copy_to_host()[:, :columns], want)
    assert (here.copy_to_host()[:, columns:] == 77).all()
