"""Docstrings of the optimizers' classes, made from their rows of CLASSES."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable

from ..kernels.formulas.optimizers import OPTIMIZERS, OPTIONS, OptimizerClass

_INDENT = " " * 4

_PARAMS = "arrays to update, NumPy's or others with `__dlpack__`, see the module; or None."
_SETTINGS = {
    "clip_value, clip_each, clip_norm": "bounds of gradients, of one kind at most, above 0; see the module.",
    "convention": "{}: whose formulas and defaults; see `fastopt.conventions`.",
    "master_weights, seed": "how arrays of 16 bits are updated; see the module.",
    "state_bits, state_rounding": "8: states as codes of 8 bits, rounded to nearest or stochastically; see the module.",
    "capturable": "steps may be captured into a CUDA graph; see the module.",
    "backend": '"cpu" for compiled kernels, "numpy" for the reference, or "cuda" for arrays of a GPU.',
}


def docstring(row: OptimizerClass) -> str:
    """The docstring of `fastopt.NAME`."""
    docs = {name: row.option(name).doc for name in (*row.arguments, *row.keywords)}
    docs |= {name: OPTIONS[name].doc for name in ("maximize", "l1")}
    conventions = [f'"{name}"' for name in row.conventions]
    settings = {name: doc.format(_enumerated(conventions)) for name, doc in _SETTINGS.items()}
    arguments = [f"{name}: {doc}" for name, doc in {"params": _PARAMS, **docs, **settings}.items()]
    defaults = [
        f"{name} ({convention.peer}): " + ", ".join(f"{key}={value!r}" for key, value in convention.defaults.items())
        for name, convention in row.conventions.items()
    ]
    given, (first, second) = row.example
    example = [
        ">>> import numpy as np, fastopt as fo",
        ">>> w = np.array([1.0, 2.0])",
        f'>>> fo.{row.name}(w, {given}, backend="numpy").step(np.array([3.0, -0.1]))',
        "True",
        ">>> w.round(3).tolist()",
        f"[{first}, {second}]",
    ]
    sections = [
        row.doc,
        _filled(f"Source: {_sources(row)}"),
        _filled(f"States: {', '.join(states_of(row))}."),
        _section("Args", (_filled(line, _INDENT * 2, _INDENT * 3) for line in arguments)),
        _section("Defaults of the conventions", (_filled(line, _INDENT * 2, _INDENT * 3) for line in defaults)),
        _section("Example", (_INDENT * 2 + line for line in example)),
    ]
    return "\n\n".join(sections) + f"\n{_INDENT}"


def torch_docstring(row: OptimizerClass) -> str:
    """The docstring of `fastopt.torch.NAME`."""
    peer = row.conventions["torch"]
    states = ", ".join(states_of(row, "torch"))
    given, (first, second) = row.example
    example = [
        ">>> import torch, fastopt.torch",
        ">>> w = torch.tensor([1.0, 2.0], requires_grad=True)",
        ">>> w.grad = torch.tensor([3.0, -0.1])",
        f">>> fastopt.torch.{row.name}([w], {given}).step()",
        ">>> w.detach()",
        f"tensor([{first:.4f}, {second:.4f}])",
    ]
    _, _, formulas = row.doc.partition("\n")
    head = f"{peer.peer} with its arguments, clip_norm and state_bits; states: {states}."
    example_section = _section("Example", (_INDENT * 2 + line for line in example))
    source = _filled(f"Source: {_sources(row)}")
    return f"{_filled(head, '', _INDENT)}\n{formulas}\n\n{source}\n\n{example_section}\n{_INDENT}"


def _sources(row: OptimizerClass) -> str:
    """The papers of the default convention's rules."""
    rules = next(iter(row.conventions.values())).rows.values()
    return ". ".join(dict.fromkeys(OPTIMIZERS[rule].source for rule in rules)) + "."


def states_of(row: OptimizerClass, convention: str = "") -> list[str]:
    """The names of the states that the class may have, in one convention or in all."""
    conventions = [row.conventions[convention]] if convention else row.conventions.values()
    rules = [OPTIMIZERS[rule] for peer in conventions for rule in peer.rows.values()]
    return list(dict.fromkeys(state for rule in rules for state in rule.states))


def _section(title: str, lines: Iterable[str]) -> str:
    return "\n".join([f"{_INDENT}{title}:", *lines])


def _filled(text: str, first: str = _INDENT, others: str = _INDENT) -> str:
    return textwrap.fill(text, 120, initial_indent=first, subsequent_indent=others)


def _enumerated(names: list[str]) -> str:
    return " or ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]
