"""Reading of data: rows for the backends from arrays and tables of users, and all that a model learns of them."""

from __future__ import annotations

import logging
import math
from typing import Any, NamedTuple, Protocol

import numpy as np

from .. import _frames
from .._frames import Features
from .._validation import check_finite, check_labels, check_matrix, finite_rows
from ..kernels.sources import Source
from ..kernels.spec import row_numbers
from ..losses import Loss, prepare_targets
from ..preprocessing import Normalization, Preprocessing, Statistics, learn, stages_of
from . import _features, _targets
from ._labels import Labels
from ._targets import TargetScale

log = logging.getLogger("fastopt")

NUMBERS = "biuf"  # kinds of dtypes
Names = tuple[str, str]  # of x and y in messages


class Data(NamedTuple):
    """Checked rows for the backends."""

    x: np.ndarray | Source  # (n, inputs) of the model's dtype, or a source of any
    y: np.ndarray  # (n,) int64 labels, or (n, outputs) of the model's dtype
    weights: np.ndarray | None = None  # (n,) of the model's dtype, finite, 0 or normal; None: all 1
    rows: np.ndarray | None = None  # numbers of those that count; None: all

    @property
    def features(self) -> Any:
        """The features as they are stored."""
        return self.x.values if isinstance(self.x, Source) else self.x

    @property
    def targets(self) -> np.ndarray:
        """Those of the rows that count."""
        return self.y if self.rows is None else self.y[self.rows]

    @property
    def row_weights(self) -> np.ndarray | None:
        """Those of the rows that count; None: all 1."""
        return self.weights if self.rows is None or self.weights is None else self.weights[self.rows]


class Raw(NamedTuple):
    """Rows of a user: numbers and labels, neither prepared by layers nor checked for NaN and infinity."""

    x: Features  # of all rows, in their own dtype
    y: Labels | np.ndarray  # of the rows without gaps: labels, or real numbers (m,) or (m, outputs)
    labels: Labels | None = None  # of all rows, those with gaps included
    rows: np.ndarray | None = None  # (m,) numbers of the rows without gaps; None: there are none with gaps

    @property
    def given(self) -> int:
        """Number of rows that were given."""
        return len(self.x.values)

    @property
    def num_rows(self) -> int:
        """Number of rows without gaps."""
        return len(self.x.values) if self.rows is None else len(self.rows)

    def numbers_of(self, rows: np.ndarray) -> np.ndarray:
        """Numbers, among the rows without gaps, of those of `rows` (m,) that have none.

        Raises ValueError where there are none, and for a number past all rows.
        """
        if len(rows) and int(rows.max()) >= self.given:
            raise ValueError(f"rows must be numbers below {self.given}, of the rows of x; got {rows.max()}")
        if self.rows is None:
            return rows
        numbers = np.full(self.given, -1, np.int64)
        numbers[self.rows] = np.arange(len(self.rows))
        found = numbers[rows]
        if (found < 0).all():
            raise ValueError(f"every one of these {len(rows)} rows has NaN or infinity")
        return found[found >= 0].astype(rows.dtype)

    def of_all(self, values: np.ndarray) -> np.ndarray:
        """Values (m, ...) of the rows without gaps, as of all rows: those with gaps, never read, have the first's."""
        if self.rows is None:
            return values
        spread = np.empty((self.given, *values.shape[1:]), values.dtype)
        spread[...] = values[0]
        spread[self.rows] = values
        return spread


class Learnt(NamedTuple):
    """Names, statistics and labels that a model learns from its first data; its weights mean nothing without them."""

    feature_names: tuple[str, ...] | None = None
    statistics: tuple[Statistics | None, ...] = ()  # one for each preprocessing layer
    target_scale: TargetScale | None = None
    classes: np.ndarray | None = None


class DataModel(Protocol):
    """The part of a model that reading its data asks for."""

    inputs: int | None
    outputs: int
    dtype: np.dtype
    names: tuple[str, ...]  # of the layers
    preprocessing: tuple[Preprocessing, ...]
    last_activation: str
    metrics: tuple[str, ...]
    epochs_done: int

    @property
    def feature_names(self) -> tuple[str, ...] | None:
        """Names of the features; None: not known."""

    def learnt_for(self, inputs: int) -> Learnt:
        """All that it has learnt, with the statistics of its layers, for `inputs` features."""


def read_x(
    model: DataModel, name: str, x: Any, inputs: int | None = None, known: tuple[str, ...] | None = None
) -> Features:
    """Return x as a matrix, not checked for NaN; ValueError for wrong columns.

    inputs  their number; by default the model's, and any where it has none
    known   their names, where they have names; by default those that the model knows
    """
    is_plain = type(x) is np.ndarray and x.ndim == 2 and x.dtype.kind in NUMBERS
    features = Features(x, None) if is_plain else _frames.features(name, x)
    if features.names is not None:
        _check_names(name, features.names, model.feature_names if known is None else known)
    try:
        check_matrix(name, features.values, model.inputs if inputs is None else inputs)
    except ValueError as error:
        shape = _shape(x)
        if len(shape) < 3:
            raise
        raise ValueError(f"{error}, flattened from {shape}") from None
    if is_plain and x.dtype == model.dtype and x.flags.c_contiguous and x.flags.aligned:
        return features
    dtype = np.dtype(np.float64) if model.preprocessing else model.dtype
    return Features(_features.readable(features.values, dtype), features.names)


def usable_as_is(model: DataModel, x: Any) -> bool:
    """Return true for a matrix that kernels can read, of a model that is built and does not prepare its data."""
    return (
        type(x) is np.ndarray
        and x.ndim == 2
        and x.dtype == model.dtype
        and x.shape[1] == model.inputs
        and x.shape[0] > 0
        and x.flags.c_contiguous
        and x.flags.aligned
        and not model.preprocessing
    )


def check_usable(name: str, x: np.ndarray) -> np.ndarray:
    """Return a matrix that is `usable_as_is` if all its numbers are finite; ValueError for others.

    The sum of the squares of a few numbers is cheaper than looking at each: 0.5 instead of 1.2 us for a row of 784.
    """
    is_finite = x.size <= _features.FEW and math.isfinite(np.vdot(x, x))
    return x if is_finite else check_finite(name, x)


def read(
    model: DataModel,
    names: Names,
    x: Any,
    y: Any,
    loss: Loss,
    nan: str,
    inputs: int | None = None,
    known: tuple[str, ...] | None = None,
) -> Raw:
    """Return rows of x with their targets; nan="skip" leaves out rows with missing or infinite values."""
    features = read_x(model, names[0], x, inputs, known)
    rows = len(features.values)
    shape = y.shape if type(y) is np.ndarray else _shape(y)
    if shape[:1] != (rows,):
        raise ValueError(
            f"{names[0]} and {names[1]} must have as many rows; got shapes {features.values.shape} and {shape}"
        )
    targets = _targets.read(names[1], y, loss.spec, model.outputs, gaps=nan == "skip")
    if nan == "raise":
        return Raw(features, targets, targets if isinstance(targets, Labels) else None)
    return _without_gaps(names, features, targets, None if model.preprocessing else model.dtype)


def learnt_from(model: DataModel, raw: Raw, rows: np.ndarray | None, loss: Loss, standardize: bool) -> Learnt:
    """Return all that the model knows after learning from its first data, of those without gaps from `rows`, None: all.

    Nothing is changed. Classes are those of all rows. Raises ValueError for data that cannot be learnt from.
    """
    inputs = raw.x.values.shape[1]
    known = model.learnt_for(inputs)
    if known.feature_names is not None and len(known.feature_names) != inputs:
        raise ValueError(f"x has {inputs} features, but model.feature_names are {len(known.feature_names)} names")
    statistics = list(known.statistics)
    if model.preprocessing:
        _features.check("x", raw.x, raw.rows)
        statistics = learn(model.preprocessing, statistics, raw.x.values, chosen(raw.rows, rows))
    classes, scale = known.classes, known.target_scale
    if raw.labels is not None and classes is None:
        classes = _targets.learn_classes("y", raw.labels, loss.spec, model.outputs)
    if standardize:
        _targets.check_scalable(loss.spec, model.last_activation, model.metrics)
        if scale is None and model.epochs_done:
            raise ValueError(
                "standardize_targets=True must be given to the first fit: the model has been trained on targets as"
                " they are"
            )
    if standardize and scale is None:
        targets = _targets.as_dense("y", raw.y, model.outputs)
        scale = _targets.learn_scale("y", targets if rows is None else targets[rows], model.dtype)
    return Learnt(known.feature_names or raw.x.names, tuple(statistics), scale, classes)


def without_scale(learnt: Learnt, loss: Loss) -> None:
    """Raise ValueError if a model has learnt to scale its targets, but those of the loss are classes."""
    if learnt.target_scale is not None:
        try:
            _targets.check_scalable(loss.spec, _targets.UNBOUNDED[0], ())
        except ValueError:
            raise ValueError(
                f"the model scales real-valued targets, and those of {loss.spec.name} are classes: set"
                " model.target_scale = None first"
            ) from None


def chosen(kept: np.ndarray | None, rows: np.ndarray | None) -> np.ndarray | None:
    """Return the numbers, among all rows, of `rows` of those that are kept; None: all."""
    return rows if kept is None else kept if rows is None else kept[rows]


def prepared(
    model: DataModel, name: str, x: Features, learnt: Learnt, rows: np.ndarray | None = None, batch_size: int = 0
) -> np.ndarray | Source:
    """Return features for the first layer after these, which are finite in the model's dtype: of `rows`, None: all.

    batch_size: as `source_of` has it.
    """
    values, is_plain = x.values, rows is None and x.names is None and not model.preprocessing
    if is_plain and type(values) is np.ndarray and values.dtype == model.dtype and values.flags.carray:
        return check_finite(name, values)
    for i, (layer, statistics) in enumerate(zip(model.preprocessing, learnt.statistics, strict=True)):
        if isinstance(layer, Normalization) and statistics is None:
            raise ValueError(f"layer {model.names[i]} has no mean and variance yet: call fit, or adapt(x), first")
    stages = stages_of(model.preprocessing, learnt.statistics, values.shape[1])
    return _features.source_of(name, x, stages, model.dtype, rows, batch_size)


def converted(model: DataModel, names: Names, raw: Raw, loss: Loss, learnt: Learnt, batch_size: int = 0) -> Data:
    """Return checked rows, with features and targets prepared as the model has learnt.

    batch_size: of the only pass over the rows, of which one batch is prepared at once; 0: there are more passes.
    """
    without_scale(learnt, loss)
    x = prepared(model, names[0], raw.x, learnt, raw.rows, batch_size)
    y: Any = raw.y
    if isinstance(y, Labels):
        y = _targets.prepare_labels(names[1], y, loss.spec, model.outputs, learnt.classes)
    elif learnt.target_scale is not None:
        y = _targets.scaled(_targets.as_dense(names[1], y, model.outputs), learnt.target_scale)
    num_rows = len(x) if raw.rows is None else len(raw.rows)
    if isinstance(raw.y, Labels) and _targets.takes_numbers(loss.spec):
        y = check_labels(names[1], y, model.outputs, rows=num_rows)
    else:
        y = prepare_targets(loss.spec, y, model.outputs, model.dtype, rows=num_rows, name=names[1])
    return Data(x, y if raw.rows is None else raw.of_all(y), rows=raw.rows)


def _without_gaps(names: Names, x: Features, y: Labels | np.ndarray, dtype: np.dtype | None) -> Raw:
    """Rows whose values are finite; dtype: they must be so in it, too, as no layer prepares them."""
    labels, is_finite = None, _features.finite_rows(x.values, dtype)
    if isinstance(y, Labels):
        present = finite_rows(y.values) if y.missing is None else finite_rows(y.values) & ~y.missing
        labels = Labels(y.values, None if present.all() else ~present)
        good = is_finite & present
    else:
        good = is_finite & finite_rows(y)
    dropped = len(good) - np.count_nonzero(good)
    if dropped == len(good):
        raise ValueError(f"every one of the {dropped} rows of {names[0]} and {names[1]} has NaN or infinity")
    if not dropped:
        return Raw(x, y, labels)
    log.warning("skipping %d of %d rows with NaN or infinity", dropped, len(good))
    rows = row_numbers(len(good))[good]
    return Raw(x, Labels(y.values[rows], None, rows) if isinstance(y, Labels) else y[rows], labels, rows)


def _shape(value: Any) -> tuple[int, ...]:
    """The shape of data of any library: (n,) of an object that has only a length, () of one that has none."""
    shape = getattr(value, "shape", None)
    if isinstance(shape, tuple):
        return tuple(shape)
    return () if isinstance(value, str | bytes | dict | set) or not hasattr(value, "__len__") else (len(value),)


def _check_names(name: str, given: tuple[str, ...] | None, known: tuple[str, ...] | None) -> None:
    """Raise ValueError for columns with other names, or in another order, than those the model was fitted on."""
    if given is None or known is None or given == known:
        return
    missing, unknown = [n for n in known if n not in given], [n for n in given if n not in known]
    if not missing and not unknown and len(given) == len(known):
        raise ValueError(
            f"{name} must have its columns in the order that the model was fitted on; got {_few(given)} for"
            f" {_few(known)}: give {name}[list(model.feature_names)]"
        )
    parts = [f"{what} {_few(some)}" for what, some in (("missing", missing), ("unknown", unknown)) if some]
    raise ValueError(f"{name} must have the columns that the model was fitted on; {', '.join(parts) or 'some twice'}")


def _few(names: Any) -> str:
    return ", ".join(map(repr, list(names)[:5])) + (", ..." if len(names) > 5 else "")
