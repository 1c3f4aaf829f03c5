"""Functions that a formula may call: Python's, those of `math` and NumPy, and those of `formulas.functions`.

Each is given as operations of the graph. exp, log, tanh, erf, expm1, log1p, sinh, cosh and what is made of them become
vector code; sin, cos, tan, arctan and a power of any exponent are the C library's, one number at a time.
"""

from __future__ import annotations

import builtins
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ..formulas import functions
from .nodes import INFINITY, NAN, Graph, Node, Value

Lowering = Callable[..., Value]

LOG2, LOG10 = math.log(2.0), math.log(10.0)


def _is_above(g: Graph, x: Value, bound: float) -> Value:
    return g.compare("gt", x, bound)


def _exp(g: Graph, x: Value) -> Value:
    return g.call("exp", x)


def _log(g: Graph, x: Value) -> Value:
    """Logarithm of any number; `functions.log` is for those above 0 that are finite."""
    inside = g.both("and", _is_above(g, x, 0.0), g.compare("lt", x, INFINITY))
    ends = g.select(g.compare("eq", x, 0.0), -INFINITY, g.select(_is_above(g, x, 0.0), INFINITY, NAN))
    return g.select(inside, g.call("log", g.select(inside, x, 1.0)), ends)


def _expm1(g: Graph, x: Value) -> Value:
    """exp(x) - 1; `functions.expm1` is for numbers of 0 and less, and above 1 the difference loses no digits."""
    small = g.compare("lt", x, 1.0)
    return g.select(small, g.call("expm1", g.select(small, x, 1.0)), g.arithmetic("sub", g.call("exp", x), 1.0))


def _log1p(g: Graph, x: Value) -> Value:
    """log(u) x / (u - 1) with u = 1 + x as it is rounded (Kahan; HP-15C Advanced Functions Handbook 1982)."""
    u = g.arithmetic("add", 1.0, x)
    rest = g.arithmetic("sub", u, 1.0)
    value = g.arithmetic("mul", _log(g, u), g.arithmetic("div", x, rest))
    value = g.select(g.compare("eq", rest, 0.0), x, value)
    return g.select(g.compare("lt", u, INFINITY), value, u)


def _sinh(g: Graph, x: Value) -> Value:
    a = g.call("abs", x)
    e = _expm1(g, a)
    value = g.arithmetic("mul", 0.5, g.arithmetic("add", e, g.arithmetic("div", e, g.arithmetic("add", e, 1.0))))
    value = g.select(g.compare("lt", a, INFINITY), value, a)
    return g.select(g.compare("lt", x, 0.0), g.negative(value), value)


def _cosh(g: Graph, x: Value) -> Value:
    e = g.call("exp", g.call("abs", x))
    return g.arithmetic("mul", 0.5, g.arithmetic("add", e, g.arithmetic("div", 1.0, e)))


def _minimum(g: Graph, *values: Value) -> Value:
    """Python's min: the first of equal ones."""
    least = values[0]
    for value in values[1:]:
        least = g.select(g.compare("lt", value, least), value, least)
    return least


def _maximum(g: Graph, *values: Value) -> Value:
    most = values[0]
    for value in values[1:]:
        most = g.select(g.compare("gt", value, most), value, most)
    return most


def _with_nan(choose: Callable[[Graph, Value, Value], Value]) -> Lowering:
    """NumPy's minimum and maximum: NaN of NaN."""

    def chosen(g: Graph, a: Value, b: Value) -> Value:
        return g.select(g.compare("ne", a, a), a, g.select(g.compare("ne", b, b), b, choose(g, a, b)))

    return chosen


def _clip(g: Graph, x: Value, low: Value, high: Value) -> Value:
    x = x if low is None else g.select(g.compare("lt", x, low), low, x)
    return x if high is None else g.select(g.compare("gt", x, high), high, x)


def _sign(g: Graph, x: Value) -> Value:
    """-1, 0 or 1; NaN of NaN."""
    return g.select(_is_above(g, x, 0.0), 1.0, g.select(g.compare("lt", x, 0.0), -1.0, x))


def _tan(g: Graph, x: Value) -> Value:
    return g.arithmetic("div", g.call("sin", x), g.call("cos", x))


def _logaddexp(g: Graph, a: Value, b: Value) -> Value:
    """max(a, b) + log(1 + exp(-|a - b|)), and infinity of infinities."""
    distance = g.call("abs", g.arithmetic("sub", a, b))
    most = _maximum(g, a, b)
    value = g.arithmetic("add", most, g.call("log1pexp", g.negative(distance)))
    return g.select(g.compare("eq", a, b), g.arithmetic("add", a, LOG2), value)


def _is_infinite(g: Graph, x: Value) -> Value:
    return g.compare("eq", g.call("abs", x), INFINITY)


def _is_finite(g: Graph, x: Value) -> Value:
    return g.compare("lt", g.call("abs", x), INFINITY)


def _simple(name: str) -> Lowering:
    return lambda g, x: g.call(name, x)


def _boolean(op: str) -> Lowering:
    return lambda g, a, b: g.both(op, a, b)


# By name, what each does; the last three are for flags.
_LOWERINGS: dict[str, Lowering] = {
    "abs": _simple("abs"),
    "exp": _exp,
    "exp2": lambda g, x: _exp(g, g.arithmetic("mul", x, LOG2)),
    "log": _log,
    "log2": lambda g, x: g.arithmetic("mul", _log(g, x), 1.0 / LOG2),
    "log10": lambda g, x: g.arithmetic("mul", _log(g, x), 1.0 / LOG10),
    "expm1": _expm1,
    "log1p": _log1p,
    "log1pexp": _simple("log1pexp"),
    "logaddexp": _logaddexp,
    "sqrt": _simple("sqrt"),
    "square": lambda g, x: g.arithmetic("mul", x, x),
    "pow": lambda g, a, b: g.power(a, b),
    "tanh": _simple("tanh"),
    "sinh": _sinh,
    "cosh": _cosh,
    "erf": _simple("erf"),
    "sin": _simple("sin"),
    "cos": _simple("cos"),
    "tan": _tan,
    "arctan": _simple("arctan"),
    "sign": _sign,
    "min": _minimum,
    "max": _maximum,
    "minimum": _with_nan(_minimum),
    "maximum": _with_nan(_maximum),
    "clip": _clip,
    "where": lambda g, condition, a, b: g.select(condition, a, b),
    "isnan": lambda g, x: g.compare("ne", x, x),
    "isinf": _is_infinite,
    "isfinite": _is_finite,
    "logical_and": _boolean("and"),
    "logical_or": _boolean("or"),
    "logical_not": lambda g, x: g.invert(x),
}
_OTHER_NAMES = {"fabs": "abs", "absolute": "abs", "atan": "arctan", "power": "pow"}
# Python's own round to whole numbers or are for collections; of formulas.functions expm1 and log are for some numbers.
_MODULES: tuple[Any, ...] = (math, np)

KNOWN: dict[Any, Lowering] = {getattr(builtins, name): _LOWERINGS[name] for name in ("abs", "min", "max", "pow")}
for _name, _lowering in [*_LOWERINGS.items(), *((a, _LOWERINGS[b]) for a, b in _OTHER_NAMES.items())]:
    for _module in _MODULES:
        if hasattr(_module, _name):
            KNOWN[getattr(_module, _name)] = _lowering
for _name in ("exp", "expm1", "log1pexp", "log", "tanh", "erf", "sqrt"):
    KNOWN[getattr(functions, _name)] = _simple(_name)

NAMES = sorted({*_LOWERINGS, *_OTHER_NAMES} - {"log1pexp"})


def fold(function: Any, arguments: tuple[Any, ...]) -> float | None:
    """The value of a function of Python numbers alone, in float64; None if it has none."""
    try:
        value = function(*arguments)
    except (ArithmeticError, ValueError, TypeError):
        return None
    return value if isinstance(value, bool) else float(value)


def lower(g: Graph, function: Any, arguments: tuple[Value, ...]) -> Value:
    """A call of one of KNOWN; TypeError for arguments that it does not take."""
    if not any(isinstance(argument, Node) for argument in arguments):
        value = fold(function, arguments)
        if value is not None:
            return value
    return KNOWN[function](g, *arguments)
