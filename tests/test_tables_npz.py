"""Data sets from .npz files: labels of any kind, and errors."""

import io
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastopt import datasets

files = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)

def test_npz_images_and_labels_are_split(tmp_path):
    x = np.random.default_rng(0).normal(size=(25, 3, 4))
    np.savez(tmp_path / "a.npz", x=x, y=np.arange(25, dtype=np.int8)[:, None] % 5)
    data = datasets.read_table(tmp_path / "a.npz")
    assert data.x_train.shape == (20, 12)
    assert data.x_test.shape == (5, 12)
    assert data.y_train.shape == (20,)
    assert data.y_train.dtype == np.int64
    assert data.classes == 5


def test_npz_with_a_test_part_is_kept_as_it_is(tmp_path):
    x = np.arange(12.0, dtype=np.float32).reshape(6, 2)
    y = np.arange(12.0).reshape(6, 2)
    np.savez_compressed(tmp_path / "a.npz", x_train=x[:4], y_train=y[:4], x_test=x[4:], y_test=y[4:])
    data = datasets.read_table(str(tmp_path / "a.npz"))
    assert np.array_equal(data.x_train, x[:4])
    assert np.array_equal(data.x_test, x[4:])
    assert data.y_train.dtype == np.float32
    assert np.array_equal(data.y_test, y[4:])
    assert data.classes == 0


X, Y = np.zeros((4, 2)), np.array([0, 1, 0, 1])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a": X}, "it must hold the arrays x, y; or x_train, y_train.*; got a"),
        ({"x_train": X, "y_train": Y, "x_test": X}, "got x_train, y_train, x_test"),
        ({"x": X, "y": Y[:3]}, r"got \(4, 2\) and \(3,\)"),
        ({"x": X[:, 0], "y": Y}, r"x must have shape \(rows, features\)"),
        ({"x": X[:0], "y": Y[:0]}, r"got \(0, 2\) and \(0,\)"),
        ({"x": X, "y": np.eye(4, dtype=int)}, "y must be one label a row"),
        ({"x": X, "y": np.array(list("abcd")).astype("S1")}, "y must hold numbers or text; got |S1"),
        ({"x": X.astype(str), "y": Y}, "x must hold numbers; got <U"),
        ({"x": X * 1j, "y": Y}, "x must hold numbers; got complex128"),
        ({"x": X, "y": Y * np.nan}, r"y\[0, 0\] must be a finite .*; got nan"),
        ({"x": X, "y": np.array([object()] * 4)}, "Object arrays cannot be loaded"),
        ({"x": X, "y": np.full(4, 2**63, np.uint64)}, "labels must fit int64"),
        (
            {"x_train": X, "y_train": Y, "x_test": X[:, :1], "y_test": Y},
            "the same columns and types in both parts",
        ),
        (
            {"x_train": X, "y_train": Y, "x_test": X, "y_test": Y * 0.5},
            "the same columns and types in both parts",
        ),
    ],
)
def test_npz_errors(tmp_path, arrays, message):
    path = tmp_path / "a.npz"
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match=message) as error:
        datasets.read_table(path)
    assert str(path) in str(error.value)


@files
@given(data=st.data())
def test_npz_corruption_is_a_value_error_or_harmless(tmp_path, data):
    path = tmp_path / "a.npz"
    np.savez(path, x=X, y=Y)
    content = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content[at] ^= data.draw(st.integers(1, 255))
    else:
        del content[at:]
    path.write_bytes(content)
    try:
        datasets.read_table(path)
    except ValueError as error:
        assert str(error).startswith(f"{path}: ")


@files
@given(data=st.data())
def test_npz_members_that_are_damaged_within_the_zip(tmp_path, data):
    """The zip file is whole and its checksums fit, but the .npy header or data in it do not."""
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in (("x", X), ("y", Y)):
            member = io.BytesIO()
            np.save(member, array)
            content = bytearray(member.getvalue())
            for _ in range(data.draw(st.integers(0, 2))):
                content[data.draw(st.integers(0, 99))] = data.draw(st.integers(32, 126))
            archive.writestr(f"{name}.npy", content[: data.draw(st.integers(90, 400))])
    try:
        datasets.read_table(path)
    except ValueError as error:
        assert str(error).startswith(f"{path}: ")


def test_npy_is_not_npz(tmp_path):
    with open(tmp_path / "a.npz", "wb") as file:
        np.save(file, X)
    with pytest.raises(ValueError, match="single .npy array"):
        datasets.read_table(tmp_path / "a.npz")


@pytest.mark.parametrize(
    "options",
    [
        {"target": "y"}, {"sep": ","}, {"decimal": ","}, {"header": True}, {"encoding": "utf-8"}, {"drop": "x"},
        {"categorical": [0]}, {"missing": "skip"},
    ],
)  # fmt: skip
def test_options_of_tables_are_refused(tmp_path, options):
    np.savez(tmp_path / "a.npz", x=X, y=Y)
    (name,) = options
    with pytest.raises(ValueError, match=f"a.npz: {name} is for tables; a .npz file holds arrays"):
        datasets.read_table(tmp_path / "a.npz", **options)


@pytest.mark.parametrize(
    ("y", "labels"),
    [
        (np.array([-1, 1, 1, -1, 1]), [-1, 1]),
        (np.array([3, 1, 2, 1, 3]), [1, 2, 3]),
        (np.array([10, 30, 10, 30, 10])[:, None], [10, 30]),
        (np.array([2.0, 5.0, 2.0, 5.0, 2.0], np.float32), None),
        (np.array([True, False, True, False, True]), [False, True]),
        (np.array(["yes", "no", "no", "yes", "no"]), ["no", "yes"]),
    ],
)
def test_labels_of_any_kind(tmp_path, y, labels):
    np.savez(tmp_path / "a.npz", x=np.arange(10.0).reshape(5, 2), y=y)
    data = datasets.read_table(tmp_path / "a.npz")
    x = np.concatenate([data.x_train, data.x_test])
    codes = np.concatenate([data.y_train, data.y_test])
    expected = y.reshape(-1)[(x[:, 0] / 2).astype(int)]
    if labels is None:
        assert (data.classes, data.labels) == (0, None)
        assert codes.reshape(-1).tolist() == expected.tolist()
        classes = datasets.read_table(tmp_path / "a.npz", targets="classes")
        assert classes.labels.tolist() == [2.0, 5.0]
    else:
        assert codes.dtype == np.int64
        assert (data.classes, data.labels.tolist()) == (len(labels), labels)
        assert data.labels[codes].tolist() == expected.tolist()


def test_whole_numbers_as_numbers(tmp_path):
    np.savez(tmp_path / "a.npz", x=X, y=np.array([100, 250, 75, 300]))
    with pytest.raises(ValueError, match="a.npz: y has 4 different whole numbers in 4 rows: say which: numbers"):
        datasets.read_table(tmp_path / "a.npz")
    data = datasets.read_table(tmp_path / "a.npz", targets="numbers", dtype="float64")
    assert (data.classes, data.y_train.dtype, data.y_train.shape) == (0, np.float64, (3, 1))
    assert sorted(np.concatenate([data.y_train, data.y_test]).ravel()) == [75, 100, 250, 300]


def test_real_numbers_are_no_classes(tmp_path):
    np.savez(tmp_path / "a.npz", x=X, y=Y + 0.5)
    with pytest.raises(ValueError, match=r"y\[0\] must be a label .* got 0.5; known for such targets: mean_squ"):
        datasets.read_table(tmp_path / "a.npz", targets="classes")
    np.savez(tmp_path / "a.npz", x=X, y=np.array(list("abca")))
    with pytest.raises(ValueError, match=r"y\[0\] must be a number for a loss of numbers, as all targets; got 'a'"):
        datasets.read_table(tmp_path / "a.npz", targets="numbers")
