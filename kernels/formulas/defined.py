"""Names of the formulas that users have added to the tables; `definitions` adds them.

The key of a row is the name with a digest of the formula. So kernels, in memory and on disk, belong to a formula and
not to a name: where a name is given to another formula, what was made with the old one keeps it.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

from .domains import Domain

KINDS = ("activation", "loss", "optimizer")

FUNCTIONS: list[Callable[..., Any]] = []  # of all formulas, which kernels may call
# Held while a formula is defined. Python 3.11's parser fails if threads call it at the same time.
lock = threading.RLock()
keys: dict[str, dict[str, str]] = {kind: {} for kind in KINDS}  # name -> key of its present formula
names: dict[str, str] = {}  # key -> name


class Option(NamedTuple):
    """A number that a formula takes beside its elements: its default, and the values that it may have."""

    default: float
    domain: Domain = Domain(low=-math.inf)


def key_of(kind: str, name: str) -> str:
    """The key of the row that a name stands for now; the name itself where no formula of that name is defined."""
    return keys[kind].get(name, name)


def present(kind: str, name: str) -> str | None:
    """The key that a name stands for now; None for a name that is not defined."""
    return keys[kind].get(name)


def name_of(key: str) -> str:
    """The user's name of a row; the key itself for rows that are not users'."""
    return names.get(key, key)
