"""Tasks: the loss that an estimator minimises, by its targets, in the terms of scikit-learn and of fastopt."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, log_softmax, softmax, xlogy

from ._losses import loss_of


class Task(NamedTuple):
    """One loss. scikit-learn adds up what fastopt averages over outputs, and takes half of squares.

    gradient: scikit-learn's gradient, over fastopt's; value: the same of the loss.
    """

    loss: str
    activation: str  # of the outputs
    outputs: int
    gradient: float = 1.0
    value: float = 1.0

    def __reduce__(self) -> Any:
        return _restored, tuple(self)

    @property
    def last_activation(self) -> str:
        """Activation of the network's last layer."""
        return "linear" if self.activation == "exp" else self.activation

    def outputs_of(self, found: NDArray[Any]) -> NDArray[Any]:
        """Return the outputs, by those of the network, (n, outputs)."""
        if self.activation != "exp":
            return found
        with np.errstate(over="ignore"):
            means: NDArray[Any] = np.exp(found)
        return means

    def compiled_loss(self) -> Any:
        """Return the loss as `compile` takes it."""
        return loss_of(self.loss, **({"outputs": self.outputs} if self.loss == "squares_of_several" else {}))

    def link(self, z: NDArray[Any]) -> NDArray[Any]:
        """Return the outputs of a network whose last layer gives z, (n, outputs)."""
        if self.activation in ("linear", "exp"):
            return self.outputs_of(z)
        found: NDArray[Any] = softmax(z, axis=1) if self.activation == "softmax" else expit(z)
        return found

    def loss_and_gradient(
        self, z: NDArray[Any], y: NDArray[Any], weights: NDArray[Any] | None
    ) -> tuple[float, NDArray[Any]]:
        """Return scikit-learn's loss of z, (n, outputs), and its gradient by z.

        y: class numbers (n,), or (n, outputs). weights: of the rows, (n,); None: 1.
        """
        rows = np.arange(len(z))
        share = np.full(len(z), 1 / len(z)) if weights is None else weights / weights.sum()
        share = share.astype(z.dtype)[:, np.newaxis]
        dz = self.link(z)
        if self.activation == "softmax":
            losses = -log_softmax(z, axis=1)[rows, y][:, np.newaxis]
            dz[rows, y] -= 1
        elif self.activation == "sigmoid":
            y = y.reshape(z.shape)
            losses = np.logaddexp(0, z) - y * z
            dz = dz - y
        elif self.activation == "exp":
            y = y.reshape(z.shape)
            losses = dz - y * z + xlogy(y, y) - y
            dz = dz - y
        else:
            dz = dz - y.reshape(z.shape)
            losses = dz * dz / (2 * self.outputs)
        return float((share * losses).sum()), dz * share


def _restored(*fields: Any) -> Task:
    """Return a task of a file, whose loss is defined before the network that has it is read."""
    task = Task(*fields)
    task.compiled_loss()
    return task


def squares(outputs: int, penalised: bool) -> Task:
    """Half of the squared error, whose gradient scikit-learn does not average over outputs; penalised: alpha > 0."""
    if outputs > 1 and penalised:
        # loss and penalty are fastopt's times one factor
        return Task("squares_of_several", "linear", outputs, gradient=outputs / 2, value=outputs / 2)
    return Task("mean_squared_error", "linear", outputs, gradient=outputs / 2, value=0.5)


def poisson(outputs: int) -> Task:
    """Half of Poisson's deviances, added up, of the logarithms of means."""
    return Task("half_poisson", "exp", outputs, gradient=float(outputs), value=float(outputs))


def log_loss(classes: int) -> Task:
    """Cross-entropy of so many classes; of two, one output."""
    if classes > 2:
        return Task("sparse_categorical_crossentropy", "softmax", classes)
    return Task("binary_crossentropy", "sigmoid", 1)


def multilabel(outputs: int) -> Task:
    """Cross-entropies of labels that are there or not, added up."""
    return Task("binary_crossentropy", "sigmoid", outputs, gradient=float(outputs), value=float(outputs))


def perceptron(classes: int) -> Task:
    """Rosenblatt's loss, max(0, -y z); of several classes, each against the rest."""
    outputs = classes if classes > 2 else 1
    return Task("perceptron", "linear", outputs, gradient=float(outputs), value=float(outputs))


def weighted_perceptron(task: Task) -> Task:
    """The same of targets that are signs times weights, so that each row's step is as large as its weight."""
    return task._replace(loss="weighted_perceptron")
