"""Files bring back model, optimizer and the place in the training."""

import gzip
import io
import json
import os
import socket
import tempfile
import threading

import numpy as np
import pytest
from helpers_model import CROSS_ENTROPY, assert_same, blobs, classifier, snapshot, trained
from safetensors import safe_open

import fastopt as fo
from fastopt import Dense, Dropout, Sequential, load_model
from fastopt.conventions import CONVENTIONS

X, Y = blobs()
OPTIMIZERS = [
    fo.SGD,
    lambda: fo.SGD(momentum=0.9, nesterov=True, weight_decay=1e-3),
    lambda: fo.SGD(momentum=0.9, dampening=0.5),
    lambda: fo.Adagrad(lr_decay=0.01, initial_accumulator_value=0.1),
    lambda: fo.RMSprop(momentum=0.5, centered=True),
    fo.Adam,
    lambda: fo.Adam(betas=(0.8, 0.99), amsgrad=True, lr=1 / 3),
    fo.AdamW,
]


# ---------------------------------------------------------------- round trips


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_training_goes_on_bit_for_bit(optimizer, path, backend):
    whole, first = classifier(backend), classifier(backend)
    for model in (whole, first):
        model.compile(optimizer(), fo.losses.SparseCategoricalCrossentropy(0.1), ["accuracy"])
    expected = whole.fit(X, Y, epochs=5, batch_size=30, validation_split=0.2)
    first.fit(X, Y, epochs=2, batch_size=30, validation_split=0.2)
    first.optimizer.lr *= 1  # the rate in use is saved, not the one at the start
    first.save(path)
    second = load_model(path)
    assert second.backend == backend
    assert_same(first.optimizer.state_dict(), second.optimizer.state_dict())
    history = second.fit(X, Y, 5, initial_epoch=second.epochs_done, batch_size=30, validation_split=0.2)
    assert history.epochs == [3, 4, 5]
    assert_same(expected.step_losses[8:], history.step_losses)  # four batches an epoch
    assert expected["val_loss"][2:] == history["val_loss"]
    assert_same(whole.get_weights(), second.get_weights())


def test_changed_learning_rate_is_saved(path):
    model = trained()
    model.optimizer.lr = 0.125
    model.save(path)
    assert load_model(path).optimizer.lr == 0.125


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_everything_comes_back(path, dtype):
    model = Sequential([Dropout(0.1), Dense(4, "silu", False, name="a"), Dense(1)], 2**64 - 1, "numpy", dtype)
    model.compile(fo.SGD(lr=1e-3), fo.losses.Huber(delta=0.25), ["r2", "mean_absolute_error"])
    model.fit(X, Y)
    model.save(path)
    again = load_model(path)
    assert repr(again) == repr(model)
    assert again.names == model.names
    assert again.loss.spec == model.loss.spec
    assert again.metrics == model.metrics
    assert again.epochs_done == 1
    assert_same(again.get_weights(), model.get_weights())
    assert again.evaluate(X, Y) == model.evaluate(X, Y)


def test_not_compiled(path):
    model = Sequential([Dense(2)], backend="numpy", inputs=3)
    model.save(path)
    again = load_model(path)
    assert again.loss is again.optimizer is None
    assert_same(again.get_weights(), model.get_weights())


def test_weights_that_are_not_finite_come_back(path):
    model = Sequential([Dense(2)], backend="numpy", inputs=1)
    model.set_weights([[[np.nan, np.inf]], [0, -0.0]])
    model.save(path)
    assert_same(load_model(path).get_weights(), model.get_weights())


def test_array_initializers_come_back_as_the_saved_weights(path):
    model = Sequential([Dense(2, kernel_initializer=np.ones((3, 2)), bias_initializer=[1, 2])], inputs=3)
    model.set_weights([np.full((3, 2), 5), [6, 7]])
    model.save(path)
    again = load_model(path)
    assert_same(again.get_weights(), model.get_weights())
    assert (again.layers[0].kernel_initializer == 5).all()


def test_other_backend(path, backend):
    model = trained("numpy")
    model.save(path)
    other = load_model(path, backend=backend)
    assert other.backend == backend
    np.testing.assert_allclose(other.predict(X), model.predict(X), rtol=1e-5)


def test_file_is_plain_safetensors(path):
    model = trained()
    model.save(path)
    with safe_open(path, "numpy") as file:
        assert set(file.keys()) == {
            *(f"layers.{i}.{which}" for i in (0, 2) for which in ("kernel", "bias")),
            *(f"optimizer.{i}.{state}" for i in range(4) for state in ("exp_avg", "exp_avg_sq")),
        }
        np.testing.assert_array_equal(file.get_tensor("layers.2.kernel"), model.parameters[2])
        assert json.loads(file.metadata()["fastopt"])["compile"]["loss"] == CROSS_ENTROPY


# ---------------------------------------------------------------- writing: the rest is in test_files.py


def test_saving_replaces_the_file_or_leaves_it(path, monkeypatch):
    trained().save(path)
    before = path.read_bytes()

    def fail(*_):
        raise OSError(28, "No space left on device", "temporary")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="No space left on device") as caught:
        trained(seed=2).save(path)
    assert caught.value.filename == str(path)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]
    monkeypatch.undo()
    trained(seed=2).save(path)
    assert path.read_bytes() != before
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("as_", [str, os.fsencode, lambda path: path], ids=["str", "bytes", "PathLike"])
def test_paths_of_all_kinds(path, as_):
    model, other = trained(), classifier(seed=5)
    model.save(as_(path))
    assert_same(load_model(as_(path)).get_weights(), model.get_weights())
    other.load_weights(as_(path))
    assert_same(other.get_weights(), model.get_weights())


def test_file_objects(path):
    model, other = trained(), classifier(seed=5)
    model.save(path)
    content = path.read_bytes()
    buffer = io.BytesIO(b"head")
    buffer.seek(4)
    model.save(buffer)
    assert not buffer.closed
    assert buffer.getvalue() == b"head" + content
    for load in (load_model, lambda file: (other.load_weights(file), other)[1]):
        buffer.seek(4)
        assert_same(load(buffer).get_weights(), model.get_weights())
        with open(path, "rb", buffering=0) as file:
            assert_same(load(file).get_weights(), model.get_weights())
    with tempfile.TemporaryFile() as file, gzip.open(path.with_name("packed"), "wb") as packed:
        model.save(file)
        model.save(packed)
        file.seek(0)
        assert file.read() == content
    with gzip.open(path.with_name("packed")) as packed:
        assert_same(load_model(packed).get_weights(), model.get_weights())


def test_a_stream_without_positions():
    model = trained()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        sender = threading.Thread(target=lambda: (model.save(ours.makefile("wb", buffering=0)), ours.close()))
        sender.start()
        with theirs.makefile("rb") as file:
            assert_same(load_model(file).get_weights(), model.get_weights())
        sender.join()


def test_errors_of_file_objects(path):
    model = trained()
    before = snapshot(model)
    with pytest.raises(ValueError, match="the BytesIO is not a whole safetensors file"):
        model.load_weights(io.BytesIO(b"x"))
    for load in (load_model, model.load_weights):
        with pytest.raises(TypeError, match="the StringIO must be open in binary mode, to give bytes"):
            load(io.StringIO("text"))
        with pytest.raises(TypeError, match=r"path must be a path \(str, bytes or os.PathLike\), or a binary file"):
            load(3)
    with pytest.raises(TypeError, match="must be open in binary mode, to take bytes"):
        model.save(io.StringIO())
    with open(path, "w+", encoding="utf-8") as file, pytest.raises(TypeError, match=f"{path} must be open in binary"):
        model.save(file)
    assert path.read_bytes() == b""
    assert_same(before, snapshot(model))


def test_saving_errors(path):
    with pytest.raises(ValueError, match="no weights yet: call build, or fit, before save"):
        classifier().save(path)
    with pytest.raises(OSError, match="no-such-folder"):
        trained().save(path.parent / "no-such-folder" / "m")
    with pytest.raises(TypeError, match=r"path must be a path \(str, bytes or os.PathLike\), or a binary .*got 3.5"):
        trained().save(3.5)
    model = trained()
    model.compile(type("Mine", (fo.Adam,), {})(), CROSS_ENTROPY)
    with pytest.raises(TypeError, match=f"an optimizer of class Mine cannot be saved; known: {', '.join(CONVENTIONS)}"):
        model.save(path)
    assert os.listdir(path.parent) == []


# ---------------------------------------------------------------- load_weights


def test_load_weights(path):
    model = trained()
    model.save(path)
    other = Sequential([Dense(12, "relu"), Dense(3, "softmax")], seed=9, backend="numpy", dtype="float64", inputs=6)
    parameters = other.parameters
    other.load_weights(path)
    assert all(a is b for a, b in zip(parameters, other.parameters, strict=True))
    assert_same(other.get_weights(), [w.astype(np.float64) for w in model.get_weights()])
    unbuilt = classifier(seed=4)
    unbuilt.load_weights(path)
    assert unbuilt.inputs == 6
    assert unbuilt.optimizer.steps == 0
    assert_same(unbuilt.get_weights(), model.get_weights())


@pytest.mark.parametrize(
    ("layers", "inputs", "message"),
    [
        (
            [Dense(12, "relu"), Dense(4, "softmax")],
            6,
            "dense layer 2: the file has 12 -> 3 softmax, the model 12 -> 4 softmax$",
        ),
        (
            [Dense(12, "tanh"), Dense(3, "softmax")],
            6,
            "dense layer 1: the file has 6 -> 12 relu, the model 6 -> 12 tanh$",
        ),
        ([Dense(12, "relu", False), Dense(3, "softmax")], 6, "the model 6 -> 12 relu without bias$"),
        ([Dense(12, "relu"), Dense(3, "softmax")], 7, "the file has 6 -> 12 relu, the model 7 -> 12 relu$"),
        ([Dense(3, "softmax")], 6, "dense layer 1: .*; dense layer 2: the file has 12 -> 3 softmax, the model none$"),
        ([Dense(12, "relu"), Dense(3), Dense(3)], None, "dense layer 3: the file has none, the model 3 -> 3 linear$"),
    ],
)
def test_load_weights_of_another_architecture(layers, inputs, message, path):
    trained().save(path)
    model = Sequential(layers, backend="numpy", inputs=inputs)
    model.compile("adam", CROSS_ENTROPY)
    before = snapshot(model)
    with pytest.raises(ValueError, match=f"another architecture than the model: .*{message}"):
        model.load_weights(path)
    assert_same(before, snapshot(model))


def test_unknown_backend_is_refused_before_the_file_is_read(path):
    with pytest.raises(ValueError, match="unknown backend 'tpu'; known: numpy, cpu"):
        load_model(path, backend="tpu")
