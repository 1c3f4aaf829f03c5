"""The stubs that show the optimizers' classes, which are made from a table, to type checkers.

Run as a program, it writes them anew:

    python tests/helpers_stubs.py
"""

import inspect
import textwrap
from pathlib import Path

import fastopt
from fastopt.kernels.formulas.optimizers import CLASSES
from fastopt.optim._docstrings import docstring, torch_docstring
from fastopt.optim.optimizers import signature_of

FOLDER = Path(fastopt.__file__).parent
HEAD = '"""Written by tests/helpers_stubs.py; do not edit."""\n\n'


def optim_stub() -> str:
    """The text of fastopt/optim/__init__.pyi."""
    names = ["Optimizer", "OptimizerRule", "get_optimizer", *CLASSES]  # which `fastopt` has as well
    lines = [
        HEAD + "from collections.abc import Callable",
        "from typing import Any",
        "",
        "from .base import Optimizer as Optimizer",
        "from .rules import OptimizerRule as OptimizerRule",
        "",
        *_all(names),
        "",
        "Rate = float | Callable[[int], float]  # a number or a schedule",
        "",
        "OPTIMIZER_CLASSES: dict[str, Any]",
        "",
        "def get_optimizer(optimizer: str | Optimizer | type[Optimizer], **hyper: Any) -> Optimizer: ...",
    ]
    for row in CLASSES.values():
        lines += ["", *_class(row.name, row.base or "Optimizer", docstring(row)), "    def __init__("]
        keyword = False
        for parameter in signature_of(row).parameters.values():
            if parameter.kind is parameter.KEYWORD_ONLY and not keyword:
                keyword = True
                lines.append("        *,")
            lines.append(f"        {_shown(parameter)},")
        lines.append("    ) -> None: ...")
    return "\n".join(lines) + "\n"


def torch_stub() -> str:
    """The text of fastopt/torch/__init__.pyi."""
    rows = [row for row in CLASSES.values() if "torch" in row.conventions]
    lines = [
        HEAD + "from typing import Any",
        "",
        "import torch",
        "",
        "from ._defined import class_of as class_of",
        "from ._explain import Explanation as Explanation",
        "from ._explain import Placement as Placement",
        "from ._explain import explain as explain",
        "from ._in_backward import StepInBackward as StepInBackward",
        "from ._step import Accelerated",
        "",
        *_all([*_TORCH_NAMES, *(row.name for row in rows)]),
        "",
        "def accelerate(optimizer: torch.optim.Optimizer) -> Any: ...",
        "def step_in_backward(optimizer: torch.optim.Optimizer) -> StepInBackward: ...",
    ]
    for row in rows:
        lines += ["", *_class(row.name, f"Accelerated, {row.conventions['torch'].peer}", torch_docstring(row))]
    return "\n".join(lines) + "\n"


_TORCH_NAMES = "Explanation", "Placement", "StepInBackward", "accelerate", "class_of", "explain", "step_in_backward"


def _all(names: list[str]) -> list[str]:
    return ["__all__ = [", *[f'    "{name}",' for name in sorted(names, key=_isort_key)], "]"]


def _isort_key(name: str) -> tuple[int, str]:
    """Constants, classes, functions: ruff's order."""
    return (0 if name.isupper() and len(name) > 1 else 1 if name[0].isupper() else 2), name


def _class(name: str, bases: str, doc: str) -> list[str]:
    return [f"class {name}({bases}):", textwrap.indent(f'"""{doc}"""', "    ", lambda line: line.startswith('"""'))]


def _shown(parameter: inspect.Parameter) -> str:
    if parameter.name == "self":
        return "self"
    return f"{parameter.name}: {parameter.annotation} = {parameter.default!r}".replace("'", '"')


STUBS = {FOLDER / "optim/__init__.pyi": optim_stub, FOLDER / "torch/__init__.pyi": torch_stub}


if __name__ == "__main__":
    for path, stub in STUBS.items():
        path.write_text(stub(), encoding="utf-8")
