"""Trainings on iterables that were cut off go on with the items that are left, to the same bits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from helpers_model import assert_same, snapshot
from helpers_resume import TARGETS, Killed, X, Y, assert_the_same_training, model_of

import fastopt as fo
from fastopt.callbacks import EarlyStopping, LambdaCallback
from fastopt.models import _checkpoints

SIZES = [7, 16, 1, 20, 9, 24]
EVERY = {"epochs": 3, "verbose": 0}


def items_of(weighted=False):
    ends = np.cumsum(SIZES)
    parts = [slice(end - size, end) for size, end in zip(SIZES, ends, strict=True)]
    weights = np.arange(77) % 4 * (np.arange(77) >= 23)  # the first three items weigh nothing
    return [(X[p], TARGETS[p], weights[p])[: 2 + weighted] for p in parts]


class Shuffled:
    """Items in an order that each iteration draws, which moves on at its end."""

    def __init__(self):
        self.rng, self.order = np.random.default_rng(5), np.arange(len(SIZES))
        self.begun = 0

    def __iter__(self):
        self.begun += 1
        for i in self.order:
            yield items_of()[i]
        self.rng.shuffle(self.order)


def endless():
    """Items of all epochs, none like another."""
    rng = np.random.default_rng(3)
    while True:
        rows = rng.integers(0, 77, int(rng.integers(1, 20)))
        yield X[rows], TARGETS[rows]


def loader():
    torch = pytest.importorskip("torch")
    data = torch.utils.data.TensorDataset(torch.tensor(X), torch.tensor(TARGETS))
    generator = torch.Generator().manual_seed(3)
    return torch.utils.data.DataLoader(data, batch_size=16, shuffle=True, generator=generator)


STREAMS = {
    "list": (items_of, {}),
    "weights": (lambda: items_of(True), {"accumulate": 2}),
    "shuffled": (Shuffled, {"accumulate": 4}),
    "shuffled, part of it": (Shuffled, {"steps_per_epoch": 4}),
    "last step of fewer items": (items_of, {"accumulate": 4, "steps_per_epoch": 2}),
    "generator": (endless, {"steps_per_epoch": 5}),
    "generator without epochs": (lambda: iter(items_of()), {"epochs": 1}),
    "loader": (loader, {}),
}


def cut_off(model, x, after, **options):
    """Train until so many checkpoints are written; False if the training has ended before that."""
    write, left = _checkpoints.write, [after]

    def last(*args):
        write(*args)
        left[0] -= 1
        if not left[0]:
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_checkpoints, "write", last)
        try:
            model.fit(x, **EVERY | options)
        except Killed:
            return True
    return False


@pytest.mark.parametrize("kind", STREAMS)
def test_after_any_checkpoint(backend, kind, tmp_path):
    """A training is cut off after each of its checkpoints, after the next one again, and so on to its end.

    Those after the last step of an epoch whose end is not known yet are among them.
    """
    make, options = STREAMS[kind]
    whole, path = model_of(backend), {"checkpoint": tmp_path / "c", "resume": True}
    whole.fit(make(), **EVERY | options)
    for every in [2] if kind == "loader" else [1, 3]:
        cuts = 0
        while cut_off(model_of(backend), make(), 1, checkpoint_every=every, **path, **options):
            cuts += 1
        model = model_of(backend)
        model.fit(make(), **EVERY | path | options)
        assert_the_same_training(model, whole)
        assert cuts >= len(whole.history.step_losses) // every
        for name in ("c", "c.previous"):
            (tmp_path / name).unlink()


def test_between_epochs_and_when_time_has_come(tmp_path):
    whole, x = model_of("numpy"), Shuffled()
    whole.fit(Shuffled(), **EVERY)
    for every in (None, "2 epochs", "0.000001 s"):
        path = {"checkpoint": tmp_path / f"c{every}", "resume": True, "checkpoint_every": every}
        assert cut_off(model_of("numpy"), Shuffled(), 1, **path)
        model, x = model_of("numpy"), Shuffled()
        model.fit(x, **EVERY | path)
        assert_the_same_training(model, whole)
        assert x.begun == 3  # epochs that are done, too, as their ends draw the next order


def test_limits_are_totals(backend, tmp_path):
    """A training that ends with the last item of an epoch, which nobody knows to be the last, goes on with the next."""
    whole, path = model_of(backend), {"checkpoint": tmp_path / "c", "resume": True}
    whole.fit(items_of(), **EVERY)
    for steps in (2, 6, 6, 9, 12, 13, None):
        model = model_of(backend)
        model.fit(items_of(), max_steps=steps, **EVERY | path)
    assert_the_same_training(model, whole)
    model.fit(items_of(), **EVERY | path)  # it is over
    assert_the_same_training(model, whole)


def test_an_early_stop_is_the_end(tmp_path):
    """Also one within an epoch, whose items are not gone through."""

    def stopper():
        return LambdaCallback(on_step_end=lambda model, step, _: setattr(model, "stop_training", step == 8))

    for callbacks in (lambda: [stopper()], lambda: [EarlyStopping("loss", threshold=1e9)]):
        path = {"checkpoint": tmp_path / "c", "resume": True}
        whole, model = model_of("numpy"), model_of("numpy")
        whole.fit(items_of(), callbacks=callbacks(), **EVERY | path)
        model.fit(items_of(), callbacks=callbacks(), **EVERY | path)
        assert_the_same_training(model, whole)
        for name in ("c", "c.previous"):
            (tmp_path / name).unlink(missing_ok=True)


def test_an_order_that_a_callback_chooses(tmp_path):
    """Items of the epoch that was within are passed over after `on_epoch_begin`, which may set its order."""

    class Ordered:
        epoch = 1

        def __iter__(self):
            return iter(items_of()[self.epoch :] + items_of()[: self.epoch])

    def train(**options):
        x, model = Ordered(), model_of("numpy")
        callback = LambdaCallback(on_epoch_begin=lambda _, epoch: setattr(x, "epoch", epoch))
        if "after" in options:
            assert cut_off(model, x, callbacks=[callback], **options)
        else:
            model.fit(x, callbacks=[callback], **EVERY | options)
        return model

    whole, path = train(), {"checkpoint": tmp_path / "c", "checkpoint_every": 8}
    train(after=1, **path)
    assert_the_same_training(train(resume=True, **path), whole)


def test_r2_with_validation_and_pruning(backend, tmp_path):
    def train(**options):
        model = model_of(backend, ema=fo.EMA(0.9), clip_norm=0.5)
        model.fit(x, **EVERY | {"validation_data": (X, TARGETS), "pruning": pruning} | options)
        return model

    pruning = fo.compress.Pruning(0.5, begin=2, end=10, every=2)
    x = items_of()
    whole, path = train(), {"checkpoint": tmp_path / "c", "checkpoint_every": 4, "resume": True}
    for steps in (3, 8, 14):
        train(max_steps=steps, **path)
    assert_the_same_training(train(**path), whole)


# ---------------------------------------------------------------- other items
@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (lambda: iter(items_of()), {}, "items was those of an iterable, .* and is those of an iterator"),
        (lambda: items_of()[::-1], {}, r"the first item of x \(an order .* needs a seed\) was .*\(7, 6\).* and is"),
        (lambda: items_of(True), {}, "the first item of x"),
        (lambda: [(x + (i == 0), y) for i, (x, y) in enumerate(items_of())], {}, "the first item of x"),
        (items_of, {"steps_per_epoch": 4}, "steps_per_epoch was None and is 4"),
        (items_of, {"accumulate": 2}, "accumulate was 1 and is 2"),
        (lambda: items_of()[:4], {}, "epoch 1 of it had done 6, and x ended at item 5"),
        (lambda: items_of() * 2, {}, "epoch 1 of it had 6, and has more"),
    ],
)
def test_other_items_are_refused(x, options, message, tmp_path):
    assert cut_off(model_of("numpy"), items_of(), 2, checkpoint=tmp_path / "c", checkpoint_every=4)
    model = model_of("numpy")
    before = snapshot(model)
    with pytest.raises(ValueError, match=message):
        model.fit(x(), resume=tmp_path / "c", **EVERY | options)
    assert_same(snapshot(model), before)


def test_items_that_end_within_the_epoch_that_was_within(tmp_path):
    assert cut_off(model_of("numpy"), items_of(), 1, checkpoint=tmp_path / "c", checkpoint_every=4)
    with pytest.raises(ValueError, match="epoch 1 of it had done 4, and x ended at item 3"):
        model_of("numpy").fit(items_of()[:2], resume=tmp_path / "c", **EVERY)


def test_arrays_are_other_data(tmp_path):
    assert cut_off(model_of("numpy"), items_of(), 1, checkpoint=tmp_path / "c")
    with pytest.raises(ValueError, match="it is of another training: x was None"):
        model_of("numpy").fit(X, TARGETS, resume=tmp_path / "c", **EVERY)
    model_of("numpy").fit(X, TARGETS, checkpoint=tmp_path / "a", **EVERY)
    with pytest.raises(ValueError, match="it is of another training: items was None"):
        model_of("numpy").fit(items_of(), resume=tmp_path / "a", **EVERY)


def test_labels_that_were_learnt(tmp_path):
    """Classes are those of the first item, which is that of the training's begin."""
    words, path = np.array(["a", "b", "c"])[Y % 3], {"checkpoint": tmp_path / "c", "resume": True, "verbose": 0}

    def train(**options):
        model = fo.Sequential([fo.Dense(4, "tanh"), fo.Dense(3, "softmax")], seed=1, backend="numpy")
        model.compile("adam", "sparse_categorical_crossentropy", ["accuracy"])
        model.fit([(X[i : i + 30], words[i : i + 30]) for i in (0, 30, 47)], epochs=2, **options)
        return model

    whole = train()
    train(max_steps=4, **path)
    resumed = train(**path)
    assert_the_same_training(resumed, whole)
    assert resumed.classes.tolist() == ["a", "b", "c"]


KILLED_AT = textwrap.dedent("""
    import os, signal, sys
    sys.path.insert(0, {tests!r})
    import fastopt as fo, test_resume_streams as t
    fo.set_num_threads(int(sys.argv[2]))
    def items():
        for number, item in enumerate(t.endless()):
            if number == int(sys.argv[1]):
                os.kill(os.getpid(), signal.SIGKILL)
            yield item
    t.model_of("cpu").fit(items(), steps_per_epoch=5, checkpoint="c", checkpoint_every=2, resume=True, **t.EVERY)
""")


@pytest.mark.repeats
@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_processes_that_are_killed(tmp_path):
    """With another number of threads each."""
    whole, model = model_of("cpu"), model_of("cpu")
    options = {"steps_per_epoch": 5, **EVERY}
    whole.fit(endless(), **options)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    for item, threads in ((4, 1), (8, 2), (13, 1)):
        command = [sys.executable, "-c", KILLED_AT.format(tests=str(Path(__file__).parent)), str(item), str(threads)]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200, check=False
        )
        assert done.returncode == -signal.SIGKILL, done.stderr
    model.fit(endless(), checkpoint=tmp_path / "c", resume=True, **options)
    assert_the_same_training(model, whole)
