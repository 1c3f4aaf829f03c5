"""Kernels on sizes, strides and places drawn at random, against the reference in float64."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
from helpers_cuda import SIMULATED, drawing, require_device, to_device
from hypothesis import given

require_device()
from fastopt.kernels import cuda, reference
from fastopt.kernels.cuda.dense import epilogues, losses, rows
from fastopt.kernels.cuda.dense.blaslt_simulator import decode, encode
from fastopt.kernels.cuda.dense.epilogues import Shape
from fastopt.kernels.cuda.dense.finish import finish
from fastopt.kernels.cuda.runtime.array_interface import gpu_of, see
from fastopt.kernels.cuda.runtime.records import CLOCK, TOTALS
from fastopt.kernels.formulas import ACTIVATIONS, LOSSES
from fastopt.kernels.reference import maths
from fastopt.kernels.spec import LossSpec

pytestmark = pytest.mark.gpu

# Roundings of a result, of the largest number that goes into it: formulas take a few, exp and its like up to 2 ulp.
NEAR = {"float32": 16 * 1.2e-7, "float64": 16 * 2.3e-16, "float16": 2 * 9.8e-4, "bfloat16": 2 * 7.9e-3}
REAL = ("float32", "float64")
HIGHEST, WIDEST = (40, 20) if SIMULATED else (3000, 700)
drawn_sizes = drawing(15)


def at(array):
    return see(array).address


class Rows:
    """A matrix on the device, whose rows have gaps, and which begins so many elements behind an aligned place."""

    def __init__(self, values, kind, gap, shift):
        self.kind, self.shape = kind, values.shape
        self.stride = values.shape[1] + gap
        room = np.full((len(values), self.stride), 77.0)
        room[:, : values.shape[1]] = values
        self.device = to_device(encode(room, kind), shift)
        self.values = self.numbers()

    @property
    def at(self):
        return at(self.device)

    def numbers(self):
        """What is there now, in float64."""
        found = decode(self.device.copy_to_host(), self.kind).astype("float64")
        assert (found[:, self.shape[1] :] == 77).all()  # between rows, nothing was written
        return found[:, : self.shape[1]]


@st.composite
def cases(draw, kinds):
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    shape = draw(st.integers(1, HIGHEST)), draw(st.integers(1, WIDEST))
    kind, gap, shift = draw(st.sampled_from(kinds)), draw(st.sampled_from([0, 1, 8])), draw(st.integers(0, 3))
    return rng, shape, kind, gap, shift


def close(ours, theirs, kind, scale=1.0):
    np.testing.assert_allclose(ours, theirs, rtol=NEAR[kind], atol=NEAR[kind] * scale)


@drawn_sizes
@given(case=cases(REAL), name=st.sampled_from([*LOSSES]))
def test_losses(case, name):
    rng, (count, columns), kind, gap, shift = case
    row = LOSSES[name]
    z = Rows(3 * rng.standard_normal((count, columns)), kind, gap, shift)
    if row.targets == "labels":
        t = rng.integers(0, columns, count)
        there, t_at, t_stride = to_device(t), 0, 1
    else:
        values = rng.random((count, columns))
        values = values / values.sum(axis=1, keepdims=True) if row.by_row else np.where(values < 0.5, -1.0, 1.0)
        there = Rows(values if row.by_row or row.signs else (values + 1) / 2, kind, 2, 0)
        t, t_stride = there.values, there.stride
    t_at = at(there) if row.targets == "labels" else there.at
    dz = Rows(np.zeros((count, columns)), kind, gap, shift)
    param = next((float(value) for value in row.params.values()), 0.0)
    more, clock = to_device(np.array([param, 0.0])), to_device(np.zeros(1, CLOCK).view(np.int64))
    sums = to_device(np.full(losses.loss_tiles(name, count, columns), np.nan))
    gpu, shape = gpu_of({z.at}), Shape(count, columns, z.stride, kind)
    losses.run_loss(gpu, 0, name, z.at, t_at, dz.at, at(sums), at(more), shape, t_stride)
    table = to_device(np.array([(at(sums), sums.size, at(more) + 8, 0)], TOTALS).view(np.int64))
    finish(gpu, 0, at(table), 1, at(clock), 0)
    theirs = np.empty((count, columns))
    mean = reference.loss(LossSpec(name), z.values, t, theirs)
    terms = count if row.by_row else count * columns
    np.testing.assert_allclose(more.copy_to_host()[1] / terms, mean, rtol=NEAR[kind], atol=NEAR[kind])
    close(dz.numbers(), theirs, kind, 1 / count)
    np.testing.assert_array_equal(z.numbers(), z.values)


@drawn_sizes
@given(case=cases(REAL))
def test_softmax(case):
    rng, shape, kind, gap, shift = case
    z, theirs = Rows(5 * rng.standard_normal(shape), kind, gap, shift), np.empty(shape)
    y = Rows(np.zeros(shape), kind, 3, 0)
    losses.run_softmax(gpu_of({z.at}), 0, z.at, y.at, Shape(*shape, z.stride, kind), y.stride)
    reference.activate("softmax", z.values, theirs)
    close(y.numbers(), theirs, kind)


@drawn_sizes
@given(case=cases(tuple(NEAR)), name=st.sampled_from([*ACTIVATIONS]), bias=st.booleans(), sums=st.booleans())
def test_activations_and_slopes(case, name, bias, sums):
    rng, (count, columns), kind, gap, shift = case
    z = Rows(3 * rng.standard_normal((count, columns)), kind, gap, shift)
    y, dz = (Rows(np.zeros((count, columns)), kind, gap, shift) for _ in range(2))
    dy, b = Rows(rng.standard_normal((count, columns)), kind, gap, shift), Rows(np.ones((1, columns)), kind, 0, 0)
    gpu, shape = gpu_of({z.at}), Shape(count, columns, z.stride, kind)
    epilogues.activate(gpu, 0, name, z.at, b.at if bias else 0, y.at, shape)
    theirs, given_z = np.empty((count, columns)), z.numbers()  # z + b, as it was rounded
    close(given_z, z.values + bias, kind, 10)
    reference.activate(name, given_z, theirs)
    close(y.numbers(), theirs, kind)

    s = z if ACTIVATIONS[name].uses == "z" else y
    db = Rows(np.zeros((1, columns)), kind, 0, 0)
    memory = gpu.allocate(epilogues.sums_bytes(shape))
    epilogues.slopes(gpu, 0, name, dy.at, s.at, dz.at, memory.address, db.at if sums else 0, shape)
    gradient = dy.values * maths.ACTIVATIONS[name].slope(s.numbers())
    ours = dz.numbers()
    close(ours, gradient, kind, 4)
    if sums:  # of what was stored
        close(db.numbers()[0], ours.sum(axis=0), kind, np.abs(ours).sum(axis=0).max())


@drawn_sizes
@given(case=cases((*REAL, "float16")), batch=st.integers(1, 50))
def test_gather(case, batch):
    rng, (count, columns), kind, gap, _ = case
    batch = min(batch, count)
    number = rng.integers(0, count // batch)
    x, order = Rows(rng.standard_normal((count, columns)), kind, 0, 0), rng.permutation(count)
    into = Rows(np.zeros((batch, columns)), kind, gap, 0)
    by, clock = to_device(order.astype(np.uint32)), to_device(np.array([(number, 7)], CLOCK).view(np.int64))
    copied = rows.Rows(x.at, into.at, columns, into.stride, kind)
    rows.gather(gpu_of({x.at}), 0, copied, None, at(by), batch, at(clock), batch, count)
    np.testing.assert_array_equal(into.numbers(), x.values[order[number * batch :][:batch]])


@drawn_sizes
@given(sizes=st.lists(st.integers(0, 20 * HIGHEST), min_size=1, max_size=4), shift=st.integers(0, 3), data=st.data())
def test_norms(sizes, shift, data):
    dtype = data.draw(st.sampled_from(REAL))
    gradients = [np.random.default_rng(i).standard_normal(size).astype(dtype) for i, size in enumerate(sizes)]
    ours = cuda.gradient_norm([to_device(g, shift) for g in gradients])
    theirs = np.sqrt(sum((g.astype("float64") ** 2).sum() for g in gradients))
    np.testing.assert_allclose(ours, theirs, rtol=1e-13)
