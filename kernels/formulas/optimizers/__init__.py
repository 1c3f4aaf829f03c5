"""Optimizers, a family a file: formulas, scalars, the rows of the kernels, and the rows of the users' classes.

    OPTIMIZERS  by name, such as "adam": a scalar formula with its states and options, compiled by every backend
    CLASSES     by name, such as "Adam": the class that users get, and the rows of OPTIMIZERS it may run

To add an optimizer, write its formula, its scalars and its two rows in the file of its family.
"""

from __future__ import annotations

from ..domains import FRACTION, Domain
from . import adagrad, adam, common, rmsprop, sgd
from .table import COMMON_OPTIONS, OPTIONS, Convention, Optimizer, OptimizerClass

FAMILIES = (sgd, adagrad, rmsprop, adam)
MODULES = (common, *FAMILIES)  # whose functions kernels may call

OPTIMIZERS: dict[str, Optimizer] = {name: row for family in FAMILIES for name, row in family.OPTIMIZERS.items()}
CLASSES: dict[str, OptimizerClass] = {
    row.name: row for family in FAMILIES for row in vars(family).values() if isinstance(row, OptimizerClass)
}

# The different ways in which scalars depend on the step, by their number on a device.
AT_STEP = tuple(dict.fromkeys(row.at_step for row in OPTIMIZERS.values()))

# The values of every hyper-parameter and of every option of a rule.
DOMAINS: dict[str, Domain] = {
    **{name: option.domain for name, option in OPTIONS.items()},
    **{name: option.domain for row in CLASSES.values() for name, option in row.options.items()},
    **dict.fromkeys(("beta1", "beta2"), FRACTION),
    "decoupled": OPTIONS["maximize"].domain,  # a flag
}

__all__ = [
    "AT_STEP",
    "CLASSES",
    "COMMON_OPTIONS",
    "DOMAINS",
    "MODULES",
    "OPTIMIZERS",
    "OPTIONS",
    "Convention",
    "Optimizer",
    "OptimizerClass",
]
