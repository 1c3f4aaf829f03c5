"""Averages of a model's weights, with the number of steps that they are of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .._validation import check_count, own
from ..averaging import EMA
from ..kernels.spec import AfterStep, Constraint, OptimizerSteps


class Averages:
    """The averages of the weights of a model, arrays of its own; before the first step they are the weights.

    updated: for each of the parameters, False if no optimizer ever updates it, as the moving averages of a BatchNorm:
    these are their own averages, the same arrays.
    """

    def __init__(self, ema: EMA, parameters: Sequence[np.ndarray], updated: Sequence[bool]) -> None:
        self.ema, self.steps = ema, 0
        self.arrays = [own(p, p.dtype) if on else p for p, on in zip(parameters, updated, strict=True)]

    def share(self, parameters: Sequence[np.ndarray], updated: Sequence[bool]) -> None:
        """Take the parameters that are their own averages from a model that has been copied."""
        pairs = zip(self.arrays, parameters, updated, strict=True)
        self.arrays = [average if on else p for average, p, on in pairs]

    def restart(self, parameters: Sequence[np.ndarray]) -> None:
        """Begin again, with these weights."""
        self.steps = 0
        self.copy(parameters)

    def copy(self, arrays: Sequence[np.ndarray]) -> None:
        """Copy the values of these arrays; the steps still count."""
        for average, array in zip(self.arrays, arrays, strict=True):
            average[...] = array

    def restore(self, steps: Any, arrays: Sequence[np.ndarray]) -> None:
        """Take over what a file has of them; ValueError for other shapes or dtypes."""
        for i, (average, array) in enumerate(zip(self.arrays, arrays, strict=True)):
            if array.shape != average.shape or array.dtype != average.dtype:
                raise ValueError(
                    f"average {i} must be {average.dtype} of shape {average.shape}; got {array.dtype} of shape"
                    f" {array.shape}"
                )
        self.steps = check_count("the steps of the averages", steps, least=0)
        self.copy(arrays)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore from pickle or copy, with arrays as kernels need them."""
        self.__dict__.update(state)
        self.arrays = [np.require(array, None, ["C", "A", "W", "O", "E"]) for array in self.arrays]


def work_after(
    steps: OptimizerSteps,
    constraints: Sequence[Constraint | None],
    averages: Averages | None,
    parameters: Sequence[np.ndarray],
) -> OptimizerSteps:
    """Return the steps with the constraints and averages that follow each; those that are given if there are none.

    constraints: of each parameter, or () for none. Parameters that are not updated have no constraint, and their
    averages become their values.
    """
    updated = [states is not None for states in steps.states]
    limits = [constraint if on else None for constraint, on in zip(constraints, updated, strict=False)]
    after = AfterStep(limits if any(limits) else ())
    if averages is not None:
        for p, average, on in zip(parameters, averages.arrays, updated, strict=True):
            if not on:
                average[...] = p
        arrays = [average if on else None for average, on in zip(averages.arrays, updated, strict=True)]
        shares = averages.ema.shares(averages.steps, len(steps.learning_rates))
        after = after._replace(averages=arrays, shares=shares)
    return steps._replace(after=after) if after.constraints or after.averages else steps
