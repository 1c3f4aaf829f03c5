"""Frames of pandas, polars and pyarrow, and Parquet and Feather files."""

import datetime
import sys
from decimal import Decimal

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from helpers_tables import joined, labels_of

from fastopt import datasets


@pytest.fixture
def frame():
    return pd.DataFrame(
        {
            "real": [0.5, 1.5, 2.5, 3.5, 4.5],
            "whole": pd.array([3, 1, 2, 5, 4], dtype="Int64"),
            "flag": [True, False, True, True, False],
            "kind": pd.Categorical(["u", "v", "u", "w", "v"], categories=["w", "v", "u", "never"]),
            "text": ["b", "a", " b", "a", "a"],
            "goal": [1, -1, 1, -1, 1],
        }
    )


FEATURES = ["real", "whole", "flag", "kind=u", "kind=v", "kind=w", "text=a", "text=b"]
X = [
    [0.5, 3, 1, 1, 0, 0, 0, 1],
    [1.5, 1, 0, 0, 1, 0, 1, 0],
    [2.5, 2, 1, 1, 0, 0, 0, 1],
    [3.5, 5, 1, 0, 0, 1, 1, 0],
    [4.5, 4, 0, 0, 1, 0, 1, 0],
]


def check(data):
    assert data.preparation.feature_names == FEATURES
    x, y = joined(data)
    np.testing.assert_array_equal(x, X)
    assert data.labels[y].tolist() == [1, -1, 1, -1, 1]
    assert data.notes == ()


@pytest.mark.parametrize(
    "library", ["pandas", "polars", "pyarrow", "arrow types", "parquet", "feather", "pq", "polars'"]
)
def test_every_library_and_file(frame, library, tmp_path):
    if library == "pandas":
        before = frame.copy()
        data = datasets.read_table(frame)
        pd.testing.assert_frame_equal(frame, before)
        assert (data.name, data.source) == ("table", "the DataFrame")
    elif library == "polars":
        data = datasets.read_table(pl.from_pandas(frame))
    elif library == "pyarrow":
        data = datasets.read_table(pa.Table.from_pandas(frame))
    elif library == "arrow types":
        data = datasets.read_table(frame.convert_dtypes(dtype_backend="pyarrow"))
    else:
        path = tmp_path / f"a.{library}"
        if library == "feather":
            frame.to_feather(path)
        elif library == "polars'":
            path = tmp_path / "a.parquet"
            pl.from_pandas(frame).write_parquet(path)
        else:
            frame.to_parquet(path)
        data = datasets.read_table(path)
        assert (data.name, data.source) == ("a", str(path))
    check(data)


def test_polars_without_pyarrow(frame, monkeypatch):
    polars = pl.from_pandas(frame)
    monkeypatch.setattr(pl.DataFrame, "to_pandas", lambda self: __import__("no_such_pyarrow"))
    check(datasets.read_table(polars))
    gaps = pl.DataFrame({"a": [1, None, 3], "k": ["x", "y", "z"]})
    data = datasets.read_table(gaps, missing="skip")
    assert joined(data)[0].tolist() == [[1], [3]]
    assert labels_of(data) == ["x", "z"]


class Stream:
    """A frame of another library, which speaks Arrow's C stream only."""

    def __init__(self, table):
        self._table = table
        self.columns = table.column_names

    columns = None

    def __arrow_c_stream__(self, requested_schema=None):
        return self._table.__arrow_c_stream__(requested_schema)


def test_arrow_stream(frame):
    check(datasets.read_table(Stream(pa.Table.from_pandas(frame))))


@pytest.mark.parametrize("index", ["shuffled", "named", "text", "column"])
def test_indices_are_left_out(frame, index, tmp_path):
    if index == "shuffled":
        frame.index = [3, 1, 4, 0, 2]
        data = datasets.read_table(frame)
        assert data.notes == ()
    elif index == "named":
        data = datasets.read_table(frame.set_index(pd.Index(range(5), name="id")))
        assert data.notes == ("its index, id, is left out: reset_index makes columns of it",)
    elif index == "text":
        data = datasets.read_table(frame.set_index(pd.Index(list("abcde"))))
        assert data.notes == ("its index is left out: reset_index makes a column of it",)
    else:
        frame.index = [3, 1, 4, 0, 2]
        frame.to_parquet(tmp_path / "a.parquet")
        stored = pl.from_arrow(pa.Table.from_pandas(frame))
        stored.write_parquet(tmp_path / "a.parquet")
        data = datasets.read_table(tmp_path / "a.parquet")
        assert data.notes == ("column '__index_level_0__', an index of pandas, is left out",)
    check(data._replace(notes=()))


def test_an_index_in_a_parquet_file_of_pandas(frame, tmp_path):
    frame.index = [3, 1, 4, 0, 2]
    frame.to_parquet(tmp_path / "a.parquet")
    check(datasets.read_table(tmp_path / "a.parquet"))


def test_names_that_are_no_text():
    frame = pd.DataFrame(np.arange(20.0).reshape(5, 4))
    assert datasets.read_table(frame).preparation.feature_names == ["0", "1", "2"]
    assert datasets.read_table(frame, 1).preparation.feature_names == ["0", "2", "3"]
    several = pd.DataFrame(np.eye(4), columns=pd.MultiIndex.from_product([["a", "b"], [1, 2]]))
    assert datasets.read_table(several).preparation.feature_names == ["a 1", "a 2", "b 1"]


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        ([Decimal("1.5"), 2, None, 4.0, 0], [1.5, 2, 2, 4, 0]),
        ([1, 2, None, 3, np.nan], [1, 2, 2, 3, 2]),
        (pd.arrays.SparseArray([0.0, 0.0, 1.5, 0.0, 2.0]), [0, 0, 1.5, 0, 2]),
        ([True, False, None, True, None], [1, 0, 2 / 3, 1, 2 / 3]),
        (np.array([1, 2, 3, 4, 5], np.float16), [1, 2, 3, 4, 5]),
        ([2**60, 1, 1, 1, 1], [2**60, 1, 1, 1, 1]),
    ],
)
def test_numbers_of_any_kind(frame, cells, expected):
    data = datasets.read_table(frame[["real", "goal"]].assign(cells=cells), "goal", missing="mean")
    np.testing.assert_allclose(joined(data)[0][:, 1], expected, rtol=0.3)  # the mean is over four of five rows
    present = [i for i, cell in enumerate(cells) if not pd.isna(cell)]
    np.testing.assert_array_equal(joined(data)[0][present, 1], np.array(expected, np.float32)[present])


def test_text_and_numbers_in_one_column(frame):
    data = datasets.read_table(frame[["goal"]].assign(size=["S", 2, "S", 3.0, 2], real=1.0), "goal")
    assert data.preparation.feature_names == ["size=2", "size=3", "size=S", "real"]


def test_text_of_numbers_stays_text(frame):
    """Frames have types, files have none."""
    data = datasets.read_table(frame[["goal"]].assign(code=["01", "2", "01", "3", "2"], real=1.0), "goal")
    assert data.preparation.feature_names == ["code=01", "code=2", "code=3", "real"]


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (pd.date_range("2020-01-01", periods=5), "row 0 .*column 'bad': dates and times are not read"),
        (pd.to_timedelta(range(5), "D"), "row 0 .*column 'bad': dates and times are not read"),
        (pd.period_range("2020", periods=5, freq="D"), "row 0 .*dates and times are not read"),
        ([None, datetime.date(2020, 1, 1)] * 2 + [None], "row 1 .*column 'bad': dates and times are not read"),
        ([1j] * 5, "column 'bad' must hold real numbers; got complex ones"),
        (["a", "b", [1], "c", "d"], "row 2 .*column 'bad': a cell must be a number, a bool or text; got a list"),
        ([1.0, np.inf, 2, 3, 4], r"row 1 \(counted from 0\), column 'bad' must be a finite float32 number; got inf"),
        ([1.0, 2, 3, None, 4], r"row 3 \(counted from 0\), column 'bad': the cell is missing"),
        (["a", "b", "", "c", "d"], r"row 2 \(counted from 0\), column 'bad': the cell is missing"),
    ],
)
def test_what_cannot_be_read(frame, cells, message):
    with pytest.raises(ValueError, match=f"^the DataFrame: {message}"):
        datasets.read_table(frame.assign(bad=cells), "goal")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "a table must be a path or a frame of pandas, polars or pyarrow; got a NoneType"),
        ([1, 2], "got a list"),
        (np.eye(3), "got a ndarray"),
        (pl.LazyFrame({"a": [1]}), "a table must be data; got a LazyFrame: call its method collect.. first"),
    ],
)
def test_what_is_no_table(data, message):
    with pytest.raises(TypeError, match=message):
        datasets.read_table(data)


def test_dates_as_text(frame):
    days = [datetime.date(2020, 1, 1), datetime.date(2020, 1, 2)] * 2 + [None]
    for cells in (days, pd.to_datetime(days)):
        dated = frame[["goal"]].assign(day=cells, real=1.0)
        data = datasets.read_table(dated, "goal", missing="mean", categorical="day")
        assert [name[:14] for name in data.preparation.feature_names] == ["day=2020-01-01", "day=2020-01-02", "real"]


def test_empty_frames(frame):
    with pytest.raises(ValueError, match="the DataFrame: must have rows and columns; got 0 rows and 6 columns"):
        datasets.read_table(frame.iloc[:0])
    with pytest.raises(ValueError, match="must have at least two columns, features and a target; got 1"):
        datasets.read_table(frame[["real"]])


@pytest.mark.parametrize("option", [{"sep": ","}, {"decimal": ","}, {"header": False}, {"encoding": "ascii"}])
def test_options_of_text_files_are_refused(frame, tmp_path, option):
    (name,) = option
    with pytest.raises(ValueError, match=f"{name} is for text files, not for a frame"):
        datasets.read_table(frame, **option)
    frame.to_parquet(tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=f"{name} is for text files, not for .parquet"):
        datasets.read_table(tmp_path / "a.parquet", **option)


@pytest.mark.parametrize("suffix", ["parquet", "feather"])
def test_damaged_files(tmp_path, frame, suffix):
    path = tmp_path / f"a.{suffix}"
    getattr(frame, f"to_{suffix}")(path)
    content = path.read_bytes()
    for damaged in (b"", b"abc", content[: len(content) // 2], content[:-9]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=f"a.{suffix}: cannot be read as a .{suffix} file"):
            datasets.read_table(path)


def test_without_pandas(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    for name in ("a.csv", "a.parquet"):
        (tmp_path / name).write_text("a,b\n1,2\n")
        with pytest.raises(ImportError, match="reading tables needs pandas: pip install 'fastopt.data.'"):
            datasets.read_table(tmp_path / name)
    np.savez(tmp_path / "a.npz", x=np.eye(4), y=[0, 1, 0, 1])
    assert datasets.read_table(tmp_path / "a.npz").classes == 2


@pytest.mark.parametrize(
    ("cells", "labels"),
    [([30, 10, 30, 20], [10, 20, 30]), (list("baba"), ["a", "b"]), ([True, False] * 2, [False, True])],
)
def test_categories_as_target(cells, labels):
    """pandas' categories are classes of their own type, however rare they are."""
    data = datasets.read_table(pd.DataFrame({"x": [1.0, 2, 3, 4], "y": pd.Categorical(cells)}))
    assert data.labels.tolist() == labels
    assert labels_of(data) == cells


def test_categories_of_numbers():
    frame = pd.DataFrame({"grade": pd.Categorical([1, 2, 3, 1]), "x": [1.0, 2, 3, 4], "y": [0, 1, 0, 1]})
    data = datasets.read_table(frame)
    assert data.preparation.feature_names == ["grade=1", "grade=2", "grade=3", "x"]
    assert labels_of(data) is not None
    plain = datasets.read_table(frame.astype({"grade": int}), categorical="grade")
    np.testing.assert_array_equal(joined(plain)[0], joined(data)[0])
