"""Findings of a study: its laws, and answers to budgets and sizes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from .._text import aligned, in_bytes, in_one_unit
from .._validation import check_count, check_number, describe
from ._estimate import Estimate
from ._grid import Grid
from ._law import LEAST_POINTS, PowerLaw
from ._records import Run, Shape, Timing
from ._summary import Point, Verdict, best_of_each, points, shown, verdict
from ._time_model import TimeModel
from ._timing import medians


class Choice(NamedTuple):
    """A model of the grid that a budget allows.

    error    its mean test error
    seconds  predicted time of its training alone
    """

    layers: tuple[int, ...]
    rows: int
    batch_size: int
    epochs: int
    error: float
    seconds: Estimate
    parameters: int
    bytes: int


class Doubling(NamedTuple):
    """Consequences of twice as many rows: errors by the law of rows, and times of a training."""

    layers: tuple[int, ...]
    rows: int
    error: Estimate
    error_after: Estimate
    ratio: Estimate
    seconds: Estimate
    seconds_after: Estimate


@dataclass(frozen=True, eq=False)
class Findings:
    """Findings of a study.

    grid      sizes, shares, epochs, batch sizes and seeds
    shape     widths of the data
    rows      number of training rows, of which the shares are
    is_classification  errors are shares of wrong classes, else mean squared errors
    runs      records of all models, after each number of epochs
    timings   all measured times
    machine   name of the machine whose times count
    header    data and settings
    constant_error  test error of the best answer that is the same for all rows; None if it is not known
    """

    grid: Grid
    shape: Shape
    rows: int
    test_rows: int
    is_classification: bool
    runs: Sequence[Run]
    timings: Sequence[Timing]
    machine: str
    header: dict[str, Any]
    constant_error: float | None = None

    # ---------------------------------------------------------------- errors

    @cached_property
    def points(self) -> list[Point]:
        """Means over the seeds of every size, share, batch size and number of epochs, smaller sizes first."""
        return sorted(points(self._own_runs()), key=lambda point: (self.shape.parameters(point.layers), *point[:4]))

    def _own_runs(self) -> list[Run]:
        """The runs of the grid: a model that was trained twice, since its file lacked some epochs, counts once."""
        grid, rows = self.grid, self.grid.rows(self.rows)
        own = {
            (run.layers, run.rows, run.batch_size, run.seed, run.epochs): run
            for run in self.runs
            if run.layers in grid.layers
            and run.rows in rows
            and run.batch_size in grid.batch_sizes
            and run.seed in grid.seeds
            and run.epochs in grid.epochs
        }
        return list(own.values())

    @property
    def models(self) -> int:
        """Number of models that were trained."""
        return len({(run.layers, run.rows, run.batch_size, run.seed) for run in self._own_runs()})

    @property
    def diverged(self) -> int:
        """Number of models whose training diverged."""
        diverged = (run for run in self._own_runs() if run.has_diverged)
        return len({(run.layers, run.rows, run.batch_size, run.seed) for run in diverged})

    @cached_property
    def best_points(self) -> list[Point]:
        """The epochs and the batch size that are best for each size and share."""
        return best_of_each(self.points)

    @cached_property
    def best_point(self) -> Point:
        """The least mean test error on all rows; ValueError if every training diverged."""
        most = [point for point in self.best_points if point.rows == self.grid.rows(self.rows)[-1]]
        if not most:
            raise ValueError("all trainings diverged: a smaller learning rate may help, or standardize=True")
        return min(most, key=lambda point: point.test_error)

    @cached_property
    def verdicts(self) -> list[tuple[Point, Verdict]]:
        """A judgement of every size and share: underfits, overfits, unfinished (more epochs would help), or fits."""
        counts = {layers: self.shape.parameters(layers) for layers in self.grid.layers}
        return [
            (point, verdict(point, self.points, counts, self.is_classification, self.constant_error))
            for point in self.best_points
        ]

    @cached_property
    def law_of_parameters(self) -> PowerLaw | None:
        """Test error on all rows against parameters; None for fewer than three sizes."""
        most = self.grid.rows(self.rows)[-1]
        return self._law("parameters", [point for point in self.best_points if point.rows == most])

    @cached_property
    def law_of_rows(self) -> PowerLaw | None:
        """Test error of the best size against rows; None for fewer than three shares."""
        own = [point for point in self.best_points if point.layers == self.best_point.layers]
        return self._law("rows", own)

    @cached_property
    def law(self) -> PowerLaw | None:
        """Test error against parameters and rows together; None for fewer than three of either."""
        return self._law(("parameters", "rows"), self.best_points)

    def _law(self, names: str | tuple[str, ...], found: Sequence[Point]) -> PowerLaw | None:
        names = (names,) if isinstance(names, str) else names
        column: dict[str, Callable[[Point], float]] = {
            "parameters": lambda point: self.shape.parameters(point.layers),
            "rows": lambda point: point.rows,
        }
        rows = [[column[name](point) for name in names] for point in found for _ in point.errors]
        # fewer wrong rows than half of one are not seen
        least = 0.5 / self.test_rows if self.is_classification else np.finfo(np.float32).tiny
        errors = [max(error, least) for point in found for error in point.errors]
        x = np.array(rows, np.float64).reshape(len(errors), len(names))
        if any(len(np.unique(values)) < LEAST_POINTS for values in x.T):
            return None
        return PowerLaw(names, x, np.array(errors))

    def error(self, layers: Any, rows: int | None = None) -> Estimate:
        """Test error that the law of parameters and rows predicts for a model; ValueError without that law."""
        if self.law is None:
            raise ValueError(f"a law of errors needs {LEAST_POINTS} sizes and {LEAST_POINTS} shares of the data")
        return self.law.error(self.shape.parameters(_layers(layers)), self._rows(rows))

    # ---------------------------------------------------------------- times

    @cached_property
    def time(self) -> TimeModel:
        """The regression of training time on parameters, rows and epochs."""
        rows = self.grid.rows(self.rows)
        found = {
            cell: seconds
            for cell, seconds in medians(list(self.timings), self.machine).items()
            if cell[0] in self.grid.layers and cell[1] in rows and cell[2] in self.grid.batch_sizes
        }
        works = [self.shape.work(layers, rows, epochs, size) for layers, rows, size, epochs in found]
        return TimeModel(works, list(found.values()))

    def seconds(
        self, layers: Any, rows: int | None = None, epochs: int | None = None, batch_size: int | None = None
    ) -> Estimate:
        """Time of a training, predicted.

        layers: widths of the hidden layers. rows: all by default; epochs: the most of the grid; batch_size: the
        grid's least.
        """
        epochs = self.grid.epochs[-1] if epochs is None else check_count("epochs", epochs)
        size = self.grid.batch_sizes[0] if batch_size is None else check_count("batch_size", batch_size)
        return self.time.seconds(self.shape.work(_layers(layers), self._rows(rows), epochs, size))

    def _rows(self, rows: int | None) -> int:
        return self.rows if rows is None else check_count("rows", rows)

    # ---------------------------------------------------------------- allocation

    @cached_property
    def choices(self) -> list[Choice]:
        """All trained models, with their errors and predicted times."""
        return [self._choice(point) for point in self.points]

    def _choice(self, point: Point) -> Choice:
        seconds = self.seconds(point.layers, point.rows, point.epochs, point.batch_size)
        count, size = self.shape.parameters(point.layers), self.shape.bytes(point.layers)
        return Choice(*point[:4], point.test_error, seconds, count, size)

    def best(
        self, seconds: float | None = None, bytes: int | None = None, parameters: int | None = None
    ) -> Choice | None:
        """The trained model with the least mean test error within a budget, or None if none is within it.

        seconds     of the training, as predicted
        bytes       of the weights
        parameters  number of weights and biases
        """
        limits = {"seconds": seconds, "bytes": bytes, "parameters": parameters}
        for name, limit in limits.items():
            if limit is not None:
                check_number(name, limit, 0.0)
        allowed = [
            choice
            for choice in self.choices
            if (seconds is None or choice.seconds.value <= seconds)
            and (bytes is None or choice.bytes <= bytes)
            and (parameters is None or choice.parameters <= parameters)
        ]
        return min(allowed, key=lambda choice: (choice.error, choice.seconds.value), default=None)

    @cached_property
    def frontier(self) -> list[Choice]:
        """The models that no other beats in time and error both, the quickest first."""
        found: list[Choice] = []
        for choice in sorted(self.choices, key=lambda choice: (choice.seconds.value, choice.error)):
            if not found or choice.error < found[-1].error:
                found.append(choice)
        return found

    def twice_the_data(self) -> Doubling | None:
        """Error and time of the best size on twice the rows; None without a law of rows."""
        point, law = self.best_point, self.law_of_rows
        if law is None:
            return None
        rows = point.rows
        return Doubling(
            point.layers, rows, law.error(rows), law.error(2 * rows), law.ratio([rows], [2 * rows]),
            self.seconds(point.layers, rows, point.epochs, point.batch_size),
            self.seconds(point.layers, 2 * rows, point.epochs, point.batch_size),
        )  # fmt: skip

    # ---------------------------------------------------------------- tables

    def shown_error(self, error: float) -> str:
        """An error as a percentage of wrong classes, or as a number."""
        return shown(error, self.is_classification)

    def table(self) -> str:
        """Every size and share as a line of text, at the epochs and the batch size that are best for it."""
        return aligned(self.table_rows())

    def table_rows(self) -> list[list[str]]:
        """The rows of the table, the heading first."""
        rows = [["layers", "parameters", "bytes", "rows", "batch", "epochs", "training error", "test error", "+-",
                 "time", "verdict"]]  # fmt: skip
        for point, judged in self.verdicts:
            choice = self._choice(point)
            rows.append([
                self.shape.name(point.layers), f"{choice.parameters:,}", in_bytes(choice.bytes), f"{point.rows:,}",
                str(point.batch_size), str(point.epochs), self.shown_error(point.train_error),
                self.shown_error(point.test_error), self.shown_error(point.deviation) if point.seeds > 1 else "-",
                in_one_unit([choice.seconds.value])[0], judged.kind,
            ])  # fmt: skip
        return rows


def _layers(layers: Any) -> tuple[int, ...]:
    """Widths that a user gives: a number is one layer."""
    if isinstance(layers, str):
        raise TypeError(f"layers must be widths of hidden layers, such as (64, 32); got {describe(layers)}")
    listed = layers if isinstance(layers, tuple | list) else (layers,)
    return tuple(check_count("the width of a layer", width) for width in listed)
