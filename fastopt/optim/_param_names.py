"""Names of an optimizer's arrays, made of the keys of the user's mappings; `load_state_dict` matches states by them.

They are torch's `param_names` in the groups of a state_dict: the keys that lead to an array, joined by points, as in
`torch.nn.Module.named_parameters`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .._validation import describe
from ._tree import Template

KEY = "param_names"
Names = tuple[str, ...]
Groups = Sequence[Mapping[str, Any]]


def names_of(template: Template) -> Names | None:
    """The names of the arrays of a group, in order; None if they have positions only.

    >>> names_of({"dense": [0, 1], "out": {"w": 2}}), names_of([0, [1, 2]])
    (('dense.0', 'dense.1', 'out.w'), None)
    """
    if not _has_keys(template):
        return None
    paths = list(_paths(template))
    dotted = tuple(".".join(map(str, path)) for path in paths)
    # Keys that contain points, or are 1 and "1", may give the same name.
    return dotted if len(set(dotted)) == len(dotted) else tuple(repr(path) for path in paths)


def _has_keys(template: Template) -> bool:
    if isinstance(template, list):
        return any(map(_has_keys, template))
    return isinstance(template, dict)


def _paths(template: Template) -> Iterator[tuple[Any, ...]]:
    if isinstance(template, int):
        yield ()
        return
    for key, branch in template.items() if isinstance(template, dict) else enumerate(template):
        for path in _paths(branch):
            yield (key, *path)


def in_order(saved: Groups, own: Sequence[Names | None]) -> Groups:
    """The groups of a state_dict in the order of an optimizer's, each with the numbers of its arrays in that order.

    own: the names of the optimizer's arrays, by groups. Groups match if they have the same names; those without names
    match in their order. If one side has no names at all, positions decide. TypeError, ValueError: invalid names, or
    names that do not match.
    """
    given = [_given(group, f"param_groups[{i}]") for i, group in enumerate(saved)]
    if len(given) != len(own):
        return saved  # refused by the caller
    sources = _sources(given, own)
    if sources is None:
        theirs, ours = ({name for names in side for name in names or ()} for side in (given, own))
        where = f"; missing: {sorted(ours - theirs)}, unknown: {sorted(theirs - ours)}" if theirs != ours else ""
        raise ValueError(
            "the state_dict must have the names of this optimizer's arrays, in groups of the same ones"
            f" (take its param_names out, and positions decide){where}; got {_shown(given)} for {_shown(own)}"
        )
    return [_arranged(saved[source], given[source], names) for source, names in zip(sources, own, strict=True)]


def _given(group: Mapping[str, Any], where: str) -> Names | None:
    names = group.get(KEY)
    if names is None:
        return None
    if isinstance(names, str) or not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"{KEY} of {where} must be a list of strings; got {describe(names)}")
    if len(set(names)) != len(names) or len(names) != len(group["params"]):
        raise ValueError(
            f"{KEY} of {where} must be {len(group['params'])} different names, one for each array; got {list(names)}"
        )
    return tuple(names)


def _sources(given: Sequence[Names | None], own: Sequence[Names | None]) -> list[int] | None:
    """For each of the optimizer's groups the number of the saved one that matches; None if they do not all match."""
    positions = list(range(len(own)))
    if not any(given) or not any(own):
        return positions
    theirs, ours = ([None if names is None else frozenset(names) for names in side] for side in (given, own))
    if theirs == ours:  # even if several groups have arrays of the same names
        return positions
    named = [names for names in theirs if names is not None]
    if len(set(named)) != len(named):
        return None
    unnamed = (i for i, names in enumerate(theirs) if names is None)
    positions_of = {names: i for i, names in enumerate(theirs) if names is not None}
    found = [next(unnamed, -1) if names is None else positions_of.get(names, -1) for names in ours]
    return found if sorted(found) == positions else None


def _arranged(group: Mapping[str, Any], theirs: Names | None, ours: Names | None) -> Mapping[str, Any]:
    rest = {key: value for key, value in group.items() if key != KEY}
    if theirs is not None and ours is not None:
        numbers = dict(zip(theirs, group["params"], strict=True))
        rest["params"] = [numbers[name] for name in ours]
    return rest


def _shown(groups: Sequence[Names | None]) -> list[list[str] | None]:
    return [None if names is None else list(names) for names in groups]
