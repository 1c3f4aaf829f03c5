"""Magnitude pruning: who is pruned, what keeps it so, the gradual schedule, files and copies, and refusals."""

import copy
import io
import json
import pickle
import struct

import hypothesis.strategies as st
import numpy as np
import pytest
from helpers_model import CROSS_ENTROPY, assert_same, blobs, snapshot
from hypothesis import given, settings

import fastopt as fo
from fastopt.callbacks import LambdaCallback
from fastopt.compress import Pruning, prune, prune_neurons, sparsity, unprune

X, Y = blobs(60)
KERNELS = {"dense_1": 0, "dense_2": 4}


def model_of(backend="numpy", dtype="float64", optimizer=None, ema=None, **of_layer):
    layers = [fo.Dense(7, "tanh", **of_layer), fo.LayerNorm(), fo.Dropout(0.1), fo.Dense(3, "softmax")]
    model = fo.Sequential(layers, 1, backend, dtype, inputs=6)
    model.compile(optimizer or fo.Adam(lr=0.05), CROSS_ENTROPY, ["accuracy"], ema=ema)
    return model


def pruned_by_hand(weights, share):
    """Weights (elements,) with the share of the smallest set to zero, those that come first where magnitudes tie."""
    weights = weights.copy()
    order = sorted(range(len(weights)), key=lambda i: (abs(weights[i]), i))
    weights[order[: int(share * len(weights) + 1e-9)]] = 0
    return weights


def zero_where_pruned(model):
    """True if all that is pruned is zero, with its average and the states of the optimizer."""
    found = []
    for i, mask in enumerate(model._masks.arrays):
        if mask is not None:
            arrays = [model.get_weights()[i], *model.optimizer.states[i]]
            arrays += [] if model.averages is None else [model.averages[i]]
            found += [not array[mask == 0].any() for array in arrays]
    return bool(found) and all(found)


# ---------------------------------------------------------------- in one call
@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from([0.0, -1.0, 1.0, 2.0, 3.5, -4.0]), min_size=12, max_size=12), st.floats(0, 0.99))
def test_the_smallest_weights_of_each_layer_are_pruned(values, share):
    values = np.array(values)
    layers = [fo.Dense(2, kernel_initializer=values[:6].reshape(3, 2)), fo.LayerNorm()]
    layers += [fo.Dense(3, kernel_initializer=values[6:].reshape(2, 3))]
    model = fo.Sequential(layers, inputs=3, dtype="float64", backend="numpy")
    assert prune(model, share) is model
    for i, part in ((0, values[:6]), (4, values[6:])):
        np.testing.assert_array_equal(model.get_weights()[i].ravel(), pruned_by_hand(part, share))
    whole = fo.Sequential(layers, inputs=3, dtype="float64", backend="numpy")
    prune(whole, share, scope="network")
    found = np.concatenate([whole.get_weights()[i].ravel() for i in (0, 4)])
    np.testing.assert_array_equal(found, pruned_by_hand(values, share))


def test_a_threshold_prunes_all_below_it():
    model = model_of()
    before = model.get_weights()
    prune(model, threshold=0.3)
    for i, (p, was) in enumerate(zip(model.get_weights(), before, strict=True)):
        expected = np.where(np.abs(was) < 0.3, 0, was) if i in KERNELS.values() else was
        np.testing.assert_array_equal(p, expected)


def test_layers_and_shares_are_chosen_by_name():
    assert sparsity(prune(model_of(), 0.5, layers="dense_2"))["dense_1"] == 0
    found = sparsity(prune(model_of(), {"dense_1": 0.5, "dense_2": 2 / 3}))
    assert found == {"dense_1": 0.5, "dense_2": 14 / 21, "total": 35 / 63}
    frozen = model_of(trainable=False)
    assert sparsity(prune(frozen, 0.5)) == {"dense_1": 0.0, "dense_2": 10 / 21, "total": 10 / 63}
    assert sparsity(prune(frozen, 0.5, layers=["dense_1"]))["dense_1"] == 0.5


def test_what_is_pruned_stays_so_and_counts():
    model = prune(model_of(), 0.5)
    masks = [None if mask is None else mask.copy() for mask in model._masks.arrays]
    prune(model, 0.3)
    assert_same([*masks], [*model._masks.arrays])
    prune(model, 0.8)
    assert sparsity(model)["dense_1"] == 33 / 42
    assert not model._masks.arrays[0][masks[0] == 0].any()


def test_unpruned_weights_are_trained_again():
    model = prune(model_of(), 0.5)
    assert unprune(model, "dense_1") is model
    model.fit(X, Y)
    assert {name: share > 0 for name, share in sparsity(model).items()} == {
        "dense_1": False, "dense_2": True, "total": True,
    }  # fmt: skip
    unprune(model).fit(X, Y)
    assert sparsity(model)["total"] == 0


# ---------------------------------------------------------------- in training
HOW = {
    "plain": {},
    "float32": {"dtype": "float32"},
    "average": {"ema": fo.EMA(0.9)},
    "momentum": {"optimizer": fo.SGD(lr=0.1, momentum=0.9, weight_decay=0.01)},
    "clipped": {"optimizer": fo.AdamW(lr=0.05, clip_norm=0.5)},
    "constrained": {"kernel_constraint": fo.constraints.MaxNorm(1.0), "ema": fo.EMA(0.9)},
    "penalised": {"kernel_regularizer": fo.regularizers.L1L2(0.01, 0.01)},
}


@pytest.mark.parametrize("how", HOW, ids=str)
def test_pruned_weights_stay_zero_in_training(how, backend):
    options = {**HOW[how]}
    if "optimizer" in options:
        options["optimizer"] = copy.deepcopy(options["optimizer"])
    model = model_of(backend, **options)
    model.fit(X, Y, epochs=1)  # states that are not zero
    prune(model, 0.6)
    assert zero_where_pruned(model)
    model.fit(X, Y, epochs=2, batch_size=8, accumulate=2)
    assert zero_where_pruned(model)
    assert sparsity(model)["total"] == pytest.approx(0.6, abs=0.02)


def test_backends_train_the_same():
    found = []
    for name in ("cpu", "numpy"):
        model = model_of(name)
        model.fit(X, Y, epochs=4, batch_size=8, pruning=Pruning(0.7, every=5, end=20))
        found.append((model.get_weights(), model.history["loss"]))
    for ours, theirs in zip(*(weights for weights, _ in found), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)
        assert ((ours == 0) == (theirs == 0)).all()
    np.testing.assert_allclose(found[0][1], found[1][1], rtol=1e-9)


SCHEDULES = [
    Pruning(0.8, every=3, end=17), Pruning(0.8, "network", begin=4, every=5, end=19, initial=0.3),
    Pruning({"dense_2": 0.7, "dense_1": 0.5}, every=4), Pruning(0.5, layers="dense_2", every=7, initial=0.25),
]  # fmt: skip


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_shares_follow_the_cubic_schedule(schedule, backend):
    """After every step of 2 epochs of 12 steps; Zhu & Gupta's formula, and the share holds between two changes."""
    model, found = model_of(backend), []
    look = LambdaCallback(on_step_end=lambda model, step, logs: found.append(sparsity(model)))
    model.fit(X, Y, epochs=2, batch_size=5, callbacks=[look], pruning=schedule)
    end = schedule.end or 18
    of_layer = {"dense_1": 42, "dense_2": 21}
    for step, shares in enumerate(found, 1):
        changes = [t for t in (*range(schedule.begin, end, schedule.every), end) if t <= step]
        t = changes[-1] if changes else None
        for name in of_layer:
            final = schedule.share.get(name) if isinstance(schedule.share, dict) else schedule.share
            if schedule.layers is not None and name != schedule.layers:
                final = None
            way = 0.0 if t is None else (t - schedule.begin) / (end - schedule.begin)
            share = 0.0 if None in (final, t) else final + (schedule.initial - final) * (1 - way) ** 3
            if schedule.scope == "layer":
                assert shares[name] == int(share * of_layer[name] + 1e-9) / of_layer[name]
        if schedule.scope == "network":
            assert shares["total"] == int(share * 63 + 1e-9) / 63
    assert zero_where_pruned(model)


@pytest.mark.parametrize(
    ("options", "end"),
    [
        ({"epochs": 4, "batch_size": 15}, 12),
        ({"epochs": 4, "batch_size": 16, "drop_last": True, "accumulate": 2}, 6),
        ({"batch_size": 6, "max_steps": 24}, 18),
        ({"epochs": 2, "steps_per_epoch": 8}, 12),
        ({"epochs": 8, "batch_size": "full"}, 6),
        ({"epochs": 6, "initial_epoch": 2, "batch_size": 100}, 3),
    ],
    ids=str,
)
def test_pruning_ends_at_three_quarters_of_the_steps(options, end):
    model, found = model_of(), []
    look = LambdaCallback(on_step_end=lambda model, step, logs: found.append(sparsity(model)["total"]))
    model.fit(X, Y, callbacks=[look], pruning=Pruning(0.6, every=1), **options)
    final = sparsity(model)["total"]
    assert next(step for step, share in enumerate(found, 1) if share == final) <= end
    assert Pruning(0.6, every=1).ending(4 * end // 3).end == end
    assert final == pytest.approx(0.6, abs=0.02)


def test_a_share_stands_for_a_schedule():
    models = [model_of() for _ in range(2)]
    for model, pruning in zip(models, (0.5, Pruning(0.5)), strict=True):
        model.fit(X, Y, epochs=8, batch_size=4, pruning=pruning)
    assert_same(*(model.get_weights() for model in models))
    assert sparsity(models[0])["dense_1"] == 0.5


def test_batches_that_come_one_by_one():
    model = model_of()
    batches = [(X[i : i + 10], Y[i : i + 10]) for i in range(0, 60, 10)]
    model.fit(batches, epochs=2, pruning=Pruning(0.5, every=2, end=8))
    assert sparsity(model)["dense_1"] == 0.5
    assert zero_where_pruned(model)


@pytest.mark.parametrize("batches", [False, True])
def test_more_epochs_than_the_checkpoint_was_to_have_keep_the_end_of_pruning(tmp_path, batches):
    def training(epochs, pruning, **options):
        model = model_of()
        if batches:
            items = [(X[i : i + 10], Y[i : i + 10]) for i in range(0, 60, 10)]
            model.fit(items, epochs=epochs, steps_per_epoch=6, pruning=pruning, **options)
        else:
            model.fit(X, Y, epochs=epochs, batch_size=10, pruning=pruning, verbose=0, **options)
        return model

    path = tmp_path / "c"
    training(2, Pruning(0.8, every=4), checkpoint=path, max_steps=5)
    resumed = training(4, Pruning(0.8, every=4), resume=path)
    whole = training(4, Pruning(0.8, every=4, end=9))  # three quarters of 12 steps
    assert_same(resumed.get_weights(), whole.get_weights())
    with pytest.raises(ValueError, match="end must be at most the steps of this fit, 6; got 9"):
        training(1, Pruning(0.8, every=4), resume=path)
    with pytest.raises(ValueError, match="pruning was .* end=9, .* and is .* end=10, "):
        training(2, Pruning(0.8, every=4, end=10), resume=path)


def test_a_training_that_is_killed_goes_on_to_the_bit(tmp_path, backend):
    def training(**options):
        model = model_of(backend, ema=fo.EMA(0.9))
        model.fit(X, Y, epochs=3, batch_size=8, pruning=Pruning(0.8, every=4), verbose=0, **options)
        return model

    whole, path = training(), tmp_path / "c"
    for steps in (5, 12, 13, None):  # 4, 8, ... are those after which weights are pruned
        resumed = training(checkpoint=path, checkpoint_every=3, max_steps=steps, resume=True)
    assert_same([resumed.get_weights(), resumed.averages], [whole.get_weights(), whole.averages])
    assert resumed.history["loss"] == whole.history["loss"]
    with pytest.raises(ValueError, match="pruning was .* and is "):
        model_of(backend, ema=fo.EMA(0.9)).fit(X, Y, epochs=3, batch_size=8, pruning=0.5, resume=path, verbose=0)


# ---------------------------------------------------------------- weights, files, copies
def test_weights_that_are_set_stay_zero_where_they_are_pruned():
    model = prune(model_of(ema=fo.EMA(0.9)), 0.5)
    ones = [np.ones_like(p) for p in model.parameters]
    model.set_weights(ones)
    assert zero_where_pruned(model)
    model.set_weights(ones, ones)
    assert zero_where_pruned(model)
    model.use_averages()
    assert sparsity(model)["dense_1"] == 0.5
    assert model.get_weights()[0].sum() == 21


def saved(model, **options):
    file = io.BytesIO()
    model.save(file, **options)
    return file.getvalue()


def header_of(data):
    (size,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + size])


def test_files_pickles_and_copies_keep_the_masks(backend):
    model = prune(model_of(backend, ema=fo.EMA(0.9)), 0.6)
    model.fit(X, Y)
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), fo.load_model(io.BytesIO(saved(model)))]
    model.fit(X, Y, epochs=2)
    for other in copies:
        other.fit(X, Y, epochs=2)
        assert_same([model.get_weights(), model.averages], [other.get_weights(), other.averages])
        assert zero_where_pruned(other)
        assert other.summary() == model.summary()
    alone = fo.load_model(io.BytesIO(saved(model, weights_only=True)))
    assert sparsity(alone) == sparsity(model)


def test_only_files_of_pruned_models_have_the_newest_format():
    model = model_of()
    formats = []
    for change in (lambda m: m, lambda m: prune(m, 0.5), unprune):
        data = saved(change(model))
        formats.append(json.loads(header_of(data)["__metadata__"]["fastopt"])["format"])
    assert formats == [3, 4, 3]
    masks = {name: entry for name, entry in header_of(saved(prune(model, 0.5))).items() if name.startswith("masks.")}
    assert {name: entry["shape"] for name, entry in masks.items()} == {
        "masks.layers.0.kernel": [6], "masks.layers.3.kernel": [3],
    }  # fmt: skip


def test_a_file_whose_masks_are_damaged_is_refused():
    model = prune(model_of(), 0.5)
    data = saved(model)
    begin, _ = header_of(data)["masks.layers.0.kernel"]["data_offsets"]
    at = 8 + struct.unpack("<Q", data[:8])[0] + begin
    with pytest.raises(ValueError, match=r"layers\.0\.kernel must be zero where its mask says"):
        fo.load_model(io.BytesIO(data[:at] + bytes(6) + data[at + 6 :]))


def test_weights_of_a_file_come_with_its_masks():
    dense, model = model_of(), prune(model_of(), 0.5)
    model.load_weights(io.BytesIO(saved(dense)))
    assert sparsity(model)["total"] == 0
    assert "pruned" not in model.summary()
    dense.load_weights(io.BytesIO(saved(prune(model, 0.25))))
    assert sparsity(dense)["dense_1"] == 10 / 42
    dense.fit(X, Y)
    assert zero_where_pruned(dense)


def test_the_summary_shows_what_is_pruned():
    lines = prune(model_of(), 0.5, layers="dense_1").summary().splitlines()
    assert lines[0].split() == ["layer", "activation", "outputs", "parameters", "pruned"]
    assert lines[1].split() == ["dense_1", "tanh", "7", "49", "50.0%"]
    assert lines[-1] == "total: 87 parameters (21 pruned), 6 inputs, float64"


@pytest.mark.slow  # interpreted, a minute and more
def test_a_pruned_model_is_nearly_as_good():
    """At most a point of accuracy for 80 % of the weights, and two for 90 %, on digits that were held out."""
    data, found = fo.datasets.load("digits"), {}
    x, y = np.concatenate([data.x_train, data.x_test]), np.concatenate([data.y_train, data.y_test])
    train, rest = np.split(np.random.default_rng(0).permutation(len(x)), [1297])
    for share in (None, 0.8, 0.9):
        model = fo.Sequential([fo.Dense(192, "relu"), fo.Dense(96, "relu"), fo.Dense(10, "softmax")], seed=1)
        model.compile("adam", CROSS_ENTROPY, ["accuracy"])
        model.fit(x[train], y[train], epochs=60, batch_size=32, pruning=share and Pruning(share, every=40))
        found[share] = model.evaluate(x[rest], y[rest])["accuracy"]
    assert found[None] > 0.97
    assert found[0.8] >= found[None] - 0.01
    assert found[0.9] >= found[None] - 0.02


# ---------------------------------------------------------------- refusals
UNFIT = {
    "neither": (lambda m: prune(m), ValueError, "give share or threshold, one of them"),
    "both": (lambda m: prune(m, 0.5, 0.1), ValueError, "give share or threshold, one of them"),
    "all": (lambda m: prune(m, 1.0), ValueError, r"share must be in \[0, 1\); got 1.0"),
    "percent": (lambda m: prune(m, 90), ValueError, r"share must be in \[0, 1\); got 90"),
    "text": (lambda m: prune(m, "90%"), TypeError, "share must be a number; got '90%'"),
    "negative": (lambda m: prune(m, threshold=-1), ValueError, "threshold must be at least 0"),
    "scope": (lambda m: prune(m, 0.5, scope="global"), ValueError, "unknown scope 'global'; known: layer, network"),
    "scope of a threshold": (lambda m: prune(m, threshold=1, scope="network"), ValueError, "scope is for a share"),
    "name": (lambda m: prune(m, 0.5, layers="dense"), ValueError, "'dense' is no dense layer of the model; those are"),
    "other layer": (lambda m: prune(m, {"layer_norm_1": 0.5}), ValueError, "'layer_norm_1' is no dense layer"),
    "number": (lambda m: prune(m, 0.5, layers=[0]), TypeError, "layers must be the name of a dense layer, or a list"),
    "no names": (lambda m: prune(m, 0.5, layers=[]), ValueError, "layers must name a dense layer; got an empty list"),
    "no shares": (lambda m: prune(m, {}), ValueError, "share must be a share, or a share for each"),
    "shares of all": (lambda m: prune(m, {"dense_1": 0.5}, scope="network"), ValueError, "has one share of all"),
    "names twice": (lambda m: prune(m, {"dense_1": 0.5}, layers="dense_1"), ValueError, "not in both"),
    "model": (lambda m: prune([m], 0.5), TypeError, "model must be a Sequential; got a list"),
    "schedule": (lambda m: m.fit(X, Y, pruning="0.5"), TypeError, "pruning must be a fastopt.compress.Pruning, a sha"),
    "flag": (lambda m: m.fit(X, Y, pruning=np.bool_(True)), TypeError, "pruning must be a fastopt.compress.Pruning, a"),
    "late": (lambda m: m.fit(X, Y, pruning=Pruning(0.5, end=9)), ValueError, "end must be at most the steps .* 2; got"),
    "later": (lambda m: m.fit(X, Y, pruning=Pruning(0.5, begin=2)), ValueError, "begin must be below the steps"),
    "no end": (lambda m: m.fit(X, Y, batch_size="auto", pruning=0.5), ValueError, "end must be given"),
    "stream": (lambda m: m.fit([(X, Y)], pruning=0.5), ValueError, "end must be given"),
    "layer": (lambda m: m.fit(X, Y, pruning=Pruning(0.5, layers="a")), ValueError, "'a' is no dense layer"),
    "initial": (lambda m: Pruning(0.5, initial=0.6), ValueError, "initial must be at most share, 0.5; got 0.6"),
    "begin": (lambda m: Pruning(0.5, begin=5, end=5), ValueError, "end must be above begin=5; got 5"),
}


def test_a_share_may_be_a_number_of_numpys():
    model = model_of()
    model.fit(X, Y, epochs=2, pruning=np.float32(0.5))
    assert sparsity(model)["total"] == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("case", UNFIT)
def test_what_cannot_be_done_is_refused_before_anything_changes(case):
    call, error, message = UNFIT[case]
    model = model_of()
    before = snapshot(model)
    with pytest.raises(error, match=message):
        call(model)
    assert_same(snapshot(model), before)
    assert model._masks is None


def test_models_without_weights_and_frozen_ones_are_refused():
    with pytest.raises(ValueError, match="has no weights yet: call build, or fit"):
        prune(fo.Sequential([fo.Dense(2)]), 0.5)
    with pytest.raises(ValueError, match="all dense layers are frozen"):
        prune(fo.Sequential([fo.Dense(2, trainable=False)], inputs=3), 0.5)


@pytest.mark.parametrize("call", [lambda m: prune(m, 0.5), unprune, lambda m: prune_neurons(m, 0.5)])
def test_models_of_integers_are_refused(call):
    with pytest.raises(ValueError, match="the weights of a quantized model are integers: prune the model that it was"):
        call(fo.compress.quantize(model_of(dtype="float32"), bits=4))


def test_the_zeros_of_a_model_of_integers_are_those_of_its_weights():
    model = fo.compress.quantize(prune(model_of(dtype="float32"), 0.5), bits=16)
    with pytest.raises(ValueError, match="are integers: ask for the sparsity of model.dequantize()"):
        sparsity(model)
    assert sparsity(model.dequantize())["total"] == sparsity(prune(model_of(dtype="float32"), 0.5))["total"]


@pytest.mark.parametrize("how", ["prune", "gradual", "later"])
def test_states_of_8_bits_are_refused(how):
    model = model_of(dtype="float32")
    if how == "later":
        prune(model, 0.5)
    model.compile(fo.Adam(state_bits=8), CROSS_ENTROPY)
    before = snapshot(model)
    with pytest.raises(ValueError, match="the states of pruned weights are zero.* with state_bits=32"):
        prune(model, 0.5) if how == "prune" else model.fit(X, Y, pruning=0.5 if how == "gradual" else None)
    assert_same(snapshot(model), before)
