"""The search: trials of settings, each trained on all folds, run by Optuna."""

from __future__ import annotations

import math
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from .._backends import known as known_backend
from .._metrics import canonical
from .._task import Task, task_of
from ..kernels.cpu.runtime.launch import get_num_threads, set_num_threads
from ..models.progress import tqdm_class, wants_bar
from ..models.sequential import Sequential
from ..models.training import DIVERGED
from ._folds import folds_of
from ._objective import Objective
from ._options import TRIALS, Options
from ._optuna import optuna
from ._result import SearchResult
from ._space import Space
from ._study import FINISHED, GridTrials, Trials, open_study


def search(
    x: Any,
    y: Any,
    space: Mapping[str, Any],
    *,
    trials: int | None = None,
    sampler: str = "tpe",
    cv: Any = 3,
    epochs: int = 20,
    loss: str | None = None,
    monitor: str | None = None,
    patience: int | None = None,
    prune: bool = True,
    standardize: bool = False,
    build: Callable[[dict[str, Any]], Sequential] | None = None,
    jobs: int = 1,
    storage: Any = None,
    name: str = "fastopt",
    resume: bool = False,
    timeout: float | None = None,
    seed: int = 0,
    backend: str = "cpu",
    dtype: str = "float32",
    verbose: int | str = "auto",
) -> SearchResult:
    """Train networks of many settings, validate them, and return all trials, the best first.

    x, y        (n, inputs) and (n,) or (n, outputs), arrays, a table of pandas or a matrix of scipy.sparse. Whole
                numbers, bools and strings are classes, other numbers are predicted, unless `loss` says otherwise
    space       settings by name: a range (low, high), or a `Range`; a list of choices; or a fixed value. There are
                layers (widths of hidden layers), activation, dropout, optimizer, batch_size, epochs, accumulate, and
                the arguments of optimizers, such as lr, weight_decay and momentum: a trial has those that its optimizer
                takes. lr, weight_decay, l1, clip_norm, clip_value and batch_size are drawn on a logarithmic scale
    trials      number of trials, 20 by default; of a grid all its points
    sampler     "tpe", "random" or "grid" (lists alone), Optuna's
    cv          number of folds, those of classes stratified; 1 holds out a fifth of the rows; or a splitter of
                scikit-learn's, or a list of (training rows, validation rows) by their numbers
    epochs      of each training, where space has none
    monitor     the figure to search by: "val_accuracy" of classes, else "val_loss"; "val_" and a metric's name. The
                score of a trial is the mean over the folds, of the last epoch
    patience    stop a training after so many epochs without improvement; its figure is then the best one
    prune       give up trials whose figure is, in some epoch, worse than the median of those before (Optuna's
                MedianPruner, after 5 trials). Trials that diverge are given up in any case. Where False, and without
                patience, all folds are trained in one call of `fit_many`, if they are as many as threads
    standardize scale features, and targets that are numbers, by the training rows of each fold
    build       function of the settings that returns a compiled model, instead of dense networks: names of settings
                are then yours, but for batch_size, epochs and accumulate, which are those of `fit`
    jobs        trials at a time, in threads, which share the kernels' threads while the search runs. With more than one
                the trials that are drawn depend on their timing
    storage     database of the trials, such as "sqlite:///trials.db", that several processes and machines may share:
                each does some of the trials; or a storage object of Optuna's. None: memory
    name        of the study in the database
    resume      go on with a study that is there, until it has `trials`: a ValueError tells a study of other
                settings, data or folds. Trials that go on draw new random numbers
    timeout     seconds after which no further trial begins
    seed        of weights, batches, folds and the sampler
    backend     and `dtype`: those of `Sequential`
    verbose     1 for a progress bar on stderr, 0 for none, "auto" for one on a terminal and in a notebook

    Everything is checked before the first trial: TypeError or ValueError. An error in a training ends the search, and
    so does an interrupt; finished trials stay in the storage.

    >>> import fastopt as fo
    >>> data = fo.datasets.load("digits")
    >>> space = {"lr": [0.003, 0.03], "layers": [(16,), (32,)], "batch_size": 32}
    >>> result = search(data.x_train[:600], data.y_train[:600], space, sampler="grid", cv=2, epochs=3, backend="numpy")
    >>> result, result.best_settings["lr"], result.best_score > 0.7
    (SearchResult(4 trials of lr, layers), 0.03, True)
    """
    task = task_of(x, y, loss, standardize=standardize, dtype=dtype, backend=known_backend(backend), seed=seed)
    options = Options(
        trials, sampler, cv, epochs, monitor, patience, prune, build, jobs, storage, name, resume, timeout, verbose
    )
    return run(task, space, options)


def run(task: Task, space: Mapping[str, Any], options: Options) -> SearchResult:
    """Search on a task; see `search`."""
    options.check()
    checked = Space(space, known=options.build is None)
    default = "val_accuracy" if task.is_classification else "val_loss"
    monitor = canonical(default if options.monitor is None else options.monitor)
    if not monitor.startswith("val_"):
        raise ValueError(f"monitor must be a figure of the validation, such as {default}; got {monitor!r}")
    folds = folds_of(task, options.cv)
    objective = Objective(task, checked, options, monitor, folds)
    objective.check()
    grid = checked.check_grid() if options.sampler == "grid" else None
    with _quiet():
        study = open_study(task, checked, options, monitor, grid, folds)
        trials = Trials(study, options.trials or TRIALS) if grid is None else GridTrials(study, grid)
        _optimize(study, objective, trials, options, task.backend)
    fixed = {"epochs": options.epochs, "standardize_targets": task.standardizes_targets, "verbose": 0}
    return SearchResult(study, monitor, checked, objective.build, fixed)


def _optimize(study: Any, objective: Objective, trials: Trials, options: Options, backend: str) -> None:
    """Run trials until none is left, or the time is over."""
    end = math.inf if options.timeout is None else time.monotonic() + options.timeout
    with ExitStack() as stack:
        callbacks: list[Any] = [trials]
        if options.verbose and wants_bar(options.verbose):
            callbacks.append(stack.enter_context(_bar(trials)))
        if options.jobs > 1 and backend == "cpu":
            stack.enter_context(_shared_threads(options.jobs))
        while (left := trials.left()) and (seconds := end - time.monotonic()) > 0:
            trials.enqueue()
            timeout = None if options.timeout is None else seconds
            study.optimize(objective, n_trials=left, n_jobs=options.jobs, timeout=timeout, callbacks=callbacks)


@contextmanager
def _quiet() -> Iterator[None]:
    """While open, neither Optuna's messages on every trial nor warnings of trials that diverge."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", DIVERGED)
            yield
    finally:
        optuna.logging.set_verbosity(before)


@contextmanager
def _shared_threads(jobs: int) -> Iterator[None]:
    """While open, each of so many trainings at a time has its share of the threads."""
    before = get_num_threads()
    set_num_threads(max(1, before // jobs))
    try:
        yield
    finally:
        set_num_threads(before)


@contextmanager
def _bar(trials: Trials) -> Iterator[Callable[[Any, Any], None]]:
    """A progress bar over trials, and the function that Optuna calls after each."""
    tqdm, form = tqdm_class()
    bar = tqdm(
        total=trials.total, desc="trials", file=sys.stderr, dynamic_ncols=True,
        bar_format="{desc}: {percentage:3.0f}%|" + form + "| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]",
    )  # fmt: skip

    def show(study: Any, trial: Any) -> None:
        done = study.get_trials(deepcopy=False, states=FINISHED)
        if any(other.state == optuna.trial.TrialState.COMPLETE for other in done):
            bar.set_postfix_str(f"best {study.best_value:.4g}", refresh=False)
        bar.n = trials.total - trials.left()
        bar.refresh()

    try:
        yield show
    finally:
        bar.close()
