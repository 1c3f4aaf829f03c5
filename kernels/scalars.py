"""The scalars of an optimizer's steps, computed on the host in float64 and written in the dtype that rules work in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .formulas import NUM_SCALARS, OPTIMIZERS
from .formulas.optimizers.common import L1, L2, Column
from .spec import NEUTRAL, OptimizerSteps, ParamSettings

TINY = {np.dtype(name): float(np.finfo(name).tiny) for name in ("float32", "float64")}
AHEAD = 32  # steps whose scalars are computed at once


def fill_scalars(
    table: np.ndarray, name: str, steps: Sequence[int], options: Mapping[str, Any], rates: Any = None
) -> None:
    """Write each step's scalars, followed by the dtype's smallest normal number: (steps, NUM_SCALARS + 1).

    rates: the learning rate of every step; if it is None, that of the options.
    """
    rates = [options["lr"]] * len(steps) if rates is None else np.asarray(rates).tolist()
    for i, column in enumerate(_columns(name, steps, rates, options)):
        table[:, i] = column
    table[:, NUM_SCALARS] = TINY[table.dtype]


def fill_settings(table: np.ndarray, steps: OptimizerSteps, settings: Sequence[ParamSettings]) -> None:
    """Write the scalars of an optimizer's next steps, (steps, settings, NUM_SCALARS + 1); settings: those of `rows`."""
    count = len(steps.learning_rates)
    divisors: Any = 1.0 if steps.penalty_divisors is None else steps.penalty_divisors
    known: dict[Any, tuple[Mapping[str, Any], tuple[Column, ...]]] = {}  # settings may differ by penalties alone
    for i, own in enumerate(settings):
        first, rows = steps.steps_done - own.late + 1, table[:count, i]
        options = steps.options if own is NEUTRAL else steps.options_of(own)
        of_same, columns = known.get((first, own.lr_scale), (None, ()))
        if of_same != options:
            rates = steps.learning_rates * own.lr_scale
            columns = _columns(steps.rule, range(first, first + count), rates.tolist(), options)
            known[first, own.lr_scale] = options, columns
        for j, column in enumerate(columns):
            penalty = 2 * own.l2 if j == L2 else own.l1 if j == L1 else 0.0
            rows[:, j] = np.add(column, penalty / divisors) if penalty else column
        rows[:, NUM_SCALARS] = TINY[table.dtype]


def fill_row(row: np.ndarray, name: str, step: float, options: Mapping[str, Any], scale: float = 1.0) -> None:
    """Write the scalars of one step: (NUM_SCALARS + 1,). `scale` multiplies gradients.

    step: from 1; inf for the limit of many steps.
    """
    columns = _columns(name, [step], [options["lr"]], options)
    values = [column[0] if isinstance(column, list) else column for column in columns]
    values[0] *= scale  # 1 or -1
    row[: len(values)] = values
    row[NUM_SCALARS] = TINY[row.dtype]


def _columns(name: str, steps: Sequence[float], rates: list[float], options: Mapping[str, Any]) -> tuple[Column, ...]:
    row = OPTIMIZERS[name]
    return row.scalars(steps, rates, **{key: options[key] for key in row.options if key != "lr"})


class Scalars:
    """The scalars of successive steps.

    A single row takes 4 us, half the time of a step of a small array. If the options are those of the step before, the
    rows of the next AHEAD steps are computed at once, in 0.5 us each.
    """

    def __init__(self, name: str, dtype: np.dtype[Any]) -> None:
        self.name = name
        self.rows = np.zeros((AHEAD, NUM_SCALARS + 1), dtype)
        self.options: dict[str, Any] = {}
        self.first = self.end = 0  # the steps that `rows` are for

    def fill(self, row: np.ndarray, step: int, options: Mapping[str, Any], scale: float = 1.0) -> None:
        """Write the scalars of one step, as `fill_row` does."""
        if self.options != options:
            self.options, self.first, self.end = dict(options), 0, 0
            fill_row(row, self.name, step, options, scale)
            return
        if not self.first <= step < self.end:
            self.first, self.end = step, step + AHEAD
            fill_scalars(self.rows, self.name, range(self.first, self.end), options)
        row[:] = self.rows[step - self.first]
        if scale != 1:
            row[0] *= scale
