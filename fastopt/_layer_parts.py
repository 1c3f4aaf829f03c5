"""Parts that descriptions of layers share: initial arrays, and a repr."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ._validation import check_finite, check_name, describe, own, plain


def glorot_uniform(rng: np.random.Generator, shape: tuple[int, int]) -> NDArray[np.float64]:
    """U(-a, a) with a = sqrt(6 / (inputs + outputs)) (Glorot & Bengio 2010)."""
    limit = math.sqrt(6.0 / sum(shape))
    return rng.uniform(-limit, limit, shape)


def glorot_normal(rng: np.random.Generator, shape: tuple[int, int]) -> NDArray[np.float64]:
    """N(0, s^2) with s = sqrt(2 / (inputs + outputs)) (Glorot & Bengio 2010; not truncated, as torch's)."""
    return rng.standard_normal(shape) * math.sqrt(2.0 / sum(shape))


def he_uniform(rng: np.random.Generator, shape: tuple[int, int]) -> NDArray[np.float64]:
    """U(-a, a) with a = sqrt(6 / inputs), for relu and its kin (He et al. 2015)."""
    limit = math.sqrt(6.0 / shape[0])
    return rng.uniform(-limit, limit, shape)


def he_normal(rng: np.random.Generator, shape: tuple[int, int]) -> NDArray[np.float64]:
    """N(0, s^2) with s = sqrt(2 / inputs), for relu and its kin (He et al. 2015; not truncated, as torch's)."""
    return rng.standard_normal(shape) * math.sqrt(2.0 / shape[0])


def orthogonal(rng: np.random.Generator, shape: tuple[int, int]) -> NDArray[np.float64]:
    """Orthonormal rows or columns, whichever are fewer (Saxe, McClelland & Ganguli 2014)."""
    inputs, outputs = shape
    q, r = np.linalg.qr(rng.standard_normal((max(shape), min(shape))))
    q *= np.where(np.diagonal(r) < 0, -1.0, 1.0)  # makes the factorisation unique, and so the draw uniform
    return q if inputs >= outputs else np.ascontiguousarray(q.T)


def zeros(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """All zeros."""
    return np.zeros(shape)


INITIALIZERS: dict[str, Callable[..., NDArray[np.float64]]] = {
    "glorot_uniform": glorot_uniform,
    "glorot_normal": glorot_normal,
    "he_uniform": he_uniform,
    "he_normal": he_normal,
    "orthogonal": orthogonal,
    "zeros": zeros,
}


def ones(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """All ones."""
    return np.ones(shape)


# For one number of each output; the others need the number of inputs as well.
VECTOR_INITIALIZERS = {"zeros": zeros, "ones": ones}
DRAWS: dict[str, Callable[..., NDArray[np.float64]]] = {**INITIALIZERS, **VECTOR_INITIALIZERS}


def check_initializer(what: str, value: Any, known: dict[str, Any], ndim: int) -> str | NDArray[np.float64]:
    """Return a name of `known`, or an array of so many dimensions as a read-only copy."""
    if isinstance(value, str):
        return check_name(what, value, known)
    array = plain(what, value)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{what} must be one of {', '.join(known)}, or an array of numbers; got {describe(value)}")
    array = check_finite(what, own(array, np.float64))
    if array.ndim != ndim:
        raise ValueError(f"{what} must be an array of {ndim} dimension(s); got shape {array.shape}")
    array.flags.writeable = False
    return array


def draw(
    arrays: Sequence[tuple[tuple[int, ...], str | ArrayLike]], seed: int, index: int
) -> list[NDArray[np.float64]]:
    """Initial arrays of these shapes, each given or drawn from a stream of its own."""
    drawn = []
    for which, (shape, source) in enumerate(arrays):
        if isinstance(source, str):
            stream = np.random.SeedSequence(seed, spawn_key=(0, index, which))
            drawn.append(DRAWS[source](np.random.Generator(np.random.PCG64(stream)), shape))
        else:
            drawn.append(own(np.asarray(source), np.float64))
    return drawn


def layer_repr(layer: Any, leading: int, *values: object) -> str:
    """Text of a layer: these values, then the fields after the `leading` first that are not at their defaults."""
    parts = [str(value) for value in values]
    for name, field in list(layer.__dataclass_fields__.items())[leading:]:
        value = getattr(layer, name)
        if isinstance(value, np.ndarray):
            parts.append(f"{name}=<array {value.shape}>")
        elif value != field.default:
            parts.append(f"{name}={value!r}")
    return f"{type(layer).__name__}({', '.join(parts)})"
