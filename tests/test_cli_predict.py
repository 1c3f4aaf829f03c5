"""`fastopt predict` and `fastopt evaluate`: new data go through what was learnt from the training data."""

import struct

import numpy as np
import pandas as pd
import pytest
from helpers_cli import FRUIT, TRAIN, write_fruit, write_prices

import fastopt
from fastopt import datasets
from fastopt.cli import experiment
from fastopt.cli.train_data import REGRESSION_LOSSES
from fastopt.kernels.formulas import LOSSES


@pytest.fixture(autouse=True)
def no_rest(monkeypatch):
    monkeypatch.setattr(experiment, "REST_SECONDS", 0.0)


@pytest.fixture
def trained(run, path):
    """A function that trains with these arguments and returns the path of the model."""

    def trained(*arguments, epochs=40):
        status, _, err = run("train", *arguments, *TRAIN, "--lr", 0.03, "--epochs", epochs, "--save", path)
        assert (status, err) == (0, "")
        return path

    return trained


@pytest.fixture
def fruit(tmp_path):
    return write_fruit(tmp_path / "fruit.csv")


@pytest.fixture
def model(trained, fruit):
    """The path of a model that knows fruit."""
    return trained(fruit, "--standardize")


def lines(result):
    status, out, err = result
    assert (status, err) == (0, "")
    return out.splitlines()


def saved(model, path, inputs=2):
    """Write a model that Python has made, and return it."""
    model.build(inputs)
    model.save(path)
    return model


# ---------------------------------------------------------------- predict: tables


def test_names_of_classes(run, model, fruit):
    said = lines(run("predict", model, fruit))
    assert len(said) == 60
    assert set(said) == set(FRUIT)
    assert np.mean([said[i] == FRUIT[i % 3] for i in range(60)]) > 0.95


def test_order_dialect_and_target_do_not_matter(run, model, fruit, tmp_path):
    """Columns are found by their names, and a column of targets is ignored, whatever it holds."""
    said = lines(run("predict", model, fruit))
    frame = pd.read_csv(fruit, sep=";", decimal=",")
    frame.drop(columns="fruit").to_csv(tmp_path / "without.csv", index=False)
    frame[["ripe", "fruit", "weight", "colour"]].assign(fruit="pear").to_csv(tmp_path / "order.tsv", sep="\t")
    frame.to_parquet(tmp_path / "frame.parquet")
    frame.assign(more=1.5).to_csv(tmp_path / "more.csv.gz", index=False)
    frame.to_csv(tmp_path / "position.txt", sep=" ", header=False, index=False)
    for name in ("without.csv", "order.tsv", "frame.parquet", "more.csv.gz"):
        assert lines(run("predict", model, tmp_path / name)) == said, name
    status, out, err = run("predict", model, tmp_path / "position.txt")
    assert (status, out.splitlines()) == (0, said)
    assert err == "fastopt: there is no header: columns are taken by their positions\n"


def test_one_row(run, model, tmp_path):
    (tmp_path / "one.csv").write_text("colour,weight,ripe\nyellow,0.101,True\n")
    assert lines(run("predict", model, tmp_path / "one.csv")) == ["lemon"]


def test_numbers_in_their_own_units(run, trained, tmp_path):
    table = write_prices(tmp_path / "price.csv")
    model = trained(table, "--loss", "mean_squared_error", "--standardize", epochs=150)
    said = np.array([float(line) for line in lines(run("predict", model, table))])
    prices = pd.read_csv(table)["price"].to_numpy()
    assert np.abs(said - prices).mean() < 0.05 * prices.mean()


@pytest.mark.parametrize(("labels", "shown"), [("1 2 7", "1 2 7"), ("01 02 03", "01 02 03"), ("-1 1 5", "-1 1 5")])
def test_labels_as_they_were(run, trained, tmp_path, labels, shown):
    names = labels.split()
    rows = [f"{i % 3 * 2 + i / 100:.2f},{names[i % 3]}" for i in range(60)]
    (tmp_path / "a.csv").write_text("\n".join(["x,k", *rows]))
    model = trained(tmp_path / "a.csv", epochs=80)
    assert set(lines(run("predict", model, tmp_path / "a.csv"))) == set(shown.split())
    assert "accuracy                                 100.00 %" in lines(run("evaluate", model, tmp_path / "a.csv"))


def test_missing_cells(run, trained, tmp_path):
    """As in training, or as is said: a row that is skipped has an empty line."""
    train, gaps = write_fruit(tmp_path / "a.csv"), write_fruit(tmp_path / "gaps.csv", gaps=(1, 4))
    model = trained(train)
    status, out, err = run("predict", model, gaps)
    assert (status, out) == (2, "")
    assert err.startswith(f"fastopt: error: {gaps}: line 3, column 'ripe': the cell is missing (2 cells")
    status, out, err = run("predict", model, gaps, "--missing", "skip")
    assert status == 0
    assert err == (
        "fastopt: 2 of 60 rows, those with missing cells, are left out\n"
        "fastopt: where cells are missing, the prediction is empty\n"
    )
    assert [i for i, line in enumerate(out.splitlines()) if not line] == [1, 4]
    assert len(lines(run("predict", model, gaps, "--missing", "mean"))) == 60
    model = trained(gaps, "--missing", "mean")
    said = lines(run("predict", model, gaps))
    assert "" not in said
    preparation = datasets.Preparation.from_dict(fastopt.load_model(model).preparation)
    x = preparation.transform(gaps)
    assert x[1, -1] == np.float32(preparation.columns[2].fill)
    assert fastopt.load_model(model).predict_classes(x).tolist() == said


# ---------------------------------------------------------------- predict: files


@pytest.mark.parametrize("suffix", ["csv", "tsv", "parquet", "feather", "npz"])
@pytest.mark.parametrize("probabilities", [False, True])
def test_out(run, model, tmp_path, suffix, probabilities):
    data, out = write_fruit(tmp_path / "new.csv", rows=12, seed=1, gaps=(3,)), tmp_path / f"out.{suffix}"
    options = ["--probabilities"] * probabilities + ["--missing", "skip"]
    said = run("predict", model, data, "--missing", "skip")[1].splitlines()
    status, text, _ = run("predict", model, data, "--out", out, *options)
    assert (status, text) == (0, "")
    loaded = fastopt.load_model(model)
    preparation = datasets.Preparation.from_dict(loaded.preparation)
    expected = loaded.predict(preparation.transform(data, missing="skip"))
    if suffix == "npz":
        with np.load(out) as arrays:
            assert arrays["rows"].tolist() == [i for i in range(12) if i != 3]
            assert arrays["prediction"].tolist() == [name for name in said if name]
            assert ("probabilities" in arrays) == probabilities
            if probabilities:
                np.testing.assert_allclose(arrays["probabilities"], expected, rtol=1e-5)
                assert arrays["names"].tolist() == list(FRUIT)
        return
    if suffix in ("csv", "tsv"):
        assert len(out.read_text().splitlines()) == 13
        frame = pd.read_csv(out, sep="," if suffix == "csv" else "\t", skip_blank_lines=False)
    else:
        frame = getattr(pd, f"read_{suffix}")(out)
    assert list(frame.columns) == ["fruit", *FRUIT * probabilities]
    assert frame["fruit"].fillna("").tolist() == said
    if probabilities:
        np.testing.assert_allclose(frame.loc[frame.index != 3, list(FRUIT)].to_numpy(float), expected, rtol=1e-5)


def test_probabilities_on_the_screen(run, model, fruit):
    head, *rows = lines(run("predict", model, fruit, "--probabilities"))
    assert head == "fruit,apple,lemon,orange"
    for row in rows:
        name, *shares = row.split(",")
        shares = list(map(float, shares))
        assert sum(shares) == pytest.approx(1, abs=1e-5)
        assert FRUIT[int(np.argmax(shares))] == name


@pytest.mark.parametrize("loss", ["binary_crossentropy", "sparse_categorical_crossentropy", "categorical_crossentropy"])
def test_probabilities_of_two_classes(run, trained, tmp_path, loss):
    rows = [f"{i % 2 * 2 - 1 + i / 100:.2f},{('no', 'yes')[i % 2]}" for i in range(40)]
    (tmp_path / "a.csv").write_text("\n".join(["x,k", *rows]))
    model = trained(tmp_path / "a.csv", "--loss", loss)
    head, *said = lines(run("predict", model, tmp_path / "a.csv", "--probabilities"))
    assert head == "k,no,yes"
    for i, row in enumerate(said):
        name, no, yes = row.split(",")
        assert name == ("no", "yes")[i % 2]
        assert float(no) + float(yes) == pytest.approx(1, abs=1e-5)
        assert (float(yes) > 0.5) == (name == "yes")


@pytest.mark.parametrize(("units", "loss"), [(3, "sparse_categorical_crossentropy"), (1, "binary_crossentropy")])
def test_probabilities_from_logits(run, path, tmp_path, units, loss):
    """A linear last layer under a cross-entropy gives logits."""
    model = fastopt.Sequential([fastopt.Dense(units)], seed=1, backend="numpy")
    model.compile("adam", loss)
    model = saved(model, path)
    x = np.random.default_rng(0).normal(size=(7, 2)).astype(np.float32)
    np.savez(tmp_path / "a.npz", x=x)
    logits = model.predict(x).astype(np.float64)
    if units == 3:
        expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    else:
        yes = 1 / (1 + np.exp(-logits))
        expected = np.concatenate([1 - yes, yes], axis=1)
    head, *rows = lines(run("predict", path, tmp_path / "a.npz", "--probabilities"))
    assert head == f"prediction,{','.join(map(str, range(expected.shape[1])))}"
    cells = np.array([row.split(",") for row in rows], float)
    np.testing.assert_allclose(cells[:, 1:], expected, rtol=1e-5)
    assert cells[:, 0].tolist() == expected.argmax(axis=1).tolist()


def test_names_that_meet(run, trained, tmp_path):
    rows = [f"{i % 2 * 2 - 1 + i / 100:.2f},{('k', 'l')[i % 2]}" for i in range(40)]
    (tmp_path / "a.csv").write_text("\n".join(["x,k", *rows]))
    status, _, err = run("train", tmp_path / "a.csv", *TRAIN)
    assert (status, "the first row may be a header, and it may be data" in err) == (2, True)  # k comes again
    model = trained(tmp_path / "a.csv", "--header")
    assert lines(run("predict", model, tmp_path / "a.csv", "--probabilities"))[0] == "k,probability of k,l"


# ---------------------------------------------------------------- other data, other models


def write_idx(folder):
    folder.mkdir()
    for part, rows in (("train", 12), ("t10k", 4)):
        labels, images = np.arange(rows, dtype=np.uint8) % 10, np.zeros((rows, 28, 28), np.uint8)
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">ii", 2049, rows) + labels.tobytes())
        (folder / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">iiii", 2051, rows, 28, 28) + images.tobytes())
    return folder


def test_built_in_data(run, trained, tmp_path):
    model = trained("digits", "--no-compare", epochs=2)
    data = datasets.load("digits")
    loaded = fastopt.load_model(model)
    assert lines(run("predict", model, "digits")) == [str(k) for k in loaded.predict_classes(data.x_test)]
    figures = loaded.evaluate(data.x_test, data.y_test)
    rows = dict(line.rsplit("   ", 1) for line in lines(run("evaluate", model, "digits")))
    assert {title.strip(): text for title, text in rows.items()} == {
        "rows": "360",
        "loss (sparse_categorical_crossentropy)": f"{figures['loss']:.6g}",
        "accuracy": f"{100 * figures['accuracy']:.2f} %",
    }
    folder = write_idx(tmp_path / "idx")
    model = trained("mnist", "--folder", folder, epochs=1)
    assert len(lines(run("predict", model, "mnist", "--folder", folder))) == 4
    assert lines(run("evaluate", model, "mnist", "--folder", folder))[0].split() == ["rows", "4"]


def test_arrays(run, trained, tmp_path):
    rng = np.random.default_rng(0)
    y = np.array(["p", "q", "r"])[np.arange(60) % 3]
    x = rng.normal(size=(60, 4)) + 4 * np.eye(4)[np.arange(60) % 3]
    np.savez(tmp_path / "a.npz", x=x, y=y)
    model = trained(tmp_path / "a.npz", epochs=60)
    said = lines(run("predict", model, tmp_path / "a.npz"))
    assert np.mean(said == y) > 0.95
    np.savez(tmp_path / "x.npz", x=x[:5].reshape(5, 2, 2))
    np.savez(tmp_path / "parts.npz", x_train=x[5:], y_train=y[5:], x_test=x[:5], y_test=y[:5])
    pd.DataFrame(x[:5]).assign(k=y[:5]).to_csv(tmp_path / "t.csv")
    for name in ("x.npz", "parts.npz", "t.csv"):
        status, out, err = run("predict", model, tmp_path / name)
        assert (status, out.splitlines()) == (0, said[:5])
        note = "fastopt: the first row is taken for names: 0, 1, 2, 3, k\n" * (name == "t.csv")
        assert err == note
    for name in ("parts.npz", "t.csv"):
        status, out, _ = run("evaluate", model, tmp_path / name)
        assert (status, out.split()[:2]) == (0, ["rows", "5"])


def test_models_of_python(run, path, tmp_path):
    """Without a preparation columns are numbers by position; one more than the inputs is the target."""
    model = fastopt.Sequential([fastopt.Dense(1)], seed=3, backend="numpy")
    model.compile("sgd", "mean_absolute_error", metrics=["mean_squared_error"])
    saved(model, path)
    frame = pd.DataFrame({"a": [1.0, 2.0, 3.0], "b": [True, False, True], "c": [0.5, 1.5, 2.5]})
    x = frame[["a", "b"]].to_numpy(float)
    expected = [str(number) for number in model.predict(x)[:, 0]]
    frame.to_csv(tmp_path / "t.csv")
    frame[["a", "b"]].to_csv(tmp_path / "x.tsv", sep="\t", index=False)
    frame[["c", "a", "b"]].to_csv(tmp_path / "first.csv", index=False)
    assert lines(run("predict", path, tmp_path / "t.csv")) == expected
    assert lines(run("predict", path, tmp_path / "x.tsv")) == expected
    assert lines(run("predict", path, tmp_path / "first.csv", "--target", "c")) == expected
    figures = model.evaluate(x, frame["c"])
    frame.insert(0, "id", ["p", "q", "r"])
    frame.to_csv(tmp_path / "id.csv", index=False)
    assert lines(run("predict", path, tmp_path / "id.csv", "--drop", "id")) == expected
    assert lines(run("predict", path, tmp_path / "id.csv", "--drop", "c", "--drop", 0)) == expected
    for arguments in (
        ["id.csv", "--drop", "id"],
        ["t.csv"],
        ["first.csv", "--target", "c"],
        ["first.csv", "--target", "0"],
    ):
        rows = lines(run("evaluate", path, tmp_path / arguments[0], *arguments[1:]))
        assert [row.split()[-1] for row in rows] == [
            "3", f"{figures['loss']:.6g}", f"{figures['mean_squared_error']:.6g}",
            f"{np.sqrt(figures['mean_squared_error']):.6g}",
        ]  # fmt: skip


def test_labels_of_python(run, path, tmp_path):
    model = fastopt.Sequential([fastopt.Dense(1)], seed=0, backend="numpy")
    model.compile("adam", "hinge", metrics=["accuracy"])
    x = np.linspace(-1, 1, 20).reshape(-1, 1)
    model.fit(x, np.where(x > 0, "up", "down"), epochs=60, verbose=0)
    model.save(path)
    pd.DataFrame({"x": x[:, 0], "k": np.where(x > 0, "up", "down")[:, 0]}).to_csv(tmp_path / "t.csv", index=False)
    assert lines(run("predict", path, tmp_path / "t.csv")) == model.predict_classes(x).tolist()
    assert lines(run("evaluate", path, tmp_path / "t.csv"))[0].split() == ["rows", "20"]


def test_several_outputs(run, path, tmp_path):
    model = fastopt.Sequential([fastopt.Dense(2)], seed=0, backend="numpy")
    model.compile("adam", "mean_squared_error")
    saved(model, path, inputs=3)
    x = np.random.default_rng(0).normal(size=(4, 3))
    np.savez(tmp_path / "a.npz", x=x, y=x[:, :2])
    head, *rows = lines(run("predict", path, tmp_path / "a.npz"))
    assert head == "prediction_0,prediction_1"
    assert rows == [",".join(map(str, row)) for row in model.predict(x)]
    assert lines(run("evaluate", path, tmp_path / "a.npz"))[0].split() == ["rows", "4"]
    pd.DataFrame(x).assign(y=1.0).to_csv(tmp_path / "t.csv", index=False)
    status, _, err = run("evaluate", path, tmp_path / "t.csv")
    assert (status, err.count("\n")) == (2, 1)
    assert "t.csv: the model has 2 outputs, and a table one column of targets: give a .npz file of x and y" in err


@pytest.mark.parametrize("backend", ["cpu", "numpy"])
def test_backend_and_batches(run, model, fruit, backend):
    said = lines(run("predict", model, fruit))
    assert lines(run("predict", model, fruit, "--backend", backend, "--batch-size", 7)) == said
    assert lines(run("evaluate", model, fruit, "--backend", backend, "--batch-size", 7))[0].split() == ["rows", "60"]


# ---------------------------------------------------------------- evaluate


def test_evaluate_classes(run, model, fruit, tmp_path):
    new = write_fruit(tmp_path / "new.csv", seed=2)
    loaded = fastopt.load_model(model)
    x = datasets.Preparation.from_dict(loaded.preparation).transform(new)
    figures = loaded.evaluate(x, pd.read_csv(new, sep=";")["fruit"])
    assert lines(run("evaluate", model, new)) == [
        "rows                                     60",
        f"loss (sparse_categorical_crossentropy)   {figures['loss']:.6g}",
        f"accuracy                                 {100 * figures['accuracy']:.2f} %",
    ]


@pytest.mark.parametrize("loss", [name for name in LOSSES if name not in REGRESSION_LOSSES])
def test_evaluate_every_loss_of_classes(run, trained, fruit, loss):
    model = trained(fruit, "--loss", loss, "--standardize", epochs=80)
    rows = lines(run("evaluate", model, fruit))
    assert rows[1].startswith(f"loss ({loss})")
    assert float(rows[2].split()[1]) > 80
    said = lines(run("predict", model, fruit))
    assert np.mean([said[i] == FRUIT[i % 3] for i in range(60)]) > 0.8


def test_evaluate_numbers(run, trained, tmp_path):
    table = write_prices(tmp_path / "price.csv")
    model = trained(table, "--loss", "mean_squared_error", "--standardize", epochs=100)
    loaded, frame = fastopt.load_model(model), pd.read_csv(table)
    errors = loaded.predict(frame[["rooms", "area"]].to_numpy(float))[:, 0] - frame["price"].to_numpy(float)
    pairs = (row.rsplit("   ", 1) for row in lines(run("evaluate", model, table))[:-1])
    rows = {title.strip(): text for title, text in pairs}
    squares = np.square(errors).mean()
    assert float(rows["mean_squared_error"]) == pytest.approx(squares, rel=1e-4)
    assert float(rows["RMSE"]) == pytest.approx(np.sqrt(squares), rel=1e-4)
    assert float(rows["r2"]) == pytest.approx(1 - squares / frame["price"].var(ddof=0), rel=1e-4)
    scaled = squares / loaded.target_scale.deviation[0] ** 2
    assert float(rows["loss (mean_squared_error)"]) == pytest.approx(scaled, rel=1e-3)


def test_rows_without_a_target(run, model, tmp_path):
    text = (write_fruit(tmp_path / "a.csv", rows=6)).read_text().splitlines()
    text[2] = text[2].rpartition(";")[0] + ";"
    (tmp_path / "a.csv").write_text("\n".join(text))
    status, _, err = run("evaluate", model, tmp_path / "a.csv")
    assert status == 2
    assert "line 3, column 'fruit': the cell is missing" in err
    status, out, err = run("evaluate", model, tmp_path / "a.csv", "--missing", "mean")
    assert (status, out.split()[:2]) == (0, ["rows", "5"])
    assert err == "fastopt: 1 of 6 rows, those without a target in column 'fruit', are left out\n"
    assert len(lines(run("predict", model, tmp_path / "a.csv"))) == 6


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        ("predict", ["none.safetensors", "FRUIT"], "No such file or directory: 'none.safetensors'"),
        ("predict", ["FRUIT", "FRUIT"], "fruit.csv is not a whole safetensors file"),
        ("predict", ["MODEL", "none.csv"], "none.csv: there is no such file"),
        ("predict", ["MODEL", "none"], "unknown data set 'none'; known: digits, fashion-mnist, mnist, or the path"),
        ("predict", ["MODEL", "digits"], "digits: the model takes 6 features; got 64"),
        ("predict", ["MODEL", "digits", "--sep", ","], "--sep is for tables, not for the data set digits"),
        ("predict", ["MODEL", "digits", "--target", "0"], "--target is for tables, not for the data set digits"),
        ("predict", ["MODEL", "FRUIT", "--folder", "x"], "--folder is for mnist and fashion-mnist"),
        ("predict", ["MODEL", "FRUIT", "--drop", "ripe"], "--drop is for models that were not trained on a table"),
        ("predict", ["MODEL", "digits", "--drop", "0"], "--drop is for tables, not for the data set digits"),
        ("predict", ["BARE", "PAIRS", "--drop", "c"], "there is no column 'c'; its columns are a, b"),
        ("predict", ["MODEL", "ARRAYS"], "arrays.npz: the model takes 6 features; got 3"),
        ("predict", ["MODEL", "ARRAYS", "--missing", "skip"], "--missing is for tables, not for the data set"),
        ("predict", ["MODEL", "BLUE"], "line 2, column 'colour' must be one of the categories of the training data"),
        ("predict", ["MODEL", "SHORT"], "short.csv: it lacks the columns weight, ripe, which the model was"),
        ("predict", ["MODEL", "FRUIT", "--out", "a.xlsx"], "--out a.xlsx must be the name of a file that ends in"),
        ("predict", ["MODEL", "FRUIT", "--out", "no/a.csv"], "--out no/a.csv: there is no folder"),
        ("predict", ["MODEL", "FRUIT", "--out", "FRUIT"], "which would be overwritten"),
        ("predict", ["HINGE", "FRUIT", "--probabilities"], "--probabilities is for models that end in softmax or"),
        ("predict", ["MODEL", "FRUIT", "--batch-size", "0"], "argument --batch-size: must be a whole number of"),
        ("predict", ["MODEL"], "the following arguments are required: DATA"),
        ("evaluate", ["MODEL", "SHORT"], "it lacks the columns weight, ripe"),
        ("evaluate", ["MODEL", "UNTOLD"], "it lacks the target's column 'fruit'; its columns are weight, colour"),
        ("evaluate", ["MODEL", "PEAR"], "line 3, column 'fruit' must be one of the model's classes, apple, lemon"),
        ("evaluate", ["MODEL", "PEAR"], "orange; got 'pear'"),
        ("evaluate", ["MODEL", "FRUIT", "--target", "weight"], "column 'weight' must be one of the model's classes"),
        ("evaluate", ["MODEL", "FRUIT", "--target", "taste"], "there is no column 'taste'"),
        ("evaluate", ["BARE", "PAIRS"], "the model was saved without a loss: compile it before it is saved"),
        ("predict", ["BARE", "FRUIT"], "must have 2 columns of features, as the model has 2 inputs; got 4 columns"),
        ("predict", ["BARE", "WORDS"], "line 2, column 'b' must be a number, as the model knows no categories"),
        ("predict", ["BARE", "PAIRS", "--missing", "mean"], "--missing mean needs the means of the training rows"),
    ],
)  # fmt: skip
def test_errors(run, trained, model, fruit, tmp_path, monkeypatch, command, arguments, message):
    monkeypatch.chdir(tmp_path)
    files = {"MODEL": tmp_path / "known.safetensors", "FRUIT": fruit, "HINGE": tmp_path / "hinge.safetensors"}
    files["MODEL"].write_bytes(model.read_bytes())
    if "HINGE" in arguments:
        files["HINGE"].write_bytes(trained(fruit, "--loss", "hinge", epochs=1).read_bytes())
    texts = {
        "BLUE": "weight,colour,ripe\n0.1,blue,True\n",
        "SHORT": "colour\nred\n",
        "UNTOLD": "weight,colour,ripe\n0.1,red,True\n",
        "PEAR": "weight,colour,ripe,fruit\n0.1,red,True,apple\n0.1,red,True,pear\n",
        "PAIRS": "a,b\n1,2\n3,4\n",
        "WORDS": "a,b\n1,x\n3,y\n",
    }
    for name, text in texts.items():
        files[name] = tmp_path / f"{name.lower()}.csv"
        files[name].write_text(text)
    files["ARRAYS"], files["BARE"] = tmp_path / "arrays.npz", tmp_path / "bare.safetensors"
    np.savez(files["ARRAYS"], x=np.eye(3))
    saved(fastopt.Sequential([fastopt.Dense(1)], backend="numpy"), files["BARE"])
    before = sorted(tmp_path.iterdir())
    status, out, err = run(command, *(files.get(argument, argument) for argument in arguments))
    assert (status, out) == (2, "")
    first, *others = err.splitlines()
    assert first.startswith("fastopt: error: ")
    assert message in first
    assert others in ([], [f"See 'fastopt {command} --help'."])
    assert sorted(tmp_path.iterdir()) == before


def test_a_preparation_of_the_users_own(run, path, tmp_path):
    """A preparation of the user's own is not read; a damaged one of ours is an error."""
    model = fastopt.Sequential([fastopt.Dense(1)], backend="numpy")
    model.preparation = {"made": "by hand"}
    saved(model, path)
    (tmp_path / "a.csv").write_text("a,b\n1,2\n")
    assert len(lines(run("predict", path, tmp_path / "a.csv"))) == 1
    model.preparation = {"columns": [1], "layout": {}}
    model.save(path)
    status, _, err = run("predict", path, tmp_path / "a.csv")
    assert (status, "the model's preparation of tables cannot be read" in err) == (2, True)


CELLS = {
    "real": lambda rng, n: rng.normal(size=n).round(3),
    "whole": lambda rng, n: rng.integers(-5, 300, n),
    "text": lambda rng, n: rng.choice(["red", "green;", "b,l"], n),
    "bool": lambda rng, n: rng.random(n) < 0.5,
}
GOALS = (["no", "yes"], [-1, 1], [3, 5, 9], ["01", "02"], ["true", "false"], None)


@pytest.mark.parametrize("seed", range(12))
def test_any_table_there_and_back(run, trained, tmp_path, seed):
    """Predictions depend neither on the order of the columns nor on the dialect, and labels are those of the data."""
    rng = np.random.default_rng(seed)
    goal = GOALS[seed % len(GOALS)]
    columns = {name: CELLS[name](rng, 30) for name in rng.permutation(list(CELLS))[: 1 + seed % 4]}
    frame = pd.DataFrame(columns).assign(goal=rng.normal(size=30).round(3) if goal is None else rng.choice(goal, 30))
    frame.to_csv(tmp_path / "a.csv", index=seed % 2 == 0)
    model = trained(tmp_path / "a.csv", *["--standardize"] * (seed % 3 > 0), epochs=2)
    said = run("predict", model, tmp_path / "a.csv")[1].splitlines()
    assert len(said) == 30
    if goal is not None:
        assert set(said) <= {str(label) for label in goal}
    sep, decimal = ((";", ","), ("\t", "."), ("|", ","))[seed % 3]
    order = rng.permutation(list(columns))
    frame[order].to_csv(tmp_path / "b.csv", sep=sep, decimal=decimal, index=seed % 2 == 1)
    assert run("predict", model, tmp_path / "b.csv")[1].splitlines() == said
    assert run("evaluate", model, tmp_path / "a.csv")[0] == 0
