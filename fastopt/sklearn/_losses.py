"""Losses of scikit-learn's estimators that `fastopt.losses` has not, as formulas."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ..losses import Loss


def weighted_perceptron(z: Any, t: Any) -> Any:
    return -t * z if t * z <= 0 else 0.0


def weighted_perceptron_slope(z: Any, t: Any) -> Any:
    return -t if t * z <= 0 else 0.0


def half_poisson(z: Any, t: Any) -> Any:
    return math.exp(z) - t * z + t * math.log(t) - t if t > 0 else math.exp(z)


def half_poisson_slope(z: Any, t: Any) -> Any:
    return math.exp(z) - t


def squares_of_several(z: Any, t: Any, outputs: Any) -> Any:
    return (z - t) * (z - t) / outputs


def squares_of_several_slope(z: Any, t: Any) -> Any:
    return 2 * (z - t)


FORMULAS: dict[str, tuple[Callable[..., Any], Callable[..., Any], dict[str, float]]] = {
    # of targets that are signs times weights
    "weighted_perceptron": (weighted_perceptron, weighted_perceptron_slope, {}),
    # half of the deviance, of logarithms of means
    "half_poisson": (half_poisson, half_poisson_slope, {}),
    # scikit-learn divides the loss by the outputs, but not its slope
    "squares_of_several": (squares_of_several, squares_of_several_slope, {"outputs": 1.0}),
}


def loss_of(name: str, **parameters: float) -> Any:
    """Return the loss of this name as `compile` takes it, defined if it is one of FORMULAS."""
    if name not in FORMULAS:
        return name
    value, slope, defaults = FORMULAS[name]
    made: Any = Loss.define(name, value, slope, defaults, check=False)
    return made(**parameters)
