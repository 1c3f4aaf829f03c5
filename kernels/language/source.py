"""The syntax tree of a Python function, and errors that quote its lines."""

from __future__ import annotations

import ast
import dis
import inspect
import textwrap
from collections.abc import Iterator
from types import CodeType, FunctionType
from typing import Any, NamedTuple


class FormulaError(ValueError):
    """A formula that is no formula, or not the one that it should be; the message quotes the user's line."""


class Source(NamedTuple):
    """A function with its syntax tree."""

    function: Any  # of Python
    tree: ast.FunctionDef | ast.Lambda
    lines: list[str]  # of the file
    file: str

    def error(self, message: str, node: ast.AST | None = None) -> FormulaError:
        """An error that quotes the line of a part of the tree, by default the function's first."""
        return FormulaError(f"{message}\n{self.quoted(node or self.tree)}")

    def quoted(self, node: ast.AST) -> str:
        """The line of a part of the tree with its place, as in a traceback."""
        number, column = getattr(node, "lineno", self.tree.lineno), getattr(node, "col_offset", 0)
        line = self.lines[number - 1].rstrip()
        indent = len(line) - len(line.lstrip())
        start = len(line.encode()[:column].decode(errors="ignore"))
        is_one_line = getattr(node, "end_lineno", number) == number
        end = getattr(node, "end_col_offset", None) if is_one_line else None
        stop = len(line) if end is None else len(line.encode()[:end].decode(errors="ignore"))
        if isinstance(node, ast.FunctionDef):
            start, stop = indent, len(line)
        marks = " " * max(start - indent, 0) + "^" * max(stop - max(start, indent), 1)
        return f'  File "{self.file}", line {number}, in {self.function.__name__}\n    {line.strip()}\n    {marks}'


def source_of(what: str, function: Any) -> Source:
    """The source of a function or lambda; TypeError for what is none, FormulaError where its text is not to be had.

    A source is returned as it is: it was read when the formula was defined, and its file may have changed.
    """
    if isinstance(function, Source):
        return function
    function = getattr(function, "py_func", function)  # Numba's dispatchers
    if not isinstance(function, FunctionType):
        raise TypeError(f"{what} must be a Python function; got {function!r}")
    code, name = function.__code__, function.__name__
    try:
        lines, _ = inspect.findsource(function)
        module = _parsed(lines, code.co_firstlineno)
    except (OSError, TypeError, SyntaxError):
        raise FormulaError(
            f"the source of {what}, {name}, must be readable; it is not found in {code.co_filename}: write the function"
            " in a file, in a notebook or in IPython"
        ) from None
    found = [node for node in _functions(module, code.co_firstlineno) if _has_signature(node, code)]
    if len(found) > 1:
        found = [node for node in found if _has_positions(node, code)] or found
    if not found:
        raise FormulaError(
            f"the source of {what}, {name}, must be that of the function; line {code.co_firstlineno} of"
            f" {code.co_filename} has another: the file has changed since it was imported"
        )
    return Source(_pinned(function), found[-1], lines, code.co_filename)  # of lambdas in one another the inner one


def _pinned(function: FunctionType) -> FunctionType:
    """The function with the globals that it names as they are now: a formula is what it was when it was defined."""
    present = function.__globals__
    kept = {name: present[name] for name in ("__builtins__", *_names(function.__code__)) if name in present}
    pinned = FunctionType(function.__code__, kept, function.__name__, function.__defaults__, function.__closure__)
    pinned.__kwdefaults__ = function.__kwdefaults__
    return pinned


def _names(code: CodeType) -> set[str]:
    """Names of globals, and of attributes, in code and in the functions within it."""
    inner = [_names(const) for const in code.co_consts if isinstance(const, CodeType)]
    return set(code.co_names).union(*inner)


def _parsed(lines: list[str], first: int) -> ast.Module:
    """The tree of a file, or, where that is no Python as a whole, of the block of lines that begins with `first`."""
    try:
        return ast.parse("".join(lines))
    except SyntaxError:
        block = textwrap.dedent("".join(inspect.getblock(lines[first - 1 :])))
        return ast.increment_lineno(ast.parse(block), first - 1)


def _functions(module: ast.Module, line: int) -> Iterator[ast.FunctionDef | ast.Lambda]:
    """Functions and lambdas that begin on a line, where a decorator is the first line of its function."""
    for node in ast.walk(module):
        if isinstance(node, ast.FunctionDef | ast.Lambda):
            decorators = getattr(node, "decorator_list", [])
            if line in (node.lineno, *(decorator.lineno for decorator in decorators)):
                yield node


def _has_signature(node: ast.FunctionDef | ast.Lambda, code: CodeType) -> bool:
    """True if a part of the tree has the name and the arguments of compiled code."""
    arguments = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
    expected = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    return arguments == list(expected) and getattr(node, "name", "<lambda>") == code.co_name


def _has_positions(node: ast.FunctionDef | ast.Lambda, code: CodeType) -> bool:
    """True if all of the code is from within a part of the tree: a line may have several lambdas."""
    if not hasattr(code, "co_positions"):  # before Python 3.11
        return _has_instructions(node, code)
    first, last = (node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset)
    for line, end_line, column, end_column in code.co_positions():
        if column is None or column == end_column:  # of what has no text
            continue
        if (line, column) < first or (end_line, end_column) > last:
            return False
    return True


def _has_instructions(node: ast.AST, code: CodeType) -> bool:
    """True if a lambda compiles to the code, but for names that are those of an enclosing function."""
    outer = compile(ast.Expression(node), code.co_filename, "eval")  # type: ignore[arg-type]
    mine = next(value for value in outer.co_consts if isinstance(value, CodeType))
    return _instructions(mine) == _instructions(code)


def _instructions(code: CodeType) -> list[tuple[str, str]]:
    names = dict.fromkeys(("LOAD_NAME", "LOAD_DEREF", "LOAD_CLASSDEREF"), "LOAD_GLOBAL")
    return [(names.get(i.opname, i.opname), i.argrepr) for i in dis.get_instructions(code)]
