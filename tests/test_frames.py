"""Tables of every library are read as the numbers that they hold; what is no number is named by column and row."""

import datetime
import decimal
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from helpers_model import CROSS_ENTROPY, assert_same, blobs, classifier, snapshot
from hypothesis import given
from hypothesis import strategies as st

import fastopt as fo
from fastopt import Dense, Sequential
from fastopt._frames import features, numbers_of

NAN = float("nan")
X, Y = blobs(40)


def polars():
    return pytest.importorskip("polars")


def pyarrow():
    return pytest.importorskip("pyarrow")


# ---------------------------------------------------------------- cells

NUMPY_KINDS = {
    "bool": st.booleans(),
    "int8": st.integers(-128, 127),
    "int64": st.integers(-(2**53), 2**53),
    "uint16": st.integers(0, 2**16 - 1),
    "float32": st.floats(allow_nan=False, width=32),
    "float64": st.floats(allow_nan=False),
}
NULLABLE = {"boolean": "bool", "Int8": "int8", "Int64": "int64", "UInt16": "uint16", "Float64": "float64"}


@st.composite
def frames(draw):
    """A pandas table and the truth about it, cell by cell."""
    rows = draw(st.integers(1, 5))
    columns, truth = {}, []
    for i in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from([*NUMPY_KINDS, *NULLABLE]))
        cells = NUMPY_KINDS[NULLABLE.get(kind, kind)]
        if kind in NULLABLE:
            cells = st.one_of(st.none(), cells)
        values = draw(st.lists(cells, min_size=rows, max_size=rows))
        columns[f"c{i}"] = pd.array(values, dtype=kind) if kind in NULLABLE else np.array(values, kind)
        if draw(st.booleans()):
            columns[f"c{i}"] = pd.Categorical(columns[f"c{i}"])
        truth.append([NAN if value is None else float(value) for value in values])
    return pd.DataFrame(columns), np.array(truth).T


@given(frames())
def test_cells_of_pandas(case):
    frame, truth = case
    before = frame.copy()
    values, names = features("x", frame)
    np.testing.assert_array_equal(values.astype(np.float64), truth)
    assert names == tuple(frame.columns)
    pd.testing.assert_frame_equal(frame, before)


MIXED = {
    "whole": [1, None, 3],
    "real": [1.5, 2.0, None],
    "flag": [True, None, False],
    "price": [decimal.Decimal("1.25"), None, decimal.Decimal(2)],
}
TRUTH = [[1, 1.5, 1, 1.25], [NAN, 2, NAN, NAN], [3, NAN, 0, 2]]


def tables():
    """The same cells as tables of every library that is there, and of every kind of column."""
    pandas = pd.DataFrame({name: pd.Series(cells, dtype=object) for name, cells in MIXED.items()})
    yield "objects", lambda: pandas
    yield "nullable", lambda: pandas.astype({"whole": "Int64", "real": "Float64", "flag": "boolean"})
    yield "arrow in pandas", lambda: pyarrow().table(MIXED).to_pandas(types_mapper=pd.ArrowDtype)
    yield "polars", lambda: polars().DataFrame(MIXED)
    yield (
        "polars in chunks",
        lambda: polars().concat([polars().DataFrame(MIXED)[i : i + 1] for i in range(3)], rechunk=False),
    )
    yield "arrow", lambda: pyarrow().table(MIXED)
    yield "arrow in chunks", lambda: pyarrow().concat_tables([pyarrow().table(MIXED).slice(i, 1) for i in range(3)])
    yield "arrow batch", lambda: pyarrow().table(MIXED).to_batches()[0]


@pytest.mark.parametrize(("name", "make"), list(tables()))
def test_the_same_table_of_every_library(name, make):
    values, names = features("x", make())
    np.testing.assert_array_equal(values, TRUTH)
    assert names == tuple(MIXED)
    np.testing.assert_array_equal(numbers_of("y", make()).values, TRUTH)


def test_single_columns_of_every_library():
    for column in (
        pd.Series([1, 2]),
        polars().Series([1, 2]),
        pyarrow().array([1, 2]),
        pyarrow().chunked_array([[1], [2]]),
    ):
        np.testing.assert_array_equal(numbers_of("y", column).values, [1, 2])
        np.testing.assert_array_equal(features("x", column).values, [[1], [2]])
        assert features("x", column).names is None


def test_dtypes_are_no_wider_than_need_be():
    assert features("x", pd.DataFrame({"a": np.zeros(2, "f4"), "b": [True, False]})).values.dtype == np.float32
    assert features("x", pd.DataFrame({"a": np.zeros(2, "u1")})).values.dtype == np.uint8
    assert features("x", pd.DataFrame({"a": pd.array([1, 2], "Int64")})).values.dtype == np.int64


def test_dictionaries_of_numbers():
    column = pyarrow().array([7, 9, 7, None]).dictionary_encode()
    np.testing.assert_array_equal(features("x", pyarrow().table({"a": column})).values, [[7], [9], [7], [NAN]])
    np.testing.assert_array_equal(
        features("x", pd.DataFrame({"a": pd.Categorical([None, None])})).values, [[NAN], [NAN]]
    )


def test_objects_that_are_floats():
    frame = pd.DataFrame({"a": pd.Series([1.5, NAN, 2.0], dtype=object)})
    np.testing.assert_array_equal(features("x", frame).values, [[1.5], [NAN], [2]])


@pytest.mark.parametrize(
    ("columns", "names"),
    [(["a", "a"], ("a", "a")), ([0, 1], None), (["a", 1], None), ([("a", 1), ("a", 2)], None)],
)
def test_names(columns, names):
    values, found = features("x", pd.DataFrame([[1, 2], [3, 4]], columns=columns))
    assert found == names
    np.testing.assert_array_equal(values, [[1, 2], [3, 4]])


TEXT = "x: column 'c' must hold numbers; got text"
NO_NUMBERS = [
    (lambda: {"c": ["a", "b"]}, rf"{TEXT} \('a' in row 0\): encode it as numbers, .*get_dummies, .*read_table"),
    (lambda: {"c": [None, "b"]}, rf"{TEXT} \('b' in row 1\)"),
    (lambda: {"c": [datetime.date(2020, 1, 1)] * 2}, "x: column 'c' must hold numbers; got date"),
    (lambda: {"c": [datetime.datetime(2020, 1, 1)] * 2}, "x: column 'c' must hold numbers; got datetime"),
    (lambda: {"c": [datetime.timedelta(1)] * 2}, "x: column 'c' must hold numbers; got .*timedelta"),
    (lambda: {"c": [[1, 2], [3, 4]]}, "x: column 'c' must hold numbers; got (list|ndarray)"),
]


@pytest.mark.parametrize(("cells", "message"), NO_NUMBERS)
@pytest.mark.parametrize("library", ["pandas", "polars", "pyarrow"])
def test_columns_that_are_no_numbers(cells, message, library):
    make = {"pandas": lambda: pd.DataFrame, "polars": lambda: polars().DataFrame, "pyarrow": lambda: pyarrow().table}
    table = make[library]()({"a": [1, 2], **cells()})
    with pytest.raises(TypeError, match=message):
        features("x", table)


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (pd.Categorical(["a", "b"]), TEXT),
        (np.array([1j, 2]), r"x: column 'c' must hold numbers; got complex \(1j in row 0\)"),
        (pd.period_range("2020", periods=2, freq="D"), "got Period"),
        (pd.Series([1, "a"], dtype=object), r"got int \(1 in row 0\) and text \('a' in row 1\)"),
        (pd.Series([2**70, 1], dtype=object), "got whole numbers of more than 64 bits"),
    ],
)
def test_columns_of_pandas_that_are_no_numbers(cells, message):
    with pytest.raises(TypeError, match=message):
        features("x", pd.DataFrame({"a": [1, 2], "c": cells}))


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        ([[1, None], [2, 3]], TypeError, "x must hold real numbers; got object .*: row 0, column 1 has None"),
        ([[1, 2], [2, "a"]], TypeError, "x must hold real numbers; got <U21 .*: row 1, column 1 has 'a'"),
        (np.array([[1, 2.5]], object), TypeError, r"x must hold real numbers; got object .*: use .astype\(float\)"),
        ((row for row in X), TypeError, "x must hold real numbers; got object .a generator"),
        ({"a": [1]}, TypeError, "x must hold real numbers; got object .a dict"),
        (pd.DataFrame(), ValueError, r"x must have shape .batch, features., here .any, 6.; got shape \(0, 0\)"),
        (pd.DataFrame({"a": []}), ValueError, r"got shape \(0, 1\)"),
        (np.zeros((40, 3, 3)), ValueError, r"here \(any, 6\); got shape \(40, 9\), flattened from \(40, 3, 3\)"),
        (pd.MultiIndex.from_tuples([(1, 2)]), TypeError, "x must be numbers; got a MultiIndex"),
    ],
)
def test_what_is_no_data(x, error, message):
    model = classifier(inputs=6)
    before = snapshot(model)
    for call in (lambda: model.fit(x, Y), lambda: model.evaluate(x, Y), lambda: model.predict(x)):
        with pytest.raises(error, match=message):
            call()
    assert_same(before, snapshot(model))


def test_lazy_frames_and_sparse_targets():
    with pytest.raises(TypeError, match=r"x must be data; got a LazyFrame: call its method collect\(\) first"):
        features("x", polars().LazyFrame({"a": [1]}))
    sparse = pytest.importorskip("scipy.sparse")
    with pytest.raises(TypeError, match=r"y must not be a sparse matrix; .*toarray"):
        numbers_of("y", sparse.csr_array(np.eye(3)))


# ---------------------------------------------------------------- models


def fitted(x, y=Y, **options):
    model = classifier()
    model.fit(x, y, verbose=0, **options)
    return model


NAMES = list("abcdef")


def test_tables_train_as_their_arrays_do(backend):
    whole = np.round(4 * X).astype(int)
    frame = pd.DataFrame(whole, columns=NAMES)
    kinds = {"a": "Int64", "b": "Float64", "c": "category", "d": "int8", "e": "float32", "f": object}
    expected = classifier(backend)
    expected.fit(whole, Y)
    for x in (
        frame,
        frame.astype(kinds),
        polars().DataFrame(frame),
        pyarrow().Table.from_pandas(frame),
        whole.tolist(),
    ):
        model = classifier(backend)
        for y in (pd.Series(Y), pd.DataFrame({"y": Y}), polars().Series(Y), pyarrow().array(Y), Y.tolist(), Y[:, None]):
            model = classifier(backend)
            model.fit(x, y, verbose=0)
            assert_same(model.get_weights(), expected.get_weights())
            assert model.evaluate(x, y) == expected.evaluate(whole, Y)
        assert_same(model.predict(x), expected.predict(whole))


def test_images_are_flattened(backend):
    images = np.random.default_rng(0).integers(0, 256, (20, 4, 5), np.uint8)
    y = np.arange(20) % 3
    flat = classifier(backend)
    flat.fit(images.reshape(20, -1), y)
    for x in (images, images[..., None], np.asfortranarray(images), images.tolist()):
        model = classifier(backend)
        model.fit(x, y)
        assert model.inputs == 20
        assert_same(model.get_weights(), flat.get_weights())
        assert_same(model.predict(x), flat.predict(images.reshape(20, -1)))


def test_tensors():
    torch = pytest.importorskip("torch")
    images = torch.arange(60.0).reshape(5, 3, 4).transpose(1, 2)
    np.testing.assert_array_equal(features("x", images).values, images.numpy().reshape(5, 12))
    small = images.to(torch.bfloat16).requires_grad_()
    np.testing.assert_array_equal(features("x", small).values, images.numpy().reshape(5, 12))
    with pytest.raises(TypeError, match="cannot be read as a NumPy array"):
        features("x", images.to("meta"))


def test_what_speaks_dlpack_only():
    class Lent:
        def __init__(self, array):
            self.array = array

        def __dlpack__(self, **options):
            return self.array.__dlpack__(**options)

        def __dlpack_device__(self):
            return self.array.__dlpack_device__()

    np.testing.assert_array_equal(features("x", Lent(X)).values, X)


def test_gaps_are_named_by_column_and_row():
    frame = pd.DataFrame(X.astype(float), columns=NAMES)
    frame.loc[17, "b"] = np.nan
    frame.loc[[3, 20, 21], "d"] = np.nan
    model = classifier()
    for name, call in (
        ("x", lambda: model.fit(frame, Y)),
        ("validation x", lambda: model.fit(X, Y, validation_data=(frame, Y))),
        ("x", lambda: model.evaluate(frame, Y)),
        ("x", lambda: model.predict(frame)),
    ):
        with pytest.raises(ValueError, match=rf"^{name}: column 'b' has a missing value in row 17 \(and 3 more\)"):
            call()
    with pytest.raises(ValueError, match="x: column 'c' has inf in row 0; x must be finite"):
        model.fit(pd.DataFrame(X.astype(float), columns=NAMES).assign(c=np.inf).loc[:0], Y[:1])
    with pytest.raises(ValueError, match="x: column 'a' has a missing value in row 1"):
        model.fit(pd.DataFrame({"a": pd.array([1, None], "Int64")}), Y[:2])


def test_gaps_are_skipped(caplog):
    frame = pd.DataFrame(np.round(X).astype(int), columns=NAMES).astype("Int64")
    frame.loc[3, "a"] = pd.NA
    frame.loc[5, "f"] = pd.NA
    labels = pd.Series(Y, dtype="Int64")
    labels[7] = pd.NA
    good = np.setdiff1d(np.arange(40), [3, 5, 7])
    expected = fitted(np.round(X)[good], Y[good])
    for y in (labels, labels.astype(float), labels.astype(object)):
        assert_same(fitted(frame, y, nan="skip").get_weights(), expected.get_weights())
    assert "skipping 3 of 40 rows with NaN or infinity" in caplog.text
    caplog.clear()
    assert_same(fitted(X, nan="skip").get_weights(), fitted(X).get_weights())
    assert "skipping" not in caplog.text
    texts = labels.astype(object).map({0: "x", 1: "y", 2: "z", pd.NA: None})
    assert fitted(frame, texts, nan="skip").classes.tolist() == ["x", "y", "z"]


def test_values_that_overflow_the_dtype_are_skipped_as_before():
    x = X.astype(float)
    x[4, 2] = 1e300
    keep = np.arange(40) != 4
    assert_same(fitted(x, nan="skip").get_weights(), fitted(X[keep], Y[keep]).get_weights())


def test_names_are_remembered(tmp_path):
    frame = pd.DataFrame(X, columns=NAMES)
    model = fitted(frame)
    assert model.feature_names == tuple(NAMES)
    model.save(tmp_path / "m")
    for one in (model, fo.load_model(tmp_path / "m")):
        before = snapshot(one)
        for call in (
            lambda x, one=one: one.predict(x),
            lambda x, one=one: one.predict_classes(x),
            lambda x, one=one: one.evaluate(x, Y),
            lambda x, one=one: one.fit(x, Y),
            lambda x, one=one: one.fit(X, Y, validation_data=(x, Y)),
        ):
            with pytest.raises(
                ValueError, match="x must have its columns in the order that the model was fitted on; got 'f'"
            ):
                call(frame[NAMES[::-1]])
            with pytest.raises(ValueError, match="the columns that the model was fitted on; missing 'a', unknown 'g'"):
                call(frame.rename(columns={"a": "g"}))
            with pytest.raises(ValueError, match="columns that the model was fitted on; missing 'a'$"):
                call(frame[NAMES[1:]])
            with pytest.raises(ValueError, match="columns that the model was fitted on; unknown 'g'$"):
                call(frame.assign(g=1))
        assert_same(before, snapshot(one))
        assert_same(one.predict(frame), one.predict(X))
        assert_same(one.predict(polars().DataFrame(frame)), one.predict(X))
        assert_same(one.predict(frame[NAMES[::-1]][list(one.feature_names)]), one.predict(X))


def test_names_of_the_first_fit_count_for_its_validation_data():
    frame = pd.DataFrame(X, columns=NAMES)
    model = classifier()
    with pytest.raises(ValueError, match="validation x must have its columns in the order"):
        model.fit(frame, Y, validation_data=(frame[NAMES[::-1]], Y))
    assert model.feature_names is None
    assert not model.built


def test_names_may_be_set():
    model = classifier(inputs=6)
    model.feature_names = NAMES
    with pytest.raises(ValueError, match="columns that the model was fitted on; missing 'a', unknown 'g'"):
        model.predict(pd.DataFrame(X, columns=list("gbcdef")))
    model.feature_names = None
    model.predict(pd.DataFrame(X, columns=list("gbcdef")))
    for wrong, error in (
        (NAMES[:3], ValueError),
        ("abcdef", TypeError),
        ([1, 2, 3, 4, 5, 6], TypeError),
        (3, TypeError),
    ):
        with pytest.raises(error, match="feature_names must be"):
            model.feature_names = wrong
    unbuilt = classifier()
    unbuilt.feature_names = ["a"]
    with pytest.raises(ValueError, match="x has 6 features, but model.feature_names are 1 names"):
        unbuilt.fit(X, Y)


def test_targets_of_regressions():
    y = X[:, :2] * 3
    model = Sequential([Dense(2)], backend="numpy")
    model.compile("sgd", "mse")
    model.fit(X, y)
    again = Sequential([Dense(2)], backend="numpy")
    again.compile("sgd", "mse")
    again.fit(X, pd.DataFrame(y, columns=["u", "v"]))
    assert_same(model.get_weights(), again.get_weights())
    with pytest.raises(TypeError, match=r"y: column 'v' must hold numbers; got text \('a' in row 0\)"):
        model.fit(X[:2], pd.DataFrame({"u": [1, 2], "v": ["a", "b"]}))
    for gap in (pd.Series(y[:, 0], name="price"), pd.DataFrame({"price": y[:, 0]})):
        single = Sequential([Dense(1)], backend="numpy")
        single.compile("sgd", "mse")
        single.fit(X, gap)
        gap.iloc[[3, 9]] = np.nan
        with pytest.raises(ValueError, match=r"y: column 'price' has a missing value in row 3 \(and 1 more\)"):
            single.fit(X, gap)
        single.fit(X, gap, nan="skip")
    with pytest.raises(TypeError, match=r"y must hold numbers; got text \('a' in row 0\)"):
        model.fit(X[:2], pd.Series(["a", "b"]))
    with pytest.raises(TypeError, match="y must hold real numbers; got <U1 .*: row 0 has 'a'"):
        model.fit(X[:2], ["a", "b"])


def test_no_library_is_imported():
    code = (
        "import sys, numpy as np, fastopt as fo; m = fo.Sequential([fo.Dense(2)], backend='numpy');"
        f"m.compile('sgd', '{CROSS_ENTROPY}'); m.fit(np.eye(2), ['a', 'b'], verbose=0);"
        "print(*{'pandas', 'polars', 'pyarrow', 'torch'} & set(sys.modules))"
    )

    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"
