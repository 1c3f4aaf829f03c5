"""Files of a training on several ranks: checkpoints for any number of them, and callbacks that write."""

from __future__ import annotations

import helpers_mpi
import numpy as np
import pytest
from helpers_mpi import results
from helpers_mpi_cases import PROGRAM, alone

import fastopt as fo
from fastopt.cli.main import main

RESUMED = (
    PROGRAM
    + """
path, stop, every = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
tell(train("adam", distributed="mpi", epochs=5, checkpoint=path, resume=True, checkpoint_every=every,
    max_steps=stop or None, validation_split=0.1)[0])
"""
)


@pytest.mark.slow
@pytest.mark.repeats
@pytest.mark.parametrize(("first", "then"), [(2, 1), (1, 3)])
def test_a_training_goes_on_with_other_ranks(first, then, tmp_path):
    """From within an epoch, to the bit of one without a pause."""
    path = str(tmp_path / "model.ckpt")
    results(first, RESUMED, path, "7", "3")
    found = results(then, RESUMED, path, "0", "3")
    wanted = alone("adam", distributed="mpi", epochs=5, validation_split=0.1)[0]
    assert found == [wanted] * then


def test_a_checkpoint_of_one_process_is_of_another_training(tmp_path):
    """As its bits are others."""
    path = tmp_path / "model.ckpt"
    alone("adam", checkpoint=path)
    with pytest.raises(ValueError, match="it is of another training: distributed was None and is mpi"):
        alone("adam", distributed="mpi", checkpoint=path, resume=True, epochs=3)


WRITTEN = (
    PROGRAM
    + """
import os
folder = sys.argv[1]
calls = []
class Count(fo.Callback):
    every_steps = 2
    def on_step_end(self, model, step, logs):
        calls.append(step)
        if step == 6 and distributed.rank() == 1:
            model.stop_training = True
log = fo.callbacks.CSVLogger(os.path.join(folder, f"log{distributed.rank()}.csv"))
best = fo.callbacks.ModelCheckpoint(os.path.join(folder, f"best{distributed.rank()}.safetensors"))
callbacks = [log, best, Count(), fo.EarlyStopping("loss", patience=3)]
history = train("adam", distributed="mpi", epochs=9, callbacks=callbacks, max_seconds=60,
    checkpoint=os.path.join(folder, f"model{distributed.rank()}.ckpt"), checkpoint_every="1 s")[2]
tell([calls, history.epochs])
"""
)


@pytest.mark.slow
@pytest.mark.repeats
def test_rank_0_writes_files_and_any_rank_may_stop(tmp_path):
    """A callback of rank 1 stops all after step 6, in the second epoch of four steps."""
    told = results(2, WRITTEN, str(tmp_path))
    assert told == [[[2, 4, 6], [1, 2]]] * 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best0.safetensors", "log0.csv", "model0.ckpt"]
    assert len((tmp_path / "log0.csv").read_text().splitlines()) == 3
    assert fo.load_model(tmp_path / "model0.ckpt").optimizer.steps == 6


@pytest.mark.slow
@pytest.mark.repeats
def test_one_bar_is_shown():
    job = helpers_mpi.start(2, "-c", PROGRAM + "\ntrain('adam', distributed='mpi', verbose=1)")
    status, out, err = helpers_mpi.finish(job)
    assert status == 0, err
    assert (out + err).count("Epoch 2/2") >= 1
    assert (out + err).replace("\r", "\n").count("accuracy=") <= (out + err).replace("\r", "\n").count("Epoch")


@pytest.mark.slow
@pytest.mark.repeats
def test_the_command_line(tmp_path):
    """Several ranks train one model by themselves; the first prints and writes; the model is that of one rank."""
    saved = []
    for ranks in (1, 2):
        path = tmp_path / f"{ranks}.safetensors"
        told = ["--distributed", "mpi"] if ranks == 1 else []
        options = ["-m", "fastopt", "train", "digits", *told, "--epochs", "2", "--save", str(path)]
        status, out, err = helpers_mpi.finish(helpers_mpi.start(ranks, *options))
        assert status == 0, err
        assert out.count("samples/s") == out.count("The model is saved") == 1
        saved.append(fo.load_model(path))
    for one, other in zip(saved[0].parameters, saved[1].parameters, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("more", [["--compare"], ["--batch-size", "auto"], ["--backend", "numpy"]])
def test_the_command_line_refuses(more, capsys):
    pytest.importorskip("mpi4py")
    assert main(["train", "digits", "--distributed", "mpi", *more]) == 2
    assert "--distributed" in (err := capsys.readouterr().err) or "distributed" in err
