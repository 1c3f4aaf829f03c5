"""From the graph of a formula to functions: of an element, for compilers, of NumPy's arrays, and of the host's numbers.

Every operation is a line of its own, in the order of the graph, so that all of them calculate alike. The scalar text
is the formula's whole meaning, and its digest the name of the function.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ..formulas import functions
from .nodes import Node, reachable

ARITHMETIC = {"add": "+", "sub": "-", "mul": "*", "div": "/"}
COMPARISONS = {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!="}
CALLS = ("exp", "expm1", "log1pexp", "log", "sqrt", "power", "tanh", "erf", "sin", "cos", "arctan")
OPERATIONS = (*ARITHMETIC, *COMPARISONS, *CALLS, "neg", "abs", "and", "or", "not", "select")

Names = Mapping[int, str]  # of nodes, by their ids

MODULE = f"{__name__.partition('.')[0]}.formula"  # of what is written


class _Scalar:
    """Text for one element: compiled by Numba and numba-cuda, run by Python in interpreted mode."""

    names: Mapping[str, Any] = {name: getattr(functions, name) for name in CALLS} | {"inf": math.inf, "nan": math.nan}

    def constant(self, value: float) -> str:
        return f"T({value!r})"

    def select(self, condition: str, a: str, b: str) -> str:
        return f"{a} if {condition} else {b}"

    def call(self, op: str, arguments: Sequence[str]) -> str:
        return f"abs({arguments[0]})" if op == "abs" else f"T({op}({', '.join(arguments)}))"

    def both(self, op: str, a: str, b: str) -> str:
        return f"{a} {'&' if op == 'and' else '|'} {b}"

    def invert(self, a: str) -> str:
        return f"not {a}"


class _Arrays(_Scalar):
    """Text for arrays of one dtype; T is its scalar type."""

    # NumPy has no erf: that is given with the others where functions are made.
    names: Mapping[str, Any] = {name: getattr(np, name) for name in CALLS if hasattr(np, name)} | {
        "log1pexp": lambda x: np.log1p(np.exp(x)),
        "inf": math.inf,
        "nan": math.nan,
        "where": np.where,
        "invert": np.logical_not,
    }

    def select(self, condition: str, a: str, b: str) -> str:
        return f"where({condition}, {a}, {b})"

    def call(self, op: str, arguments: Sequence[str]) -> str:
        return f"{op}({', '.join(arguments)})"

    def invert(self, a: str) -> str:
        return f"invert({a})"


class _Host(_Scalar):
    """Text for float64 numbers of Python; what is no number is infinity or NaN, as in kernels."""

    names: Mapping[str, Any] = {**_Scalar.names, "T": float, "quotient": lambda a, b: _quotient(a, b)}


def _quotient(a: float, b: float) -> float:
    try:
        return a / b
    except ZeroDivisionError:
        return math.nan if a == 0 or a != a else math.copysign(math.inf, a) * math.copysign(1.0, b)


SCALAR, ARRAYS, HOST = _Scalar(), _Arrays(), _Host()


def lines(form: _Scalar, results: Sequence[Node], given: Mapping[int, str]) -> tuple[list[str], list[str]]:
    """A line for each operation that results need, and the results' names. given: names of nodes that are known."""
    names, text = dict(given), list[str]()
    for node in reachable(tuple(results), given):
        if id(node) in names:
            continue
        if node.op == "constant":
            names[id(node)] = form.constant(float(node.value))  # type: ignore[arg-type]
            continue
        names[id(node)] = f"a{len(text)}"
        text.append(f"a{len(text)} = {_operation(form, node, [names[id(other)] for other in node.inputs])}")
    return text, [names[id(node)] for node in results]


def _operation(form: _Scalar, node: Node, inputs: list[str]) -> str:
    op = node.op
    if op == "div" and isinstance(form, _Host):
        return f"quotient({inputs[0]}, {inputs[1]})"
    if op in ARITHMETIC or op in COMPARISONS:
        return f"{inputs[0]} {(ARITHMETIC | COMPARISONS)[op]} {inputs[1]}"
    if op == "select":
        return form.select(*inputs)
    if op in ("and", "or"):
        return form.both(op, *inputs)
    if op == "not":
        return form.invert(*inputs)
    return f"-{inputs[0]}" if op == "neg" else form.call(op, inputs)


def digest(*texts: object) -> str:
    return hashlib.sha256(repr(texts).encode()).hexdigest()[:12]


def function(name: str, arguments: str, body: Sequence[str], names: Mapping[str, Any]) -> Callable[..., Any]:
    """A function of this text, which sees the given names alone."""
    text = "\n    ".join([f"def {name}({arguments}):", *body])
    scope: dict[str, Any] = {**names, "__name__": MODULE}
    exec(compile(text, f"<formula {name}>", "exec"), scope)  # of our own text: names and numbers are checked
    made: Callable[..., Any] = scope[name]
    made.__doc__ = text
    return made
