"""Rows of users' formulas, made of functions of arrays of one dtype."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..denormals import SMALLEST
from ._erf import erf
from .maths import ACTIVATIONS, LOSSES, Activation, Array, Loss, Total, log_softmax, total
from .optimizers import UPDATES, Options, States, coupled, decayed

__all__ = ["ACTIVATIONS", "LOSSES", "UPDATES", "activation", "erf", "label_loss", "loss", "update"]


def activation(uses: str, value: Callable[[Array], Any], slope: Callable[[Array], Any]) -> Activation:
    """A row of ACTIVATIONS by value(z) and slope(s), which may give a number for all elements."""

    def write(z: Array, y: Array) -> None:
        y[...] = value(z)

    def slopes(s: Array) -> Array:
        return np.broadcast_to(np.asarray(slope(s), s.dtype), s.shape)

    return Activation(uses, write, slopes)


def loss(
    value: Callable[[Array, Array, Any], Any],
    slope: Callable[[Array, Array, Any], Any],
    default: float,
    link: str | None,
    boundary: tuple[float, float],
    binary: bool,
) -> Loss:
    """A row of LOSSES by the value and the slope of each element, which take the loss's only parameter."""

    def mean(z: Array, t: Array, gradient: Array | None, total: Total = total, **params: float) -> float:
        T = z.dtype.type
        a = T(next(iter(params.values()), default))
        if gradient is not None:
            np.multiply(slope(z, t, a), T(1 / z.size), out=gradient)
        return total(np.broadcast_to(value(z, t, a), z.shape)) / z.size

    return Loss(mean, link, boundary, binary)


def label_loss(value: Callable[[Array], Any], slope: Callable[[Array], Any]) -> Loss:
    """A row of LOSSES by the value of log(p) of each row's right class, with the softmax p of z, and its slope."""

    def mean(z: Array, t: Array, gradient: Array | None, total: Total = total, **params: float) -> float:
        chosen = np.arange(len(z)), t
        log_p = log_softmax(z, gradient)[chosen]
        if gradient is not None:
            gradient[chosen] -= 1
            gradient *= -np.broadcast_to(np.asarray(slope(log_p), z.dtype), log_p.shape)[:, None]
            gradient *= 1 / len(z)
        return total(np.broadcast_to(value(log_p), log_p.shape)) / len(z)

    return Loss(mean, "softmax")


def update(
    rule: Callable[..., tuple[Any, tuple[Any, ...]]],
    scalars: Callable[..., Sequence[float]],
    options: Sequence[str],
    decoupled: bool,
) -> Callable[[Array, Array, States, Options, int], None]:
    """A row of UPDATES. scalars(step, lr, *options): numbers of a step in float64, which the rule takes as T."""

    def step_of(p: Array, g: Array, states: States, o: Options, step: int) -> None:
        g = decayed(p, g, o) if decoupled else coupled(p, g, o)
        T = p.dtype.type
        h = [T(x) for x in scalars(float(step), o["lr"], *[o[name] for name in options])]
        new, others = rule(p, g, states, h, T(SMALLEST[p.dtype]))
        for array, values in zip((p, *states), (new, *others), strict=True):
            array[...] = values

    return step_of
