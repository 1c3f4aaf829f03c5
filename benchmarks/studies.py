"""A study's models, of the default sizes, shares and seeds: trained by a study, and by `fit` one after the other.

All take the same rows, seeds and epochs, so that their errors are the same to the bit.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

import fastopt as fo
from fastopt._task import task_of
from fastopt.study._grid import LAYERS, SHARES, Grid
from fastopt.study._journal import Journal
from fastopt.study._time_model import LARGE, TimeModel
from fastopt.study._timing import measure, medians, name_of_machine
from fastopt.study._training import Data, train

INPUTS, CLASSES, BATCH = 784, 10, 64  # those of Fashion-MNIST
EPOCHS, SEEDS = (1, 2), 3
Train = Callable[[], np.ndarray]  # trains all models anew, and returns their test errors, smaller sizes first


def data(rows: int) -> Data:
    """So many rows to train on, and a fifth as many to test on: ten clouds that overlap."""
    rng = np.random.default_rng(1)
    y = np.arange(rows + rows // 5) % CLASSES
    x = rng.standard_normal((CLASSES, INPUTS))[y] / 12 + rng.standard_normal((len(y), INPUTS))
    x = x.astype(np.float32)
    return Data(task_of(x[:rows], y[:rows], None), x[rows:], y[rows:])


def grid() -> Grid:
    """Six sizes, three shares, three seeds."""
    return Grid.of(LAYERS, SHARES, EPOCHS, BATCH, SEEDS)


def by_study(own: Data) -> Train:
    """The trainings of `study`, by `fit_many`."""

    def run() -> np.ndarray:
        journal = Journal(None, {})
        train(own, grid(), {}, journal, lambda share: None)
        found = sorted(journal.runs, key=lambda run: (LAYERS.index(run.layers), *run[1:5]))
        return np.array([run.test_error for run in found])

    return run


def one_by_one(own: Data) -> Train:
    """`fit` and `evaluate` of one model after the other."""
    x, y = own.task.x, own.task.y

    def run() -> np.ndarray:
        errors = []
        for unit in sorted(grid().units(own.task.rows), key=lambda unit: (LAYERS.index(unit.layers), *unit[1:])):
            layers = [fo.Dense(width, "relu") for width in unit.layers]
            model = fo.Sequential([*layers, fo.Dense(CLASSES, "softmax")], unit.seed)
            model.compile(fo.Adam(), "sparse_categorical_crossentropy", ["accuracy"])
            rows = own.rows_of(unit.rows, unit.seed)
            before = 0
            for last in EPOCHS:
                model.fit(x[rows], y[rows], last - before, BATCH, verbose=0)
                model.evaluate(x[rows[: len(own.y_test)]], y[rows[: len(own.y_test)]])
                errors.append(1.0 - model.evaluate(own.x_test, own.y_test)["accuracy"])
                before = last
        return np.array(errors)

    return run


def prediction(own: Data, repeats: int) -> tuple[list[float], float | None]:
    """Seconds of all times of a study, and the largest error of sizes of 50,000 parameters and more held out."""
    journal = Journal(None, {})
    measure(own, grid(), {}, repeats, journal, lambda share: None)
    found = medians(journal.timings, name_of_machine(own.task.backend))
    works = [own.shape.work(layers, rows, epochs, size) for layers, rows, size, epochs in found]
    model = TimeModel(works, list(found.values()))
    return [timing.seconds for timing in journal.timings], model.worst_held_out(LARGE)


CONTESTANTS: dict[str, Callable[[Data], Train]] = {"fastopt": by_study, "fastopt-fit": one_by_one}
TITLES = {"fastopt": "study", "fastopt-fit": "fit, one after the other"}
