"""Sources on the device: rows are converted as they are gathered, and give the bits of rows prepared beforehand."""

from __future__ import annotations

import numpy as np
import pytest
from helpers_cuda import require_device

require_device()
from helpers_network import Run

from fastopt.kernels import cuda
from fastopt.kernels.cuda.fused import select
from fastopt.kernels.cuda.training import data_feed
from fastopt.kernels.sources import Source, SparseRows, Stage
from fastopt.kernels.spec import DenseSpec, DropoutSpec

pytestmark = pytest.mark.gpu

ROWS, INPUTS = 11, 3
LAYERS = [DropoutSpec(0.3), DenseSpec(INPUTS, 3, "tanh"), DenseSpec(3, 2)]
RNG = np.random.default_rng(0)
VALUES = RNG.integers(0, 256, (ROWS, INPUTS)).astype(np.uint8)
FACTOR, TERM, DIVISOR = np.full(INPUTS, 1 / 255), np.array([0.0, 0.5, -0.5]), RNG.random(INPUTS)
STAGES = Stage(False, FACTOR, TERM), Stage(True, DIVISOR, np.ones(INPUTS))
PREPARED = ((VALUES * FACTOR + TERM) - 1) / DIVISOR


def sparse():
    rows, columns = np.nonzero(VALUES > 100)
    starts = np.searchsorted(rows, np.arange(ROWS + 1))
    return SparseRows(VALUES[rows, columns], columns, starts, INPUTS), np.where(VALUES > 100, VALUES, 0)


def sparse_as(dtype, index):
    """Sparse rows of a dtype, of which the first is empty, and their dense matrix."""
    rows, dense = sparse()
    first, starts = rows.starts[1], np.maximum(rows.starts - rows.starts[1], 0)
    values, columns = rows.stored[first:].astype(dtype), rows.columns[first:].astype(index)
    few = SparseRows(values, columns, starts.astype(index), INPUTS)
    return few, dense * (np.arange(ROWS) > 0)[:, None]


SOURCES = {
    "bytes": (Source(VALUES, STAGES), PREPARED),
    "doubles columns first": (Source(np.asfortranarray(VALUES.astype(float))), VALUES),
    "sparse": (Source(sparse()[0]), sparse()[1]),
    "sparse doubles": (Source(sparse_as("f8", "i4")[0]), sparse_as("f8", "i4")[1]),
    "sparse floats": (Source(sparse_as("f4", "i8")[0]), sparse_as("f4", "i8")[1]),
    "sparse, prepared": (Source(sparse()[0], STAGES), ((sparse()[1] * FACTOR + TERM) - 1) / DIVISOR),
    "no values": (Source(SparseRows(np.zeros(0), np.zeros(0, "i4"), np.zeros(ROWS + 1, "i4"), INPUTS)), 0 * VALUES),
}


def outcome(x, dtype, compute=None):
    y = np.random.default_rng(1).standard_normal((ROWS, 2)).astype(dtype)
    weights, order = np.random.default_rng(2).random(ROWS).astype(dtype), np.array([9, 3, 3, 0, 7], np.uint32)
    run = Run(cuda, LAYERS, "mean_squared_error", ["r2"], dtype, compute=compute)
    losses = [run.train(x, y, np.random.default_rng(i).permutation(ROWS)[1:], 4).losses for i in range(2)]
    evaluated = [run.net.evaluate(x, y, 4, *more) for more in ((), (None, order), (weights, order))]
    predicted = run.net.predict(x, 4), run.net.predict(x, 4, order)
    return [*losses, *run.params, *predicted, *(part for found in evaluated for part in (found.losses, found.metrics))]


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(("kind", "dtype", "compute"), [
    ("bytes", "float32", None), ("bytes", "float64", None), ("bytes", "float32", "bfloat16"),
    ("doubles columns first", "float32", None), ("sparse", "float32", None), ("sparse doubles", "float32", "bfloat16"),
    ("sparse floats", "float32", None), ("sparse, prepared", "float64", None), ("no values", "float32", None),
])  # fmt: skip
def test_the_bits_are_those_of_prepared_rows(kind, dtype, compute, streamed, monkeypatch):
    if streamed:
        monkeypatch.setattr(data_feed, "MEMORY_SHARE", 0)
        monkeypatch.setattr(data_feed, "PART_BYTES", 100)
    monkeypatch.setattr("fastopt.kernels.sources.BLOCK", 2 * INPUTS)  # two rows at a time
    source, by_hand = SOURCES[kind]
    expected = outcome(np.ascontiguousarray(by_hand, dtype), dtype, compute)
    for a, b in zip(outcome(source, dtype, compute), expected, strict=True):
        np.testing.assert_equal(a, b)


def test_the_device_has_the_values_as_they_are(monkeypatch):
    """No copy in the network's dtype; of sparse rows the three arrays, and their addresses."""
    net, y = Run(cuda, LAYERS, "mean_squared_error", [], "float32").net, np.ones((ROWS, 2), "float32")
    allocate, sizes = type(net.gpu).allocate, []
    monkeypatch.setattr(type(net.gpu), "allocate", lambda self, size: sizes.append(size) or allocate(self, size))
    for kind, (source, _) in SOURCES.items():
        sizes.clear()
        with net.gpu.active():
            found = data_feed.feed(net.gpu, net.stream.handle, source, y, 4, 0, np.dtype("float32"))
        assert not found.streamed
        if isinstance(source.values, SparseRows):
            arrays = source.values.stored, source.values.columns, source.values.starts
            assert sizes == [*(max(1, array.nbytes) for array in arrays), 24, y.nbytes], kind
        else:
            assert sizes == [VALUES.size * source.dtype.itemsize, y.nbytes], kind


def test_sparse_rows_are_not_for_the_one_kernel(monkeypatch):
    monkeypatch.setenv("FASTOPT_CUDA_FUSED", "1")
    chosen, choose = [], select.choose
    monkeypatch.setattr(select, "choose", lambda *args: chosen.append(choose(*args)) or chosen[-1])
    run = Run(cuda, LAYERS, "mean_squared_error", [], "float32")
    run.train(SOURCES["sparse"][0], np.ones((ROWS, 2), "float32"), np.arange(ROWS), 4)
    assert chosen == [None]


@pytest.mark.parametrize("kind", ["bytes", "doubles columns first"])
def test_small_networks_are_trained_by_one_kernel(kind, monkeypatch):
    """It converts and prepares rows as the launches do, to the bits of rows prepared beforehand."""
    monkeypatch.setenv("FASTOPT_CUDA_FUSED", "1")
    chosen, choose = [], select.choose
    monkeypatch.setattr(select, "choose", lambda *args: chosen.append(choose(*args)) or chosen[-1])
    (source, by_hand), found = SOURCES[kind], []
    for x in (source, np.ascontiguousarray(by_hand, "float32")):
        run = Run(cuda, LAYERS, "mean_squared_error", [], "float32")
        order = np.random.default_rng(0).permutation(ROWS)[1:]
        found.append([run.train(x, np.ones((ROWS, 2), "float32"), order, 4).losses, *run.params])
    assert [choice.kind.x is None for choice in chosen] == [False, True]
    for a, b in zip(*found, strict=True):
        np.testing.assert_equal(a, b)


def test_chosen_rows_are_those_rows_alone():
    x, y = VALUES.astype("float32"), RNG.standard_normal((ROWS, 2)).astype("float32")
    net, order = Run(cuda, LAYERS, "mean_squared_error", [], "float32").net, np.array([9, 3, 0, 7], np.uint32)
    assert net.evaluate(x, y, 3, None, order).losses == net.evaluate(x[order], y[order], 3).losses
    np.testing.assert_array_equal(net.predict(x, 3, order), net.predict(x, 3)[order])


def test_rows_beyond_32_bits_are_streamed(monkeypatch):
    monkeypatch.setattr(data_feed, "NUMBERED_ROWS", ROWS - 1)
    run = Run(cuda, LAYERS, "mean_squared_error", [], "float32")
    x, y = VALUES.astype("float32"), np.ones((ROWS, 2), "float32")
    assert data_feed.feed(run.net.gpu, run.net.stream.handle, x, y, 4, 0).streamed
    monkeypatch.setattr(data_feed, "NUMBERED_ROWS", ROWS)
    assert not data_feed.feed(run.net.gpu, run.net.stream.handle, x, y, 4, 0).streamed
