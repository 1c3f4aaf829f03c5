"""From the syntax tree of a Python function to the graph of a formula.

The function is walked through once, with nodes for its arguments. Branches on them become selections, of which both
sides are computed; loops over `range` of known numbers are unrolled; calls of other Python functions are walked through
in their place. What is known when the formula is defined, such as global constants and variables of an enclosing
function, is a number of the formula: it does not follow later changes.
"""

from __future__ import annotations

import ast
import builtins
from collections.abc import Callable, Mapping, Sequence
from types import FunctionType, ModuleType
from typing import Any

import numpy as np

from . import library
from .nodes import CAST, Graph, Node, TooLarge, Value
from .source import FormulaError, Source, source_of

DEPTH = 20  # of calls of functions in functions
MOST_TURNS = 256  # of a loop

_OPERATORS: dict[type, str] = {ast.Add: "add", ast.Sub: "sub", ast.Mult: "mul", ast.Div: "div"}
_COMPARISONS: dict[type, str] = {
    ast.Lt: "lt", ast.LtE: "le", ast.Gt: "gt", ast.GtE: "ge", ast.Eq: "eq", ast.NotEq: "ne",
}  # fmt: skip
_HINTS: dict[type, str] = {
    ast.While: "a formula has no while: use for over range(n) with a known n",
    ast.FloorDiv: "a formula has no //",
    ast.Mod: "a formula has no %",
    ast.Assert: "a formula has no assert",
    ast.Raise: "a formula raises nothing",
    ast.Global: "a formula changes nothing outside",
}

Env = dict[str, Any]


class _NoReturn:
    """The end of a function without `return`."""


_NO_RETURN = _NoReturn()


def read(
    source: Source, graph: Graph, arguments: Mapping[str, Value], optional: Mapping[str, Value] | None = None
) -> Value:
    """The value of a function of these arguments, the others by their defaults.

    arguments: by their names in error messages; they are given by position.
    optional: by the names of parameters; those that the function does not have are left out.

    Raises FormulaError if the function is no formula; the message quotes the line.
    """
    code, first = source.function.__code__, len(arguments)
    taken = code.co_varnames[first : code.co_argcount + code.co_kwonlyargcount]
    keywords = {name: value for name, value in (optional or {}).items() if name in taken}
    names = [*arguments, *(optional or {})]
    try:
        return _Reader(graph, source, 0).call(list(arguments.values()), keywords, None, names)
    except TooLarge:
        raise source.error("a formula must be smaller: this one has thousands of operations") from None


class _Reader:
    """A walk through one function."""

    def __init__(self, graph: Graph, source: Source, depth: int) -> None:
        self.graph, self.source, self.depth = graph, source, depth
        code, function = source.function.__code__, source.function
        cells = zip(code.co_freevars, function.__closure__ or (), strict=True)
        self.enclosing = dict(cells)

    # -- the function as a whole

    def call(
        self, values: list[Value], keywords: dict[str, Value], caller: Callable[[str], FormulaError] | None,
        names: Sequence[str] = (),
    ) -> Value:  # fmt: skip
        tree = self.source.tree
        error = caller or self.source.error
        if tree.args.vararg or tree.args.kwarg:
            raise self.source.error("a formula has no *arguments and no **keywords")
        env = self._bound(values, keywords, error, names)
        if isinstance(tree, ast.Lambda):
            return self.value(tree.body, env)
        result = self.block(tree.body, env)
        if result is _NO_RETURN:
            raise self.source.error("a formula must return a value on every way through it")
        return result

    def _bound(
        self, values: list[Value], keywords: dict[str, Value], error: Callable[[str], FormulaError],
        names: Sequence[str],
    ) -> Env:  # fmt: skip
        """Values by the names of the function's parameters."""
        function, arguments = self.source.function, self.source.tree.args
        positional = [a.arg for a in (*arguments.posonlyargs, *arguments.args)]
        every = [*positional, *(a.arg for a in arguments.kwonlyargs)]
        defaults = dict(zip(reversed(positional), reversed(function.__defaults__ or ()), strict=False))
        defaults |= function.__kwdefaults__ or {}
        unknown = [name for name in keywords if name not in every or name in positional[: len(values)]]
        given = dict(zip(positional, values, strict=False)) | keywords
        lacking = [name for name in every if name not in given and name not in defaults]
        if len(values) > len(positional) or unknown or lacking:
            expected = f"({', '.join(names)})" if names else f"{len(values) + len(keywords)} arguments"
            raise error(f"{function.__name__}({', '.join(every)}) must take {expected}")
        return {name: given[name] if name in given else defaults[name] for name in every}

    # -- statements

    def block(self, statements: Sequence[ast.stmt], env: Env) -> Value:
        """The value that statements return, or _NO_RETURN, with what they assign in `env`."""
        for i, statement in enumerate(statements):
            if isinstance(statement, ast.Return):
                if statement.value is None:
                    raise self.error("a formula must return a value", statement)
                return self.value(statement.value, env)
            if isinstance(statement, ast.If):
                condition = self.condition(statement.test, env)
                rest = statements[i + 1 :]
                if not isinstance(condition, Node):
                    return self.block([*(statement.body if condition else statement.orelse), *rest], env)
                if any(isinstance(node, ast.Return) for node in ast.walk(statement)):
                    return self._either(condition, statement, rest, env)
                self._merge(condition, statement, env)
            elif isinstance(statement, ast.For):
                return self.block([*self._turns(statement, env), *statements[i + 1 :]], env)
            else:
                self._simple(statement, env)
        return _NO_RETURN

    def _either(self, condition: Node, statement: ast.If, rest: Sequence[ast.stmt], env: Env) -> Value:
        """Two ways to the end, of which at least one returns inside the branch."""
        values = [self.block([*branch, *rest], dict(env)) for branch in (statement.body, statement.orelse)]
        if _NO_RETURN in values:
            raise self.error("a formula must return a value on every way through it", statement)
        return self._select(condition, values[0], values[1], statement)

    def _merge(self, condition: Node, statement: ast.If, env: Env) -> None:
        """Assign what either branch has assigned; a name that only one of them knows is unknown afterwards."""
        envs = [dict(env), dict(env)]
        for branch, own in zip((statement.body, statement.orelse), envs, strict=True):
            self.block(branch, own)
        env.clear()
        for name in [name for name in envs[0] if name in envs[1]]:
            env[name] = self._select(condition, envs[0][name], envs[1][name], statement)

    def _turns(self, statement: ast.For, env: Env) -> list[ast.stmt]:
        """The statements of all turns of a loop."""
        call = statement.iter
        known = isinstance(call, ast.Call) and self.value(call.func, env) is range and not call.keywords
        if not known or statement.orelse:
            raise self.error("a loop of a formula must be over range(n) with a known n, without else", statement)
        assert isinstance(call, ast.Call)
        bounds: list[Any] = [self.value(argument, env) for argument in call.args]
        if not all(isinstance(bound, int) for bound in bounds):
            raise self.error("the range of a loop must be known whole numbers", call)
        if any(isinstance(node, ast.Break | ast.Continue) for node in ast.walk(statement)):
            raise self.error("a loop of a formula has no break and no continue", statement)
        numbers = range(*bounds)
        if len(numbers) > MOST_TURNS:
            raise self.error(f"a loop of a formula has at most {MOST_TURNS} turns; got {len(numbers)}", call)
        turns: list[ast.stmt] = []
        for number in numbers:
            value = ast.copy_location(ast.Constant(number), statement.target)
            turns += [ast.copy_location(ast.Assign([statement.target], value), statement), *statement.body]
        return turns

    def _simple(self, statement: ast.stmt, env: Env) -> None:
        if isinstance(statement, ast.Assign):
            value = self.value(statement.value, env)
            for target in statement.targets:
                self._assign(target, value, env)
        elif isinstance(statement, ast.AnnAssign) and statement.value is not None:
            self._assign(statement.target, self.value(statement.value, env), env)
        elif isinstance(statement, ast.AugAssign) and isinstance(statement.target, ast.Name):
            before = self.value(ast.copy_location(ast.Name(statement.target.id, ast.Load()), statement.target), env)
            self._assign(statement.target, self._operation(statement, statement.op, before, statement.value, env), env)
        elif isinstance(statement, ast.Pass) or _is_docstring(statement):
            pass
        else:
            kind = type(statement).__name__
            raise self.error(_HINTS.get(type(statement), f"a formula has no such statement ({kind})"), statement)

    def _assign(self, target: ast.expr, value: Value, env: Env) -> None:
        if isinstance(target, ast.Name):
            env[target.id] = value
        elif isinstance(target, ast.Tuple | ast.List) and isinstance(value, tuple):
            if len(target.elts) != len(value):
                raise self.error(f"{len(value)} values must have as many names; got {len(target.elts)}", target)
            for one, part in zip(target.elts, value, strict=True):
                self._assign(one, part, env)
        else:
            raise self.error("a formula assigns values to names alone", target)

    # -- expressions

    def value(self, node: ast.expr, env: Env) -> Value:
        method = getattr(self, f"_{type(node).__name__.lower()}", None)
        if method is None:
            raise self.error(f"a formula has no such expression ({type(node).__name__})", node)
        return method(node, env)

    def number(self, node: ast.expr, env: Env) -> Value:
        """The value of an expression that must be a number."""
        value = self.value(node, env)
        if not isinstance(value, Node | int | float):
            raise self.error(f"this must be a number; got {_words(value)}", node)
        return value

    def condition(self, node: ast.expr, env: Env) -> Value:
        """True, False or a flag."""
        value = self.number(node, env)
        return self.graph.flag(value) if isinstance(value, Node) else bool(value)

    def _constant(self, node: ast.Constant, env: Env) -> Value:
        if node.value is None or isinstance(node.value, bool | int | float):
            return node.value
        raise self.error(f"a formula is of numbers; got {node.value!r}", node)

    def _name(self, node: ast.Name, env: Env) -> Value:
        name = node.id
        if name in env:
            return env[name]
        function = self.source.function
        if name in self.enclosing:
            try:
                found = self.enclosing[name].cell_contents
            except ValueError:
                raise self.error(f"{name} has no value yet", node) from None
        elif name in function.__code__.co_varnames:
            raise self.error(f"{name} has no value on some way to this line", node)
        elif name in function.__globals__:
            found = function.__globals__[name]
        elif hasattr(builtins, name):
            found = getattr(builtins, name)
        else:
            raise self.error(f"{name} is not defined", node)
        return self._known(found, node)

    def _known(self, found: Any, node: ast.expr) -> Value:
        """A value from outside of the formula."""
        if isinstance(found, np.generic | np.ndarray) and found.ndim == 0 and found.dtype.kind in "biuf":
            found = found.item()
        if found is None or isinstance(found, bool | int | float | tuple | ModuleType):
            return found
        if callable(found):
            return found
        raise self.error(f"a formula is of numbers; {ast.unparse(node)} is {_words(found)}", node)

    def _attribute(self, node: ast.Attribute, env: Env) -> Value:
        owner = self.value(node.value, env)
        if isinstance(owner, ModuleType) and hasattr(owner, node.attr):
            return self._known(getattr(owner, node.attr), node)
        raise self.error(f"{_words(owner)} has no {node.attr} for a formula", node)

    def _tuple(self, node: ast.Tuple | ast.List, env: Env) -> Value:
        return tuple(self.value(part, env) for part in node.elts)

    _list = _tuple

    def _subscript(self, node: ast.Subscript, env: Env) -> Value:
        values = self.value(node.value, env)
        if not isinstance(values, tuple):
            raise self.error(f"only a tuple has elements; got {_words(values)}", node)
        if isinstance(node.slice, ast.Slice):
            ends = (node.slice.lower, node.slice.upper, node.slice.step)
            bounds: list[Any] = [None if end is None else self.value(end, env) for end in ends]
            if all(bound is None or isinstance(bound, int) for bound in bounds):
                return values[slice(*bounds)]
        else:
            index = self.value(node.slice, env)
            if isinstance(index, int) and -len(values) <= index < len(values):
                return values[index]
        raise self.error(f"the index must be a known one of {len(values)} elements", node)

    def _unaryop(self, node: ast.UnaryOp, env: Env) -> Value:
        if isinstance(node.op, ast.Not):
            return self.graph.invert(self.condition(node.operand, env))
        value = self.number(node.operand, env)
        if isinstance(node.op, ast.Invert):
            return self.graph.invert(value)
        return self.graph.negative(value) if isinstance(node.op, ast.USub) else value

    def _binop(self, node: ast.BinOp, env: Env) -> Value:
        return self._operation(node, node.op, self.value(node.left, env), node.right, env)

    def _operation(self, node: ast.AST, op: ast.operator, left: Value, right_node: ast.expr, env: Env) -> Value:
        right = self.value(right_node, env)
        if isinstance(op, ast.Add) and isinstance(left, tuple) and isinstance(right, tuple):
            return left + right
        for value in (left, right):
            if not isinstance(value, Node | int | float):
                raise self.error(f"arithmetic is of numbers; got {_words(value)}", node)
        if isinstance(op, ast.BitAnd | ast.BitOr):
            return self.graph.both("and" if isinstance(op, ast.BitAnd) else "or", left, right)
        try:
            if isinstance(op, ast.Pow):
                return self._real(self.graph.power(left, right), node)
            if type(op) in _OPERATORS:
                return self.graph.arithmetic(_OPERATORS[type(op)], left, right)
        except (ArithmeticError, ValueError) as error:
            raise self.error(f"these numbers have no such value: {error}", node) from None
        raise self.error(_HINTS.get(type(op), f"a formula has no operator {type(op).__name__}"), node)

    def _real(self, value: Value, node: ast.AST) -> Value:
        if isinstance(value, complex):
            raise self.error("a formula is of real numbers", node)
        return value

    def _compare(self, node: ast.Compare, env: Env) -> Value:
        result: Value = True
        left = self.number(node.left, env)
        for op, right_node in zip(node.ops, node.comparators, strict=True):
            right = self.number(right_node, env)
            if type(op) not in _COMPARISONS:
                raise self.error(f"a formula has no comparison {type(op).__name__}", node)
            result = self.graph.both("and", result, self.graph.compare(_COMPARISONS[type(op)], left, right))
            left = right
        return result

    def _boolop(self, node: ast.BoolOp, env: Env) -> Value:
        op = "and" if isinstance(node.op, ast.And) else "or"
        result: Value = op == "and"
        for part in node.values:
            result = self.graph.both(op, result, self.condition(part, env))
        return result

    def _ifexp(self, node: ast.IfExp, env: Env) -> Value:
        condition = self.condition(node.test, env)
        if not isinstance(condition, Node):
            return self.value(node.body if condition else node.orelse, env)
        return self._select(condition, self.value(node.body, env), self.value(node.orelse, env), node)

    def _select(self, condition: Node, a: Value, b: Value, node: ast.AST) -> Value:
        try:
            return self.graph.select(condition, a, b)
        except TypeError:
            raise self.error(f"both branches must give numbers; got {_words(a)} and {_words(b)}", node) from None

    # -- calls

    def _call(self, node: ast.Call, env: Env) -> Value:
        function = self.value(node.func, env)
        starred = [argument for argument in node.args if isinstance(argument, ast.Starred)]
        if starred or any(keyword.arg is None for keyword in node.keywords):
            raise self.error("a call in a formula has no * and no **", node)
        values = [self.value(argument, env) for argument in node.args]
        keywords = {k.arg: self.value(k.value, env) for k in node.keywords if k.arg}
        if function is type:
            return CAST
        if function is CAST:
            return self._cast(node, values)
        try:
            known = function in library.KNOWN
        except TypeError:
            known = False
        if known and not keywords:
            return self._library(node, function, values)
        function = getattr(function, "py_func", function)
        if isinstance(function, FunctionType):
            return self._inlined(node, function, values, keywords)
        raise self.error(self._unknown_call(function, node), node)

    def _cast(self, node: ast.Call, values: list[Value]) -> Value:
        """T(0.5): a literal that is a number of type T from here on."""
        if len(values) != 1 or not isinstance(values[0], Node | int | float):
            raise self.error("a type is called with one number", node)
        return self.graph.number(values[0])

    def _library(self, node: ast.Call, function: Any, values: list[Value]) -> Value:
        if not all(value is None or isinstance(value, Node | int | float) for value in values):
            raise self.error(f"{function.__name__} takes numbers; got {', '.join(map(_words, values))}", node)
        try:
            return library.lower(self.graph, function, tuple(values))
        except (TypeError, AssertionError):
            raise self.error(f"{function.__name__} does not take {len(values)} such arguments", node) from None

    def _inlined(self, node: ast.Call, function: FunctionType, values: list[Value], keywords: Env) -> Value:
        if self.depth >= DEPTH:
            raise self.error(f"functions of a formula call each other to a depth of at most {DEPTH}", node)
        try:
            source = source_of("it", function)
        except FormulaError as error:
            raise self.error(f"{function.__name__} cannot be part of a formula: {error}", node) from None
        return _Reader(self.graph, source, self.depth + 1).call(
            values, keywords, lambda message: self.error(message, node)
        )

    def _unknown_call(self, function: Any, node: ast.Call) -> str:
        name = ast.unparse(node.func)
        if function in (float, int, bool) or (isinstance(function, type) and issubclass(function, np.generic)):
            return f"{name} fixes a type, and a formula is compiled for each dtype: leave it out"
        return f"{name} is not for formulas; they know {', '.join(library.NAMES)}, and Python functions of these"

    def error(self, message: str, node: ast.AST) -> FormulaError:
        return self.source.error(message, node)


def _is_docstring(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def _words(value: Any) -> str:
    """A value in an error message."""
    if isinstance(value, Node):
        return "a number"
    if isinstance(value, tuple):
        return f"a tuple of {len(value)}"
    if value is None or isinstance(value, int | float):
        return repr(value)
    return getattr(value, "__name__", f"a {type(value).__name__}")


