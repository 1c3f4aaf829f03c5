"""Oracle of normalization: the textbook's formula in NumPy, and its gradients by complex steps, exact to rounding."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Array = np.ndarray
STEP = 1e-30  # a derivative by f(x + i h) subtracts nothing, so h may be so small that h^2 does not count


def normalized(x: Array, gamma: Array, beta: Array, axis: int, epsilon: float) -> Array:
    """gamma (x - mean) / sqrt(variance + epsilon) + beta; axis 0 for columns (batch), 1 for rows (layer)."""
    deviation = x - x.mean(axis=axis, keepdims=True)
    return gamma * deviation / np.sqrt((deviation**2).mean(axis=axis, keepdims=True) + epsilon) + beta


def gradients(f: Callable[..., Array], dy: Array, *arrays: Array) -> list[Array]:
    """Gradients of sum(dy f(*arrays)) by each of the arrays."""
    found = []
    for k, array in enumerate(arrays):
        gradient = np.zeros(array.shape)
        for i in np.ndindex(array.shape):
            moved = [a.astype(complex) for a in arrays]
            moved[k][i] += 1j * STEP
            gradient[i] = np.sum(dy * f(*moved)).imag / STEP
        found.append(gradient)
    return found
