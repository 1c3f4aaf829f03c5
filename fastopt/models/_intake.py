"""Reading of data: rows for the backends from arrays and tables of users, and all that a model learns of them."""

from __future__ import annotations

import logging
import math
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from .. import _frames
from .._frames import Features
from .._validation import check_finite, check_labels, check_matrix, finite_rows
from ..losses import Loss, prepare_targets
from ..preprocessing import Normalization, Preprocessing, Statistics, apply, learn
from . import _targets
from ._labels import Labels
from ._targets import TargetScale

log = logging.getLogger("fastopt")

NUMBERS = "biuf"  # kinds of dtypes
FEW = 4096  # numbers of which the BLAS adds up the squares on the calling thread
Names = tuple[str, str]  # of x and y in messages


class Data(NamedTuple):
    """Checked rows for the backends."""

    x: np.ndarray  # (n, inputs) of the model's dtype
    y: np.ndarray  # (n,) int64 labels, or (n, outputs) of the model's dtype
    weights: np.ndarray | None = None  # (n,) of the model's dtype, finite, 0 or normal; None: all 1


class Raw(NamedTuple):
    """Rows of a user: numbers and labels, neither prepared by layers nor checked for NaN and infinity."""

    x: Features  # of the model's dtype already where no layer prepares them
    y: Labels | np.ndarray  # labels, or real numbers (n,) or (n, outputs)
    labels: Labels | None = None  # of all rows, those with gaps included
    kept: np.ndarray | None = None  # (rows given,) bool: those that are here; None: all

    @property
    def given(self) -> int:
        """Number of rows that were given."""
        return len(self.x.values) if self.kept is None else len(self.kept)


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
    return features if model.preprocessing else Features(_in_dtype(features.values, model.dtype), features.names)


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
    is_finite = x.size <= FEW and math.isfinite(np.vdot(x, x))
    return x if is_finite else check_finite(name, x)


def _in_dtype(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The array itself where kernels can read it; else a copy, in which a number that is too large is inf."""
    if values.dtype == dtype and values.flags.c_contiguous and values.flags.aligned and type(values) is np.ndarray:
        return values
    with np.errstate(over="ignore"):
        return np.require(values, dtype, ["C", "A"])


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
    return _without_gaps(names, features, targets)


def learnt_from(model: DataModel, raw: Raw, rows: NDArray[np.int64] | None, loss: Loss, standardize: bool) -> Learnt:
    """Return all that the model knows after learning from `rows` of its first data; None: from all rows.

    Nothing is changed. Classes are those of all rows. Raises ValueError for data that cannot be learnt from.
    """
    inputs = raw.x.values.shape[1]
    known = model.learnt_for(inputs)
    if known.feature_names is not None and len(known.feature_names) != inputs:
        raise ValueError(f"x has {inputs} features, but model.feature_names are {len(known.feature_names)} names")
    statistics = list(known.statistics)
    if model.preprocessing:
        _frames.check_cells("x", *raw.x)
        statistics = learn(model.preprocessing, statistics, raw.x.values, rows)
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


def prepared(model: DataModel, name: str, x: Features, learnt: Learnt) -> np.ndarray:
    """Return rows of features for the first Dense or Dropout: finite, of the model's dtype."""
    if not model.preprocessing:
        return _check_finite(name, x)
    for i, (layer, statistics) in enumerate(zip(model.preprocessing, learnt.statistics, strict=True)):
        if isinstance(layer, Normalization) and statistics is None:
            raise ValueError(f"layer {model.names[i]} has no mean and variance yet: call fit, or adapt(x), first")
    _check_finite(name, x)
    rows = apply(model.preprocessing, learnt.statistics, x.values, model.dtype)
    return _check_finite(name, Features(rows, x.names))


def _check_finite(name: str, x: Features) -> np.ndarray:
    is_plain = x.names is None and x.values.dtype.kind == "f"
    return check_finite(name, x.values) if is_plain else _frames.check_cells(name, *x)


def converted(model: DataModel, names: Names, raw: Raw, loss: Loss, learnt: Learnt) -> Data:
    """Return checked rows, with features and targets prepared as the model has learnt."""
    without_scale(learnt, loss)
    x = prepared(model, names[0], raw.x, learnt)
    y: Any = raw.y
    if isinstance(y, Labels):
        y = _targets.prepare_labels(names[1], y, loss.spec, model.outputs, learnt.classes)
        if _targets.takes_numbers(loss.spec):
            return Data(x, check_labels(names[1], y, model.outputs, rows=len(x)))
    elif learnt.target_scale is not None:
        y = _targets.scaled(_targets.as_dense(names[1], y, model.outputs), learnt.target_scale)
    return Data(x, prepare_targets(loss.spec, y, model.outputs, model.dtype, rows=len(x), name=names[1]))


def _without_gaps(names: Names, x: Features, y: Labels | np.ndarray) -> Raw:
    labels = None
    if isinstance(y, Labels):
        present = finite_rows(y.values) if y.missing is None else finite_rows(y.values) & ~y.missing
        labels = Labels(y.values, None if present.all() else ~present)
        good = finite_rows(x.values) & present
    else:
        good = finite_rows(x.values) & finite_rows(y)
    dropped = len(good) - np.count_nonzero(good)
    if dropped == len(good):
        raise ValueError(f"every one of the {dropped} rows of {names[0]} and {names[1]} has NaN or infinity")
    if not dropped:
        return Raw(x, y, labels)
    log.warning("skipping %d of %d rows with NaN or infinity", dropped, len(good))
    kept = Labels(y.values[good], None, np.flatnonzero(good)) if isinstance(y, Labels) else y[good]
    return Raw(x._replace(values=x.values[good]), kept, labels, good)


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
