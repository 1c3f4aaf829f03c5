"""Formulas as the text of functions: those of an element, such as activations and losses, and updates of parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from ..formulas import NUM_SCALARS
from ..formulas.optimizers.common import COMMON
from . import writing
from .nodes import FLAG, Graph, Node, reachable
from .reading import read
from .source import Source

MOST_SCALARS = NUM_SCALARS - COMMON  # of a rule's own


# ---------------------------------------------------------------- elements
@dataclass
class ElementText:
    """The lines of a formula of elements."""

    arguments: str
    names: dict[str, str] = field(default_factory=dict)
    scalar: list[str] = field(default_factory=list)
    arrays: list[str] = field(default_factory=list)

    def scalar_function(self, name: str) -> Callable[..., Any]:
        first = self.arguments.partition(",")[0]
        return writing.function(name, self.arguments, [f"T = type({first})", *self.scalar], writing.SCALAR.names)

    def array_function(self, name: str, names: Mapping[str, Any]) -> Callable[..., Any]:
        first = self.arguments.partition(",")[0]
        return writing.function(name, self.arguments, [f"T = {first}.dtype.type", *self.arrays], names)


def element_text(
    source: Source, elements: Mapping[str, str], options: Mapping[str, str], more: str = "",
    constants: Mapping[str, float] = MappingProxyType({}),
) -> ElementText:  # fmt: skip
    """A formula that gives one number. elements, options: names in the text, by those in messages or of parameters.

    more: arguments of the text that the formula has not. constants: parameters whose values are known.
    """
    graph = Graph()
    nodes = {name: graph.argument(written) for name, written in {**elements, **options}.items()}
    result = read(source, graph, {n: nodes[n] for n in elements}, {n: nodes[n] for n in options} | dict(constants))
    if not isinstance(result, Node | int | float):
        raise source.error(f"it must return one number; got {type(result).__name__}")
    given = {id(nodes[name]): written for name, written in {**elements, **options}.items()}
    text = ElementText(", ".join(dict.fromkeys([*elements.values(), *options.values(), *([more] if more else [])])))
    for form, into in ((writing.SCALAR, text.scalar), (writing.ARRAYS, text.arrays)):
        body, (last,) = writing.lines(form, [graph.number(result)], given)
        into += [*body, f"return {last}"]
    return text


# ---------------------------------------------------------------- updates
class UpdateText:
    """The texts of a rule: of an element, of arrays, and of the numbers that the host computes."""

    def __init__(self, source: Source, states: Sequence[str], options: Sequence[str]) -> None:
        graph = Graph()
        p, g, tiny = graph.argument("p"), graph.argument("g"), graph.argument("tiny")
        s = tuple(graph.argument(f"s{i}") for i in range(len(states)))
        host = {name: graph.argument(name, is_varying=False) for name in ("lr", "step", *options)}
        optional = {**host, "t": host["step"], "tiny": tiny}
        result = read(source, graph, {"p": p, "g": g, "s": s}, optional)
        self.keeps_denormals_out = tiny in reachable(_flat(result))
        results = [graph.number(value) for value in _results(source, result, len(states))]
        slots = _slots(results, host["lr"])
        if len(slots) > MOST_SCALARS:
            words = {id(node): name for name, node in host.items()}
            text = writing.lines(writing.HOST, slots, words)[0]
            raise source.error(
                f"an update must take at most {MOST_SCALARS} numbers that are the same for all elements; got"
                f" {len(slots)}, which are made by: {'; '.join(text)}. Bring some of them together before they meet an"
                " element"
            )
        depends = [reachable((slot,)) for slot in slots]
        self.changing = [any(node in (host["lr"], host["step"]) for node in nodes) for nodes in depends]
        # The text has its own names of options, which users may call as they like.
        self.host_arguments = ", ".join(["step", "lr", *(f"o{i}" for i in range(len(options)))])
        known = [host[name] for name in ("step", "lr", *options)]
        self.host = self._host(slots, dict(zip(known, self.host_arguments.split(", "), strict=True)))
        given = {id(p): "p", id(g): "g", id(tiny): "tiny"} | {id(node): f"s{i}" for i, node in enumerate(s)}
        given |= {id(slot): _slot_name(slot, i) for i, slot in enumerate(slots)}
        unpack = [f"s{i} = s[{i}]" for i in range(len(states))]
        unpack += [f"h{i} = h[{i + COMMON}]" for i in range(len(slots))]
        arrays = [f"h{i} = h[{i}]" for i in range(len(slots))]
        self.scalar = ["T = type(p)", "p, g = preprocess_gradient(p, g, h)", *unpack]
        self.arrays = ["T = p.dtype.type", *unpack[: len(states)], *arrays]
        self._finish(self.scalar, writing.SCALAR, results, given, "flush({}, tiny)")
        self._finish(self.arrays, writing.ARRAYS, results, given, "where(abs({0}) < tiny, T(0), {0})")

    def _finish(self, text: list[str], form: Any, results: list[Node], given: Mapping[int, str], flush: str) -> None:
        body, (p, *states) = writing.lines(form, results, given)
        kept = states if self.keeps_denormals_out else [flush.format(state) for state in states]
        text += [*body, f"return {p}, ({', '.join(kept)}{',' * (len(kept) == 1)})"]

    def _host(self, slots: Sequence[Node], names_of: Mapping[Node, str]) -> list[str]:
        """The slots as numbers: those that are flags as 1 and 0."""
        body, names = writing.lines(writing.HOST, slots, {id(node): name for node, name in names_of.items()})
        return [*body, f"return ({', '.join(f'float({name})' for name in names)},)"]


def _slot_name(slot: Node, i: int) -> str:
    return f"(h{i} != T(0))" if slot.kind == FLAG else f"h{i}"


def _flat(value: Any) -> tuple[Node, ...]:
    if isinstance(value, tuple):
        return tuple(node for part in value for node in _flat(part))
    return (value,) if isinstance(value, Node) else ()


def _results(source: Source, value: Any, num_states: int) -> list[Any]:
    """The new parameter and the new states; a single state may come without a tuple, and none without its place."""
    if not num_states and not isinstance(value, tuple):
        value = value, ()
    if isinstance(value, tuple) and len(value) == 2:
        p, states = value
        states = states if isinstance(states, tuple) else (states,)
        if len(states) == num_states and all(isinstance(v, Node | int | float) for v in (p, *states)):
            return [p, *states]
    raise source.error(f"an update must return p and a tuple of {num_states} state(s)")


def _slots(results: Sequence[Node], lr: Node) -> list[Node]:
    """Numbers that the host computes and elements meet: the learning rate, and then the others in their order."""
    slots = {id(lr): lr}
    for node in reachable(tuple(results)):
        if node.is_varying:
            for other in node.inputs:
                if not other.is_varying and other.op != "constant":
                    slots.setdefault(id(other), other)
    for node in results:
        if not node.is_varying and node.op != "constant":
            slots.setdefault(id(node), node)
    return list(slots.values())
