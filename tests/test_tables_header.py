"""Headers of text tables, found or given, and the columns that a user names."""

import numpy as np
import pytest
from helpers_tables import count_rows, joined, labels_of, write

from fastopt import datasets
from fastopt.datasets._open import open_table

ROWS = count_rows("")


# ---------------------------------------------------------------- header


@pytest.mark.parametrize(
    ("first", "below", "header"),
    [
        ("a,b,k", "1,2,x", True),
        ("0,1,2", "5,6,7", True),  # pandas' names of columns without
        (",0,1", "0,5,6", True),
        ("0,1", "5,6", True),
        ("0,1", "0,1", False),  # the row comes again
        ("1,2,3", "5,6,7", False),
        ("1.5,a", "2.5,b", False),
        ("150,4,setosa,versicolor,virginica", "5.1,3.5,1.4,0.2,0", True),  # scikit-learn's iris.csv
        ("region,2019,2020,growth", "x,5,6,0.5", True),
        ("p,x,s", "p,x,s", False),  # nothing but text, which comes again
        ("name,city", "Ann,Rome", True),
        ("NA,1", "5,2", False),
        ("id,NA", "5,2", True),
        (",0,1,2,kind", "0,5,6,7,x", True),
        ("0,1,2,kind", "5,6,7,x", True),
        ("0,1,2,kind", "5,6,7,kind", False),
        ("2000,c1,c2", "abc,def,ghi", True),  # a number above nothing but text
        ("2000|2001|2002", "0|1|abc", True),
        ("blue|blue|4,8", "red|blue|0,9", False),
    ],
)
def test_header_is_found(tmp_path, first, below, header):
    table = open_table(write(tmp_path, "\n".join([first, below, below, below]) + "\n"))
    assert table.names == (first.replace("|", ",").split(",") if header else None)
    assert table.width == len(first.split("|")) if "|" in first else len(first.split(","))
    assert len(table.frame) == 4 - header


@pytest.mark.parametrize(
    "text",
    [
        "150,4,setosa\n1,2,0\n3,4,1\n",
        "country,2019,2020,label\nA,5,6,x\nB,7,8,y\nC,9,10,x\n",
        "7,9,new\n" + "1,2,x\n3,4,y\n" * 5,
        "x,k\n1,k\n2,l\n3,k\n",
        "c0;2001\nabc;37.5\ndef;202\nghi;101\njkl;1\n",
    ],
)
def test_header_that_only_the_user_can_tell(tmp_path, text):
    path = write(tmp_path, text)
    with pytest.raises(ValueError, match="may be a header, and it may be data: say header=True or False .--"):
        datasets.read_table(path)
    rows = text.count("\n")
    for header in (True, False):
        try:
            data = datasets.read_table(path, header=header)
        except ValueError as error:
            assert "must be a number, as most cells of this column are; got " in str(error)
            assert not header
        else:
            assert len(joined(data)[0]) == rows - header


@pytest.mark.parametrize("others", ["red,2,y\nblue,3,y\n", "#00ff00,2,y\n#0000ff,3,y\n"])
def test_cells_that_begin_with_a_hash(tmp_path, others):
    data = datasets.read_table(write(tmp_path, "#ff0000,1,x\n" + others))
    assert sorted(joined(data)[0][:, -1]) == [1, 2, 3]
    assert "0=#ff0000" in data.preparation.feature_names


def test_header_of_numbers_is_noted(tmp_path):
    data = datasets.read_table(write(tmp_path, "0,1,2\n5,6,7\n6,7,7\n7,7,8\n7,8,8\n"))
    assert data.notes == ("the first row is taken for names: 0, 1, 2",)
    data = datasets.read_table(write(tmp_path, "name,town\nAnn,Rome\nBob,Oslo\n"))  # nothing but text
    assert data.notes == ("the first row is taken for names: name, town",)
    assert datasets.read_table(write(tmp_path, "p;k\n1.234.567,89;x\n12,5;y\n")).notes == ()


# ---------------------------------------------------------------- columns


@pytest.mark.parametrize("target", ["kind", 0, -3, "0", "-3"])
def test_target(tmp_path, target):
    text = "kind,a,b\n" + "".join(f"{i % 2},{i},{i}.5\n" for i in range(10))
    data = datasets.read_table(write(tmp_path, text), target)
    assert data.classes == 2
    np.testing.assert_array_equal(data.x_train[:, 1] - data.x_train[:, 0], np.full(8, 0.5, np.float32))


def test_a_name_goes_before_an_index(tmp_path):
    path = write(tmp_path, "2,b,1,0\n" + "".join(f"{i % 2},{i / 4},{i / 8},{i / 16}\n" for i in range(8)))
    for target in ("2", 2):
        data = datasets.read_table(path, target, header=True)
        assert data.classes == 2
        assert data.preparation.feature_names == ["b", "1", "0"]
    assert datasets.read_table(path, -1, header=True).preparation.feature_names == ["2", "b", "1"]
    assert datasets.read_table(path, "2", header=True, drop="1").preparation.feature_names == ["b", "0"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "colour"}, "there is no column 'colour'; its columns are a, b, kind"),
        ({"target": 3}, "target must be an index from -3 to 2; got 3"),
        ({"target": "-4"}, "target must be an index from -3 to 2; got -4"),
        ({"drop": ["colour"]}, "there is no column 'colour'; its columns are a, b, kind"),
        ({"drop": 5}, "drop must be an index from -3 to 2; got 5"),
        ({"drop": "kind"}, "column 'kind' is the target and cannot be left out"),
        ({"drop": ["a", "b"]}, "no column is left for features beside the target, column 'kind'"),
        ({"categorical": "colour"}, "there is no column 'colour'"),
        ({"categorical": "kind"}, "column 'kind' is the target: give a loss of classes instead"),
    ],
)
def test_wrong_columns(tmp_path, options, message):
    path = write(tmp_path, "a,b,kind\n" + ROWS)
    with pytest.raises(ValueError, match=message) as error:
        datasets.read_table(path, **options)
    assert str(error.value).startswith(f"{path}: ")


def test_columns_without_a_header_have_indices(tmp_path):
    path = write(tmp_path, ROWS)
    with pytest.raises(ValueError, match="there is no column 'kind'; it has no header: give the column's index"):
        datasets.read_table(path, "kind")
    data = datasets.read_table(path, target="0", drop=["1"], targets="numbers")
    assert data.preparation.feature_names == ["2"]


@pytest.mark.parametrize(
    ("text", "note"),
    [
        (",a,k\n0,1.5,x\n1,2.5,y\n2,3.5,y\n", "the first column, which has no name, counts the rows and is left out"),
        (",a,k\n1,1.5,x\n2,2.5,y\n3,3.5,y\n", "the first column, which has no name, counts the rows and is left out"),
        ("Unnamed: 0,a,k\n0,1.5,x\n1,2.5,y\n2,3.5,y\n", "column 'Unnamed: 0' counts the rows and is left out"),
        ('"a" "k"\n"1" 1.5 "x"\n"2" 2.5 "y"\n"3" 3.5 "y"\n', "the first column, which has no name, counts the rows "),
        ('"a" "k"\n"Ann" 1.5 "x"\n"Bob" 2.5 "y"\n"Cy" 3.5 "y"\n', "the first column, which has no name, counts the"),
        ("a,k,\n1.5,x,\n2.5,y,\n3.5,y,\n", "column 2 (counted from 0), which is empty, is left out"),
        ("a;k\n1,5;x\n2,5;y\n3,5;y\n;\n;\n", "the last 2 rows, which are empty, are left out"),
    ],
)
def test_what_is_no_data_is_left_out_with_a_note(tmp_path, caplog, text, note):
    data = datasets.read_table(write(tmp_path, text))
    np.testing.assert_array_equal(joined(data)[0], [[1.5], [2.5], [3.5]])
    assert labels_of(data) == ["x", "y", "y"]
    assert len(data.notes) == 1
    assert data.notes[0].startswith(note)
    assert note in caplog.text


def test_a_first_column_that_does_not_count_is_data(tmp_path):
    data = datasets.read_table(write(tmp_path, ",a,k\n7,1.5,x\n1,2.5,y\n2,3.5,y\n"))
    assert data.preparation.feature_names == ["0", "a"]
    assert data.notes == ("the first column, which has no name, is taken as data; --drop '0' leaves it out",)
    named = datasets.read_table(write(tmp_path, "i,a,k\n0,1.5,x\n1,2.5,y\n2,3.5,y\n"))
    assert (named.preparation.feature_names, named.notes) == (["i", "a"], ())
