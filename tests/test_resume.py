"""A training that was cut off goes on from its checkpoint to the same bits, within an epoch, too."""

from __future__ import annotations

import logging
import os

import numpy as np
import pytest
from helpers_model import assert_same
from helpers_resume import TARGETS, Killed, X, Y, assert_the_same_training, fit, killed, model_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fastopt as fo
from fastopt.callbacks import (
    Callback,
    CSVLogger,
    EarlyStopping,
    LambdaCallback,
    ModelCheckpoint,
    ReduceLROnPlateau,
    TensorBoard,
)
from fastopt.models import _checkpoints

# arguments of a layer
FIRST = [{}, {"kernel_constraint": "max_norm"}, {"kernel_regularizer": "l2"}, {"lr_scale": 0.5}, {"trainable": False}]
BETWEEN = [(), (fo.BatchNorm(), fo.GaussianNoise(0.1)), (fo.LayerNorm(),)]


def resumed(path, backend="numpy", of_model=None, make_callbacks=tuple, kills=(1,), **options):
    """A model whose training was cut off after so many checkpoints, once for each of `kills`, and resumed."""
    options |= {"checkpoint": path, "resume": True}
    for after in kills:
        killed(model_of(backend, **of_model or {}), after, callbacks=list(make_callbacks()), **options)
    model = model_of(backend, **of_model or {})
    fit(model, callbacks=list(make_callbacks()), **options)
    return model


@pytest.mark.parametrize("after", [1, 2, 4, 6])
def test_after_any_checkpoint(backend, after, tmp_path):
    """Checkpoints are those of steps 3, 6, 9, of the end of an epoch at step 11, and of 12, 15 and so on."""
    whole = model_of(backend)
    fit(whole)
    model = resumed(tmp_path / "c", backend, kills=[after], checkpoint_every=3)
    assert_the_same_training(model, whole)


def noisy(x, y, rng):
    return x + 0.1 * rng.standard_normal(x.shape), y


def more_or_fewer(x, y, rng):
    rows = rng.integers(0, len(x), int(rng.integers(1, 12)))
    return x[rows], y[rows]


@pytest.mark.parametrize("options", [{}, {"accumulate": 3, "batch_size": 3}, {"steps_per_epoch": 4}], ids=str)
def test_augmented_batches(backend, options, tmp_path):
    """Only the batches that were not done are made anew, from the generators that they would have had."""
    whole, calls = model_of(backend), []
    fit(whole, augment=more_or_fewer, **options)

    def counted(x, y, rng):
        calls.append(len(x))
        return more_or_fewer(x, y, rng)

    counted.__qualname__ = more_or_fewer.__qualname__
    path = {"checkpoint": tmp_path / "c", "checkpoint_every": 3, "resume": True}
    assert killed(model_of(backend), 2, augment=more_or_fewer, **path, **options)
    model = model_of(backend)
    fit(model, augment=counted, **path, **options)
    assert_the_same_training(model, whole)
    assert 0 < len(calls) <= (len(whole.history.step_losses) - 6) * options.get("accumulate", 1)
    with pytest.raises(ValueError, match="augment was more_or_fewer and is noisy"):
        fit(model_of(backend), augment=noisy, **path, **options)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=6)
@given(data=st.data())
def test_mixes_of_options(backend, data, tmp_path_factory):
    check_mix(backend, data.draw, tmp_path_factory)


@pytest.mark.repeats
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=12)
@given(data=st.data())
def test_many_mixes_of_options(backend, data, tmp_path_factory):
    check_mix(backend, data.draw, tmp_path_factory)


def check_mix(backend, draw, tmp_path_factory):
    """Cut off more than once, with what else there is."""
    of_model = {
        "clip_norm": draw(st.sampled_from([None, 0.5])),
        "lr": draw(st.sampled_from([0.03, None, fo.schedules.Exponential(0.05, gamma=0.9)])),
        "metrics": draw(st.sampled_from([(), ("accuracy",), ("r2", "f1_macro", "mse")])),
        "ema": draw(st.sampled_from([None, fo.EMA(0.9)])),
        "first": draw(st.sampled_from(FIRST)),
        "between": draw(st.sampled_from(BETWEEN)),
    }
    options = {
        "batch_size": draw(st.sampled_from([1, 7, 40, 100])), "accumulate": draw(st.sampled_from([1, 2, 3])),
        "shuffle": draw(st.booleans()), "validation_split": draw(st.sampled_from([0.0, 0.25])),
        "steps_per_epoch": draw(st.sampled_from([None, 1, 5])), "epochs": 3,
        "max_steps": draw(st.sampled_from([None, None, 4, 13])),
        "sample_weight": draw(st.sampled_from([None, np.arange(77) % 5])),
        "augment": draw(st.sampled_from([None, noisy])),
    }  # fmt: skip
    whole = model_of(backend, **of_model)
    fit(whole, callbacks=[Callback()], **options)
    every = draw(st.sampled_from([1, 2, 5, 11, "1 epoch", "2 epochs"]))
    kills = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    path = tmp_path_factory.mktemp("c") / "checkpoint"
    model = resumed(path, backend, of_model, kills=kills, checkpoint_every=every, **options)
    assert_the_same_training(model, whole)


def test_other_numbers_of_threads(tmp_path):
    counts = fo.get_num_threads()
    whole = model_of("cpu")
    fit(whole, batch_size=40, epochs=3)
    try:
        fo.set_num_threads(1)
        options = {"batch_size": 40, "epochs": 3, "checkpoint": tmp_path / "c", "checkpoint_every": 1, "resume": True}
        assert killed(model_of("cpu"), 1, **options)
        fo.set_num_threads(2)
        assert killed(model_of("cpu"), 3, **options)
        fo.set_num_threads(1)
        model = model_of("cpu")
        fit(model, **options)
    finally:
        fo.set_num_threads(counts)
    assert_the_same_training(model, whole)


def test_a_model_that_has_learnt_before(backend, tmp_path):
    """A second training of a model: its steps and epochs count from the first one's."""
    models = [model_of(backend) for _ in range(3)]
    for model in models:
        fit(model, epochs=1)
    whole, cut, again = models
    options = {"epochs": 3, "initial_epoch": 1, "max_steps": 16}
    fit(whole, callbacks=[Callback()], **options)
    assert killed(cut, 2, checkpoint=tmp_path / "c", checkpoint_every=4, **options)
    fit(again, checkpoint=tmp_path / "c", checkpoint_every=4, resume=tmp_path / "c", **options)
    assert_the_same_training(again, whole)
    assert again.optimizer.steps == 11 + 16


# ---------------------------------------------------------------- ends


def test_a_training_that_is_done_is_not_done_again(backend, tmp_path):
    path, steps = tmp_path / "c", []
    hear = LambdaCallback(on_step_end=lambda model, step, logs: steps.append(step), every_steps=1)
    whole, model = model_of(backend), model_of(backend)
    fit(whole, checkpoint=path)
    fit(model, checkpoint=path, resume=True, callbacks=[hear])
    assert steps == []
    assert_the_same_training(model, whole)


def test_the_best_weights_come_back_though_the_training_was_done_before(tmp_path):
    path = tmp_path / "c"
    models = []
    for _ in range(2):
        stopper = EarlyStopping("loss", patience=99, mode="max", restore_best_weights=True)
        models.append(model_of("numpy"))
        fit(models[-1], epochs=4, checkpoint=path, resume=True, callbacks=[stopper])
        assert stopper.best_epoch == 1
    assert_the_same_training(*models)


@pytest.mark.parametrize("first", [{"max_steps": 15}, {"epochs": 2}, {"max_steps": 11}, {"max_steps": 22}])
def test_later_limits_go_on_as_if_they_had_been_there_at_first(backend, first, tmp_path):
    whole, model = model_of(backend), model_of(backend)
    fit(whole, epochs=4, max_steps=30, validation_split=0.0)
    fit(model_of(backend), **{"epochs": 4} | first, checkpoint=tmp_path / "c", checkpoint_every=4)
    fit(model, epochs=4, max_steps=30, resume=tmp_path / "c")
    assert_the_same_training(model, whole)


def test_the_same_limit_has_been_reached(backend, tmp_path):
    whole, model = model_of(backend), model_of(backend)
    options = {"epochs": 4, "max_steps": 15, "checkpoint": tmp_path / "c", "validation_split": 0.25}
    fit(whole, **options)
    fit(model, resume=True, **options)
    assert_the_same_training(model, whole)


def test_seconds_are_those_of_the_whole_training(tmp_path):
    options = {"epochs": 9, "checkpoint": tmp_path / "c"}
    fit(model_of("numpy"), **options)
    model = model_of("numpy")
    history = fit(model, **options | {"epochs": 99}, resume=True, max_seconds=1e-9)
    assert history.epochs == list(range(1, 10))


def test_a_callback_has_stopped_it(backend, tmp_path):
    def stop(model, step, logs):
        model.stop_training = True

    whole, model = model_of(backend), model_of(backend)
    fit(whole, epochs=5, checkpoint=tmp_path / "c", callbacks=[LambdaCallback(on_step_end=stop, every_steps=13)])
    assert whole.optimizer.steps == 13
    fit(model, epochs=5, checkpoint=tmp_path / "c", resume=True)
    assert_the_same_training(model, whole)
    assert model.stop_training


# ---------------------------------------------------------------- callbacks


def test_every_callback_goes_on(backend, tmp_path, monkeypatch):
    """Whatever they have written and decided is that of a training without interruption."""

    def callbacks(folder):
        folder.mkdir(exist_ok=True)
        return [
            EarlyStopping("val_loss", patience=3, restore_best_weights=True),
            ReduceLROnPlateau("val_loss", patience=1, factor=0.5, cooldown=1, min_delta=0.02),
            ModelCheckpoint(folder / "best", "val_loss", save_best_only=True),
            ModelCheckpoint(folder / "{epoch}-{step}", save_freq=7),
            CSVLogger(folder / "figures.csv"),
        ]

    options = {"epochs": 40, "validation_split": 0.5, "checkpoint_every": 5}
    whole = model_of(backend, lr=0.2)
    theirs = callbacks(tmp_path / "whole")
    fit(whole, callbacks=theirs, **options | {"checkpoint_every": None})
    assert theirs[0].stopped_epoch
    assert whole.optimizer.lr < 0.2
    ours, parts, n = [], tmp_path / "parts", 0
    while n < 40:
        n += 1
        ours[:] = callbacks(parts)
        model = model_of(backend, lr=0.2)
        if not killed(model, 4, callbacks=ours, checkpoint=tmp_path / "c", resume=True, **options):
            break
    assert n > 4
    assert_the_same_training(model, whole)
    for mine, other in zip(ours, theirs, strict=True):
        names = ("best", "best_epoch", "stopped_epoch", "_waited", "_cooling", "_epoch")
        assert [getattr(mine, name, None) for name in names] == [getattr(other, name, None) for name in names]
    assert os.path.basename(ours[3].path) == os.path.basename(theirs[3].path)
    assert sorted(os.listdir(parts)) == sorted(os.listdir(tmp_path / "whole"))
    assert_same(fo.load_model(parts / "best").get_weights(), fo.load_model(tmp_path / "whole" / "best").get_weights())
    tables = [
        [line.split(",")[:-2] for line in (folder / "figures.csv").read_text().splitlines()]
        for folder in (parts, tmp_path / "whole")
    ]
    assert tables[0] == tables[1]
    assert len(tables[0]) == len(whole.history) + 1


def test_a_table_is_added_to_where_it_was(tmp_path):
    path = tmp_path / "figures.csv"
    fit(model_of("numpy"), epochs=1, callbacks=[CSVLogger(path)])
    before = path.read_text()
    options = {"epochs": 5, "checkpoint": tmp_path / "c", "resume": True}

    class Fail(Callback):
        def on_epoch_end(self, model, epoch, logs):
            if epoch == 3:
                raise Killed

    with pytest.raises(Killed):
        fit(model_of("numpy"), callbacks=[CSVLogger(path, append=True), Fail()], **options)
    assert len(path.read_text().splitlines()) == 5  # the third epoch, of which there is no checkpoint, too
    fit(model_of("numpy"), callbacks=[CSVLogger(path, append=True)], **options)
    assert path.read_text().startswith(before)
    assert [line.split(",")[0] for line in path.read_text().splitlines()] == ["epoch", "1", "1", "2", "3", "4", "5"]
    path.unlink()  # lost meanwhile: the lines of this training come back
    fit(model_of("numpy"), callbacks=[CSVLogger(path)], **options)
    assert [line.split(",")[0] for line in path.read_text().splitlines()] == ["1", "2", "3", "4", "5"]


class Remember(Callback):
    """A callback of a user's with a state of all kinds, which also changes the training."""

    every_steps = 2

    def __init__(self):
        self.calls = []

    def on_train_begin(self, model):
        self.calls.append("begin")
        self.seen, self.total = [], np.zeros(2, np.float32)

    def on_epoch_begin(self, model, epoch):
        model.optimizer.lr *= 0.9
        self.calls.append(epoch)

    def on_step_end(self, model, step, logs):
        self.seen.append(logs["loss"])
        self.total += np.float32(logs["loss"])

    def state_dict(self):
        return {
            "seen": self.seen, "total": self.total, "rest": {"none": None, "inf": float("inf"), "words": ("a", True)},
            "scalar": np.float64(0.1),
        }  # fmt: skip

    def load_state_dict(self, state):
        assert (state["rest"], state["scalar"]) == ({"none": None, "inf": float("inf"), "words": ["a", True]}, 0.1)
        self.seen, self.total = state["seen"], state["total"]


def test_callbacks_of_users(backend, tmp_path):
    """Settings of `on_epoch_begin` are not made twice, and losses since the last call go on, too."""
    whole, theirs = model_of(backend, lr=0.05), Remember()
    fit(whole, callbacks=[theirs])
    assert killed(
        model_of(backend, lr=0.05), 2, callbacks=[Remember()], checkpoint=tmp_path / "c", checkpoint_every=7
    )
    model, ours = model_of(backend, lr=0.05), Remember()
    fit(model, callbacks=[ours], resume=tmp_path / "c")
    assert_the_same_training(model, whole)
    assert ours.seen == theirs.seen
    assert_same(ours.total, theirs.total)
    assert ours.calls == ["begin", 2]


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"model": object()}, "Bad.state_dict cannot be kept in a checkpoint: .*must hold numbers.*got a object"),
        ({1: 2}, "Bad.state_dict cannot be kept in a checkpoint: keys of .* must be strings"),
        ({"__array__": 2}, "keys of .* must be strings, and not __array__"),
        ({"z": np.zeros(2, complex)}, "arrays of .*; got complex128"),
        ([1], r"Bad.state_dict must return a mapping; got a list"),
    ],
)
def test_states_that_a_file_cannot_hold_are_refused_before_the_first_step(state, message, tmp_path):
    class Bad(Callback):
        def state_dict(self):
            return state

    model = model_of("numpy")
    with pytest.raises(TypeError, match=message):
        fit(model, checkpoint=tmp_path / "c", callbacks=[Bad()])
    assert model.optimizer.steps == 0
    assert list(tmp_path.iterdir()) == []


def test_logs_for_tensorboard_need_no_state():
    assert not _checkpoints.stateful([TensorBoard.__new__(TensorBoard), LambdaCallback(), Callback()])


# ---------------------------------------------------------------- when, and which file


@pytest.mark.parametrize(
    ("every", "expected"),
    [
        (None, [(2, 0), (3, 0)]),
        (4, [(1, 4), (1, 8), (2, 1), (2, 5), (2, 9), (3, 0)]),
        (11, [(2, 0), (3, 0)]),
        ("2 epochs", [(3, 0)]),
        ("9 epochs", [(3, 0)]),
        ("5 steps", [(1, 5), (1, 10), (2, 4), (2, 9), (3, 0)]),
        ("0.000001 s", [(1, n) for n in range(1, 11)] + [(2, n) for n in range(11)] + [(3, 0)]),
        ("3 h", [(3, 0)]),
    ],
)
def test_checkpoints_are_written_when_they_are_due(every, expected, tmp_path, monkeypatch):
    written, write = [], _checkpoints.write

    def noted(path, model, state, *rest):
        written.append((state["position"]["epoch"], state["partial"]["steps"] if state["partial"] else 0))
        write(path, model, state, *rest)

    monkeypatch.setattr(_checkpoints, "write", noted)
    fit(model_of("numpy"), checkpoint=tmp_path / "c", checkpoint_every=every)
    assert written == expected


def test_a_checkpoint_is_a_model_file(backend, tmp_path):
    model, other = model_of(backend), model_of(backend)
    fit(model, checkpoint=tmp_path / "c")
    loaded = fo.load_model(tmp_path / "c")
    assert_same(loaded.predict(X), model.predict(X))
    assert loaded.optimizer.steps == model.optimizer.steps == 22
    other.build(6)
    other.load_weights(str(tmp_path / "c").encode())
    assert_same(other.get_weights(), model.get_weights())


def test_the_one_before_stays(tmp_path):
    path, whole = tmp_path / "c", model_of("numpy")
    fit(whole)
    assert killed(model_of("numpy"), 3, checkpoint=str(path), checkpoint_every=4)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c", "c.previous"]
    for name, steps in (("c", 12), ("c.previous", 8)):
        assert fo.load_model(tmp_path / name).optimizer.steps == steps
        model = model_of("numpy")
        fit(model, resume=tmp_path / name)
        assert_the_same_training(model, whole)


def test_there_is_none_yet(tmp_path, caplog):
    path, whole, model = tmp_path / "c", model_of("numpy"), model_of("numpy")
    fit(whole)
    with caplog.at_level(logging.INFO, "fastopt"):
        fit(model, checkpoint=path, resume=os.fspath(path))
    assert f"there is no checkpoint {path} yet: the training begins" in caplog.text
    assert_the_same_training(model, whole)
    os.rename(path, f"{path}.previous")
    again = model_of("numpy")
    fit(again, checkpoint=path, resume=True)
    assert f"resuming from {path}.previous, for there is no {path}" in caplog.text
    assert_the_same_training(again, whole)


def test_schedules_that_a_file_cannot_hold_are_those_of_the_model(backend, tmp_path, caplog):
    def rate(step):
        return 0.05 / (1 + step)

    whole = model_of(backend, lr=rate)
    fit(whole)
    model = resumed(tmp_path / "c", backend, {"lr": rate}, checkpoint_every=4)
    assert_same(model.get_weights(), whole.get_weights())
    assert model.history["lr"] == whole.history["lr"]
    assert "cannot hold" not in caplog.text
    with pytest.raises(ValueError, match="the learning rate must be the schedule .*rate.* again"):
        fit(model_of(backend, lr=0.05), resume=tmp_path / "c")


def test_metrics_of_users_go_on(tmp_path):
    def spread(y_true, y_pred):
        return float(np.ptp(y_pred))

    of_model = {"metrics": ["accuracy", spread, "roc_auc"]}
    whole = model_of("numpy", **of_model)
    fit(whole, validation_split=0.25)
    model = resumed(tmp_path / "c", "numpy", of_model, validation_split=0.25, checkpoint_every=4)
    assert_the_same_training(model, whole)


# ---------------------------------------------------------------- another training


@pytest.mark.parametrize(
    ("of_model", "options", "message"),
    [
        ({}, {"batch_size": 8}, "batch_size was 7 and is 8"),
        ({}, {"accumulate": 2}, "accumulate was 1 and is 2"),
        ({}, {"shuffle": False}, "shuffle was True and is False"),
        ({}, {"steps_per_epoch": 3}, "steps_per_epoch was None and is 3"),
        ({}, {"validation_split": 0.5}, "validation_split was 0.0 and is 0.5"),
        ({}, {"initial_epoch": 1}, "initial_epoch was 0 and is 1"),
        ({}, {"sample_weight": np.ones(77)}, "sample_weight was None and is .*weights was None and is float32"),
        ({}, {"class_weight": {0: 2.0}}, "class_weight was None and is {'0': 2.0}"),
        ({"ema": fo.EMA()}, {}, r"ema was None and is EMA\("),
        ({"first": {"kernel_constraint": "non_negative"}}, {}, "layers was .*"),
        ({"first": {"lr_scale": 0.5}}, {}, "layers was .*"),
        ({"seed": 2}, {}, "seed was 1 and is 2"),
        ({"metrics": ["mse"]}, {}, "figures was .* and is .*'mean_squared_error'"),
        ({}, {"callbacks": [EarlyStopping("loss")]}, "the callbacks with a state must be none; got EarlyStopping"),
    ],
)
def test_another_call_is_refused(of_model, options, message, tmp_path):
    assert killed(model_of("numpy"), 1, checkpoint=tmp_path / "c", checkpoint_every=4)
    model = model_of("numpy", **of_model)
    with pytest.raises(ValueError, match=message) as caught:
        fit(model, resume=tmp_path / "c", **options)
    assert str(tmp_path / "c") in str(caught.value)
    assert (model.optimizer.steps, model.epochs_done, model.history) == (0, 0, None)


def test_other_data_models_and_backends_are_refused(tmp_path):
    path = tmp_path / "c"
    assert killed(model_of("numpy"), 1, checkpoint=path, checkpoint_every=4)
    options = {"epochs": 2, "batch_size": 7, "verbose": 0, "resume": path}
    for x, y, message in [
        (X + 1, TARGETS, "x was float32 of shape .* and is"),
        (X[:70], TARGETS[:70], r"x was float32 of shape \(77, 6\)"),
        (X, TARGETS[:, ::-1], "y was float32 of shape"),
    ]:
        with pytest.raises(ValueError, match=f"it is of another training: {message}"):
            model_of("numpy").fit(x, y, **options)
    layers = [fo.Dense(9, "relu"), fo.Dropout(0.3), fo.Dense(3, "softmax")]
    for other in (layers, [layers[0], fo.Dropout(0.2), layers[2]], layers[::2]):
        model = fo.Sequential(other, seed=1, backend="numpy")
        model.compile(fo.Adam(), "cce", ["accuracy", "f1_macro", "r2", "mse"])
        with pytest.raises(ValueError, match="it is of another training: layers was"):
            model.fit(X, TARGETS, **options)
    for optimizer, loss, message in [(fo.SGD(lr=0.1), "cce", "optimizer was Adam"), ("adam", "mse", "loss was")]:
        model = fo.Sequential([fo.Dense(8, "relu"), fo.Dropout(0.3), fo.Dense(3)], seed=1, backend="numpy")
        model.compile(optimizer, loss, ["accuracy", "f1_macro", "r2", "mse"])
        with pytest.raises(ValueError, match=message):
            model.fit(X, TARGETS, **options)
    with pytest.raises(ValueError, match="it is within an epoch on the backend 'numpy', .*; got 'cpu'"):
        fit(model_of("cpu"), resume=path)
    assert killed(model_of("numpy"), 1, checkpoint=path)
    model = model_of("cpu")
    fit(model, resume=path)  # between two epochs any backend goes on
    assert model.optimizer.steps == 22


def test_labels_and_what_was_learnt_from_data(backend, tmp_path):
    def model():
        layers = [fo.Normalization(), fo.Dense(8, "tanh"), fo.Dense(3, "softmax")]
        made = fo.Sequential(layers, seed=3, backend=backend)
        made.compile("adam", "sparse_categorical_crossentropy", ["accuracy"])
        return made

    y = np.array(["a", "b", "c"])[Y]
    options = {"batch_size": 16, "epochs": 3, "verbose": 0, "checkpoint": tmp_path / "c", "checkpoint_every": 4}
    whole, cut, again = model(), model(), model()
    whole.fit(X, y, **options)
    with pytest.MonkeyPatch.context() as patch:
        write = _checkpoints.write

        def last(*args):
            write(*args)
            raise Killed

        patch.setattr(_checkpoints, "write", last)
        with pytest.raises(Killed):
            cut.fit(X, y, **options)
    again.fit(X, y, resume=True, **options)
    assert_the_same_training(again, whole)
    assert again.classes.tolist() == ["a", "b", "c"]
    other = model()
    other.adapt(X * 2)
    with pytest.raises(ValueError, match="it is of another training: .*learnt was"):
        other.fit(X, y, resume=True, **options)


def test_data_that_are_not_in_the_models_dtype(backend, tmp_path):
    """Bytes, sparse rows, and blocks of rows: what a batch is made of is found again."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (60, 6), np.uint8)
    sparse = pytest.importorskip("scipy.sparse").csr_matrix(np.where(pixels > 128, pixels, 0).astype(np.float32))
    for x, first in ((pixels, [fo.Rescaling(1 / 255)]), (sparse, [])):

        def model(first=first):
            made = fo.Sequential([*first, fo.Dense(8, "tanh"), fo.Dense(1)], seed=3, backend=backend)
            made.compile("adam", "mean_squared_error", ["r2"])
            return made

        path = tmp_path / f"c{len(first)}"
        options = {"batch_size": 8, "epochs": 3, "verbose": 0, "shuffle": True if x is sparse else "blocks"}
        whole, again = model(), model()
        whole.fit(x, np.arange(60) % 4, callbacks=[Callback()], **options)
        model().fit(x, np.arange(60) % 4, max_steps=13, checkpoint=path, **options)
        again.fit(x, np.arange(60) % 4, resume=path, **options)
        assert_the_same_training(again, whole)
        with pytest.raises(ValueError, match="it is of another training: x was"):
            model().fit(x[::-1], np.arange(60) % 4, resume=path, **options)
