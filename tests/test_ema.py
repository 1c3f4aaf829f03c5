"""Averages of the weights over steps: the formula, who uses them, files and copies, and refusals."""

import copy
import io
import pickle

import hypothesis.strategies as st
import numpy as np
import pytest
from helpers_model import CROSS_ENTROPY, assert_same, blobs
from hypothesis import given, settings

import fastopt as fo
from fastopt.callbacks import LambdaCallback

X, Y = blobs(60)
EMAS = [
    fo.EMA(0.9), fo.EMA(0.9, debias=False), fo.EMA(1.0), fo.EMA(0.0), fo.EMA(0.8, start=3),
    fo.EMA(0.8, debias=False, start=4),
]  # fmt: skip


def model_of(ema, backend, dtype="float64", optimizer=None, **of_layer):
    layers = [fo.Dense(7, "tanh", **of_layer), fo.Dropout(0.1), fo.Dense(3, "softmax")]
    model = fo.Sequential(layers, 1, backend, dtype)
    model.compile(optimizer or fo.SGD(lr=0.5), CROSS_ENTROPY, ["accuracy"], ema=ema)
    return model


def recorded(model, **how):
    """The weights after each step of a `fit`."""
    weights = []
    look = LambdaCallback(on_step_end=lambda model, step, logs: weights.append(model.get_weights()))
    model.fit(X, Y, batch_size=8, callbacks=[look], **how)
    return weights


def average_of(ema, weights):
    """The documented mean: steps from k = 1 on, each weighing `decay` times the one after it."""
    counted = weights[ema.start :]
    if not counted:
        return weights[-1]
    ages = np.arange(len(counted))[::-1]
    factors = ema.decay ** ages.astype(float)
    if not ema.debias:  # the first has the whole of what came before it
        factors[1:] *= 1 - ema.decay
    return [np.average(np.stack(each), axis=0, weights=factors) for each in zip(*counted, strict=True)]


@pytest.mark.parametrize("how", [{}, {"accumulate": 3}], ids=str)
@pytest.mark.parametrize("ema", EMAS, ids=str)
def test_the_average_is_the_formula_over_recorded_weights(ema, how, backend):
    model = model_of(ema, backend)
    weights = recorded(model, epochs=2, **how)
    for ours, theirs in zip(model.averages, average_of(ema, weights), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-12)
    assert_same(model.get_averages(), model.averages)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_keras_and_torch_without_debias(dtype, backend):
    """Keras's ema_momentum and torch's get_ema_multi_avg_fn: a copy at first, then average + share (w - average)."""
    model, T = model_of(fo.EMA(0.9, debias=False), backend, dtype), np.dtype(dtype).type
    weights = recorded(model, epochs=1)
    average = weights[0]
    for w in weights[1:]:
        average = [a + T(1 - 0.9) * (p - a) for a, p in zip(average, w, strict=True)]
    assert_same(model.get_averages(), average)


def test_torch_averages_the_same():
    torch = pytest.importorskip("torch")
    swa = torch.optim.swa_utils
    pairs = (fo.EMA(1.0), swa.get_swa_multi_avg_fn()), (fo.EMA(0.75, False), swa.get_ema_multi_avg_fn(0.75))
    for ema, function in pairs:
        model = model_of(ema, "numpy")
        weights = recorded(model, epochs=2)
        theirs = torch.nn.ParameterList([torch.tensor(w) for w in weights[0]])
        averaged = swa.AveragedModel(theirs, multi_avg_fn=function)
        for now in weights:
            with torch.no_grad():
                for p, w in zip(theirs, now, strict=True):
                    p.copy_(torch.tensor(w))
            averaged.update_parameters(theirs)
        for ours, other in zip(model.averages, averaged.module, strict=True):
            # torch divides by the number of steps in float32
            np.testing.assert_allclose(ours, other.detach().numpy(), rtol=1e-6, atol=1e-8)


def test_the_weights_and_the_figures_of_training_rows_are_those_without(backend):
    bare, model = model_of(None, backend, "float32"), model_of(fo.EMA(0.9), backend, "float32")
    a, b = (one.fit(X, Y, epochs=3, batch_size=8) for one in (bare, model))
    assert_same(bare.get_weights(), model.get_weights())
    assert (a["loss"], a["accuracy"]) == (b["loss"], b["accuracy"])


# ---------------------------------------------------------------- who uses the averages


def test_predict_evaluate_and_validation_use_the_average(backend):
    model = model_of(fo.EMA(0.95), backend)
    history = model.fit(X, Y, epochs=3, batch_size=8, validation_data=(X[:20], Y[:20]))
    twin = model_of(None, backend)
    twin.build(X.shape[1])
    twin.set_weights(model.get_averages())
    assert_same(model.predict(X), twin.predict(X))
    assert_same(model.predict_classes(X), twin.predict_classes(X))
    assert model.evaluate(X[:20], Y[:20]) == twin.evaluate(X[:20], Y[:20])
    assert history["val_loss"][-1] == pytest.approx(twin.evaluate(X[:20], Y[:20])["loss"], rel=1e-12)
    twin.set_weights(model.get_weights())
    assert np.abs(model.predict(X) - twin.predict(X)).max() > 1e-3
    assert history["val_loss"][-1] != pytest.approx(twin.evaluate(X[:20], Y[:20])["loss"], rel=1e-6)


def test_metrics_that_are_functions_see_the_average(backend):
    seen = []

    def spread(y_true, y_pred):
        seen.append(y_pred.copy())
        return float(y_pred.std())

    model = model_of(None, backend)
    model.compile(model.optimizer, CROSS_ENTROPY, [spread], ema=fo.EMA(0.9))
    model.fit(X, Y, batch_size=8, validation_data=(X, Y))
    np.testing.assert_allclose(seen[-1], model.predict(X), rtol=1e-12)


def test_before_the_first_step_it_is_the_weights(backend):
    model = model_of(fo.EMA(), backend)
    assert model.averages is None
    assert model.get_averages() is None
    model.build(X.shape[1])
    assert_same(model.get_averages(), model.get_weights())
    assert not any(np.shares_memory(a, p) for a, p in zip(model.averages, model.parameters, strict=True))


def test_use_averages_copies_them_into_the_weights(backend):
    model = model_of(fo.EMA(0.9), backend, optimizer=fo.Adam())
    model.fit(X, Y, batch_size=8)
    averages, states = model.get_averages(), model.optimizer.state_dict()
    model.use_averages()
    assert_same(model.get_weights(), averages)
    assert_same(model.get_averages(), averages)
    assert_same(model.optimizer.state_dict(), states)


def test_set_weights_begins_the_average_again_unless_it_is_given(backend):
    model, fresh = model_of(fo.EMA(0.9), backend), model_of(fo.EMA(0.9), backend)
    model.fit(X, Y, batch_size=8)
    weights, averages = model.get_weights(), model.get_averages()
    model.set_weights(weights)
    assert_same(model.get_averages(), weights)
    fresh.build(X.shape[1])
    fresh.set_weights(weights)
    for one in (model, fresh):
        one.epochs_done = 0
        one.fit(X, Y, batch_size=60, shuffle=False)
        assert one.averages[0].tolist() == one.parameters[0].tolist()  # k = 1
    model.set_weights(weights, averages)
    assert_same((model.get_weights(), model.get_averages()), (weights, averages))


def test_early_stopping_restores_the_average_of_its_figure(backend):
    """The largest loss is that of the first epoch."""
    model = model_of(fo.EMA(0.5), backend)
    stop = fo.EarlyStopping("val_loss", patience=50, mode="max", restore_best_weights=True)
    history = model.fit(X, Y, epochs=8, batch_size=8, validation_data=(X, Y), callbacks=[stop])
    assert stop.best_epoch < 8
    assert model.evaluate(X, Y)["loss"] == pytest.approx(max(history["val_loss"]), rel=1e-12)


def test_compile_goes_on_with_the_same_and_begins_another(backend):
    model = model_of(fo.EMA(0.9), backend)
    model.fit(X, Y, batch_size=8)
    before = model.get_averages()
    model.compile(model.optimizer, CROSS_ENTROPY, ema=fo.EMA(0.9))
    assert_same(model.get_averages(), before)
    assert model.ema == fo.EMA(0.9)
    model.compile(model.optimizer, CROSS_ENTROPY, ema=fo.EMA(0.5))
    assert_same(model.get_averages(), model.get_weights())
    model.compile(model.optimizer, CROSS_ENTROPY)
    assert model.ema is None
    assert model.averages is None
    with pytest.raises(ValueError, match="no averages"):
        model.use_averages()


def test_averages_of_constrained_weights(backend):
    ema, limit = fo.EMA(0.9), fo.constraints.NonNegative()
    model = model_of(ema, backend, kernel_constraint=limit)
    weights = recorded(model, epochs=2)
    assert all((w[0] >= 0).all() for w in weights)
    for ours, theirs in zip(model.averages, average_of(ema, weights), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-12)


def test_the_average_of_a_frozen_layer_is_its_weights(backend):
    if not hasattr(fo.Sequential, "freeze"):
        pytest.skip("layers cannot be frozen")
    model = model_of(fo.EMA(0.9), backend)
    model.fit(X, Y, batch_size=8)
    model.freeze(model.names[0])
    model.fit(X, Y, batch_size=8)
    assert_same(model.get_averages()[:2], model.get_weights()[:2])
    assert np.abs(model.averages[2] - model.parameters[2]).max() > 1e-6
    model.unfreeze(model.names[0])
    model.fit(X, Y, batch_size=8)
    assert np.abs(model.averages[0] - model.parameters[0]).max() > 1e-6


@pytest.mark.parametrize("limit", [None, fo.constraints.UnitNorm()], ids=str)
def test_a_step_whose_weights_are_0_changes_nothing(limit, backend):
    """The second of two."""
    model, twin = (model_of(fo.EMA(0.5), backend, kernel_constraint=limit) for _ in range(2))
    weights = np.repeat([1.0, 0.0], 30)
    model.fit(X, Y, batch_size=30, shuffle=False, sample_weight=weights)
    twin.fit(X[:30], Y[:30], batch_size=30, shuffle=False, sample_weight=weights[:30])
    assert_same((model.get_weights(), model.get_averages()), (twin.get_weights(), twin.get_averages()))


# ---------------------------------------------------------------- going on


@pytest.mark.parametrize("ema", EMAS, ids=str)
def test_files_pickles_and_copies_go_on_bit_for_bit(ema, backend):
    whole, model = model_of(ema, backend, "float32"), model_of(ema, backend, "float32")
    whole.fit(X, Y, epochs=3, batch_size=8)
    model.fit(X, Y, epochs=1, batch_size=8)
    file = io.BytesIO()
    model.save(file)
    file.seek(0)
    others = [fo.load_model(file), pickle.loads(pickle.dumps(model)), copy.deepcopy(model), copy.copy(model), model]
    predicted = model.predict(X)
    for other in others:
        assert other.ema == ema
        assert_same(other.predict(X), predicted)
        other.fit(X, Y, epochs=3, initial_epoch=1, batch_size=8)
        assert_same(other.get_weights(), whole.get_weights())
        assert_same(other.get_averages(), whole.get_averages())
        assert_same(other.predict(X), whole.predict(X))


def test_epochs_in_parts_average_alike(backend):
    whole, parts = model_of(fo.EMA(0.9), backend, "float32"), model_of(fo.EMA(0.9), backend, "float32")
    whole.fit(X, Y, epochs=3, batch_size=8)
    recorded(parts, epochs=3)
    assert_same(whole.get_averages(), parts.get_averages())


def test_load_weights_begins_again_with_the_files_weights(path, backend):
    saved, model = model_of(fo.EMA(0.9), backend), model_of(fo.EMA(0.9), backend)
    for one in (saved, model):
        one.fit(X, Y, batch_size=8)
    saved.save(path)
    model.load_weights(path)
    assert_same(model.get_weights(), saved.get_weights())
    assert_same(model.get_averages(), saved.get_weights())


def test_a_damaged_file_is_refused(path):
    from fastopt.models import _description, checkpoint

    model = model_of(fo.EMA(0.9), "numpy")
    model.fit(X, Y)
    description, tensors = _description.describe(model)
    for broken in (
        {name: t for name, t in tensors.items() if name != "averages.layers.0.kernel"},
        {**tensors, "averages.layers.0.kernel": np.zeros((2, 2))},
        {**tensors, "averages.layers.9.kernel": np.zeros((2, 2))},
    ):
        checkpoint.write(path, description, broken)
        with pytest.raises(ValueError, match="not a usable model file"):
            fo.load_model(path)


def test_a_model_pickled_before_there_were_averages(backend):
    model = model_of(None, backend)
    model.fit(X, Y)
    state = {name: value for name, value in model.__getstate__().items() if name not in ("_ema", "_averages")}
    old = fo.Sequential.__new__(fo.Sequential)
    old.__setstate__(state)
    assert old.ema is None
    assert old.averages is None
    assert_same(old.predict(X), model.predict(X))


@settings(max_examples=10, deadline=None)
@given(
    decay=st.floats(0, 1), start=st.integers(0, 12), size=st.integers(3, 60), accumulate=st.integers(1, 3),
    rule=st.sampled_from([fo.SGD, fo.Adam, fo.RMSprop]), clip=st.none() | st.just(0.1), limit=st.booleans(),
)  # fmt: skip
def test_backends_agree(decay, start, size, accumulate, rule, clip, limit):
    found = []
    for backend in ("cpu", "numpy"):
        of_layer = {"kernel_constraint": "max_norm"} if limit else {}
        model = model_of(fo.EMA(decay, start=start), backend, "float64", rule(lr=0.01, clip_norm=clip), **of_layer)
        model.fit(X, Y, epochs=2, batch_size=size, accumulate=accumulate)
        found.append(model.get_averages())
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-8)


# ---------------------------------------------------------------- arguments


@given(decay=st.floats(0, 1), start=st.integers(0, 5), done=st.integers(0, 50), n=st.integers(0, 50))
def test_shares(decay, start, done, n):
    """Cut anywhere they are the same; all in (0, 1], and never rising but by rounding."""
    ema = fo.EMA(decay, start=start)
    whole = ema.shares(0, done + n)
    np.testing.assert_array_equal(whole[done:], ema.shares(done, n))
    assert (whole > 0).all()
    assert (whole <= 1).all()
    assert (np.diff(whole) <= 1e-15).all()
    assert (whole[: start + 1] == 1).all()


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: fo.EMA(1.5), ValueError, r"decay must be in \[0, 1\]"),
        (lambda: fo.EMA(-0.1), ValueError, "decay must be at least 0"),
        (lambda: fo.EMA("0.9"), TypeError, "decay must be a number"),
        (lambda: fo.EMA(0.9, debias=1), TypeError, "debias must be True or False"),
        (lambda: fo.EMA(0.9, start=-1), ValueError, "start must be at least 0"),
        (lambda: fo.EMA(1.0, debias=False), ValueError, "decay=1 needs debias=True"),
        (lambda: model_of(0.999, "numpy"), TypeError, "ema must be a fastopt.EMA, or None; got"),
        (lambda: model_of(None, "numpy").use_averages(), ValueError, "call compile with ema="),
    ],
)
def test_refusals(make, error, words):
    with pytest.raises(error, match=words):
        make()


def test_averages_without_an_ema_are_refused():
    model = model_of(None, "numpy")
    model.build(X.shape[1])
    with pytest.raises(ValueError, match="compiled with an EMA"):
        model.set_weights(model.get_weights(), model.get_weights())
    model.compile("sgd", CROSS_ENTROPY, ema=fo.EMA())
    before = model.get_weights()
    with pytest.raises(ValueError, match=r"averages must be 4 arrays; got 1"):
        model.set_weights(before, before[:1])
    assert_same(model.get_weights(), before)


# ---------------------------------------------------------------- other ways through the data


@pytest.mark.parametrize("size", ["full", fo.batches.Random(4, 16), fo.batches.Growing(8, 2, 1, 32)], ids=str)
def test_batches_of_other_sizes_are_averaged_by_steps(size, backend):
    ema, model = fo.EMA(0.9), model_of(fo.EMA(0.9), backend)
    weights = []
    look = LambdaCallback(on_step_end=lambda model, step, logs: weights.append(model.get_weights()))
    model.fit(X, Y, epochs=2, batch_size=size, callbacks=[look])
    whole = model_of(ema, backend)
    whole.fit(X, Y, epochs=2, batch_size=size)
    for ours, other, theirs in zip(whole.averages, model.averages, average_of(ema, weights), strict=True):
        np.testing.assert_array_equal(ours, other)
        np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-12)


def test_single_batches_and_streams_are_steps(backend):
    fitted, single, streamed = (model_of(fo.EMA(0.9), backend) for _ in range(3))
    fitted.fit(X, Y, batch_size=20, shuffle=False)
    pieces = [(X[i : i + 20], Y[i : i + 20]) for i in range(0, 60, 20)]
    for x, y in pieces:
        single.train_on_batch(x, y)
    streamed.fit(iter(pieces), steps_per_epoch=3)
    for other in (single, streamed):
        assert_same(other.get_weights(), fitted.get_weights())
        assert_same(other.get_averages(), fitted.get_averages())


def test_a_resumed_training_has_the_averages_of_an_uninterrupted_one(tmp_path, backend):
    how = {"epochs": 3, "batch_size": 8, "checkpoint_every": 5}
    limit = {"kernel_constraint": fo.constraints.MaxNorm(1.0)}
    whole, killed, resumed = (model_of(fo.EMA(0.9), backend, "float32", fo.Adam(), **limit) for _ in range(3))
    whole.fit(X, Y, **how, checkpoint=tmp_path / "whole")

    def stop(model, step, logs):
        if step == 13:
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        killed.fit(X, Y, **how, checkpoint=tmp_path / "part", callbacks=[LambdaCallback(on_step_end=stop)])
    part = {"checkpoint": tmp_path / "part", "resume": tmp_path / "part"}
    resumed.fit(X, Y, **how, **part, callbacks=[LambdaCallback(on_step_end=lambda *_: None)])
    assert_same(resumed.get_weights(), whole.get_weights())
    assert_same(resumed.get_averages(), whole.get_averages())
    assert_same(resumed.predict(X), whole.predict(X))
