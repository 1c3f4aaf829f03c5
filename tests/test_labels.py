"""Labels of every kind become numbers of classes and come back as they were."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastopt.models import _labels
from fastopt.models._labels import check_classes, decode, encode

KINDS = (
    st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1),
    st.lists(st.integers(-(2**53), 2**53).map(float), min_size=1),
    st.lists(st.booleans(), min_size=1),
    # NumPy's strings end at their last character that is not NUL
    st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), min_size=1),
)


@given(st.one_of(KINDS))
def test_round_trip(labels):
    codes, classes = encode("y", labels)
    assert codes.dtype == np.int64
    assert codes.shape == (len(labels),)
    assert decode(codes, classes).tolist() == labels
    np.testing.assert_array_equal(classes, np.unique(np.array(labels)))
    again, same = encode("y", labels[::-1], classes)
    assert same is classes
    assert again.tolist() == codes[::-1].tolist()


@given(st.one_of(KINDS), st.randoms(use_true_random=False))
def test_classes_may_stand_in_any_order(labels, random):
    classes = np.unique(np.array(labels))
    shuffled = classes[random.sample(range(len(classes)), len(classes))]
    codes, _ = encode("y", labels, shuffled)
    assert decode(codes, shuffled).tolist() == labels


STRINGS = ["b", "a", "b"]
FORMS = {
    "list": STRINGS,
    "tuple": tuple(STRINGS),
    "column": [[s] for s in STRINGS],
    "array": np.array(STRINGS),
    "array (n, 1)": np.array(STRINGS)[:, None],
    "objects": np.array(STRINGS, object),
    "Series": pd.Series(STRINGS, index=[7, 8, 9]),
    "Series of objects": pd.Series(STRINGS, dtype=object),
    "category": pd.Series(STRINGS, dtype="category"),
    "Categorical": pd.Categorical(STRINGS, categories=["z", "b", "a"]),
    "Index": pd.Index(STRINGS),
    "DataFrame": pd.DataFrame({"y": STRINGS}),
}
if hasattr(np.dtypes, "StringDType"):  # since NumPy 2
    FORMS["StringDType"] = np.array(STRINGS, np.dtypes.StringDType())


@pytest.mark.parametrize("y", FORMS.values(), ids=FORMS)
def test_forms_of_strings(y):
    codes, classes = encode("y", y)
    assert codes.tolist() == [1, 0, 1]
    assert classes.tolist() == ["a", "b"]
    assert classes.dtype.kind == "U"


@pytest.mark.parametrize(
    ("y", "classes"),
    [
        ([3, -1, 3], [-1, 3]),
        ([3.0, -1.0, 3.0], [-1.0, 3.0]),
        (np.array([3, 1, 3], np.uint8), [1, 3]),
        (np.array([2**64 - 1, 1, 2**64 - 1], np.uint64), [1, 2**64 - 1]),
        (np.array([3, 1, 3], ">i4"), [1, 3]),
        (np.array([3, 1, 3], ">f8"), [1.0, 3.0]),
        (np.array([3, 9, 1, 9, 3], np.int16)[::-2], [1, 3]),
        (np.array([3, 1, 3], np.longdouble), [1.0, 3.0]),
        (pd.Series([3, 1, 3], dtype="Int64"), [1, 3]),
        (pd.Series([3, 1, 3], dtype="category"), [1, 3]),
        (pd.Series([3, 1, 3], dtype=object), [1, 3]),
        (pd.Series([True, False, True], dtype="boolean"), [False, True]),
        (np.array([True, False, True]), [False, True]),
        (range(2, -1, -2), [0, 2]),
    ],
)
def test_forms_of_numbers(y, classes):
    codes, found = encode("y", y)
    assert codes.tolist() == [1, 0, 1][: len(codes)]
    assert found.tolist() == classes
    assert [type(label) for label in found.tolist()] == [type(label) for label in classes]
    assert found.dtype.isnative


@pytest.mark.parametrize(
    ("y", "error", "message"),
    [
        (
            ["a", 1],
            TypeError,
            r"y must be class labels of one type, .*; got text \('a' in row 0\) and int \(1 in row 1\)",
        ),
        ([1.5, "a"], TypeError, r"float \(1.5 in row 0\) and text \('a' in row 1\)"),
        (np.array([True, "a"], object), TypeError, r"bool \(True in row 0\) and text"),
        ([1, None, 2, None], ValueError, r"y must have a label in every row; got none in row 1 \(nor in 1 more\)"),
        (["a", None], ValueError, "got none in row 1$"),
        (["a", float("nan")], ValueError, "got none in row 1$"),
        ([1.0, np.nan], ValueError, "got none in row 1$"),
        (pd.Series(["a", pd.NA]), ValueError, "got none in row 1$"),
        (pd.Series([1, pd.NA], dtype="Int64"), ValueError, "got none in row 1$"),
        (pd.Categorical(["a", None]), ValueError, "got none in row 1$"),
        ([1, 1.5], ValueError, "y must be whole class labels; got 1.5 in row 1"),
        ([1, np.inf], ValueError, "y must be whole class labels; got inf in row 1"),
        ([[1, 0], [0, 1]], ValueError, r"shape \(n,\); got shape \(2, 2\); for one-hot rows use .* categorical_cross"),
        (pd.DataFrame({"a": [1], "b": [2]}), ValueError, "y must be class labels in one column; got 2 columns"),
        ([b"a"], TypeError, r"got \|S1 \(bytes: use .astype\(str\)\)"),
        ([1j], TypeError, "y must be class labels, whole numbers or strings; got complex128"),
        (np.array(["2020-01-01"], "M8[D]"), TypeError, r"got datetime64\[D\]"),
        (pd.Series(pd.date_range("2020", periods=2)), TypeError, "y: datetime64.* values, which are no numbers"),
        ([2**70, 1], TypeError, "whole numbers of more than 64 bits"),
        ([{}, {}], TypeError, r"dict \(\{\} in row 0\), which is neither a number nor text"),
        (3, ValueError, r"y must be class labels of shape \(n,\); got shape \(\)"),
        (np.ma.masked_equal([1, 2], 1), TypeError, "y must not be a masked array"),
    ],
)
def test_what_is_no_label(y, error, message):
    with pytest.raises(error, match=message):
        encode("y", y)


@pytest.mark.parametrize(
    ("y", "classes", "message"),
    [
        ([1, 5], [1, 2], "y must be among the classes 1, 2; got 5 in row 1"),
        ([0, 1], [1, 2], "got 0 in row 0"),
        (["c"], ["a", "b"], "y must be among the classes 'a', 'b'; got 'c' in row 0"),
        (["1"], [1, 2], "y must be among the classes 1, 2; got '1' in row 0"),
        ([1], ["1", "2"], "got 1 in row 0"),
        ([200], np.arange(100), r"classes 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, ... \(100 in all\); got 200 in row 0"),
    ],
)
def test_unknown_labels(y, classes, message):
    with pytest.raises(ValueError, match=message):
        encode("y", y, np.array(classes))


def test_numbers_of_all_types_are_one_kind():
    for y in ([1, 0], [1.0, 0.0], [True, False], np.array([1, 0], np.uint64)):
        for classes in ([0, 1], [0.0, 1.0], [False, True]):
            assert encode("y", y, np.array(classes))[0].tolist() == [1, 0]


@pytest.mark.parametrize(
    ("classes", "error", "message"),
    [
        ("ab", TypeError, "classes must be a list of labels, or None; got 'ab'"),
        (3, TypeError, "classes must be a list of labels, or None; got 3"),
        (["a", "a"], ValueError, "classes must be distinct; got 'a' twice"),
        (["a"], ValueError, "classes must be 2 labels, as the model tells 2 classes apart; got 1"),
        (["a", None], ValueError, "got none in row 1"),
        ([0.5, 1], ValueError, "classes must be whole class labels; got 0.5 in row 0"),
        ([["a", "b"]], ValueError, r"got shape \(1, 2\)"),
    ],
)
def test_wrong_classes(classes, error, message):
    with pytest.raises(error, match=message):
        check_classes(classes, 2)


def test_classes_are_copied():
    mine = np.array([3, 1])
    classes = check_classes(mine, 2)
    mine[0] = 7
    assert classes.tolist() == [3, 1]


def test_missing_labels_are_told_apart_for_whoever_skips_rows():
    values, missing, _ = _labels.read("y", pd.Series([3, None, 1], dtype="Int64"))
    assert missing.tolist() == [False, True, False]
    assert values[~missing].tolist() == [3, 1]
    assert values.dtype == np.int64
