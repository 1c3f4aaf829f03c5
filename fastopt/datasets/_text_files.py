"""Reader of text tables, packed or not: finds their dialect, lets pandas read them, and explains its errors."""

from __future__ import annotations

import bz2
import contextlib
import csv
import gzip
import io
import itertools
import lzma
import zipfile
import zlib
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple, TextIO

import numpy as np

from . import _dialect
from ._dialect import Dialect
from ._table import Table, import_pandas, listed

PACKED = (".gz", ".bz2", ".xz", ".zip")
SUFFIXES = (".csv", ".tsv", ".txt", ".tab", ".dat", ".data")
_MAGIC: tuple[tuple[bytes, Callable[[Any], Any]], ...] = (
    (b"\x1f\x8b", lambda file: gzip.GzipFile(fileobj=file)),
    (b"BZh", bz2.BZ2File),
    (b"\xfd7zXZ\0", lzma.LZMAFile),
)
_ENCODINGS = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))
_DAMAGE = (EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, gzip.BadGzipFile)
SAMPLE_CHARACTERS, SAMPLE_LINES, MOST_CHARACTERS = 1 << 18, 50, 1 << 24
SAMPLE_CELLS = 20_000


class TextOptions(NamedTuple):
    """Options for text files; None: found in the file."""

    sep: str | None = None
    decimal: str | None = None
    header: bool | None = None
    encoding: str | None = None


class Expected(NamedTuple):
    """Knowledge of the columns before a file is read."""

    names: Collection[str] = ()  # a first row with most of these names is a header
    # Function of the names, the number of columns and the first rows: positions of columns to read as text.
    text: Callable[[list[str] | None, int, Sequence[Sequence[str]]], Collection[int]] = lambda names, width, rows: ()


def is_text(path: Path) -> bool:
    """Return True for a name such as table.csv or table.tsv.gz."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    if suffixes and suffixes[-1] in PACKED:
        suffixes.pop()
        if not suffixes or suffixes[-1] not in SUFFIXES:
            return path.suffix.lower() == ".zip"
    return bool(suffixes) and suffixes[-1] in SUFFIXES


def read_text(path: Path, options: TextOptions, expected: Expected) -> Table:
    """Return the table in a text file, with the types that pandas finds for its columns.

    Raises ValueError, naming the file and the line, for rows of different lengths, quotes that do not end, an empty
    file, and text in another encoding.
    """
    import_pandas()
    sep, decimal = _dialect.check_sep(options.sep), _dialect.check_decimal(options.decimal)
    try:
        with _open(path, options.encoding) as file:
            lines = _first_lines(file)
        dialect = _dialect.sniff(lines, sep, decimal, _promises_tabs(path), expected.names)
        return _Reader(path, options, dialect, lines).table(expected)
    except UnicodeError as error:
        raise ValueError(_not_text(path, options.encoding, error)) from error
    except _DAMAGE as error:
        raise ValueError(f"{path}: must be a whole packed file; got one that is damaged or cut: {error}") from error
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{path}: {error}") from error


def _promises_tabs(path: Path) -> bool:
    return bool({".tsv", ".tab"} & {suffix.lower() for suffix in path.suffixes})


@contextlib.contextmanager
def _open(path: Path, encoding: str | None) -> Iterator[TextIO]:
    """The file as text; its first bytes tell its compression and encoding."""
    with contextlib.ExitStack() as stack:
        raw: IO[bytes] = stack.enter_context(open(path, "rb"))
        start = raw.read(6)
        raw.seek(0)
        if start.startswith(b"PK\x03\x04"):
            archive = stack.enter_context(zipfile.ZipFile(raw))
            members = [info for info in archive.infolist() if not info.is_dir()]
            if len(members) != 1:
                raise ValueError(f"a zip archive must hold one table; got {len(members)} files")
            raw = stack.enter_context(archive.open(members[0]))
        else:
            for magic, unpack in _MAGIC:
                if start.startswith(magic):
                    raw = stack.enter_context(unpack(raw))
        buffered = stack.enter_context(io.BufferedReader(raw))  # type: ignore[type-var]
        start = buffered.peek(4)[:4]
        if encoding is None:
            encoding = next((name for mark, name in _ENCODINGS if start.startswith(mark)), "utf-8")
        elif encoding.lower().replace("_", "-") in ("utf-8", "utf8"):
            encoding = "utf-8-sig"
        try:
            text = io.TextIOWrapper(buffered, encoding, newline="")
        except LookupError:
            raise ValueError(f"unknown encoding {encoding!r}") from None
        yield stack.enter_context(text)


def _first_lines(file: TextIO) -> list[str]:
    """Enough lines to find the dialect; the last one is complete unless it has more than MOST_CHARACTERS."""
    lines: list[str] = []
    size = 0
    while size < SAMPLE_CHARACTERS or (len(lines) < SAMPLE_LINES and size < MOST_CHARACTERS):
        line = file.readline(MOST_CHARACTERS)
        if not line:
            break
        lines.append(line)
        size += len(line)
    return lines


class _Reader:
    """Reader of one file in a known dialect."""

    def __init__(self, path: Path, options: TextOptions, dialect: Dialect, lines: list[str]) -> None:
        self.path, self.encoding, self.dialect = path, options.encoding, dialect
        self.sample = self._first_records(lines)
        if not self.sample:
            raise ValueError("a table must have rows and columns; got an empty file")
        self.header = options.header
        self.guessed = False
        self.notes: list[str] = []
        self.first_row = 0  # number of records before the first row of data

    def _first_records(self, lines: list[str]) -> list[tuple[int, list[str]]]:
        """Records in which a header is looked for: 1000, or fewer if they have many columns."""
        found: list[tuple[int, list[str]]] = []
        with contextlib.suppress(csv.Error):
            for record in self._records(lines):
                found.append(record)
                if len(found) >= 1000 or (len(found) >= 20 and len(found) * len(record[1]) >= SAMPLE_CELLS):
                    break
        return found

    def _records(self, lines: Any) -> Iterator[tuple[int, list[str]]]:
        """Records with the numbers of their first lines in the file, after comments and directives."""
        skip = self.dialect.skip
        for line, row in _dialect.records(itertools.islice(lines, skip, None), self.dialect.sep):
            yield line + skip, row

    def table(self, expected: Expected) -> Table:
        names = self._names(expected)
        frame = self._read(names, expected)
        row_names = names is not None and len(names) == frame.shape[1] - 1 and _names_rows(frame)
        if names is not None and row_names:
            names = ["", *names]  # as R's write.table does it
        if names is not None and len(names) != frame.shape[1]:
            line, row = self.sample[self.first_row] if len(self.sample) > self.first_row else (0, [])
            raise ValueError(f"line {line} must have {len(names)} columns, as the header has; got {len(row)}")
        if self._is_doubtful(names):
            self.notes.append(f"the first row is taken for names: {listed([name for name in names or () if name])}")
        return Table(str(self.path), frame, names, self.row_title, self.notes, row_names, self.dialect.decimal)

    def _names(self, expected: Expected) -> list[str] | None:
        rows = [row for _, row in self.sample]
        if self.header is None:
            if self.dialect.comment is not None:
                return self.dialect.comment
            known = set(rows[0]) & set(expected.names)
            self.header = len(known) > len(expected.names) / 2
            if not self.header:
                self.header = self.guessed = _dialect.has_header(rows, self.dialect.decimal)
        if not self.header:
            return None
        self.first_row = 1
        return rows[0]

    def _is_doubtful(self, names: list[str] | None) -> bool:
        """True for a header that was guessed with doubt: names that look like data, or are above text alone."""
        if not self.guessed or not names:
            return False
        cells, mark = (cell for _, row in self.sample[1:] for cell in row), self.dialect.decimal
        return any(map(str.isdecimal, names)) or not any(_dialect.is_number(cell, mark) for cell in cells)

    def _read(self, names: list[str] | None, expected: Expected) -> Any:
        pd = import_pandas()
        width = len(self.sample[min(self.first_row, len(self.sample) - 1)][1])
        if len(self.sample) <= self.first_row:
            raise ValueError("a table must have rows of data; got a header alone")
        if names is not None and len(names) == width - 1:
            names = ["", *names]
        text = expected.text(names, width, [row for _, row in self.sample[self.first_row :]])
        before = self.sample[self.first_row][0] - 1  # lines before the first row of data
        sep = self.dialect.sep
        options = {"sep": r"\s+"} if sep == " " else {"sep": sep, "skipinitialspace": True}
        if _version(pd) < (3, 1):
            options["float_precision"] = "round_trip"
        try:
            with _open(self.path, self.encoding) as file:
                for _ in range(before):
                    file.readline()
                frame = pd.read_csv(
                    file, header=None, index_col=False, low_memory=False, dtype_backend="numpy_nullable",
                    decimal=self.dialect.decimal, na_values=list(_dialect.EXTRA_MISSING),
                    dtype=dict.fromkeys(text, "string"), **options,
                )  # fmt: skip
        except pd.errors.ParserError as error:
            problem = self._open_quote() if "EOF inside string" in str(error) else self._ragged(width)
            raise ValueError(problem or f"it cannot be read as a table: {str(error).strip()}") from error
        if len(frame) and frame.iloc[:, -1].isna().any() and (problem := self._ragged(width)):
            raise ValueError(problem)
        frame.columns = range(frame.shape[1])
        return self._without_empty_end(frame)

    def _without_empty_end(self, frame: Any) -> Any:
        """The rows up to the last one that is not empty: spreadsheets write empty ones after it."""
        filled = np.flatnonzero(frame.notna().any(axis=1).to_numpy())
        rows = int(filled[-1]) + 1 if len(filled) else 0
        if rows < len(frame):
            self.notes.append(f"the last {len(frame) - rows:,} rows, which are empty, are left out")
        if not rows:
            raise ValueError("a table must have rows of data; got empty cells alone")
        return frame.iloc[:rows]

    def _ragged(self, width: int) -> str | None:
        """A message about the first row whose number of columns is not `width`; None if there is none."""
        with contextlib.suppress(csv.Error), _open(self.path, self.encoding) as file:
            for line, row in itertools.islice(self._records(file), self.first_row, None):
                if len(row) != width:
                    return f"line {line} must have {width} columns, as the first row has; got {len(row)}"
        return None

    def _open_quote(self) -> str | None:
        """A message about the last row, in which a quoted cell begins that does not end."""
        lines: deque[int] = deque(maxlen=1)
        with contextlib.suppress(csv.Error), _open(self.path, self.encoding) as file:
            lines.extend(line for line, _ in self._records(file))
        return f"line {lines[0]}: a quoted cell begins in this row and does not end" if lines else None

    def row_title(self, row: int) -> str:
        """Return the position of a row of data in words: the line in which it begins."""
        with contextlib.suppress(csv.Error, OSError), _open(self.path, self.encoding) as file:
            for line, _ in itertools.islice(self._records(file), self.first_row + row, None):
                return f"line {line}"
        return f"row {row} (counted from 0)"


def _names_rows(frame: Any) -> bool:
    """True if the first column names every row, by text or by a number from 1 on, as in files of R."""
    pd, first = import_pandas(), frame.iloc[:, 0]
    if pd.api.types.is_string_dtype(first.dtype):
        return bool(first.is_unique)
    return bool(pd.api.types.is_integer_dtype(first.dtype) and (first == np.arange(1, len(first) + 1)).all())


def _version(pd: Any) -> tuple[int, ...]:
    return tuple(int(part) for part in pd.__version__.split(".")[:2])


def _not_text(path: Path, encoding: str | None, error: UnicodeError) -> str:
    if encoding is not None:
        return f"{path}: must be text in {encoding}: {error}"
    reason = ""
    with contextlib.suppress(OSError, ValueError, UnicodeError), _open(path, "latin-1") as file:
        for number, line in enumerate(file, 1):
            try:
                line.encode("latin-1").decode("utf-8")
            except UnicodeError:
                reason = f"line {number} is not UTF-8"
                break
    return (
        f"{path}: must be text in UTF-8; {reason or error}: give its encoding, "
        "such as encoding='cp1252' (--encoding cp1252), if it is text"
    )
