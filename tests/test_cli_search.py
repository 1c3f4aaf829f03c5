"""`fastopt search`: each option has an effect, and the command that it prints trains the winner."""

from __future__ import annotations

import shlex

import pytest
from helpers_cli import write_fruit, write_prices

optuna = pytest.importorskip("optuna")
pytest.importorskip("sklearn")

from fastopt.cli import search, train  # noqa: E402
from fastopt.cli.main import parser  # noqa: E402
from fastopt.cli.search_space import layers, names, numbers  # noqa: E402
from fastopt.search import _search  # noqa: E402

QUICK = ("--backend", "numpy", "--epochs", 2, "--cv", 2)


@pytest.fixture
def fruit(tmp_path):
    return write_fruit(tmp_path / "fruit.csv")


@pytest.fixture
def searched(run, fruit, monkeypatch):
    """A function that searches on a table and returns (task, space, options, result, output)."""
    seen = []
    inner = _search.run

    def kept(task, space, options):
        seen.append((task, space, options, inner(task, space, options)))
        return seen[-1][-1]

    monkeypatch.setattr(_search, "run", kept)

    def searched(*options, data=fruit):
        status, out, err = run("search", data, *QUICK, *options)
        assert (status, err) == (0, "")
        return (*seen[-1], out)

    return searched


def test_a_grid_and_its_winning_command(searched, run, fruit):
    options = ("--grid", "--layers", "4/8,6", "--lr", "1e-3:1e-1:3", "--seed", 3, "--standardize")
    task, _, _, result, out = searched(*options)
    assert task.standardize
    assert len(result.outcomes) == 6
    lines = out.splitlines()
    assert lines[0] == f"fruit: {task.rows} rows, 2 folds"
    assert lines[2].split() == ["trial", "val_accuracy", "+-", "layers", "lr", "seconds"]
    assert "6 trials" in out
    command = shlex.split(lines[-1])
    assert command[:3] == ["fastopt", "train", str(fruit)]
    assert command.count("--standardize") == 1
    best = result.best_settings
    args = parser().parse_args(command[1:])
    assert (args.layers, args.lr, args.epochs, args.batch_size) == (best["layers"], best["lr"], 2, 32)
    assert (args.seed, args.backend) == (3, "numpy")
    assert run(*command[1:], "--quiet")[0] == 0


def test_the_command_trains_the_network_of_the_search(searched):
    """From the same weights, with the same optimizer, on all rows."""
    options = ("--trials", 1, "--optimizer", "sgd", "--momentum", "0.5:0.9", "--lr", "0.01:0.1", "--layers", "5")
    task, _, _, result, out = searched(*options, "--activation", "tanh", "--dropout", "0.1")
    args = parser().parse_args(shlex.split(out.splitlines()[-1])[1:])
    data = train.train_data.load(args)
    experiment = train._experiment(args, data)
    theirs, ours = experiment.model("numpy"), task.model(result.best_settings)
    ours.build(theirs.inputs)
    assert [repr(layer) for layer in theirs.layers] == [repr(layer) for layer in ours.layers]
    assert repr(theirs.optimizer) == repr(ours.optimizer)
    assert args.epochs == result.best_epochs
    assert all((a == b).all() for a, b in zip(theirs.parameters, ours.parameters, strict=True))
    assert list(theirs.classes) == list(ours.classes)
    assert len(experiment.x) == task.rows


def test_the_command_trains_for_the_epochs_by_which_patience_chose(searched):
    _, _, _, result, out = searched("--trials", 1, "--lr", "0.2:0.3", "--layers", "5", "--patience", 1, "--epochs", 40)
    args = parser().parse_args(shlex.split(out.splitlines()[-1])[1:])
    assert args.epochs == result.best_epochs == round(sum(result.best.epochs) / len(result.best.epochs)) < 40


def test_numbers(searched, tmp_path):
    task, _, _, result, out = searched(
        "--lr", "1e-6,0.05", "--grid", "--standardize", "--target", "price", "--loss", "huber", "--monitor", "val_r2",
        "--epochs", 30, data=write_prices(tmp_path / "prices.csv"),
    )  # fmt: skip
    assert task.loss == "huber"
    assert result.monitor == "val_r2"
    assert result.best_settings["lr"] == 0.05
    command = shlex.split(out.splitlines()[-1])
    assert [command[command.index(name) + 1] for name in ("--target", "--loss")] == ["price", "huber"]


def test_without_ranges_the_usual_settings_are_searched(searched):
    _, space, _, result, _ = searched("--trials", 2, "--optimizer", "adamw")
    assert {name: space[name] for name in search.DEFAULT_SPACE} == search.DEFAULT_SPACE
    assert space["optimizer"] == "adamw"
    assert set(result.space.free) == {"lr", "batch_size", "layers"}
    assert len(result.outcomes) == 2


@pytest.mark.parametrize(
    ("options", "name", "value"),
    [
        (("--trials", 3), "trials", 3),
        (("--random",), "sampler", "random"),
        ((), "sampler", "tpe"),
        (("--patience", 1), "patience", 1),
        (("--no-prune",), "prune", False),
        (("--jobs", 2), "jobs", 2),
        (("--timeout", 50), "timeout", 50.0),
        (("--monitor", "val_loss"), "monitor", "val_loss"),
        (("--quiet",), "verbose", 0),
    ],
)
def test_options_reach_the_search(searched, options, name, value):
    trials = () if "--trials" in options else ("--trials", 1)
    _, _, found, _, out = searched("--lr", "0.01:0.1", "--layers", "3", *trials, *options)
    assert getattr(found, name) == value
    assert ("trial " in out) == ("--quiet" not in options)


@pytest.mark.parametrize("clips_norm", [False, True])
def test_settings_reach_the_space(searched, clips_norm):
    given = {
        "--dropout": ("0:0.5", (0.0, 0.5)), "--weight-decay": ("1e-5:1e-2", (1e-5, 1e-2)), "--l1": ("0", 0.0),
        "--clip-value": ("0.5:1", (0.5, 1.0)), "--accumulate": ("1,2", [1, 2]),
        "--batch-size": ("8:32", (8, 32)), "--activation": ("relu,tanh", ["relu", "tanh"]),
        "--convention": ("keras", "keras"), "--epochs": ("1,2", [1, 2]),
    }  # fmt: skip
    if clips_norm:
        del given["--clip-value"]
        given["--clip-norm"] = "1,2", [1.0, 2.0]
    words = [word for option, (text, _) in given.items() for word in (option, text)]
    _, space, _, result, _ = searched("--trials", 2, "--dtype", "float64", *words)
    assert space == {option[2:].replace("-", "_"): value for option, (_, value) in given.items()}
    assert result.build(result.best_settings).dtype == "float64"


def test_a_database_and_resume(run, fruit, tmp_path):
    stored = ("--storage", f"sqlite:///{tmp_path}/trials.db", "--lr", "0.01:0.1", "--layers", "3", *QUICK)
    assert run("search", fruit, *stored, "--trials", 2)[0] == 0
    status, out, _ = run("search", fruit, *stored, "--trials", 3, "--resume", "--name", str(fruit))
    assert status == 0
    assert "3 trials" in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--grid",), "--grid needs lists of settings, such as"),
        (("--grid", "--lr", "1e-3:1e-1"), "a grid needs a list of values for lr; got a range"),
        (("--grid", "--random"), "give --grid or --random, not both"),
        (("--validation-split", 0.2), "search validates by --cv"),
        (("--threads", 1), "--threads is for the compiled kernels"),
        (("--resume",), "resume goes on with a study of a storage"),
        (("--lr", "1:0.1"), "argument --lr: must be a range LOW:HIGH, or LOW:HIGH:N, with LOW below HIGH; got '1:0.1'"),
        (
            ("--lr", "0:0.1"),
            "argument --lr: must be a range above 0, as numbers are drawn by their logarithms; got '0:",
        ),
        (("--lr", "x:0.1"), "argument --lr: must be a number, a list such as"),
        (("--batch-size", "1.5"), "argument --batch-size: must be whole numbers: a number"),
        (("--optimizer", "adam,adem"), "argument --optimizer: must be among"),
        (("--layers", "3,x"), "argument --layers: must be widths of hidden layers"),
        (("--momentum", "0.1:0.9"), "'momentum' is no setting of adam"),
        (("--grid", "--trials", 3), "not allowed with argument"),
    ],
)
def test_refusals(run, fruit, options, message):
    status, out, err = run("search", fruit, *QUICK, *options)
    assert (status, out) == (2, "")
    assert message in err


def test_forms_of_settings():
    assert numbers(True)("1e-4:1e-1:4") == [1e-4, 1e-3, 1e-2, 1e-1]
    assert numbers(False)("0:0.5:3") == [0.0, 0.25, 0.5]
    assert numbers(True, whole=True)("16:64:3") == [16, 32, 64]
    assert numbers(False)("0.5") == 0.5
    assert layers("none/3") == [(), (3,)]
    assert names(["a"])("a") == "a"
