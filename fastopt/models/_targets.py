"""Targets for a loss: class numbers from labels, and real numbers in units of their deviation; and the way back."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import _frames
from .._validation import as_numbers, check_finite, check_matrix
from ..kernels.formulas import LOSSES, METRICS
from ..kernels.spec import LossSpec
from ..preprocessing import moments
from . import _labels
from ._labels import Labels

BINARY = ("binary_crossentropy",)  # and those whose targets are signs
UNBOUNDED = ("linear", "leaky_relu")  # last activations that reach every scaled target


class TargetScale(NamedTuple):
    """Mean and deviation of every output, float64 (outputs,): a network's outputs times deviation, plus mean."""

    mean: NDArray[np.float64]
    deviation: NDArray[np.float64]


def classifies(loss: LossSpec, outputs: int) -> bool:
    """True if a row's target is one class: for losses of labels, and losses of two classes with one output."""
    row = LOSSES[loss.name]
    return row.targets == "labels" or (outputs == 1 and (row.signs or loss.name in BINARY))


def takes_numbers(loss: LossSpec) -> bool:
    """True for losses whose targets are numbers of classes."""
    return LOSSES[loss.name].targets == "labels"


def count_of_classes(outputs: int) -> int:
    """Return the number of classes that `outputs` outputs tell apart."""
    return max(outputs, 2)


def read(name: str, y: Any, loss: LossSpec, outputs: int, gaps: bool) -> Labels | np.ndarray:
    """Return targets as labels if the loss classifies, else as real numbers, a missing one as NaN.

    Unless `gaps` are allowed, those of a table are refused here, where the message can name the column.
    """
    if classifies(loss, outputs):
        is_plain = type(y) is np.ndarray and y.ndim == 1 and y.dtype.kind in "iu" and y.dtype.isnative
        return Labels(y, None) if is_plain else _labels.read(name, y)
    numbers = _frames.numbers_of(name, y)
    return numbers.values if gaps or numbers.names is None else _frames.check_cells(name, *numbers)


def learn_classes(name: str, y: Labels, loss: LossSpec, outputs: int) -> np.ndarray | None:
    """Return the classes of a model that has none yet, from all labels of its first `fit`; None: it has none.

    Labels that the loss takes as they are (0 ... outputs - 1; 0 and 1, or for some losses -1 and 1; probabilities) stay
    so. The number of any others must be that of the classes that the outputs tell apart.
    """
    values = y.values if y.missing is None else y.values[~y.missing]
    if values.dtype.kind == "b":  # False and True are known even if one does not occur
        return np.array([False, True]) if count_of_classes(outputs) == 2 else None
    if _as_they_are(values, loss, outputs):
        return _plain_classes(values, loss, outputs)
    if _are_fractions(values):
        return None  # `prepare_labels` or the check of targets refuses them
    classes = np.unique(values)
    if len(classes) != count_of_classes(outputs):
        many = "class" if len(classes) == 1 else "classes"
        raise ValueError(
            f"{name} has {len(classes)} {many} ({_labels.listed(classes)}), but {_advice(len(classes), outputs)}"
        )
    return classes


def prepare_labels(name: str, y: Labels, loss: LossSpec, outputs: int, classes: np.ndarray | None) -> np.ndarray:
    """Return labels for the check of targets: as they are if the loss takes them so, else their class numbers.

    Raises ValueError for a missing label, and for one that is not among the classes.
    """
    kind = y.values.dtype.kind
    if kind == "b" and count_of_classes(outputs) > 2:
        return y.values  # the check of targets refuses bools for more than two classes
    if kind in "iuf" and (classes is None or _takes(classes, loss, outputs)):
        # Whole numbers that the loss does not know are refused by its own check.
        return y.values if y.missing is None else _labels.check_present(name, y)
    if classes is None and kind == "b":
        classes = np.array([False, True])
    if classes is None:
        label = _labels.check_present(name, y)[0].item()
        raise ValueError(
            f"{name} has labels such as {label!r}, and the model has no classes yet: call fit, or set model.classes"
        )
    return _labels.encode(name, y, classes)[0]


def as_dense(name: str, y: Any, outputs: int) -> NDArray[np.float64]:
    """Return real-valued targets as a finite float64 matrix (n, outputs)."""
    targets = as_numbers(name, y, np.float64)
    if targets.ndim == 1 and outputs == 1:
        targets = targets.reshape(-1, 1)
    return check_finite(name, check_matrix(name, targets, columns=outputs, shape="(n, outputs)"))


def check_scalable(loss: LossSpec, activation: str, metrics: tuple[str, ...]) -> None:
    """Raise ValueError if targets of mean 0 and deviation 1 make no sense for loss, metrics or last activation."""
    row = LOSSES[loss.name]
    if row.targets != "dense" or row.link is not None or row.signs:
        raise ValueError(
            f"standardize_targets is for losses of real-valued targets; got {loss.name}, whose targets are classes"
        )
    of_classes = [name for name in metrics if METRICS[name].of_classes]
    if of_classes:
        raise ValueError(
            f"standardize_targets is for real-valued targets, of which there is no {of_classes[0]}: leave it out"
        )
    if activation not in UNBOUNDED:
        raise ValueError(
            f"standardize_targets needs a last layer that gives any number, such as a linear one; got {activation}"
        )


def learn_scale(name: str, targets: NDArray[np.float64], dtype: np.dtype) -> TargetScale:
    """Return mean and deviation of targets (n, outputs); a constant one has deviation 1."""
    mean, variance = moments(lambda: iter([np.ascontiguousarray(targets)]))  # memory order decides the bits of a sum
    deviation = np.sqrt(variance)
    deviation[deviation == 0] = 1.0
    if (np.abs(mean) + deviation > np.finfo(dtype).max).any():
        raise ValueError(f"{name} is too large for a model of {dtype}: use dtype='float64'")
    return TargetScale(mean, deviation)


def check_scale(value: Any, outputs: int) -> TargetScale:
    """Return a copy of (mean, deviation), numbers or arrays (outputs,): finite, deviations positive."""
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise TypeError("target_scale must be None or (mean, deviation)")
    arrays = []
    for what, given in zip(("mean", "deviation"), value, strict=True):
        name = f"the {what} of target_scale"
        array = check_finite(name, as_numbers(name, given, np.float64))
        if array.shape not in ((), (outputs,)):
            raise ValueError(f"{name} must have shape ({outputs},); got {array.shape}")
        arrays.append(np.array(np.broadcast_to(array, (outputs,))))
    if (arrays[1] <= 0).any():
        raise ValueError(f"the deviation of target_scale must be positive; got {arrays[1].min():g}")
    return TargetScale(*arrays)


def scaled(targets: NDArray[np.float64], scale: TargetScale) -> NDArray[np.float64]:
    """Return targets in units of their deviation."""
    return (targets - scale.mean) / scale.deviation


def unscaled(outputs: np.ndarray, scale: TargetScale) -> np.ndarray:
    """Return outputs in the units of the targets, in their own dtype."""
    with np.errstate(over="ignore"):
        return np.asarray(outputs * scale.deviation + scale.mean, outputs.dtype)


def _as_they_are(values: np.ndarray, loss: LossSpec, outputs: int) -> bool:
    """True for numbers that the loss takes without renumbering; NaN, a missing label, does not count."""
    if values.dtype.kind not in "iuf":
        return False
    row = LOSSES[loss.name]
    if values.dtype.kind == "f":
        values = values[~np.isnan(values)]
    if row.targets == "labels":
        return bool(((values >= 0) & (values < outputs) & (values == np.floor(values))).all())
    if row.signs:
        return any(bool(((values == low) | (values == 1)).all()) for low in (0, -1))
    return bool(((values >= 0) & (values <= 1)).all())


def _plain_classes(values: np.ndarray, loss: LossSpec, outputs: int) -> np.ndarray | None:
    """The classes of labels that the loss takes unchanged; None if they are unknown."""
    dtype = np.dtype(np.float64 if values.dtype.kind == "f" else np.int64)
    if LOSSES[loss.name].targets == "labels":
        return np.arange(outputs, dtype=dtype)
    for low in (0, -1):
        if (values == low).any() and ((values == low) | (values == 1)).all():
            return np.array([low, 1], dtype)
    return None


def _takes(classes: np.ndarray, loss: LossSpec, outputs: int) -> bool:
    """True if the loss takes the labels of these classes as they are."""
    if classes.dtype.kind not in "biuf":
        return False
    return np.array_equal(classes, np.arange(count_of_classes(outputs))) or (
        LOSSES[loss.name].signs and np.array_equal(classes, [-1, 1])
    )


def _are_fractions(values: np.ndarray) -> bool:
    return values.dtype.kind == "f" and bool((~np.isfinite(values) | (values != np.floor(values))).any())


def _advice(classes: int, outputs: int) -> str:
    more = "; or say by model.classes which there are" if classes < count_of_classes(outputs) else ""
    if outputs == 1:
        several = f": use sparse_categorical_crossentropy and Dense({classes})" if classes > 2 else ""
        return f"one output tells two apart{several}{more}"
    return f"the last layer has {outputs} outputs: make it Dense({classes}){more}"


def decision_rule(loss: LossSpec | None, activation: str, outputs: int) -> str | None:
    """Return the way to read outputs as classes: "largest", "above 0.5" or "above 0"; None if they are not classes."""
    row = None if loss is None else LOSSES[loss.name]
    if activation == "softmax" or (row is not None and row.link == "softmax"):
        return "largest"
    if row is None or loss is None:
        return "above 0.5" if activation == "sigmoid" else None
    if row.signs or loss.name in BINARY:
        # binary_crossentropy after a sigmoid gets logits; a sigmoid before a loss of signs is a score like others.
        return "above 0.5" if activation == row.link else "above 0"
    return None


def classes_of(outputs: np.ndarray, rule: str, classes: np.ndarray | None) -> np.ndarray:
    """Return the classes (n,) of outputs (n, K); for several yes-or-no outputs (n, K) of 1 and 0."""
    if np.isnan(outputs).any():
        raise ValueError(f"the model gives NaN, such as in row {int(np.argmax(np.isnan(outputs).any(axis=1)))}")
    if rule == "largest":
        codes = outputs.argmax(axis=1)
    else:
        codes = (outputs > (0.5 if rule == "above 0.5" else 0.0)).astype(np.int64)
        if codes.shape[1] > 1:
            return codes
        codes = codes[:, 0]
    return codes if classes is None else _labels.decode(codes, classes)
