"""Constructors of estimators, from tables of their parameters."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

Class = TypeVar("Class", bound=type)

# Parameters that all estimators have beside scikit-learn's.
OURS: Mapping[str, Any] = {
    "callbacks": (), "backend": "cpu", "dtype": None, "compute_dtype": None, "threads": None,
}  # fmt: skip
MLP: Mapping[str, Any] = {
    "solver": "adam", "alpha": 1e-4, "batch_size": "auto", "learning_rate": "constant", "learning_rate_init": 1e-3,
    "power_t": 0.5, "max_iter": 200, "shuffle": True, "random_state": None, "tol": 1e-4, "verbose": False,
    "warm_start": False, "momentum": 0.9, "nesterovs_momentum": True, "early_stopping": False,
    "validation_fraction": 0.1, "beta_1": 0.9, "beta_2": 0.999, "epsilon": 1e-8, "n_iter_no_change": 10,
    "max_fun": 15_000, "dropout": 0.0, **OURS,
}  # fmt: skip
LINEAR: Mapping[str, Any] = {
    "fit_intercept": True, "batch_size": "auto", "learning_rate": "constant", "learning_rate_init": 1e-2,
    "power_t": 0.5, "shuffle": True, "random_state": None, "verbose": False, "warm_start": False, "momentum": 0.9,
    "early_stopping": False, "validation_fraction": 0.1, "n_iter_no_change": 10, **OURS,
}  # fmt: skip


def parameters(keywords: Mapping[str, Any], **positional: Any) -> Callable[[Class], Class]:
    """Give a class the constructor that sets these parameters as attributes; keywords: those by keyword alone.

    It has the signature that scikit-learn reads, and says nothing else, as scikit-learn asks of constructors.
    """
    kinds = [(inspect.Parameter.POSITIONAL_OR_KEYWORD, positional), (inspect.Parameter.KEYWORD_ONLY, keywords)]
    listed = [inspect.Parameter(name, kind, default=value) for kind, table in kinds for name, value in table.items()]
    own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    signature, defaults = inspect.Signature([own, *listed]), {**positional, **keywords}

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        given = {**defaults, **kwargs}
        if args or len(given) > len(defaults):  # `bind` takes 40 us
            bound = signature.bind(self, *args, **kwargs)
            given |= {name: value for name, value in bound.arguments.items() if name != "self"}
        vars(self).update(given)

    def give(cls: Class) -> Class:
        init.__signature__ = signature  # type: ignore[attr-defined]
        init.__name__, init.__qualname__ = "__init__", f"{cls.__qualname__}.__init__"
        cls.__init__ = init  # type: ignore[misc]
        return cls

    return give
