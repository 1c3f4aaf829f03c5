"""`fastopt train` with limits, and with checkpoints from which it goes on."""

from __future__ import annotations

import pytest
from helpers_model import assert_same

from fastopt import load_model
from fastopt.models import _checkpoints


class Killed(BaseException):
    pass


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "table.csv"
    lines = [f"{i % 7},{i % 5 - 2},{'ab'[(i % 7 + i % 5) % 2]}" for i in range(60)]
    path.write_text("\n".join(["x,z,y", *lines]))
    return path


def command(table, *more):
    common = ["--target", "y", "--backend", "numpy", "--batch-size", 8, "--epochs", 6, "--seed", 3]
    return ["train", table, *common, *more]


def result_of(output):
    return output.partition("\n\n")[2].partition("model is saved")[0]


def figures_of(output):
    """Losses and accuracy."""
    return next(line for line in result_of(output).splitlines() if line.startswith("NumPy")).split()[-4:]


def test_a_training_goes_on_from_its_checkpoint(run, table, tmp_path, monkeypatch):
    more = ["--dropout", 0.2, "--validation-split", 0.2, "--patience", 2, "--schedule", "cosine"]
    status, whole, _ = run(*command(table, *more, "--save", tmp_path / "whole"))
    assert status == 0
    more += ["--checkpoint", tmp_path / "c", "--checkpoint-every", 4, "--resume", "--save", tmp_path / "parts"]
    write, left = _checkpoints.write, [3]

    def killed(*args):
        write(*args)
        left[0] -= 1
        if not left[0]:
            raise Killed

    monkeypatch.setattr(_checkpoints, "write", killed)
    with pytest.raises(Killed):
        run(*command(table, *more))
    monkeypatch.undo()
    status, parts, _ = run(*command(table, *more))
    assert status == 0
    ours, theirs = load_model(tmp_path / "parts"), load_model(tmp_path / "whole")
    assert_same(ours.get_weights(), theirs.get_weights())
    assert_same(ours.optimizer.state_dict(), theirs.optimizer.state_dict())
    assert figures_of(parts) == figures_of(whole)
    status, again, _ = run(*command(table, *more))  # it is done: the same result, and no further step
    assert status == 0
    assert result_of(again) == result_of(parts)


def test_limits(run, table, tmp_path):
    status, out, _ = run(*command(table, "--max-steps", 9, "--save", tmp_path / "m"))
    assert (status, load_model(tmp_path / "m").optimizer.steps) == (0, 9)
    assert "6 epochs, at most 9 steps" in out
    assert "Times are medians over 2 epochs" in out
    status, out, _ = run(*command(table, "--max-seconds", 1e-9, "--save", tmp_path / "m"))
    assert (status, load_model(tmp_path / "m").optimizer.steps) == (0, 1)
    assert "6 epochs, at most 1e-09 s" in out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--resume"], "--resume and --checkpoint-every need --checkpoint"),
        (["--checkpoint-every", "3"], "--resume and --checkpoint-every need --checkpoint"),
        (["--checkpoint", "c", "--checkpoint-every", "now"], "checkpoint_every must be a number of steps, or such as"),
        (["--checkpoint", "no/c"], "--checkpoint no/c: there is no folder"),
        (["--max-seconds", "0"], "max_seconds must be above 0"),
    ],
)
def test_impossible_options(run, table, more, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, _, err = run(*command(table, *more))
    assert status != 0
    assert message in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["table.csv"]


def test_a_checkpoint_is_of_one_training(run):
    status, _, err = run("train", "digits", "--compare", "--checkpoint", "c")
    assert status != 0
    assert "a checkpoint is of one training: --checkpoint needs --no-compare" in err
