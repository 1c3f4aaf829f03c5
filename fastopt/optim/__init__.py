"""Optimizers for arrays in place: their classes are in `optimizers`, what all of them share in `base`.

The classes are made from a table; `__init__.pyi`, which `python tests/helpers_stubs.py` writes, shows them to type
checkers.
"""

from .optimizers import *  # noqa: F403
from .optimizers import __all__ as _names
from .rules import OptimizerRule

__all__ = ["OptimizerRule", *_names]
