"""Data of any dtype, layout and size in `fit`, `evaluate` and `predict`: the bits of rows prepared beforehand."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc

import numpy as np
import pandas as pd
import pytest
from helpers_model import CROSS_ENTROPY, assert_same, blobs, prepared

import fastopt as fo
from fastopt import Dense, Dropout, Normalization, Rescaling, Sequential
from fastopt._frames import Features
from fastopt.kernels.cpu.runtime.primitives import INTERPRETED
from fastopt.kernels.sources import Source, SparseRows, Stage
from fastopt.kernels.spec import Shuffle
from fastopt.models import _features, training

X, Y = blobs(90)
POSITIVE = (X - X.min()) * 20  # 0 to 255


@pytest.fixture(autouse=True)
def no_data_are_small(monkeypatch):
    """Few numbers that are one batch would be prepared at once by `evaluate` and `predict`."""
    monkeypatch.setattr(_features, "SMALL", 0)


@pytest.fixture(params=["numpy", "cpu"])
def backend(request):
    return request.param


def model_of(*front, backend="numpy", dtype="float32"):
    model = Sequential([*front, Dense(8, "tanh"), Dropout(0.25), Dense(3)], seed=1, backend=backend, dtype=dtype)
    model.compile(fo.Adam(lr=0.02), CROSS_ENTROPY, ["accuracy"])
    return model


def outcome(model, x, **options):
    """All that a model gives and has after it was trained on x."""
    history = model.fit(x, Y, epochs=2, batch_size=16, verbose=0, **options)
    figures = [history["loss"], history.history.get("val_loss"), model.evaluate(x, Y, batch_size=32)]
    return figures, [*model.get_weights(), model.predict(x, batch_size=32)]


def check(x, *front, backend="numpy", dtype="float32", by_hand=None, **options):
    """A model that is given x, and one without preprocessing that is given x prepared, come to the same bits."""
    model, plain = model_of(*front, backend=backend, dtype=dtype), model_of(backend=backend, dtype=dtype)
    figures, arrays = outcome(model, x, **options)
    rows = np.asarray(x) if by_hand is None else by_hand
    beforehand = prepared(model.preprocessing, model.learnt.statistics, rows, dtype)
    expected_figures, expected = outcome(plain, beforehand, **options)
    assert figures == expected_figures
    assert_same(arrays, expected)
    return model


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_large_arrays_columns_first_are_not_copied(dtype, backend, monkeypatch):
    x = np.asfortranarray(POSITIVE.astype(dtype))
    assert not np.shares_memory(_features.readable(x, np.dtype("float32")), x)
    monkeypatch.setattr(_features, "COPIED", x.nbytes - 1)
    assert _features.readable(x, np.dtype("float32")) is x
    check(x, Rescaling(1 / 255), backend=backend)


def mapped(array, path):
    """The array in a memory map."""
    memory = np.memmap(path, array.dtype, "w+", shape=array.shape, order="F" if array.flags.f_contiguous else "C")
    memory[...] = array
    return memory


# each with what prepares it
CASES = {
    "bytes": (POSITIVE.astype(np.uint8), [Rescaling(1 / 255)]),
    "bytes as they are": (POSITIVE.astype(np.uint8), []),
    "halves": (X.astype(np.float16), []),
    "bools": (X > 0, [Rescaling([2] * 6, offset=-1)]),
    "doubles": (X.astype(np.float64) * 1e3 + 1e6, [Normalization()]),
    "doubles as they are": (X.astype(np.float64), []),
    "singles": (X, [Rescaling(0.5), Normalization()]),
    "integers": (POSITIVE.astype(np.int64) * 10**12, [Normalization(mean=1e12, variance=1e26)]),
    "columns first": (np.asfortranarray(X), []),
    "slices": (np.repeat(X, 2, axis=1)[:, 1::2], []),
    "backwards": (X[::-1].copy()[::-1], []),
}


@pytest.mark.parametrize("case", CASES)
def test_the_bits_are_those_of_prepared_rows(backend, case):
    x, front = CASES[case]
    check(x, *front, backend=backend, validation_split=0.2)


def test_models_of_float64(backend):
    check(POSITIVE.astype(np.uint8), Rescaling(1 / 255), Normalization(), backend=backend, dtype="float64")


@pytest.mark.parametrize("kind", ["<f4", ">f4", ">i2"])
def test_memory_maps(backend, kind, tmp_path):
    """In any byte order, columns first, and from an odd place on; nothing is copied, nor written to."""
    values = (100 * X).astype(kind)
    maps = [mapped(values, tmp_path / "c"), mapped(np.asfortranarray(values), tmp_path / "f")]
    (tmp_path / "odd").write_bytes(b"x" + values.tobytes())
    maps.append(np.memmap(tmp_path / "odd", kind, "r", offset=1, shape=values.shape))
    for x in maps:
        model = check(x, backend=backend)
        source = model._plan_fit(x, Y, training.FitOptions()).data.x
        shown = source.values if isinstance(source, Source) else source
        assert np.shares_memory(shown, x)


@pytest.mark.parametrize("x", [X.astype(np.float64), X.astype(np.float16), POSITIVE.astype(np.uint8), X[:, ::2]])
def test_nothing_is_copied(x):
    model = model_of()
    plan = model._plan_fit(x, Y, training.FitOptions(validation_split=0.3))
    assert isinstance(plan.data.x, Source)
    assert plan.data.x.values is x
    assert plan.validation.x is plan.data.x
    assert plan.rows.dtype == plan.validation.rows.dtype == np.uint32


def test_columns_first_are_copied_in_their_own_dtype():
    x = np.asfortranarray(POSITIVE.astype(np.uint8))
    source = model_of()._plan_fit(x, Y, training.FitOptions()).data.x
    assert source.values.flags.c_contiguous
    assert source.values.dtype == np.uint8


def test_rows_of_one_batch_are_gathered_as_they_are_converted(monkeypatch):
    monkeypatch.setattr(_features, "SMALL", X.size)
    x, half = Features(X.astype(np.float64), None), (Stage(False, np.full(6, 0.5), np.zeros(6)),)

    def found(batch_size):
        return _features.source_of("x", x, half, np.dtype(np.float32), batch_size=batch_size)

    np.testing.assert_array_equal(found(len(X)), (X.astype(np.float64) / 2).astype(np.float32))
    assert found(len(X) - 1).values is x.values
    monkeypatch.setattr(_features, "SMALL", X.size - 1)
    assert found(len(X)).values is x.values


@pytest.mark.skipif(INTERPRETED, reason="too many rows for interpreted kernels")
@pytest.mark.parametrize(("dtype", "front"), [("f8", []), ("f2", []), ("u1", [Rescaling(1 / 255)]), (">f4", [])])
def test_there_is_no_copy_in_the_models_dtype(backend, dtype, front):
    """The most memory in use at a time in `fit`, `evaluate` and `predict`, beside the bytes of a copy."""
    rows, y = np.zeros((3000, 600), dtype), np.arange(3000, dtype=np.int64) % 3
    model = model_of(*front, backend=backend)
    calls = [
        lambda x, y: model.fit(x, y, batch_size=32, verbose=0, validation_data=(x[:100], y[:100])),
        lambda x, y: model.evaluate(x, y, batch_size=100),
        lambda x, y: model.predict(x, batch_size=100),
    ]
    for call in calls:
        call(rows[:300], y[:300])  # what is made once
        tracemalloc.start()
        try:
            call(rows, y)
            _, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert most < 0.5 * rows.size * 4


def test_tables(backend):
    frame = pd.DataFrame(POSITIVE.astype(np.uint8), columns=list("abcdef"))
    model = check(frame, Rescaling(1 / 255), backend=backend, by_hand=frame.to_numpy())
    assert model.feature_names == tuple("abcdef")


def test_rows_with_gaps_stay_where_they_are(backend):
    """They are left out by their numbers: the bits are those of the other rows alone."""
    x = np.repeat(X.astype(np.float64), 2, axis=0)
    y, weights = np.repeat(Y, 2), np.linspace(0.5, 2, len(x))
    x[::2, 1] = np.nan
    for more in ({}, {"validation_split": 0.25}, {"class_weight": "balanced"}, {"sample_weight": True}):
        skipping, alone = (model_of(Normalization(), backend=backend) for _ in "12")
        ours, theirs = dict(more), dict(more)
        if "sample_weight" in more:
            ours["sample_weight"], theirs["sample_weight"] = weights, weights[1::2]
        skipping.fit(x, y, epochs=2, nan="skip", verbose=0, **ours)
        alone.fit(x[1::2], y[1::2], epochs=2, verbose=0, **theirs)
        assert skipping.history.history["loss"] == alone.history.history["loss"]
        assert skipping.history.history.get("val_loss") == alone.history.history.get("val_loss")
        assert_same(skipping.get_weights(), alone.get_weights())
        assert skipping.evaluate(x, y, nan="skip") == alone.evaluate(x[1::2], y[1::2])
    plan = skipping._plan_fit(x, y, training.FitOptions(nan="skip"))
    assert plan.data.x.values is x
    assert plan.rows.tolist() == list(range(1, len(x), 2))


# ---------------------------------------------------------------- checks
def with_value(value, dtype="f8"):
    x = X.astype(dtype)
    x[3, 2] = value
    return x


@pytest.mark.parametrize(
    ("x", "front", "message"),
    [
        (with_value(np.nan, "f8"), [], r"x must be finite; got nan at index \(3, 2\)"),
        (with_value(-np.inf, "f2"), [], r"x must be finite; got -inf at index \(3, 2\)"),
        (with_value(1e300), [], r"x must be finite; got inf at index \(3, 2\)"),
        (with_value(1e30), [Rescaling(-1e30)], r"x must be finite; got -inf at index \(3, 2\)"),
        (with_value(np.nan, "f2"), [Rescaling(2)], r"x must be finite; got nan at index \(3, 2\)"),
        (POSITIVE.astype("i4"), [Rescaling(1e38)], r"x must be finite; got inf at index"),
        (POSITIVE.astype("u1"), [Rescaling(1e30)], None),
        (POSITIVE.astype("i8"), [Rescaling(1e30)], None),  # far from the ends of int64
        (with_value(3e38), [], None),
    ],
)  # fmt: skip
def test_numbers_that_are_not_finite_in_the_models_dtype(x, front, message):
    model = model_of(*front)
    model.build(6)
    for call in (lambda: model.fit(x, Y, verbose=0), lambda: model.evaluate(x, Y), lambda: model.predict(x)):
        if message is None:
            call()
        else:
            with pytest.raises(ValueError, match=message):
                call()


def test_numbers_that_are_not_finite_in_a_later_block(monkeypatch):
    monkeypatch.setattr("fastopt.kernels.sources.BLOCK", 60)
    for value in (np.nan, np.inf, 1e300):
        x = X.astype(np.float64)
        x[70, 2] = value
        with pytest.raises(ValueError, match=r"x must be finite; got (nan|inf) at index \(70, 2\)"):
            model_of().fit(np.repeat(x, 60, axis=1)[:, ::60], Y, verbose=0)


def test_cells_are_named():
    frame = pd.DataFrame(with_value(1e300), columns=list("abcdef"))
    with pytest.raises(ValueError, match=r"x: column 'c' has inf in row 3; x must be finite"):
        model_of().fit(frame, Y)


# ---------------------------------------------------------------- sparse matrices
SPARSE = np.where(np.random.default_rng(0).random(X.shape) < 0.6, 0, X)
FORMATS = ["csr_array", "csr_matrix", "csc_array", "coo_array", "lil_array", "dok_array", "bsr_array", "dia_array"]


@pytest.mark.parametrize("form", FORMATS)
def test_sparse_formats(form):
    sparse = pytest.importorskip("scipy.sparse")
    check(getattr(sparse, form)(SPARSE), backend="cpu", by_hand=SPARSE, validation_split=0.2)


@pytest.mark.parametrize("front", [[Rescaling(0.5, offset=1)], [Normalization()]])
def test_sparse_matrices_are_prepared_as_dense_ones(backend, front):
    """Batches are dense, so zeros may become other numbers, and means are taken off."""
    sparse = pytest.importorskip("scipy.sparse")
    dense = model_of(*front, backend=backend)
    model = check(sparse.csr_array(SPARSE), *front, backend=backend, by_hand=SPARSE)
    dense.fit(SPARSE, Y, epochs=2, batch_size=16, verbose=0)
    assert_same(model.get_weights(), dense.get_weights())
    data = model._plan_fit(sparse.csr_array(SPARSE), Y, training.FitOptions()).data.x
    assert isinstance(data.values, SparseRows)


def test_sparse_values(backend):
    """Values given twice are added up; bytes, gaps and numbers that are not finite are as in dense matrices."""
    sparse = pytest.importorskip("scipy.sparse")
    doubled = sparse.coo_array((np.ones(3, np.uint8), ([0, 0, 1], [2, 2, 0])), shape=(90, 6)).tocsr()
    twice = sparse.csr_array((np.ones(3, np.uint8), np.array([2, 2, 0]), np.array([0, 2] + [3] * 89)), shape=(90, 6))
    assert not twice.has_canonical_format
    for x in (doubled, twice):
        check(x, backend=backend, by_hand=doubled.toarray())
    assert twice.nnz == 3  # the caller's own stays as it is
    bad = SPARSE.copy()
    bad[[4, 7], [1, 0]] = np.nan
    model = model_of(backend=backend)
    with pytest.raises(ValueError, match="the stored values of x must be finite; got nan"):
        model.fit(sparse.csr_array(bad), Y)
    model.fit(sparse.csr_array(bad), Y, nan="skip", verbose=0)
    good, alone = np.isfinite(bad).all(axis=1), model_of(backend=backend)
    alone.fit(bad[good], Y[good], verbose=0)
    assert_same(model.get_weights(), alone.get_weights())
    layer = Normalization().adapt(sparse.csr_array(SPARSE))
    np.testing.assert_array_equal(layer.mean, Normalization().adapt(SPARSE).mean)
    np.testing.assert_allclose(layer.mean, SPARSE.astype(float).mean(axis=0), rtol=1e-12)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda s: s.csr_array(SPARSE[:, :4]), ValueError, r"x must have shape \(batch, features\), here \(any, 6\)"),
        (lambda s: s.csr_array(SPARSE.astype(complex)), TypeError, "x must hold real numbers; got complex"),
        (lambda s: s.coo_array(SPARSE[0]), ValueError, r"x must have shape \(batch, features\); got a sparse array of"),
    ],
)
def test_sparse_matrices_that_are_refused(make, error, message):
    sparse = pytest.importorskip("scipy.sparse")
    model = model_of()
    model.build(6)
    with pytest.raises(error, match=message):
        model.fit(make(sparse), Y)


# ---------------------------------------------------------------- blocks of rows
@pytest.mark.parametrize("bytes_", [1, 300, 1 << 20])
def test_shuffle_in_blocks(backend, bytes_, monkeypatch):
    """Blocks of so many bytes, in the order that the kernels' description has, and not in that of a whole shuffle."""
    monkeypatch.setattr(training, "BLOCK_BYTES", bytes_)
    monkeypatch.setattr(training, "WINDOW_BLOCKS", 2)
    x, model, by_hand = POSITIVE.astype(np.uint8), *(model_of(backend=backend) for _ in "12")
    model.fit(x, Y, epochs=2, batch_size=16, shuffle="blocks", verbose=0)
    block = max(1, bytes_ // 6)
    orders = Shuffle(1, 0, block, 2 * block)
    for epoch in range(2):
        order = orders.order(np.arange(90, dtype=np.uint32), epoch)
        plan = by_hand._plan_fit(x[order], Y[order], training.FitOptions(batch_size=16, shuffle=False))
        training.train_epoch(by_hand, plan.network, training.next_batches(by_hand, plan))
        by_hand.epochs_done += 1
    assert_same(model.get_weights(), by_hand.get_weights())
    other = model_of(backend=backend)
    other.fit(x, Y, epochs=2, batch_size=16, verbose=0)
    assert np.array_equal(other.parameters[0], model.parameters[0]) == (block > 90)  # a single block


def test_blocks_of_epochs_of_so_many_steps(backend):
    models = [model_of(backend=backend) for _ in "12"]
    models[0].fit(X, Y, epochs=2, batch_size=15, shuffle="blocks", verbose=0)
    models[1].fit(X, Y, epochs=4, batch_size=15, shuffle="blocks", steps_per_epoch=3, verbose=0)
    assert_same(models[0].get_weights(), models[1].get_weights())


# ---------------------------------------------------------------- memory
MEASURED = """
import resource, sys
import numpy as np
import fastopt as fo

def anonymous():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("RssAnon")) / 1024

class Watch(fo.Callback):
    most = 0.0
    def on_epoch_end(self, model, epoch, logs):
        self.most = max(self.most, anonymous())

path, rows, kind = sys.argv[1], int(sys.argv[2]), sys.argv[3]
x = np.memmap(path, kind, "r", shape=(rows, 784))
y = np.zeros(rows, np.int64)
model = fo.Sequential([fo.Rescaling(1 / 255), fo.Dense(16, "relu"), fo.Dense(10)], seed=1, backend=sys.argv[4])
model.compile("sgd", "sparse_categorical_crossentropy")
model.fit(x[:1000], y[:1000], batch_size=256, verbose=0)
for _ in range(2):
    model.predict(x[:2000]), model.evaluate(x[:2000], y[:2000])
before, watch = anonymous(), Watch()
model.fit(x, y, batch_size=256, validation_split=0.25, callbacks=[watch], shuffle="blocks", verbose=0)
print(watch.most - before)
model.evaluate(x, y)
print(anonymous() - before)
model.predict(x)
print(anonymous() - before)
"""


@pytest.mark.repeats
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.skipif(INTERPRETED, reason="too many rows for interpreted kernels")
@pytest.mark.parametrize("backend", ["cpu", "numpy"])
def test_a_memory_map_takes_no_memory(backend, tmp_path):
    """A file of 300 MB, of holes; in float32 it would be 1.2 GB. What is left is the order of rows, and some blocks."""
    rows = 400_000
    with open(tmp_path / "x", "wb") as file:
        file.truncate(rows * 784)
    call = [sys.executable, "-c", MEASURED, str(tmp_path / "x"), str(rows), "uint8", backend]
    found = subprocess.run(call, capture_output=True, text=True, check=True, timeout=280)
    assert max(map(float, found.stdout.split())) < 40  # MB
