"""Preparations learnt from a table, applied to new ones: categories, missing cells, columns by name or position."""

import json

import numpy as np
import pandas as pd
import pytest
from helpers_tables import joined, labels_of, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastopt import _random_rows, datasets
from fastopt.datasets import Preparation
from fastopt.datasets._split import hold_out
from fastopt.datasets._text_files import TextOptions
from fastopt.datasets.tables import TableOptions, load_table

files = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
TRAIN = "id,colour,size,ok,goal\n" + "".join(
    f"{i},{['red', 'blue', 'green'][i % 3]},{i / 2},{['yes', 'no'][i % 2]},{i % 2}\n" for i in range(12)
)


@pytest.fixture
def preparation(tmp_path):
    return datasets.read_table(write(tmp_path, TRAIN), drop="id").preparation


# ---------------------------------------------------------------- one-hot encoding


def test_one_hot(tmp_path):
    data = datasets.read_table(write(tmp_path, TRAIN))
    names = data.preparation.feature_names
    assert names == ["id", "colour=blue", "colour=green", "colour=red", "size", "ok=no", "ok=yes"]
    x, _ = joined(data)
    assert x.shape == (12, 7)
    assert (data.preparation.features, len(data.preparation.columns)) == (7, 4)
    for i, row in enumerate(x):
        colour = ["red", "blue", "green"][i % 3]
        assert row.tolist() == [
            i, colour == "blue", colour == "green", colour == "red", i / 2, i % 2 == 1, i % 2 == 0,
        ]  # fmt: skip


def test_too_many_categories(tmp_path):
    path = write(tmp_path, "name,k\n" + "".join(f"n{i},{i % 2}\n" for i in range(40)))
    with pytest.raises(ValueError, match="column 'name' is text with 40 different values in 40 rows, too many for cat"):
        datasets.read_table(path)
    assert datasets.read_table(path, categorical="name").x_train.shape == (32, 40)
    path = write(tmp_path, "my name,n,street,k\n" + "".join(f"n{i},{i},s{i},{i % 2}\n" for i in range(40)))
    with pytest.raises(ValueError, match="'my name' is text .* and column 'street' is .*--drop 'my name' --drop str"):
        datasets.read_table(path)
    large = pd.DataFrame({"id": [f"n{i}" for i in range(100_000)], "x": 1.0, "k": np.arange(100_000) % 2})
    for options in ({}, {"categorical": "id"}):
        with pytest.raises(ValueError, match="'id' is text with 100,000 different values in 100,000 rows, .*--drop"):
            datasets.read_table(large, **options)
    assert datasets.read_table(large, drop="id").preparation.feature_names == ["x"]


def test_numbers_of_categories(tmp_path):
    path = write(tmp_path, "zip,a,k\n01,1,x\n10,2,y\n01,3,y\n1,4,x\n")
    assert datasets.read_table(path).preparation.feature_names == ["zip", "a"]
    for column in ("zip", 0, "0"):
        data = datasets.read_table(path, categorical=[column])
        assert data.preparation.feature_names == ["zip=01", "zip=1", "zip=10", "a"]


def test_few_values_that_are_no_numbers_make_categories(tmp_path):
    cells = ["0", "1", "2", "3+"] * 5
    path = write(tmp_path, "n,k\n" + "".join(f"{cell},{i % 2}\n" for i, cell in enumerate(cells)))
    assert datasets.read_table(path).preparation.feature_names == ["n=0", "n=1", "n=2", "n=3+"]


# ---------------------------------------------------------------- targets


@pytest.mark.parametrize(
    ("cells", "labels"),
    [
        ("x y z x", ["x", "y", "z"]),
        ("1 2 3 1", [1, 2, 3]),
        ("-1 1 1 -1", [-1, 1]),
        ("+1 -1 -1 +1", [-1, 1]),
        ("10 30 10 30", [10, 30]),
        ("01 02 01 02", ["01", "02"]),
        ("true false true true", ["false", "true"]),
        ("True False True True", ["False", "True"]),
        ("1.5 2 2 1", None),
        ("1.0 2.0 1.0 2.0", None),
        ("9007199254740993 1 9007199254740993 1", [1, 9007199254740993]),
    ],
)
def test_labels_are_those_of_the_data(tmp_path, cells, labels):
    cells = cells.split()
    data = datasets.read_table(write(tmp_path, "a,k\n" + "".join(f"{i},{cell}\n" for i, cell in enumerate(cells))))
    if labels is None:
        assert (data.classes, data.labels) == (0, None)
        assert joined(data)[1].ravel().tolist() == [float(cell) for cell in cells]
    else:
        assert (data.classes, data.labels.tolist()) == (len(labels), labels)
        assert [str(label) for label in labels_of(data)] == [cell.lstrip("+") for cell in cells]


def test_the_wish_decides(tmp_path):
    path = write(tmp_path, "a,price\n" + "".join(f"{i},{1000 * i + 5}\n" for i in range(60)))
    with pytest.raises(ValueError, match="column 'price' has 60 different whole numbers in 60 rows: say which"):
        datasets.read_table(path)
    numbers = datasets.read_table(path, targets="numbers")
    assert (numbers.classes, numbers.y_train.shape, numbers.y_train.dtype) == (0, (48, 1), np.float32)
    assert numbers.targets == "column 'price', numbers"
    classes = datasets.read_table(path, targets="classes")
    assert classes.classes == 60
    assert classes.targets.startswith("column 'price', 60 classes: 5, 1005, 2005")
    few = write(tmp_path, "a,k\n" + "".join(f"{i},{i % 4 * 10}\n" for i in range(60)))
    assert datasets.read_table(few).classes == 4
    assert datasets.read_table(few, targets="numbers").classes == 0
    text = write(tmp_path, "a,k\n1,x\n2,y\n")
    with pytest.raises(ValueError, match="line 2, column 'k' must be a number for a loss of numbers, .*; got 'x'"):
        datasets.read_table(text, targets="numbers")
    real = write(tmp_path, "a,k\n1,1\n2,0.5\n")
    with pytest.raises(ValueError, match="line 3, column 'k' must be a label for a loss of classes, .*; got 0.5"):
        datasets.read_table(real, targets="classes")


@pytest.mark.parametrize("rows", [400, 8000])
def test_many_whole_numbers(rows):
    """A hundred labels of some eighty rows each are classes; of four rows each they are not known to be."""
    frame = pd.DataFrame({"a": np.arange(rows), "k": np.arange(rows) % 100})
    if rows == 400:
        with pytest.raises(ValueError, match="column 'k' has 100 different whole numbers in 400 rows"):
            datasets.read_table(frame)
    else:
        assert datasets.read_table(frame).classes == 100


def test_whole_numbers_beside_missing_ones_are_labels():
    """pandas has made floats of them."""
    frame = pd.DataFrame({"a": range(6), "k": [1, 2, None, 1, 2, 1]})
    assert datasets.read_table(frame, missing="skip").labels.tolist() == [1, 2]
    assert datasets.read_table(frame.dropna()).classes == 0


@given(
    codes=st.lists(st.integers(0, 5), min_size=2, max_size=30),
    seed=st.integers(0, 3),
)
def test_every_class_that_can_be_is_trained_on(codes, seed):
    codes = np.unique(codes, return_inverse=True)[1]
    train, test = hold_out(len(codes), codes, seed)
    plain, plain_test = hold_out(len(codes), None, seed)
    assert sorted([*train, *test]) == list(range(len(codes)))
    assert (len(train), len(test)) == (len(plain), len(plain_test))
    lacking = set(codes) - set(codes[train])
    if set(codes) == set(codes[plain]):
        assert train.tolist() == plain.tolist()
    assert not lacking or np.bincount(codes[train]).max() == 1


# ---------------------------------------------------------------- missing cells

GAPS = "a,c,k\n" + "1,red,x\n,red,y\n3,,x\n5,blue,\n" * 5


def test_missing_cells_are_refused(tmp_path):
    with pytest.raises(ValueError, match="line 3, column 'a': the cell is missing .15 cells are missing, in the "):
        datasets.read_table(write(tmp_path, GAPS))


def test_skip(tmp_path):
    path = write(tmp_path, "b,k\n1,x\n,x\n2,\n3,y\n")
    data = datasets.read_table(path, missing="skip")
    assert joined(data)[0].ravel().tolist() == [1, 3]
    assert data.notes == ("2 of 4 rows, those with missing cells, are left out",)
    with pytest.raises(ValueError, match="no row is without a missing cell; such are in the columns a, b"):
        datasets.read_table(write(tmp_path, "a,b,k\n1,,x\n,1,y\n"), missing="skip")


def test_mean(tmp_path):
    data = datasets.read_table(write(tmp_path, GAPS), missing="mean")
    assert data.notes == (
        "5 of 20 rows, those without a target in column 'k', are left out",
        "column 'c' is the same in every row",
    )
    a, c = data.preparation.columns
    there = data.x_train[:, 0][np.isin(data.x_train[:, 0], [1, 3])]
    assert c.fill == "red"
    assert data.preparation.feature_names == ["a", "c=red"]  # rows without a target do not count
    x, _ = joined(data)
    assert set(x[:, 0]) <= {1, 3, np.float32(a.fill)}
    assert (x[:, 1] == 1).all()
    assert 1 < a.fill < 3
    assert len(there) < len(data.x_train)


@pytest.mark.parametrize("share", [0.0, 0.25])
def test_means_are_of_training_rows_only(share):
    """Neither the test rows nor those that fit holds out count."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=50)
    gaps = np.zeros(50, bool)
    gaps[::7] = True
    frame = pd.DataFrame({"i": np.arange(50.0), "a": np.where(gaps, np.nan, values), "y": rng.normal(size=50)})
    data = load_table(frame, TableOptions(missing="mean", seed=3, validation_split=share, dtype="float64"))
    rows = data.x_train[:, 0].astype(int)
    if share:
        rows = rows[_random_rows.split(len(rows), share, 3, shuffle=True)[0]]
    mean = values[rows[~gaps[rows]]].mean()
    assert data.preparation.columns[1].fill == pytest.approx(mean, rel=1e-12)
    x, _ = joined(data)
    np.testing.assert_allclose(x[gaps, 1], mean, rtol=1e-12)
    np.testing.assert_array_equal(x[~gaps, 1], values[~gaps])


@pytest.mark.parametrize(
    ("text", "note"),
    [
        ("a,b,k\n1,7,x\n2,7,y\n3,7,y\n", "column 'b' is the same in every row"),
        ("a,b,c,k\n1,7,s,x\n2,7,s,y\n3,7,s,y\n", "the columns b, c are the same in every row"),
    ],
)
def test_columns_that_tell_nothing(tmp_path, text, note):
    data = datasets.read_table(write(tmp_path, text))
    assert data.notes == (note,)
    assert np.isfinite(data.x_train).all()


def test_nothing_to_fill_with(tmp_path):
    path = write(tmp_path, "a,b,k\n1,,x\n2,,y\n3,,y\n")
    with pytest.raises(ValueError, match="column 'b' has no value at all: leave it out .--drop b."):
        datasets.read_table(path, missing="mean")
    with pytest.raises(ValueError, match="column 'b' has no value at all"):
        datasets.read_table(path)
    path = write(tmp_path, "a,b,k\n1,,x\n2,,y\n3,7,\n")
    with pytest.raises(ValueError, match="column 'b' has no value in the rows that have a target: leave it out"):
        datasets.read_table(path, missing="mean")


# ---------------------------------------------------------------- new tables


def test_json(preparation):
    saved = json.loads(json.dumps(preparation.to_dict(), allow_nan=False))
    assert Preparation.from_dict(saved) == preparation
    for damaged in (
        {}, None, [], {**saved, "missing": "zero"}, {**saved, "columns": [{}]}, {**saved, "layout": {}},
        {**saved, "columns": [{**saved["columns"][0], "kind": "date"}]},
        {**saved, "columns": [{**saved["columns"][0], "categories": []}]},
        {**saved, "columns": [{**saved["columns"][0], "categories": [1]}]},
        {**saved, "columns": [{**saved["columns"][0], "position": "1"}]},
        {**saved, "columns": [{**saved["columns"][0], "position": 5}]},
        {**saved, "columns": [{**saved["columns"][0], "position": -1}]},
        {**saved, "layout": {**saved["layout"], "left_out": ["id"]}},
        {**saved, "layout": {**saved["layout"], "left_out": [7]}},
        {**saved, "layout": {**saved["layout"], "target": -1}},
        {**saved, "layout": {**saved["layout"], "target_name": 3}},
    ):  # fmt: skip
        with pytest.raises(ValueError, match="the model's preparation of tables cannot be read"):
            Preparation.from_dict(damaged)


def test_the_training_table_again(tmp_path):
    path = write(tmp_path, TRAIN)
    data = datasets.read_table(path)
    x = data.preparation.transform(path)
    np.testing.assert_array_equal(x, joined(data)[0])
    np.testing.assert_array_equal(data.preparation.transform(pd.read_csv(path)), x)


@pytest.mark.parametrize(
    "text",
    [
        "colour,size,ok\nred,1.5,no\n",
        "ok;extra;size;colour\nno;7;1,5;red\n",
        "goal\tsize\tok\tcolour\n?\t1.5\tno\tred\n",
        "9,red,1.5,no,1\n",
        "9,red,1.5,no\n",
        "red,1.5,no,0\n7,red,1.5,no\n",
        "red,1.5,no\n",
    ],
)
def test_columns_are_found(tmp_path, preparation, text):
    """By name in any order, or by position, with or without the target and the column that was left out."""
    if text.startswith("red,1.5,no,0"):  # all but the target: four columns begin with the one that was left out
        text = "7,red,1.5,no\n"
    x = preparation.transform(write(tmp_path, text))
    assert x.tolist() == [[0, 0, 1, 1.5, 1, 0]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("colour,size\nred,1\n", "it lacks the column ok, which the model was trained with; its columns are colour"),
        ("a,b,c\n1,2,3\n", "it lacks the columns colour, size, ok"),
        ("colour,size,ok,size\nred,1,no,2\n", r"got the name 'size' for columns 1, 3 \(counted from 0\)"),
        ("red,1.5\n", "must have 5 or 4 or 3 columns, as the training data .*; got 2"),
        ("colour,size,ok\nred,1,no\npink,1,no\n", "line 3, column 'colour' must be one of the categories of the train"),
        ("colour,size,ok\npink,1,no\n", "of the training data, blue, green, red; got 'pink'"),
        ("colour,size,ok\nred,1,no\nred,big,no\n", "line 3, column 'size' must be a number"),
        ("colour,size,ok\nred,big,no\n", "line 2, column 'size' must be a number, as in training; got 'big'"),
        ("colour,size,ok\nred,,no\n", "line 2, column 'size': the cell is missing"),
        ("colour,size,ok\nred,1e99,no\n", r"line 2, column 'size' must be a finite float32 number; got 1e\+99"),
        ("", "got an empty file"),
        ("colour,size,ok\n", "got a header alone"),
    ],
)  # fmt: skip
def test_new_tables_that_do_not_fit(tmp_path, preparation, text, message):
    path = write(tmp_path, text)
    with pytest.raises(ValueError, match=message) as error:
        preparation.transform(path)
    assert str(error.value).startswith(f"{path}: ")
    assert str(error.value).count(str(path)) == 1


def test_missing_cells_of_new_tables(tmp_path):
    data = datasets.read_table(write(tmp_path, "a,c,k\n1,red,x\n2,red,y\n,blue,y\n6,,x\n3,red,x\n"), missing="mean")
    a, c = data.preparation.columns
    new = write(tmp_path, "a,c\n,blue\n2,\n5,red\n", "new.csv")
    x = data.preparation.transform(new)
    filled = [2, c.fill == "blue", c.fill == "red"]
    np.testing.assert_array_equal(x, np.array([[a.fill, 1, 0], filled, [5, 0, 1]], np.float32))
    assert data.preparation.transform(new, missing="skip").tolist() == [[5, 0, 1]]
    with pytest.raises(ValueError, match="line 2, column 'a': the cell is missing"):
        data.preparation.transform(new, missing="refuse")
    with pytest.raises(ValueError, match="missing must be one of refuse, skip, mean; got 'no'"):
        data.preparation.transform(new, missing="no")
    gone = write(tmp_path, "a,c\n,blue\n", "gone.csv")  # not one number in the whole column
    assert data.preparation.transform(gone)[0, 0] == np.float32(a.fill)


def test_categories_that_look_like_numbers(tmp_path):
    """New cells are read as text where the training data were text."""
    preparation = datasets.read_table(write(tmp_path, "n,k\n" + "01,x\n1,x\n2+,y\n2+,x\n" * 3)).preparation
    assert preparation.feature_names == ["n=01", "n=1", "n=2+"]
    assert preparation.transform(write(tmp_path, "n\n01\n1\n", "new.csv")).tolist() == [[1, 0, 0], [0, 1, 0]]
    assert preparation.transform(pd.DataFrame({"n": [1, 1]})).tolist() == [[0, 1, 0]] * 2


def test_a_header_is_known_by_its_names(tmp_path):
    """The cells of the new table may look like numbers."""
    preparation = datasets.read_table(write(tmp_path, "0,1,2\n" + "a,x,1\nb,y,0\nb,x,0\n" * 3)).preparation
    assert preparation.transform(write(tmp_path, "0,1\na,x\n", "new.csv")).tolist() == [[1, 0, 1, 0]]
    assert preparation.transform(write(tmp_path, "1,0\nx,a\n", "new.csv")).tolist() == [[1, 0, 1, 0]]


def test_names_tell_the_delimiter(tmp_path):
    """A single column of words is not divided at the blanks."""
    preparation = datasets.read_table(write(tmp_path, "my text,k\n" + "a b,0\nc d,1\n" * 3)).preparation
    assert preparation.transform(write(tmp_path, "my text\nc d\na b\n", "new.csv")).tolist() == [[0, 1], [1, 0]]
    np.savez(tmp_path / "a.npz", x=np.eye(2))
    with pytest.raises(ValueError, match="a.npz: must be a table; got a .npz file, which holds arrays"):
        preparation.transform(tmp_path / "a.npz")


def test_options_of_new_text_files(tmp_path, preparation):
    from fastopt.datasets._open import open_table

    path = write(tmp_path, "red:1,5:no\n")
    table = open_table(path, TextOptions(":", ",", False), preparation.expected())
    assert preparation.features_of(table)[0].tolist() == [[0, 0, 1, 1.5, 1, 0]]


@files
@given(data=st.data())
def test_new_rows_are_encoded_as_training_rows(tmp_path, data):
    """Any rows of the training table, in any order of columns and in another dialect, give the same features."""
    rows = data.draw(st.integers(4, 15))
    frame = pd.DataFrame(
        {
            "n": data.draw(st.lists(st.floats(-1e6, 1e6), min_size=rows, max_size=rows)),
            "w": data.draw(st.lists(st.sampled_from(["a", "b;", "c,c", "d e", "5"]), min_size=rows, max_size=rows)),
            "f": data.draw(st.lists(st.booleans(), min_size=rows, max_size=rows)),
            "y": np.arange(rows) + 0.5,
        }
    )
    learnt = datasets.read_table(frame, dtype="float64")
    expected = learnt.preparation.features_of(_table(frame), dtype="float64")[0]
    x = np.concatenate([learnt.x_train, learnt.x_test])
    y = np.concatenate([learnt.y_train, learnt.y_test]).ravel()
    np.testing.assert_array_equal(x[np.argsort(y)], expected)
    chosen = data.draw(st.lists(st.integers(0, rows - 1), min_size=1, max_size=6))
    columns = data.draw(st.permutations(["n", "w", "f"]))
    path = tmp_path / "new.csv"
    frame.loc[chosen, columns].to_csv(path, sep=";", decimal=",", index=data.draw(st.booleans()))
    again = learnt.preparation.features_of(_table(path, learnt.preparation), dtype="float64")[0]
    np.testing.assert_array_equal(again, expected[chosen])


def _table(data, preparation=None):
    from fastopt.datasets._open import open_table

    return open_table(data) if preparation is None else open_table(data, expected=preparation.expected())
