"""Frames of pandas, polars and pyarrow, and the files of typed columns: Parquet and Feather."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ._table import INSTALL, Table, import_pandas

BINARY = (".parquet", ".pq", ".feather", ".arrow")


def is_frame(data: Any) -> bool:
    """Return True for a frame of a library; TypeError for a lazy one."""
    if isinstance(data, str | bytes) or hasattr(data, "__fspath__"):
        return False
    pandas = sys.modules.get("pandas")
    if pandas is not None and isinstance(data, pandas.DataFrame):
        return True
    kind = type(data)  # asked of the class: an object's properties may do work
    if hasattr(kind, "columns") and hasattr(kind, "collect"):
        raise TypeError(f"a table must be data; got a {kind.__name__}: call its method collect() first")
    named = hasattr(kind, "columns") or hasattr(kind, "column_names")
    return named and any(hasattr(kind, name) for name in ("to_pandas", "__arrow_c_stream__", "__dataframe__"))


def read_binary(path: Path) -> Table:
    """Return the table in a Parquet or Feather file.

    Raises ImportError without pandas or pyarrow, ValueError for a damaged file or one of another kind.
    """
    pd = import_pandas()
    read = pd.read_parquet if path.suffix.lower() in (".parquet", ".pq") else pd.read_feather
    try:
        frame = read(path)
    except ImportError as error:
        raise ImportError(f"reading {path.suffix} files needs pyarrow: pip install 'fastopt[data]'") from error
    except Exception as error:  # ArrowInvalid, OSError, KeyError ... of damaged files
        raise ValueError(f"{path}: cannot be read as a {path.suffix} file: {error}") from error
    return table_of(frame, str(path))


def table_of(data: Any, source: str | None = None) -> Table:
    """Return a frame as a table. Its index is left out, with a note unless it merely counts the rows."""
    frame = _to_pandas(data)
    pd = import_pandas()
    if source is None:
        source = f"the {type(data).__name__}"
    if isinstance(frame.columns, pd.MultiIndex):
        names = [" ".join(str(part) for part in parts if str(part)) for parts in frame.columns]
    else:
        names = ["" if name is None else str(name).strip() for name in frame.columns]
    notes = []
    index = [str(name) for name in frame.index.names if name is not None]
    if index:
        notes.append(f"its index, {', '.join(index)}, is left out: reset_index makes columns of it")
    elif not isinstance(frame.index, pd.RangeIndex) and not pd.api.types.is_integer_dtype(frame.index.dtype):
        notes.append("its index is left out: reset_index makes a column of it")
    if not len(frame) or not frame.shape[1]:
        raise ValueError(f"{source}: must have rows and columns; got {len(frame)} rows and {frame.shape[1]} columns")
    frame = frame.reset_index(drop=True)
    frame.columns = range(frame.shape[1])
    return Table(source, frame, names, lambda row: f"row {row} (counted from 0)", notes)


def _to_pandas(data: Any) -> Any:
    pd = import_pandas()
    if isinstance(data, pd.DataFrame):
        return data.copy(deep=False)
    try:
        if hasattr(data, "to_pandas"):
            return data.to_pandas()
        if hasattr(data, "__arrow_c_stream__"):
            import pyarrow

            return pyarrow.table(data).to_pandas()
        return pd.api.interchange.from_dataframe(data)
    except ImportError as error:
        if hasattr(data, "get_columns"):  # polars without pyarrow
            cells = [pd.Series(column.to_list(), dtype=object).infer_objects() for column in data.get_columns()]
            return pd.concat(cells, axis=1, keys=list(data.columns)) if cells else pd.DataFrame()
        raise ImportError(f"{INSTALL} ({type(data).__name__}: {error})") from error
