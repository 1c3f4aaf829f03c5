"""Training of many models on the same data, each on one thread: `fit_many`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from .._validation import describe
from ..batches import BatchSize
from ..callbacks import Callback
from ..kernels.spec import row_numbers
from . import _queue, training
from ._items import are_items, gathered
from ._shared_intake import SharedIntake
from .history import History
from .progress import ModelBar, wants_bar
from .sequential import Sequential
from .training import FitOptions

Value = TypeVar("Value")


def fit_many(
    models: Sequence[Sequential],
    x: Any,
    y: ArrayLike,
    rows: Sequence[ArrayLike] | None = None,
    epochs: int | Sequence[int] = 1,
    batch_size: BatchSize | Sequence[BatchSize] = 32,
    validation_split: float = 0.0,
    validation_data: Any = None,
    shuffle: bool | str = True,
    callbacks: Sequence[Sequence[Callback]] | None = None,
    verbose: int | str = "auto",
    nan: str = "raise",
    accumulate: int = 1,
    standardize_targets: bool = False,
    sample_weight: ArrayLike | None = None,
    class_weight: Any = None,
    drop_last: bool = False,
) -> list[History]:
    """Train models on the same data, as many at a time as there are threads; return the `History` of each.

    Weights, states and figures are, bit for bit, those of `model.fit(x, y, ...)` one after the other. Each model has
    one thread. Those of the backend "cpu" at whose epochs nobody looks are one compiled call together; with callbacks
    or validation, they are trained by Python threads. On other backends models are trained one after the other.

    models      compiled `Sequential` models, each of them once; they may differ in all that they are made of
    x, y        as in `fit`, (n, inputs) and n targets, which all models share: they are checked, and converted where
                kernels cannot read them as they are, once for all models that read alike
    rows        for each model the numbers (m,) of the rows of x to train on, such as those of a fold, in the order in
                which `shuffle` finds them; None: all. A `fit` to x[rows] and y[rows] has the same bits. The labels of
                all rows are the classes
    epochs, batch_size  as in `fit`; or a sequence with the one of each model
    callbacks   a sequence of callbacks for each model, each callback for one model. They run in the thread of their
                model. None: there are none
    verbose     1 for a progress bar on stderr that counts models, 0 for none, "auto" for one on a terminal and in a
                notebook

    The others are as in `fit`. sample_weight is (n,), of all rows.

    All models are checked before anything changes: TypeError or ValueError, which begins with the number of the model.
    An interrupt (Ctrl-C) ends all of them between two batches, or those with callbacks or validation at the end of
    their epochs; KeyboardInterrupt is raised then. Models are as after an interrupted `fit`, and those that were not
    begun have the weights that they began with. An exception in a callback ends the other models in the same way.

    >>> import numpy as np, fastopt as fo
    >>> x = np.linspace(-1, 1, 64).reshape(-1, 1)
    >>> models = [fo.Sequential([fo.Dense(8, "tanh"), fo.Dense(1)], seed=seed) for seed in range(4)]
    >>> for model in models:
    ...     model.compile(fo.Adam(lr=0.03), loss="mean_squared_error")
    >>> folds = np.arange(64).reshape(16, 4).T
    >>> rest = [np.setdiff1d(np.arange(64), fold) for fold in folds]
    >>> histories = fo.fit_many(models, x, x**2, rows=rest, epochs=60, batch_size=16)
    >>> [model.evaluate(x[fold], x[fold] ** 2)["loss"] < 0.02 for model, fold in zip(models, folds)]
    [True, True, True, True]
    """
    own = _checked_models(models)
    training.check_verbose(verbose)
    count, among = len(own), _rows(rows, len(own))
    if are_items(validation_data):  # read once, for all
        validation_data = gathered("validation_data", validation_data)
    per_model = zip(
        _each("epochs", epochs, count),
        _each("batch_size", batch_size, count),
        _callbacks(callbacks, count),
        strict=True,
    )
    options = []
    for i, (last, size, calls) in enumerate(per_model):
        with _named(i):
            options.append(
                FitOptions(
                    last,
                    size,
                    validation_split,
                    validation_data,
                    shuffle,
                    calls,
                    0,
                    nan=nan,
                    accumulate=accumulate,
                    standardize_targets=standardize_targets,
                    sample_weight=sample_weight,
                    class_weight=class_weight,
                    drop_last=drop_last,
                )
            )
    with ExitStack() as stack:
        for model in own:
            stack.enter_context(model._use.exclusive("fit_many", trains=True))
        intake, checked = SharedIntake(), []
        for i, (model, option, some) in enumerate(zip(own, options, among, strict=True)):
            with _named(i):
                checked.append(model._checked_fit(x, y, option, some, intake))
        del intake
        plans = [model._settled(*found) for model, found in zip(own, checked, strict=True)]
        del checked
        trainings = [_queue.Training(model, plan) for model, plan in zip(own, plans, strict=True)]
        backends = {model.backend for model in own}
        bar = stack.enter_context(ModelBar(count)) if wants_bar(verbose) else None
        for backend in backends if bar else ():
            stack.enter_context(training.compiling(backend, bar.compiling))  # type: ignore[union-attr]
        _queue.run(trainings, bar.show if bar else None)
    return [this.history for this in trainings]


@contextmanager
def _named(number: int) -> Iterator[None]:
    """While open, TypeError and ValueError say which model they are about."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise type(error)(f"models[{number}]: {error}") from error


def _checked_models(models: Any) -> list[Sequential]:
    if isinstance(models, Sequential) or not isinstance(models, Sequence):
        raise TypeError(f"models must be a list of Sequential; got {describe(models)}")
    for i, model in enumerate(models):
        if not isinstance(model, Sequential):
            raise TypeError(f"models[{i}] must be a Sequential; got {describe(model)}")
        first = next(j for j, other in enumerate(models) if other is model)
        if first != i:
            raise ValueError(f"models must be different; models[{i}] is models[{first}]: give a copy.deepcopy of it")
    return list(models)


def _each(name: str, value: Any, count: int) -> list[Any]:
    """The value of each of so many models: `value` itself, or its own of a sequence of values."""
    if not isinstance(value, list | tuple | np.ndarray):
        return [value] * count
    if len(value) != count:
        raise ValueError(f"{name} must be one value, or one for each of the {count} models; got {len(value)} values")
    return value.tolist() if isinstance(value, np.ndarray) else list(value)


def _rows(rows: Any, count: int) -> list[np.ndarray | None]:
    """The numbers of the rows of each model, as of `row_numbers`; None: all."""
    if rows is None:
        return [None] * count
    if not isinstance(rows, Sequence | np.ndarray) or len(rows) != count:
        raise ValueError(f"rows must be a list of row numbers for each of the {count} models; got {describe(rows)}")
    found: list[np.ndarray | None] = []
    for i, some in enumerate(rows):
        numbers = None if some is None else np.asarray(some)
        if numbers is None:
            found.append(None)
            continue
        if numbers.ndim != 1 or numbers.dtype.kind not in "iu" or not len(numbers):
            hint = ": give np.flatnonzero of it" if numbers.dtype == bool else ""
            raise ValueError(f"rows[{i}] must be whole numbers (m,), m at least 1; got {describe(some)}{hint}")
        least, most = int(numbers.min()), int(numbers.max()) + 1
        if least < 0 or most > 1 << 63:  # int64 would wrap around
            raise ValueError(f"rows[{i}] must be numbers of rows, from 0; got {least if least < 0 else most - 1}")
        found.append(np.ascontiguousarray(numbers, row_numbers(0).dtype if most <= 1 << 32 else np.int64))
    return found


def _callbacks(callbacks: Any, count: int) -> list[Sequence[Callback]]:
    """The callbacks of each model; ValueError for one that two models have."""
    if callbacks is None:
        return [()] * count
    if isinstance(callbacks, str) or not isinstance(callbacks, Sequence) or len(callbacks) != count:
        raise ValueError(
            f"callbacks must be a list of callbacks for each of the {count} models; got {describe(callbacks)}"
        )
    owners: dict[int, int] = {}
    for i, some in enumerate(callbacks):
        with _named(i):
            training.check_callbacks(some)
        for callback in some:
            if owners.setdefault(id(callback), i) != i:
                raise ValueError(
                    f"a callback must be that of one model; callbacks[{owners[id(callback)]}] and callbacks[{i}] have"
                    f" the same {type(callback).__name__}: make one for each"
                )
    return list(callbacks)
