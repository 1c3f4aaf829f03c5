"""The layers of the code: a table of which room may import which, held against the source.

A room is a wing (`kernels/cpu/dense`), or a module that stands alone (`fastopt/callbacks`). Imports inside functions
and under TYPE_CHECKING count, and so does a string that is a module's full name, for `import_module` may be given it.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Each room with the rooms that it may import. In this table names are relative to kernels/.
KERNELS = {
    "__init__": "",
    "settings": "",
    "interrupts": "",
    "denormals": "",
    "sources": "",
    "loss_rule": "",
    "spec": "loss_rule sources",
    "epochs": "interrupts spec",
    "profile": "",
    "metrics": "formulas",
    "formulas": "",
    "language": "formulas",
    "definitions": "formulas language reference",
    "disk_cache": "settings",
    "scalars": "formulas spec",
    "costs": "formulas profile scalars",
    # The oracle is blind: it must not see the formulas and the loops that it is compared with.
    "reference": "denormals epochs sources spec",
    "cpu/runtime": "formulas spec denormals disk_cache interrupts settings",
    "cpu/optim": "cpu/runtime formulas spec scalars",
    "cpu/dense": "cpu/runtime formulas metrics sources spec settings",
    "cpu/training": "cpu/runtime cpu/optim cpu/dense formulas sources spec scalars costs metrics profile interrupts"
    " loss_rule",
    "cpu": "cpu/runtime cpu/optim cpu/dense cpu/training formulas spec",
    "cuda/runtime": "formulas spec disk_cache interrupts settings",
    "cuda/optim": "cuda/runtime formulas spec scalars",
    "cuda/dense": "cuda/runtime formulas metrics sources spec costs profile",
    "cuda/fused": "cuda/runtime cuda/dense formulas metrics spec costs profile",
    "cuda/training": "cuda/runtime cuda/optim cuda/dense cuda/fused formulas sources spec scalars costs metrics profile"
    " epochs interrupts",
    "cuda/installation": "cuda/runtime cuda/optim",
    "cuda/kernels": "cuda/runtime cuda/optim cuda/dense cuda/fused formulas spec",
    "cuda": "cuda/runtime cuda/optim cuda/dense cuda/training cuda/kernels cuda/installation",
}
# In this one they are relative to fastopt/, where they name no other folder.
FASTOPT = {
    "_dlpack": "",
    "_exclusive": "",
    "_frozen": "",
    "_random_rows": "kernels/spec",
    "_text": "",
    "_warnings": "",
    "_validation": "_dlpack kernels/formulas",
    "_backends": "_validation kernels/interrupts kernels/reference kernels/cpu kernels/cuda",  # the last three by name
    "_definitions": "_backends _validation kernels/formulas kernels/language kernels/spec",
    "_files": "_validation kernels/interrupts",
    "_pruning": "_validation",
    "_frames": "_dlpack _validation kernels/sources",
    "_metrics": "_validation kernels/formulas",
    "batches": "_validation",
    "schedules": "_validation",
    "conventions": "_validation kernels/formulas",
    "preprocessing": "_frames _frozen _validation kernels/sources",
    "activations": "_definitions _validation kernels/definitions kernels/formulas kernels/spec",
    "functional": "_backends _validation activations kernels/formulas",
    "_loss_definition": "_backends _definitions _validation kernels/definitions kernels/formulas kernels/language"
    " kernels/spec",
    "losses": "_backends _definitions _loss_definition _validation kernels/formulas kernels/spec",
    "regularizers": "_validation",
    "averaging": "_validation",
    "constraints": "_validation kernels/spec",
    "_layer_parts": "_validation",
    "_normalization_layers": "_frozen _layer_parts _validation preprocessing kernels/spec",
    "layers": "_definitions _frozen _layer_parts _normalization_layers _validation activations constraints"
    " preprocessing regularizers kernels/formulas kernels/spec",
    "profiling": "_files _text _validation benchmarks/limits kernels/profile kernels/cpu/runtime kernels/cuda/runtime",
    "callbacks": "_exclusive _metrics _validation kernels/interrupts kernels/loss_rule",
    "optim": "_backends _definitions _dlpack _exclusive _validation conventions kernels/definitions kernels/formulas"
    " kernels/spec",
    "torch": "_backends _validation optim kernels/formulas kernels/spec kernels/cpu/optim kernels/cuda/runtime"
    " kernels/cuda/installation",
    "datasets": "_random_rows _validation kernels/settings",
    "reports": "_text",
    "distributed": "_validation kernels/interrupts kernels/metrics kernels/spec",
    "models": "_backends _definitions _exclusive _files _frames _frozen _metrics _pruning _random_rows _validation"
    " _warnings"
    " averaging batches callbacks distributed layers losses optim preprocessing profiling schedules kernels/formulas"
    " kernels/interrupts kernels/loss_rule kernels/metrics kernels/sources kernels/spec",
    "compress": "_backends _pruning _validation layers models kernels/spec",
    "export": "_files _validation layers models preprocessing kernels/formulas kernels/sources kernels/spec",
    "__init__": "activations averaging batches callbacks compress constraints conventions datasets distributed export"
    " functional layers losses models optim preprocessing profiling regularizers schedules kernels/cpu/runtime",
    "sklearn": "_backends _validation callbacks layers losses models optim regularizers kernels/formulas"
    " kernels/loss_rule",
    "_task": "_validation layers losses models optim preprocessing kernels/formulas",
    "search": "_backends _metrics _task _text _validation callbacks models optim kernels/cpu/runtime",
    "study": "_backends _files _task _text _validation models optim reports kernels/cpu/runtime",
    "cli": "__init__ _backends _files _random_rows _task _text _validation callbacks compress conventions datasets"
    " distributed export layers"
    " losses models optim benchmarks/__init__ preprocessing profiling reports schedules search study kernels/cpu"
    " kernels/cpu/dense"
    " kernels/cpu/runtime kernels/cuda kernels/cuda/installation kernels/cuda/kernels kernels/cuda/runtime"
    " kernels/disk_cache kernels/formulas kernels/interrupts kernels/metrics kernels/settings kernels/spec",
    "__main__": "cli",
    "examples": "__init__ callbacks",
}

# Suites may import everything. `limits` measures the machine, on kernels alone, so that `profiling` can use it.
BENCHMARKS = {
    "__init__": "",
    "limits": "kernels/denormals kernels/formulas kernels/cpu/runtime kernels/cpu/optim kernels/cpu/dense"
    " kernels/cuda/runtime kernels/cuda/optim kernels/cuda/dense",
    "suites": " ".join(["limits", *(f"fastopt/{room}" for room in FASTOPT), *(f"kernels/{room}" for room in KERNELS)]),
}
LIMITS = {
    *(f"benchmarks/{name}.py" for name in ("limits", "peaks", "products")),
    *(f"benchmarks/cuda/{name}.py" for name in ("limits", "device", "turns", "work")),
}


def _full_names(folder: str, row: str) -> list[str]:
    """The rooms of a row by their paths: `cpu/dense` of kernels is kernels/cpu/dense."""
    folders = ("kernels/", "fastopt/", "benchmarks/")
    return [name if name.startswith(folders) else f"{folder}/{name}" for name in row.split()]


TABLE = {
    f"{folder}/{room}": _full_names(folder, row)
    for folder, rows in (("kernels", KERNELS), ("fastopt", FASTOPT), ("benchmarks", BENCHMARKS))
    for room, row in rows.items()
}


def room_of(path: str) -> str:
    """The room of a file: its wing, or the module itself where that stands alone."""
    top, *parts = path.removesuffix(".py").split("/")
    if top == "benchmarks" and parts != ["__init__"]:
        return "benchmarks/limits" if path in LIMITS else "benchmarks/suites"
    if top == "kernels" and parts[0] in ("cpu", "cuda") and parts[1] != "__init__":
        return "/".join([top, *parts[:2]])
    return f"{top}/{parts[0]}"


def module_name(path: str) -> str:
    """The name that a file is imported by: the package map of setup.cfg puts kernels and benchmarks below fastopt."""
    parts = path.removesuffix(".py").removesuffix("/__init__").split("/")
    return ".".join(parts if parts[0] == "fastopt" else ["fastopt", *parts])


@cache
def sources() -> Mapping[str, str]:
    """Every file of the product, by the name of its module."""
    paths = [path for folder in ("fastopt", "kernels", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    names = [path.relative_to(ROOT).as_posix() for path in paths if "__pycache__" not in path.parts]
    return {module_name(name): name for name in sorted(names)}


def imported_names(path: str, tree: ast.Module) -> Iterator[str]:
    """The modules that a file's source imports, by their full names."""
    package = module_name(path).split(".")
    if not path.endswith("__init__.py"):
        package.pop()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*parents, *filter(None, [node.module])])
            for alias in node.names:
                yield f"{base}.{alias.name}" if f"{base}.{alias.name}" in sources() else base
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("fastopt."):
            yield node.value


@cache
def graph() -> Mapping[str, frozenset[str]]:
    """Every file with the files that it imports."""
    found = {}
    for path in sources().values():
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        found[path] = frozenset(sources()[name] for name in imported_names(path, tree) if name in sources()) - {path}
    return found


def faults(imports_of: Mapping[str, Collection[str]]) -> Iterator[str]:
    """A sentence for each import that the table does not allow."""
    for path, imports in imports_of.items():
        room = room_of(path)
        for other in sorted(imports):
            if room_of(other) == room or room_of(other) in TABLE.get(room, ()):
                continue
            allowed = ", ".join(TABLE.get(room, ())) or "nothing"
            yield f"{path} imports {other}: {room} may import {allowed}"


def circles(imports_of: Mapping[str, Collection[str]]) -> list[set[str]]:
    """Sets of files of which each imports, by way of others, all the rest."""
    reach: dict[str, set[str]] = {}
    for path in imports_of:
        found, todo = set(), [path]
        while todo:
            for other in imports_of[todo.pop()]:
                if other not in found:
                    found.add(other)
                    todo.append(other)
        reach[path] = found
    groups = {frozenset(other for other in reach[path] if path in reach[other]) for path in imports_of}
    return sorted((set(group) for group in groups if group), key=sorted)


@pytest.mark.parametrize(
    ("path", "room"),
    [
        ("kernels/cpu/dense/rows.py", "kernels/cpu/dense"),
        ("kernels/cuda/__init__.py", "kernels/cuda"),
        ("kernels/reference/maths.py", "kernels/reference"),
        ("kernels/spec.py", "kernels/spec"),
        ("fastopt/__init__.py", "fastopt/__init__"),
        ("fastopt/callbacks.py", "fastopt/callbacks"),
        ("fastopt/optim/base.py", "fastopt/optim"),
        ("benchmarks/limits.py", "benchmarks/limits"),
        ("benchmarks/peaks.py", "benchmarks/limits"),
        ("benchmarks/test_products.py", "benchmarks/suites"),
        ("benchmarks/cuda/survey.py", "benchmarks/suites"),
    ],
)
def test_rooms(path, room):
    assert room_of(path) == room


@pytest.mark.parametrize(
    "line",
    [
        "from ..optim import updates",
        "from ..optim.updates import UPDATE_ALL",
        "def late():\n    from fastopt.kernels.cpu.optim import updates",
        "if TYPE_CHECKING:\n    import fastopt.kernels.cpu.optim.updates as updates",
        "import_module('fastopt.kernels.cpu.optim.updates')",
    ],
)
def test_a_wrong_import_is_named(line):
    path, other = "kernels/cpu/dense/rows.py", "kernels/cpu/optim/updates.py"
    found = {sources()[name] for name in imported_names(path, ast.parse(line)) if name in sources()}
    sentence = list(faults({path: found}))[-1]
    assert sentence.startswith(f"{path} imports {other}: kernels/cpu/dense may import kernels/cpu/runtime, ")


def test_a_circle_is_named():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set(), "e": {"a"}}) == [{"b", "c"}]


def test_every_room_has_a_row():
    rooms = {room_of(path) for path in graph()}
    assert sorted(rooms - set(TABLE)) == [], "these rooms need a row in the table, with what they may import"
    assert sorted(set(TABLE) - rooms) == [], "these rows have no room any more"
    assert sorted({name for row in TABLE.values() for name in row} - set(TABLE)) == [], "these rows name no room"


def test_no_import_goes_up_or_across():
    wrong = list(faults(graph()))
    assert not wrong, "\n".join(wrong)


def test_no_circle():
    """Neither in the table, so that rooms have an order, nor between the modules of a room."""
    try:
        TopologicalSorter(TABLE).prepare()
    except CycleError as error:
        pytest.fail(f"the table has a circle: {' <- '.join(error.args[1])}")
    found = circles(graph())
    assert not found, "\n".join(f"these import each other: {', '.join(sorted(group))}" for group in found)
