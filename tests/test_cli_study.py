"""`fastopt study`: each option has an effect, and the answers are those of the study."""

from __future__ import annotations

import json

import numpy as np
import pytest
from helpers_cli import write_fruit, write_prices

pytest.importorskip("scipy")

from fastopt import get_num_threads, set_num_threads
from fastopt.cli import study
from fastopt.cli.report import MISSING
from fastopt.study import _law, _page, _study

QUICK = ("--backend", "numpy", "--epochs", "1,2", "--repeats", 1, "--seeds", 1)
GRID = ("--layers", "2/8,6/16", "--shares", "0.3,0.6,1", "--batch-size", 16)


@pytest.fixture(autouse=True)
def _few_draws(monkeypatch):
    """Intervals of laws, which take most of the time, are drawn from few samples."""
    monkeypatch.setattr(_law, "DRAWS", 10)


@pytest.fixture
def studied(run, monkeypatch, tmp_path):
    """A function that studies a table and returns (data, grid, options, result, output)."""
    seen = []
    inner = _study.run
    fruit = write_fruit(tmp_path / "fruit.csv")

    def kept(data, grid, options):
        seen.append((data, grid, options, inner(data, grid, options)))
        return seen[-1][-1]

    monkeypatch.setattr(_study, "run", kept)

    def studied(*options, data=fruit):
        status, out, err = run("study", data, *QUICK, *options)
        assert (status, err) == (0, "")
        return (*seen[-1], out)

    return studied


def test_table_and_answers(studied):
    data, grid, _, result, out = studied(*GRID, "--standardize", "--seed", 3, "--seeds", 2)
    assert grid.layers == ((2,), (8, 6), (16,))
    assert (grid.shares, grid.epochs, grid.batch_sizes, grid.seeds) == ((0.3, 0.6, 1.0), (1, 2), (16,), (0, 1))
    assert (data.task.standardize, data.task.seed, data.task.backend) == (True, 3, "numpy")
    lines = out.splitlines()
    assert lines[0] == f"fruit: {data.task.rows} rows to train on, {len(data.y_test)} to test on"
    assert lines[2:] == str(result).splitlines()
    assert "Time: seconds = " in out
    assert "Twice the data" in out


def test_settings(studied):
    options = ("--optimizer", "sgd", "--lr", 0.1, "--momentum", 0.5, "--activation", "tanh", "--dropout", 0.1)
    more = ("--weight-decay", 1e-4, "--l1", 1e-5, "--clip-norm", 2, "--convention", "keras")
    data, _, options, _, _ = studied(
        "--layers", 4, *options, *more, "--loss", "categorical_crossentropy", "--dtype", "float64"
    )
    assert options.settings == {
        "optimizer": "sgd", "lr": 0.1, "momentum": 0.5, "activation": "tanh", "dropout": 0.1, "weight_decay": 1e-4,
        "l1": 1e-5, "clip_norm": 2.0, "convention": "keras",
    }  # fmt: skip
    assert (data.task.loss, data.task.dtype) == ("categorical_crossentropy", "float64")


def test_numbers_to_predict(studied, tmp_path):
    prices = write_prices(tmp_path / "prices.csv")
    _, _, _, result, out = studied(*GRID, "--standardize", "--loss", "mse", data=prices)
    assert not result.is_classification
    assert "%" not in out.splitlines()[3]


def test_budgets_and_predictions(studied):
    options = ("--best-parameters", 60, "--best-seconds", 100, "--best-bytes", 1e6, "--predict", "100/32,32", "--quiet")
    *_, result, out = studied(*GRID, *options)
    lines = out.splitlines()
    assert lines[: len(result.answers())] == result.answers()
    best = result.best(parameters=60, seconds=100, bytes=1e6)
    assert lines[-3].startswith(
        f"Best for 100 seconds and 1e+06 bytes and 60 parameters: {result.shape.name(best.layers)} on"
    )
    assert lines[-2].startswith(
        f"{result.shape.name((100,))}: {result.shape.parameters((100,)):,} parameters; 2 epochs"
    )
    assert lines[-1].startswith(f"{result.shape.name((32, 32))}: ")
    assert result.shown_error(result.error((32, 32)).value) in lines[-1]


def test_a_budget_of_nothing(studied):
    assert studied("--layers", 4, "--best-parameters", 3)[-1].endswith(
        "for 3 parameters: none of the models of the grid.\n"
    )


def test_json_to_stdout_and_to_a_file(studied, tmp_path):
    *_, result, out = studied(*GRID, "--json")
    found = json.loads(out)
    assert found.pop("asked") == {"best": None, "predictions": []}
    assert found == json.loads(json.dumps(result.to_dict()))
    *_, result, out = studied(*GRID, "--json", tmp_path / "a.json", "--best-parameters", 60, "--predict", "none")
    found = json.loads((tmp_path / "a.json").read_text())
    asked = found.pop("asked")
    best = result.best(parameters=60)
    assert (asked["best"]["layers"], asked["best"]["error"]) == (list(best.layers), best.error)
    (linear,) = asked["predictions"]
    assert (linear["layers"], linear["parameters"]) == ([], result.shape.parameters(()))
    assert linear["seconds"]["value"] == result.seconds(()).value
    assert linear["error"]["high"] >= linear["error"]["value"]
    assert found == json.loads(json.dumps(result.to_dict()))
    assert out.startswith("fruit: ")


@pytest.mark.repeats
def test_page(run, tmp_path, monkeypatch):
    """Here without matplotlib, which is told; `test_study` has the plots."""
    monkeypatch.setattr(study, "find_spec", lambda name: None)
    monkeypatch.setattr(_page, "find_spec", lambda name: None)
    fruit = write_fruit(tmp_path / "fruit.csv")
    status, _, err = run("study", fruit, *QUICK, *GRID, "--html", tmp_path / "a.html")
    assert (status, err) == (0, f"fastopt: the page has tables only: {MISSING}\n")
    assert "<h2>Frontier</h2>" in (tmp_path / "a.html").read_text(encoding="utf-8")


@pytest.mark.repeats
def test_storage(studied, run, tmp_path):
    path = tmp_path / "a.jsonl"
    *_, result, out = studied(*GRID, "--storage", path)
    before = path.read_bytes()
    status, _, err = run("study", tmp_path / "fruit.csv", *QUICK, *GRID, "--storage", path)
    assert (status, "go on with it by resume=True (--resume)" in err) == (2, True)
    *_, again, repeated = studied(*GRID, "--storage", path, "--resume")
    assert (path.read_bytes(), repeated) == (before, out)
    assert [run.test_error for run in again.runs] == [run.test_error for run in result.runs]


@pytest.mark.repeats
def test_threads(run, tmp_path):
    before = get_num_threads()
    try:
        fruit = write_fruit(tmp_path / "fruit.csv")
        options = (
            "--layers",
            "4/5",
            "--shares",
            1,
            "--epochs",
            1,
            "--repeats",
            1,
            "--seeds",
            1,
            "--threads",
            1,
            "--json",
        )
        status, out, _ = run("study", fruit, *options)
        assert (status, json.loads(out)["machine"].endswith("cpu, 1 threads")) == (0, True)
    finally:
        set_num_threads(before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--validation-split", 0.2), "--validation-split is for train"),
        (("--threads", 2), "--threads is for the compiled kernels"),
        (("--layers", "8/8"), "layers must be different values"),
        (("--layers", "a"), "must be widths of hidden layers"),
        (("--shares", "0,1"), "shares must be above 0 and at most 1; got 0.0"),
        (("--shares", "a"), "must be numbers with commas; got 'a'"),
        (("--epochs", "1.5"), "must be whole numbers with commas; got '1.5'"),
        (("--momentum", 0.9), "got 'momentum'"),
        (("--resume",), "storage must be given"),
        (("--html", "/nowhere/a.html"), "there is no folder /nowhere"),
        (("--json", "/nowhere/a.json"), "there is no folder /nowhere"),
        (("--lr", -1), "lr"),
        (("--best-seconds", -1), "--best-seconds must be at least 0, and finite; got -1.0"),
        (("--best-bytes", "nan"), "--best-bytes must be at least 0, and finite; got nan"),
    ],
)
def test_wrong_options(run, tmp_path, options, message):
    status, out, err = run("study", write_fruit(tmp_path / "fruit.csv"), *QUICK, *options)
    assert (status, out) == (2, "")
    assert message in err


def test_help(run):
    status, out, _ = run("study", "--help")
    assert status == 0
    assert "--best-seconds" in out


@pytest.mark.repeats
def test_shares_are_of_the_training_rows(studied):
    data, *_, result, _ = studied("--layers", 4, "--shares", "0.5,1")
    assert sorted({run.rows for run in result.runs}) == [round(0.5 * data.task.rows), data.task.rows]
    assert np.isfinite([run.test_loss for run in result.runs]).all()
