"""Sources of any dtype and layout: the batches of every backend are those of rows prepared beforehand, to the bit."""

from __future__ import annotations

import re

import numpy as np
import pytest
from helpers_network import Run
from hypothesis import given, settings
from hypothesis import strategies as st

from fastopt.kernels import cpu, reference
from fastopt.kernels.cpu.dense import layer
from fastopt.kernels.cpu.dense.gather import Layout, gather_kernel, layout_of
from fastopt.kernels.cpu.runtime.compile import Kernel
from fastopt.kernels.cpu.runtime.primitives import INTERPRETED
from fastopt.kernels.formulas import OPTIMIZERS
from fastopt.kernels.sources import STORED, Source, SparseRows, Stage
from fastopt.kernels.spec import Batches, DenseSpec, DropoutSpec, OptimizerSteps, Shuffle

BACKENDS = {"cpu": cpu, "numpy": reference}
ROWS, INPUTS = 13, 5
MSE = "mean_squared_error"
RNG = np.random.default_rng(0)
CHAINS = {"none": (), "m": (False,), "d": (True,), "mdm": (False, True, False)}


def values_of(dtype, shape=(ROWS, INPUTS), seed=0):
    """Numbers of a dtype, its least and its largest among them where the network's dtype has room for them."""
    rng, kind = np.random.default_rng(seed), np.dtype(dtype).kind
    if kind == "f":
        return (rng.standard_normal(shape) * 3).astype(dtype)
    if kind == "b":
        return rng.integers(0, 2, shape).astype(bool)
    info = np.iinfo(dtype)
    found = rng.integers(info.min, info.max, shape, dtype=dtype, endpoint=True)
    found[0, :2] = info.min, info.max
    return found


def stages_of(kinds, inputs=INPUTS):
    rng = np.random.default_rng(1)
    return tuple(Stage(divides, rng.random(inputs) + 0.5, rng.standard_normal(inputs)) for divides in kinds)


def by_hand(values, stages, dtype):
    """Rows in the network's dtype, by the formulas."""
    if not stages:
        return np.array(values, dtype)
    rows = np.array(values, np.float64)
    for divides, factor, term in stages:
        rows = (rows - term) / factor if divides else rows * factor + term
    return rows.astype(dtype)


def laid_out(values, how):
    """The same numbers in another layout."""
    if how == "rows apart":
        wide = np.zeros((len(values), values.shape[1] + 3), values.dtype)
        wide[:, 1 : 1 + values.shape[1]] = values
        return wide[:, 1 : 1 + values.shape[1]]
    if how == "columns first":
        return np.asfortranarray(values)
    if how == "backwards":
        return values[::-1, ::-1].copy()[::-1, ::-1]
    if how == "every other column":
        return np.repeat(values, 2, axis=1)[:, ::2]
    if how == "swapped":
        return values.astype(values.dtype.newbyteorder("S"))
    if how == "unaligned":
        memory = np.zeros(values.nbytes + 1, np.uint8)
        found = memory[1:].view(values.dtype).reshape(values.shape)
        found[...] = values
        return found
    return values


LAYOUTS = ["plain", "rows apart", "columns first", "backwards", "every other column", "swapped", "unaligned"]


def run_of(backend, dtype, layers=None, compute=None):
    layers = layers or [DropoutSpec(0.2), DenseSpec(INPUTS, 4, "tanh"), DenseSpec(4, 3)]
    return Run(BACKENDS[backend], layers, MSE, [], dtype, compute=compute)


def outcome(backend, x, dtype, order, compute=None):
    """All that comes of training, evaluation and prediction on x, in batches of 4."""
    y = np.random.default_rng(3).standard_normal((len(x), 3)).astype(dtype)
    run = run_of(backend, dtype, compute=compute)
    trained = run.train(x, y, order, 4)
    rows = order[: len(order) // 2 + 1].astype(np.uint32)
    whole, some = run.net.evaluate(x, y, 5), run.net.evaluate(x, y, 5, None, rows)
    return [
        trained.losses, *run.params, whole.losses, some.losses, run.net.predict(x, 6), run.net.predict(x, 6, rows)
    ]  # fmt: skip


def check(backend, values, stages, dtype="float32", compute=None, layout="plain"):
    """A source and rows prepared beforehand give the same bits."""
    order = np.random.default_rng(2).permutation(len(values))[1:].astype(np.uint32)
    expected = outcome(backend, by_hand(values, stages, dtype), dtype, order, compute)
    found = outcome(backend, Source(laid_out(values, layout), stages), dtype, order, compute)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


# each stored dtype once with a network of each dtype, and every chain several times; a quick run has one integer
# of each width, signed and unsigned in turn
QUICK = {"bool", "int8", "uint16", "int32", "uint64", "float16", "float32", "float64"}
CASES = [
    pytest.param(
        stored,
        dtype,
        list(CHAINS)[(i + j) % len(CHAINS)],
        marks=[pytest.mark.repeats] * (dtype == "float64" or stored not in QUICK),
    )
    for j, dtype in enumerate(("float32", "float64"))
    for i, stored in enumerate(STORED)
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("stored", "dtype", "chain"), CASES)
def test_every_stored_dtype(backend, stored, dtype, chain):
    check(backend, values_of(stored), stages_of(CHAINS[chain]), dtype)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", LAYOUTS[1:])
def test_every_layout(backend, layout):
    check(backend, values_of("int16"), stages_of((False,)), layout=layout)


@pytest.mark.parametrize("stored", ["float16", "float64", pytest.param("uint8", marks=pytest.mark.repeats)])
def test_other_byte_orders(stored):
    check("cpu", values_of(stored), (), layout="swapped")


def test_batches_of_bfloat16():
    """float64 is rounded to float32, as beforehand, and then to bfloat16."""
    check("numpy", values_of("float64"), stages_of((True,)), compute="bfloat16")
    if not cpu.bfloat16_refusal():
        check("cpu", values_of("float64"), stages_of((True,)), compute="bfloat16")


@pytest.fixture
def splits(monkeypatch):
    """A first layer of many inputs sums up parts of its columns, which are gathered apart."""
    monkeypatch.setattr(layer, "SPLIT_FLOPS", 0)
    assert layer.splits_of(40, 200, 3)[0] > 1


def test_columns_of_splits(splits):
    values, inputs = values_of("uint8", (40, 200)), 200
    layers, stages = [DenseSpec(inputs, 3, "tanh")], stages_of((False,), inputs)
    found = []
    for x in (Source(values, stages), by_hand(values, stages, "float32")):
        run = run_of("cpu", "float32", layers)
        found.append([run.train(x, np.ones((40, 3), "float32"), np.arange(40)[::-1].copy(), 40).losses, *run.params])
    for a, b in zip(*found, strict=True):
        np.testing.assert_array_equal(a, b)


@given(
    rows=st.integers(1, 40), inputs=st.integers(1, 70), batch=st.integers(1, 9), wide=st.booleans(),
    stored=st.sampled_from(["uint8", "float64"]), chain=st.sampled_from(["none", "d"]), data=st.data(),
)  # fmt: skip
@settings(max_examples=15, deadline=None)
def test_random_sizes(rows, inputs, batch, wide, stored, chain, data):
    rng = np.random.default_rng(rows)
    values, stages = values_of(stored, (rows, inputs + 2))[:, 1:-1], stages_of(CHAINS[chain], inputs)
    order = rng.permutation(rows)[: data.draw(st.integers(1, rows))].astype(np.int64 if wide else np.uint32)
    y, layers = rng.standard_normal((rows, 2)).astype("float32"), [DenseSpec(inputs, 2)]
    for backend in BACKENDS:
        found = []
        for x in (Source(values, stages), by_hand(values, stages, "float32")):
            run = run_of(backend, "float32", layers)
            found.append([run.train(x, y, order, batch).losses, run.net.predict(x, batch), *run.params])
        for a, b in zip(*found, strict=True):
            np.testing.assert_array_equal(a, b)


def test_programs_know_their_layouts():
    """A network goes from one kind of source to the next and back."""
    values, stages = values_of("uint8"), stages_of((False,))
    kinds = [Source(values), Source(values, stages), Source(values.astype("int16")), by_hand(values, (), "float32")]
    y, order = np.ones((ROWS, 3), "float32"), np.arange(ROWS, dtype=np.uint32)
    for backend in BACKENDS:
        whole = run_of(backend, "float32")
        for x in [*kinds, *kinds[::-1]]:
            rows = x.take(slice(None), np.dtype("float32")) if isinstance(x, Source) else x
            np.testing.assert_array_equal(whole.net.predict(x, 4), whole.net.predict(rows, 4))
            assert whole.net.evaluate(x, y, 4).losses == whole.net.evaluate(rows, y, 4).losses
            losses = []
            for data in (x, rows):
                before = [p.copy() for p in whole.params]
                losses.append(whole.train(data, y, order, 4).losses)
                for p, b in zip(whole.params, before, strict=True):
                    p[...] = b
                for state in sum(whole.states, ()):
                    state[...] = 0
                whole.step = 0
            np.testing.assert_array_equal(*losses)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("wide", [False, True])
def test_weights_of_chosen_rows(backend, wide):
    """An evaluation of some rows with weights is that of these rows alone, with theirs."""
    x, order = values_of("float32"), np.array([7, 2, 2, 11, 0], np.int64 if wide else np.uint32)
    y, weights = RNG.standard_normal((ROWS, 3)).astype("float32"), RNG.random(ROWS).astype("float32")
    net = run_of(backend, "float32").net
    some, alone = net.evaluate(x, y, 3, weights, order), net.evaluate(x[order], y[order], 3, weights[order])
    assert some.losses == alone.losses != net.evaluate(x, y, 3, weights).losses


def test_the_stages_change_what_is_trained():
    values, order = values_of("uint8"), np.arange(ROWS, dtype=np.uint32)
    for backend in BACKENDS:
        scaled, plain = (outcome(backend, Source(values, s), "float32", order) for s in (stages_of((True,)), ()))
        assert not np.allclose(scaled[0], plain[0])


@pytest.mark.skipif(INTERPRETED, reason="nothing is compiled")
def test_the_loop_over_bytes_is_vectorised(monkeypatch, tmp_path):
    monkeypatch.setattr(Kernel, "names", {})
    monkeypatch.setenv("FASTOPT_CACHE_DIR", str(tmp_path))  # what is loaded from the cache cannot be looked into
    made = gather_kernel.__wrapped__(Layout("uint8", stages=(False,)), "float32", "uint32")
    assert made.address
    assert re.search(r"fmul <\d+ x double>", made.llvm())
    assert not re.search(r"fma|fmuladd", made.llvm())


def test_names_of_kernels_tell_layouts_apart():
    layouts = [
        layout_of(Source(laid_out(values_of("int16"), how), stages_of(kinds)))
        for how in LAYOUTS for kinds in CHAINS.values()
    ]  # fmt: skip
    layouts += [Layout("int16", index) for index in ("int32", "int64")]
    assert len({layout.name for layout in layouts}) == len(set(layouts))


# ---------------------------------------------------------------- sparse rows
def sparse_of(values, index="int32"):
    """Rows whose zeros are not stored; their columns in a random order."""
    rng, columns, starts = np.random.default_rng(4), [], [0]
    for row in values:
        columns.append(rng.permutation(np.flatnonzero(row)))
        starts.append(starts[-1] + len(columns[-1]))
    stored = np.concatenate([row[some] for row, some in zip(values, columns, strict=True)])
    return SparseRows(stored, np.concatenate(columns).astype(index), np.array(starts, index), values.shape[1])


def sparse_values(stored, shape=(ROWS, INPUTS)):
    values = values_of(stored, shape)
    values[np.random.default_rng(5).random(shape) < 0.7] = 0
    values[3] = 0  # a row without any
    return values


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("stored", "index", "chain"), [
    ("float32", "int32", "none"), ("float64", "int64", "mdm"), ("uint8", "int32", "d"), ("bool", "int64", "none"),
])  # fmt: skip
def test_sparse_rows(backend, stored, index, chain):
    values, stages = sparse_values(stored), stages_of(CHAINS[chain])
    order = np.random.default_rng(2).permutation(ROWS)[1:].astype(np.uint32)
    rows = sparse_of(values, index)
    np.testing.assert_array_equal(rows[:], values)
    np.testing.assert_array_equal(rows[order], values[order])
    expected = outcome(backend, by_hand(values, stages, "float32"), "float32", order)
    for a, b in zip(outcome(backend, Source(rows, stages), "float32", order), expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_columns_of_splits_of_sparse_rows(splits):
    values, inputs = sparse_values("float32", (40, 200)), 200
    layers, found = [DenseSpec(inputs, 3, "tanh")], []
    for x in (Source(sparse_of(values)), values):
        run = run_of("cpu", "float32", layers)
        found.append([run.train(x, np.ones((40, 3), "float32"), np.arange(40)[::-1].copy(), 40).losses, *run.params])
    for a, b in zip(*found, strict=True):
        np.testing.assert_array_equal(a, b)


# ---------------------------------------------------------------- blocks of rows
@pytest.mark.parametrize("backend", BACKENDS)
def test_blocks_of_rows(backend):
    """Two epochs in one call and the order that the formula gives, for each."""
    rows = np.arange(2, 25)
    x, y = RNG.standard_normal((25, INPUTS)).astype("float32"), RNG.standard_normal((25, 3)).astype("float32")
    for order in (rows.astype(np.uint32), rows):
        shuffle = Shuffle(5, 3, block_rows=4, window_rows=8)
        at_once, by_epoch = run_of(backend, "float32"), run_of(backend, "float32")
        batches = Batches(x, y, order, 4, epochs=2, shuffle=shuffle)
        rates, options = np.full(2 * batches.steps, 0.01), OPTIMIZERS["adam"].options
        at_once.net.train(batches, OptimizerSteps("adam", at_once.states, options, rates), 3)
        for epoch in (3, 4):
            g = np.random.Generator(np.random.PCG64(np.random.SeedSequence(5, spawn_key=(1, epoch))))
            mixed = [r for b in g.permutation(6) for r in range(2 + 4 * b, min(6 + 4 * b, 25))]
            windows = [np.array(mixed[start : start + 8]) for start in range(0, len(mixed), 8)]
            for window in windows:
                g.shuffle(window)
            by_epoch.train(x, y, np.concatenate(windows), 4)
        for p, q in zip(at_once.params, by_epoch.params, strict=True):
            np.testing.assert_array_equal(p, q)
