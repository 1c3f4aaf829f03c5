"""`fastopt train` on tables: how they are read, what targets are, and what the model remembers."""

import sys

import numpy as np
import pandas as pd
import pytest
from helpers_cli import FRUIT, TRAIN, write_fruit, write_prices

import fastopt
from fastopt import _random_rows, datasets
from fastopt.cli import experiment
from fastopt.cli.train_data import REGRESSION_LOSSES
from fastopt.kernels.formulas import LOSSES


@pytest.fixture(autouse=True)
def no_rest(monkeypatch):
    monkeypatch.setattr(experiment, "REST_SECONDS", 0.0)


@pytest.fixture
def train(run, path):
    """A function that trains with these arguments and returns the model that was saved, and what was printed."""

    def train(*arguments, epochs=2):
        status, out, err = run("train", *arguments, *TRAIN[:2], *TRAIN[3:], "--epochs", epochs, "--save", path)
        assert (status, err) == (0, "")
        return fastopt.load_model(path), out

    return train


# ---------------------------------------------------------------- what is said


def test_headline(train, tmp_path):
    model, out = train(write_fruit(tmp_path / "fruit.csv"), "--standardize")
    assert "fruit: 48 rows to train on, 12 to test on" in out
    assert "column 'fruit', 3 classes: apple, lemon, orange\n" in out
    assert "6 from 3 columns, text one-hot encoded, standardized\n" in out
    assert "6-8-3, relu" in out
    assert model.classes.tolist() == list(FRUIT)


def test_notes(train, tmp_path):
    frame = pd.DataFrame({"a": [1.5, 2.5, None, 4] * 5, "k": ["x", "y", "y", "x"] * 5})
    frame.to_csv(tmp_path / "a.csv")
    _, out = train(tmp_path / "a.csv", "--missing", "skip")
    notes = [line.split(maxsplit=1)[1] for line in out.splitlines() if line.startswith("note ")]
    assert notes == [
        "the first column, which has no name, counts the rows and is left out",
        "5 of 20 rows, those with missing cells, are left out",
    ]


# ---------------------------------------------------------------- options


def test_options_reach_the_reader(train, tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("1,5:é:7:x\n2,5:b:8:y\n".encode("cp1252") * 10)
    options = "--sep", ":", "--decimal", ",", "--no-header", "--encoding", "cp1252", "--target", "3", "--drop", "0"
    model, _ = train(path, *options, "--categorical", 2)
    names = datasets.Preparation.from_dict(model.preparation).feature_names
    assert names == ["1=b", "1=é", "2=7", "2=8"]
    model, _ = train(path, *options, "--drop", "-3")
    assert datasets.Preparation.from_dict(model.preparation).feature_names == ["2"]


@pytest.mark.parametrize("missing", ["skip", "mean"])
def test_missing(train, run, tmp_path, missing):
    path = write_fruit(tmp_path / "fruit.csv", gaps=(4, 11))
    status, _, err = run("train", path, *TRAIN)
    assert status == 2
    assert err.startswith(f"fastopt: error: {path}: line 6, column 'ripe': the cell is missing (2 cells are missing")
    assert err.count("\n") == 1
    model, out = train(path, "--missing", missing)
    assert model.preparation["missing"] == missing
    assert ("48 rows to train on, 12 to test" if missing == "mean" else "47 rows to train on, 11 to test") in out


def test_validation_rows_give_no_means(train, tmp_path):
    """Values for missing cells and scales of features come from the rows for training."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"i": np.arange(40.0), "a": rng.normal(size=40), "y": rng.normal(size=40)})
    frame.loc[::9, "a"] = None
    frame.to_csv(tmp_path / "a.csv", index=False)
    model, _ = train(
        tmp_path / "a.csv", "--missing", "mean", "--validation-split", 0.25, "--seed", 5, "--standardize"
    )
    order = np.random.default_rng(5).permutation(40)[8:]
    rows = order[_random_rows.split(32, 0.25, 5, shuffle=True)[0]]
    training = frame.loc[rows]
    fill = training["a"].mean()
    assert model.preparation["columns"][1]["fill"] == pytest.approx(fill)
    (statistics,) = model.statistics.values()
    filled = training.fillna({"a": fill})
    np.testing.assert_allclose(statistics.mean, filled[["i", "a"]].mean(), rtol=1e-9)
    np.testing.assert_allclose(statistics.variance, filled[["i", "a"]].var(ddof=0), rtol=1e-9)
    np.testing.assert_allclose(model.target_scale.mean, training["y"].mean(), rtol=1e-9)
    np.testing.assert_allclose(model.target_scale.deviation, training["y"].std(ddof=0), rtol=1e-9)


def test_features_are_scaled_before_they_are_rounded(train, tmp_path):
    """float32 knows only every 128th second of this century."""
    seconds = 1_600_000_000 + np.arange(40) * 10.0
    pd.DataFrame({"t": seconds, "y": np.arange(40) * 0.5}).to_csv(tmp_path / "a.csv", index=False)
    model, _ = train(tmp_path / "a.csv", "--standardize", "--layers", "none", "--lr", 0.1, epochs=60)
    predicted = model.predict(seconds[:, None])
    np.testing.assert_allclose(predicted[:, 0], np.arange(40) * 0.5, atol=0.5)
    assert len(np.unique(predicted)) == 40


# ---------------------------------------------------------------- the loss decides


def test_prices(train, run, tmp_path):
    path = write_prices(tmp_path / "price.csv")
    status, _, err = run("train", path, *TRAIN)
    assert status == 2
    assert "column 'price' has 60 different whole numbers in 60 rows: say which: numbers" in err
    assert "--loss mean_squared_error" in err
    model, out = train(path, "--loss", "mean_squared_error", "--standardize", "--lr", 0.03, epochs=150)
    assert "column 'price', numbers, standardized\n" in out
    assert "Losses are those of standardized targets; RMSE and R2 are in the targets' own units." in out
    assert (model.outputs, model.classes) == (1, None)
    line = next(line for line in out.splitlines() if line.startswith("NumPy reference ") and "BLAS" not in line)
    rmse, r2 = map(float, line.replace(",", "").split()[-2:])
    data = datasets.read_table(path, targets="numbers")
    errors = model.predict(data.x_test) - data.y_test
    assert rmse == pytest.approx(np.sqrt(np.square(errors, dtype="f8").mean()), rel=1e-2)
    assert r2 > 0.95


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("labels", ["no yes", "-1 1", "1 2", "3 10", "0 1", "true false"])
def test_two_classes_of_any_names(train, run, tmp_path, path, loss, labels):
    first, second = labels.split()
    lines = [f"{i % 2 * 2 - 1 + i / 100:.2f},{(first, second)[i % 2]}" for i in range(40)]
    (tmp_path / "a.csv").write_text("\n".join(["x,k", *lines]))
    arguments = [tmp_path / "a.csv", "--loss", loss, "--layers", "none", "--lr", 0.1]
    if loss in REGRESSION_LOSSES:
        if labels in ("no yes",):
            status, _, err = run("train", *arguments, *TRAIN)
            assert (status, "line 2, column 'k' must be a number for a loss of numbers" in err) == (2, True)
            return
        model, _ = train(*arguments)
        assert (model.outputs, model.classes) == (1, None)
        return
    model, out = train(*arguments, epochs=30)
    assert out.count("100.0 %") == 1
    expected = ["false", "true"] if "true" in labels else [first, second]
    assert [str(label) for label in model.classes.tolist()] == expected
    said = model.predict_classes([[-1.0], [1.0]]).tolist()
    assert [str(label) for label in said] == [first, second]


@pytest.mark.parametrize("loss", [loss for loss in LOSSES if loss not in REGRESSION_LOSSES])
def test_more_classes(train, tmp_path, loss):
    """One against the rest, too: the classes are those of the data, and the largest output is the class."""
    model, _ = train(write_fruit(tmp_path / "a.csv"), "--loss", loss, "--standardize", "--lr", 0.03, epochs=40)
    assert model.classes.tolist() == list(FRUIT)
    data = datasets.read_table(tmp_path / "a.csv")
    said = model.predict_classes(data.x_test)
    assert (said == data.labels[data.y_test]).mean() > 0.9


def test_one_row_of_a_class(train, tmp_path):
    """The row may be for training, for testing, or held out by fit."""
    lines = [f"{i},{'rare' if i == 7 else ('x', 'y')[i % 2]}" for i in range(30)]
    (tmp_path / "a.csv").write_text("\n".join(["a,k", *lines]))
    for seed in range(6):
        model, _ = train(tmp_path / "a.csv", "--seed", seed, "--validation-split", 0.3)
        assert model.classes.tolist() == ["rare", "x", "y"]


def test_an_interrupted_training_on_a_table(run, tmp_path, path, monkeypatch):
    """Saves what new tables need, too."""
    train_epoch = fastopt.models.training.train_epoch

    def interrupted(model, *args):
        if model.epochs_done == 2:
            raise KeyboardInterrupt
        return train_epoch(model, *args)

    monkeypatch.setattr(fastopt.models.training, "train_epoch", interrupted)
    table = write_fruit(tmp_path / "fruit.csv")
    status, _, err = run("train", table, *TRAIN, "--standardize", "--epochs", 5, "--save", path)
    assert (status, "interrupted after 2 of 5 epochs" in err) == (130, True)
    status, out, err = run("predict", path, table)
    assert (status, err, set(out.split()) <= set(FRUIT)) == (0, "", True)


def test_built_in_data_as_numbers(train):
    model, _ = train("digits", "--loss", "mean_squared_error", "--no-compare", epochs=1)
    assert (model.outputs, model.metrics) == (1, ("mean_squared_error", "r2"))
    model, _ = train("digits", "--no-compare", "--standardize", epochs=1)
    assert model.classes.tolist() == list(range(10))
    assert len(model.statistics) == 1


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["FRUIT", "--target", "taste"], "there is no column 'taste'; its columns are weight, colour, ripe, fruit"),
        (["FRUIT", "--drop", "taste"], "there is no column 'taste'"),
        (["FRUIT", "--decimal", "."], "line 2, column 'weight' must be a number with the decimal mark '.'; got '0,1"),
        (["FRUIT", "--sep", ","], "must have 1 columns, as the header has; got 2"),
        (["FRUIT", "--sep", "ab"], "sep must be one character"),
        (["FRUIT", "--decimal", "x"], "argument --decimal: invalid choice: 'x' (choose from"),
        (["FRUIT", "--encoding", "utf-99"], "unknown encoding 'utf-99'"),
        (["FRUIT", "--folder", "here"], "--folder is for mnist and fashion-mnist"),
        (["FRUIT", "--validation-split", "1"], "validation_split must be in [0, 1); got 1.0"),
        (["FRUIT", "--target", "weight", "--loss", "hinge"], "column 'weight' must be a label for a loss of classes"),
        (["FRUIT", "--loss", "huber"], "line 2, column 'fruit' must be a number for a loss of numbers"),
        (["EMPTY"], "empty.csv: a table must have rows and columns; got an empty file"),
    ],
)
def test_errors(run, tmp_path, arguments, message):
    files = {"FRUIT": write_fruit(tmp_path / "fruit.csv"), "EMPTY": tmp_path / "empty.csv"}
    files["EMPTY"].touch()
    status, out, err = run("train", *(files.get(argument, argument) for argument in arguments), *TRAIN)
    assert (status, out) == (2, "")
    first, *others = err.splitlines()
    assert first.startswith("fastopt: error: ")
    assert message in first
    assert others in ([], ["See 'fastopt train --help'."])


def test_without_pandas(run, tmp_path, monkeypatch):
    path = write_fruit(tmp_path / "fruit.csv")
    monkeypatch.setitem(sys.modules, "pandas", None)
    error = "fastopt: error: reading tables needs pandas: pip install 'fastopt[data]'\n"
    assert run("train", path, *TRAIN) == (2, "", error)
