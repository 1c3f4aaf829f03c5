"""The graph of a formula: operations on numbers of one type, each of which occurs once."""

from __future__ import annotations

import math
from collections.abc import Container
from dataclasses import dataclass, field

NUMBER, FLAG = "number", "flag"
MOST_NODES = 2_000  # of a formula; a loop that is unrolled, or branches of branches, could have any number


@dataclass(frozen=True, eq=False)
class Node:
    """An operation on others. Equal ones are the same object.

    op         "argument", "constant", or one of writing.OPERATIONS
    value      name of an argument, or value of a constant
    is_varying True if it differs from element to element; False if it depends on options and the step alone
    """

    op: str
    inputs: tuple[Node, ...] = ()
    kind: str = NUMBER
    value: str | float | None = None
    is_varying: bool = False
    number: int = 0  # in the order of their making


Number = int | float | bool
Value = object  # a Node, a Python number, a tuple of values, a function, a module, or CAST


class _Cast:
    """The type T of all numbers, as type(z) gives it."""


CAST = _Cast()


class TooLarge(Exception):
    """A graph of more than MOST_NODES nodes."""


@dataclass
class Graph:
    """The nodes of one formula."""

    known: dict[tuple[object, ...], Node] = field(default_factory=dict)

    def node(self, op: str, *inputs: Node, kind: str = NUMBER, value: str | float | None = None) -> Node:
        """The node of an operation; an argument is varying where its op says so."""
        key = op, tuple(map(id, inputs)), repr(value)
        if key not in self.known:
            if len(self.known) >= MOST_NODES:
                raise TooLarge
            varying = op == "argument" or any(node.is_varying for node in inputs)
            made = Node("argument" if op == "option" else op, inputs, kind, value, varying, len(self.known))
            self.known[key] = made
        return self.known[key]

    def argument(self, name: str, is_varying: bool = True) -> Node:
        return self.node("argument" if is_varying else "option", value=name)

    def number(self, value: Value) -> Node:
        """A value as a number: a Python number becomes a constant of type T, a flag 1 or 0."""
        if isinstance(value, Node):
            return value if value.kind == NUMBER else self.select(value, 1.0, 0.0)  # type: ignore[return-value]
        assert isinstance(value, int | float)
        return self.node("constant", value=float(value))

    def flag(self, value: Value) -> Node:
        """A value that is no Python number as True or False: numbers are true where they are not 0."""
        assert isinstance(value, Node)
        return value if value.kind == FLAG else self.compare("ne", value, 0.0)  # type: ignore[return-value]

    # -- operations; those of Python numbers alone are done here and now

    def arithmetic(self, op: str, a: Value, b: Value) -> Value:
        """a op b for op of add, sub, mul and div; ZeroDivisionError for Python's numbers."""
        if not isinstance(a, Node) and not isinstance(b, Node):
            return _ARITHMETIC[op](a, b)
        return self.node(op, self.number(a), self.number(b))

    def negative(self, a: Value) -> Value:
        return self.node("neg", self.number(a)) if isinstance(a, Node) else -a  # type: ignore[operator]

    def compare(self, op: str, a: Value, b: Value) -> Value:
        if not isinstance(a, Node) and not isinstance(b, Node):
            return _COMPARISONS[op](a, b)
        return self.node(op, self.number(a), self.number(b), kind=FLAG)

    def both(self, op: str, a: Value, b: Value) -> Value:
        """a op b for op of and, or."""
        for one, other in ((a, b), (b, a)):
            if not isinstance(one, Node):
                return other if bool(one) == (op == "and") else op == "or"
        return self.node(op, self.flag(a), self.flag(b), kind=FLAG)

    def invert(self, a: Value) -> Value:
        return self.node("not", self.flag(a), kind=FLAG) if isinstance(a, Node) else not a

    def select(self, condition: Value, a: Value, b: Value) -> Value:
        """a where the condition is true, else b; of tuples, element by element."""
        if not isinstance(condition, Node):
            return a if condition else b
        if a is b:
            return a
        if isinstance(a, tuple) and isinstance(b, tuple) and len(a) == len(b):
            return tuple(self.select(condition, x, y) for x, y in zip(a, b, strict=True))
        if not all(isinstance(value, Node | int | float) for value in (a, b)):
            raise TypeError
        flags = [isinstance(v, bool) or (isinstance(v, Node) and v.kind == FLAG) for v in (a, b)]
        if all(flags):
            chosen = self.both("and", condition, a), self.both("and", self.invert(condition), b)
            return self.both("or", *chosen)
        x, y = self.number(a), self.number(b)
        return x if x is y else self.node("select", self.flag(condition), x, y)

    def call(self, name: str, *arguments: Value) -> Node:
        """A function of `formulas.functions`, or abs."""
        return self.node(name, *map(self.number, arguments))

    def power(self, a: Value, b: Value) -> Value:
        """a ** b. A small whole power of an element is made of products, as z * z; a half power is a root."""
        if not isinstance(a, Node) and not isinstance(b, Node):
            return a**b  # type: ignore[operator]
        base = self.number(a)
        if isinstance(b, Node) and b.op == "constant":
            b = float(b.value)  # type: ignore[arg-type]
        if not isinstance(b, Node) and base.is_varying:
            exponent = float(b)  # type: ignore[arg-type]
            if exponent.is_integer() and abs(exponent) <= 64:
                whole = self._whole_power(base, int(abs(exponent)))
                return whole if exponent >= 0 else self.arithmetic("div", 1.0, whole)
            if abs(exponent) == 0.5:
                root = self.call("sqrt", base)
                return root if exponent > 0 else self.arithmetic("div", 1.0, root)
        return self.call("power", base, b)

    def _whole_power(self, base: Node, exponent: int) -> Value:
        result: Value = 1.0
        square: Value = base
        while exponent:
            if exponent & 1:
                result = square if result == 1.0 else self.arithmetic("mul", result, square)
            exponent >>= 1
            if exponent:
                square = self.arithmetic("mul", square, square)
        return result


_ARITHMETIC = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
}
_COMPARISONS = {
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
}

INFINITY, NAN = math.inf, math.nan


def reachable(results: tuple[Node, ...], given: Container[int] = ()) -> list[Node]:
    """The nodes that results depend on, themselves included, in an order in which inputs come first.

    given: ids of nodes that are known, whose inputs are not asked for.
    """
    order: dict[int, Node] = {}
    todo = list(reversed(results))
    while todo:
        node = todo[-1]
        inputs = () if id(node) in given else node.inputs
        lacking = [other for other in reversed(inputs) if id(other) not in order]
        if not lacking:
            order[id(node)] = node
            todo.pop()
        else:
            todo += lacking
    return list(order.values())
