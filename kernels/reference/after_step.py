"""Constraints and averages of parameters after an optimizer step, in vectorised NumPy."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..denormals import flushed
from ..spec import AfterStep, Constraint

Array = np.ndarray


def _norms(p: Array, axes: tuple[int, ...]) -> Array:
    """Euclidean norms over some axes, of p's dimensions, summed in float64."""
    return np.sqrt(np.sum(np.square(p, dtype=np.float64), axis=axes, keepdims=True))


def max_norm(p: Array, constraint: Constraint) -> Array:
    norms = _norms(p, constraint.axes)
    return p * (np.clip(norms, 0, constraint.most) / (1e-7 + norms)).astype(p.dtype)


def unit_norm(p: Array, constraint: Constraint) -> Array:
    return p * (1 / (1e-7 + _norms(p, constraint.axes))).astype(p.dtype)


def non_negative(p: Array, constraint: Constraint) -> Array:
    return np.where(p < 0, p.dtype.type(0), p)


CONSTRAINTS: dict[str, Callable[[Array, Constraint], Array]] = {
    "max_norm": max_norm,
    "unit_norm": unit_norm,
    "non_negative": non_negative,
}


@flushed
@np.errstate(all="ignore")
def work_after_step(params: Sequence[Array], after: AfterStep, step: int) -> None:
    """Constrain the parameters and take them into their averages, in place, after a step of the pass, from 0.

    >>> w, average = np.array([[3.0], [4.0]]), np.zeros((2, 1))
    >>> after = AfterStep([Constraint("max_norm", most=2.0)], [average], np.array([0.25]))
    >>> work_after_step([w], after, 0)
    >>> w.round(6).tolist(), average.round(6).tolist()
    ([[1.2], [1.6]], [[0.3], [0.4]])
    """
    for p, constraint in zip(params, after.constraints, strict=False):
        if constraint is not None:
            p[...] = CONSTRAINTS[constraint.name](p, constraint)
    for p, average in zip(params, after.averages, strict=False):
        if average is not None and after.shares is not None:
            share = p.dtype.type(after.shares[step])
            average[...] = p if share == 1 else average + share * (p - average)
