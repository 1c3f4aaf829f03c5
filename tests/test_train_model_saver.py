"""`fastopt train --save`: the weights that are written after Ctrl-C or SIGTERM."""

import os
import signal
import sys

import numpy as np
import pytest
from helpers_interrupts import finish, handled, press, start
from helpers_model import assert_same

import fastopt
from fastopt.callbacks import EarlyStopping
from fastopt.cli import main

posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
OLD = b"an older model"


@pytest.fixture
def classes(tmp_path):
    """A .npz file of three classes, in a folder of its own."""
    rng = np.random.default_rng(0)
    y = np.arange(90) % 3
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / "classes.npz"
    np.savez(path, x=rng.normal(size=(90, 5)) + y[:, None], y=y)
    return path


@pytest.fixture
def train(classes, path, capsys):
    """A function that trains with --save and returns (status, the last line of stderr)."""

    def train(*options, backend="numpy"):
        capsys.readouterr()
        arguments = ["train", classes, "--epochs", 6, "--save", path, "--backend", backend, "--layers", "8", *options]
        status = main.main([str(argument) for argument in arguments])
        return status, capsys.readouterr().err.splitlines()[-1:]

    return train


def interrupt_when(monkeypatch, ready, backend="numpy"):
    """Ctrl-C at the begin of the first epoch of a model of the backend for which ready(model) holds."""
    train_epoch = fastopt.models.training.train_epoch

    def interrupted(model, network, batches, *rest):
        if len(batches.x) > 32 and model.backend == backend and ready(model):  # not when it warms up
            raise KeyboardInterrupt
        return train_epoch(model, network, batches, *rest)

    monkeypatch.setattr(fastopt.models.training, "train_epoch", interrupted)


@pytest.fixture
def seen(monkeypatch):
    """Figures and weights that early stopping has seen, by backend: a list of (figure, weights), an epoch each."""
    seen, on_epoch_end = {}, EarlyStopping.on_epoch_end

    def watched(self, model, epoch, logs):
        seen.setdefault(model.backend, []).append((logs[self.monitor], model.get_weights()))
        on_epoch_end(self, model, epoch, logs)

    monkeypatch.setattr(EarlyStopping, "on_epoch_end", watched)
    return seen


def best(seen):
    return min(range(len(seen)), key=lambda i: seen[i][0])


@pytest.mark.parametrize("options", [[], ["--patience", 3], ["--patience", 3, "--validation-split", 0.3]])
@pytest.mark.parametrize("there", [True, False])
def test_before_the_first_epoch_nothing_is_written(train, path, monkeypatch, options, there):
    if there:
        path.write_bytes(OLD)
    interrupt_when(monkeypatch, lambda model: True)
    message = f"fastopt: interrupted after 0 of 6 epochs; no epoch is done, so nothing is saved in {path}"
    assert train(*options) == (130, [message])
    assert path.read_bytes() == OLD if there else not path.exists()


def test_while_everything_is_warmed_up(train, path, monkeypatch):
    path.write_bytes(OLD)
    monkeypatch.setattr(fastopt.models.training, "train_epoch", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    assert train()[0] == 130
    assert path.read_bytes() == OLD


def test_without_patience_the_last_weights_are_saved(train, path, monkeypatch):
    weights = []
    interrupt_when(monkeypatch, lambda model: model.epochs_done == 3 and not weights.append(model.get_weights()))
    message = f"fastopt: interrupted after 3 of 6 epochs; what was trained so far is saved in {path}"
    assert train() == (130, [message])
    assert fastopt.load_model(path).epochs_done == 3
    assert_same(fastopt.load_model(path).get_weights(), weights[-1])


@pytest.mark.parametrize("options", [[], ["--validation-split", 0.3]])
def test_with_patience_the_best_weights_are_saved(train, path, monkeypatch, seen, options):
    interrupt_when(monkeypatch, lambda model: seen and best(seen["numpy"]) < len(seen["numpy"]) - 1)
    status, (message,) = train("--patience", 9, "--lr", 3.0, "--epochs", 60, *options)
    first = best(seen["numpy"])
    assert status == 130
    done = len(seen["numpy"])
    which = f"the best weights, those of epoch {first + 1}, are"
    assert message == f"fastopt: interrupted after {done} of 60 epochs; {which} saved in {path}"
    assert_same(fastopt.load_model(path).get_weights(), seen["numpy"][first][1])
    assert not np.array_equal(seen["numpy"][-1][1][0], seen["numpy"][first][1][0])


def test_while_another_contestant_has_its_turn(train, path, monkeypatch, seen):
    interrupt_when(monkeypatch, lambda model: best(seen["cpu"]) < len(seen["cpu"]) - 1)
    status, (message,) = train("--patience", 20, "--lr", 3.0, "--epochs", 60, "--compare", backend="cpu")
    first = best(seen["cpu"])
    assert status == 130
    assert f"the best weights, those of epoch {first + 1}, are saved" in message
    again = fastopt.load_model(path)
    assert again.backend == "cpu"
    assert_same(again.get_weights(), seen["cpu"][first][1])


@pytest.mark.parametrize("call", [1, 2])
def test_while_the_test_rows_are_evaluated(train, path, monkeypatch, seen, call):
    calls, evaluate = [], fastopt.Sequential.evaluate

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == call:
            raise KeyboardInterrupt
        return evaluate(*arguments)

    monkeypatch.setattr(fastopt.Sequential, "evaluate", interrupted)
    status, (message,) = train("--patience", 20, "--lr", 3.0, "--compare", backend="cpu")
    first = best(seen["cpu"])
    assert status == 130
    assert f"interrupted after 6 of 6 epochs; the best weights, those of epoch {first + 1}, are saved" in message
    assert_same(fastopt.load_model(path).get_weights(), seen["cpu"][first][1])


def test_while_the_first_epoch_is_validated(train, path, monkeypatch):
    def interrupted(network, *arguments):
        raise KeyboardInterrupt

    def ready(model):
        monkeypatch.setattr("fastopt.kernels.reference.Network.evaluate", interrupted)

    interrupt_when(monkeypatch, ready)
    status, (message,) = train("--patience", 3, "--validation-split", 0.3)
    assert (status, fastopt.load_model(path).epochs_done) == (130, 1)
    assert "interrupted after 1 of 6 epochs; what was trained so far is saved" in message


@pytest.mark.parametrize("epochs", [2, 6])
def test_a_second_interrupt_waits_until_the_model_is_saved(train, path, monkeypatch, epochs):
    fsync = os.fsync

    def pressed(handle):
        press()
        fsync(handle)

    monkeypatch.setattr(os, "fsync", pressed)
    interrupt_when(monkeypatch, lambda model: model.epochs_done == epochs)
    with handled():
        status, (message,) = train()
    assert status == 130
    assert message == f"fastopt: interrupted after {epochs} of 6 epochs; what was trained so far is saved in {path}"
    assert fastopt.load_model(path).epochs_done == epochs
    assert sorted(os.listdir(path.parent)) == ["data", path.name]


def test_a_file_that_cannot_be_written_costs_no_figures(train, path, monkeypatch, capsys, classes):
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    assert main.main(["train", str(classes), "--backend", "numpy", "--save", str(path)]) == 2
    out, err = capsys.readouterr()
    assert "test accuracy" in out
    assert "saved" not in out
    assert err == f"fastopt: error: [Errno 28] No space left on device: '{path}'\n"


PROGRAM = """
import sys
from fastopt.cli import main as cli
from fastopt.models import training
train_epoch = training.train_epoch
def told(model, network, batches, *rest):
    if len(batches.x) > 32:
        print("epoch", model.epochs_done, flush=True)
    return train_epoch(model, network, batches, *rest)
training.train_epoch = told
sys.exit(cli.main(["train", *sys.argv[1:], "--epochs", "1000000", "--quiet", "--no-compare"]))
"""


@posix
@pytest.mark.parametrize(
    ("number", "status", "word", "backend"),
    [
        ("SIGTERM", 143, "terminated", "cpu"),
        ("SIGTERM", 143, "terminated", "numpy"),
        ("SIGINT", 130, "interrupted", "cpu"),
    ],
)
def test_signals_to_a_process(classes, path, number, status, word, backend):
    process = start(PROGRAM, str(classes), "--save", str(path), "--backend", backend)
    while "epoch 3" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(getattr(signal, number))
    got, _, err = finish(process)
    assert got == status
    assert f"fastopt: {word} after" in err
    assert "what was trained so far is saved" in err
    assert fastopt.load_model(path).epochs_done >= 3
    assert sorted(os.listdir(path.parent)) == ["data", path.name]
