"""Tables of pandas, polars and pyarrow, and arrays of other libraries, as NumPy arrays with the names of their columns.

None of these libraries is imported: whoever has an object of a library has imported its module.
"""

from __future__ import annotations

import numbers
import sys
from collections.abc import Callable, Iterable
from decimal import Decimal
from typing import Any, NamedTuple

import numpy as np

from ._dlpack import has_dlpack, is_tensor, view_of
from ._validation import blocks_of, check_finite, check_real, describe, plain
from .kernels.sources import STORED, SparseRows


class Column(NamedTuple):
    """Cells of a column: numbers (bool, int, uint or float) or strings; missing cells are marked and hold any value."""

    values: np.ndarray  # (n,)
    missing: np.ndarray | None  # (n,) bool; None: no cell is missing


class Features(NamedTuple):
    """Rows of real numbers; a missing cell is NaN."""

    values: Any  # (n, columns), any real dtype; a matrix, or SparseRows
    names: tuple[str, ...] | None  # of the columns; None if they have none, or if some are not strings


class NotNumbers(TypeError):
    """The cells of a column are neither all numbers nor all strings."""


def features(name: str, x: Any) -> Features:
    """Return x, a table or an array, as a matrix of real numbers; further axes, such as those of images, are flattened.

    Raises TypeError for text, dates, complex numbers and the like, with the column and the row; ValueError for a
    shape that is not a table's. Arrays of fewer than two dimensions are returned as they are, but a Series is a column.
    """
    table = _table(name, x)
    if table is None:
        return Features(_sparse_rows(name, x) if is_sparse(x) else _flat(_real_array(name, x)), None)
    labels = tuple(label for label, _ in table.columns)
    names = labels if table.named and all(isinstance(label, str) for label in labels) else None
    if table.matrix is not None:
        return Features(table.matrix, names)
    columns = [_numbers(f"{name}: column {label!r}", cells) for label, cells in table.columns]
    values = np.empty((table.rows, len(columns)), np.result_type(np.bool_, *(column.dtype for column in columns)))
    for i, column in enumerate(columns):
        values[:, i] = column
    return Features(values, names)


def numbers_of(name: str, y: Any) -> Features:
    """Return y, a table, a column or an array, as real numbers of its shape; a missing cell is NaN."""
    table = _table(name, y)
    if table is None:
        return Features(_real_array(name, y), None)
    labels = [label for label, _ in table.columns]
    columns = [_numbers(f"{name}: column {label!r}" if table.named else name, cells) for label, cells in table.columns]
    values = np.stack(columns, axis=1) if table.named and columns else np.ravel(columns)
    return Features(values, tuple(labels) if all(isinstance(label, str) for label in labels) else None)


def column(name: str, y: Any) -> Column | np.ndarray:
    """Return labels y: a library's column as a Column, anything else as an array of any shape."""
    if isinstance(y, list | tuple):
        return _from_list(name, y)
    table = _table(name, y)
    if table is None:
        return as_array(name, y)
    if len(table.columns) != 1:
        raise ValueError(f"{name} must be class labels in one column; got {len(table.columns)} columns")
    try:
        return table.columns[0][1]()
    except NotNumbers as error:
        raise TypeError(f"{name}: {error}") from None


def as_array(name: str, value: Any) -> np.ndarray:
    """Return any array as NumPy's: also one that has only `__dlpack__`, and torch's bfloat16, as float32."""
    if type(value) is np.ndarray:
        return value
    if is_tensor(value) and str(value.dtype) == "torch.bfloat16":
        value = value.float()  # NumPy has no bfloat16
    if has_dlpack(value) and not hasattr(value, "__array__"):
        return view_of(name, value)
    if is_sparse(value):
        raise TypeError(f"{name} must not be a sparse matrix; got {describe(value)} (use .toarray())")
    return plain(name, value)


def is_sparse(value: Any) -> bool:
    """Return true for a matrix or an array of scipy.sparse."""
    return hasattr(value, "tocsr") and hasattr(value, "nnz")


def check_cells(name: str, array: Any, names: tuple[str, ...] | None) -> Any:
    """Return a matrix, sparse rows or a column; ValueError, naming the place, if they hold NaN or infinity."""
    if isinstance(array, SparseRows):
        check_finite(f"the stored values of {name}", array.stored)
        return array
    if array.dtype.kind != "f" or names is None:
        return check_finite(name, array) if array.dtype.kind == "f" else array
    if all(np.isfinite(block).all() for block in blocks_of(array)):
        return array
    bad = ~np.isfinite(array).reshape(len(array), -1)
    column = int(np.argmax(bad.any(axis=0)))
    row, more = int(np.argmax(bad[:, column])), int(np.count_nonzero(bad)) - 1
    value = array.reshape(bad.shape)[row, column]
    cell = "a missing value" if np.isnan(value) else str(value)
    raise ValueError(
        f"{name}: column {names[column]!r} has {cell} in row {row}{f' (and {more} more)' * (more > 0)};"
        f" {name} must be finite"
    )


def from_objects(cells: np.ndarray) -> Column:
    """Return Python objects (n,) as a Column; all must be numbers or all strings, but for None, NaN, NA and NaT.

    Raises NotNumbers for a mixture and for other types, naming a row of each.
    """
    types = set(map(type, cells))
    if types == {str}:  # as most columns of strings
        return Column(cells.astype(str), None)
    if types == {float}:
        return _from_floats(cells.astype(np.float64))
    missing = np.array([_is_missing(cell) for cell in cells], bool)
    present = cells[~missing]
    kinds = {_kind(type_) for type_ in set(map(type, present))}
    filled = np.where(missing, "" if kinds == {"text"} else 0, cells).tolist()
    if kinds == {"text"}:
        values = np.array(filled, str)
    elif kinds == {"bool"}:
        values = np.array(filled, bool)
    elif kinds <= {"int", "bool"}:
        values = _integers([int(cell) for cell in filled])
    elif kinds <= {"int", "float", "bool"}:
        values = np.array([float(cell) for cell in filled])
    else:
        raise NotNumbers(_mixture(cells, missing))
    return Column(values, missing if missing.any() else None)


# ---------------------------------------------------------------- any library's table


class _Table(NamedTuple):
    rows: int
    columns: list[tuple[Any, Callable[[], Column]]]  # (label, its cells)
    named: bool  # False: a single column, not a table
    matrix: np.ndarray | None = None  # all cells, if they have one dtype of numbers


def _table(name: str, value: Any) -> _Table | None:
    """The table or column of a known library; None for any other object."""
    if isinstance(value, np.ndarray | list | tuple):
        return None
    for library, read in (("pandas", _pandas), ("polars", _polars), ("pyarrow", _pyarrow)):
        module = sys.modules.get(library)
        table = None if module is None else read(name, value, module)
        if table is not None:
            return table
    return None


def _pandas(name: str, value: Any, pandas: Any) -> _Table | None:
    if isinstance(value, pandas.DataFrame):
        series = [value.iloc[:, i] for i in range(value.shape[1])]
        columns = [(label, _later(_from_pandas, s)) for label, s in zip(value.columns.tolist(), series, strict=True)]
        dtypes = set(value.dtypes)
        alike = len(dtypes) == 1 and all(isinstance(d, np.dtype) and d.kind in "biuf" for d in dtypes)
        return _Table(len(value), columns, True, value.to_numpy() if alike else None)
    if isinstance(value, pandas.Index | pandas.api.extensions.ExtensionArray):
        if isinstance(value, pandas.MultiIndex):
            raise TypeError(f"{name} must be numbers; got a MultiIndex")
        value = pandas.Series(value)
    if isinstance(value, pandas.Series):
        return _Table(len(value), [(value.name, _later(_from_pandas, value))], False)
    return None


def _polars(name: str, value: Any, polars: Any) -> _Table | None:
    if isinstance(value, polars.LazyFrame):
        raise TypeError(f"{name} must be data; got a LazyFrame: call its method collect() first")
    if isinstance(value, polars.DataFrame):
        return _Table(value.height, [(s.name, _later(_from_polars, s)) for s in value.get_columns()], True)
    if isinstance(value, polars.Series):
        return _Table(len(value), [(value.name, _later(_from_polars, value))], False)
    return None


def _pyarrow(name: str, value: Any, pyarrow: Any) -> _Table | None:
    if isinstance(value, pyarrow.Table | pyarrow.RecordBatch):
        pairs = zip(value.schema.names, value.columns, strict=True)
        return _Table(value.num_rows, [(n, _later(_from_arrow, c)) for n, c in pairs], True)
    if isinstance(value, pyarrow.Array | pyarrow.ChunkedArray):
        return _Table(len(value), [(None, _later(_from_arrow, value))], False)
    return None


def _later(read: Callable[[Any], Column], column: Any) -> Callable[[], Column]:
    return lambda: read(column)


def _from_pandas(series: Any) -> Column:
    dtype = series.dtype
    if isinstance(dtype, np.dtype) and dtype.kind in "biuf":
        return Column(series.to_numpy(), None)
    if hasattr(dtype, "categories"):
        codes = series.cat.codes.to_numpy()
        found = _from_pandas(dtype.categories.to_series())
        return _decoded(found, codes)
    missing = np.asarray(series.isna(), bool)
    kind = getattr(dtype, "kind", "O")
    if kind in "biuf":
        target = {"b": bool, "i": np.int64, "u": np.uint64, "f": np.float64}[kind]
        values = series.to_numpy(dtype=target, na_value=False if kind == "b" else 0)
        return Column(values, missing if missing.any() else None)
    if kind in "mM":
        raise NotNumbers(f"{dtype} values, which are no numbers")
    return from_objects(series.to_numpy(dtype=object))


def _from_polars(series: Any) -> Column:
    polars, dtype = sys.modules["polars"], series.dtype
    missing = series.is_null().to_numpy()
    if dtype.is_decimal():
        series = series.cast(polars.Float64)
    if dtype.is_numeric() or dtype == polars.Boolean:
        values = series.fill_null(False if dtype == polars.Boolean else 0).to_numpy()
        return Column(values, missing if missing.any() else None)
    return from_objects(_objects(series.to_list()))


def _from_arrow(column: Any) -> Column:
    pyarrow = sys.modules["pyarrow"]
    types = pyarrow.types
    if isinstance(column, pyarrow.Array):
        column = pyarrow.chunked_array([column])
    if types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if types.is_decimal(column.type):
        column = column.cast(pyarrow.float64())
    kind = column.type
    if types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind):
        missing = np.asarray(column.is_null().to_numpy(), bool)
        values = column.fill_null(False if types.is_boolean(kind) else 0).to_numpy()
        return Column(values, missing if missing.any() else None)
    return from_objects(_objects(column.to_pylist()))


def _decoded(categories: Column, codes: np.ndarray) -> Column:
    """The cells of a categorical column; code -1 is a missing cell."""
    missing = codes < 0
    values = categories.values if len(categories.values) else np.zeros(1)
    return Column(values[np.where(missing, 0, codes)], missing if missing.any() else None)


def _numbers(title: str, read_cells: Callable[[], Column]) -> np.ndarray:
    """A column's numbers; a missing cell is NaN."""
    try:
        values, missing = read_cells()
    except NotNumbers as error:
        raise TypeError(f"{title} must hold numbers; got {error}") from None
    if values.dtype.kind not in "biuf":
        row = 0 if missing is None else int(np.argmin(missing))
        raise TypeError(
            f"{title} must hold numbers; got text ({str(values[row])!r} in row {row}): encode it as numbers, such as by"
            " pandas.get_dummies, or let fastopt.datasets.read_table read the file"
        )
    if missing is None:
        return values
    values = values.astype(np.float64)
    values[missing] = np.nan
    return values


# ---------------------------------------------------------------- arrays and lists


def _real_array(name: str, value: Any) -> np.ndarray:
    array = as_array(name, value)
    if array.dtype.kind in "OUT" and array.ndim:
        raise TypeError(
            f"{name} must hold real numbers; got {array.dtype} ({describe(value)})"
            + _first_non_number(_objects_of(value, array.shape) if isinstance(value, list | tuple) else array)
        )
    check_real(name, array, value)
    return array


def _sparse_rows(name: str, matrix: Any) -> SparseRows:
    """The rows of a matrix of scipy.sparse: its own arrays if it is CSR without duplicates."""
    if len(matrix.shape) != 2:
        raise ValueError(f"{name} must have shape (batch, features); got a sparse array of shape {matrix.shape}")
    rows = matrix.tocsr()
    if not rows.has_canonical_format:
        rows = rows.copy() if rows is matrix else rows
        rows.sum_duplicates()
    stored = rows.data
    check_real(name, stored, matrix)
    if stored.dtype.newbyteorder("=").name not in STORED:  # long double
        stored = stored.astype(np.float64)
    stored = np.require(stored, stored.dtype.newbyteorder("="), ["C", "A"])
    starts, columns = rows.indptr, rows.indices
    index = np.result_type(starts, columns)
    return SparseRows(stored, np.ascontiguousarray(columns, index), np.ascontiguousarray(starts, index), rows.shape[1])


def _first_non_number(array: np.ndarray) -> str:
    """Row and column of the first cell that is not a number, for a message; advice if all are numbers."""
    for index in np.ndindex(array.shape):
        cell = array[index]
        if _is_missing(cell) or _kind(type(cell)) not in ("int", "float", "bool"):
            return f": row {index[0]}{''.join(f', column {i}' for i in index[1:2])} has {_shown(cell)}"
    return ": use .astype(float)"


def _flat(array: np.ndarray) -> np.ndarray:
    if array.ndim < 3:
        return array
    return array.reshape(len(array), int(np.prod(array.shape[1:])))


def _from_list(name: str, y: Any) -> Column | np.ndarray:
    """A list of labels as an array of objects, where NumPy would make strings of numbers, of None and of NaN."""
    array = as_array(name, y)
    # NumPy rounds uint64 beside int64 to float64.
    rounded = array.dtype.kind == "f" and array.size > 0 and bool((np.abs(array) >= 2.0**63).any())
    if (array.dtype.kind not in "UO" and not rounded) or array.ndim > 2:
        return array
    return _objects_of(y, array.shape)


def _objects_of(y: Any, shape: tuple[int, ...]) -> np.ndarray:
    cells = np.empty(shape, object)
    cells[...] = y
    return cells


def _objects(cells: Iterable[Any]) -> np.ndarray:
    listed = list(cells)
    array = np.empty(len(listed), object)
    array[:] = listed
    return array


def _is_missing(cell: Any) -> bool:
    """True for None, NaN, pandas' NA and NaT, and NumPy's NaT."""
    if cell is None or type(cell).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(cell, float | np.floating | np.datetime64 | Decimal) and cell != cell


def _kind(type_: type) -> str:
    if issubclass(type_, str):
        return "text"
    if issubclass(type_, bool | np.bool_):
        return "bool"
    if issubclass(type_, numbers.Integral):
        return "int"
    return "float" if issubclass(type_, numbers.Real | Decimal) else type_.__name__


def _from_floats(values: np.ndarray) -> Column:
    """A column of floats, in which NaN is a missing cell."""
    missing = np.isnan(values)
    return Column(values, missing if missing.any() else None)


def _integers(cells: list[int]) -> np.ndarray:
    """Python's whole numbers as int64, or as uint64 if one does not fit."""
    try:
        return np.array(cells, np.int64 if not cells or max(cells) < 2**63 else np.uint64)
    except OverflowError:
        raise NotNumbers("whole numbers of more than 64 bits") from None


def _shown(cell: Any) -> str:
    """A cell in a message, shortened."""
    text = repr(cell.item() if isinstance(cell, np.generic) else cell)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _mixture(cells: np.ndarray, missing: np.ndarray) -> str:
    """The kinds of cells of a column, with the first row of each."""
    kinds: dict[str, int] = {}
    for row in np.flatnonzero(~missing):
        kinds.setdefault(_kind(type(cells[row])), int(row))
    found = [f"{kind} ({_shown(cells[row])} in row {row})" for kind, row in list(kinds.items())[:3]]
    return " and ".join(found) if len(found) > 1 else f"{found[0]}, which is neither a number nor text"
