"""Parts that tests of users' formulas share."""

from __future__ import annotations

import hashlib
import linecache
import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from fastopt.kernels.formulas import defined


def forget_formulas() -> None:
    """Take users' formulas out of all tables."""
    for kind in defined.KINDS:
        for name in list(defined.keys[kind]):
            definitions = sys.modules["fastopt.kernels.definitions"]
            definitions.withdraw(kind, name)
            if kind == "loss":
                sys.modules["fastopt.losses"].LOSS_CLASSES.pop(name, None)
            if kind == "optimizer":
                sys.modules["fastopt.optim.optimizers"].OPTIMIZER_CLASSES.pop(name.lower(), None)
    for key in list(defined.names):  # of names that were given to another formula
        for tables in sys.modules["fastopt.kernels.definitions"].TABLES.values():
            for table in tables:
                table.pop(key, None)
        defined.names.pop(key)


def function_of(text: str, name: str = "f", **names: object) -> Callable[..., Any]:
    """A function of a source text, which can be read as that of a notebook's cell can."""
    file = f"<cell {hashlib.sha256(text.encode()).hexdigest()[:12]}>"
    lines = text.splitlines(keepends=True)
    linecache.cache[file] = len(text), None, lines, file
    scope: dict[str, Any] = {"math": math, "np": np, **names}
    exec(compile(text, file, "exec"), scope)
    return scope[name]
