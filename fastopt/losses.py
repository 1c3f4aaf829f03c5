"""Loss functions: the mean loss of a batch, and its gradient with respect to the outputs.

    loss = fastopt.losses.Huber(delta=0.5)
    loss(outputs, targets), loss.gradient(outputs, targets)

Common to all of them:

- outputs: (n, K), float32 or float64, in any strides; losses of single outputs also take a vector (n,). What a loss
  expects in them, logits or predictions, its docstring says. NaN among them gives NaN.
- targets: as the loss's docstring says; of any number type, but finite. For K = 1 they may be a vector (n,).
- The loss is a mean over rows (and outputs, except for the categorical losses), as a Python float. The gradient is
  that of the mean, a new array of the outputs' shape and dtype. Nothing is changed in place.
- TypeError: outputs that are not float32 or float64, targets that are not numbers. ValueError: shapes that do not fit,
  an empty batch, targets that the loss is not defined for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from . import _backends
from ._definitions import check_new_name
from ._validation import (
    as_float_array,
    as_numbers,
    as_signs,
    check_finite,
    check_in_domain,
    check_labels,
    check_matrix,
    check_name,
    check_range,
    check_row_sums,
)
from .kernels.formulas import LOSS_DOMAINS, LOSSES, Domain
from .kernels.spec import LossSpec

__all__ = [
    "ALIASES",
    "LOSS_CLASSES",
    "BinaryCrossentropy",
    "CategoricalCrossentropy",
    "Hinge",
    "Huber",
    "Loss",
    "MeanAbsoluteError",
    "MeanSquaredError",
    "Perceptron",
    "Quantile",
    "SparseCategoricalCrossentropy",
    "get",
    "prepare_targets",
]


class Loss:
    """Base of the losses: a row of LOSSES with its parameters, run on a backend."""

    name: ClassVar[str]
    _key: ClassVar[str] = ""  # row of LOSSES, if that is not `name`
    _domains: ClassVar[Mapping[str, Domain]] = LOSS_DOMAINS

    def __init__(self, backend: str = _backends.DEFAULT, **params: float) -> None:
        self.backend = _backends.check(backend)
        checked = {name: check_in_domain(name, value, self._domains[name]) for name, value in params.items()}
        self.spec = LossSpec(self._key or self.name, checked)  # as the backends take it

    @staticmethod
    def define(
        name: str,
        value: Any,
        gradient: Any,
        params: Mapping[str, Any] | None = None,
        targets: str = "numbers",
        link: str | None = None,
        check: bool = True,
    ) -> type[Loss]:
        """Define a loss by a function of an output and its target, and return its class, such as `Huber` is one.

        `fastopt.activations` says what a formula may be, and what becomes of it.

        Args:
            name: for `compile` and files: letters, digits and _, and none that fastopt has.
            value: value(z, t), the loss of an output z and its target t, a Python function; the loss of a batch is the
                mean over rows and outputs.
            gradient: gradient(z, t), its derivative by z.
            params: parameters, which both functions may take by their names: name -> default, or (default, least,
                most). Kernels hand on a single one; where there are several, each set of values is compiled anew.
            targets: "numbers"; "fractions", from 0 to 1; "signs", -1 and 1 (or 0 and 1, which mean the same), for two
                classes; or "labels", class numbers: value(log_p) and gradient(log_p) are then functions of the
                logarithm of the probability, by softmax, of a row's right class, and the loss is the mean over rows.
                Cross-entropy is value = -log_p, gradient = -1. Every set of parameters is compiled anew.
            link: activation whose inverse `value` includes. If the last layer has it, z is what it is applied to: a
                loss with the link "sigmoid" takes logits, as one of "labels" does, whose link is "softmax".
            check: False leaves out the comparison of `gradient` with finite differences of `value`.

        Returns:
            The class, whose arguments are the parameters and `backend`; `compile` takes it, an object of it, or `name`.

        Raises:
            TypeError: an argument of the wrong kind.
            ValueError: a name that fastopt has itself, or a function that is no formula, not the derivative, or other
                numbers when it is compiled; with the line of the function. Nothing is defined then.

        Example:
            >>> import math, fastopt as fo
            >>> def value(z, t):
            ...     return math.log(math.cosh(z - t))
            >>> LogCosh = fo.Loss.define("logcosh", value, lambda z, t: math.tanh(z - t))
            >>> round(LogCosh()([[1.0], [2.0]], [0, 0]), 4)
            0.8794
            >>> LogCosh().gradient([[1.0], [2.0]], [0, 0]).round(4).tolist()
            [[0.3808], [0.482]]

            The focal loss of Lin et al. 2017, (1 - p)^gamma times the cross-entropy:

            >>> def focal(log_p, gamma):
            ...     return -((1 - math.exp(log_p)) ** gamma) * log_p
            >>> def focal_slope(log_p, gamma):
            ...     p = math.exp(log_p)
            ...     return gamma * p * (1 - p) ** (gamma - 1) * log_p - (1 - p) ** gamma
            >>> Focal = fo.Loss.define("focal", focal, focal_slope, {"gamma": (2.0, 1.0, 9.0)}, targets="labels")
            >>> round(Focal()([[1.0, 2.0, 0.5], [0.0, 3.0, 1.0]], [0, 1]), 4)
            0.4348
        """
        from ._loss_definition import define

        check_new_name("loss", name, _BUILT_IN)
        LOSS_CLASSES[name] = made = define(Loss, name, value, gradient, params, targets, link, check)
        return made

    def __call__(self, outputs: Any, targets: Any) -> float:
        """The mean loss."""
        outputs, targets = self._checked(outputs, targets)
        return float(_backends.get(self.backend).loss(self.spec, outputs, targets))

    def gradient(self, outputs: Any, targets: Any) -> np.ndarray:
        """The gradient of the mean loss with respect to the outputs: a new array of their shape and dtype."""
        return self.value_and_gradient(outputs, targets)[1]

    def value_and_gradient(self, outputs: Any, targets: Any) -> tuple[float, np.ndarray]:
        """The mean loss and its gradient, in one pass."""
        shape = np.shape(outputs)
        outputs, targets = self._checked(outputs, targets)
        gradient = np.empty_like(outputs)
        value = float(_backends.get(self.backend).loss(self.spec, outputs, targets, gradient))
        return value, gradient.reshape(shape)

    def _checked(self, outputs: Any, targets: Any) -> tuple[np.ndarray, np.ndarray]:
        outputs = as_float_array("outputs", outputs)
        if outputs.ndim == 1 and not LOSSES[self.spec.name].by_row:
            outputs = outputs.reshape(-1, 1)
        check_matrix("outputs", outputs, shape="(n, outputs)")
        return outputs, prepare_targets(self.spec, targets, outputs.shape[1], outputs.dtype, rows=len(outputs))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v:g}' for k, v in self.spec.params.items())})"


def prepare_targets(
    spec: LossSpec, y: Any, outputs: int, dtype: np.dtype | type, *, rows: int, name: str = "targets"
) -> np.ndarray:
    """Targets as the kernels take them, checked: int64 labels (n,), or `dtype` (n, outputs).

    Targets -1 and 1 of the hinge and perceptron losses may be given as 0 and 1.

    Raises:
        TypeError: not real numbers.
        ValueError: a shape that does not fit `rows` and `outputs`, no row, NaN or infinity, labels that are out of
            range or fractional, or values that the loss is not defined for.
    """
    row = LOSSES[spec.name]
    if row.targets == "labels":
        return check_labels(name, y, outputs, rows)
    targets = as_numbers(name, y, dtype)
    if targets.ndim == 1 and outputs == 1:
        targets = targets.reshape(-1, 1)
    check_matrix(name, targets, columns=outputs, rows=rows, shape="(n, outputs)")
    check_finite(name, targets)
    if row.target_range is not None:
        check_range(name, targets, *row.target_range)
    if row.by_row:
        check_row_sums(name, targets)
    return as_signs(name, targets) if row.signs else targets


class MeanSquaredError(Loss):
    """Mean of (z - t)^2 over rows and outputs.

    Source: Gauss 1809. Targets: (n, K).

    Example:
        >>> import fastopt as fo
        >>> fo.losses.MeanSquaredError(backend="numpy")([[1.0], [2.0]], [0, 0])
        2.5
    """

    name = "mean_squared_error"

    def __init__(self, *, backend: str = _backends.DEFAULT) -> None:
        super().__init__(backend)


class MeanAbsoluteError(Loss):
    """Mean of |z - t| over rows and outputs; its gradient is 0 where z = t.

    Source: Laplace 1774. Targets: (n, K).

    Example:
        >>> import fastopt as fo
        >>> fo.losses.MeanAbsoluteError(backend="numpy")([[1.0], [2.0]], [0, 0])
        1.5
    """

    name = "mean_absolute_error"

    def __init__(self, *, backend: str = _backends.DEFAULT) -> None:
        super().__init__(backend)


class Huber(Loss):
    """Mean over rows and outputs of r^2 / 2 where |r| <= delta, else delta (|r| - delta / 2), with r = z - t.

    Source: Huber 1964. Targets: (n, K). `delta` must be positive.

    Example:
        >>> import fastopt as fo
        >>> fo.losses.Huber(backend="numpy")([[1.0], [2.0]], [0, 0])
        1.0
    """

    name = "huber"

    def __init__(self, delta: float = 1.0, *, backend: str = _backends.DEFAULT) -> None:
        super().__init__(backend, delta=delta)


class Quantile(Loss):
    """Mean over rows and outputs of q (t - z) where t > z, else (1 - q) (z - t): the pinball loss of the quantile q.

    Its least mean is at the q-quantile of the targets; at q = 0.5 it is half the absolute error, least at the median.
    The gradient is 0 where z = t.

    Source: Koenker & Bassett 1978; scikit-learn's mean_pinball_loss. Targets: (n, K). `quantile` is q, in (0, 1).

    Example:
        >>> import fastopt as fo
        >>> fo.losses.Quantile(0.75, backend="numpy")([[1.0], [2.0]], [0, 4])
        0.875
    """

    name = "quantile"

    def __init__(self, quantile: float = 0.5, *, backend: str = _backends.DEFAULT) -> None:
        super().__init__(backend, quantile=quantile)


class BinaryCrossentropy(Loss):
    """Mean over rows and outputs of max(z, 0) - z t + log(1 + exp(-|z|)): cross-entropy from the logits z.

    The same as -t log p - (1 - t) log(1 - p) with p = sigmoid(z), but exact for large |z|. Targets: (n, K) in [0, 1].
    With `label_smoothing` s in [0, 1), t (1 - s) + s / 2 stands in for t.

    Example:
        >>> import fastopt as fo
        >>> round(fo.losses.BinaryCrossentropy(backend="numpy")([[0.0], [100.0]], [1, 1]), 4)
        0.3466
    """

    name = "binary_crossentropy"

    def __init__(self, label_smoothing: float = 0.0, *, backend: str = _backends.DEFAULT) -> None:
        super().__init__(backend, label_smoothing=label_smoothing)


class Hinge(Loss):
    """Mean of max(0, 1 - t z) over rows and outputs; its gradient is 0 where t z = 1.

    Source: Cortes & Vapnik 1995. Targets: (n, K) of -1 and 1, or of 0 and 1, which mean the same.

    Example:
        >>> import fastopt as fo
        >>> fo.losses.Hinge(backend="numpy")([[0.5], [2.0]], [-1, 1])
        0.75
    """

    name = "hinge"

    def __init__(self, *, backend: str = _backends.DEFAULT) -> None:
        super().__init__(backend)


class Perceptron(Loss):
    """Mean of max(0, -t z) over rows and outputs; its gradient is -t where t z = 0, so that training leaves z = 0.

    Source: Rosenblatt 1958. Targets: (n, K) of -1 and 1, or of 0 and 1, which mean the same.

    Example:
        >>> import fastopt as fo
        >>> fo.losses.Perceptron(backend="numpy")([[0.5], [2.0]], [-1, 1])
        0.25
    """

    name = "perceptron"

    def __init__(self, *, backend: str = _backends.DEFAULT) -> None:
        super().__init__(backend)


class SparseCategoricalCrossentropy(Loss):
    """Mean over rows of log(sum(exp(z))) - z[label]: softmax cross-entropy from the logits z (n, K).

    Source: Bridle 1990. Targets: (n,) labels 0 ... K - 1, of an integer type or whole floats. With `label_smoothing` s
    in [0, 1) the target probabilities are 1 - s + s / K for the label, and s / K for the others.

    Example:
        >>> import fastopt as fo
        >>> round(fo.losses.SparseCategoricalCrossentropy(backend="numpy")([[0.0, 0.0], [0.0, 100.0]], [0, 1]), 4)
        0.3466
    """

    name = "sparse_categorical_crossentropy"

    def __init__(self, label_smoothing: float = 0.0, *, backend: str = _backends.DEFAULT) -> None:
        super().__init__(backend, label_smoothing=label_smoothing)


class CategoricalCrossentropy(Loss):
    """Mean over rows of the sum over k of t[k] (log(sum(exp(z))) - z[k]): softmax cross-entropy from the logits z.

    Source: Bridle 1990. Targets: (n, K) one-hot rows or probabilities: not negative, each row summing to 1 (to 0.001).
    With `label_smoothing` s in [0, 1), t (1 - s) + s / K stands in for t.

    Example:
        >>> import fastopt as fo
        >>> round(fo.losses.CategoricalCrossentropy(backend="numpy")([[0.0, 0.0]], [[0.25, 0.75]]), 4)
        0.6931
    """

    name = "categorical_crossentropy"

    def __init__(self, label_smoothing: float = 0.0, *, backend: str = _backends.DEFAULT) -> None:
        super().__init__(backend, label_smoothing=label_smoothing)


_CLASSES: tuple[type[Loss], ...] = (
    MeanSquaredError,
    MeanAbsoluteError,
    Huber,
    Quantile,
    BinaryCrossentropy,
    Hinge,
    Perceptron,
    SparseCategoricalCrossentropy,
    CategoricalCrossentropy,
)
LOSS_CLASSES: dict[str, type[Loss]] = {cls.name: cls for cls in _CLASSES}
ALIASES = {
    "mse": "mean_squared_error",
    "mae": "mean_absolute_error",
    "bce": "binary_crossentropy",
    "scce": "sparse_categorical_crossentropy",
    "cce": "categorical_crossentropy",
    "pinball": "quantile",
}


_BUILT_IN = (*LOSS_CLASSES, *ALIASES)


def get(loss: str | Loss | type[Loss]) -> Loss:
    """A loss by its name in LOSS_CLASSES or ALIASES, or its class, with default parameters; a loss as it is.

    Raises:
        TypeError: neither a name nor a loss.
        ValueError: an unknown name; the message lists the known ones.

    Example:
        >>> import fastopt as fo
        >>> fo.losses.get("mse")
        MeanSquaredError()
    """
    if isinstance(loss, Loss):
        return loss
    if isinstance(loss, type) and issubclass(loss, Loss) and loss is not Loss:
        return loss()
    return LOSS_CLASSES[check_name("loss", canonical(loss), (*LOSS_CLASSES, *ALIASES))]()


def canonical(loss: Any) -> Any:
    """The name in LOSS_CLASSES for an alias, and for either one in other letters; what is neither stays as it is.

    >>> canonical("MSE"), canonical("mean_squared_error"), canonical("Huber"), canonical("cross")
    ('mean_squared_error', 'mean_squared_error', 'huber', 'cross')
    """
    known = ALIASES.get(loss.lower(), loss.lower()) if isinstance(loss, str) else loss
    return known if isinstance(known, str) and known in LOSS_CLASSES else loss
