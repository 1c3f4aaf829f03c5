"""Opening of tables: a path or a frame becomes a Table, by the reader for its kind."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ._frames import BINARY, is_frame, read_binary, table_of
from ._table import Table
from ._text_files import Expected, TextOptions, is_text, read_text

KINDS = ".npz, .csv, .tsv, .txt (or .gz of these), .parquet or .feather"


def open_table(data: Any, text: TextOptions = TextOptions(), expected: Expected = Expected()) -> Table:  # noqa: B008
    """Return the table in a file or a frame; ValueError for a file of another kind."""
    if is_frame(data):
        _refuse_text_options(text, "a frame")
        return table_of(data)
    path = check_path(data)
    if path.suffix.lower() == ".npz":
        raise ValueError(f"{path}: must be a table; got a .npz file, which holds arrays")
    if is_text(path):
        return read_text(path, text, expected)
    _refuse_text_options(text, path.suffix)
    return read_binary(path)


def check_path(data: Any) -> Path:
    """Return the path of a file that may hold a table.

    Raises TypeError for anything but a path, ValueError for another ending, FileNotFoundError.
    """
    if not isinstance(data, str | bytes | os.PathLike):
        raise TypeError(f"a table must be a path or a frame of pandas, polars or pyarrow; got a {type(data).__name__}")
    path = Path(os.fsdecode(data))
    if not (is_text(path) or path.suffix.lower() in (*BINARY, ".npz")):
        raise ValueError(f"{path}: must be the name of a file that ends in {KINDS}")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file")
    return path


def _refuse_text_options(text: TextOptions, kind: str) -> None:
    given = [name for name, value in zip(text._fields, text, strict=True) if value is not None]
    if given:
        raise ValueError(f"{given[0]} is for text files, not for {kind}")
