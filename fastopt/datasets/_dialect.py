"""Dialect of a text table: delimiter, decimal mark and header, given by the user or found in its first lines."""

from __future__ import annotations

import contextlib
import csv
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import NamedTuple

DELIMITERS = ("\t", ";", ",", "|", " ")  # of several that fit equally well, the first is chosen
NAMED_DELIMITERS = {"tab": "\t", "\\t": "\t", "space": " ", r"\s+": " ", "comma": ",", "semicolon": ";", "pipe": "|"}
# Texts of a missing cell: those of pandas, and the question mark of the UCI repository and Weka.
EXTRA_MISSING = ("?",)
_MARKS = "#N/A|#N/A N/A|#NA|-1.#IND|-1.#QNAN|-NaN|-nan|1.#IND|1.#QNAN|<NA>|N/A|NA|NULL|NaN|None|n/a|nan|null"
MISSING = frozenset(["", *_MARKS.split("|"), *EXTRA_MISSING])
_POINT = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?inf(inity)?", re.IGNORECASE)
_COMMA = re.compile(r"[+-]?(\d+(,\d+)?|,\d+)([eE][+-]?\d+)?|[+-]?inf(inity)?", re.IGNORECASE)
_GROUPED_POINT = re.compile(r"[+-]?[1-9]\d{0,2}([, '\u00a0\u202f])\d{3}(\1\d{3})*(\.\d*)?")  # 1,234.5 and 1'234.5
_GROUPED_COMMA = re.compile(r"[+-]?[1-9]\d{0,2}([. '\u00a0\u202f])\d{3}(\1\d{3})*(,\d*)?")  # 1.234,5 and 1 234,5
_SPACING = re.compile("[ '\u00a0\u202f]")
_WITH_POINT = re.compile(r"[+-]?\d*\.\d+([eE][+-]?\d+)?")
_NAME_LIKE_NUMBER = re.compile(r"\d+")  # such as a year above a column
_DIRECTIVE = re.compile(r"sep=(.)", re.IGNORECASE)  # Excel's first line


class Dialect(NamedTuple):
    """Delimiter (" " stands for any run of blanks), decimal mark and number of lines before the first record."""

    sep: str
    decimal: str
    skip: int  # lines before the header or the first row: comments and Excel's directive
    comment: list[str] | None  # the names in the last comment, if it has one for every column


def is_number(cell: str, decimal: str) -> bool:
    """Return True for a number with this decimal mark, with or without thousands separators."""
    plain, grouped = (_POINT, _GROUPED_POINT) if decimal == "." else (_COMMA, _GROUPED_COMMA)
    return bool(plain.fullmatch(cell) or grouped.fullmatch(cell))


def to_float(cell: str, decimal: str) -> float:
    """Return the value of a text for which `is_number` is True.

    >>> to_float("1.234,5", ","), to_float("1,234.5", "."), to_float("1 234,5", ",")
    (1234.5, 1234.5, 1234.5)
    """
    thousands = "," if decimal == "." else "."
    return float(_SPACING.sub("", cell.replace(thousands, "")).replace(decimal, "."))


def records(lines: Iterable[str], sep: str) -> Iterator[tuple[int, list[str]]]:
    """Yield (number of its first line, from 1; stripped cells) of every record that is not blank."""
    whitespace = sep == " "
    if whitespace:
        lines = (line.replace("\t", " ").rstrip() + "\n" for line in lines)
    reader, before = csv.reader(lines, delimiter=sep, skipinitialspace=True), 0
    for row in reader:
        if len(row) > 1 or any(cell.strip() for cell in row):
            yield before + 1, [cell.strip() for cell in row]
        before = reader.line_num


def check_sep(sep: str | None) -> str | None:
    """Return a delimiter given by the user as one character; " " stands for any run of blanks."""
    if sep is None:
        return None
    if not isinstance(sep, str):
        raise TypeError(f"sep must be a character, or tab or space; got {sep!r}")
    sep = NAMED_DELIMITERS.get(sep, sep)
    if len(sep) != 1 or sep in '"\r\n\0' or sep.isalnum():
        raise ValueError(f"sep must be one character, such as ',' or ';', or tab or space; got {sep!r}")
    return sep


def check_decimal(decimal: str | None) -> str | None:
    """Return a decimal mark given by the user: "." or ","."""
    if decimal not in (None, ".", ","):
        raise ValueError(f"decimal must be '.' or ','; got {decimal!r}")
    return decimal


def sniff(
    lines: Sequence[str], sep: str | None, decimal: str | None, tabs: bool, names: Collection[str] = ()
) -> Dialect:
    """Return the dialect of a table that begins with `lines`; a delimiter or decimal mark that is given is used.

    tabs   True if the file's name promises tabs, such as a.tsv
    names  names of columns that the table should have
    """
    start = 0
    if lines and (found := _DIRECTIVE.fullmatch(lines[0].rstrip("\r\n"))):
        sep, start = sep or found[1], 1
    skip = next((i for i in range(start, len(lines)) if not lines[i].startswith("#")), len(lines))
    if sep is None:
        sep = _delimiter(lines[skip if skip < len(lines) else start :], "\t" if tabs else None, names)
    if decimal is None:
        decimal = _decimal(_sample(lines[skip:], sep), sep)
    sample = _sample(lines[skip:], sep)
    while skip > start and _is_row(lines[skip - 1], sep, decimal, sample):
        skip -= 1
    names_in_comment = _names_in_comment(lines[skip - 1], sep, decimal, sample) if skip > start else None
    return Dialect(sep, decimal, skip, names_in_comment)


def _is_row(line: str, sep: str, decimal: str, sample: Sequence[Sequence[str]]) -> bool:
    """True for a line that begins with # but is a row of data, such as #ff0000,1,2."""
    row = next((row for _, row in records([line], sep)), [])
    return (not sample or len(row) == len(sample[0])) and any(is_number(cell, decimal) for cell in row[1:])


def _names_in_comment(line: str, sep: str, decimal: str, sample: Sequence[Sequence[str]]) -> list[str] | None:
    names = next((row for _, row in records([line.lstrip("#")], sep)), None)
    if names is None or not sample or len(names) != len(sample[0]) or any(is_number(name, decimal) for name in names):
        return None
    return names


def _sample(lines: Sequence[str], sep: str) -> list[list[str]]:
    rows: list[list[str]] = []
    with contextlib.suppress(csv.Error):  # a cell of more than 128 KiB: the rows before it are enough
        rows.extend(row for _, row in records(lines, sep))
    return rows


def _delimiter(lines: Sequence[str], promised: str | None, names: Collection[str]) -> str:
    """The delimiter that gives the most records the same number of cells, at least two.

    Of several, the one with the fewest cells that hold another delimiter, and then with the most numbers. A delimiter
    that divides the first row into known names goes before all others.
    """
    best, best_score = promised or ",", (0.0, 0.0, 0.0)
    for sep in DELIMITERS:
        rows = _sample(lines, sep)
        if not rows:
            continue
        if 2 * len(set(rows[0]) & set(names)) > len(names):
            return sep
        width, count = Counter(map(len, rows)).most_common(1)[0]
        if width < 2:
            continue
        if sep == promised:
            return sep
        cells = [cell for row in rows for cell in row if cell not in MISSING]
        others = [cell for cell in cells if not any(is_number(cell, mark) for mark in ".,")]
        divided = sum(any(other in cell for other in DELIMITERS[:-1]) for cell in others)
        undivided, numbers = (1 - len(some) / max(1, len(cells)) for some in (range(divided), others))
        score = (count / len(rows), undivided, numbers)
        if score > best_score:
            best, best_score = sep, score
    return best


def _decimal(rows: Sequence[Sequence[str]], sep: str) -> str:
    """A comma if some numbers have commas and none has a decimal point (rather than a point between thousands)."""
    cells = [cell for row in rows for cell in row]
    commas = [cell for cell in cells if "," in cell and is_number(cell, ",")]
    if not commas or any(_WITH_POINT.fullmatch(cell) and not _GROUPED_COMMA.fullmatch(cell) for cell in cells):
        return "."
    if sep != ";" and all(map(_GROUPED_POINT.fullmatch, commas)):  # such as 1,234: three digits follow every comma
        if sep == ",":
            return "."  # quoted cells of a table with commas as delimiters
        raise ValueError(
            f"{commas[0]} may have a decimal comma, or a comma between thousands: say decimal=',' or '.' (--decimal)"
        )
    return ","


# ---------------------------------------------------------------- header


_AMBIGUOUS = "the first row may be a header, and it may be data: say header=True or False (--header, --no-header)"


class Ambiguous(ValueError):
    """The first row may be a header, and it may be data."""


def has_header(rows: Sequence[Sequence[str]], decimal: str) -> bool:
    """Return True if the first record holds names; raise Ambiguous if only the user can tell.

    0, 1, 2, ... are names. So is text above a column of numbers, and a cell that does not occur again in a column in
    which all others do. A table of text alone has a header unless a cell of its first row occurs again below.
    """
    first, below = rows[0], rows[1:]
    if _are_counted_names(rows):
        return True
    columns = [[row[i] for row in below if i < len(row) and row[i] not in MISSING] for i in range(len(first))]
    numeric = [sum(is_number(cell, decimal) for cell in column) for column in columns]
    votes = [_vote(*column, decimal) for column in zip(first, columns, numeric, strict=True)]
    names, data = votes.count("name"), votes.count("data")
    numbers = [cell for cell in first if is_number(cell, decimal)]
    texts = [vote for cell, vote in zip(first, votes, strict=True) if cell not in MISSING | {*numbers}]
    if not names:
        if "data" not in texts and texts and ("year" in votes or _look_like_names(numbers)):
            raise Ambiguous(_AMBIGUOUS)
        return not data and not numbers
    if not data:
        return True
    above_numbers = any(
        vote == "name" and 2 * count >= len(column) for vote, count, column in zip(votes, numeric, columns, strict=True)
    )
    if not all(map(_NAME_LIKE_NUMBER.fullmatch, numbers)) or (len(numbers) < data and not above_numbers):
        return False  # 5.1 is not a name, and neither is text that occurs again
    if len(numbers) >= data and (names >= data or _look_like_names(numbers)):
        return True
    raise Ambiguous(_AMBIGUOUS)


def _look_like_names(numbers: Sequence[str]) -> bool:
    """True if the numbers of a first row may be names: years, or consecutive numbers."""
    if len(numbers) < 2 or not all(map(_NAME_LIKE_NUMBER.fullmatch, numbers)):
        return False
    values = [int(number) for number in numbers]
    counted = values == list(range(values[0], values[0] + len(values)))
    return counted or (len(set(values)) == len(values) and all(map(_is_year, numbers)))


def _are_counted_names(rows: Sequence[Sequence[str]]) -> bool:
    """True for 0, 1, 2, ..., which pandas writes above columns without names, perhaps after an empty corner.

    Other columns may have names of text, which do not occur again. For two columns, 0, 1 may be data, as in a truth
    table: it is if the row occurs again.
    """
    first, below = list(rows[0]), rows[1:]
    corner = first[0] == ""
    numbers = [cell for cell in first if cell.isdecimal()]
    if not numbers or numbers != [str(i) for i in range(len(numbers))]:
        return False
    if len(numbers) + corner < len(first):
        texts = [i for i, cell in enumerate(first) if cell and not cell.isdecimal()]
        return len(numbers) > 2 and not any(first[i] == row[i] for i in texts for row in below if i < len(row))
    return corner or len(numbers) > 2 or (len(numbers) == 2 and first not in [list(row) for row in below])


def _vote(cell: str, others: Sequence[str], numbers: int, decimal: str) -> str | None:
    """Return "name", "data", "year" or None for a cell of the first row above `others`, `numbers` of them numbers."""
    if cell in MISSING or not others:
        return None
    mostly_numbers = 2 * numbers >= len(others)
    if is_number(cell, decimal):
        if mostly_numbers:
            return "year" if _is_year(cell) and not any(map(_is_year, others)) else "data"
        return None if numbers else "name"  # a number above text alone
    if mostly_numbers:
        return "name"
    if cell in others:
        return "data"
    return "name" if len(others) >= 5 and 2 * len(set(others)) <= len(others) else None


def _is_year(cell: str) -> bool:
    return len(cell) == 4 and cell.isdecimal() and 1900 <= int(cell) <= 2100
