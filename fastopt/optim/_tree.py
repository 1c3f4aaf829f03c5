"""Nested sequences and mappings of arrays: parameters are flattened once, then every gradient tree is matched."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

# A template mirrors the parameters: a leaf's number, or a list or dict of templates.
Template = int | list[Any] | dict[Any, Any]


def flatten(tree: Any, path: str, leaves: list[tuple[str, Any]]) -> Template:
    """Appends (path, leaf) for every leaf, in order, and returns the template that `match` follows."""
    if isinstance(tree, Mapping):
        return {key: flatten(branch, f"{path}[{key!r}]", leaves) for key, branch in tree.items()}
    if isinstance(tree, list | tuple | Iterator):
        return [flatten(branch, f"{path}[{i}]", leaves) for i, branch in enumerate(tree)]
    leaves.append((path, tree))
    return len(leaves) - 1


def match(template: Template, tree: Any, path: str, out: list[Any]) -> None:
    """Writes the leaves of a tree of the same structure into `out`; None skips a whole branch."""
    if tree is None:
        return
    if isinstance(template, int):
        out[template] = tree
    elif isinstance(template, dict):
        if not isinstance(tree, Mapping):
            raise TypeError(f"{path} must be a mapping with the keys of the parameters; got a {type(tree).__name__}")
        missing = [key for key in template if key not in tree]
        unknown = [key for key in tree if key not in template]
        if missing or unknown:
            raise ValueError(
                f"{path} must have the keys of the parameters (None for an array to skip);"
                f" missing: {missing}, unknown: {unknown}"
            )
        for key, branch in template.items():
            match(branch, tree[key], f"{path}[{key!r}]", out)
    else:
        if not isinstance(tree, list | tuple | Iterator):
            raise TypeError(
                f"{path} must be a sequence of {len(template)}, like the parameters; got a {type(tree).__name__}"
            )
        branches = list(tree)
        if len(branches) != len(template):
            raise ValueError(
                f"{path} must have {len(template)} entries, one for each of the parameters"
                f" (None for an array to skip); got {len(branches)}"
            )
        for i, (branch, part) in enumerate(zip(template, branches, strict=True)):
            match(branch, part, f"{path}[{i}]", out)
