"""Layers beside dense ones: normalization of rows and of columns, noise and activations, in vectorised NumPy.

Means, variances and the sums of gradients over a batch are taken in float64; what is done element by element is done in
the network's dtype. A layer's `gradients` stand in the order of its parameters, None for those that are not trained.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..denormals import flushed
from ..spec import ActivationSpec, BatchNormSpec, GaussianNoiseSpec, LayerNormSpec
from .maths import ACTIVATIONS, normal_draws

Array = np.ndarray
Cast = Callable[[Array], Array]


class GaussianNoise:
    """y = x + stddev z in training, with z of N(0, 1)."""

    gradients: Sequence[Array | None] = ()

    def __init__(self, spec: GaussianNoiseSpec, index: int, cast: Cast) -> None:
        self.stddev, self.index, self.cast = spec.stddev, index, cast

    @flushed
    def forward(self, x: Array, seed: int, step: int) -> Array:
        T = x.dtype.type
        drawn = normal_draws(seed, self.index, step, (x.shape[0], x.shape[1])).astype(x.dtype)
        return self.cast(x + T(self.stddev) * drawn)

    def predict(self, x: Array) -> Array:
        return x

    def backward(self, dy: Array) -> Array:
        return dy


class Activation:
    """y = f(x)."""

    gradients: Sequence[Array | None] = ()

    def __init__(self, spec: ActivationSpec, cast: Cast) -> None:
        self.activation, self.cast = spec.activation, cast

    def forward(self, x: Array, seed: int, step: int) -> Array:
        y = self.predict(x)
        self.s = y if ACTIVATIONS[self.activation].uses == "y" else x
        return y

    @flushed
    def predict(self, x: Array) -> Array:
        y = np.empty_like(x)
        ACTIVATIONS[self.activation].value(x, y)
        return self.cast(y)

    @flushed
    def backward(self, dy: Array) -> Array:
        return dy if self.activation == "linear" else self.cast(dy * ACTIVATIONS[self.activation].slope(self.s))


class _Normalization:
    """Parts that rows and columns share; axis: that of means and variances."""

    axis: int
    needs_dx = True  # False where no layer below has a parameter that is updated

    def __init__(self, spec: LayerNormSpec | BatchNormSpec, params: Sequence[Array], cast: Cast) -> None:
        given = iter(params)
        self.epsilon, self.cast = spec.epsilon, cast
        self.gamma = next(given) if spec.scale else None
        self.beta = next(given) if spec.center else None
        trained = [p for p in (self.gamma, self.beta) if p is not None]
        self.gradients: list[Array | None] = [np.empty_like(p) for p in trained]

    def _statistics(self, x: Array) -> tuple[Array, Array]:
        """Mean and biased variance in float64, with the axis kept."""
        mean = np.asarray(np.mean(x, axis=self.axis, dtype=np.float64, keepdims=True))
        return mean, np.mean(np.square(x - mean), axis=self.axis, keepdims=True)

    def _inverse(self, variance: Array) -> Array:
        return np.asarray(1.0 / np.sqrt(variance + self.epsilon))

    def _normalized(self, x: Array, mean: Array, inverse: Array) -> Array:
        """gamma (x - mean) inverse + beta."""
        y = (x - mean.astype(x.dtype)) * inverse.astype(x.dtype)
        if self.gamma is not None:
            y = y * self.gamma
        if self.beta is not None:
            y = y + self.beta
        return self.cast(y)

    def _train(self, x: Array) -> tuple[Array, Array]:
        """Normalize a batch; return its statistics."""
        mean, variance = self._statistics(x)
        self.x, self.mean, self.inverse = x, mean, self._inverse(variance)
        return mean, variance

    @flushed
    def backward(self, dy: Array) -> Array | None:
        """Fill the gradients; return dx = inverse (g - mean(g) - n mean(g n)): g = gamma dy, n = (x - mean) inverse."""
        normal = (self.x.astype(np.float64) - self.mean) * self.inverse
        sums = [np.sum(dy * normal, axis=0)] * (self.gamma is not None)
        sums += [np.sum(dy, axis=0, dtype=np.float64)] * (self.beta is not None)
        for gradient, total in zip(self.gradients, sums, strict=False):
            assert gradient is not None
            gradient[...] = total
        if not self.needs_dx:
            return None
        g = dy if self.gamma is None else dy * self.gamma.astype(np.float64)
        of_mean = np.mean(g, axis=self.axis, dtype=np.float64, keepdims=True)
        of_deviation = np.mean(g * normal, axis=self.axis, keepdims=True)
        return self.cast((self.inverse * (g - of_mean - normal * of_deviation)).astype(dy.dtype))


class LayerNorm(_Normalization):
    """Normalization of each row by its own mean and variance."""

    axis = 1

    @flushed
    def forward(self, x: Array, seed: int, step: int) -> Array:
        self._train(x)
        return self._normalized(x, self.mean, self.inverse)

    @flushed
    def predict(self, x: Array) -> Array:
        mean, variance = self._statistics(x)
        return self._normalized(x, mean, self._inverse(variance))


class BatchNorm(_Normalization):
    """Normalization of each column: by the batch in training, which moves the averages, else by those."""

    axis = 0

    def __init__(self, spec: BatchNormSpec, params: Sequence[Array], cast: Cast) -> None:
        super().__init__(spec, params, cast)
        self.momentum, self.moving, self.fixed = spec.momentum, params[-2:], False
        self.gradients += [None, None]
        self.moves = True  # False: a batch leaves the averages as they are

    @flushed
    def forward(self, x: Array, seed: int, step: int) -> Array:
        if self.fixed:
            return self.predict(x)
        if not self.moves:
            self._train(x)
            return self._normalized(x, self.mean, self.inverse)
        for average, of_batch in zip(self.moving, self._train(x), strict=True):
            average[...] = self.momentum * average.astype(np.float64) + (1 - self.momentum) * of_batch[0]
        return self._normalized(x, self.mean, self.inverse)

    @flushed
    def predict(self, x: Array) -> Array:
        mean, variance = self.moving
        return self._normalized(x, mean, self._inverse(variance.astype(np.float64)))

    def backward(self, dy: Array) -> Array | None:
        """Fill the gradients; return dx. Where the layer is fixed, it is but a factor."""
        if not self.fixed:
            return super().backward(dy)
        factor = self._inverse(self.moving[1].astype(np.float64))
        factor = (factor if self.gamma is None else factor * self.gamma).astype(dy.dtype)
        return self.cast(dy * factor) if self.needs_dx else None
