"""Models, optimizers and what belongs to them go through pickle, copy, joblib and processes, and work on as before."""

import copy
import io
import multiprocessing
import operator
import pickle

import numpy as np
import pytest
from helpers_model import assert_same, blobs, classifier, snapshot

import fastopt as fo
from fastopt import Callback, Dense, Dropout, EarlyStopping, Sequential, losses, schedules

from .optimizers import drawn, make

X, Y = blobs()


def in_band(protocol):
    return lambda thing: pickle.loads(pickle.dumps(thing, protocol))


def out_of_band(convert):
    """Through protocol 5, with buffers beside the pickle, which `convert` carries over."""

    def trip(thing):
        buffers = []
        data = pickle.dumps(thing, 5, buffer_callback=buffers.append)
        return pickle.loads(data, buffers=[convert(buffer.raw()) for buffer in buffers])

    return trip


def misaligned(raw):
    memory = bytearray(raw.nbytes + 1)
    memory[1:] = raw
    return memoryview(memory)[1:]


def by_cloudpickle(thing):
    return pickle.loads(pytest.importorskip("cloudpickle").dumps(thing))


def by_joblib(thing):
    """As joblib stores what it sends; memory maps are a test of their own."""
    joblib, file = pytest.importorskip("joblib"), io.BytesIO()
    joblib.dump(thing, file)
    file.seek(0)
    return joblib.load(file)


# Every way gives a copy with memory of its own.
TRIPS = {
    **{f"protocol {protocol}": in_band(protocol) for protocol in range(2, 6)},
    "read-only buffers": out_of_band(bytes),
    "writable buffers": out_of_band(bytearray),
    "misaligned buffers": out_of_band(misaligned),
    "buffers themselves": out_of_band(lambda raw: raw),
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "cloudpickle": by_cloudpickle,
    "joblib": by_joblib,
}


@pytest.fixture(params=TRIPS)
def trip(request):
    return TRIPS[request.param]


def halfway(backend, optimizer="adam", **options):
    model = classifier(backend, **options)
    model.compile(optimizer, "sparse_categorical_crossentropy", ["accuracy"])
    model.fit(X, Y, epochs=2, verbose=0)
    return model


def goes_on_alike(model, other):
    """Both train on, independently of each other, to the same bits; the second optimizer has its model's weights."""
    assert all(a is b for a, b in zip(other.optimizer.param_groups[0]["params"], other.parameters, strict=True))
    for a in other.parameters:
        assert a.flags.writeable
        assert not any(np.shares_memory(a, b) for b in model.parameters)
    before = snapshot(model)
    other.fit(X, Y, epochs=4, initial_epoch=2, verbose=0)
    assert_same(before, snapshot(model))
    model.fit(X, Y, epochs=4, initial_epoch=2, verbose=0)
    assert_same(model.get_weights(), other.get_weights())
    assert_same(model.optimizer.state_dict(), other.optimizer.state_dict())
    assert model.evaluate(X, Y) == other.evaluate(X, Y)


# ---------------------------------------------------------------- models


def test_models_train_on(trip, backend):
    model = halfway(backend)
    other = trip(model)
    assert repr(other) == repr(model)
    assert other.history.history == model.history.history
    goes_on_alike(model, other)


@pytest.mark.parametrize("name", ["protocol 4", "read-only buffers", "misaligned buffers", "deepcopy", "joblib"])
@pytest.mark.parametrize(
    "optimizer",
    [
        fo.SGD,
        lambda: fo.SGD(lr=schedules.Cosine(0.1, 50), momentum=0.9, clip_norm=1.0),
        lambda: fo.Adagrad(l1=1e-3),
        lambda: fo.RMSprop(momentum=0.5, centered=True, clip_value=0.1),
        lambda: fo.Adam(amsgrad=True, convention="keras"),
        fo.AdamW,
    ],
)
def test_with_every_optimizer(optimizer, name):
    model = halfway("numpy", optimizer(), dtype="float64")
    goes_on_alike(model, TRIPS[name](model))


@pytest.mark.parametrize("name", ["deepcopy", "copy", "cloudpickle"])
def test_a_schedule_that_is_a_function(name):
    model = halfway("numpy", fo.Adam(lr=lambda step: 0.1 / (1 + step)))
    other = TRIPS[name](model)
    assert other.optimizer.lr == model.optimizer.lr
    for each in (model, other):
        each.fit(X, Y, verbose=0)
    assert_same(model.get_weights(), other.get_weights())


@pytest.mark.parametrize("name", [name for name in TRIPS if name != "copy"])
def test_an_optimizer_with_more_arrays_than_the_models(name):
    model, more = halfway("numpy"), np.zeros(2, np.float32)
    model.optimizer.add_param_group({"params": more, "lr": 0.5})
    other = TRIPS[name](model)
    arrays = [array for group in other.optimizer.param_groups for array in group["params"]]
    assert all(a is b for a, b in zip(arrays, other.parameters, strict=False))
    before = model.get_weights()
    other.optimizer.step([[np.ones_like(p) for p in other.parameters], np.ones(2, np.float32)])
    assert arrays[-1].tolist() != [0, 0]
    assert_same(model.get_weights(), before)
    assert other.optimizer.steps == model.optimizer.steps + 1


def test_models_that_are_not_ready(trip):
    plain = trip(Sequential([Dense(2), Dropout(0.1), Dense(1)], seed=3, backend="numpy"))
    plain.build(4)
    model = classifier()
    other = trip(model)
    assert other.optimizer is not model.optimizer
    for each in (other, model):  # neither takes the optimizer of the other
        each.fit(X, Y, verbose=0)
    assert_same(model.get_weights(), other.get_weights())


def test_subclasses_and_attributes(trip):
    model = halfway("numpy")
    model.notes = {"made": "today"}
    assert trip(model).notes == model.notes


def test_a_model_and_its_parts_stay_together(trip):
    model = halfway("numpy")
    both = trip({"model": model, "optimizer": model.optimizer, "history": model.history})
    if both["model"] is model:
        pytest.skip("copy.copy of a dict copies no values")
    assert both["optimizer"] is both["model"].optimizer
    assert both["history"] is both["model"].history


def test_a_model_in_the_midst_of_its_training(backend):
    class Saver(Callback):
        def on_epoch_end(self, model, epoch, logs):
            if epoch == 2:
                self.copies = [trip(model) for name, trip in TRIPS.items()]
                self.together = pickle.loads(pickle.dumps((model, stopping)))

    saver, stopping = Saver(), EarlyStopping("loss", 9, restore_best_weights=True)
    model = classifier(backend)
    model.fit(X, Y, epochs=4, callbacks=[saver, stopping], verbose=0)
    for other in (*saver.copies, saver.together[0]):
        assert (other.epochs_done, len(other.history)) == (2, 2)
        other.fit(X, Y, epochs=4, initial_epoch=2, verbose=0)
        assert_same(other.get_weights(), model.get_weights())


# ---------------------------------------------------------------- optimizers


@pytest.mark.parametrize("name", [name for name in TRIPS if name not in ("copy", "buffers themselves")])
@pytest.mark.parametrize("rule", ["sgd", "momentum", "adagrad", "rmsprop", "adam", "adamw"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_optimizers_step_on(rule, dtype, name):
    arrays = {"w": drawn((3, 4), dtype), "deep": [drawn((5,), dtype, 1)]}
    optimizer = make(rule, arrays, lr=schedules.Linear(0.5, 20), backend="numpy", clip_norm=9.0)
    grads = [{"w": drawn((3, 4), dtype, i), "deep": [drawn((5,), dtype, 50 + i)]} for i in range(4)]
    for g in grads[:2]:
        optimizer.step(g)
    other = TRIPS[name](optimizer)
    theirs = other.param_groups[0]["params"]
    assert not any(np.shares_memory(a, b) for a, b in zip(theirs, optimizer.param_groups[0]["params"], strict=True))
    assert (other.steps, other.lr, other.grad_norm) == (optimizer.steps, optimizer.lr, optimizer.grad_norm)
    for g in grads[2:]:
        for each in (optimizer, other):
            each.step(g)
    assert_same(theirs, optimizer.param_groups[0]["params"])
    assert_same(other.state_dict(), optimizer.state_dict())


@pytest.mark.parametrize("layout", [np.ascontiguousarray, np.asfortranarray, lambda a: np.repeat(a, 2, axis=1)[:, ::2]])
# joblib's files do not know that two arrays are one.
@pytest.mark.parametrize("name", [name for name in TRIPS if name not in ("copy", "read-only buffers", "joblib")])
def test_an_optimizer_stays_with_the_users_array(name, layout):
    w = layout(drawn((3, 4), "float32"))
    optimizer = fo.Adam({"w": w}, backend="numpy")
    other_w, other = TRIPS[name]((w, optimizer))
    assert other.param_groups[0]["params"][0] is other_w
    before = other_w.copy()
    other.step({"w": np.ones((3, 4), np.float32)})
    assert not np.array_equal(other_w, before)


def test_a_copy_of_an_optimizer_has_states_of_its_own():
    w = np.zeros(3)
    optimizer = fo.SGD(w, lr=1.0, momentum=0.5, backend="numpy")
    optimizer.step(np.ones(3))
    other = copy.copy(optimizer)
    assert other.param_groups[0]["params"][0] is w
    other.step(np.ones(3))
    assert (optimizer.steps, other.steps, w.tolist()) == (1, 2, [-2.5] * 3)
    assert optimizer.state_dict()["state"][0]["momentum_buffer"].tolist() == [1.0] * 3


def test_groups_and_optimizers_without_arrays(trip):
    unbound = trip(fo.AdamW(lr=0.25, weight_decay=0.5))
    assert (unbound.bound, unbound.lr) == (False, 0.25)
    opt = fo.SGD([{"params": np.ones(2), "lr": 0.5}, {"params": [np.ones(3)], "momentum": 0.1}], backend="numpy")
    opt.step([np.ones(2), [np.ones(3)]])
    other = trip(opt)
    assert_same(other.state_dict(), opt.state_dict())
    other.step([np.ones(2), [np.ones(3)]])


# ---------------------------------------------------------------- everything else


EVERY = [
    *(make_() for make_ in losses.LOSS_CLASSES.values()),
    losses.Huber(delta=0.5),
    schedules.WarmUp(3, schedules.Join((schedules.Step(0.1, 3), 0.5), (2,))),
    schedules.OneCycle(0.1, 10),
    Dense(3, "relu", kernel_initializer=np.ones((2, 3)), name="a"),
    Dropout(0.5),
    EarlyStopping("loss", 3, restore_best_weights=True),
    fo.History(),
]


@pytest.mark.parametrize("thing", EVERY, ids=lambda thing: type(thing).__name__)
def test_what_belongs_to_models(thing, trip):
    other = trip(thing)
    assert type(other) is type(thing)
    assert repr(other) == repr(thing) or isinstance(thing, EarlyStopping)
    plain = {k: v for k, v in vars(thing).items() if isinstance(v, int | float | str | tuple | list | None)}
    assert plain == {k: v for k, v in vars(other).items() if k in plain}


def test_layers_stay_as_they_are(trip):
    layer = trip(Dense(3, kernel_initializer=np.ones((2, 3)), bias_initializer=[1, 2, 3]))
    for array in (layer.kernel_initializer, layer.bias_initializer):
        assert array.flags.owndata
        assert not array.flags.writeable
        with pytest.raises(ValueError, match="read-only"):
            array[:] = 0


def test_early_stopping_with_weights(trip):
    stopping, model = EarlyStopping("loss", 9, restore_best_weights=True), classifier()
    model.build(6)
    stopping.on_epoch_end(model, 1, {"loss": 1.0})
    kept = model.get_weights()
    other = trip(stopping)
    model.set_weights([w + 1 for w in kept])
    other.on_train_end(model)
    assert_same(model.get_weights(), kept)


# ---------------------------------------------------------------- processes


MAPPED = {"max_nbytes": 1000}


@pytest.mark.parametrize("options", [MAPPED, {**MAPPED, "mmap_mode": "c"}, {"max_nbytes": None}], ids=repr)
def test_joblib_workers_train_large_models(options):
    """Arrays of the model come as memory maps, read-only ones with the usual mode."""
    joblib = pytest.importorskip("joblib")
    model = Sequential([Dense(64, "relu"), Dense(3, "softmax")], backend="numpy", inputs=64)
    model.compile("adam", "sparse_categorical_crossentropy")
    x = np.random.default_rng(0).standard_normal((60, 64))
    model.fit(x, Y[:60], verbose=0)

    def train(model):
        model.fit(x, Y[:60], epochs=3, initial_epoch=1, verbose=0)
        return model

    before = model.get_weights()
    with joblib.Parallel(n_jobs=2, timeout=120, **options) as parallel:
        found = parallel(joblib.delayed(train)(model) for _ in range(3))
    assert_same(model.get_weights(), before)
    train(model)
    for other in found:
        assert_same(other.get_weights(), model.get_weights())


def test_joblib_threads():
    joblib = pytest.importorskip("joblib")
    model = halfway("numpy")
    found = joblib.Parallel(n_jobs=2, backend="threading")(joblib.delayed(model.predict)(X) for _ in range(4))
    for each in found:
        np.testing.assert_array_equal(each, model.predict(X))


def test_a_memory_map_of_joblibs(tmp_path):
    joblib = pytest.importorskip("joblib")
    model = halfway("numpy")
    joblib.dump(model, tmp_path / "model")
    stored = (tmp_path / "model").read_bytes()
    for mode in ("r", "c", "r+"):
        other = joblib.load(tmp_path / "model", mmap_mode=mode)
        goes_on_alike(halfway("numpy"), other)
    assert (tmp_path / "model").read_bytes() == stored


def test_a_process_of_its_own():
    model = halfway("numpy")
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        predicted = pool.apply_async(operator.methodcaller("predict", X), (model,)).get(120)
    np.testing.assert_array_equal(predicted, model.predict(X))
