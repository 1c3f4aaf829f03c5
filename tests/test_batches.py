"""Batch sizes of `fit`: numbers, "full", random and growing ones, "auto"; and epochs that drop their last batch."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from helpers_model import CROSS_ENTROPY, assert_same, blobs
from hypothesis import given, settings
from hypothesis import strategies as st

import fastopt as fo
from fastopt import Dense, Dropout, Sequential
from fastopt._random_rows import epoch_order
from fastopt.batches import Growing, Random
from fastopt.callbacks import Callback, LambdaCallback
from fastopt.models import _auto_batch, _sizes, progress

X, Y = blobs(77)
FIGURES = "loss", "accuracy", "lr"


def model_of(backend, metrics=("accuracy",), dropout=0.3, **options):
    model = Sequential([Dense(7, "relu"), Dropout(dropout), Dense(3, "softmax")], seed=4, backend=backend, **options)
    model.compile(fo.Adam(lr=fo.schedules.Cosine(0.05, 40)), CROSS_ENTROPY, list(metrics))
    return model


def fit(model, batch_size, **options):
    return model.fit(X, Y, batch_size=batch_size, **{"verbose": 0, "epochs": 3} | options)


def results(model, history):
    return [model.get_weights(), model.optimizer.state_dict(), history.step_losses, [history[name] for name in FIGURES]]


# ---------------------------------------------------------------- the sizes
@given(
    low=st.integers(1, 40), more=st.integers(0, 60), rows=st.integers(1, 500), seed=st.integers(0, 2**64 - 1),
    epoch=st.integers(0, 2**40),
)  # fmt: skip
def test_random_sizes_share_out_all_rows(low, more, rows, seed, epoch):
    sizes = Random(low, low + more).sizes(rows, seed, epoch)
    assert sizes.dtype == np.int64
    assert sizes.sum() == rows
    assert all(low <= size <= low + more for size in sizes[:-1])
    assert 1 <= sizes[-1] <= low + more
    kept = Random(low, low + more).sizes(rows, seed, epoch, drop_last=True)
    assert kept.tolist() in (sizes.tolist(), sizes[:-1].tolist())
    assert len(kept)
    if sizes[-1] < low and len(sizes) > 1:
        assert len(kept) == len(sizes) - 1
    np.testing.assert_array_equal(sizes, Random(low, low + more).sizes(rows, seed, epoch))


def test_random_sizes_are_drawn_evenly_and_anew():
    sizes = np.concatenate([Random(3, 6).sizes(10_000, 1, epoch)[:-1] for epoch in range(5)])
    counts = np.bincount(sizes, minlength=7)
    assert counts[:3].sum() == 0
    np.testing.assert_allclose(counts[3:] / len(sizes), 0.25, atol=0.02)
    firsts = [Random(3, 60).sizes(100, seed, epoch).tolist() for seed in (1, 2) for epoch in (0, 1)]
    assert len(set(map(tuple, firsts))) == 4


def test_a_drawn_size_that_the_rows_fill_is_no_last_batch_to_drop():
    assert Random(4, 4).sizes(12, 0, 0, drop_last=True).tolist() == [4, 4, 4]
    assert Random(4, 4).sizes(11, 0, 0, drop_last=True).tolist() == [4, 4]
    assert Random(20, 20).sizes(11, 0, 0, drop_last=True).tolist() == [11]


def test_growing():
    assert [Growing(6, 1.5, 1, 20).at(epoch) for epoch in range(5)] == [6, 9, 13, 20, 20]
    assert Growing(6, 1.5).at(10**9) == Growing(6, 1.5).at(10**6) == 1 << 62
    assert Growing(6, 1.0).at(10**9) == 6


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Random(0, 3), ValueError, "low must be at least 1; got 0"),
        (lambda: Random(4, 3), ValueError, "high must be at least low=4; got 3"),
        (lambda: Random(1.5, 3), TypeError, "low must be a whole number; got 1.5"),
        (lambda: Growing(0), ValueError, "first must be at least 1; got 0"),
        (lambda: Growing(8, 0.5), ValueError, "factor must be at least 1"),
        (lambda: Growing(8, every=0), ValueError, "every must be at least 1; got 0"),
        (lambda: Growing(8, most=7), ValueError, "most must be at least first=8; got 7"),
    ],
)
def test_errors(make, error, message):
    with pytest.raises(error, match=message):
        make()


# ---------------------------------------------------------------- fit
def test_240_rows_in_batches_of_6_are_40_steps(backend):
    model = Sequential([Dense(1)], backend=backend)
    model.compile("sgd", "mean_squared_error")
    assert len(model.fit(np.ones((240, 1)), np.ones(240), batch_size=6, verbose=0).step_losses) == 40
    assert len(model.fit(np.ones((245, 1)), np.ones(245), batch_size=6, verbose=0).step_losses) == 41
    history = model.fit(np.ones((245, 1)), np.ones(245), batch_size=6, drop_last=True, verbose=0)
    assert (len(history.step_losses), history.batch_size) == (40, 6)


def test_full_is_all_rows_at_once(backend):
    ours, theirs = model_of(backend), model_of(backend)
    history = fit(ours, "full", validation_split=0.25)
    assert history.batch_size == 58
    assert len(history.step_losses) == 3
    assert_same(results(ours, history), results(theirs, fit(theirs, 58, validation_split=0.25)))
    assert fit(model_of(backend), 1000).batch_size == 77


def test_growing_sizes_are_those_of_fits_of_one_epoch(backend):
    ours, theirs = model_of(backend), model_of(backend)
    growing = Growing(9, factor=2, every=2, most=30)
    history = fit(ours, growing, epochs=5)
    losses = [
        fit(theirs, size, epochs=epoch + 1, initial_epoch=epoch).step_losses
        for epoch, size in enumerate([9, 9, 18, 18, 30])
    ]
    assert_same(ours.get_weights(), theirs.get_weights())
    np.testing.assert_array_equal(history.step_losses, np.concatenate(losses))
    assert history.batch_size is growing
    # a training that goes on takes the sizes that it would have taken
    halves = model_of(backend)
    first, second = fit(halves, growing, epochs=3), fit(halves, growing, epochs=5, initial_epoch=3)
    np.testing.assert_array_equal([*first.step_losses, *second.step_losses], history.step_losses)


@settings(max_examples=10, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("backend", ["cpu", "numpy"])
def test_random_sizes_with_everything(backend, data):
    """Batches of the seed, losses over rows, the same bits in one call and in parts, and with a callback."""
    low, more = data.draw(st.integers(1, 30)), data.draw(st.integers(0, 60))
    options = {
        "accumulate": data.draw(st.integers(1, 3)), "drop_last": data.draw(st.booleans()),
        "shuffle": data.draw(st.booleans()), "validation_split": data.draw(st.sampled_from([0.0, 0.25])),
    }  # fmt: skip
    metrics = data.draw(st.sampled_from([(), ("accuracy",), ("f1_macro", "accuracy")]))
    size, ways = Random(low, low + more), []
    every = data.draw(st.integers(1, 5))
    for callbacks in ([], [Callback()], [LambdaCallback(on_step_end=lambda *_: None, every_steps=every)]):
        model = model_of(backend, metrics)
        history = fit(model, size, callbacks=callbacks, **options)
        figures = [history.history[name] for name in ("loss", *metrics)]
        ways.append([model.get_weights(), model.optimizer.state_dict(), history.step_losses, figures])
    assert_same(ways[0], ways[1])
    assert_same(ways[0], ways[2])
    rows, group, steps = 58 if options["validation_split"] else 77, options["accumulate"], []
    for epoch in range(3):
        sizes = size.sizes(rows, 4, epoch, options["drop_last"])
        steps.append([sizes[i : i + group].sum() for i in range(0, len(sizes), group)])
    assert len(history.step_losses) == sum(map(len, steps))
    of_epochs = np.split(history.step_losses, np.cumsum([len(of) for of in steps])[:-1])
    wanted = [np.average(losses, weights=rows) for losses, rows in zip(of_epochs, steps, strict=True)]
    np.testing.assert_allclose(history["loss"], wanted, rtol=1e-12)
    assert history.batch_size is size


def test_random_sizes_are_the_same_on_the_backends():
    histories = [fit(model_of(backend, dtype="float64"), Random(3, 20)) for backend in ("cpu", "numpy")]
    np.testing.assert_allclose(histories[0].step_losses, histories[1].step_losses, rtol=1e-9)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_random_sizes_with_all_layers_and_options(accumulate):
    """Everything that a step has is told of the rows of its own batch, on the CPU as on the reference."""
    found = []
    for backend in ("cpu", "numpy"):
        hidden = fo.Dense(
            7, "relu", kernel_regularizer=fo.regularizers.L2(0.01), kernel_constraint=fo.constraints.MaxNorm(1.0)
        )
        layers = [fo.GaussianNoise(0.1), hidden, fo.BatchNorm(), fo.LayerNorm(), Dropout(0.2), Dense(3, "softmax")]
        model = Sequential(layers, seed=4, backend=backend, dtype="float64")
        model.compile(fo.Adam(lr=0.01, clip_norm=1.0), CROSS_ENTROPY, ["accuracy"], ema=fo.EMA(0.9))
        weights = 1.0 + np.arange(77) % 4
        options = {"sample_weight": weights, "accumulate": accumulate, "validation_split": 0.2, "drop_last": True}
        found.append((model, fit(model, Random(3, 20), **options)))
    (ours, history), (theirs, other) = found
    np.testing.assert_allclose(history.step_losses, other.step_losses, rtol=1e-8)
    for name in ("loss", "accuracy", "val_loss", "val_accuracy"):
        np.testing.assert_allclose(history[name], other[name], rtol=1e-8)
    for a, b in zip([*ours.get_weights(), *ours.averages], [*theirs.get_weights(), *theirs.averages], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_rows_that_are_dropped_count_nowhere(backend, shuffle, accumulate):
    """Each epoch is a fit to the rows that its order begins with; others are dropped in every epoch if shuffled."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((23, 4)), rng.standard_normal((23, 2))
    options = {"batch_size": 5, "accumulate": accumulate, "verbose": 0}
    models = []
    for _ in range(2):
        models.append(Sequential([Dense(6, "tanh"), Dense(2)], seed=3, backend=backend, dtype="float64"))
        models[-1].compile("adam", "mean_squared_error", ["r2", "mean_absolute_error"])
    history = models[0].fit(x, y, epochs=3, drop_last=True, shuffle=shuffle, **options)
    dropped = set()
    for epoch in range(3):
        order = epoch_order(np.arange(23), 3, epoch, shuffle)
        used = order[:20]
        dropped.add(tuple(sorted(order[20:])))
        alone = models[1].fit(x[used], y[used], shuffle=False, **options)
        for name in ("loss", "r2", "mean_absolute_error"):
            assert history[name][epoch] == pytest.approx(alone[name][0], rel=1e-12)
    assert_same(models[0].get_weights(), models[1].get_weights())
    assert len(dropped) == (3 if shuffle else 1)
    parts = Sequential([Dense(6, "tanh"), Dense(2)], seed=3, backend=backend, dtype="float64")
    parts.compile("adam", "mean_squared_error", ["r2", "mean_absolute_error"])
    callbacks = [LambdaCallback(on_step_end=lambda *_: None, every_steps=2)]
    again = parts.fit(x, y, epochs=3, drop_last=True, shuffle=shuffle, callbacks=callbacks, **options)
    assert_same([again[name] for name in ("loss", "r2")], [history[name] for name in ("loss", "r2")])
    assert_same(parts.get_weights(), models[0].get_weights())


def test_only_batch_is_not_dropped(backend):
    ours, theirs = model_of(backend), model_of(backend)
    assert_same(results(ours, fit(ours, 100, drop_last=True)), results(theirs, fit(theirs, 100)))


def test_bar_counts_the_rows_of_the_epoch(capsys, monkeypatch):
    shown, show = [], progress.Bar._show

    def noted(bar, samples, *rest):
        shown.append(samples)
        show(bar, samples, *rest)

    monkeypatch.setattr(progress.Bar, "_show", noted)
    every_step = [LambdaCallback(on_step_end=lambda *_: None)]
    fit(model_of("cpu"), Random(3, 9), verbose=1, epochs=1, callbacks=every_step)
    sizes = Random(3, 9).sizes(77, 4, 0)
    assert set(shown) == set(np.cumsum(sizes))
    shown.clear()
    fit(model_of("cpu"), 10, verbose=1, epochs=1, drop_last=True, callbacks=every_step)
    assert set(shown) == {10, 20, 30, 40, 50, 60, 70}
    assert "70.0/70.0" in capsys.readouterr().err


# ---------------------------------------------------------------- "auto"
def test_auto_trains_as_the_number_does_and_leaves_the_model_alone(backend, caplog):
    """Whatever was measured: the model trains as if the number had been given, from weights that nobody touched."""
    x, y = blobs(600)
    ours, theirs = model_of(backend), model_of(backend)
    with caplog.at_level(logging.INFO, "fastopt"):
        history = ours.fit(x, y, batch_size="auto", epochs=2, verbose=0)
    assert history.batch_size in (8, 16)
    assert history.batch_size_reason.startswith(f"batch_size {history.batch_size}: ")
    assert caplog.messages == [history.batch_size_reason]
    other = theirs.fit(x, y, batch_size=history.batch_size, epochs=2, verbose=0)
    assert_same(results(ours, history), results(theirs, other))
    assert other.batch_size_reason == ""


def test_auto_is_measured_once_for_data_of_a_size(monkeypatch):
    speeds = {8: 1.0, 16: 1.9, 32: 2.0, 64: 2.1}
    calls = []

    def measured(model, data, rows, sizes):
        calls.append(list(sizes))
        return speeds

    monkeypatch.setattr(_auto_batch, "measured", measured)
    x, y = blobs(2048)
    model = model_of("cpu")
    sizes = [model.fit(x, y, batch_size="auto", verbose=0).batch_size for _ in range(2)]
    assert sizes == [16, 16]
    assert calls == [[8, 16, 32, 64]]
    speeds[8] = 1.8
    assert model.fit(x[:2000], y[:2000], batch_size="auto", verbose=0).batch_size == 8
    assert model.fit(x[:2000], y[:2000], batch_size="auto", accumulate=4, verbose=0).batch_size == 8
    assert calls[1:] == [[8, 16, 32], [8]] or calls[1:] == [[8, 16, 32]]  # one size needs no measurement


def test_auto_measures_what_it_has_time_for(monkeypatch):
    monkeypatch.setattr(_auto_batch, "BUDGET", 0.0)
    history = model_of("cpu").fit(*blobs(2048), batch_size="auto", verbose=0)
    assert history.batch_size == 8
    assert "larger ones would take too long to try" in history.batch_size_reason


def test_limits_of_auto():
    limits = _auto_batch.limits
    assert limits(10**7, 2, 100, 1, None)[:2] == (8, _auto_batch.MOST)
    assert limits(10**7, 1000, 100, 1, None)[:2] == (64, _auto_batch.MOST)
    assert limits(10**4, 2, 100, 4, None)[:2] == (8, 64)  # 32 steps of 4 batches
    assert limits(10**7, 10, 2**20, 1, 2**28)[:2] == (16, 64)
    assert limits(10**7, 10, 2**20, 1, 2**20)[:2] == (8, 8)  # too little memory for any


def test_free_memory_is_asked_where_the_network_is():
    class Gpu:
        def free_memory(self):
            return 12345

    class Network:
        gpu = Gpu()

    assert _auto_batch.free_memory(Network()) == 12345
    found = _auto_batch.free_memory(object())
    assert found is None or found > 0


# ---------------------------------------------------------------- within longer trainings
@pytest.mark.parametrize("size", [Random(3, 20), Growing(5, 1.5), "full", "auto", 9])
@pytest.mark.parametrize("drop_last", [False, True])
def test_a_training_goes_on_within_an_epoch(backend, size, drop_last, path, monkeypatch):
    """The checkpoint after three steps, in the midst of an epoch or not, leads to the same bits."""
    monkeypatch.setattr(_auto_batch, "measured", lambda *_: {8: 1.0})
    options = {"epochs": 3, "drop_last": drop_last}
    whole = model_of(backend)
    history = fit(whole, size, **options)
    fit(model_of(backend), size, max_steps=3, checkpoint=path, checkpoint_every=3, **options)
    monkeypatch.setattr(_auto_batch, "measured", lambda *_: pytest.fail("the choice is that of the checkpoint"))
    content = path.read_bytes()
    for number in dict.fromkeys([size, history.batch_size if size == "auto" else size]):
        path.write_bytes(content)
        again = model_of(backend)
        second = fit(again, number, checkpoint=path, checkpoint_every=3, resume=True, **options)
        assert_same(results(again, second), results(whole, history))
        assert second.batch_size == history.batch_size


def test_max_steps_counts_steps_of_any_sizes(backend):
    history = fit(model_of(backend), Random(3, 20), epochs=None, max_steps=5)
    whole = fit(model_of(backend), Random(3, 20))
    np.testing.assert_array_equal(history.step_losses, whole.step_losses[:5])


# ---------------------------------------------------------------- refusals
@pytest.mark.parametrize("size", [Random(1, 2), Growing(3)])
def test_steps_per_epoch_want_a_number(size):
    with pytest.raises(ValueError, match="batch_size must be a number with steps_per_epoch"):
        fit(model_of("numpy"), size, steps_per_epoch=3)
    assert len(fit(model_of("numpy"), "full", steps_per_epoch=3).step_losses) == 9


@pytest.mark.parametrize(
    ("size", "accumulate", "message"),
    [
        (Random(1, 65), 1, "at most 64 sizes on the backend 'cuda', which has a graph for each; got 65"),
        (Random(1, 2), 2, "must come with accumulate=1 on the backend 'cuda'"),
    ],
)
def test_refusals_of_a_device_come_first(size, accumulate, message):
    model = model_of("cuda")
    with pytest.raises(ValueError, match=message):
        fit(model, size, accumulate=accumulate)
    assert not model.built
    _sizes.check_backend(Random(1, 64), 1, "cuda")
    _sizes.check_backend(Random(1, 65), 2, "cpu")
