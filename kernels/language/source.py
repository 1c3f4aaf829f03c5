"""The syntax tree of a Python function, and errors that quote its lines."""

from __future__ import annotations

import ast
import dis
import inspect
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
    """The source of a function or lambda; TypeError for what is none, FormulaError where its text is not to be had."""
    function = getattr(function, "py_func", function)  # Numba's dispatchers
    if not isinstance(function, FunctionType):
        raise TypeError(f"{what} must be a Python function; got {function!r}")
    code, name = function.__code__, function.__name__
    try:
        lines, _ = inspect.findsource(function)
        module = ast.parse("".join(lines))
    except (OSError, TypeError, SyntaxError):
        raise FormulaError(
            f"the source of {what}, {name}, must be readable; it is not found in {code.co_filename}: write the function"
            " in a file, in a notebook or in IPython"
        ) from None
    found = [node for node in _functions(module, code.co_firstlineno) if _has_code(node, code)]
    if not found:
        raise FormulaError(
            f"the source of {what}, {name}, must be that of the function; line {code.co_firstlineno} of"
            f" {code.co_filename} has another: the file has changed since it was imported"
        )
    return Source(function, found[0], lines, code.co_filename)


def _functions(module: ast.Module, line: int) -> Iterator[ast.FunctionDef | ast.Lambda]:
    """Functions and lambdas that begin on a line, where a decorator is the first line of its function."""
    for node in ast.walk(module):
        if isinstance(node, ast.FunctionDef | ast.Lambda):
            decorators = getattr(node, "decorator_list", [])
            if line in (node.lineno, *(decorator.lineno for decorator in decorators)):
                yield node


def _has_code(node: ast.FunctionDef | ast.Lambda, code: CodeType) -> bool:
    """True if a part of the tree is the source of compiled code: a line may have several lambdas."""
    arguments = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
    expected = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    if arguments != list(expected):
        return False
    if isinstance(node, ast.FunctionDef):
        return node.name == code.co_name
    if code.co_name != "<lambda>":
        return False
    outer = compile(ast.Expression(node), code.co_filename, "eval")
    mine = next(value for value in outer.co_consts if isinstance(value, CodeType))
    return _instructions(mine) == _instructions(code)


def _instructions(code: CodeType) -> list[tuple[str, str]]:
    """Contents of a lambda, the same whether or not its names are those of an enclosing function."""
    found = []
    for instruction in dis.get_instructions(code):
        op, argument = instruction.opname, instruction.argrepr.removeprefix("NULL + ").removesuffix(" + NULL")
        if op in _PREPARATIONS:
            continue
        found.append(("LOAD" if op in _LOADS else op, argument))
    return found


_PREPARATIONS = ("RESUME", "CACHE", "COPY_FREE_VARS", "PUSH_NULL", "PRECALL", "NOP")
_LOADS = ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_DEREF", "LOAD_CLASSDEREF", "LOAD_FROM_DICT_OR_DEREF")
