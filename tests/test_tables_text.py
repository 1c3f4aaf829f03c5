"""Text tables: delimiter, decimal mark, header and encoding, found or given, and errors."""

import bz2
import gzip
import lzma
import zipfile
import zlib

import numpy as np
import pandas as pd
import pytest
from helpers_tables import count_rows, joined, labels_of, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastopt import datasets

files = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
ROWS = count_rows("")


# ---------------------------------------------------------------- what is read


@pytest.mark.parametrize("header", ["", "a,b,kind\n", '"a","b","kind"\n', "\n\na, b, kind\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_plain(tmp_path, header, encoding, newline):
    path = write(tmp_path, (header + ROWS).replace("\n", newline), encoding=encoding)
    data = datasets.read_table(path)
    assert (data.name, data.classes, data.labels.tolist()) == ("table", 3, [0, 1, 2])
    assert (data.x_train.shape, data.x_test.shape) == ((16, 2), (4, 2))
    assert data.x_train.dtype == data.x_test.dtype == np.float32
    assert data.y_train.dtype == data.y_test.dtype == np.int64
    x, y = joined(data)
    np.testing.assert_array_equal(x[:, 0], np.arange(20))  # every row once
    np.testing.assert_array_equal(x[:, 1], np.arange(20) / 4)  # rows stay whole
    np.testing.assert_array_equal(y, np.arange(20) % 3)
    names = ["a", "b"] if header else ["0", "1"]
    assert data.preparation.feature_names == names


def test_rows_held_out_depend_on_the_seed_alone(tmp_path):
    path = write(tmp_path, ROWS)
    first, again, other = (datasets.read_table(path, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.x_test, again.x_test)
    assert not np.array_equal(first.x_test, other.x_test)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("a;b;kind\n1,5;-2,25;x\n2,5;1,0e3;y\n3;,5;y\n", "t.csv"),
        ("1,5;-2,25;x\n2,5;1,0e3;y\n3;,5;y\n", "t.csv"),
        ("a\tb\tkind\n1.5\t-2.25\tx\n2.5\t1000\ty\n3\t.5\ty\n", "t.tsv"),
        ("a\tb\tkind\n1,5\t-2,25\tx\n2,5\t1000,0\ty\n3\t0,5\ty\n", "t.txt"),
        ("a|b|kind\n1.5|-2.25|x\n2.5|1000|y\n3|0.5|y\n", "t.csv"),
        ("a, b, kind\n1.5, -2.25, x\n2.5, 1000, y\n3, 0.5, y\n", "t.csv"),
        ("  a   b kind\n 1.5  -2.25   x\n2.5 1000  y\n3     0.5 y  \n", "t.txt"),
        ("a b kind\n1.5\t-2.25 x\n2.5 1000 y\n3 0.5 y\n", "t.dat"),
        ('"a","b","kind"\n"1,5","-2,25","x"\n"2,5","1000","y"\n"3","0,5","y"\n', "t.csv"),
        ("sep=;\na;b;kind\n1.5;-2.25;x\n2.5;1000;y\n3;0.5;y\n", "t.csv"),
        ("# made by a program\n# a,b,kind\n1.5,-2.25,x\n2.5,1000,y\n3,0.5,y\n", "t.csv"),
        ("#a,b,kind\n1.5,-2.25,x\n2.5,1000,y\n3,0.5,y\n", "t.csv"),
        ("a;b;kind\n1,5;-2,25;x\n2,5;1.000,0;y\n3;0,5;y\n", "t.csv"),
        ("a;b;kind\n1,5;-2,25;x\n2,5;1 000,0;y\n3;0,5;y\n", "t.csv"),
        ("a;b;kind\n1.5;-2.25;x\n2.5;1'000.0;y\n3;0.5;y\n", "t.csv"),
        ("a\tb\tkind\n1.5\t-2.25\tx\n2.5\t1\u00a0000\ty\n3\t0.5\ty\n", "t.tsv"),
        ('a,b,kind\n1.5,-2.25,x\n2.5,"1,000.0",y\n3,0.5,y\n', "t.csv"),
    ],
)
def test_dialects(tmp_path, text, name):
    data = datasets.read_table(write(tmp_path, text, name))
    np.testing.assert_array_equal(joined(data)[0], np.array([[1.5, -2.25], [2.5, 1000], [3, 0.5]], np.float32))
    assert labels_of(data) == ["x", "y", "y"]


@pytest.mark.parametrize(
    ("text", "options", "first"),
    [
        ("1,5;2;x\n3,25;4;y\n", {"sep": ";", "decimal": ",", "header": False}, [1.5, 2]),
        ("1,5,x\n3,25,y\n", {"sep": ",", "decimal": "."}, [1, 5]),
        ("1:5:x\n3:25:y\n", {"sep": ":"}, [1, 5]),
        ("1\t5\tx\n3\t25\ty\n", {"sep": "tab"}, [1, 5]),
        ("1  5 x\n3 25  y\n", {"sep": "space"}, [1, 5]),
        ("1 5 x\n3 25 y\n", {"sep": r"\s+"}, [1, 5]),
        ("1,5,x\n3,25,y\n", {"header": True}, None),
        ("a;1.234;x\nb;5.678;y\n", {"decimal": ",", "header": False, "categorical": 0}, [0, 1, 5678]),
    ],
)
def test_what_is_given_is_taken(tmp_path, text, options, first):
    path = write(tmp_path, text)
    if first is None:
        with pytest.raises(ValueError, match="at least two rows"):  # one of the two is the header
            datasets.read_table(path, **options)
    else:
        x, _ = joined(datasets.read_table(path, **options))
        np.testing.assert_array_equal(x[0], np.array(first, np.float32))


def test_kinds_of_arguments(tmp_path):
    path = write(tmp_path, "a,b,k\n1,2,0\n3,4,1\n5,6,1\n")
    with pytest.raises(TypeError, match="header must be True or False; got 0"):  # pandas' first row is 0
        datasets.read_table(path, header=0)
    with pytest.raises(TypeError, match="target must be a column's name or index; got 1.5"):
        datasets.read_table(path, 1.5)
    with pytest.raises(TypeError, match="sep must be a character, or tab or space; got 1"):
        datasets.read_table(path, sep=1)
    for drop in (np.int64(1), "b", ["b"], ("b",), {"b"}, np.array([1])):
        assert datasets.read_table(str(path).encode(), np.int8(-1), drop=drop).preparation.feature_names == ["a"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sep": "::"}, "sep must be one character, such as ',' or ';', or tab or space; got '::'"),
        ({"sep": "a"}, "sep must be one character"),
        ({"sep": '"'}, "sep must be one character"),
        ({"decimal": "point"}, "decimal must be '.' or ','; got 'point'"),
        ({"encoding": "utf-99"}, "unknown encoding 'utf-99'"),
        ({"missing": "zero"}, "missing must be one of refuse, skip, mean; got 'zero'"),
        ({"targets": "labels"}, "targets must be one of auto, classes, numbers; got 'labels'"),
        ({"dtype": "float16"}, "dtype must be float32 or float64; got 'float16'"),
    ],
)
def test_wrong_options(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        datasets.read_table(write(tmp_path, ROWS), **options)


@pytest.mark.parametrize("pack", ["gz", "bz2", "xz", "zip"])
def test_packed(tmp_path, pack):
    path = tmp_path / f"table.csv.{pack}"
    if pack == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("whatever.csv", ROWS)
    else:
        path.write_bytes({"gz": gzip, "bz2": bz2, "xz": lzma}[pack].compress(ROWS.encode()))
    data = datasets.read_table(path)
    assert (data.name, data.classes, len(joined(data)[0])) == ("table", 3, 20)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match=f"{pack}: must be a whole packed file; got one that is damaged or cut"):
        datasets.read_table(path)


def test_zip_archives_hold_one_table(tmp_path):
    with zipfile.ZipFile(tmp_path / "t.zip", "w") as archive:
        archive.writestr("a.csv", ROWS)
        archive.writestr("b.csv", ROWS)
    with pytest.raises(ValueError, match="a zip archive must hold one table; got 2 files"):
        datasets.read_table(tmp_path / "t.zip")


def test_other_encodings(tmp_path):
    path = write(tmp_path, "größe,k\n1,x\n2,y\n3,y\n", encoding="cp1252")
    with pytest.raises(ValueError, match=r"must be text in UTF-8; line 1 is not UTF-8: give its enc.*cp1252"):
        datasets.read_table(path)
    assert datasets.read_table(path, encoding="cp1252").preparation.feature_names == ["größe"]
    with pytest.raises(ValueError, match="must be text in ascii"):
        datasets.read_table(path, encoding="ascii")


def test_not_utf8_far_behind(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(b"a,k\n" + b"1,%b\n" % (b"x" * 100) * 4_000 + b"1,\xe9\n")
    with pytest.raises(ValueError, match="line 4002 is not UTF-8"):
        datasets.read_table(path)


# ---------------------------------------------------------------- what is wrong


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a table must have rows and columns; got an empty file"),
        ("\n\n", "a table must have rows and columns; got an empty file"),
        ("a,b\n", "a table must have rows of data; got a header alone"),
        ("a,b\n,\n", "a table must have rows of data; got empty cells alone"),
        ("1\n2\n", "must have at least two columns, features and a target; got 1; say the delimiter"),
        ("1,0\n", "must have at least two rows .train and test.; got 1"),
        ("a,b\n1,0\n\n2,x1\n", "line 4, column 'b' must be a number, as most cells of this column are; got 'x1'"),
        ("1,0\n,1\n", r"line 2, column 0 \(counted from 0\): the cell is missing; leave such rows out"),
        ("1,0\n2,1\n3\n", "line 3 must have 2 columns, as the first row has; got 1"),
        ("1,0\n2,1,\n", "line 2 must have 2 columns, as the first row has; got 3"),
        ('a,b\n1,0\n"x\ny",1,2\n', "line 3 must have 2 columns, as the first row has; got 3"),
        ("a,b\n7,0,1\n8,1,1\n", "line 2 must have 2 columns, as the header has; got 3"),
        ("a,b,c\n1,0\n", "line 2 must have 3 columns, as the header has; got 2"),
        ("1,0\nnan,1\n", r"line 2, column 0 \(counted from 0\): the cell is missing"),
        ("a,b,c\n1,,0\n,NA,1\n2,3,1\n", r"line 2, column 'b': the cell is missing \(3 cells are missing, in .* a, b\)"),
        ("1,0\n2,1\n1e400,1\n", r"line 3, column 0 \(counted from 0\) must be a finite float32 number; got inf"),
        ("a,b\n1,0\n-inf,1\n", "line 3, column 'a' must be a finite float32 number; got -inf"),
        ("1,0\n1e39,1\n", r"column 0 .counted from 0. must be a finite float32 number; got 1e\+39 .dtype float64"),
        ("1,0.5\n2,inf\n", r"line 2, column 1 .counted from 0. must be a finite float32 number; got inf"),
        ("a,k\n1,7\n2,7\n", "column 'k' must have at least two classes; got only 7"),
        ('1,0\n"2\n', "line 2: a quoted cell begins in this row and does not end"),
        ('a,k\n1,x\n"2,y\n3,x\n4,y\n', "line 3: a quoted cell begins in this row and does not end"),
        ("a,a,k\n1,2,0\n2,3,1\n", r"names of columns must differ; got the name 'a' for columns 0, 1 \(counted"),
        ("t,k\n2020-01-31,0\n2020-02-01,1\n", "line 2, column 't': dates and times are not read, such as '2020-01-31'"),
        ("t,k\n31.1.2020,0\n1.2.2020,1\n", "line 2, column 't': dates and times are not read, such as '31.1.2020'"),
        ("t,k\n12:30,0\n13:30:10,1\n", "line 2, column 't': dates and times are not read, such as '12:30'"),
        ("a,b,k\n1,2,0\n3,,1\n,,1\n", "in the columns a, b"),
        ("a\tb\tk\n1\t\tx\n2\t3\ty\n", "line 2, column 'b': the cell is missing"),
        ("a,b,k\n1, ,x\n2,3,y\n", "line 2, column 'b': the cell is missing"),
        ("a,b,k\n1,?,x\n2,3,y\n", "line 2, column 'b': the cell is missing"),
        ("t,k\n5 Jan 2020,0\n17 May 2021,1\n", "line 2, column 't': dates and times are not read"),
        ("p,k\n45%,0\n12.5 %,1\n", "line 2, column 'p' must be a number without a sign of its unit; got '45%'"),
        ("p,k\n$1.5,0\n$2,1\n", "line 2, column 'p' must be a number without a sign of its unit; got '.1.5'"),
        ("a,b,k\n,2,0\n,3,1\n", "column 'a' has no value at all: leave it out .--drop a."),
        ("a,b,k\n,2,0\n,3,1\n4,4,1\n", "line 2, column 'a': the cell is missing .2 cells are missing, in column 'a'."),
    ],
)
def test_errors(tmp_path, text, message):
    path = write(tmp_path, text)
    with pytest.raises(ValueError, match=message) as error:
        datasets.read_table(path)
    assert str(error.value).startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("text", "options", "expected"),
    [
        ("a,k\n0.101,x\n0.250,y\n", {}, 0.101),  # no European thousands
        ("a;k\n1.101;x\n1.250;y\n", {}, 1.101),
        ("a;k\n1.101;x\n1,5;y\n", {}, 1101),
        ("a;k\n1,101;x\n1,250;y\n", {}, 1.101),
        ('a,k\n"1,101",x\n"1,250",y\n', {}, 1101),
        ("a\tk\n0,101\tx\n1,250\ty\n", {}, 0.101),
        ("a\tk\n1,101\tx\n1,250\ty\n", {"decimal": ","}, 1.101),
        ("a\tk\n1,101\tx\n1,250\ty\n", {"decimal": "."}, 1101),
        ("a\tk\n1,101\tx\n1,250\ty\n", {}, None),
    ],
)
def test_decimal_marks_and_thousands(tmp_path, text, options, expected):
    path = write(tmp_path, text)
    if expected is None:
        with pytest.raises(ValueError, match="1,101 may have a decimal comma, or a comma between thousands: say dec"):
            datasets.read_table(path)
    else:
        x = joined(datasets.read_table(path, **options))[0]
        assert np.float32(expected) in x


def test_a_decimal_mark_that_comes_late(tmp_path):
    path = write(tmp_path, "a;k\n" + "".join(f"{i};{i % 2:0100}\n" for i in range(4_000)) + "3,5;0\n")
    with pytest.raises(ValueError, match="line 4002, column 'a' must be a number with the decimal mark"):
        datasets.read_table(path)
    data = datasets.read_table(path, decimal=",")
    assert 3.5 in joined(data)[0]


def test_lines_are_those_of_the_file(tmp_path):
    """Blank lines and cells of several lines count."""
    text = '# comment\n\nname,b,k\n"x\ny",1,0\n\n"z",2,1\n"z",,1\n'
    with pytest.raises(ValueError, match="line 8, column 'b': the cell is missing"):
        datasets.read_table(write(tmp_path, text))


def test_not_a_table(tmp_path):
    path = tmp_path / "table.csv"
    path.write_bytes(zlib.compress(ROWS.encode()))
    with pytest.raises(ValueError, match=r"table\.csv: "):
        datasets.read_table(path)


@pytest.mark.parametrize("name", ["a.csv", "a.npz", "a.parquet", "folder.csv"])
def test_no_such_file(tmp_path, name):
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        datasets.read_table(tmp_path / name)


@pytest.mark.parametrize("name", ["a.xlsx", "a", "a.gz", "a.json.gz"])
def test_files_of_another_kind(tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(ValueError, match=r"must be the name of a file that ends in \.npz, \.csv, \.tsv, \.txt"):
        datasets.read_table(tmp_path / name)


# ---------------------------------------------------------------- any table


@files
@given(content=st.binary(max_size=200) | st.text("0123456789.,;-+e\n\"' ax\t|#", max_size=200).map(str.encode))
def test_noise_is_a_value_error_or_numbers(tmp_path, content):
    path = tmp_path / "table.csv"
    path.write_bytes(content)
    try:
        data = datasets.read_table(path)
    except ValueError as error:
        assert str(error).startswith(f"{path}: ")
    else:
        assert np.isfinite(data.x_train).all()


letters = st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")) | st.just("\n")
texts = st.text(letters, max_size=6).map(str.strip)
numbers = st.floats(allow_nan=False, allow_infinity=False)


@st.composite
def frames(draw):
    """A frame of numbers, whole numbers and text, with a target of numbers."""
    rows = draw(st.integers(2, 12))

    def column(cells):
        return draw(st.lists(cells, min_size=rows, max_size=rows))

    words = draw(st.lists(texts.map(lambda text: f"w{text}"), min_size=1, max_size=3, unique=True))
    return pd.DataFrame(
        {
            "real": column(numbers),
            "whole": column(st.integers(-(2**40), 2**40)),
            "text": column(st.sampled_from(words)),
            "goal": column(numbers.map(lambda number: number if number != int(number) else 0.5)),
        }
    )


@files
@given(
    frame=frames(),
    dialect=st.sampled_from([(",", "."), (";", ","), (";", "."), ("\t", "."), ("\t", ","), ("|", "."), ("|", ",")]),
    quoting=st.sampled_from([0, 1]),
    newline=st.sampled_from(["\n", "\r\n"]),
    index=st.booleans(),
)
def test_round_trip(tmp_path, frame, dialect, quoting, newline, index):
    """Tables that pandas writes in any dialect are read as they were."""
    sep, decimal = dialect
    path = tmp_path / "t.csv"
    frame.to_csv(path, sep=sep, decimal=decimal, quoting=quoting, lineterminator=newline, index=index)
    data = datasets.read_table(path, targets="numbers", dtype="float64")
    order = np.random.default_rng(0).permutation(len(frame))
    held_out = max(1, len(frame) // 5)
    order = np.concatenate([order[held_out:], order[:held_out]])
    x, y = np.concatenate([data.x_train, data.x_test]), np.concatenate([data.y_train, data.y_test])
    words = sorted(frame["text"].unique())
    assert data.preparation.feature_names == ["real", "whole", *(f"text={word}" for word in words)]
    np.testing.assert_array_equal(x[:, 0], frame["real"].to_numpy()[order])
    np.testing.assert_array_equal(x[:, 1], frame["whole"].to_numpy()[order])
    np.testing.assert_array_equal(x[:, 2:], frame["text"].to_numpy()[order, None] == np.array(words, object))
    np.testing.assert_array_equal(y[:, 0], frame["goal"].to_numpy()[order])
