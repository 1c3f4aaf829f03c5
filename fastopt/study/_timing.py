"""Times of trainings that have the machine to themselves."""

from __future__ import annotations

import platform
import time
import warnings
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

from ..kernels.cpu.runtime.launch import get_num_threads
from ..models.training import DIVERGED
from ._grid import Grid
from ._journal import Journal
from ._records import Timing
from ._training import Data

# Two numbers of epochs tell the cost of an epoch from that of a call: 3 at least, up to the most of the grid as long as
# they read no more rows than this, and a third of it. Trainings of a millisecond say little of longer ones: those of
# 38,000 parameters took up to four times as long for an epoch as in 20 of them, until threads were awake.
LEAST_EPOCHS, READ_ROWS = 3, 20_000
LONG = 2.0  # seconds of a training after which it is timed once, and one of three times the epochs is not
SHORT, AGAIN = 0.15, 7  # seconds together up to which a training is repeated within a round, and how often

Cell = tuple[tuple[int, ...], int, int, int]  # layers, rows, batch_size, epochs


def measure(
    data: Data, grid: Grid, settings: Mapping[str, Any], repeats: int, journal: Journal, show: Callable[[float], None]
) -> None:
    """Time every size, share and batch size that the journal lacks, in rounds, so that no size meets a busy machine."""
    machine = name_of_machine(data.task.backend)
    cells: list[Cell] = [
        (layers, rows, batch_size, epochs)
        for number in (0, 1)
        for layers in grid.layers
        for rows in grid.rows(data.task.rows)
        for batch_size in grid.batch_sizes
        for epochs in [timed_epochs(grid, rows)[number]]
    ]
    known: dict[Cell, list[float]] = {cell: [] for cell in cells}
    for timing in journal.timings:
        if timing.machine == machine and timing[:4] in known:
            known[timing[:4]].append(timing.seconds)
    warm: set[tuple[int, ...]] = set()
    for number in range(repeats):
        for i, cell in enumerate(cells):
            show((number * len(cells) + i) / (repeats * len(cells)))
            least = timed_epochs(grid, cell[1])[0]
            first = known[cell[0], cell[1], cell[2], least]
            is_long = bool(first) and min(first) > LONG
            if len(known[cell]) > number or (is_long and (number or cell[3] > least)):
                continue
            if cell[0] not in warm:  # kernels are compiled, or read from the disk
                _seconds(data, (cell[0], min(cell[1], 2 * cell[2]), cell[2], 1), settings)
                warm.add(cell[0])
            known[cell].append(_seconds(data, cell, settings))
            journal.add([Timing(*cell, known[cell][-1], machine)])
    show(1.0)


def timed_epochs(grid: Grid, rows: int) -> tuple[int, int]:
    """The two numbers of epochs that are timed on so many rows."""
    most = max(LEAST_EPOCHS, min(grid.epochs[-1], READ_ROWS // rows))
    return most // 3, most


def _seconds(data: Data, cell: Cell, settings: Mapping[str, Any]) -> float:
    """Median seconds of a `fit` of a new model, which has all threads; of a short one there are several."""
    layers, rows, batch_size, epochs = cell
    x, y = getattr(data.task.x, "iloc", data.task.x)[:rows], data.task.y[:rows]
    found: list[float] = []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", DIVERGED)
        while not found or (sum(found) < SHORT and len(found) < AGAIN):
            model = data.task.model({**settings, "layers": layers})
            start = time.perf_counter()
            model.fit(x, y, epochs, batch_size, standardize_targets=data.task.standardizes_targets, verbose=0)
            found.append(time.perf_counter() - start)
    return median(found)


def name_of_machine(backend: str) -> str:
    """The name by which times of machines are told apart."""
    threads = f", {get_num_threads()} threads" if backend == "cpu" else ""
    return f"{platform.node()}, {backend}{threads}"


def medians(timings: list[Timing], machine: str) -> dict[Cell, float]:
    """The median time of each training on a machine."""
    found: dict[Cell, list[float]] = {}
    for timing in timings:
        if timing.machine == machine:
            found.setdefault(timing[:4], []).append(timing.seconds)
    return {cell: median(seconds) for cell, seconds in found.items()}
