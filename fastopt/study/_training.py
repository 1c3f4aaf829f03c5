"""Training of a grid of models by `fit_many`, and their errors after each number of epochs."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .._task import Task
from ..kernels.cpu.runtime.launch import get_num_threads
from ..models.history import History
from ..models.many import fit_many
from ..models.sequential import Sequential
from ..models.training import DIVERGED
from ._grid import Grid, Unit
from ._journal import Journal
from ._records import Run, Shape

# Models that are trained together, for each thread: a kill loses these, and threads wait for the last of them.
MODELS_A_THREAD = 2


class Data(NamedTuple):
    """Training rows, with the task that they are of, and test rows."""

    task: Task
    x_test: Any
    y_test: np.ndarray

    @property
    def shape(self) -> Shape:
        """Inputs and outputs of networks."""
        return Shape(self.task.x.shape[1], self.task.outputs, np.dtype(self.task.dtype).itemsize)

    @property
    def constant_error(self) -> float | None:
        """Test error of the best answer that is the same for all rows; None for rows of 0 and 1."""
        if not self.task.is_classification:
            return float(np.mean((self.y_test - self.task.y.mean(axis=0, dtype=np.float64)) ** 2))
        if self.task.y.ndim > 1:
            return None
        labels, counts = np.unique(self.task.y, return_counts=True)
        return float(np.mean(self.y_test != labels[counts.argmax()]))

    def rows_of(self, rows: int, seed: int) -> np.ndarray:
        """Numbers of the rows of a share: the first of an order of its seed, so that smaller shares are part of it."""
        return np.random.default_rng([self.task.seed, seed]).permutation(self.task.rows)[:rows]


def train(data: Data, grid: Grid, settings: Mapping[str, Any], journal: Journal, show: Callable[[float], None]) -> None:
    """Train the models that the journal lacks, the largest first; `show` is given the share of the work that is done.

    Trainings of more epochs go on from those of fewer: they are the same models.
    """
    units = grid.units(data.task.rows)
    cost = {unit: _cost(data.shape, unit) for unit in units}
    total, finished = sum(cost.values()), _finished(units, grid, journal.runs)
    left = sorted((unit for unit in units if unit not in finished), key=lambda unit: -cost[unit])
    done = sum(cost[unit] for unit in finished)
    show(done / total)
    together = MODELS_A_THREAD * get_num_threads()
    for first in range(0, len(left), together):
        some = left[first : first + together]
        journal.add(_train_some(data, some, grid.epochs, settings))
        done += sum(cost[unit] for unit in some)
        show(done / total)


def _cost(shape: Shape, unit: Unit) -> float:
    """A measure of the time of a model, good enough to say how much of the work is done."""
    work = shape.work(unit.layers, unit.rows, 1, unit.batch_size)
    return float(work.parameters * work.rows + 10_000 * work.steps)


def _finished(units: Iterable[Unit], grid: Grid, runs: Iterable[Run]) -> set[Unit]:
    """Models with a record for each number of epochs, or one that says that they diverged."""
    known: dict[Unit, set[int]] = {}
    for run in runs:
        epochs = known.setdefault(Unit(run.layers, run.rows, run.batch_size, run.seed), set())
        epochs.update(grid.epochs if run.has_diverged else [run.epochs])
    return {unit for unit in units if known.get(unit, set()) >= set(grid.epochs)}


def _train_some(data: Data, units: Sequence[Unit], epochs: Sequence[int], settings: Mapping[str, Any]) -> list[Run]:
    """Train some models together, and return their records."""
    task, records, before = data.task, [], 0
    models = [task._replace(seed=unit.seed).model({**settings, "layers": unit.layers}) for unit in units]
    seconds = dict.fromkeys(units, 0.0)
    trained = list(zip(units, models, strict=True))
    for last in epochs:
        histories = _fit(data, trained, last - before)
        for (unit, model), history in zip(trained, histories, strict=True):
            seconds[unit] += sum(history["seconds"])
            figures = _figures(data, unit, model) if math.isfinite(history["loss"][-1]) else {}
            records.append(Run(**unit._asdict(), epochs=last, seconds=seconds[unit], **figures))
        alive = {record[:4] for record in records if record.epochs == last and not record.has_diverged}
        trained, before = [(unit, model) for unit, model in trained if unit in alive], last
        if not trained:
            break
    return records


def _fit(data: Data, trained: Sequence[tuple[Unit, Sequential]], epochs: int) -> list[History]:
    task = data.task
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", DIVERGED)  # the table says so
        return fit_many(
            [model for _, model in trained], task.x, task.y,
            rows=[data.rows_of(unit.rows, unit.seed) for unit, _ in trained],
            epochs=epochs, batch_size=[unit.batch_size for unit, _ in trained],
            standardize_targets=task.standardizes_targets, verbose=0,
        )  # fmt: skip


def _figures(data: Data, unit: Unit, model: Sequential) -> dict[str, Any]:
    """Errors and losses, on no more training rows than are tested; none of a model that has diverged."""
    train_rows = data.rows_of(unit.rows, unit.seed)[: len(data.y_test)]
    found = [model.evaluate(*data.task.of(train_rows)), model.evaluate(data.x_test, data.y_test)]
    errors, losses = [_error(figures) for figures in found], [figures["loss"] for figures in found]
    if not all(map(math.isfinite, [*errors, *losses])):
        return {}
    return dict(zip(("train_error", "test_error", "train_loss", "test_loss"), [*errors, *losses], strict=True))


def _error(figures: Mapping[str, float]) -> float:
    if "accuracy" in figures:
        return 1.0 - figures["accuracy"]
    return figures.get("mean_squared_error", figures["loss"])
