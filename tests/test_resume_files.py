"""Checkpoints on the disk: damaged ones are refused, and a process may be killed at any moment."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from helpers_model import assert_same, snapshot
from helpers_resume import Killed, assert_the_same_training, fit, killed, model_of
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file

import fastopt as fo
from fastopt import _files
from fastopt.models.checkpoint import FORMAT

posix = pytest.mark.skipif(sys.platform == "win32", reason="processes and signals of POSIX")


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """Bytes, description and tensors of a checkpoint within an epoch."""
    path = tmp_path_factory.mktemp("good") / "c"
    assert killed(model_of("numpy"), 1, checkpoint=path, checkpoint_every=4)
    with safe_open(path, "numpy") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return path.read_bytes(), json.loads(file.metadata()["fastopt"]), tensors


def refused(path, message=None):
    """The file is not gone on from: a ValueError names it, and the model is as it was."""
    model = model_of("numpy")
    model.build(6)
    before = snapshot(model)
    with pytest.raises(ValueError, match=message) as caught:
        fit(model, resume=path)
    assert str(path) in str(caught.value)
    assert_same(before, snapshot(model))
    return str(caught.value)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1, exclude_max=True))
@example(share=0.0)
@example(share=0.99999)
def test_truncated(good, tmp_path, share):
    path = tmp_path / "c"
    path.write_bytes(good[0][: int(len(good[0]) * share)])
    refused(path, "not a whole safetensors file")


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_bytes_are_refused_or_are_numbers(good, tmp_path, data):
    """Any change of a few bytes gives a ValueError, or a training where only numbers have changed."""
    content, path = bytearray(good[0]), tmp_path / "c"
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    model = model_of("numpy")
    try:
        fit(model, resume=path)
    except ValueError as error:
        assert str(path) in str(error)
        assert model.optimizer.steps == 0
    else:
        assert model.epochs_done >= 2


def test_foreign_older_and_newer_files(good, tmp_path):
    path = tmp_path / "c"
    for content in (b"", b"x", b"\x80\x04K\x01.", b"PK\x03\x04" + bytes(99)):
        path.write_bytes(content)
        refused(path, "not a whole safetensors file")
    save_file({"a": np.zeros(3)}, path)
    refused(path, "not one that fastopt wrote")
    model = model_of("numpy")
    model.build(6)
    model.save(path)
    refused(path, "it has no training to go on with: it is a model file, not a checkpoint of fit")
    _, description, tensors = good
    save_file(tensors, path, {"fastopt": json.dumps({**description, "format": FORMAT + 1})})
    refused(path, f"it has format {FORMAT + 1}, and this version of fastopt reads up to {FORMAT}")
    for version in (0, 2):
        changed = {**description, "training": {**description["training"], "version": version}}
        save_file(tensors, path, {"fastopt": json.dumps(changed)})
        refused(path, f"its training has version {version}, and this version of fastopt goes on with 1")


def put(tree, keys, value):
    for key in keys[:-1]:
        tree = tree[key]
    tree[keys[-1]] = value


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("training",), None),
        (("training",), {"version": 1}),
        (("training", "call"), None),
        (("training", "position"), {}),
        (("training", "position", "epoch"), 0),
        (("training", "position", "epoch"), "2"),
        (("training", "position", "first_step"), -1),
        (("training", "position", "seconds"), "long"),
        (("training", "history"), None),
        (("training", "history", "epochs"), 3),
        (("training", "history", "epochs"), {"__array__": "training.99"}),
        (("training", "history", "figures"), {"loss": [1.0]}),
        (("training", "callbacks"), [3]),
        (("training", "callbacks"), [["EarlyStopping", {}]]),
        (("training", "partial", "steps"), 99),
        (("training", "partial", "steps"), "4"),
        (("training", "partial", "rows"), 3),
        (("training", "partial", "losses"), [1.0]),
        (("training", "partial", "carried"), None),
        (("training", "partial", "carried"), {"accuracy": 3}),
        (("training", "partial", "metrics"), {}),
        (("training", "heard"), 3),
        (("compile",), None),
        (("layers",), []),
    ],
)
def test_descriptions_that_lie(good, tmp_path, keys, value):
    description, path = json.loads(json.dumps(good[1])), tmp_path / "c"
    put(description, keys, value)
    save_file(good[2], path, {"fastopt": json.dumps(description)})
    refused(path, "not a usable checkpoint: ")


def test_the_message_names_the_last_good_one(good, tmp_path):
    path, whole, model = tmp_path / "c", model_of("numpy"), model_of("numpy")
    assert killed(model_of("numpy"), 2, checkpoint=path, checkpoint_every=4)
    path.write_bytes(path.read_bytes()[:-9])
    assert refused(path).endswith(f"; the checkpoint before it is {path}.previous")
    fit(whole)
    fit(model, checkpoint=path, checkpoint_every=4, resume=f"{path}.previous")
    assert_the_same_training(model, whole)


def test_a_damaged_file_does_not_take_the_place_of_the_last_good_one(tmp_path, monkeypatch):
    path, replace = tmp_path / "c", os.replace
    assert killed(model_of("numpy"), 2, checkpoint=path, checkpoint_every=4)
    kept = (tmp_path / "c.previous").read_bytes()
    path.write_bytes(b"damaged")

    def cut(source, target):
        if str(target) == str(path):
            raise Killed
        replace(source, target)

    monkeypatch.setattr(os, "replace", cut)
    with pytest.raises(Killed):
        fit(model_of("numpy"), checkpoint=path, checkpoint_every=4, resume=f"{path}.previous")
    assert (tmp_path / "c.previous").read_bytes() == kept


# ---------------------------------------------------------------- a disk that is full, a folder that is read-only


@pytest.mark.parametrize("name", ["open", "fsync", "link", "replace"])
def test_after_any_failure_the_old_files_are_there(tmp_path, monkeypatch, name):
    path = tmp_path / "c"
    assert killed(model_of("numpy"), 2, checkpoint=path, checkpoint_every=4)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    function = getattr(os, name)

    def fail(*args, **options):
        if str(tmp_path) in str(args[0]) or name == "fsync":
            raise OSError(errno.ENOSPC, "No space left on device")
        return function(*args, **options)

    model = model_of("numpy")
    with monkeypatch.context() as patch:
        patch.setattr(os, name, fail)
        if name == "link":  # a file system without hard links: a copy is made
            fit(model, checkpoint=path, checkpoint_every=4, resume=True)
        else:
            with pytest.raises(OSError, match=f"No space left on device: '{path}'"):
                fit(model, checkpoint=path, checkpoint_every=4, resume=True)
            assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    if name != "link":
        assert model.optimizer.steps == 12
        fit(model, checkpoint=path, checkpoint_every=4, resume=True)
    whole = model_of("numpy")
    fit(whole)
    assert_the_same_training(model, whole)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c", "c.previous"]


def test_a_file_or_folder_that_must_not_be_written_to_is_refused_at_first(tmp_path, monkeypatch):
    path, access = tmp_path / "c", os.access
    path.write_bytes(b"old")
    for denied, message in [(path, "the file cannot be written to"), (tmp_path, "the folder .* cannot be written to")]:
        monkeypatch.setattr(os, "access", lambda p, mode, denied=denied: p != denied and access(p, mode))
        model = model_of("numpy")
        with pytest.raises(PermissionError, match=message):
            fit(model, checkpoint=path)
        assert (model.built, path.read_bytes()) == (False, b"old")


def test_names_of_the_same_file(tmp_path):
    """As a process leaves them that is killed between the two steps of a replacement."""
    path = tmp_path / "c"
    path.write_bytes(b"1")
    os.link(path, tmp_path / "c.previous")
    _files.write(path, b"2", keep=str(tmp_path / "c.previous"))
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"c": b"2", "c.previous": b"1"}


# ---------------------------------------------------------------- processes that are killed

TRAIN = """
import os, signal, sys
sys.path.insert(0, {tests!r})
import helpers_resume as h
import fastopt as fo
backend, threads = sys.argv[1], int(sys.argv[2])
if backend == "cpu":
    fo.set_num_threads(threads)
model = h.model_of(backend)
model.build(6)
print("begin", flush=True)
h.fit(
    model, epochs=40, checkpoint="c", checkpoint_every=3, resume=True, validation_split=0.25,
    callbacks=[fo.EarlyStopping("val_loss", patience=99, restore_best_weights=True)],
)
model.save("done")
"""


def run_until_done(folder, backend, waits):
    """Train in processes that are killed so many seconds after their begin, and a last one that is not."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    killed_processes = 0
    for i, wait in enumerate([*waits, None]):
        command = [sys.executable, "-c", TRAIN.format(tests=str(Path(__file__).parent)), backend, str(1 + i % 2)]
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert process.stdout.readline() == "begin\n", process.stderr.read()
        if wait is None:
            _, errors = process.communicate(timeout=200)
            assert process.returncode == 0, errors
        else:
            time.sleep(wait)
            process.kill()
            process.communicate()
            killed_processes += process.returncode == -signal.SIGKILL
    return killed_processes


def assert_done(folder, backend):
    whole = model_of(backend)
    stopper = fo.EarlyStopping("val_loss", patience=99, restore_best_weights=True)
    fit(whole, epochs=40, validation_split=0.25, callbacks=[stopper])
    model = fo.load_model(folder / "done")
    assert_same(model.get_weights(), whole.get_weights())
    assert_same(model.optimizer.state_dict(), whole.optimizer.state_dict())
    assert sorted(p.name for p in folder.iterdir() if not p.name.endswith(".tmp")) == ["c", "c.previous", "done"]


@posix
def test_processes_that_are_killed(backend, tmp_path):
    assert run_until_done(tmp_path, backend, [0.05, 0.3]) >= 1
    assert_done(tmp_path, backend)


@posix
@pytest.mark.repeats
@settings(deadline=None, max_examples=3, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(waits=st.lists(st.floats(0, 0.7), min_size=1, max_size=6))
def test_processes_that_are_killed_at_any_moment(backend, tmp_path_factory, waits):
    folder = tmp_path_factory.mktemp("killed")
    run_until_done(folder, backend, waits)
    assert_done(folder, backend)


KILLED_IN = textwrap.dedent("""
    import os, signal, sys
    sys.path.insert(0, {tests!r})
    import helpers_resume as h
    left = [int(sys.argv[1])]
    def counted(function):
        def call(*args, **options):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **options)
        return call
    model = h.model_of("numpy")
    model.build(6)
    for name in ("open", "fsync", "fchmod", "link", "replace", "unlink"):
        setattr(os, name, counted(getattr(os, name)))
    h.fit(model, checkpoint="c", checkpoint_every=4, resume=True)
""")


@posix
@pytest.mark.parametrize("call", [9, 11, pytest.param(None, marks=pytest.mark.repeats)])
def test_a_process_killed_within_the_writing_of_a_file(tmp_path, call):
    """Whichever call of the system is the last one, a checkpoint is there, and the training goes on from it."""
    whole = model_of("numpy")
    fit(whole)
    for number in range(1, 40, 4) if call is None else [call]:
        folder = tmp_path / str(number)
        folder.mkdir()
        command = [sys.executable, "-c", KILLED_IN.format(tests=str(Path(__file__).parent)), str(number)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=200, check=False
        )
        assert done.returncode == -signal.SIGKILL or (call is None and not done.returncode), done.stderr
        model = model_of("numpy")
        fit(model, checkpoint=folder / "c", checkpoint_every=4, resume=True)
        assert_the_same_training(model, whole)
