"""The study: a grid of models, trained and timed, and the laws that they follow."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from .. import _files
from .._backends import known as known_backend
from .._task import FIT, NETWORK, OPTIMIZER, Task, digest_of, sample_of, takes, task_of
from .._validation import check_count, check_name, check_number, describe
from ..models.progress import tqdm_class, wants_bar
from ..models.training import check_verbose
from ..optim import OPTIMIZER_CLASSES
from ._grid import EPOCHS, LAYERS, SHARES, Grid
from ._journal import Journal
from ._result import StudyResult
from ._timing import measure, name_of_machine
from ._training import Data, train


class Options(NamedTuple):
    """Options of `study` that concern neither data nor grid."""

    settings: Mapping[str, Any]
    repeats: int = 3
    storage: str | None = None
    resume: bool = False
    verbose: int | str = "auto"

    def check(self) -> None:
        """Raise TypeError or ValueError for impossible options."""
        check_count("repeats", self.repeats)
        if self.resume and self.storage is None:
            raise ValueError("resume goes on with a study in a file: storage must be given")
        check_verbose(self.verbose)
        if not isinstance(self.settings, Mapping):
            raise TypeError(f"settings must be a dict of settings by name; got {describe(self.settings)}")
        optimizer = check_name("optimizer", self.settings.get("optimizer", OPTIMIZER), OPTIMIZER_CLASSES)
        for name in self.settings:
            if name in ("layers", *FIT):
                raise ValueError(f"{name} must be an argument of study, not among settings")
            if name not in NETWORK and not takes(optimizer, name):
                raise ValueError(f"settings must be activation, dropout, optimizer or arguments of it; got {name!r}")


def study(
    x: Any,
    y: Any,
    *,
    layers: Any = LAYERS,
    shares: Any = SHARES,
    epochs: Any = EPOCHS,
    batch_size: Any = 64,
    seeds: Any = 3,
    test_data: tuple[Any, Any] | None = None,
    test_split: float = 0.2,
    loss: str | None = None,
    settings: Mapping[str, Any] | None = None,
    standardize: bool = False,
    repeats: int = 3,
    storage: str | None = None,
    resume: bool = False,
    seed: int = 0,
    backend: str = "cpu",
    dtype: str = "float32",
    verbose: int | str = "auto",
) -> StudyResult:
    """Train models of many sizes on shares of the data, time them, and return the laws of their errors and times.

    x, y        (n, inputs) and (n,) or (n, outputs), arrays, a table of pandas or a matrix of scipy.sparse. Whole
                numbers, bools and strings are classes, other numbers are predicted, unless `loss` says otherwise
    layers      sizes of models: a list of widths of hidden layers, such as [(32,), (64, 32)]
    shares      of the training rows, above 0 and at most 1. Which rows they are depends on the seed of the model
    epochs      numbers of epochs after which errors are taken, of the same training
    batch_size  one, or a list. Errors are told for the best of them, and times depend on it
    seeds       number of models of each combination, or a list of their seeds
    test_data   (x, y) to test on; without it `test_split` of the rows are held out
    settings    of all models: activation, dropout, optimizer and its arguments, as in `fastopt.search.search`
    standardize scale features, and targets that are numbers, by the training rows
    repeats     measurements of each time, of which the median counts; of an epoch of more than 2 s there is one
    storage     file of the results, to which they are appended as they come: `resume=True` goes on with it after an
                interrupt or a kill, also with more sizes, shares, epochs or seeds. The same data and settings are
                needed; times of other machines do not count
    seed        of rows held out and of shares
    backend     and `dtype`: those of `Sequential`
    verbose     1 for a progress bar on stderr, 0 for none, "auto" for one on a terminal and in a notebook

    Errors are shares of wrong classes, or mean squared errors; training errors are those of no more rows than are
    tested. Models are trained by `fit_many`; times are those of `fit` alone, with all threads, of 3
    epochs at least and of a third of them. Everything is checked before the first training: TypeError or ValueError.

    >>> import fastopt as fo
    >>> data = fo.datasets.load("digits")
    >>> grid = {"layers": [2, 8, 32], "epochs": 4, "seeds": 1, "settings": {"lr": 0.01}}
    >>> result = study(data.x_train, data.y_train, **grid, repeats=1)
    >>> result, result.best(parameters=1000).layers
    (StudyResult(3 sizes, 3 shares, 9 models), (8,))
    """
    options = Options(settings or {}, repeats, storage, resume, verbose)
    options.check()
    seed, backend = check_count("seed", seed, least=0), known_backend(backend)
    task = task_of(x, y, loss, standardize=standardize, dtype=dtype, backend=backend, seed=seed)
    grid = Grid.of(layers, shares, epochs, batch_size, seeds)
    return run(_split(task, test_data, test_split), grid, options)


def run(data: Data, grid: Grid, options: Options) -> StudyResult:
    """Study on checked data; see `study`."""
    options.check()
    grid.check(data.task.rows)
    for layers in grid.layers:
        data.task.model({**options.settings, "layers": layers})  # raises for settings that no network has
    _check_test_rows(data)
    header = _header(data, options.settings)
    path = None if options.storage is None else _files.path_of("storage", options.storage)
    journal = Journal(path, header, options.resume)
    with _bar(options.verbose, "times") as show:
        measure(data, grid, options.settings, options.repeats, journal, show)
    with _bar(options.verbose, "models") as show:
        train(data, grid, options.settings, journal, show)
    task = data.task
    return StudyResult(
        grid, data.shape, task.rows, len(data.y_test), task.is_classification, journal.runs, journal.timings,
        name_of_machine(task.backend), header, data.constant_error,
    )  # fmt: skip


def _split(task: Task, test_data: Any, test_split: float) -> Data:
    """Training and test rows."""
    if test_data is not None:
        if not isinstance(test_data, tuple | list) or len(test_data) != 2:
            raise TypeError(f"test_data must be a tuple (x, y); got {describe(test_data)}")
        x, y = test_data
        rows = x if hasattr(x, "iloc") else x.tocsr() if hasattr(x, "tocsr") else np.asarray(x)
        targets = np.asarray(y)
        if targets.ndim == 2 and targets.shape[1] == 1:
            targets = targets[:, 0]
        if rows.shape[:1] != targets.shape[:1] or rows.shape[1:] != task.x.shape[1:]:
            raise ValueError(
                f"test_data must be x (n, {task.x.shape[1]}) and y of as many rows; got {rows.shape} and"
                f" {targets.shape}"
            )
        if task.classes is not None:
            unknown = np.setdiff1d(targets, task.classes)
            if len(unknown):
                raise ValueError(f"labels of test_data must be among those of y; got {unknown[:1].tolist()[0]!r}")
        return Data(task, rows, targets)
    held_out = round(check_number("test_split", test_split, 0.0, 1.0) * task.rows)
    if not 0 < held_out < task.rows:
        raise ValueError(f"test_split must leave rows to train and to test on; got {test_split} of {task.rows} rows")
    order = np.random.default_rng(task.seed).permutation(task.rows)
    x_test, y_test = task.of(np.sort(order[:held_out]))
    x, y = task.of(np.sort(order[held_out:]))
    return Data(task._replace(x=x, y=y), x_test, y_test)


def _check_test_rows(data: Data) -> None:
    """Raise TypeError or ValueError for test rows that no model takes, before the first training."""
    model = data.task._replace(standardize=False, backend="numpy").model({"layers": ()})
    model.build(data.shape.inputs)
    try:
        model.evaluate(data.x_test, data.y_test)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{error} (of the rows to test on)") from error


def _header(data: Data, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The data and settings of a study, by which a file is known again."""
    task = data.task
    return {
        "rows": task.rows, "test_rows": len(data.y_test), "inputs": data.shape.inputs, "outputs": task.outputs,
        "loss": task.loss, "is_classification": task.is_classification, "standardize": task.standardize,
        "dtype": task.dtype, "backend": task.backend, "seed": task.seed, "settings": _plain(settings),
        "digest": digest_of(task.y, data.y_test, *(sample_of(x) for x in (task.x, data.x_test))),
    }  # fmt: skip


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings in values of JSON; schedules and other objects by their `repr`."""
    found: dict[str, Any] = json.loads(json.dumps(dict(settings), default=_plainly))
    return found


def _plainly(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else repr(value)


@contextmanager
def _bar(verbose: int | str, name: str) -> Iterator[Callable[[float], None]]:
    """A progress bar over the work, and the function that is given the share of it that is done."""
    if not wants_bar(verbose):
        yield lambda share: None
        return
    tqdm, form = tqdm_class()
    bar = tqdm(
        total=1.0, desc=name, file=sys.stderr, dynamic_ncols=True,
        bar_format="{desc}: {percentage:3.0f}%|" + form + "| [{elapsed}<{remaining}]",
    )  # fmt: skip

    def show(share: float) -> None:
        bar.n = min(share, 1.0)
        bar.refresh()

    try:
        yield show
    finally:
        bar.close()
