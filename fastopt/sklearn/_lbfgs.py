"""The solver "lbfgs": scipy's L-BFGS-B on the loss and gradient that the kernels compute."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.optimize
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning

from .. import _backends
from ..kernels.formulas import ACTIVATIONS
from ._tasks import Task

Array = NDArray[Any]


class Objective:
    """Loss and gradient of a network of dense layers over all rows, by its parameters, [w0, b0, ...].

    penalty: alpha of alpha / 2 times the sum of the squares of all w, over the sum of the rows' weights.
    """

    def __init__(
        self, params: Sequence[Array], activations: Sequence[str], task: Task, data: tuple[Array, Array],
        weights: Array | None, penalty: float, backend: str, bias: bool,
    ) -> None:  # fmt: skip
        self.params, self.activations, self.task, self.weights, self.bias = params, activations, task, weights, bias
        self.x, self.y = data
        self.weight = len(self.x) if weights is None else float(weights.sum())
        self.penalty = penalty / self.weight
        self.kernels = _backends.get(backend)
        dtype, rows = self.x.dtype, len(self.x)
        self.layers = [(params[i], params[i + 1] if bias else None) for i in range(0, len(params), 1 + bias)]
        self.outputs = [np.empty((rows, w.shape[1]), dtype) for w, _ in self.layers]
        self.pre = [np.empty_like(y) for y in self.outputs]
        self.gradients = [np.empty_like(p) for p in params]

    bounds = None

    def start(self) -> Array:
        """Return a vector of all parameters, float64."""
        return np.concatenate([p.ravel() for p in self.params]).astype(np.float64)

    def unpack(self, flat: Array) -> None:
        """Copy a vector of all parameters into them."""
        start = 0
        for p in self.params:
            p[...] = flat[start : start + p.size].reshape(p.shape)
            start += p.size

    def __call__(self, flat: Array) -> tuple[float, Array]:
        """Return the loss and its gradient, (parameters,) float64."""
        self.unpack(flat)
        inputs = [self.x, *self.outputs[:-1]]
        for x, (w, b), activation, y, z in zip(
            inputs, self.layers, self.activations, self.outputs, self.pre, strict=True
        ):
            self.kernels.dense_forward(x, w, b, activation, y, z)
        value, dy = self.task.loss_and_gradient(self.outputs[-1], self.y, self.weights)
        dy = np.ascontiguousarray(dy, self.x.dtype)
        for i in reversed(range(len(self.layers))):
            (w, _), k = self.layers[i], i * (1 + self.bias)
            s = self.outputs[i] if ACTIVATIONS[self.activations[i]].uses == "y" else self.pre[i]
            dx: Any = np.empty_like(inputs[i]) if i else None
            db = self.gradients[k + 1] if self.bias else None
            self.kernels.dense_backward(dy, inputs[i], w, s, self.activations[i], dx, self.gradients[k], db)
            dy = dx
            value += 0.5 * self.penalty * float(np.vdot(w, w))
            self.gradients[k] += w.dtype.type(self.penalty) * w
        return value, np.concatenate([g.ravel() for g in self.gradients]).astype(np.float64)


class Within:
    """An objective whose weights are at least 0, or have an L1 penalty: both are bounds, which L-BFGS-B keeps to.

    A weight with an L1 penalty is the difference of two variables of at least 0, whose sum is penalised. At the minimum
    one of them, or both, are exactly 0.
    l1: alpha of alpha times the sum of the values of all w, over the sum of the rows' weights.
    """

    def __init__(self, objective: Objective, l1: float, positive: bool) -> None:
        self.objective = objective
        self.penalty = l1 / objective.weight
        step = 1 + objective.bias
        self.is_weight = np.concatenate([np.full(p.size, i % step == 0) for i, p in enumerate(objective.params)])
        self.splits = not positive

    @property
    def bounds(self) -> Any:
        """Least values of the variables: all parameters, then the negative parts of weights."""
        least = np.where(self.is_weight, 0.0, -np.inf)
        return scipy.optimize.Bounds(np.append(least, np.zeros(self.is_weight.sum() * self.splits)))

    def start(self) -> Array:
        """Return the variables by the parameters, (parameters + weights,) float64."""
        flat = self.objective.start()
        negative = np.maximum(-flat[self.is_weight], 0.0)
        flat[self.is_weight] = np.maximum(flat[self.is_weight], 0.0)
        return np.append(flat, negative) if self.splits else flat

    def _joined(self, flat: Array) -> Array:
        found = flat[: len(self.is_weight)].copy()
        if self.splits:
            found[self.is_weight] -= flat[len(found) :]
        return found

    def unpack(self, flat: Array) -> None:
        """Copy the parameters that variables stand for into them."""
        self.objective.unpack(self._joined(flat))

    def __call__(self, flat: Array) -> tuple[float, Array]:
        """Return the loss with its penalty, and its gradient by the variables, float64."""
        value, slope = self.objective(self._joined(flat))
        count = len(self.is_weight)
        value += self.penalty * float(flat[:count][self.is_weight].sum() + flat[count:].sum())
        negative = self.penalty - slope[self.is_weight]
        slope[self.is_weight] += self.penalty
        return value, np.append(slope, negative) if self.splits else slope


def minimise(objective: Objective | Within, max_iter: int, max_fun: int, tol: float, ftol: float) -> tuple[int, float]:
    """Minimise in place; return the number of iterations and the loss. Warns if it has not converged."""
    options = {"maxiter": max_iter, "maxfun": max_fun, "gtol": tol, "ftol": ftol}
    found = scipy.optimize.minimize(
        objective, objective.start(), method="L-BFGS-B", jac=True, bounds=objective.bounds, options=options
    )
    objective.unpack(found.x)
    if found.status != 0:
        warnings.warn(
            f"lbfgs failed to converge after {found.nit} iteration(s): {found.message}. Increase max_iter or scale"
            " the data.", ConvergenceWarning, stacklevel=4,
        )  # fmt: skip
    return min(int(found.nit), max_iter), float(found.fun)
