"""The English of the product: how docstrings and comments begin, and the one dialect of error messages."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
# Indirect questions, and genitives and comparisons without their noun: their subject comes late, or never.
OPENINGS = {"What", "Whatever", "Whether", "Where", "Wherever", "How", "Who", "Whoever", "Whose", "Why"}
OPENINGS |= {"Of", "That", "As", "In"}
# Errors say "x must be ...; got ...", in no other words.
DIALECTS = ("but came", "but got", "expected ")


class Fault(NamedTuple):
    """A text that is not as it should be."""

    path: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.text}"


def docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Every docstring with the number of its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield node.body[0].lineno, text


def comment_blocks(source: str) -> Iterator[tuple[int, str]]:
    """The first line of every block of comments; one at the end of a line of code is none."""
    before = -1
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and not token.line[: token.start[1]].strip():
            if token.start[0] != before + 1:
                yield token.start[0], token.string.lstrip("#").strip()
            before = token.start[0]


def messages(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """The text of every error that is raised; what is put in for {names} is left out."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and node.exc is not None:
            pieces = [part.value for part in ast.walk(node.exc) if isinstance(part, ast.Constant)]
            yield node.lineno, "".join(piece for piece in pieces if isinstance(piece, str))


def openings(path: str, source: str) -> Iterator[Fault]:
    """Docstrings and comments that begin with one of OPENINGS."""
    for line, text in [*docstrings(ast.parse(source)), *comment_blocks(source)]:
        first = re.match(r"[\w-]*", text)
        if first is not None and first[0] in OPENINGS:
            yield Fault(path, line, text.partition("\n")[0])


def dialects(path: str, source: str) -> Iterator[Fault]:
    """Error messages that speak another dialect than "x must be ...; got ..."."""
    for line, text in messages(ast.parse(source)):
        if any(words in text for words in DIALECTS):
            yield Fault(path, line, text)


@cache
def files() -> dict[str, str]:
    """Every file of the product with its source."""
    paths = [path for folder in ("fastopt", "kernels", "benchmarks") for path in sorted((ROOT / folder).rglob("*.py"))]
    return {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in paths}


def test_openings():
    found = [str(fault) for path, source in files().items() for fault in openings(path, source)]
    assert not found, "begin with a noun or a verb:\n" + "\n".join(found)


def test_one_dialect_of_errors():
    found = [str(fault) for path, source in files().items() for fault in dialects(path, source)]
    assert not found, 'write "x must be ...; got ...":\n' + "\n".join(found)


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ('"""What a thread does."""', 1),
        ('def f():\n    """Whether it is there."""', 1),
        ('class C:\n    """Of the random numbers: the key."""', 1),
        ('"""Offsets of the columns."""\n# Whole rows first.\nx = 1  # what it is', 0),
        ("# Where there is none,\n# What follows.\n\n# How it ends.", 2),
        ('"""A module."""\nx = "What a text"', 0),
    ],
)
def test_openings_are_found(source, count):
    assert len(list(openings("x.py", source))) == count


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ('raise ValueError(f"expected {n} rows, but got {m}")', 1),
        ('raise ValueError(f"{n} rows" " but came " f"{m}")', 1),
        ('raise ValueError(f"x must have {n} rows; got {m}")', 0),
        ('log.info("but got none")', 0),
    ],
)
def test_dialects_are_found(source, count):
    assert len(list(dialects("x.py", source))) == count
